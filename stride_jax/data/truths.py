"""The training sequences that answer a query, by their ids, so that any order will do."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from stride_jax.data.text_examples import TextExamples, passage_keys
from stride_jax.runtime.files import read_json, reading, write_json

Truth = Mapping[str, Sequence[str]]
"""From the id of a query to the ids of the training sequences that are relevant to it."""


def by_key(query: TextExamples, train: TextExamples) -> dict[str, list[str]]:
    """The truth of queries: training sequences that hold a passage with a key of the query's.

    Copies of a relevant sequence are relevant too, since no method can tell them apart.
    """
    rows_of: defaultdict[str, set[int]] = defaultdict(set)
    for row, key in passage_keys(train.spans, train.sources):
        rows_of[key].add(row)
    copies = _copies(train)
    truth: dict[str, list[str]] = {str(name): [] for name in query.ids}
    for row, key in passage_keys(query.spans, query.sources):
        same = {copy for answer in rows_of[key] for copy in copies[answer]}
        names = truth[str(query.ids[row])]
        names += [name for name in train.ids[sorted(same)].tolist() if name not in names]
    return truth


def _copies(examples: TextExamples) -> list[list[int]]:
    """For every sequence, all sequences of its content, itself included."""
    rows_of: defaultdict[bytes, list[int]] = defaultdict(list)
    contents = [row.tobytes() for row in np.hstack([examples.inputs_NxT, examples.labels_NxT])]
    for row, content in enumerate(contents):
        rows_of[content].append(row)
    return [rows_of[content] for content in contents]


def relevant(
    truth: Truth, query_ids: Iterable[str], train_ids: Sequence[str] | np.ndarray
) -> np.ndarray:
    """The truth as `[query, train]` bool, as `evaluation.retrieval` takes it.

    Raises:
      ValueError: a query whose truth isn't known.

    >>> relevant({"q": ["b"]}, ["q"], ["a", "b"]).tolist()
    [[False, True]]
    """
    column = {str(name): place for place, name in enumerate(train_ids)}
    queries = [str(name) for name in query_ids]
    if unknown := [name for name in queries if name not in truth]:
        raise ValueError(
            f"no truth for {len(unknown)} of {len(queries)} queries: {unknown[0]}, …; give "
            "their training ids"
        )
    relevant_QxN = np.zeros((len(queries), len(column)), bool)
    for row, name in enumerate(queries):
        relevant_QxN[row, [column[other] for other in truth[name] if other in column]] = True
    return relevant_QxN


def write_truth(path: str | os.PathLike[str], truth: Truth) -> None:
    """Write JSON, atomically: `{query id: [training ids]}`."""
    write_json(path, truth)


def read_truth(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read what `write_truth` wrote.

    Raises:
      UnreadableFileError: the file is torn or not ours; the message names it and the remedy.
    """
    truth = read_json(path)
    with reading(path, "a retrieval truth", "delete its folder to have it written again"):
        return {str(name): [str(other) for other in others] for name, others in truth.items()}
