"""The linear datamodelling score: do scores add up to what retraining does?"""

import dataclasses

import numpy as np

from stride_jax.evaluation.bank import Bank
from stride_jax.evaluation.statistics import bootstrap_mean, spearman_brown, spearman_rows


@dataclasses.dataclass(frozen=True)
class Lds:
    """A linear datamodelling score.

    Attributes:
      lds: mean over queries.
      ci95: bootstrap interval over queries.
      per_query_Q: one correlation a query.
    """

    lds: float
    ci95: tuple[float, float]
    per_query_Q: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """How much of the bank is signal.

    Attributes:
      half_vs_half: mean over queries of the Spearman correlation between two disjoint halves of
        the seeds; nan with one seed.
      reliability: the same, Spearman-Brown corrected to all seeds.
      perfect_predictor: `sqrt(reliability)`, about what a predictor of the expected loss would
        score.
    """

    half_vs_half: float
    reliability: float
    perfect_predictor: float


def subset_sums(scores_QxN: np.ndarray, members_MxS: np.ndarray) -> np.ndarray:
    """Sum of each query's scores over each subset, `[Q, M]`."""
    kept_MxN = np.zeros((len(members_MxS), scores_QxN.shape[1]), np.float32)
    kept_MxN[np.arange(len(members_MxS))[:, None], members_MxS] = 1
    return scores_QxN.astype(np.float64) @ kept_MxN.T


def lds(scores_QxN: np.ndarray, bank: Bank) -> Lds:
    """Linear datamodelling score (Park et al., TRAK, 2023; method §2).

    For a query: Spearman correlation over subsets j of `Σ_{i in S_j} w_i` with minus the retrained
    model's loss (mean over seeds); then the mean over queries.

    Args:
      scores_QxN: `[query, train]`, positive = proponent.
      bank: retrained models.

    Raises:
      ValueError: scores of another number of queries than the bank has.
    """
    if len(scores_QxN) != bank.losses_MxExQ.shape[2]:
        raise ValueError(
            f"scores have {len(scores_QxN)} queries, the bank {bank.losses_MxExQ.shape[2]}"
        )
    per_query = spearman_rows(subset_sums(scores_QxN, bank.members_MxS), bank.target_QxM)
    mean, interval = bootstrap_mean(per_query)
    return Lds(mean, interval, per_query)


def ceiling(bank: Bank) -> Ceiling:
    """Noise ceiling of a bank from two disjoint halves of its seeds."""
    seeds = bank.losses_MxExQ.shape[1]
    if seeds < 2:
        return Ceiling(float("nan"), float("nan"), float("nan"))
    half = seeds // 2
    first = bank.losses_MxExQ[:, :half].mean(axis=1).T
    second = bank.losses_MxExQ[:, half : 2 * half].mean(axis=1).T
    r = float(spearman_rows(first, second).mean())
    reliability = spearman_brown(r, seeds / half)
    return Ceiling(r, reliability, float(np.sqrt(max(reliability, 0.0))))
