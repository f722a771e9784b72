"""Baselines that need no gradients: chance, and similarity of features."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model, batches
from stride_jax.data import Examples


@dataclasses.dataclass(frozen=True)
class RandomSettings:
    """Chance.

    Attributes:
      seed: random seed of the scores.
    """

    seed: int = 0


def fit_random(model: Model, train: Examples, settings: RandomSettings) -> None:
    """Nothing to prepare."""


def score_random(
    state: None, model: Model, train: Examples, query: Examples, settings: RandomSettings
) -> np.ndarray:
    """Independent normal scores, `[Q, N]` float32."""
    del state, model
    rng = np.random.default_rng(settings.seed)
    return rng.standard_normal((len(query), len(train)), np.float32)


@dataclasses.dataclass(frozen=True)
class CosineSettings:
    """The activation that is compared.

    Attributes:
      tap: name of the activation; empty for the last one that the model returns.
      batch_size: examples per pass.
      rising: of sequences, whether all tokens up to the last that counts are taken, each weighted
        by its place (RDS+: H. Ivison et al., 2025), in place of the mean of those that count.
    """

    tap: str = ""
    batch_size: int = 512
    rising: bool = False


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def _unit_features(
    model: Model, params: Any, x: jax.Array, y: jax.Array, settings: CosineSettings
) -> jax.Array:
    activations: Any = model.module.apply({"params": params}, x)[1]
    h = activations[settings.tap or list(activations)[-1]]
    if y.ndim == 2 and model.objective.classes:
        weight_BxT = (y >= 0).astype(h.dtype)
        if settings.rising:
            until_BxT = jnp.flip(jnp.cumsum(jnp.flip(weight_BxT, axis=1), axis=1), axis=1) > 0
            weight_BxT = until_BxT * jnp.arange(1, 1 + y.shape[1])[None]
        h = (h * weight_BxT[..., None]).sum(axis=1)
    elif y.ndim == 3:
        h = h.sum(axis=1)
    h = h.reshape(x.shape[0], -1)
    return h / jnp.maximum(jnp.linalg.norm(h, axis=1, keepdims=True), 1e-12)


def fit_cosine(model: Model, train: Examples, settings: CosineSettings) -> np.ndarray:
    """Unit-length features of the examples, `[N, D]`."""
    parts = [
        np.asarray(_unit_features(model, model.params, x, y, settings))
        for _, x, y, _ in batches(train.inputs, train.labels, settings.batch_size)
    ]
    return np.concatenate(parts)[: len(train)]


def score_cosine(
    state: np.ndarray, model: Model, train: Examples, query: Examples, settings: CosineSettings
) -> np.ndarray:
    """Cosine similarity of an activation (RDS; FeatSim in the paper).

    `w_i = <h_x, h_i> / (||h_x|| ||h_i||)`, no sign: a similar example of another class counts as a
    proponent too.

    Returns:
      `[Q, N]` float32 in [-1, 1].
    """
    return fit_cosine(model, query, settings) @ state.T
