"""Do scores rank examples first that are known to be relevant, or known to be mislabelled?"""

import numpy as np
import scipy.stats

from stride_jax.evaluation.statistics import PerQuery, per_query, ranking


def _relevance_by_rank(scores_QxN: np.ndarray, relevant_QxN: np.ndarray, seed: int) -> np.ndarray:
    """Relevance by rank, strongest proponent first, `[Q, N]` bool."""
    if scores_QxN.shape != relevant_QxN.shape:
        raise ValueError(
            f"scores {scores_QxN.shape} and relevance {relevant_QxN.shape} differ in shape; "
            "the layout is [query, train]"
        )
    relevant = np.asarray(relevant_QxN, bool)
    if missing := int((~relevant.any(axis=1)).sum()):
        raise ValueError(
            f"{missing} of {len(relevant)} queries have no relevant example: drop them"
        )
    return np.take_along_axis(relevant, ranking(scores_QxN, seed), 1)


def recall_at_k(
    scores_QxN: np.ndarray, relevant_QxN: np.ndarray, k: int, *, seed: int = 0
) -> PerQuery:
    """Share of a query's relevant examples among its k strongest proponents.

    Args:
      scores_QxN: `[query, train]`, positive = proponent.
      relevant_QxN: whether a training example is relevant to a query, bool.
      k: number of proponents, 1 to N.
      seed: random seed of the order of ties.

    Raises:
      ValueError: shapes differ, k is out of range, or a query has nothing relevant.
    """
    if not 1 <= k <= scores_QxN.shape[1]:
        raise ValueError(f"k={k} must lie in 1 to {scores_QxN.shape[1]}, the training examples")
    ranked_QxN = _relevance_by_rank(scores_QxN, relevant_QxN, seed)
    return per_query(ranked_QxN[:, :k].sum(axis=1) / ranked_QxN.sum(axis=1))


def mean_reciprocal_rank(
    scores_QxN: np.ndarray, relevant_QxN: np.ndarray, *, seed: int = 0
) -> PerQuery:
    """Mean of `1 / rank` of each query's best-ranked relevant example, ranks from 1.

    Args:
      scores_QxN: `[query, train]`, positive = proponent.
      relevant_QxN: whether a training example is relevant to a query, bool.
      seed: random seed of the order of ties.

    Raises:
      ValueError: shapes differ, or a query has nothing relevant.
    """
    return per_query(1 / (1 + _relevance_by_rank(scores_QxN, relevant_QxN, seed).argmax(axis=1)))


def mislabel_auc(scores_N: np.ndarray, mislabelled_N: np.ndarray) -> float:
    """Area under the ROC curve of finding mislabelled training examples by a score.

    The chance that a mislabelled example scores above a clean one, ties counting half.

    Args:
      scores_N: **high = suspicious**: self-influence, or minus the mean influence on clean queries
        (an example that hurts them has negative influence, so the sign is turned).
      mislabelled_N: whether an example is mislabelled, bool.

    Returns:
      1 perfect, .5 chance, 0 perfectly wrong.

    Raises:
      ValueError: lengths differ, or none or all are mislabelled.

    >>> mislabel_auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
    1.0
    """
    wrong = np.asarray(mislabelled_N, bool)
    if scores_N.shape != wrong.shape:
        raise ValueError(
            f"{scores_N.shape} scores for {wrong.shape} examples: give one score per example"
        )
    if not 0 < (count := int(wrong.sum())) < len(wrong):
        raise ValueError(
            f"{count} of {len(wrong)} examples are mislabelled: some, but not all, must be"
        )
    above = scipy.stats.rankdata(scores_N)[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (len(wrong) - count)))
