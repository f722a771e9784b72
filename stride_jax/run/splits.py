"""What a run reads: the corpus of a language model, and the examples of every role."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from stride_jax.data import (
    Examples,
    ShardSplits,
    TextSettings,
    TextSplits,
    TuningSettings,
    load_shards,
    load_splits,
    load_text,
    load_tuning,
    load_verses,
    plant,
    planted_facts,
)
from stride_jax.models.train import refuse_kind
from stride_jax.near_copies import near_copy_keys
from stride_jax.objectives import named_objective
from stride_jax.run import model_source
from stride_jax.run.settings import RunSettings
from stride_jax.sequences import token_lists

Tokenised = TypeVar("Tokenised", TextSettings, TuningSettings)


def corpus_of(settings: RunSettings, workdir: pathlib.Path) -> TextSplits | ShardSplits:
    """Sequences and tokenizer of a language model's run, held in memory or not."""
    s = settings
    if s.shards is not None:
        return load_shards(s.shards)
    if s.tuning is not None:
        return load_tuning(with_tokenizer(s, s.tuning, workdir), workdir)
    if s.verses is not None:
        splits = load_verses(s.verses, workdir)
    else:
        assert s.text is not None, "this run is not of text"
        splits = load_text(with_tokenizer(s, s.text, workdir), workdir)
    return plant(splits, planted_facts(seed=0, count=s.facts)) if s.facts else splits


def with_tokenizer(settings: RunSettings, text: Tokenised, workdir: pathlib.Path) -> Tokenised:
    """The text's settings with the tokenizer that came with the model, unless one is given."""
    model = settings.model
    if text.tokenizer or model.origin is None:
        return text
    return dataclasses.replace(text, tokenizer=model_source.kept_tokenizer(model, workdir / "data"))


def examples_of(
    settings: RunSettings, corpus: TextSplits | ShardSplits | None, workdir: pathlib.Path
) -> tuple[dict[str, Examples], int]:
    """The splits by role, and the number of classes, or of numbers in a label.

    Args:
      settings: of the run.
      corpus: its own, where it is of text; else None.
      workdir: of the run.
    """
    if corpus is None:
        return load_splits(settings.data, workdir / "data")
    origin = settings.model.origin  # a model's tables may be padded
    num_tokens = corpus.tokenizer.vocab_size if origin is None else origin.num_classes
    if isinstance(corpus, ShardSplits):
        return corpus.examples(), num_tokens
    roles = ("train", "calibration", "query")
    splits = {role: getattr(corpus, role).examples for role in roles}
    if (near := settings.near_copies) is not None:
        own = splits["train"]
        keys = near_copy_keys(token_lists(own, "near_copies"), near, ids=own.ids)
        splits["train"] = dataclasses.replace(own, keys=keys)
    return splits, num_tokens


def refuse_labels(splits: Mapping[str, Examples], objective_name: str, width: int) -> None:
    """Labels that the objective can't read, before a model is trained on them.

    Raises:
      ValueError: labels of another kind than the objective reads; says which.
    """
    objective = named_objective(objective_name)
    for role, examples in splits.items():
        refuse_kind(objective, examples.labels, f"labels of the split {role!r}")
        if not objective.classes:
            rows = np.asarray(examples.labels, np.float32).reshape(len(examples), -1)
            objective.check(rows, width)
