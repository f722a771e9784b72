"""Do scores find what is known to be relevant, or known to be wrong?"""

import numpy as np
import scipy.stats

from stride_jax.evaluation.statistics import PerQuery, per_query, ranking


def _found(scores_QxN: np.ndarray, relevant_QxN: np.ndarray, seed: int) -> np.ndarray:
    """Relevance by rank, strongest proponent first, `[Q, N]` bool."""
    if scores_QxN.shape != relevant_QxN.shape:
        raise ValueError(
            f"scores {scores_QxN.shape} and relevance {relevant_QxN.shape} differ in shape; "
            "the layout is [query, train]"
        )
    relevant = np.asarray(relevant_QxN, bool)
    if lonely := int((~relevant.any(axis=1)).sum()):
        raise ValueError(f"{lonely} of {len(relevant)} queries have no relevant example: drop them")
    return np.take_along_axis(relevant, ranking(scores_QxN, seed), 1)


def recall_at_k(
    scores_QxN: np.ndarray, relevant_QxN: np.ndarray, k: int, *, seed: int = 0
) -> PerQuery:
    """Share of a query's relevant examples among its k strongest proponents.

    Args:
      scores_QxN: `[query, train]`, positive = proponent.
      relevant_QxN: bool.
      k: 1 to N.
      seed: ties are broken at random.

    Raises:
      ValueError: shapes differ, k is out of range, or a query has nothing relevant.
    """
    if not 1 <= k <= scores_QxN.shape[1]:
        raise ValueError(f"k={k} must lie in 1 to {scores_QxN.shape[1]}, the training examples")
    found_QxN = _found(scores_QxN, relevant_QxN, seed)
    return per_query(found_QxN[:, :k].sum(axis=1) / found_QxN.sum(axis=1))


def mean_reciprocal_rank(
    scores_QxN: np.ndarray, relevant_QxN: np.ndarray, *, seed: int = 0
) -> PerQuery:
    """Mean of `1 / rank` of each query's best-ranked relevant example, ranks from 1.

    Args:
      scores_QxN: `[query, train]`, positive = proponent.
      relevant_QxN: bool.
      seed: ties are broken at random.

    Raises:
      ValueError: shapes differ, or a query has nothing relevant.
    """
    return per_query(1 / (1 + _found(scores_QxN, relevant_QxN, seed).argmax(axis=1)))


def mislabel_auc(scores_N: np.ndarray, mislabelled_N: np.ndarray) -> float:
    """Area under the ROC curve of finding mislabelled training examples by a score.

    The chance that a mislabelled example scores above a clean one, ties counting half.

    Args:
      scores_N: **high = suspicious**: self-influence, or minus the mean influence on clean queries
        (an example that hurts them has negative influence, so the sign is turned).
      mislabelled_N: bool.

    Returns:
      1 perfect, .5 chance, 0 perfectly wrong.

    Raises:
      ValueError: lengths differ, or none or all are mislabelled.

    >>> mislabel_auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
    1.0
    """
    wrong = np.asarray(mislabelled_N, bool)
    if scores_N.shape != wrong.shape:
        raise ValueError(f"{scores_N.shape} scores for {wrong.shape} examples")
    if not 0 < (count := int(wrong.sum())) < len(wrong):
        raise ValueError(
            f"{count} of {len(wrong)} examples are mislabelled: some, not all, must be"
        )
    above = scipy.stats.rankdata(scores_N)[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wrong) - count)))
