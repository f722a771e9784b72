"""Uncertainty of a figure: bootstrap intervals and the noise ceiling."""

import numpy as np
import scipy.stats


def bootstrap_mean(
    values_Q: np.ndarray, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean over queries with a percentile bootstrap interval.

    Args:
      values_Q: one figure a query.
      draws: resamples of the queries.
      level: coverage.
      seed: of the draws.

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


def spearman_rows(a_QxM: np.ndarray, b_QxM: np.ndarray) -> np.ndarray:
    """Spearman correlation of corresponding rows, `[Q]`; 0 where a row is constant.

    >>> spearman_rows(np.array([[1.0, 2, 3]]), np.array([[1.0, 4, 9]])).tolist()
    [1.0]
    """
    return pearson_rows(scipy.stats.rankdata(a_QxM, axis=1), scipy.stats.rankdata(b_QxM, axis=1))


def pearson_rows(a_QxM: np.ndarray, b_QxM: np.ndarray) -> np.ndarray:
    """Pearson correlation of corresponding rows, `[Q]`; 0 where a row is constant."""
    a = a_QxM - a_QxM.mean(axis=1, keepdims=True)
    b = b_QxM - b_QxM.mean(axis=1, keepdims=True)
    norm = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.where(norm > 0, (a * b).sum(axis=1) / np.where(norm > 0, norm, 1.0), 0.0)


def spearman_brown(correlation: float, factor: float) -> float:
    """Reliability of a mean of `factor` times as many runs: `f r / (1 + (f − 1) r)`.

    >>> round(spearman_brown(0.307, 2), 2)
    0.47
    """
    return factor * correlation / (1 + (factor - 1) * correlation)
