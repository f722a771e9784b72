"""Attributions: who helped and who hurt each query, with names, settings and a file format.

Positive score = proponent: training on the example lowers the query's loss. Axes are always
`[query, train]`. Scores may be sparse: then only each query's support is stored, and every question
is answered from it.
"""

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse

from stride_jax.runtime.files import UnreadableFileError, atomic_path, plain

_KEY = b"stride_jax"
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "jaxopt", "numpy", "stride-jax")


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Scores of training examples for queries.

    Attributes:
      query_ids: `[Q]` strings.
      train_ids: `[N]` strings.
      scores: `[Q, N]` float32, dense or in compressed rows; positive = proponent.
      settings: what made them, as JSON values.
      versions: of the packages that made them.
    """

    query_ids: np.ndarray
    train_ids: np.ndarray
    scores: np.ndarray | scipy.sparse.csr_array
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)

    def __post_init__(self) -> None:
        expected = (len(self.query_ids), len(self.train_ids))
        if self.scores.shape != expected:
            raise ValueError(
                f"scores of shape {self.scores.shape} do not fit {expected[0]} queries and "
                f"{expected[1]} training examples; the layout is [query, train]"
            )

    @property
    def scores_QxN(self) -> np.ndarray:
        """`[Q, N]` float32 scores, zeros and all: for an N that affords it."""
        return self.scores if isinstance(self.scores, np.ndarray) else self.scores.toarray()

    def proponents(self, query_id: str, k: int = 5) -> list[tuple[str, float]]:
        """The k examples that helped a query most: `(train id, score)`, strongest first."""
        return self._extremes(query_id, k, sign=1)

    def opponents(self, query_id: str, k: int = 5) -> list[tuple[str, float]]:
        """The k examples that hurt a query most: `(train id, score)`, strongest first."""
        return self._extremes(query_id, k, sign=-1)

    def score(self, query_id: str, train_id: str) -> float:
        """The score of one example for one query; 0 outside its support.

        Raises:
          ValueError: an id that was not attributed.
        """
        rows, scores = row_scores(self.scores, self._query(query_id))
        found = np.flatnonzero(rows == self._train([train_id])[0])
        return float(scores[found[0]]) if len(found) else 0.0

    def subset_sums(self, train_ids: Sequence[str]) -> np.ndarray:
        """Each query's sum of scores over a subset of examples, `[Q]` float64.

        What the subset as a whole did for the queries, as far as influences add up.

        Raises:
          ValueError: an id that was not attributed.
        """
        member_N = np.zeros(len(self.train_ids))
        member_N[self._train(train_ids)] = 1
        return np.asarray(self.scores @ member_N, np.float64)

    def _query(self, query_id: str) -> int:
        rows = np.flatnonzero(self.query_ids == query_id)
        if len(rows) == 0:
            raise ValueError(f"no query {query_id!r} among the {len(self.query_ids)} attributed")
        return int(rows[0])

    def _train(self, train_ids: Sequence[str]) -> np.ndarray:
        rows = np.flatnonzero(np.isin(self.train_ids, np.asarray(train_ids)))
        if len(rows) != len(set(train_ids)):
            known = set(self.train_ids[rows].tolist())
            missing = [i for i in train_ids if i not in known]
            raise ValueError(
                f"{len(missing)} ids are not among the {len(self.train_ids)} training examples, "
                f"first {missing[0]!r}"
            )
        return rows

    def _extremes(self, query_id: str, k: int, sign: int) -> list[tuple[str, float]]:
        rows, scores = row_scores(self.scores, self._query(query_id))
        return [
            (str(self.train_ids[rows[i]]), float(scores[i])) for i in top_rows(sign * scores, k)
        ]


def row_scores(
    scores: np.ndarray | scipy.sparse.csr_array, query: int
) -> tuple[np.ndarray, np.ndarray]:
    """A query's training rows, ascending, and their scores: all of them, or its support."""
    if isinstance(scores, np.ndarray):
        return np.arange(scores.shape[1]), scores[query]
    part = slice(scores.indptr[query], scores.indptr[query + 1])
    order = np.argsort(scores.indices[part])
    return scores.indices[part][order], scores.data[part][order]


