"""nanochat of depth 24, 1.38B parameters: `configs/nanochat.py:d24` under a name of its own.

python -m experiments.plan --config=configs/nanochat_d24.py --mesh=1,8 --chip=h100
"""

from ml_collections import ConfigDict

from configs import nanochat


def get_config() -> ConfigDict:
    """The model and the method's published settings."""
    return nanochat.get_config("d24")
