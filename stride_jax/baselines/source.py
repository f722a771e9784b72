"""SOURCE: Bae et al., Training Data Attribution via Approximate Unrolled Differentiation, 2024.

Training is cut into segments. Within one, gradients and curvature H are taken to stand still, at
the mean over its checkpoints; descent for a time τ, the sum of its step sizes, then has a closed
form, and what an example did in an early segment decays through the later ones:

    w_i = Σ_l <F_l S_{l+1} … S_L G_x, G_i(l)>,  F = (1 − exp(−τ H)) / H,  S = exp(−τ H)

H is EK-FAC's. Momentum β makes steps `1/(1 − β)` times as long. Adam descends in coordinates
scaled by the fourth root of the gradient's second moment (`baselines.moments`), here that of a
batch's gradient as its noise makes it, at the segment's checkpoints.

Letters as in `baselines.model`; l a segment, L segments.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines import ekfac
from stride_jax.baselines.ekfac import EkfacSettings
from stride_jax.baselines.model import Model
from stride_jax.baselines.moments import Scale, inverse_power, second_moments
from stride_jax.baselines.solved import Gradients, scores
from stride_jax.data import Examples
from stride_jax.models.train import TrainSettings, num_batches

_MOMENTUM = 0.9  # of this library's sgd


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """How training is cut.

    Attributes:
      segments: L; the model's checkpoints are dealt out to them in order.
      horizon: factor of every segment's time, 1 for the training's own.
      samples: labels drawn from the model per example.
      batch_size: examples per pass.
      max_bytes: bytes of the queries' gradients in memory.
    """

    segments: int = 3
    horizon: float = 1.0
    samples: int = 2
    batch_size: int = 128
    max_bytes: int = 1 << 29


class Segment(NamedTuple):
    """A stretch of training.

    Attributes:
      checkpoints: parameters along it.
      curvature: EK-FAC's state, in scaled coordinates.
      time: τ, the sum of its step sizes.
      decay: added to the curvature, the weight decay.
      unit: factor that makes an example's summed loss its share of the mean per token.
      scale: factors of those coordinates; None for plain ones.
    """

    checkpoints: Sequence[Any]
    curvature: dict[str, Any]
    time: float
    decay: float
    unit: float
    scale: Scale | None


def fit(model: Model, train: Examples, settings: SourceSettings) -> list[Segment]:
    """Curvature and time of every segment, the first one first.

    Raises:
      ValueError: a model whose training nobody knows or that muon trained, or fewer checkpoints
        than segments.
    """
    recipe = _known(model.recipe)
    if len(model.checkpoints) < settings.segments:
        raise ValueError(
            f"segments={settings.segments}, but the model has {len(model.checkpoints)} "
            "checkpoints: ask for fewer, or train with more (num_checkpoints)"
        )
    num_steps, batch = num_batches(len(train), recipe)
    stretch = num_steps / len(model.checkpoints)
    unit = 1 / _tokens(model, train)
    own = EkfacSettings(samples=settings.samples, batch_size=settings.batch_size)
    out = []
    for part in np.array_split(np.arange(len(model.checkpoints)), settings.segments):
        at = [model.checkpoints[c] for c in part]
        time = sum(model.learning_rates[c] for c in part) * stretch
        scale = None
        if recipe.optimizer == "adamw":
            moments = second_moments(model, at, train, settings.batch_size)
            noise = jax.tree.map(lambda v: v * unit**2 / batch, moments)
            scale = inverse_power(noise, 0.25)
        else:
            time /= 1 - _MOMENTUM
        curvature = ekfac.fit(model, train, own, at=at, scale=scale)
        out.append(Segment(at, curvature, time, recipe.weight_decay, unit, scale))
    return out


def _known(recipe: TrainSettings | None) -> TrainSettings:
    if recipe is None:
        raise ValueError(
            "SOURCE follows the training, and this model says nothing of its own: give "
            "Model(recipe=TrainSettings(…)), or use another baseline"
        )
    if recipe.optimizer == "muon":
        raise ValueError(
            "SOURCE has no form for optimizer='muon': train with 'sgd' or 'adamw', or use another "
            "baseline"
        )
    return recipe


def _tokens(model: Model, train: Examples) -> float:
    """Mean number of an example's tokens that count."""
    if model.objective.classes:
        return float((np.asarray(train.labels) >= 0).sum() / len(train))
    return float(np.prod(train.token_shape) / len(train))


def _multipliers(segment: Segment, horizon: float, kind: str) -> dict[str, jax.Array]:
    time = segment.time * horizon
    out = {}
    for name, values in segment.curvature["eigenvalues"].items():
        bent = time * (segment.unit * values + segment.decay)
        if kind == "decays":
            out[name] = jnp.exp(-bent)
        else:
            small = jnp.where(bent > 0, bent, 1)
            out[name] = segment.unit * time * jnp.where(bent > 0, -jnp.expm1(-small) / small, 1)
    return out


def _times(scale: Scale | None, grads: Gradients, power: int) -> Gradients:
    if scale is None:
        return grads
    return {n: g * (jnp.outer(*scale[n]) ** power)[None] for n, g in grads.items()}


def learnt(segment: Segment, grads: Gradients, horizon: float = 1.0) -> Gradients:
    """`F G`: against a training gradient, what a segment moves by it."""
    inside = _times(segment.scale, grads, 1)
    multipliers = _multipliers(segment, horizon, "moves")
    return _times(segment.scale, ekfac.along(segment.curvature["bases"], multipliers, inside), 1)


def decayed(segment: Segment, grads: Gradients, horizon: float = 1.0) -> Gradients:
    """`S G`: the gradient before a segment of what is measured after it."""
    inside = _times(segment.scale, grads, 1)
    multipliers = _multipliers(segment, horizon, "decays")
    return _times(segment.scale, ekfac.along(segment.curvature["bases"], multipliers, inside), -1)


def score(
    state: list[Segment],
    model: Model,
    train: Examples,
    query: Examples,
    settings: SourceSettings,
) -> np.ndarray:
    """Scores of the module's equation, `[Q, N]` float32."""
    total = np.zeros((len(query), len(train)), np.float32)
    for number, segment in enumerate(state):
        later = state[:number:-1]

        def solve(
            grads: Gradients, own: Segment = segment, after: list[Segment] = later
        ) -> Gradients:
            for one in after:
                grads = decayed(one, grads, settings.horizon)
            return learnt(own, grads, settings.horizon)

        for params in segment.checkpoints:
            total += scores(
                model, train, query, solve, params=params,
                batch_size=settings.batch_size, max_bytes=settings.max_bytes,
            ) / len(segment.checkpoints)  # fmt: skip
    return total
