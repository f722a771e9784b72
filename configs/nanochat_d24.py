"""nanochat of depth 24, 1.38B parameters, vocabulary 32,768; published LDS .167 (method.md §3)."""

from ml_collections import ConfigDict

from configs import nanochat


def get_config() -> ConfigDict:
    """The model and the method's published settings."""
    return nanochat.preset(24)
