"""TrackStar: Chang et al., Scalable Influence and Fact Tracing for LLM Pretraining, 2024.

Letters as in `baselines.model`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.logra import Sides, projected
from stride_jax.baselines.model import Model
from stride_jax.baselines.moments import inverse_power, second_moments
from stride_jax.baselines.projection import damped_inverse_root, unit_rows
from stride_jax.data import Examples


@dataclasses.dataclass(frozen=True)
class TrackstarSettings:
    """Size, and what gradients are corrected by.

    Attributes:
      rank: random directions on either side of a layer, which give `rank²` numbers per example.
      mix: share of the queries' second moment in the preconditioner, the training set's the rest;
        theirs for pre-training: .9.
      damping: added to the preconditioner, relative to its mean eigenvalue.
      optimizer: whether gradients are divided by the root of their second moment, in Adafactor's
        form.
      batch_size: examples per pass.
      seed: random seed of the directions.
    """

    rank: int = 32
    mix: float = 0.0
    damping: float = 1e-1
    optimizer: bool = True
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix={self.mix} is a share, in [0, 1]")


def _sides(model: Model, train: Examples, settings: TrackstarSettings) -> Sides:
    """Random directions of every layer's two sides, all of them where there are few."""
    one = (jnp.asarray(train.inputs[:1]), jnp.asarray(train.labels[:1]))
    shapes = jax.eval_shape(model.layer_pass, model.params, *one)
    rng = np.random.default_rng(settings.seed)

    def directions(size: int) -> jax.Array:
        if size <= settings.rank:
            return jnp.eye(size)
        drawn = rng.normal(0, settings.rank**-0.5, (size, settings.rank))
        return jnp.asarray(drawn, jnp.float32)

    return {n: (directions(a.shape[-1]), directions(d.shape[-1])) for n, (a, d) in shapes.items()}


def fit(model: Model, train: Examples, settings: TrackstarSettings) -> dict[str, Any]:
    """Directions, the optimiser's correction, and projected gradients `{layer: [N, rank²]}`."""
    sides, scale = _sides(model, train, settings), None
    if settings.optimizer:
        moments = second_moments(model, (model.params,), train, settings.batch_size)
        scale = inverse_power(moments, 0.5)
    features = projected(model, sides, train, settings.batch_size, scale)
    return {"sides": sides, "scale": scale, "features": features}


def score(
    state: dict[str, Any],
    model: Model,
    train: Examples,
    query: Examples,
    settings: TrackstarSettings,
) -> np.ndarray:
    """`w_i = <u_x, u_i>`, u the unit vector along `R^{-1/2} P (G / sqrt(V))`.

    R is the second moment of the projected gradients, layer by layer, of the training set and, with
    `mix`, of the queries.

    Returns:
      `[Q, N]` float32 in [-1, 1].
    """
    size, share = settings.batch_size, settings.mix
    own = projected(model, state["sides"], query, size, state["scale"])
    both: dict[str, list[np.ndarray]] = {"train": [], "query": []}
    for name, phi in state["features"].items():
        mine = own[name]
        moment = (1 - share) * phi.T.astype(np.float64) @ phi / len(phi)
        moment += share * mine.T.astype(np.float64) @ mine / len(mine)
        root = damped_inverse_root(moment, settings.damping)
        both["train"].append(phi @ root)
        both["query"].append(mine @ root)
    train_NxH, query_QxH = (np.concatenate(both[side], axis=1) for side in ("train", "query"))
    return (unit_rows(query_QxH) @ unit_rows(train_NxH).T).astype(np.float32)
