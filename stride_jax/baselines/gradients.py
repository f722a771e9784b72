"""Gradient dot product, its cosine, and TracIn over several checkpoints.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Layers, Model, batches
from stride_jax.data import Examples


@dataclasses.dataclass(frozen=True)
class GradientSettings:
    """The gradient similarity.

    Attributes:
      cosine: whether to divide by both norms.
      all_checkpoints: whether to sum over the checkpoints, each weighted by its learning rate
        (TracIn), or to read the base model alone.
      batch_size: examples per pass.
    """

    cosine: bool = False
    all_checkpoints: bool = False
    batch_size: int = 256


def fit(model: Model, train: Examples, settings: GradientSettings) -> None:
    """Nothing is prepared: all work is done per query."""


@functools.partial(jax.jit, static_argnames="model")
def _pass(model: Model, params: Any, x: jax.Array, y: jax.Array) -> Layers:
    return model.layer_pass(params, x, y)


@jax.jit
def _dot(query: Layers, train: Layers) -> jax.Array:
    """`Σ_layers <G_q, G_i>` without forming G where a layer has one token."""
    total: Any = 0.0
    for name, (a, d) in query.items():
        other_a, other_d = train[name]
        if a.shape[1] == 1:
            total += (a[:, 0] @ other_a[:, 0].T) * (d[:, 0] @ other_d[:, 0].T)
        else:
            left = jnp.einsum("bti,bto->bio", a, d).reshape(len(a), -1)
            right = jnp.einsum("bti,bto->bio", other_a, other_d).reshape(len(other_a), -1)
            total += left @ right.T
    return total


@jax.jit
def _norms(layers: Layers) -> jax.Array:
    """`||G||` of each example over all layers: `||G||² = Σ_{t,u} (a_t·a_u)(δ_t·δ_u)`."""
    total: Any = 0.0
    for a, d in layers.values():
        total += ((a @ a.transpose(0, 2, 1)) * (d @ d.transpose(0, 2, 1))).sum(axis=(1, 2))
    return jnp.sqrt(jnp.maximum(total, 0.0))


def score(
    state: None, model: Model, train: Examples, query: Examples, settings: GradientSettings
) -> np.ndarray:
    """Similarity of loss gradients in the linear layers' parameters.

    `w_i = Σ_c eta_c <∇ Loss(x; theta_c), ∇ Loss(i; theta_c)>`: a small step on example i lowers the
    query's loss by about that much (Pruthi et al., TracIn, 2020). With `cosine`, each term is
    divided by both gradients' norms.

    Returns:
      `[Q, N]` float32.
    """
    del state
    pairs = list(zip(model.checkpoints, model.learning_rates, strict=True))
    if not settings.all_checkpoints:
        pairs = [(model.params, 1.0)]
    scores = np.zeros((len(query), len(train)), np.float32)
    for params, rate in pairs:
        queries = []
        for q, x, y, _ in batches(query.inputs, query.labels, settings.batch_size):
            held = _pass(model, params, x, y)
            queries.append((q, held, _norms(held) if settings.cosine else None))
        for i, x, y, _ in batches(train.inputs, train.labels, settings.batch_size):
            layers = _pass(model, params, x, y)
            norms = _norms(layers) if settings.cosine else None
            for q, held, held_norms in queries:
                dots = _dot(held, layers)
                if held_norms is not None and norms is not None:
                    dots = dots / jnp.maximum(held_norms[:, None] * norms[None], 1e-30)
                block = scores[q : q + settings.batch_size, i : i + settings.batch_size]
                block += rate * np.asarray(dots)[: block.shape[0], : block.shape[1]]
    return scores
