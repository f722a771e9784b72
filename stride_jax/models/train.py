"""Training as one pure function, so that many models train at once under `vmap`.

Letter of its own: s steps.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from stride_jax.examples import token_shape
from stride_jax.models import lora
from stride_jax.models.lora import LoRASettings
from stride_jax.objectives import Objective, named_objective
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import added

Params = Any
Forward = Callable[[Params, jax.Array], jax.Array]
"""`(params, inputs) -> logits`."""

Batch = tuple[jax.Array, jax.Array]
"""Inputs and labels of a step, as in `fit`."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The recipe of the base model and of every model of the bank.

    Attributes:
      epochs: passes over the examples; 0 for a model that is used as it is (`model.init_from`).
      batch_size: examples per step.
      optimizer: `sgd` (momentum .9), `adamw` or `muon` (matrices; adamw for the rest).
      learning_rate: peak of the learning rate, which falls to zero along a cosine.
      warmup: share of the steps in which the learning rate rises to its peak.
      accumulation: number of parts in which a batch's gradient is computed one after the other.
      weight_decay: weight decay of adamw and muon, or share of the parameters added to the gradient
        of sgd.
      seed: random seed of the initial parameters and the order of examples.
      objective: the loss, by its name in `objectives`.
      lora: low-rank factors that are trained in place of the model; None for the whole model.
      steps: largest number of steps, for corpora of which a part of an epoch is all there is time
        for; 0 for all that the epochs have. The learning rate falls to zero within them.
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    weight_decay: float = 0.0
    warmup: float = 0.0
    accumulation: int = 1
    seed: int = 0
    objective: str = added("cross_entropy")
    steps: int = added(0)
    lora: LoRASettings | None = added(None)

    def __post_init__(self) -> None:
        named_objective(self.objective)
        if self.optimizer not in ("sgd", "adamw", "muon"):
            raise ValueError(f"optimizer={self.optimizer!r}: use 'sgd', 'adamw' or 'muon'")
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(
                f"epochs={self.epochs}, batch_size={self.batch_size}: at least 1, or 0 epochs for "
                "a model that is used as it is"
            )
        if self.steps < 0:
            raise ValueError(f"steps={self.steps} must be at least 0, which is for all")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is a share of the steps, in [0, 1)")
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} can't be cut into accumulation="
                f"{self.accumulation} equal parts: give a divisor"
            )


def schedule(settings: TrainSettings, num_steps: int) -> optax.Schedule:
    """Learning rate by step: a straight rise where there is a warmup, a cosine to zero."""
    rising = round(settings.warmup * num_steps)
    if not rising:
        return optax.cosine_decay_schedule(settings.learning_rate, num_steps)
    return optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, rising, num_steps)


def optimizer(settings: TrainSettings, num_steps: int) -> optax.GradientTransformation:
    """The optax optimiser a run of `num_steps` uses."""
    rate = schedule(settings, num_steps)
    if settings.optimizer == "adamw":
        tx = optax.adamw(rate, weight_decay=settings.weight_decay)
    elif settings.optimizer == "muon":
        tx = optax.contrib.muon(rate, weight_decay=settings.weight_decay)
    else:
        decay = optax.add_decayed_weights(settings.weight_decay)
        tx = optax.chain(decay, optax.sgd(rate, momentum=0.9))
    return lora.trained(tx, settings.lora)


def fit(
    forward: Forward,
    params: Params,
    inputs: ArrayLike,
    labels_N: ArrayLike,
    members_S: ArrayLike,
    key: jax.Array,
    settings: TrainSettings,
) -> Params:
    """Train on the rows `members_S`, every row once per epoch in a new order.

    The epochs' orders are joined and cut into batches, so no row is dropped at an epoch's end
    (only fewer than `batch_size` rows at the very end).

    Args:
      forward: `(params, inputs) -> logits`.
      params: initial parameters.
      inputs: inputs of all examples, `[N, ...]`.
      labels_N: `[N]` classes or `[N, T]` next tokens, −1 does not count; or numbers, as in
        `Examples`, where the settings' objective reads them.
      members_S: `[S]` rows to train on.
      key: key of the order.
      settings: optimiser and schedule; the seed is not used here.

    Returns:
      The trained parameters. Pure: `vmap` over `params`, `members_S` and `key` trains many models.
    """
    members_S, inputs, labels_N = map(jnp.asarray, (members_S, inputs, labels_N))
    refuse_kind(named_objective(settings.objective), labels_N)
    rows_sxB = order_batches(members_S, key, settings)
    num_steps = len(rows_sxB)
    step = training_step(forward, num_steps, settings)

    def body(state: State, rows_B: jax.Array) -> tuple[State, jax.Array]:
        return step(state, (inputs[rows_B], labels_N[rows_B]))

    params = lora.opened(params, settings.lora, jax.random.fold_in(key, 1))
    state = params, optimizer(settings, num_steps).init(params)
    (params, _), _ = jax.lax.scan(body, state, rows_sxB)
    return lora.closed(params, settings.lora)


