"""Real data: TFDS builders, loading through grain, tokens and packing."""

from stride_jax.data.bible import BOOKS, TRANSLATIONS
from stride_jax.data.bible import FIELDS as BIBLE_FIELDS
from stride_jax.data.chat_template import ChatTemplate
from stride_jax.data.completions import pack_completions
from stride_jax.data.mapped import map_splits, write_splits
from stride_jax.data.planted import plant, planted_facts
from stride_jax.data.shards import ShardSettings, ShardSplits, load_shards
from stride_jax.data.source import DataSettings, load_splits
from stride_jax.data.text import TextSettings, TextSplits, load_text
from stride_jax.data.text_examples import TextExamples
from stride_jax.data.tokens import Tokenizer, load_tokenizer
from stride_jax.data.truths import relevant
from stride_jax.data.tuning import TuningSettings, load_tuning, template_of
from stride_jax.data.verses import VerseSettings, load_verses
from stride_jax.examples import Examples
from stride_jax.ids import content_ids

__all__ = [
    "BIBLE_FIELDS",
    "BOOKS",
    "TRANSLATIONS",
    "ChatTemplate",
    "DataSettings",
    "Examples",
    "ShardSettings",
    "ShardSplits",
    "TextExamples",
    "TextSettings",
    "TextSplits",
    "Tokenizer",
    "TuningSettings",
    "VerseSettings",
    "content_ids",
    "load_shards",
    "load_splits",
    "load_text",
    "load_tokenizer",
    "load_tuning",
    "load_verses",
    "map_splits",
    "pack_completions",
    "plant",
    "planted_facts",
    "relevant",
    "template_of",
    "write_splits",
]
