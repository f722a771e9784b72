"""TRAK: Park et al., Attributing Model Behavior at Scale, 2023.

It linearises a model output f, `phi = P ∇f`, fits the linear model by one Newton step, and reads
off `phi(x)ᵀ (ΦᵀΦ)^{-1} phi(i) · ∂loss_i/∂f`:

| loss | output f | its weight on example i |
|---|---|---|
| cross-entropy | margin, summed over labels | mean `1 − p` |
| sigmoid | `Σ_c ±o_c`, the sum of its labels' margins | mean `1 − p` of its labels |
| any of numbers, `each` | every output `o_c` | `e_c`; the change of o_c counts `e_c` on the query |

With `each`, scores are of the query's loss to first order, and of one output they are TRAK's own of
it; several outputs share one kernel, `Σ_c Φ_cᵀ Φ_c`.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model, OfOutputs, batches
from stride_jax.baselines.projection import (
    damped_inverse_rows,
    num_parameters,
    project,
    projection_matrix,
)
from stride_jax.data import Examples
from stride_jax.objectives import SIGMOID, margin


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
      each: whether every output of a loss of numbers is an f of its own; False sums up the margins
        of several labels. Without meaning for classes.
    """

    dim: int = 1024
    damping: float = 1e-2
    num_checkpoints: int = 1
    batch_size: int = 128
    seed: int = 0
    each: bool = True


def minus_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """TRAK's model output with the sign of a loss, of every label."""
    return -margin(logits, labels)


def minus_margins(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """The same of several labels that are there or not: `−Σ_c (2 y_c − 1) o_c`."""
    return -((2 * targets - 1) * logits).sum(axis=-1)


@functools.lru_cache(maxsize=1024)
def _minus_output(c: int) -> OfOutputs:
    return lambda logits, _: -logits[..., c]


def _outputs(model: Model, inputs: np.ndarray, settings: TrakSettings) -> list[OfOutputs]:
    """What is linearised, F functions.

    Raises:
      ValueError: summed margins of outputs that have none.
    """
    if model.objective.classes:
        return [minus_margin]
    if not settings.each:
        if model.objective.name != SIGMOID.name:
            raise ValueError(
                f"each=False sums up the margins of labels, and outputs of {model.objective.name} "
                "have none: leave it out"
            )
        return [minus_margins]
    one = jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype)
    width = jax.eval_shape(model.logits, model.params, one).shape[-1]
    return [_minus_output(c) for c in range(width)]


@functools.partial(jax.jit, static_argnames=("model", "each"))
def _weights(model: Model, params: Any, x: jax.Array, y: jax.Array, each: bool) -> jax.Array:
    """Minus the loss's derivative in each function, mean over an example's labels, `[B, F]`."""
    if model.objective.classes:
        doubt = -jnp.expm1(-model.losses(params, x, y)).reshape(len(y), -1)
        counted = (y >= 0).reshape(len(y), -1).sum(axis=1)
        return (doubt.sum(axis=1) / jnp.maximum(counted, 1))[:, None]
    logits = model.logits(params, x)
    errors = model.objective.errors(logits, model.objective.targets(y, logits))
    errors = errors.reshape(len(y), -1, errors.shape[-1])
    return errors.mean(axis=1) if each else jnp.abs(errors).mean(axis=(1, 2))[:, None]


def _all_weights(
    model: Model, params: Any, examples: Examples, settings: TrakSettings
) -> np.ndarray:
    parts = [
        np.asarray(_weights(model, params, x, y, settings.each))
        for _, x, y, _ in batches(examples.inputs, examples.labels, settings.batch_size)
    ]
    return np.concatenate(parts)[: len(examples)]


def _checkpoints(model: Model, settings: TrakSettings) -> tuple[Any, ...]:
    if settings.num_checkpoints > len(model.checkpoints):
        raise ValueError(
            f"num_checkpoints={settings.num_checkpoints}, but the model has "
            f"{len(model.checkpoints)}: ask for fewer, or train with more"
        )
    return model.checkpoints[-settings.num_checkpoints :]


def _projected(
    model: Model, params: Any, examples: Examples, matrix_PxH: jax.Array, settings: TrakSettings
) -> np.ndarray:
    """Projected gradients of every function, `[N, F, H]`."""
    size = settings.batch_size
    functions = _outputs(model, examples.inputs, settings)
    each = [project(model, params, examples, matrix_PxH, of, batch_size=size) for of in functions]
    return np.stack(each, axis=1)


def fit(model: Model, train: Examples, settings: TrakSettings) -> dict[str, np.ndarray]:
    """Projected gradients of the training set, per checkpoint, and their weights.

    Returns:
      `phi` `[checkpoint, N, F, H]`, and `doubt` `[N, F]`, mean `1 − p` or e.

    Raises:
      ValueError: fewer checkpoints than asked for, or summed margins of a loss without.
    """
    matrix = projection_matrix(num_parameters(model, train.inputs), settings.dim, settings.seed)
    every = _checkpoints(model, settings)
    phi = [_projected(model, params, train, matrix, settings) for params in every]
    doubt = [_all_weights(model, params, train, settings) for params in every]
    return {"phi": np.stack(phi), "doubt": np.mean(doubt, axis=0)}


def score(
    state: dict[str, np.ndarray],
    model: Model,
    train: Examples,
    query: Examples,
    settings: TrakSettings,
) -> np.ndarray:
    """`w_i = mean_c [phi_c(x)ᵀ (Φ_cᵀ Φ_c + lambda I)^{-1} phi_c(i)] · mean_c [1 − p_c(i)]`.

    Of numbers with `each` it is the sum over outputs of the same, times `e(i)`, with
    `Σ e(x) phi(x)` on the query's side.

    Returns:
      `[Q, N]` float32.
    """
    matrix = projection_matrix(num_parameters(model, train.inputs), settings.dim, settings.seed)
    num_train, functions = state["doubt"].shape
    total = np.zeros((len(query), num_train, functions), np.float32)
    for params, phi in zip(_checkpoints(model, settings), state["phi"], strict=True):
        own = _projected(model, params, query, matrix, settings)
        if settings.each and not model.objective.classes:
            own = own * _all_weights(model, params, query, settings)[..., None]
        rows = phi.reshape(num_train * functions, -1)
        solved = damped_inverse_rows(rows, own.sum(axis=1), settings.damping)
        total += (solved @ rows.T).reshape(total.shape)
    return (total / len(state["phi"]) * state["doubt"]).sum(axis=-1)
