"""Who deserves an exact score: examples from any source, joined, each source by its name.

A source is an array of rows per query. The sketch names the examples it thinks strongest; others
come from the user (ids, nearest neighbours, matches of words), and exact scores decide.

Letter of its own: P places of a shortlist.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stride_jax.ids import as_ids, rows_of

SKETCH = "sketch"
"""The source of candidates that the measurements themselves point to."""


class Candidates(NamedTuple):
    """Examples that one source names.

    Attributes:
      source: its name, such as `bm25`.
      row_QxP: rows of the index for each query; −1 at places that are free.
    """

    source: str
    row_QxP: np.ndarray

    def of(self, queries: np.ndarray) -> "Candidates":
        """Those of some queries."""
        return Candidates(self.source, self.row_QxP[queries])


def named(source: str, ids: Any, train_ids: np.ndarray, num_queries: int) -> Candidates:
    """Candidates by their ids: one list for all queries, or one list for each.

    Args:
      source: name of the source.
      ids: `[P]` ids, or a sequence of Q such lists.
      train_ids: ids of the index.
      num_queries: Q.

    Raises:
      ValueError: an id that the index does not have, or lists of another number than Q.

    >>> named("mine", ["c", "a"], np.array(["a", "b", "c"]), 2).row_QxP.tolist()
    [[2, 0], [2, 0]]
    """
    lists = list(ids)
    if all(isinstance(one, str) for one in lists):
        lists = [lists] * num_queries
    if len(lists) != num_queries:
        raise ValueError(
            f"candidates {source!r}: {len(lists)} lists for {num_queries} queries; give one list "
            "of ids for all queries, or one for each"
        )
    wanted = [as_ids(f"candidates {source!r}", one) if len(one) else [] for one in lists]
    place = rows_of(train_ids, [str(i) for one in wanted for i in one])
    missing = {str(i) for one in wanted for i in one if str(i) not in place}
    if missing:
        raise ValueError(
            f"candidates {source!r}: {len(missing)} ids are not among the index' {len(train_ids)} "
            f"training examples, first {min(missing)!r}"
        )
    return Candidates(source, padded([[place[str(i)] for i in one] for one in wanted]))


def as_one(own: Candidates, count: int) -> Candidates:
    """Candidates of several queries that are asked as one: those that most of them name.

    >>> as_one(Candidates("bm25", np.array([[4, 2], [2, -1], [7, 9]])), 2).row_QxP.tolist()
    [[2, 4]]
    """
    rows, times = np.unique(own.row_QxP[own.row_QxP >= 0], return_counts=True)
    return Candidates(own.source, rows[np.argsort(-times, kind="stable")][None, :count])


def padded(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of rows as one array, −1 where a list is shorter."""
    width = max((len(one) for one in lists), default=0)
    rows = np.full((len(lists), width), -1, np.int64)
    for at, one in zip(rows, lists, strict=True):
        at[: len(one)] = one
    return rows


def strongest(weight_QxN: np.ndarray, count: int) -> np.ndarray:
    """Rows of each query's largest positive weights, `[Q, P]`, P = `count` at most, ascending.

    >>> strongest(np.array([[0.0, 3.0, 1.0, 2.0], [0.0, 0.0, 1.0, 0.0]]), 2).tolist()
    [[1, 3], [2, -1]]
    """
    count = min(count, weight_QxN.shape[1])
    if count == 0:
        return np.zeros((len(weight_QxN), 0), np.int64)
    top = np.argpartition(-weight_QxN, count - 1, axis=1)[:, :count]
    return padded(
        [np.sort(rows[own[rows] > 0]).tolist() for rows, own in zip(top, weight_QxN, strict=True)]
    )
