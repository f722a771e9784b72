"""Training on a mesh, in pieces between which it can be stopped and resumed.

A batch is split over all devices; parameters and moments are replicated, or split too. Examples
stay where they are: a process reads the rows of its own devices, a piece ahead.

Letter of its own: s steps.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.models import lora
from stride_jax.models.order import Order, pieces_of, read_ahead, steps_per_piece
from stride_jax.models.train import (
    Batch,
    State,
    TrainSettings,
    initial_params,
    num_batches,
    optimizer,
    refuse_kind,
    schedule,
    training_step,
)
from stride_jax.objectives import named_objective
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.flops import count_flops
from stride_jax.runtime.programs import Program, shape, shapes_like
from stride_jax.runtime.rows import Rows

# Operations of a step from which on several devices are faster than one.
_WORTH_SPLITTING = 1 << 32


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A training and its devices: all that its program depends on but shapes.

    Attributes:
      module: linen model whose call returns `(logits, activations)`.
      settings: optimiser, schedule and loss.
      num_steps: steps of the whole training, for the schedule.
      mesh: devices, over all of which a batch is split.
      parameters: layout of parameters and moments, as in `MeshSettings`.
    """

    module: nn.Module
    settings: TrainSettings
    num_steps: int
    mesh: Mesh
    parameters: str = "replicated"

    def layout(self, tree: Any) -> Any:
        """Shardings of parameters, gradients or moments."""
        if self.parameters == "sharded":
            return meshes.sharded_parameters(tree, self.mesh, tables_by_width=True)
        return meshes.parameters_layout(tree, self.parameters, self.mesh)

    @property
    def batches(self) -> NamedSharding:
        """Sharding of the batches of several steps, `[s, B, …]`."""
        return NamedSharding(self.mesh, P(None, self.mesh.axis_names))

    def fresh(self, key: jax.Array, inputs: Any) -> Any:
        """Parameters of a seed, made in their places; `inputs` as in `initial_params`."""
        layout = None if self.mesh.size == 1 else self.layout
        return initial_params(self.module, key, inputs, layout)

    def state(self, params: Any) -> State:
        """Parameters with fresh moments, in their places."""
        params = meshes.place(params, self.layout(params))
        where = self.layout(jax.eval_shape(self._opened, params))
        return jax.jit(self._opened, out_shardings=where)(params)

    def _opened(self, params: Any) -> State:
        # A copy: steps write into the state, and the parameters may be the caller's.
        params = jax.tree.map(jnp.copy, params)
        params = lora.opened(params, self.settings.lora, jax.random.key(self.settings.seed))
        return params, optimizer(self.settings, self.num_steps).init(params)

    def shapes(self, params: Any) -> State:
        """Shapes of `state`, in their places."""
        state = jax.eval_shape(self._opened, params)
        return shapes_like(state, self.layout(state))

    def reached(self, state: State) -> Any:
        """The model's parameters, which later steps do not write into: on the host, or in parts on
        the devices."""
        params = _closed(state[0], recipe=self)
        if self.parameters == "sharded":
            return params
        return jax.tree.map(lambda v: np.array(meshes.fetch(v)), params)


@functools.partial(jax.jit, static_argnames="recipe")
def _closed(params: Any, *, recipe: Recipe) -> Any:
    params = jax.tree.map(jnp.copy, lora.closed(params, recipe.settings.lora))
    return jax.lax.with_sharding_constraint(params, recipe.layout(params))


