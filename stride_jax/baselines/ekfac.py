"""EK-FAC influence functions: Grosse et al., Studying LLM Generalization, 2023.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Layers, Model, batches, layer_gradients
from stride_jax.data import Examples
from stride_jax.objectives import Objective


@dataclasses.dataclass(frozen=True)
class EkfacSettings:
    """Curvature of EK-FAC.

    Attributes:
      damping: damping relative to the mean corrected eigenvalue of each layer.
      samples: labels drawn from the model per example, which make it the true Fisher.
      batch_size: examples per pass.
      max_bytes: bytes of the queries' preconditioned gradients in memory.
      seed: random seed of the labels.
    """

    damping: float = 1e-1
    samples: int = 2
    batch_size: int = 128
    max_bytes: int = 1 << 30
    seed: int = 0


Factors = dict[str, tuple[jax.Array, jax.Array]]


@functools.partial(jax.jit, static_argnames="model")
def _drawn_pass(model: Model, params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> Layers:
    """Layers' inputs and errors for labels drawn from the model; −1 stays −1."""
    labels = draw_labels(model.objective, model.logits(params, x), key)
    if model.objective.classes:
        labels = jnp.where(y < 0, -1, labels)
    return model.layer_pass(params, x, labels)


def draw_labels(objective: Objective, outputs: jax.Array, key: jax.Array) -> jax.Array:
    """Labels from the likelihood whose negative logarithm the loss is; traceable.

    | loss | label |
    |---|---|
    | cross-entropy | a class with probabilities softmax(o) |
    | squared error | normal about o, with the noise's variance, one over the loss's Hessian |
    | sigmoid | each 1 with probability `1 / (1 + exp −o)` |
    | Poisson | a count with mean `exp o` |

    Args:
      objective: the loss.
      outputs: `[..., C]`.
      key: random key.

    Returns:
      `[...]` int classes, or `[..., C]` numbers.

    Raises:
      ValueError: a loss of the user's own, whose likelihood nobody knows.
    """
    if objective.name == "cross_entropy":
        return jax.random.categorical(key, outputs)
    if objective.name.startswith("squared_error"):
        precision = objective.hessian(outputs, outputs).diagonal
        assert precision is not None, "a squared error has a diagonal"
        return outputs + jax.random.normal(key, outputs.shape) / jnp.sqrt(precision)
    if objective.name == "sigmoid":
        return jax.random.bernoulli(key, jax.nn.sigmoid(outputs)).astype(outputs.dtype)
    if objective.name == "poisson":
        return jax.random.poisson(key, jnp.exp(outputs)).astype(outputs.dtype)
    raise ValueError(
        f"EK-FAC draws labels from the likelihood of the loss, and that of {objective.name!r} is "
        "not known: use another baseline, or squared_error, SIGMOID or POISSON"
    )


@jax.jit
def _add_factors(total: Factors, layers: Layers, mask: jax.Array) -> Factors:
    weighted = mask[:, None, None]
    return {
        name: (
            total[name][0] + jnp.einsum("bti,btj->ij", a * weighted, a),
            total[name][1] + jnp.einsum("bto,btp->op", d * weighted, d),
        )
        for name, (a, d) in layers.items()
    }


@jax.jit
def _add_eigenvalues(total: Any, layers: Layers, bases: Factors, mask: jax.Array) -> Any:
    out = {}
    for name, (a, d) in layers.items():
        left, right = bases[name]
        a, d = a @ left, d @ right
        if a.shape[1] == 1:  # the square of a product is the product of squares
            squares = (a[:, 0] ** 2 * mask[:, None]).T @ d[:, 0] ** 2
        else:
            g = jnp.einsum("bti,bto->bio", a, d)
            squares = (g**2 * mask[:, None, None]).sum(axis=0)
        out[name] = total[name] + squares
    return out


