"""What scores are in: nats where real trainings told their factor, else relative.

A score estimates what leaving an example out does, in nats up to a factor that damping, shrinkage,
calibration and the length of training set (docs/method.md §8.3). `evaluation.measure_unit` measures
it. Scores are multiplied by it only where it is known; else they stay as they are, and everything
that shows them says so in the same words.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Unit:
    """How real effects compare with predicted ones.

    Attributes:
      slope: real nats per predicted one.
      ci95: its 95 % interval over the groups of examples that were left out.

    Raises:
      ValueError: a slope that is not finite, or outside its interval.

    >>> Unit(2.0, (1.5, 2.5)).factor, Unit(2.0, (0.5, 3.5)).factor
    (2.0, 1.0)
    """

    slope: float
    ci95: tuple[float, float]

    def __post_init__(self) -> None:
        low, high = self.ci95
        if not (math.isfinite(self.slope) and low <= self.slope <= high):
            raise ValueError(
                f"slope={self.slope}, ci95={self.ci95}: give a finite slope and an interval around "
                "it, as evaluation.measure_unit does"
            )

    @property
    def is_known(self) -> bool:
        """Whether the trainings told the slope: its interval is above zero, and within a factor of
        three."""
        low, high = self.ci95
        return low > 0 and high <= 3 * low

    @property
    def factor(self) -> float:
        """What scores are multiplied by: the slope, or 1 where it is not known."""
        return self.slope if self.is_known else 1.0


def words(unit: Unit | None) -> str:
    """What scores of a unit are in, as every table, answer and summary says it.

    >>> words(None)
    'relative: unit not measured'
    >>> words(Unit(2.0, (0.5, 3.5)))
    'relative: unit not known, between 0.5 and 3.5'
    >>> words(Unit(2.0, (1.5, 2.5)))
    'nats, unit 2 [1.5, 2.5]'
    """
    if unit is None:
        return "relative: unit not measured"
    low, high = unit.ci95
    if not unit.is_known:
        return f"relative: unit not known, between {low:.2g} and {high:.2g}"
    return f"nats, unit {unit.slope:.2g} [{low:.2g}, {high:.2g}]"
