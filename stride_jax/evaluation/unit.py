"""The scale of scores from a few real trainings, where theory can't give it.

Scores are in nats of leaving an example out (docs/method.md §8.3), up to a factor that damping,
calibration and the length of training set. Groups of examples left out and retrained measure it.

Letter of its own: M groups.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Unit:
    """How real effects compare with predicted ones.

    Attributes:
      slope: factor that turns scores into real nats (`Index.unit`).
      ci95: bootstrap interval over groups.
    """

    slope: float
    ci95: tuple[float, float]

    @property
    def is_known(self) -> bool:
        """Whether the trainings tell the slope: its interval is above zero, and within a factor of
        three; where it is not, scores should be read as relative."""
        low, high = self.ci95
        return low > 0 and high <= 3 * low


def unit(
    real_QxM: np.ndarray, predicted_QxM: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> Unit:
    """Slope through the origin of real on predicted effects of leaving groups out.

    Args:
      real_QxM: by how much each query's loss rises without each group, nats.
      predicted_QxM: sums of the groups' scores.
      draws, seed: of the bootstrap.

    Raises:
      ValueError: other shapes, or fewer than two groups.

    >>> unit(np.array([[2.0, 4.0, 6.0]]), np.array([[1.0, 2.0, 3.0]])).slope
    2.0
    """
    count = real_QxM.shape[1]
    if real_QxM.shape != predicted_QxM.shape or count < 2:
        raise ValueError(
            f"effects of shape {real_QxM.shape} and {predicted_QxM.shape}: give both for the same "
            "queries and at least two groups"
        )
    products_M = (real_QxM * predicted_QxM).sum(axis=0)
    squares_M = (predicted_QxM**2).sum(axis=0)
    rows = np.random.default_rng(seed).integers(0, count, (draws, count))
    slopes = products_M[rows].sum(axis=1) / np.maximum(squares_M[rows].sum(axis=1), 1e-300)
    low, high = np.percentile(slopes, [2.5, 97.5])
    return Unit(float(products_M.sum() / max(squares_M.sum(), 1e-300)), (float(low), float(high)))
