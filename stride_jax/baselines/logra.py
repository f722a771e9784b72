"""LoGRA: Choe et al., What is Your Data Worth to GPT?, 2024.

Letters as in `baselines.model`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Layers, Model, batches
from stride_jax.baselines.moments import Scale, scaled
from stride_jax.baselines.projection import damped_inverse_rows
from stride_jax.data import Examples


@dataclasses.dataclass(frozen=True)
class LograSettings:
    """Size, directions and damping of LoGRA.

    Attributes:
      rank: directions on either side of a layer, which give `rank²` numbers per example.
      init: `random`, or `pca`: leading directions of the layer's inputs and errors.
      damping: damping relative to the mean eigenvalue of the projected Gram matrix.
      blocks: whether each layer has a damped inverse of its own, or all layers have one together.
      batch_size: examples per pass.
      seed: random seed of random directions.
    """

    rank: int = 24
    init: str = "pca"
    damping: float = 1e-1
    blocks: bool = True
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.init not in ("random", "pca"):
            raise ValueError(f"init={self.init!r}: use 'random' or 'pca'")


Sides = dict[str, tuple[jax.Array, jax.Array]]


@functools.partial(jax.jit, static_argnames="model")
def _second_moments(
    model: Model, params: Any, x: jax.Array, y: jax.Array, mask: jax.Array
) -> Sides:
    layers = model.layer_pass(params, x, y)
    weighted = mask[:, None, None]
    return {
        name: (
            jnp.einsum("bti,btj->ij", a * weighted, a),
            jnp.einsum("bto,btp->op", d * weighted, d),
        )
        for name, (a, d) in layers.items()
    }


@functools.partial(jax.jit, static_argnames="model")
def _project(
    model: Model, params: Any, sides: Sides, x: jax.Array, y: jax.Array, scale: Scale | None
) -> dict[str, jax.Array]:
    layers: Layers = scaled(model.layer_pass(params, x, y), scale)
    out = {}
    for name, (a, d) in layers.items():
        left, right = sides[name]
        g = jnp.einsum("btk,btl->bkl", a @ left, d @ right)
        out[name] = g.reshape(g.shape[0], -1)
    return out


def _sides(model: Model, train: Examples, settings: LograSettings) -> Sides:
    """Input and error directions of every layer, `([I, rank], [J, rank])`."""
    total: Any = None
    for _, x, y, mask in batches(train.inputs, train.labels, settings.batch_size):
        part = _second_moments(model, model.params, x, y, mask)
        total = part if total is None else jax.tree.map(jnp.add, total, part)
    rng = np.random.default_rng(settings.seed)

    def directions(moment: jax.Array) -> jax.Array:
        size = moment.shape[0]
        rank = min(settings.rank, size)
        if settings.init == "random":
            basis = rng.normal(0, rank**-0.5, (size, rank))
        else:
            basis = np.linalg.eigh(np.asarray(moment, np.float64))[1][:, ::-1][:, :rank]
        return jnp.asarray(basis, jnp.float32)

    return {name: (directions(a), directions(d)) for name, (a, d) in total.items()}


def projected(
    model: Model, sides: Sides, examples: Examples, batch_size: int, scale: Scale | None = None
) -> dict[str, np.ndarray]:
    """`P_inᵀ G P_out` of every example, flat, `{layer: [N, rank²]}`, G scaled first if asked."""
    parts = [
        jax.tree.map(np.asarray, _project(model, model.params, sides, x, y, scale))
        for _, x, y, _ in batches(examples.inputs, examples.labels, batch_size)
    ]
    return {n: np.concatenate([p[n] for p in parts])[: len(examples)] for n in sides}


def _features(
    model: Model, sides: Sides, examples: Examples, settings: LograSettings
) -> dict[str, np.ndarray]:
    out = projected(model, sides, examples, settings.batch_size)
    return out if settings.blocks else {"all": np.concatenate(list(out.values()), axis=1)}


def fit(model: Model, train: Examples, settings: LograSettings) -> dict[str, Any]:
    """Directions, and projected gradients of the training set, `{layer: [N, rank²]}`."""
    sides = _sides(model, train, settings)
    return {"sides": sides, "features": _features(model, sides, train, settings)}


def score(
    state: dict[str, Any], model: Model, train: Examples, query: Examples, settings: LograSettings
) -> np.ndarray:
    """`w_i = Σ_layers g̃_xᵀ (G̃ᵀG̃ + lambda I)^{-1} g̃_i`, `g̃ = P_inᵀ G P_out`.

    Returns:
      `[Q, N]` float32.
    """
    own = _features(model, state["sides"], query, settings)
    total = np.zeros((len(query), len(train)), np.float32)
    for name, phi in state["features"].items():
        total += damped_inverse_rows(phi, own[name], settings.damping) @ phi.T
    return total
