"""LESS: Xia et al., Selecting Influential Data for Targeted Instruction Tuning, 2024.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model, batches, flat_gradients
from stride_jax.baselines.projection import (
    num_parameters,
    project,
    projection_matrix,
    unit_rows,
)
from stride_jax.data import Examples


@dataclasses.dataclass(frozen=True)
class LessSettings:
    """Size and preconditioner of LESS.

    Attributes:
      dim: H, columns of the projection.
      beta1: share of Adam's first moment in a training example's update.
      epsilon: Adam's epsilon, relative to the mean root of the second moment.
      batch_size: gradients held at once.
      seed: random seed of the projection.
    """

    dim: int = 1024
    beta1: float = 0.0
    epsilon: float = 1e-2
    batch_size: int = 128
    seed: int = 0


@functools.partial(jax.jit, static_argnames="model")
def _moments(
    model: Model, params: Any, x: jax.Array, y: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    grads = flat_gradients(model.layer_pass(params, x, y)) * mask[:, None]
    return grads.sum(axis=0), (grads**2).sum(axis=0)


def adam_transform(
    model: Model, params: Any, train: Examples, settings: LessSettings
) -> tuple[jax.Array, jax.Array]:
    """Adam's update of one example as `(g + shift) * scale`.

    `Γ(g) = (beta1 m + (1 − beta1) g) / (sqrt(v) + eps)`, with m and v the mean and mean square of
    the examples' gradients at this checkpoint: it needs no optimiser state, so that a model trained
    by SGD has one too.
    """
    first: Any = 0.0
    second: Any = 0.0
    for _, x, y, mask in batches(train.inputs, train.labels, settings.batch_size):
        one, two = _moments(model, params, x, y, mask)
        first, second = first + one, second + two
    root = jnp.sqrt(second / len(train))
    scale = (1 - settings.beta1) / (root + settings.epsilon * root.mean())
    return settings.beta1 / (1 - settings.beta1) * first / len(train), scale


def fit(model: Model, train: Examples, settings: LessSettings) -> dict[str, np.ndarray]:
    """Projected Adam updates at every checkpoint, `phi` `[checkpoint, N, H]` of unit norm."""
    matrix = projection_matrix(num_parameters(model, train.inputs), settings.dim, settings.seed)
    phi = [
        unit_rows(
            project(
                model, params, train, matrix, batch_size=settings.batch_size,
                transform=adam_transform(model, params, train, settings),
            )
        )
        for params in model.checkpoints
    ]  # fmt: skip
    return {"phi": np.stack(phi)}


def score(
    state: dict[str, np.ndarray],
    model: Model,
    train: Examples,
    query: Examples,
    settings: LessSettings,
) -> np.ndarray:
    """`w_i = Σ_c eta_c cos(∇ Loss(x; theta_c), Γ(i; theta_c))`, both projected.

    Returns:
      `[Q, N]` float32.
    """
    matrix = projection_matrix(num_parameters(model, train.inputs), settings.dim, settings.seed)
    total = np.zeros((len(query), len(train)), np.float32)
    for params, rate, phi in zip(
        model.checkpoints, model.learning_rates, state["phi"], strict=True
    ):
        own = project(model, params, query, matrix, batch_size=settings.batch_size)
        total += rate * unit_rows(own) @ phi.T
    return total
