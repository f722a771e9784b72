"""Training as one pure function, so that many models train at once under `vmap`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

Params = Any
Forward = Callable[[Params, jax.Array], jax.Array]
"""`(params, inputs) -> logits`."""


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a base model, and every model of the bank, is trained.

    Attributes:
      epochs: passes over the examples.
      batch_size: examples a step.
      optimizer: `sgd` (momentum .9), `adamw` or `muon` (matrices; adamw for the rest).
      learning_rate: peak; a cosine takes it to zero.
      warmup: share of the steps in which the learning rate rises to its peak.
      accumulation: parts that a batch's gradient is computed in, one after the other.
      weight_decay: of adamw, or added to the gradient of sgd.
      seed: of the initial parameters and the order of examples.
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    weight_decay: float = 0.0
    warmup: float = 0.0
    accumulation: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw", "muon"):
            raise ValueError(f"optimizer={self.optimizer!r}: use 'sgd', 'adamw' or 'muon'")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs={self.epochs}, batch_size={self.batch_size}: both at least 1")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup} is a share of the steps, in [0, 1)")
        if self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size={self.batch_size} can't be cut into accumulation="
                f"{self.accumulation} equal parts"
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
        return optax.adamw(rate, weight_decay=settings.weight_decay)
    if settings.optimizer == "muon":
        return optax.contrib.muon(rate, weight_decay=settings.weight_decay)
    return optax.chain(
        optax.add_decayed_weights(settings.weight_decay), optax.sgd(rate, momentum=0.9)
    )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`−log softmax(o)_y` in nats; logits `[..., C]`, labels and result `[...]`.

    A label of −1 does not count: its loss is 0.
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(labels < 0, 0.0, loss)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Log odds of the true class, `o_y − logsumexp_{c≠y} o_c = log p / (1 − p)`.

    Logits `[..., C]`, labels and result `[...]`; 0 for a label of −1.

    >>> round(float(margin(jnp.log(jnp.array([[0.75, 0.25]])), jnp.array([0]))[0]), 4)  # log 3
    1.0986
    """
    counted = jnp.maximum(labels, 0)
    true = jax.nn.one_hot(counted, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(true, -jnp.inf, logits), axis=-1)
    own = jnp.take_along_axis(logits, counted[..., None], axis=-1)[..., 0]
    return jnp.where(labels < 0, 0.0, own - others)


def fit(
    forward: Forward,
    params: Params,
    inputs: ArrayLike,
    labels_N: ArrayLike,
    members_S: ArrayLike,
    key: jax.Array,
    settings: TrainSettings,
) -> Params:
    """Train on the rows `members_S`: the last checkpoint of `trajectory`, which see."""
    return trajectory(forward, params, inputs, labels_N, members_S, key, settings, 1)[0][0]


def trajectory(
    forward: Forward,
    params: Params,
    inputs: ArrayLike,
    labels_N: ArrayLike,
    members_S: ArrayLike,
    key: jax.Array,
    settings: TrainSettings,
    num_checkpoints: int,
) -> list[tuple[Params, jax.Array]]:
    """Train on the rows `members_S`, every row once an epoch in a fresh order.

    The epochs' orders are joined and cut into batches, so no row is dropped at an epoch's end
    (only fewer than `batch_size` rows at the very end).

    Args:
      forward: `(params, inputs) -> logits`.
      params: initial parameters.
      inputs: `[N, ...]` all examples.
      labels_N: `[N]` classes or `[N, T]` next tokens; −1 does not count.
      members_S: `[S]` rows to train on.
      key: of the order.
      settings: optimiser and schedule; the seed is not used here.
      num_checkpoints: equal stretches of training, one checkpoint at the end of each.

    Returns:
      For each checkpoint, its parameters and the mean learning rate of its stretch. Pure: `vmap`
      over `params`, `members_S` and `key` trains many models.
    """
    inputs, labels_N, members_S = map(jnp.asarray, (inputs, labels_N, members_S))
    size = members_S.shape[0]
    batch = min(settings.batch_size, size)
    num_steps = settings.epochs * size // batch
    tx = optimizer(settings, num_steps)
    orders = jax.vmap(lambda k: jax.random.permutation(k, members_S))(
        jax.random.split(key, settings.epochs)
    )
    rows = orders.reshape(-1)[: num_steps * batch].reshape(num_steps, batch)

    def total(params: Params, rows_B: jax.Array) -> jax.Array:
        return cross_entropy(forward(params, inputs[rows_B]), labels_N[rows_B]).sum()

    def gradient(params: Params, rows_B: jax.Array) -> Params:
        count = jnp.maximum((labels_N[rows_B] >= 0).sum(), 1)
        if settings.accumulation == 1 or batch % settings.accumulation:  # or a small last set
            return jax.tree.map(lambda g: g / count, jax.grad(total)(params, rows_B))
        parts = rows_B.reshape(settings.accumulation, -1)
        grads = jax.lax.map(lambda rows: jax.grad(total)(params, rows), parts)
        return jax.tree.map(lambda g: g.sum(axis=0) / count, grads)

    def step(state: tuple[Params, Any], rows_B: jax.Array) -> tuple[tuple[Params, Any], None]:
        params, moments = state
        updates, moments = tx.update(gradient(params, rows_B), moments, params)
        return (optax.apply_updates(params, updates), moments), None

    state, out = (params, tx.init(params)), []
    rates = jnp.asarray(schedule(settings, num_steps)(jnp.arange(num_steps)))
    for part in np.array_split(np.arange(num_steps), num_checkpoints):
        state, _ = jax.lax.scan(step, state, rows[part[0] : part[-1] + 1])
        out.append((state[0], rates[part].mean()))
    return out


def initial_params(module: Any, key: jax.Array, inputs: jax.Array) -> Params:
    """Fresh parameters of a linen module for inputs of this shape."""
    return jax.jit(module.init)(key, jnp.zeros((1, *inputs.shape[1:]), inputs.dtype))["params"]
