"""Uncertainty of a figure: rankings, correlations, bootstrap intervals, the noise ceiling.

Letter of its own: M columns that are correlated, such as retrained subsets.
"""

import dataclasses

import numpy as np
import scipy.stats


@dataclasses.dataclass(frozen=True)
class PerQuery:
    """A figure that is a mean over queries.

    Attributes:
      mean: mean over queries.
      ci95: bootstrap interval over queries.
      per_query_Q: value of each query.
    """

    mean: float
    ci95: tuple[float, float]
    per_query_Q: np.ndarray


def per_query(values_Q: np.ndarray) -> PerQuery:
    """Mean of one value per query with its bootstrap interval."""
    return PerQuery(*bootstrap_mean(values_Q), values_Q)


def bootstrap_mean(
    values_Q: np.ndarray, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean over queries with a percentile bootstrap interval.

    Args:
      values_Q: one figure per query.
      draws: number of resamples of the queries.
      level: coverage, a share.
      seed: random seed of the resamples.

    Returns:
      The mean and its interval.

    >>> mean, (low, high) = bootstrap_mean(np.arange(10.0))
    >>> mean, low < mean < high
    (4.5, True)
    """
    values = np.asarray(values_Q, np.float64)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    tail = 50 * (1 - level)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(values.mean()), (float(low), float(high))


def bootstrap_difference(
    a_Q: np.ndarray, b_Q: np.ndarray, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of `a − b` with a paired bootstrap interval: both methods have the same resamples.

    Args:
      a_Q, b_Q: figures of two methods for the same queries, in the same order.
      draws, level, seed: as for `bootstrap_mean`.

    Returns:
      The mean difference and its interval.

    Raises:
      ValueError: different numbers of queries.

    >>> mean, interval = bootstrap_difference(np.array([1.0, 5.0]), np.array([0.0, 4.0]))
    >>> mean, interval
    (1.0, (1.0, 1.0))
    """
    if len(a_Q) != len(b_Q):
        raise ValueError(
            f"{len(a_Q)} and {len(b_Q)} queries: a paired difference needs the same queries"
        )
    return bootstrap_mean(np.asarray(a_Q) - np.asarray(b_Q), draws=draws, level=level, seed=seed)


def ranking(scores_QxN: np.ndarray, seed: int = 0) -> np.ndarray:
    """Training rows of each query from strongest proponent to weakest, `[Q, N]`.

    Ties (a sparse method gives most examples exactly 0) are broken at random, so a figure does not
    depend on the order of the training set.

    >>> ranking(np.array([[0.1, 0.3, 0.2]])).tolist()
    [[1, 2, 0]]
    """
    rows = np.broadcast_to(np.arange(scores_QxN.shape[1]), scores_QxN.shape)
    shuffled = np.random.default_rng(seed).permuted(rows, axis=1)
    order = np.argsort(-np.take_along_axis(scores_QxN, shuffled, 1), axis=1, kind="stable")
    return np.take_along_axis(shuffled, order, 1)


def correlation_rows(a_QxM: np.ndarray, b_QxM: np.ndarray, correlation: str) -> np.ndarray:
    """`spearman` or `pearson` correlation of corresponding rows, `[Q]`; 0 where one is constant."""
    if correlation not in ("spearman", "pearson"):
        raise ValueError(f"correlation={correlation!r}: use 'spearman' or 'pearson'")
    return (spearman_rows if correlation == "spearman" else pearson_rows)(a_QxM, b_QxM)


def spearman_rows(a_QxM: np.ndarray, b_QxM: np.ndarray) -> np.ndarray:
    """Spearman correlation of corresponding rows, `[Q]`; 0 where a row is constant.

    >>> spearman_rows(np.array([[1.0, 2, 3]]), np.array([[1.0, 4, 9]])).tolist()
    [1.0]
    """
    return pearson_rows(scipy.stats.rankdata(a_QxM, axis=1), scipy.stats.rankdata(b_QxM, axis=1))


def pearson_rows(a_QxM: np.ndarray, b_QxM: np.ndarray) -> np.ndarray:
    """Pearson correlation of corresponding rows, `[Q]`; 0 where a row is constant."""
    a, b = np.asarray(a_QxM, np.float64), np.asarray(b_QxM, np.float64)
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(norm > 0, (a * b).sum(axis=1) / np.where(norm > 0, norm, 1.0), 0.0)


def spearman_brown(correlation: float, factor: float) -> float:
    """Reliability of a mean of `factor` times as many runs: `f r / (1 + (f − 1) r)`, −1 at least.

    Runs that contradict each other, as two seeds of two subsets may, have none to speak of; the
    formula goes to minus infinity there.

    >>> round(spearman_brown(0.307, 2), 2), spearman_brown(-1.0, 2)
    (0.47, -1.0)
    """
    over = factor * correlation
    under = 1 + (factor - 1) * correlation
    return over / under if over > -under else -1.0
