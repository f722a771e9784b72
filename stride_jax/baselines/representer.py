"""Representer points: Yeh et al., Representer Point Selection for Explaining Deep Networks, 2018.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Layers, Model, OfOutputs, batches
from stride_jax.data import Examples


@dataclasses.dataclass(frozen=True)
class RepresenterSettings:
    """Representer points have no setting but the batch.

    Attributes:
      batch_size: examples per pass.
    """

    batch_size: int = 256


def fit(model: Model, train: Examples, settings: RepresenterSettings) -> None:
    """Nothing is prepared.

    Raises:
      ValueError: a loss of numbers, which has no class to explain.
    """
    if not model.objective.classes:
        raise ValueError(
            f"representer points explain a class, and {model.objective.name} has none: use "
            "grad-dot, which is the same with the query's errors in the class's place"
        )


def _minus_logit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return -(hot * logits).sum(axis=-1)


@functools.partial(jax.jit, static_argnames=("model", "of"))
def _last_layer(
    model: Model, params: Any, x: jax.Array, y: jax.Array, of: OfOutputs | None
) -> tuple[jax.Array, jax.Array]:
    layers: Layers = model.layer_pass(params, x, y, of)
    return list(layers.values())[-1]


def _rows(
    model: Model, examples: Examples, settings: RepresenterSettings, of: OfOutputs | None
) -> np.ndarray:
    """The last layer's gradients, flat, `[N, I J]`."""
    parts = []
    for _, x, y, _ in batches(examples.inputs, examples.labels, settings.batch_size):
        a, d = _last_layer(model, model.params, x, y, of)
        parts.append(np.asarray(jnp.einsum("bti,bto->bio", a, d)).reshape(len(a), -1))
    return np.concatenate(parts)[: len(examples)]


def score(
    state: None, model: Model, train: Examples, query: Examples, settings: RepresenterSettings
) -> np.ndarray:
    """`w_i = e_i[y_x] <h_x, h_i>`: what example i adds to the logit of the query's label.

    h is what the last linear layer reads, `e = onehot(y) − p`, and tokens add up. The factor
    `1 / (2 lambda N)` of their equation is left out: it is one for all.

    Returns:
      `[Q, N]` float32.
    """
    del state
    own = _rows(model, query, settings, _minus_logit)
    return own @ _rows(model, train, settings, None).T
