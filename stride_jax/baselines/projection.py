"""Random projection of whole gradients, shared by TRAK and LESS, and algebra of projected rows.

Letters as in `baselines.model`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model, OfOutputs, batches, flat_gradients
from stride_jax.data import Examples


def num_parameters(model: Model, inputs: np.ndarray) -> int:
    """P: parameters of the linear layers."""
    every = lambda o, y: o  # noqa: E731
    shape = jax.eval_shape(
        lambda x: flat_gradients(model.layer_pass(model.params, x, None, every)),
        jax.ShapeDtypeStruct((1, *inputs.shape[1:]), inputs.dtype),
    )
    return shape.shape[1]


@functools.partial(jax.jit, static_argnames=("num", "dim"))
def projection_matrix(num: int, dim: int, seed: int) -> jax.Array:
    """Rademacher matrix of variance 1/dim, `[P, H]`: preserves inner products on average."""
    signs = jax.random.rademacher(jax.random.key(seed), (num, dim), jnp.int8)
    return signs.astype(jnp.float32) / jnp.sqrt(jnp.float32(dim))


@functools.partial(jax.jit, static_argnames=("model", "of"))
def _project(
    model: Model,
    params: Any,
    x: jax.Array,
    y: jax.Array,
    matrix_PxH: jax.Array,
    transform: tuple[jax.Array, jax.Array] | None,
    of: OfOutputs | None,
) -> jax.Array:
    grads_BxP = flat_gradients(model.layer_pass(params, x, y, of))
    if transform is not None:
        shift_P, scale_P = transform
        grads_BxP = (grads_BxP + shift_P[None]) * scale_P[None]
    return grads_BxP @ matrix_PxH


def project(
    model: Model,
    params: Any,
    examples: Examples,
    matrix_PxH: jax.Array,
    of: OfOutputs | None = None,
    *,
    batch_size: int,
    transform: tuple[jax.Array, jax.Array] | None = None,
) -> np.ndarray:
    """Projected per-example gradients, streamed in batches.

    Args:
      model, params: model, and the parameters at which gradients are taken.
      examples: examples whose gradients are projected.
      matrix_PxH: projection.
      of: function of logits and labels whose gradient is taken; the model's loss for None.
      batch_size: gradients held at once.
      transform: `(shift_P, scale_P)`, applied as `(g + shift) * scale` before projecting.

    Returns:
      `[N, H]` float32.
    """
    out = [
        np.asarray(_project(model, params, x, y, matrix_PxH, transform, of))
        for _, x, y, _ in batches(examples.inputs, examples.labels, batch_size)
    ]
    return np.concatenate(out)[: len(examples)]


def damped_inverse_rows(phi_NxH: np.ndarray, rhs_QxH: np.ndarray, damping: float) -> np.ndarray:
    """`rhs (ΦᵀΦ + lambda I)^{-1}`, lambda relative to the mean eigenvalue of `ΦᵀΦ`, `[Q, H]`."""
    gram = phi_NxH.T.astype(np.float64) @ phi_NxH
    ridge = damping * np.trace(gram) / len(gram)
    solved = np.linalg.solve(gram + ridge * np.eye(len(gram)), rhs_QxH.T.astype(np.float64))
    return solved.T.astype(np.float32)


def damped_inverse_root(moment_HxH: np.ndarray, damping: float) -> np.ndarray:
    """`(A + lambda I)^{-1/2}`, lambda relative to A's mean eigenvalue, `[H, H]` float64."""
    values, vectors = np.linalg.eigh(moment_HxH.astype(np.float64))
    values = np.maximum(values, 0)
    values += max(damping * values.mean(), 1e-30)
    return (vectors / np.sqrt(values)) @ vectors.T


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their norms; rows of zeros stay so.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