def fit(model: Model, train: Examples, settings: EkfacSettings) -> dict[str, Any]:
    """Eigenbases of the Kronecker factors, and corrected eigenvalues.

    `A = E[a aᵀ]`, `S = E[δ δᵀ]` over examples, tokens and drawn labels; `Λ = E[(Q_Aᵀ G Q_S)²]`.

    Returns:
      `bases` `{layer: (Q_A, Q_S)}` and `eigenvalues` `{layer: [I, J]}`.
    """
    parts = batches(train.inputs, train.labels, settings.batch_size)
    shapes = jax.eval_shape(
        functools.partial(_drawn_pass, model, model.params), *parts[0][1:3], jax.random.key(0)
    )
    factors: Factors = {
        n: (jnp.zeros((a.shape[-1],) * 2), jnp.zeros((d.shape[-1],) * 2))
        for n, (a, d) in shapes.items()
    }
    keys = jax.random.split(jax.random.key(settings.seed), settings.samples * len(parts))
    drawn = [(part, keys[s * len(parts) + i]) for s in range(settings.samples)
             for i, part in enumerate(parts)]  # fmt: skip
    for (_, x, y, mask), key in drawn:
        factors = _add_factors(factors, _drawn_pass(model, model.params, x, y, key), mask)
    eigh = jax.jit(jnp.linalg.eigh)
    bases = {n: (eigh(a)[1], eigh(s)[1]) for n, (a, s) in factors.items()}
    values = {n: jnp.zeros((a.shape[0], s.shape[0])) for n, (a, s) in factors.items()}
    for (_, x, y, mask), key in drawn:
        layers = _drawn_pass(model, model.params, x, y, key)
        values = _add_eigenvalues(values, layers, bases, mask)
    count = settings.samples * len(train)
    return {"bases": bases, "eigenvalues": {n: v / count for n, v in values.items()}}


@functools.partial(jax.jit, static_argnames="model")
def _preconditioned(
    model: Model, params: Any, state: Any, x: jax.Array, y: jax.Array, damping: jax.Array
) -> dict[str, jax.Array]:
    """`(F + lambda I)^{-1} G` of each query, layer by layer, `{layer: [B, I, J]}`."""
    grads = layer_gradients(model.layer_pass(params, x, y))
    out = {}
    for name, g in grads.items():
        left, right = state["bases"][name]
        values = state["eigenvalues"][name]
        inner = left.T @ g @ right / (values + damping * values.mean())[None]
        out[name] = left @ inner @ right.T
    return out


@functools.partial(jax.jit, static_argnames="model")
def _against(
    model: Model, params: Any, held: dict[str, jax.Array], x: jax.Array, y: jax.Array
) -> jax.Array:
    layers = model.layer_pass(params, x, y)
    total: Any = 0.0
    for name, v in held.items():
        g = jnp.einsum("bti,bto->bio", *layers[name])
        total += v.reshape(len(v), -1) @ g.reshape(len(g), -1).T
    return total


def score(
    state: dict[str, Any], model: Model, train: Examples, query: Examples, settings: EkfacSettings
) -> np.ndarray:
    """`w_i = Σ_layers <(F + lambda I)^{-1} G_x, G_i>`.

    Returns:
      `[Q, N]` float32.
    """
    scores = np.empty((len(query), len(train)), np.float32)
    damping = jnp.float32(settings.damping)
    bytes_each = 4 * sum(values.size for values in state["eigenvalues"].values())
    # As many queries as fit: the training gradients are computed once per group of queries.
    several = max(1, settings.max_bytes // bytes_each)
    for start in range(0, len(query), several):
        rows = slice(start, min(start + several, len(query)))
        parts = [
            _preconditioned(model, model.params, state, x, y, damping)
            for _, x, y, _ in batches(query.inputs[rows], query.labels[rows], settings.batch_size)
        ]
        held = {name: jnp.concatenate([part[name] for part in parts]) for name in parts[0]}
        for i, x, y, _ in batches(train.inputs, train.labels, settings.batch_size):
            block = scores[rows, i : i + settings.batch_size]
            out = np.asarray(_against(model, model.params, held, x, y))
            block[:] = out[: block.shape[0], : block.shape[1]]
    return scores
