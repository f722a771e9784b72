"""The base model's own training, in pieces between which it can be stopped and resumed.

Letter of its own: s steps.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike

from stride_jax.models.train import (
    State,
    TrainSettings,
    initial_params,
    optimizer,
    order_batches,
    refuse_kind,
    schedule,
    training_step,
)
from stride_jax.objectives import named_objective
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.keep import Keep, nowhere
from stride_jax.runtime.progress import Progress, silent

# Steps per call of the compiled program.
_PIECE = 50


def pretrain(
    module: nn.Module,
    inputs: ArrayLike,
    labels: ArrayLike,
    settings: TrainSettings,
    num_checkpoints: int = 1,
    *,
    start: Any = None,
    progress: Progress = silent,
    keep: Keep = nowhere,
) -> tuple[list[Any], list[float]]:
    """Train a model from its seed on all examples; every process trains the same one.

    Args:
      module: linen model whose call returns `(logits, activations)`.
      inputs, labels: the examples, as in `train.fit`.
      settings: recipe, with the loss, and seed.
      num_checkpoints: number of equal stretches of training, each of which ends in a checkpoint.
      start: parameters to start from; None for fresh ones of the seed.
      progress: wraps the pieces.
      keep: where parameters, optimiser and checkpoints are saved between pieces.

    Returns:
      Parameters of the checkpoints, the model itself last, and the mean learning rate of each
      stretch.

    Raises:
      ValueError: more checkpoints than steps, or labels that do not fit the settings' objective.
    """
    refuse_kind(named_objective(settings.objective), labels)
    inputs, labels = jnp.asarray(inputs), jnp.asarray(labels)
    init_key, order_key = jax.random.split(jax.random.key(settings.seed))
    rows_sxB = jax.jit(order_batches, static_argnames="settings")(
        jnp.arange(len(labels)), order_key, settings=settings
    )
    num_steps = len(rows_sxB)
    if num_checkpoints > num_steps:
        raise ValueError(
            f"num_checkpoints={num_checkpoints} of a training of {num_steps} steps (epochs="
            f"{settings.epochs}, batch_size={settings.batch_size}, {len(labels)} examples): ask "
            "for fewer checkpoints, or train longer"
        )
    ends = [int(part[-1]) + 1 for part in np.array_split(np.arange(num_steps), num_checkpoints)]
    stops = sorted({*range(_PIECE, num_steps, _PIECE), *ends})

    def forward(params: Any, x: jax.Array) -> jax.Array:
        return module.apply({"params": params}, x)[0]  # pyright: ignore[reportIndexIssue, reportReturnType]

    @functools.partial(jax.jit, donate_argnums=0)
    def piece(
        state: State, data: tuple[jax.Array, jax.Array, jax.Array], first: int, last: int
    ) -> tuple[State, jax.Array]:
        x, y, rows_sxB = data
        step = training_step(forward, x, y, num_steps, settings)

        def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, total = carry
            state, loss = step(state, rows_sxB[i])
            return state, total + loss

        state, total = jax.lax.fori_loop(first, last, body, (state, jnp.float32(0)))
        return state, total / (last - first)

    params = initial_params(module, init_key, inputs) if start is None else start
    state: State = params, optimizer(settings, num_steps).init(params)
    reached = [jax.tree.map(np.zeros_like, jax.device_get(params)) for _ in ends]
    begin, (state, reached) = keep.resume("training", (state, reached))
    # Local arrays, whichever devices they were restored onto.
    state = jax.tree.map(lambda v: jnp.asarray(meshes.fetch(v)), state)
    data = inputs, labels, rows_sxB
    for stop in progress([stop for stop in stops if stop > begin], desc="training"):
        state, loss = piece(state, data, begin, stop)
        if stop in ends:
            reached[ends.index(stop)] = jax.device_get(state[0])
        keep.step("training", stop, lambda: (state, reached), {"loss": loss})  # noqa: B023
        begin = stop
    rates = np.asarray(schedule(settings, num_steps)(jnp.arange(num_steps)))
    spans = zip([0, *ends[:-1]], ends, strict=True)
    return reached, [float(rates[first:last].mean()) for first, last in spans]
