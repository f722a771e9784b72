"""Attributions: who helped and who hurt each query, as tables, files and answers by name.

Positive score = proponent: training on the example lowers the query's loss. Axes are always
`[query, train]`. Scores may be sparse: then only each query's support is stored, and every question
is answered from it.
"""

import dataclasses
import functools
import importlib.metadata
import operator
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse

from stride_jax import attribution_file
from stride_jax.ids import as_ids, as_keys, grouped, rows_of, same_ids
from stride_jax.runtime.rows import Rows
from stride_jax.scores import Scores, as_dense, as_scores, mean, ranked, row_scores, top_rows
from stride_jax.unit import Unit, words

if TYPE_CHECKING:
    import pandas as pd

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "jaxopt", "numpy", "stride-jax")


def versions() -> dict[str, str]:
    """Versions of the packages a result depends on."""
    return {name: _installed(name) for name in _PACKAGES}


@functools.cache
def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Scores of training examples for queries.

    Attributes:
      query_ids: `[Q]` distinct strings.
      train_ids: `[N]` distinct strings; of a prepared corpus `Rows`, read as they are asked for.
      scores: `[Q, N]` finite float32, dense or in compressed rows; positive = proponent.
      settings: JSON values of every choice behind the scores.
      versions: `{package: version}` behind the scores.
      query_labels: `[Q]` classes of a classifier's queries, where they are known.
      train_labels: `[N]` classes of a classifier's training examples, where they are known.
      diagnostics: `{name: [Q]}`, what each query's answer is worth (`reading.certificate`).
      exact: `[Q, N]` bits of the sources that named each exactly scored example, in compressed
        rows; None where nothing is known of it.
      sources: their names, from bit 0 on.
      train_keys: `[N]` strings, equal for training examples that act as one; None where each
        stands alone.
      unit: what the scores were multiplied by, where it is known; None where nobody measured it.

    Raises:
      ValueError: arrays that do not fit each other, ids that repeat, or scores that are not finite.

    >>> scores = np.array([[0.5, 0.0, -2.0], [0.0, 1.0, 3.0]])
    >>> attribution = Attribution(["x", "y"], ["a", "b", "c"], scores)
    >>> attribution
    Attribution(2 queries x 3 training examples, 66.7 % non-zero; relative: unit not measured)
    >>> attribution.proponents("y")
    [('c', 3.0), ('b', 1.0)]
    >>> attribution.top(1)[["query_id", "train_id", "rank", "score"]]
      query_id train_id  rank  score
    0        x        a     1    0.5
    1        x        c    -1   -2.0
    2        y        c     1    3.0
    """

    query_ids: np.ndarray
    train_ids: np.ndarray
    scores: Scores
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=versions)
    query_labels: np.ndarray | None = None
    train_labels: np.ndarray | None = None
    diagnostics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    exact: scipy.sparse.csr_array | None = None
    sources: Sequence[str] = ()
    train_keys: np.ndarray | None = None
    unit: Unit | None = None

    def __post_init__(self) -> None:
        query_ids = as_ids("query_ids", self.query_ids)
        train_ids = as_ids("train_ids", self.train_ids)
        count = len(query_ids)
        checked = {
            "query_ids": query_ids,
            "train_ids": train_ids,
            "scores": as_scores(self.scores, (count, len(train_ids))),
            "query_labels": _column("query_labels", self.query_labels, count),
            "train_labels": _column("train_labels", self.train_labels, len(train_ids)),
            "train_keys": _column("train_keys", self.train_keys, len(train_ids)),
            "diagnostics": {n: _column(n, v, count) for n, v in self.diagnostics.items()},
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        queries, trains = len(self.query_ids), len(self.train_ids)
        stored = self.scores if isinstance(self.scores, np.ndarray) else self.scores.data
        share = 100 * np.count_nonzero(stored) / max(1, queries * trains)
        design = _design(self.settings)
        letters = {"num_subsets": "K", "degree": "d", "seed": "seed"}
        made_by = ", ".join(f"{v}={design[n]}" for n, v in letters.items() if n in design)
        return (
            f"Attribution({queries} queries x {trains} training examples, {share:.3g} % non-zero"
            f"{'; ' if made_by else ''}{made_by}; {words(self.unit)})"
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        dense = self.scores_QxN
        same = dense is self.scores and np.dtype(dtype or dense.dtype) == dense.dtype
        if copy is False and not same:
            raise ValueError("sparse scores, or another dtype, need a copy: leave copy out")
        return np.array(dense, dtype, copy=bool(copy)) if same else np.asarray(dense, dtype)

    @property
    def scores_QxN(self) -> np.ndarray:
        """`[Q, N]` float32 scores, zeros and all: for an N that affords it."""
        return as_dense(self.scores)

    def top(self, k: int = 10) -> "pd.DataFrame":
        """The k strongest proponents and opponents of every query as a table.

        Returns:
          Columns `query_id`, `query_row`, `train_id`, `train_row`, `rank` (1, 2, … for proponents
          from the strongest, −1, −2, … for opponents), `score`, and `found_by` (`estimate`, or the
          source of an exact score), `query_label`, `train_label` where they are known. Zero scores
          are left out. `attrs["scores"]` says what scores are in.

        Raises:
          ValueError: a k that is no positive integer.
        """
        import pandas as pd

        table = pd.DataFrame(self._columns(_positive("k", k)))
        table.attrs["scores"] = words(self.unit)
        return table

    def to_pandas(self) -> "pd.DataFrame":
        """All non-zero scores, in the form of `top`."""
        return self.top(max(1, len(self.train_ids)))

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
        place = np.flatnonzero(rows == self._train([train_id])[0])
        return float(scores[place[0]]) if len(place) else 0.0

    def subset_sums(self, train_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Each query's sum of scores over a set of examples, `[Q]` float64.

        What the set as a whole did for the queries, as far as influences add up.

        Raises:
          ValueError: an id that was not attributed.
        """
        member_N = np.zeros(len(self.train_ids))
        member_N[self._train(train_ids)] = 1
        return np.asarray(self.scores @ member_N, np.float64)

    def in_unit(self, unit: Unit) -> "Attribution":
        """The same scores in nats, where the unit is known; else as they are.

        Args:
          unit: from `evaluation.measure_unit`.

        Raises:
          ValueError: the scores have a unit already.

        >>> relative = Attribution(["x"], ["a"], np.array([[3.0]]))
        >>> relative.in_unit(Unit(2.0, (1.5, 2.5))).score("x", "a")
        6.0
        """
        if self.unit is not None:
            raise ValueError(f"these scores have the unit {self.unit.slope:.3g} already")
        return dataclasses.replace(self, scores=self.scores * np.float32(unit.factor), unit=unit)

    def by_key(self, keys: Sequence[str] | np.ndarray | None = None) -> "Attribution":
        """Scores of groups of training examples: of copies, documents, sources.

        Args:
          keys: `[N]`, one for each training example; by default those that made the index.

        Returns:
          An attribution whose training ids are the keys, in order of their first example.

        Raises:
          ValueError: keys of another length, or none given nor known.

        >>> attribution = Attribution(["x"], ["a", "b", "c"], np.array([[1.0, 2.0, 4.0]]))
        >>> attribution.by_key(["s", "t", "s"]).proponents("x")
        [('s', 5.0), ('t', 2.0)]
        """
        given = self.train_keys if keys is None else as_keys(keys, self.train_ids)
        given = self.train_ids if given is None else given
        first_G, group_N = grouped(given)
        order = np.argsort(first_G)
        place = np.argsort(order)[group_N]
        ones = np.ones(len(given), np.float32)
        sums = scipy.sparse.csr_array((ones, (np.arange(len(given)), place)))
        scores = self.scores @ sums
        return Attribution(
            self.query_ids, given[first_G[order]], scores, self.settings, self.versions,
            self.query_labels, diagnostics=self.diagnostics, unit=self.unit,
        )  # fmt: skip

    def save(
        self, path: str | os.PathLike[str], top_k: int | None = None, *, all_ids: bool | None = None
    ) -> None:
        """Write as Parquet, atomically: a row per non-zero score, the rest in the metadata.

        Columns are `query_id`, `train_id`, `rank`, `score` as in `top`, and labels where they are
        known. pandas and Hugging Face datasets read the file as it is.

        Args:
          path: of the file.
          top_k: store this many proponents and as many opponents per query; None stores all.
          all_ids: list the ids of all training examples besides; without, those of stored scores.
            By default they are listed where they are short: a million or so. The ids of a prepared
            corpus stand in its own files.

        Raises:
          ValueError: a top_k that is no positive integer.
        """
        limit = len(self.train_ids) if top_k is None else _positive("top_k", top_k)
        columns = self._columns(limit)
        del columns["query_row"], columns["train_row"]
        attribution_file.write(path, self, columns, top_k, all_ids)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Attribution":
        """Read an attribution back; pairs that were not stored have score 0.

        A file of all scores comes back bit for bit, in compressed rows. A file without the list of
        all ids comes back with the training examples that it names.

        Raises:
          UnreadableFileError: not Parquet, not written by `save`, or of another format.
        """
        return attribution_file.read(path, cls)

    def _query(self, query_id: str) -> int:
        rows = np.flatnonzero(self.query_ids == str(query_id))
        if len(rows) == 0:
            raise ValueError(f"no query {query_id!r} among the {len(self.query_ids)} attributed")
        return int(rows[0])

    def _train(self, train_ids: Sequence[str] | np.ndarray) -> np.ndarray:
        wanted = [str(i) for i in train_ids]
        known = rows_of(self.train_ids, wanted)
        if missing := [i for i in wanted if i not in known]:
            raise ValueError(
                f"{len(missing)} ids are not among the {len(self.train_ids)} training examples, "
                f"first {missing[0]!r}"
            )
        return np.array(sorted(known.values()), np.int64)

    def _extremes(self, query_id: str, k: int, sign: int) -> list[tuple[str, float]]:
        rows, scores = row_scores(self.scores, self._query(query_id))
        strongest = top_rows(sign * scores, _positive("k", k))
        return [(str(self.train_ids[rows[i]]), float(scores[i])) for i in strongest]

    def _columns(self, k: int) -> dict[str, np.ndarray]:
        pairs = ranked(self.scores, k)
        columns = {
            "query_id": self.query_ids[pairs.query_P],
            "query_row": pairs.query_P,
            "train_id": self.train_ids[pairs.train_P],
            "train_row": pairs.train_P,
            "rank": pairs.rank_P,
            "score": pairs.score_P,
        }
        if self.exact is not None:
            bits = np.asarray(self.exact[pairs.query_P, pairs.train_P]).reshape(-1)
            names = {b: found_by(b, self.sources) for b in np.unique(bits).tolist()}
            columns["found_by"] = np.array([names[b] for b in bits.tolist()], str)
        if self.query_labels is not None:
            columns["query_label"] = self.query_labels[pairs.query_P]
        if self.train_labels is not None:
            columns["train_label"] = self.train_labels[pairs.train_P]
        return columns


