"""Real data: TFDS builders, loading through grain, content-hash ids."""

from stride_jax.data.examples import Examples, content_ids
from stride_jax.data.source import DataSettings, load_splits

__all__ = ["DataSettings", "Examples", "content_ids", "load_splits"]
