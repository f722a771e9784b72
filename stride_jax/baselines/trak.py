"""TRAK: Park et al., Attributing Model Behavior at Scale, 2023.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model, batches
from stride_jax.baselines.projection import (
    damped_inverse_rows,
    num_parameters,
    project,
    projection_matrix,
)
from stride_jax.data import Examples
from stride_jax.objectives import cross_entropy, margin


@dataclasses.dataclass(frozen=True)
class TrakSettings:
    """Size and damping of TRAK.

    Attributes:
      dim: H, columns of the projection.
      damping: lambda relative to the mean eigenvalue of the projected Gram matrix; TRAK's own 0
        fails on a singular one.
      num_checkpoints: number of last checkpoints, the base model included, whose scores are
        averaged.
      batch_size: gradients held at once.
      seed: random seed of the projection.
    """

    dim: int = 1024
    damping: float = 1e-2
    num_checkpoints: int = 1
    batch_size: int = 128
    seed: int = 0


def minus_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """TRAK's model output with the sign of a loss, of every label."""
    return -margin(logits, labels)


@functools.partial(jax.jit, static_argnames="model")
def _doubt(model: Model, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean of `1 − p` over an example's labels, `[B]`."""
    doubt = -jnp.expm1(-cross_entropy(model.logits(params, x), y)).reshape(len(y), -1)
    return doubt.sum(axis=1) / jnp.maximum((y >= 0).reshape(len(y), -1).sum(axis=1), 1)


def _checkpoints(model: Model, settings: TrakSettings) -> tuple[Any, ...]:
    if settings.num_checkpoints > len(model.checkpoints):
        raise ValueError(
            f"num_checkpoints={settings.num_checkpoints}, but the model has "
            f"{len(model.checkpoints)}: ask for fewer, or train with more"
        )
    return model.checkpoints[-settings.num_checkpoints :]


def fit(model: Model, train: Examples, settings: TrakSettings) -> dict[str, np.ndarray]:
    """Projected margin gradients of the training set, per checkpoint, and mean `1 − p`.

    Returns:
      `phi` `[checkpoint, N, H]` and `doubt` `[N]`.
    """
    matrix = projection_matrix(num_parameters(model, train.inputs), settings.dim, settings.seed)
    phi, doubt = [], []
    for params in _checkpoints(model, settings):
        phi.append(
            project(model, params, train, matrix, minus_margin, batch_size=settings.batch_size)
        )
        parts = [
            np.asarray(_doubt(model, params, x, y))
            for _, x, y, _ in batches(train.inputs, train.labels, settings.batch_size)
        ]
        doubt.append(np.concatenate(parts)[: len(train)])
    return {"phi": np.stack(phi), "doubt": np.mean(doubt, axis=0)}


def score(
    state: dict[str, np.ndarray],
    model: Model,
    train: Examples,
    query: Examples,
    settings: TrakSettings,
) -> np.ndarray:
    """`w_i = mean_c [phi_c(x)ᵀ (Φ_cᵀ Φ_c + lambda I)^{-1} phi_c(i)] · mean_c [1 − p_c(i)]`.

    Returns:
      `[Q, N]` float32.
    """
    matrix = projection_matrix(num_parameters(model, train.inputs), settings.dim, settings.seed)
    total = np.zeros((len(query), len(train)), np.float32)
    for params, phi in zip(_checkpoints(model, settings), state["phi"], strict=True):
        own = project(model, params, query, matrix, minus_margin, batch_size=settings.batch_size)
        total += damped_inverse_rows(phi, own, settings.damping) @ phi.T
    return total / len(state["phi"]) * state["doubt"][None]
