"""Scores `[query, train]`, dense or in compressed rows: checked, ranked, averaged."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

Scores = np.ndarray | scipy.sparse.csr_array


class SparseScores(scipy.sparse.csr_array):
    """Scores in compressed rows, where the row of a query, or the column of an example, is dense.

    numpy takes a sparse vector for one object, and says that its order is `[0]`.

    >>> scores = SparseScores(np.array([[0.5, 0.0, -2.0]], np.float32))
    >>> np.argsort(scores[0]).tolist()
    [2, 1, 0]
    """

    def __getitem__(self, key: Any) -> Any:
        """As of any sparse array, but for vectors."""
        part = super().__getitem__(key)
        return part.toarray() if scipy.sparse.issparse(part) and part.ndim == 1 else part

    def argsort(self, *_: Any, **__: Any) -> np.ndarray:
        """Refused, whoever asks.

        Raises:
          ValueError: always.
        """
        raise ValueError("scores in compressed rows have no order: sort scores[i], or scores_QxN")


class Ranked(NamedTuple):
    """Pairs of a query and an example, P of them.

    Attributes:
      query_P, train_P: rows.
      rank_P: int32; 1, 2, … for proponents from the strongest, −1, −2, … for opponents.
      score_P: never zero.
    """

    query_P: np.ndarray
    train_P: np.ndarray
    rank_P: np.ndarray
    score_P: np.ndarray


def as_scores(scores: Any, shape: tuple[int, int]) -> Scores:
    """Scores as float32; sparse ones of any format in compressed rows.

    Raises:
      ValueError: another shape, or scores that are not finite.
    """
    if np.shape(scores) != shape:
        raise ValueError(
            f"scores of shape {np.shape(scores)} do not fit {shape[0]} queries and {shape[1]} "
            "training examples; the layout is [query, train]"
        )
    if not scipy.sparse.issparse(scores):
        scores = np.asarray(scores, np.float32)
        bad = np.asarray(~np.isfinite(scores).all(axis=1))
    else:
        scores = SparseScores(scores, dtype=np.float32)
        if not scores.has_canonical_format:
            scores = scores.copy()
            scores.sum_duplicates()
        row = np.repeat(np.arange(shape[0]), np.diff(scores.indptr))
        bad = np.bincount(row, ~np.isfinite(scores.data), minlength=shape[0]) > 0
    if bad.any():
        raise ValueError(
            f"scores of {int(bad.sum())} of {shape[0]} queries are not finite, first of row "
            f"{int(bad.argmax())}: give 0 where there is no influence"
        )
    return scores


def extent(scores: Scores) -> tuple[int, int]:
    """Q and N.

    >>> extent(scipy.sparse.csr_array((2, 5)))
    (2, 5)
    """
    queries, count = scores.shape  # pyright: ignore[reportGeneralTypeIssues]
    return int(queries), int(count)


def stacked(parts: Sequence[Scores]) -> Scores:
    """Scores of several sets of queries as one, in order; sparse if one of them is."""
    dense = [part for part in parts if isinstance(part, np.ndarray)]
    if len(dense) == len(parts):
        return np.concatenate(dense)
    return scipy.sparse.csr_array(scipy.sparse.vstack([*map(scipy.sparse.csr_array, parts)]))


def as_dense(scores: Scores) -> np.ndarray:
    """`[Q, N]` scores, zeros and all: for an N that affords it."""
    return scores if isinstance(scores, np.ndarray) else scores.toarray()


def row_scores(scores: Scores, query: int) -> tuple[np.ndarray, np.ndarray]:
    """A query's training rows, ascending, and their scores: all of them, or its support."""
    if isinstance(scores, np.ndarray):
        return np.arange(scores.shape[1]), scores[query]
    part = slice(scores.indptr[query], scores.indptr[query + 1])
    return scores.indices[part], scores.data[part]


def top_rows(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest positive scores, largest first; ties by row.

    >>> top_rows(np.array([0.5, -1.0, 0.0, 2.0]), 3).tolist()
    [3, 0]
    """
    order = np.argsort(-scores_N, kind="stable")[:k]
    return order[scores_N[order] > 0]


def ranked(scores: Scores, k: int) -> Ranked:
    """The k strongest proponents and opponents per query: by query, proponents first.

    >>> ranked(np.array([[0.5, -1.0, 2.0]], np.float32), 1).train_P.tolist()
    [2, 1]
    """
    parts = [(np.zeros(0, int),) * 3 + (np.zeros(0, np.float32),)]
    for query in range(extent(scores)[0]):
        rows, values = row_scores(scores, query)
        for sign in (1, -1):
            order = top_rows(sign * values, k)
            ranks = sign * np.arange(1, len(order) + 1)
            parts.append((np.full(len(order), query), rows[order], ranks, values[order]))
    queries, trains, ranks, values = map(np.concatenate, zip(*parts, strict=True))
    return Ranked(queries, trains, ranks.astype(np.int32), values)


def mean(parts: Sequence[Scores]) -> Scores:
    """Mean scores, sparse if all are.

    >>> a, b = np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32)
    >>> mean([a, scipy.sparse.csr_array(b)]).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    """
    if not all(scipy.sparse.issparse(part) for part in parts):
        parts = [part if isinstance(part, np.ndarray) else part.toarray() for part in parts]
    total = parts[0].astype(np.float64)
    for part in parts[1:]:
        total = total + part
    return (total / len(parts)).astype(np.float32)
