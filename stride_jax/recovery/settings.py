"""How influences are recovered."""

import dataclasses

from stride_jax.recovery.proximal import PENALTIES, InnerSettings
from stride_jax.runtime.settings import check_types

# After so many steps on its working set a query passes over all N columns again.
_STEPS_PER_ROUND = 400


@dataclasses.dataclass(frozen=True)
class LassoSettings:
    """The Lasso and when it stops (docs/method.md §7).

    Attributes:
      lambda_fraction: lambda as a fraction of each query's lambda_max, where w becomes zero.
      relative_gap: stop when the duality gap over all N is below this share of `½ ||y||²`. The
        certificate allows for float32's rounding, which costs about 1e-6: asking for less ends
        where progress does, with the gap that was reached.
      penalty: `lasso`; `nonnegative`, proponents only; or `elastic_net`.
      gamma: of the elastic net, `lambda (||w||_1 + gamma / 2 ||w||²)`, in 1/nats.
      intercept: centre y and the columns of M over the K subsets.
      debias: refit by least squares on the support; gap and violation stay those of the Lasso.
      working_set: columns a query starts with, a power of two; N or more: all columns at once.
      chunk: queries solved together on one device.
      max_iterations: proximal-gradient steps per query, at most.
      max_rounds: passes over all N columns per query, at most.
    """

    lambda_fraction: float = 0.02
    relative_gap: float = 1e-3
    penalty: str = "lasso"
    gamma: float = 0.0
    intercept: bool = True
    debias: bool = False
    working_set: int = 256
    chunk: int = 64
    max_iterations: int = 20_000
    max_rounds: int = 60

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.lambda_fraction <= 1:
            raise ValueError(f"lambda_fraction={self.lambda_fraction} must lie in (0, 1]")
        if not 0 < self.relative_gap < 1:
            raise ValueError(f"relative_gap={self.relative_gap} must lie in (0, 1)")
        if min(self.max_iterations, self.max_rounds, self.chunk, self.working_set) < 1:
            raise ValueError(
                f"max_iterations={self.max_iterations}, max_rounds={self.max_rounds}, "
                f"chunk={self.chunk}, working_set={self.working_set}: all must be at least 1"
            )
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty={self.penalty!r}: use one of {', '.join(PENALTIES)}")
        if self.gamma < 0 or (self.gamma > 0) != (self.penalty == "elastic_net"):
            raise ValueError(
                f"gamma={self.gamma} with penalty={self.penalty!r}: the elastic net needs a "
                "positive gamma, the others none"
            )

    @property
    def inner(self) -> InnerSettings:
        """What a working set's problem is solved with in one round."""
        steps = min(self.max_iterations, _STEPS_PER_ROUND)
        return InnerSettings(self.penalty, self.intercept, steps)

    def first_size(self, num_train: int) -> int:
        """W of the first working sets: a power of two, and no more than N needs."""
        return power_of_two(min(self.working_set, num_train))


def power_of_two(count: int) -> int:
    """The least power of two that is not below a count.

    >>> [power_of_two(n) for n in (1, 5, 8)]
    [1, 8, 8]
    """
    return 1 << (count - 1).bit_length()
