"""nanochat of depth 20, 897M parameters, vocabulary 32,768; published LDS .160 (method.md §3)."""

from ml_collections import ConfigDict

from configs import nanochat


def get_config() -> ConfigDict:
    """The model and the method's published settings."""
    return nanochat.preset(20)