def order_batches(members_S: jax.Array, key: jax.Array, settings: TrainSettings) -> jax.Array:
    """Rows of each step's batch, `[s, B]`: the epochs' orders joined and cut into batches."""
    num_steps, batch = num_batches(members_S.shape[0], settings)
    orders = jax.vmap(lambda k: jax.random.permutation(k, members_S))(
        jax.random.split(key, settings.epochs)
    )
    return orders.reshape(-1)[: num_steps * batch].reshape(num_steps, batch)


def num_batches(size: int, settings: TrainSettings) -> tuple[int, int]:
    """Steps of training on so many examples, and examples per step."""
    batch = min(settings.batch_size, size)
    num_steps = settings.epochs * size // batch
    return min(num_steps, settings.steps or num_steps), batch


State = tuple[Params, Any]
"""Parameters, as `lora.opened` leaves them, and the optimiser's moments."""


def training_step(
    forward: Forward,
    num_steps: int,
    settings: TrainSettings,
    devices: int = 1,
    laid_out: Callable[[Any], Any] = lambda tree: tree,
) -> Callable[[State, Batch], tuple[State, jax.Array]]:
    """One step of training, `(state, batch) -> (state, mean loss before it in nats)`.

    Args:
      forward: `(params, inputs) -> logits` of the model's own parameters.
      num_steps: steps of the whole training, for the schedule.
      settings: optimiser, schedule and objective.
      devices: devices that a batch is split over; each part of an accumulated gradient has as many
        rows of each.
      laid_out: what keeps parameters, gradients and moments in their places on these devices.
    """
    tx, objective = optimizer(settings, num_steps), named_objective(settings.objective)
    parts, forward = settings.accumulation, lora.through(forward, settings.lora)

    def total(params: Params, batch: Batch) -> jax.Array:
        inputs, labels = batch
        return losses(objective, forward(params, inputs), labels).sum()

    def part(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        loss, grads = jax.value_and_grad(total)(params, batch)
        return loss, laid_out(grads)

    def gradient(params: Params, batch: Batch) -> tuple[jax.Array, Params]:
        count, rows = _count(objective, batch[1]), len(batch[1])
        if parts == 1 or rows % (parts * devices):  # or a small last set
            sums = part(params, batch)
        else:
            # A running sum: one gradient is held, not one of each part.
            cut = jax.tree.map(lambda v: meshes.cut(v, devices, parts), batch)
            zeros = jnp.float32(0), laid_out(jax.tree.map(jnp.zeros_like, params))
            add = lambda sums, own: (jax.tree.map(jnp.add, sums, part(params, own)), None)  # noqa: E731
            sums, _ = jax.lax.scan(add, zeros, cut)
        return jax.tree.map(lambda g: g / count, sums)

    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        params, moments = state
        loss, grads = gradient(params, batch)
        updates, moments = tx.update(grads, moments, params)
        return laid_out((optax.apply_updates(params, updates), moments)), loss

    return step


def losses(objective: Objective, outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Losses of a batch, `[B]` or `[B, T]` nats; traceable.

    Args:
      objective: the loss.
      outputs: `[B, …, C]`, or `[B]` of a model that returns one number.
      labels: as in `Examples`.

    Raises:
      ValueError: numbers that are not one for each output.
    """
    outputs = outputs[:, None] if outputs.ndim == 1 else outputs
    targets = objective.targets(labels, outputs)
    if not objective.classes and targets.shape != outputs.shape:
        raise ValueError(
            f"labels of shape {labels.shape} do not fit outputs of shape {outputs.shape}: give one "
            "number for each output"
        )
    return objective.loss(outputs, targets)


def refuse_kind(objective: Objective, labels: ArrayLike, what: str = "labels") -> None:
    """Refuse numbers for a loss of classes, and classes for one of numbers.

    Raises:
      ValueError: names the setting to change.
    """
    classes = jnp.issubdtype(jnp.asarray(labels[:1]).dtype, jnp.integer)  # pyright: ignore[reportIndexIssue]
    if classes and not objective.classes:
        raise ValueError(
            f"{what} are integer classes, but objective={objective.name!r} reads numbers: set "
            "objective='cross_entropy', or give labels.astype(float)"
        )
    if objective.classes and not classes:
        raise ValueError(
            f"{what} are numbers, but objective={objective.name!r} reads integer classes: set "
            "objective='squared_error', 'sigmoid' or 'poisson'"
        )


def _count(objective: Objective, labels: jax.Array) -> jax.Array | int:
    """What a batch's loss is divided by: labels that count, or tokens of numbers."""
    if objective.classes:
        return jnp.maximum((labels >= 0).sum(), 1)
    return math.prod(token_shape(labels))


def initial_params(
    module: Any, key: jax.Array, inputs: Any, layout: Callable[[Any], Any] | None = None
) -> Params:
    """Fresh parameters of a linen module.

    Args:
      module: the module.
      key: random key.
      inputs: arrays or shapes of the module's inputs, of which nothing is read.
      layout: function of the parameters' shapes that gives their shardings; None for one device.
    """
    one = jnp.zeros((1, *inputs.shape[1:]), jax.dtypes.canonicalize_dtype(inputs.dtype))
    if layout is None:
        return jax.jit(module.init)(key, one)["params"]
    fresh = lambda key: module.init(key, one)["params"]  # noqa: E731
    return jax.jit(fresh, out_shardings=layout(jax.eval_shape(fresh, key)))(key)