@functools.partial(jax.jit, static_argnames="recipe", donate_argnames="state")
def train_piece(
    state: State, batches: Batch, count: jax.Array, *, recipe: Recipe
) -> tuple[State, jax.Array]:
    """Train on some batches, one after the other.

    Args:
      state: parameters and moments; donated.
      batches: inputs and labels of each step, `[s, B, …]`.
      count: number of first ones that are used, at least 1.
      recipe: model, optimiser and devices.

    Returns:
      The state after them, and the mean of their losses, nats.
    """

    def forward(params: Any, x: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(recipe.mesh.abstract_mesh):
            return recipe.module.apply({"params": params}, x)[0]  # pyright: ignore[reportIndexIssue, reportReturnType]

    def laid_out(tree: Any) -> Any:
        return jax.lax.with_sharding_constraint(tree, recipe.layout(tree))

    step = training_step(forward, recipe.num_steps, recipe.settings, recipe.mesh.size, laid_out)

    def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, total = carry
        state, loss = step(state, jax.tree.map(lambda v: v[i], batches))
        return state, total + loss

    state, total = jax.lax.fori_loop(0, count, body, (state, jnp.float32(0)))
    return state, total / count


def program(
    module: nn.Module,
    inputs: Any,
    labels: Any,
    count: int,
    settings: TrainSettings,
    mesh: Mesh,
    parameters: str = "replicated",
) -> Program:
    """The compiled step of training on `count` examples like these; a run makes several per call.

    Args:
      module: linen model.
      inputs, labels: one example or more, or their shapes.
      count: N.
      settings: recipe.
      mesh: devices that a batch is split over.
      parameters: layout of parameters and moments, as in `MeshSettings`.

    Raises:
      ValueError: a batch that the devices do not divide.
    """
    num_steps, batch = num_batches(count, settings)
    _check_split(batch, settings, mesh)
    recipe = Recipe(module, settings, num_steps, mesh, parameters)
    fresh = functools.partial(initial_params, module, inputs=shapes_like(inputs))
    state = recipe.shapes(jax.eval_shape(fresh, _any_key()))
    batches = tuple(
        shape((1, batch, *v.shape[1:]), v.dtype, recipe.batches) for v in (inputs, labels)
    )
    args = state, batches, shape((), jnp.int32)
    return Program(train_piece, args, {"recipe": recipe}, num_steps, batch)


def devices_for(
    module: nn.Module, inputs: Any, settings: TrainSettings, execution: Execution, parameters: str
) -> Execution:
    """The execution of a training: on all devices where a step is work enough or parameters are
    split, else on one of each process, so that small models are trained alike on any mesh.

    Args:
      module: linen model.
      inputs: one example or more, or their shapes.
      settings: recipe.
      execution: devices, and the rest.
      parameters: layout of parameters and moments, as in `MeshSettings`.
    """
    mesh = execution.mesh
    if mesh is None or mesh.size == 1 or parameters == "sharded":
        return execution
    one = shape((1, *inputs.shape[1:]), inputs.dtype)
    params = jax.eval_shape(functools.partial(initial_params, module, inputs=one), _any_key())
    work = 3 * settings.batch_size * count_flops(module.apply, {"params": params}, one)
    if work >= _WORTH_SPLITTING:
        return execution
    return dataclasses.replace(execution, mesh=meshes.single_mesh())


def _any_key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def pretrain(
    module: nn.Module,
    inputs: Any,
    labels: Any,
    settings: TrainSettings,
    num_checkpoints: int = 1,
    *,
    start: Any = None,
    parameters: str = "replicated",
    execution: Execution = Execution(),
) -> tuple[list[Any], list[float]]:
    """Train a model from its seed on all examples.

    Args:
      module: linen model whose call returns `(logits, activations)`.
      inputs, labels: the examples, as in `train.fit`; of memory-mapped ones, and of `Rows`, a
        process reads the rows of its own devices batch by batch.
      settings: recipe, with the loss, and seed.
      num_checkpoints: number of equal stretches of training, each of which ends in a checkpoint.
      start: parameters to start from; None for fresh ones of the seed.
      parameters: layout of parameters and moments over the mesh, as in `MeshSettings`.
      execution: devices, over all of which a batch is split, one of this process by default;
        progress, and where parameters, moments and checkpoints are saved between pieces.

    Returns:
      Parameters of the checkpoints, the model itself last, on the host where they are replicated;
      and the mean learning rate of each stretch.

    Raises:
      ValueError: more checkpoints than steps, labels that do not fit the settings' objective, or a
        batch that the devices do not divide.
    """
    init_key, order_key = jax.random.split(jax.random.key(settings.seed))
    inputs, labels = (
        v if isinstance(v, (np.ndarray, Rows)) else np.asarray(v) for v in (inputs, labels)
    )
    order = Order(np.arange(len(labels), dtype=np.int32), order_key, settings)
    refuse_kind(named_objective(settings.objective), labels)
    ends = _ends(order.num_steps, num_checkpoints, settings, len(labels))
    mesh = execution.mesh or meshes.single_mesh()
    recipe = Recipe(module, settings, order.num_steps, mesh, parameters)
    reached = train_in_order(
        recipe, (inputs, labels), order, ends, execution,
        recipe.fresh(init_key, inputs) if start is None else start,
    )  # fmt: skip
    rates = np.asarray(schedule(settings, order.num_steps)(jnp.arange(order.num_steps)))
    spans = zip([0, *ends[:-1]], ends, strict=True)
    return reached, [float(rates[first:last].mean()) for first, last in spans]


def _ends(num_steps: int, num_checkpoints: int, settings: TrainSettings, count: int) -> list[int]:
    """The step after each stretch of training."""
    if num_checkpoints > num_steps:
        raise ValueError(
            f"num_checkpoints={num_checkpoints} of a training of {num_steps} steps (epochs="
            f"{settings.epochs}, batch_size={settings.batch_size}, {count} examples): ask "
            "for fewer checkpoints, or train longer"
        )
    return [int(part[-1]) + 1 for part in np.array_split(np.arange(num_steps), num_checkpoints)]


def train_in_order(
    recipe: Recipe,
    data: tuple[Any, Any],
    order: Order,
    ends: Sequence[int],
    execution: Execution,
    params: Any,
) -> list[Any]:
    """Train on batches in an order, and return the parameters after some of the steps.

    Args:
      recipe: model, optimiser, loss and devices.
      data: inputs and labels of all examples, as in `pretrain`.
      order: rows of each batch.
      ends: ascending steps after which parameters are returned, that of the last one included.
      execution: progress, and where the state is saved; its mesh is not read.
      params: parameters to start from.
    """
    _check_split(order.batch, recipe.settings, recipe.mesh)
    keep = execution.keep
    state = recipe.state(params)
    del params
    # The last one is the state itself; others hold the start until they are reached.
    reached = [recipe.reached(state) for _ in ends[:-1]]
    begin, (state, reached) = keep.resume("training", (state, reached))
    state = jax.tree.map(_moved, state, recipe.layout(state))
    size = steps_per_piece(data, order)
    pieces = pieces_of(begin, order.num_steps, ends, size)
    ahead = read_ahead(data, order, pieces, size, recipe.batches)
    stops = execution.progress([stop for _, stop in pieces], desc="training")
    loss = None
    try:
        for stop, (count, batches) in zip(stops, ahead, strict=True):
            before = loss
            state, loss = train_piece(state, batches, count, recipe=recipe)
            if stop in ends[:-1]:
                reached[list(ends).index(stop)] = recipe.reached(state)
            if before is not None:
                before.block_until_ready()  # or pieces would pile up on the devices
            now = state, reached
            keep.step("training", stop, lambda: now, {"loss": loss}, background=True)  # noqa: B023
    finally:
        keep.settle()
    return [*reached, recipe.reached(state)]


def _check_split(batch: int, settings: TrainSettings, mesh: Mesh) -> None:
    """Refuse a batch that devices do not divide."""
    parts = mesh.size * settings.accumulation
    if mesh.size > 1 and batch % parts:
        more = (
            "" if settings.accumulation == 1 else f" in accumulation={settings.accumulation} parts"
        )
        raise ValueError(
            f"train.batch_size={batch} can't be split over {mesh.size} devices{more}: use "
            f"{-(-batch // parts) * parts}, or fewer devices"
        )


def _moved(v: Any, where: NamedSharding) -> jax.Array:
    """A restored array in its place, whichever devices it was restored onto."""
    there = isinstance(v, jax.Array) and v.sharding == where
    return v if there else meshes.place(meshes.fetch(v), where)
