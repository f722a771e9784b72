"""The linear datamodelling score: do scores add up to what retraining does?

Letters of its own: M retrained subsets, E seeds per subset.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from stride_jax.evaluation.bank import Bank, differences
from stride_jax.evaluation.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    correlation_rows,
    spearman_brown,
)
from stride_jax.scores import Scores, extent


@dataclasses.dataclass(frozen=True)
class Lds:
    """A linear datamodelling score.

    Attributes:
      lds: mean correlation over queries.
      ci95: bootstrap interval over queries; the bank's subsets are taken as given.
      per_query_Q: correlation of each query.
      protocol: target, correlation, number of subsets and the bank's identity, as JSON values:
        figures of different protocols are not comparable.
    """

    lds: float
    ci95: tuple[float, float]
    per_query_Q: np.ndarray
    protocol: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """Share of the bank that is signal; all nan with one seed. Intervals are over queries.

    Attributes:
      half_vs_half: mean over queries of the correlation between two disjoint halves of the seeds.
      reliability: the same, Spearman-Brown corrected to all seeds.
      reliability_ci95: bootstrap interval of the reliability.
      perfect_predictor: `sqrt(reliability)`, about what a predictor of the expected output would
        score.
      perfect_predictor_ci95: bootstrap interval of that score.
    """

    half_vs_half: float
    reliability: float
    reliability_ci95: tuple[float, float]
    perfect_predictor: float
    perfect_predictor_ci95: tuple[float, float]


def subset_sums(scores_QxN: Scores, members_MxS: np.ndarray) -> np.ndarray:
    """Sum of each query's scores over each subset, `[Q, M]`."""
    if not isinstance(scores_QxN, np.ndarray):
        columns = scores_QxN.astype(np.float64).tocsc()
        sums = [columns[:, np.sort(rows)].sum(axis=1) for rows in members_MxS]
        return np.stack([np.asarray(own).reshape(-1) for own in sums], axis=1)
    membership_MxN = np.zeros((len(members_MxS), scores_QxN.shape[1]), np.float32)
    membership_MxN[np.arange(len(members_MxS))[:, None], members_MxS] = 1
    return scores_QxN.astype(np.float64) @ membership_MxN.T


def lds(
    scores_QxN: Scores, bank: Bank, *, target: str = "loss", correlation: str = "spearman"
) -> Lds:
    """Linear datamodelling score (Park et al., TRAK, 2023; docs/method.md §9.2).

    For a query: correlation over subsets j of `Σ_{i in subset j} w_i` with the retrained model's
    target (mean over seeds); then the mean over queries. On a bank of groups it is the correlation
    of a group's sum with the loss when the group is left out, since both signs turn.

    Args:
      scores_QxN: `[query, train]`, positive = proponent; dense or in compressed rows.
      bank: retrained models.
      target: `loss` (minus it) or `margin`, of classes alone.
      correlation: `spearman` or `pearson`.

    Raises:
      ValueError: scores of another number of queries or training examples than the bank has.
    """
    num_train, num_queries = bank.origin.num_train, bank.losses_MxExQ.shape[2]
    if (shape := extent(scores_QxN)) != (num_queries, num_train):
        raise ValueError(
            f"scores have {shape[0]} queries, the bank {num_queries}; "
            f"{shape[1]} training examples, the bank {num_train}"
        )
    sums_QxM = subset_sums(scores_QxN, bank.members_MxS)
    per_query_Q = correlation_rows(sums_QxM, bank.target(target), correlation)
    protocol = {
        "target": target,
        "correlation": correlation,
        "num_subsets": len(bank.members_MxS),
        **bank.identity,
    }
    return Lds(*bootstrap_mean(per_query_Q), per_query_Q, protocol)


def lds_difference(a: Lds, b: Lds) -> tuple[float, tuple[float, float]]:
    """`a − b` with a paired bootstrap interval over queries.

    Raises:
      ValueError: figures of different protocols; the message names every difference.
    """
    if unequal := differences(a.protocol, b.protocol):
        raise ValueError(f"these figures are not comparable: {unequal}")
    return bootstrap_difference(a.per_query_Q, b.per_query_Q)


def ceiling(bank: Bank, *, target: str = "loss", correlation: str = "spearman") -> Ceiling:
    """Noise ceiling of a bank from two disjoint halves of its seeds.

    Spearman-Brown and the root are monotone, so they map the ends of an interval too.

    Args:
      bank: retrained models.
      target, correlation: as for `lds`.
    """
    runs_MxExQ = bank.runs(target)
    seeds = runs_MxExQ.shape[1]
    if seeds < 2:
        nan = float("nan")
        return Ceiling(nan, nan, (nan, nan), nan, (nan, nan))
    half = seeds // 2
    first, second = (
        runs_MxExQ[:, part].mean(axis=1).T for part in (slice(half), slice(half, 2 * half))
    )
    r, (low, high) = bootstrap_mean(correlation_rows(first, second, correlation))
    whole, low, high = (spearman_brown(value, seeds / half) for value in (r, low, high))
    root = lambda reliability: float(np.sqrt(max(reliability, 0.0)))  # noqa: E731
    return Ceiling(r, whole, (low, high), root(whole), (root(low), root(high)))
