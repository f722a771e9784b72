"""Datamodels: Ilyas et al., Predicting Predictions from Training Data, 2022.

Sparse regression of retrained models' outputs on their subsets: an upper reference that costs the
retrainings. Fit it on subsets that its figure is not computed on.

Letter of its own: M retrained subsets.
"""

import dataclasses

import numpy as np

from stride_jax.recovery import LassoSettings, init_rows, solve
from stride_jax.runtime.settings import check_types


@dataclasses.dataclass(frozen=True)
class DatamodelSettings:
    """The regression.

    Attributes:
      lambda_fraction: penalty, relative to each query's lambda_max.
    """

    lambda_fraction: float = 0.3

    def __post_init__(self) -> None:
        check_types(self)


def score(
    members_MxS: np.ndarray, target_QxM: np.ndarray, num_train: int, settings: DatamodelSettings
) -> np.ndarray:
    """`w = argmin ½ ||y − M w||² + lambda ||w||_1`, y the retrained models' outputs.

    Args:
      members_MxS: training rows of each retrained subset.
      target_QxM: minus the losses of the queries, nats.
      num_train: N.
      settings: penalty of the regression.

    Returns:
      `[Q, N]` float32.
    """
    lasso = LassoSettings(lambda_fraction=settings.lambda_fraction)
    return solve(init_rows(members_MxS, num_train), target_QxM, lasso).scores_QxN
