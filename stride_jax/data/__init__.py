"""Real data: TFDS builders, loading through grain, tokens and packing, content-hash ids."""

from stride_jax.data.examples import Examples, content_ids
from stride_jax.data.source import DataSettings, load_splits
from stride_jax.data.text import TextSettings, TextSplits, load_text
from stride_jax.data.text_examples import TextExamples

__all__ = [
    "DataSettings",
    "Examples",
    "TextExamples",
    "TextSettings",
    "TextSplits",
    "content_ids",
    "load_splits",
    "load_text",
]
