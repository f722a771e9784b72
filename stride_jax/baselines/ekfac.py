"""EK-FAC influence functions: Grosse et al., Studying LLM Generalization, 2023.

With Shampoo's eigenbasis in place of K-FAC's it is the method that boards call EV-Shampoo.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Layers, Model, batches
from stride_jax.baselines.moments import Scale, scaled
from stride_jax.baselines.solved import Gradients, scores
from stride_jax.data import Examples
from stride_jax.objectives import Objective


@dataclasses.dataclass(frozen=True)
class EkfacSettings:
    """Curvature of EK-FAC.

    Attributes:
      damping: damping relative to the mean corrected eigenvalue of each layer.
      eigenbasis: of each layer's curvature: `kfac`, of `E[a aᵀ]` and `E[δ δᵀ]` over tokens; or
        `shampoo`, of `E[G Gᵀ]` and `E[Gᵀ G]` over examples (Gupta et al., 2018).
      samples: labels drawn from the model per example, which make it the true Fisher.
      batch_size: examples per pass.
      max_bytes: bytes of the queries' preconditioned gradients in memory.
      seed: random seed of the labels.
    """

    damping: float = 1e-1
    eigenbasis: str = "kfac"
    samples: int = 2
    batch_size: int = 128
    max_bytes: int = 1 << 30
    seed: int = 0

    def __post_init__(self) -> None:
        if self.eigenbasis not in ("kfac", "shampoo"):
            raise ValueError(f"eigenbasis={self.eigenbasis!r}: use 'kfac' or 'shampoo'")


Factors = dict[str, tuple[jax.Array, jax.Array]]


@functools.partial(jax.jit, static_argnames="model")
def _drawn_pass(
    model: Model, params: Any, x: jax.Array, y: jax.Array, key: jax.Array, scale: Scale | None
) -> Layers:
    """Layers' inputs and errors for labels drawn from the model; −1 stays −1."""
    labels = draw_labels(model.objective, model.logits(params, x), key)
    if model.objective.classes:
        labels = jnp.where(y < 0, -1, labels)
    return scaled(model.layer_pass(params, x, labels), scale)


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


@functools.partial(jax.jit, static_argnames="eigenbasis")
def _add_factors(total: Factors, layers: Layers, mask: jax.Array, eigenbasis: str) -> Factors:
    out = {}
    for name, (a, d) in layers.items():
        if eigenbasis == "kfac":
            weighted = mask[:, None, None]
            left = jnp.einsum("bti,btj->ij", a * weighted, a)
            right = jnp.einsum("bto,btp->op", d * weighted, d)
        else:
            g = jnp.einsum("bti,bto->bio", a * mask[:, None, None], d)
            left = jnp.einsum("bio,bjo->ij", g, g)
            right = jnp.einsum("bio,bip->op", g, g)
        out[name] = (total[name][0] + left, total[name][1] + right)
    return out


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


def fit(
    model: Model,
    train: Examples,
    settings: EkfacSettings,
    *,
    at: Sequence[Any] = (),
    scale: Scale | None = None,
) -> dict[str, Any]:
    """Eigenbases of the Kronecker factors, and corrected eigenvalues.

    `A = E[a aᵀ]`, `S = E[δ δᵀ]` over examples, tokens and drawn labels; `Λ = E[(Q_Aᵀ G Q_S)²]`.

    Args:
      model, train, settings: as everywhere.
      at: parameters of the checkpoints whose curvature is averaged; the model's for none.
      scale: factors that gradients are multiplied by, for the curvature in other coordinates.

    Returns:
      `bases` `{layer: (Q_A, Q_S)}` and `eigenvalues` `{layer: [I, J]}`.
    """
    at = at or (model.params,)
    parts = batches(train.inputs, train.labels, settings.batch_size)
    shapes = jax.eval_shape(
        functools.partial(_drawn_pass, model), at[0], *parts[0][1:3], jax.random.key(0), scale
    )
    factors: Factors = {
        n: (jnp.zeros((a.shape[-1],) * 2), jnp.zeros((d.shape[-1],) * 2))
        for n, (a, d) in shapes.items()
    }
    keys = jax.random.split(jax.random.key(settings.seed), settings.samples * len(parts))
    drawn = [(params, part, keys[s * len(parts) + i]) for params in at
             for s in range(settings.samples) for i, part in enumerate(parts)]  # fmt: skip
    for params, (_, x, y, mask), key in drawn:
        layers = _drawn_pass(model, params, x, y, key, scale)
        factors = _add_factors(factors, layers, mask, settings.eigenbasis)
    eigh = jax.jit(jnp.linalg.eigh)
    bases = {n: (eigh(a)[1], eigh(s)[1]) for n, (a, s) in factors.items()}
    values = {n: jnp.zeros((a.shape[0], s.shape[0])) for n, (a, s) in factors.items()}
    for params, (_, x, y, mask), key in drawn:
        layers = _drawn_pass(model, params, x, y, key, scale)
        values = _add_eigenvalues(values, layers, bases, mask)
    count = len(at) * settings.samples * len(train)
    return {"bases": bases, "eigenvalues": {n: v / count for n, v in values.items()}}


@jax.jit
def along(bases: Factors, multipliers: dict[str, jax.Array], grads: Gradients) -> Gradients:
    """`Q_A (m ∘ (Q_Aᵀ G Q_S)) Q_Sᵀ` of every layer: a function of the curvature, m its values."""
    out = {}
    for name, g in grads.items():
        left, right = bases[name]
        out[name] = left @ ((left.T @ g @ right) * multipliers[name][None]) @ right.T
    return out


def dampings(state: dict[str, Any], damping: float) -> dict[str, jax.Array]:
    """lambda of each layer: relative to its mean corrected eigenvalue."""
    return {name: damping * values.mean() for name, values in state["eigenvalues"].items()}


def inverse(state: dict[str, Any], damping: float) -> Callable[[Gradients], Gradients]:
    """`G -> (F + lambda I)^{-1} G`."""
    ridge = dampings(state, damping)
    values = state["eigenvalues"]
    return functools.partial(along, state["bases"], {n: 1 / (values[n] + ridge[n]) for n in values})


def score(
    state: dict[str, Any], model: Model, train: Examples, query: Examples, settings: EkfacSettings
) -> np.ndarray:
    """`w_i = Σ_layers <(F + lambda I)^{-1} G_x, G_i>`.

    Returns:
      `[Q, N]` float32.
    """
    return scores(
        model, train, query, inverse(state, settings.damping),
        batch_size=settings.batch_size, max_bytes=settings.max_bytes,
    )  # fmt: skip
