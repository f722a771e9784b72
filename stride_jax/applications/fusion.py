"""Methods joined: what several of them rank high."""

import numpy as np

_LATE = 60
"""How little first places count above the next ones (Cormack et al., 2009)."""


def fused(*scores: np.ndarray) -> np.ndarray:
    """Reciprocal ranks of several methods, added up: `sum_m 1 / (60 + rank_m)`.

    Ranks need no common unit, so nats, cosines and counts of words can be joined. A row that all
    methods rank fairly high is above one that a single method ranks first.

    Args:
      scores: of each method, `[..., N]`, the larger the better; of equal ones the earlier is first.

    Returns:
      `[..., N]`, the larger the better; ranks count from 0.

    Source: G. Cormack, C. Clarke and S. Buettcher, Reciprocal Rank Fusion, 2009.

    >>> int(fused(np.array([3.0, 2.0, 1.0]), np.array([0.0, 5.0, 4.0])).argmax())
    1
    """
    return np.sum([1 / (_LATE + _ranks(own)) for own in scores], axis=0)


def _ranks(scores: np.ndarray) -> np.ndarray:
    """Places in the order of the scores, from 0."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable")
