"""Scores `<S G_x, G_i>`: queries' gradients through a linear map S, against training gradients.

Letters as in `baselines.model`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model, batches, layer_gradients
from stride_jax.data import Examples

Gradients = dict[str, jax.Array]
"""`{layer: G_QxIxJ}`."""


@functools.partial(jax.jit, static_argnames="model")
def _gradients(model: Model, params: Any, x: jax.Array, y: jax.Array) -> Gradients:
    return layer_gradients(model.layer_pass(params, x, y))


@functools.partial(jax.jit, static_argnames="model")
def _against(model: Model, params: Any, held: Gradients, x: jax.Array, y: jax.Array) -> jax.Array:
    layers = model.layer_pass(params, x, y)
    total: Any = 0.0
    for name, v in held.items():
        g = jnp.einsum("bti,bto->bio", *layers[name])
        total += v.reshape(len(v), -1) @ g.reshape(len(g), -1).T
    return total


def inner(a: Gradients, b: Gradients) -> jax.Array:
    """`Σ_layers <A, B>` of each query, `[Q]`. Traceable."""
    return sum((jnp.einsum("qij,qij->q", a[n], b[n]) for n in a), start=jnp.zeros(()))


def scores(
    model: Model,
    train: Examples,
    query: Examples,
    solve: Callable[[Gradients], Gradients],
    *,
    batch_size: int,
    max_bytes: int,
    params: Any = None,
) -> np.ndarray:
    """`w_i = Σ_layers <S G_x, G_i>`.

    Args:
      model: trained model; queries' gradients are taken at its parameters.
      train, query: examples.
      solve: S, for the gradients of several queries.
      batch_size: examples per pass.
      max_bytes: bytes of queries' gradients in memory: training gradients are computed once for as
        many queries as fit.
      params: parameters at which training gradients are taken; None for the model's.

    Returns:
      `[Q, N]` float32.
    """
    at = model.params if params is None else params
    out = np.empty((len(query), len(train)), np.float32)
    one = jax.tree.map(lambda v: jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype),
                       (query.inputs, query.labels))  # fmt: skip
    shapes = jax.eval_shape(functools.partial(_gradients, model, model.params), *one)
    several = max(1, max_bytes // (4 * sum(v.size for v in shapes.values())))
    for start in range(0, len(query), several):
        rows = slice(start, min(start + several, len(query)))
        parts = [
            _gradients(model, model.params, x, y)
            for _, x, y, _ in batches(query.inputs[rows], query.labels[rows], batch_size)
        ]
        count = rows.stop - rows.start
        held = solve({n: jnp.concatenate([p[n] for p in parts])[:count] for n in parts[0]})
        for i, x, y, _ in batches(train.inputs, train.labels, batch_size):
            block = out[rows, i : i + batch_size]
            block[:] = np.asarray(_against(model, at, held, x, y))[:, : block.shape[1]]
    return out