def found_by(bits: int, sources: Sequence[str]) -> str:
    """Where an exact score came from; `estimate` for one that is none.

    >>> found_by(5, ("kept", "sketch", "bm25")), found_by(0, ())
    ('kept+bm25', 'estimate')
    """
    return "+".join(name for i, name in enumerate(sources) if bits >> i & 1) or "estimate"


def _column(name: str, value: Any, count: int) -> Any:
    if value is None:
        return None
    array = value if isinstance(value, Rows) else np.asarray(value)
    if array.shape != (count,):
        raise ValueError(f"{name} of shape {array.shape}: give one value for each of {count}")
    return array


def _positive(name: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be a positive integer")
    return number


def _design(settings: Any) -> Mapping[str, Any]:
    """The first design among nested settings."""
    if isinstance(settings, Mapping):
        if isinstance(design := settings.get("design"), Mapping):
            return design
        settings = list(settings.values())
    if not isinstance(settings, list):
        return {}
    return next(filter(None, map(_design, settings)), {})


def ensemble(attributions: Sequence[Attribution]) -> Attribution:
    """The mean attribution of several models of the same data: their noise averages out.

    Give each model's index a design seed of its own, so that the errors of recovery do so too.

    Args:
      attributions: of the same queries and training examples, in the same order.

    Returns:
      Sparse scores if all are sparse; labels of the first, no diagnostics; the mean unit.

    Raises:
      ValueError: none given, ids that differ, or some scores in nats and others relative.
    """
    if not attributions:
        raise ValueError("an ensemble needs at least one attribution")
    first = attributions[0]
    for i, other in enumerate(attributions):
        for axis in ("query_ids", "train_ids"):
            if not same_ids(getattr(first, axis), getattr(other, axis)):
                raise ValueError(f"attributions 0 and {i} differ in their {axis}")
    units = [a.unit for a in attributions if a.unit is not None and a.unit.is_known]
    if units and len(units) < len(attributions):
        raise ValueError(
            f"{len(units)} of {len(attributions)} attributions are in nats, the others relative: "
            "measure every unit, or leave all out"
        )
    return Attribution(
        first.query_ids,
        first.train_ids,
        mean([a.scores for a in attributions]),
        {"ensemble": [dict(a.settings) for a in attributions]},
        query_labels=first.query_labels,
        train_labels=first.train_labels,
        unit=_mean_unit(units),
    )


def _mean_unit(units: Sequence[Unit]) -> Unit | None:
    """The unit of a mean of scores; its interval as wide as if all erred together."""
    if not units:
        return None
    slope, low, high = np.mean([[one.slope, *one.ci95] for one in units], axis=0).tolist()
    return Unit(slope, (low, high))
