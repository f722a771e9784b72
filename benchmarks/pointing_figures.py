"""What the benchmarks of pointing answers count, and what they share.

Letters of its own: P examples of an answer, M subsets or groups.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.house import Row
from benchmarks.methods import Stride, changed, score_direct, score_stride
from stride_jax import evaluation, stride
from stride_jax.evaluation.lds import subset_sums
from stride_jax.evaluation.statistics import pearson_rows
from stride_jax.index import Index
from stride_jax.run import config_file
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import run_settings
from stride_jax.runtime.progress import bars

Note = Callable[[list[Row]], None]
"""Prints rows and writes them down, as soon as they are measured."""

PUBLISHED = {
    "index.design.kind": "hash", "index.kept": 0, "read.exact.budget": 0,
    "read.exact.shrink": 0.0,
}  # fmt: skip
"""The sketch alone: the published design and its Lasso, nothing kept, nothing scored exactly."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to make an index, and ways to read it.

    Attributes:
      index: changes of the settings of the index, by dotted name.
      reads: `{name of a row: (changes of how it is read, figure asked for)}`.
    """

    index: Mapping[str, Any]
    reads: Mapping[str, tuple[Mapping[str, Any], float | None]]


def open_run(config: str, workdir: pathlib.Path, **changes: Any) -> Run:
    """The run of a config, in its folder below the workdir.

    Args:
      config: its name.
      workdir: folder of all runs.
      changes: of its settings, by field.
    """
    settings = run_settings(config_file.read_config(f"configs/{config}.py"))
    return Run(dataclasses.replace(settings, **changes), workdir / config, bars)


class Answers:
    """One index of a run and the answers it gives, each from one call.

    Args:
      run: model, training set, queries.
      changes: of its settings, by dotted name.
      keys: of the training examples; copies of one content by default.
    """

    def __init__(
        self, run: Run, changes: Mapping[str, Any] = {}, keys: np.ndarray | None = None
    ) -> None:
        self.run, train = run, run.train
        self.settings = changed(Stride.of(run.settings), changes)
        self.index: Index = stride.fit(
            run.tapped, run.model.params, train.inputs, train.labels, self.settings.index,
            ids=train.ids, keys=keys,
        )  # fmt: skip

    def scores(self, read_changes: Mapping[str, Any] = {}) -> np.ndarray:
        """STRIDE's scores of the run's queries, `[Q, N]`."""
        run, settings = self.run, changed(self.settings, read_changes)
        return score_stride(self.index, run.model, run.train, run.query, settings)

    def direct(self) -> np.ndarray:
        """The scores without the sketch, `[Q, N]`."""
        run = self.run
        return score_direct(self.index, run.model, run.train, run.query, self.settings)


def exactly(budget: int | None, *, rounds: int = 1, **others: Any) -> dict[str, Any]:
    """How an index is read with so many exact scores a query; `shrink` besides."""
    own = {"budget": budget, "rounds": rounds, **others}
    return {f"read.exact.{name}": value for name, value in own.items()}


def mean_row(name: str, values_Q: np.ndarray, asked: float | None = None) -> Row:
    """A mean over queries with its bootstrap interval."""
    mean, interval = evaluation.bootstrap_mean(values_Q)
    return Row(name, mean, "higher", interval, asked)


def lds_row(
    name: str, scores_QxN: np.ndarray, bank: evaluation.Bank, asked: float | None = None
) -> Row:
    """An LDS with its interval."""
    result = evaluation.lds(scores_QxN, bank)
    return Row(name, result.lds, "higher", result.ci95, asked)


def found(scores_QxN: np.ndarray, true_QxN: np.ndarray, top: int) -> np.ndarray:
    """Share of the true strongest proponents among as many of the answer's, `[Q]`.

    >>> found(np.array([[4.0, 3.0, 2.0, 1.0]]), np.array([[4.0, 1.0, 3.0, 2.0]]), 2).tolist()
    [0.5]
    """
    ours, theirs = (evaluation.ranking(v)[:, :top] for v in (scores_QxN, true_QxN))
    return np.array([len(np.intersect1d(*pair)) / top for pair in zip(ours, theirs, strict=True)])


def sums_agreement(
    scores_QxN: np.ndarray, true_QxN: np.ndarray, num_subsets: int = 100, seed: int = 0
) -> np.ndarray:
    """Correlation over random half subsets of summed scores with summed true scores, `[Q]`."""
    n = scores_QxN.shape[1]
    rng = np.random.default_rng(seed)
    members_MxS = np.stack([rng.permutation(n)[: n // 2] for _ in range(num_subsets)])
    return pearson_rows(*(subset_sums(v, members_MxS) for v in (scores_QxN, true_QxN)))


def hits(scores_QxN: np.ndarray, group_N: np.ndarray, top: int) -> np.ndarray:
    """Whether one of a query's own group is among its strongest proponents, `[Q]` 0 or 1.

    Args:
      scores_QxN: answers.
      group_N: number of the query that each example is of; −1 for those of none.
      top: length of the answer.

    >>> hits(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), np.array([-1, 0, 1]), 2).tolist()
    [1.0, 0.0]
    """
    rows_QxP = evaluation.ranking(scores_QxN)[:, :top]
    own_QxP = group_N[rows_QxP] == np.arange(len(scores_QxN))[:, None]
    return own_QxP.any(axis=1).astype(float)


def by_key(scores_QxN: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the scores of each key, `[Q, G]`, and the first example of each, `[G]`.

    >>> by_key(np.array([[1.0, 2.0, 4.0]]), np.array(["b", "a", "b"]))
    (array([[2., 5.]]), array([1, 0]))
    """
    _, first_G, group_N = np.unique(keys, return_index=True, return_inverse=True)
    sums = [np.bincount(group_N, own, len(first_G)) for own in scores_QxN.astype(np.float64)]
    return np.stack(sums), first_G


def ratio_interval(
    above_Q: np.ndarray, below_Q: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap interval of a ratio of means over the same queries."""
    rows = np.random.default_rng(seed).integers(0, len(above_Q), (draws, len(above_Q)))
    low, high = np.percentile(above_Q[rows].mean(axis=1) / below_Q[rows].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
