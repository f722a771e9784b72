"""Gradient dot product: the simplest gradient baseline (TracIn with one checkpoint)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from stride_jax.models.train import cross_entropy
from stride_jax.runtime.mesh import pad_rows
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import TappedModel


def gradient_dot(
    tapped: TappedModel,
    params: Any,
    train: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    *,
    batch_size: int = 64,
    max_bytes: int = 1 << 29,
    progress: Progress = silent,
) -> np.ndarray:
    """Dot product of loss gradients in all parameters.

    `w_i = <∇ Loss(x), ∇ Loss(i)>`: a small step on example i lowers the query's loss by about
    that much. Training gradients are streamed; a block of query gradients is held.

    Args:
      tapped: model; calibrated logits if the others see them.
      params: its parameters.
      train, query: `(inputs, labels)`.
      batch_size: training gradients alive at once.
      max_bytes: of held query gradients.
      progress: wraps the batches.

    Returns:
      `[Q, N]` float32.
    """

    def loss(params: Any, x: jax.Array, label: jax.Array) -> jax.Array:
        return cross_entropy(tapped(params, x[None])[0], label[None])[0]

    def flat_gradient(params: Any, x: jax.Array, label: jax.Array) -> jax.Array:
        return ravel_pytree(jax.grad(loss)(params, x, label))[0]

    gradients = jax.jit(jax.vmap(flat_gradient, in_axes=(None, 0, 0)))

    @jax.jit
    def block(params: Any, x: jax.Array, labels: jax.Array, held: jax.Array) -> jax.Array:
        return held @ jax.vmap(flat_gradient, in_axes=(None, 0, 0))(params, x, labels).T

    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    queries = max(1, min(len(query[0]), max_bytes // (4 * size)))
    scores = np.empty((len(query[0]), len(train[0])), np.float32)
    for q in range(0, len(scores), queries):
        rows = range(q, min(q + queries, len(scores)), batch_size)
        held = jnp.concatenate(
            [
                gradients(
                    params, *(jnp.asarray(a[r : min(r + batch_size, q + queries)]) for a in query)
                )
                for r in rows
            ]
        )
        for i in progress(range(0, len(train[0]), batch_size), desc="gradient dot"):
            x, labels = (pad_rows(a[i : i + batch_size], batch_size) for a in train)
            out = np.asarray(block(params, x, labels, held))
            scores[q : q + queries, i : i + batch_size] = out[:, : len(train[0]) - i]
    return scores
