"""nanochat of depth 16, 537M parameters, vocabulary 32,768; published LDS .179 (method.md §3)."""

from ml_collections import ConfigDict

from configs import nanochat


def get_config() -> ConfigDict:
    """The model and the method's published settings."""
    return nanochat.preset(16)
