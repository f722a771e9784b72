"""What a model was trained to make small: cross-entropy, losses of numbers, or the user's own."""

from stride_jax.objectives.cross_entropy import (
    CROSS_ENTROPY,
    cross_entropy,
    log_mean_exp,
    margin,
)
from stride_jax.objectives.hessian import Hessian
from stride_jax.objectives.objective import Objective, objective_of
from stride_jax.objectives.values import POISSON, SIGMOID, squared_error

OBJECTIVES = {
    "cross_entropy": CROSS_ENTROPY,
    "squared_error": squared_error(),
    "sigmoid": SIGMOID,
    "poisson": POISSON,
}
"""Those that settings name."""


def named_objective(objective: str | Objective) -> Objective:
    """An objective, by its name or as it is.

    Raises:
      ValueError: no objective has that name.

    >>> named_objective("poisson").name
    'poisson'
    """
    if isinstance(objective, Objective):
        return objective
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective={objective!r}: use one of {', '.join(OBJECTIVES)}, or objective_of(loss)"
        )
    return OBJECTIVES[objective]


__all__ = [
    "CROSS_ENTROPY",
    "OBJECTIVES",
    "POISSON",
    "SIGMOID",
    "Hessian",
    "Objective",
    "cross_entropy",
    "log_mean_exp",
    "margin",
    "named_objective",
    "objective_of",
    "squared_error",
]
