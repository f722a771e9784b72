"""Baselines that need no gradients: chance, and similarity of activations, whitened or not."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model, batches
from stride_jax.baselines.projection import damped_inverse_root, unit_rows
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
      whitened: preconditioned activation similarity: damping of the activations' second moment,
        relative to its mean eigenvalue, by whose inverse they are compared; None for the identity.
      rising: of sequences, whether all tokens up to the last that counts are taken, each weighted
        by its place (RDS+: H. Ivison et al., 2025), in place of the mean of those that count.
    """

    tap: str = ""
    batch_size: int = 512
    whitened: float | None = None
    rising: bool = False


@functools.partial(jax.jit, static_argnames=("model", "tap", "rising"))
def _features(
    model: Model, params: Any, x: jax.Array, y: jax.Array, tap: str, rising: bool
) -> jax.Array:
    activations: Any = model.module.apply({"params": params}, x)[1]
    h = activations[tap or list(activations)[-1]]
    if y.ndim == 2 and model.objective.classes:
        weight_BxT = (y >= 0).astype(h.dtype)
        if rising:
            until_BxT = jnp.flip(jnp.cumsum(jnp.flip(weight_BxT, axis=1), axis=1), axis=1) > 0
            weight_BxT = until_BxT * jnp.arange(1, 1 + y.shape[1])[None]
        h = (h * weight_BxT[..., None]).sum(axis=1)
    elif y.ndim == 3:
        h = h.sum(axis=1)
    return h.reshape(x.shape[0], -1)


def features(
    model: Model, examples: Examples, tap: str = "", *, rising: bool = False, batch_size: int = 512
) -> np.ndarray:
    """Activations of the examples, `[N, D]`; of sequences the sum over tokens that count.

    Args:
      model: trained model.
      examples: examples.
      tap, rising, batch_size: as in `CosineSettings`.
    """
    parts = [
        np.asarray(_features(model, model.params, x, y, tap, rising))
        for _, x, y, _ in batches(examples.inputs, examples.labels, batch_size)
    ]
    return np.concatenate(parts)[: len(examples)]


def _own(model: Model, examples: Examples, settings: CosineSettings) -> np.ndarray:
    return features(model, examples, settings.tap, rising=settings.rising,
                    batch_size=settings.batch_size)  # fmt: skip


def fit_cosine(
    model: Model, train: Examples, settings: CosineSettings
) -> tuple[np.ndarray, np.ndarray | None]:
    """Unit-length features of the examples, `[N, D]`, and what whitens them, `[D, D]`, or None."""
    rows, root = unit_rows(_own(model, train, settings)), None
    if settings.whitened is not None:
        moment = rows.T.astype(np.float64) @ rows / len(rows)
        root = damped_inverse_root(moment, settings.whitened).astype(np.float32)
        rows = unit_rows(rows @ root)
    return rows, root


def score_cosine(
    state: tuple[np.ndarray, np.ndarray | None],
    model: Model,
    train: Examples,
    query: Examples,
    settings: CosineSettings,
) -> np.ndarray:
    """Cosine similarity of an activation (RDS; FeatSim in the paper), whitened if asked for.

    `w_i = <h_x, h_i> / (||h_x|| ||h_i||)`, no sign: a similar example of another class counts as a
    proponent too.

    Returns:
      `[Q, N]` float32 in [-1, 1].
    """
    del train
    rows, root = state
    own = unit_rows(_own(model, query, settings))
    return (own if root is None else unit_rows(own @ root)) @ rows.T
