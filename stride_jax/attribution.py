"""Attributions: who helped and who hurt each query, with names, settings and a file format.

Positive score = proponent: training on the example lowers the query's loss. Axes are always
`[query, train]`.
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
      scores_QxN: `[Q, N]` float32; positive = proponent.
      settings: what made them, as JSON values.
      versions: of the packages that made them.
    """

    query_ids: np.ndarray
    train_ids: np.ndarray
    scores_QxN: np.ndarray
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)

    def __post_init__(self) -> None:
        expected = (len(self.query_ids), len(self.train_ids))
        if self.scores_QxN.shape != expected:
            raise ValueError(
                f"scores of shape {self.scores_QxN.shape} do not fit {expected[0]} queries and "
                f"{expected[1]} training examples; the layout is [query, train]"
            )

    def proponents(self, query_id: str, k: int = 5) -> list[tuple[str, float]]:
        """The k examples that helped a query most: `(train id, score)`, strongest first."""
        return self._extremes(query_id, k, sign=1)

    def opponents(self, query_id: str, k: int = 5) -> list[tuple[str, float]]:
        """The k examples that hurt a query most: `(train id, score)`, strongest first."""
        return self._extremes(query_id, k, sign=-1)

    def _extremes(self, query_id: str, k: int, sign: int) -> list[tuple[str, float]]:
        rows = np.flatnonzero(self.query_ids == query_id)
        if len(rows) == 0:
            raise ValueError(f"no query {query_id!r} among the {len(self.query_ids)} attributed")
        scores = self.scores_QxN[rows[0]]
        order = top_rows(sign * scores, k)
        return [(str(self.train_ids[i]), float(scores[i])) for i in order]


def top_rows(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest positive scores, largest first; ties by row.

    >>> top_rows(np.array([0.5, -1.0, 0.0, 2.0]), 3).tolist()
    [3, 0]
    """
    order = np.argsort(-scores_N, kind="stable")[:k]
    return order[scores_N[order] > 0]


def to_table(attribution: Attribution, top_k: int | None = None) -> pa.Table:
    """One row per non-zero (query, train) pair: `query_id, train_id, score, rank`.

    `rank` is 1, 2, … for proponents from the strongest, −1, −2, … for opponents. Settings and
    versions lie in the schema's metadata under the key `stride_jax`.

    Args:
      attribution: scores.
      top_k: keep this many proponents and as many opponents a query; None keeps every score.
    """
    queries, trains, scores, ranks = [], [], [], []
    limit = attribution.scores_QxN.shape[1] if top_k is None else top_k
    for q, row in enumerate(attribution.scores_QxN):
        for sign in (1, -1):
            order = top_rows(sign * row, limit)
            queries.append(np.full(len(order), q))
            trains.append(order)
            scores.append(row[order])
            ranks.append(sign * np.arange(1, len(order) + 1))
    meta = {
        "settings": plain(attribution.settings),
        "versions": dict(attribution.versions),
        "top_k": top_k,
        "query_ids": [str(i) for i in attribution.query_ids],
        "train_ids": [str(i) for i in attribution.train_ids],
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


def save(path: str | os.PathLike[str], attribution: Attribution, top_k: int | None = None) -> None:
    """Write an attribution as Parquet (`to_table`), atomically.

    pandas and Hugging Face datasets read the file as it is.
    """
    with atomic_path(path) as temporary:
        pq.write_table(to_table(attribution, top_k), temporary)


def load(path: str | os.PathLike[str]) -> Attribution:
    """Read an attribution back; pairs that were not stored have score 0.

    A file of all scores (`top_k=None`) comes back bit for bit.

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
    query_ids, train_ids = np.array(meta["query_ids"]), np.array(meta["train_ids"])
    scores = np.zeros((len(query_ids), len(train_ids)), np.float32)
    rows = _positions(query_ids, table["query_id"].to_pylist())
    columns = _positions(train_ids, table["train_id"].to_pylist())
    scores[rows, columns] = table["score"].to_numpy()
    return Attribution(query_ids, train_ids, scores, meta["settings"], meta["versions"])


def _positions(ids: np.ndarray, wanted: Sequence[str]) -> list[int]:
    place = {str(name): i for i, name in enumerate(ids)}
    return [place[name] for name in wanted]