def top_rows(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest positive scores, largest first; ties by row.

    >>> top_rows(np.array([0.5, -1.0, 0.0, 2.0]), 3).tolist()
    [3, 0]
    """
    order = np.argsort(-scores_N, kind="stable")[:k]
    return order[scores_N[order] > 0]


def to_table(
    attribution: Attribution, top_k: int | None = None, *, all_ids: bool = True
) -> pa.Table:
    """One row per non-zero (query, train) pair: `query_id, train_id, score, rank`.

    `rank` is 1, 2, … for proponents from the strongest, −1, −2, … for opponents. Settings and
    versions lie in the schema's metadata under the key `stride_jax`.

    Args:
      attribution: scores.
      top_k: keep this many proponents and as many opponents a query; None keeps every score.
      all_ids: list the ids of all training examples besides; without, those of stored scores.
    """
    queries, trains, scores, ranks = [], [], [], []
    limit = len(attribution.train_ids) if top_k is None else top_k
    for q in range(len(attribution.query_ids)):
        rows, row = row_scores(attribution.scores, q)
        for sign in (1, -1):
            order = top_rows(sign * row, limit)
            queries.append(np.full(len(order), q))
            trains.append(rows[order])
            scores.append(row[order])
            ranks.append(sign * np.arange(1, len(order) + 1))
    meta = {
        "settings": plain(attribution.settings),
        "versions": dict(attribution.versions),
        "top_k": top_k,
        "query_ids": [str(i) for i in attribution.query_ids],
        "num_train": len(attribution.train_ids),
        "train_ids": [str(i) for i in attribution.train_ids] if all_ids else None,
        "sign": "positive = proponent",
    }
    table = pa.table(
        {
            "query_id": attribution.query_ids[np.concatenate(queries)].astype(str),
            "train_id": attribution.train_ids[np.concatenate(trains)].astype(str),
            "score": np.concatenate(scores).astype(np.float32),
            "rank": np.concatenate(ranks).astype(np.int32),
        }
    )
    return table.replace_schema_metadata(
        {**(table.schema.metadata or {}), _KEY: json.dumps(meta).encode()}
    )


def save(
    path: str | os.PathLike[str],
    attribution: Attribution,
    top_k: int | None = None,
    *,
    all_ids: bool = True,
) -> None:
    """Write an attribution as Parquet (`to_table`), atomically.

    pandas and Hugging Face datasets read the file as it is.
    """
    with atomic_path(path) as temporary:
        pq.write_table(to_table(attribution, top_k, all_ids=all_ids), temporary)


def load(path: str | os.PathLike[str]) -> Attribution:
    """Read an attribution back; pairs that were not stored have score 0.

    A file of all scores (`top_k=None`) comes back bit for bit, in compressed rows. A file without
    the list of all ids comes back with the training examples that it names.

    Raises:
      UnreadableFileError: not Parquet, or not written by `save`.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise UnreadableFileError(f"{path} can't be read as Parquet ({error})") from error
    meta = (table.schema.metadata or {}).get(_KEY)
    if meta is None:
        raise UnreadableFileError(f"{path} holds no stride_jax metadata: it was not written by us")
    meta = json.loads(meta)
    query_ids = np.array(meta["query_ids"])
    named = table["train_id"].to_numpy(zero_copy_only=False).astype(str)
    train_ids = np.unique(named) if meta["train_ids"] is None else np.array(meta["train_ids"])
    rows = _positions(query_ids, table["query_id"].to_pylist())
    columns = _positions(train_ids, named.tolist())
    scores = scipy.sparse.csr_array(
        (table["score"].to_numpy(), (rows, columns)), shape=(len(query_ids), len(train_ids))
    )
    return Attribution(query_ids, train_ids, scores, meta["settings"], meta["versions"])


def _positions(ids: np.ndarray, wanted: Sequence[str]) -> list[int]:
    place = {str(name): i for i, name in enumerate(ids)}
    return [place[name] for name in wanted]


def ensemble(attributions: Sequence[Attribution]) -> Attribution:
    """The mean attribution of several models of the same data: their noise averages out.

    Give each model's index a design seed of its own, so that the errors of recovery do so too.

    Args:
      attributions: of the same queries and training examples, in the same order.

    Raises:
      ValueError: none given, or ids that differ.
    """
    if not attributions:
        raise ValueError("an ensemble needs at least one attribution")
    first = attributions[0]
    for i, other in enumerate(attributions):
        for axis in ("query_ids", "train_ids"):
            if not np.array_equal(getattr(first, axis), getattr(other, axis)):
                raise ValueError(f"attributions 0 and {i} differ in their {axis}")
    mean = np.asarray(np.mean([a.scores_QxN for a in attributions], axis=0), np.float32)
    settings = {"ensemble": [dict(a.settings) for a in attributions]}
    return Attribution(first.query_ids, first.train_ids, mean, settings)
