"""Many models trained at once under `vmap`, and their outputs on the queries.

Letters of its own: B models trained together, J models in all.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stride_jax.examples import Examples
from stride_jax.models.train import TrainSettings, fit, initial_params, losses
from stride_jax.objectives import margin, named_objective
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.programs import Program, shape, shapes_everywhere
from stride_jax.runtime.progress import Progress, silent


class Start(NamedTuple):
    """Parameters that retrained models start from.

    Attributes:
      digest: hash of their contents.
      load: function that gives them as numpy arrays.
    """

    digest: str
    load: Callable[[], Any]


class Retraining(NamedTuple):
    """What models are retrained from, and what they are asked about.

    Attributes:
      module: linen model whose call returns `(logits, activations)`.
      train: training examples.
      query: queries.
      training: recipe of the base model; its seed is not used.
      start: what models are fine-tuned from; None for fresh parameters of each model's seed.
      mesh: devices that train each model together, its parameters split over them; None for models
        that train together, each on one device.
    """

    module: Any
    train: Examples
    query: Examples
    training: TrainSettings
    start: Start | None = None
    mesh: Mesh | None = None


class Outputs(NamedTuple):
    """Outputs of retrained models on the queries.

    Attributes:
      losses_BxQ: the recipe's loss in nats, summed over a sequence's tokens.
      margins_BxQ: `o_y − logsumexp_{c≠y} o_c`, the log odds `log p/(1 − p)` of the true class,
        summed likewise; nan where the loss is not of classes.
    """

    losses_BxQ: jax.Array | np.ndarray
    margins_BxQ: jax.Array | np.ndarray


def model_keys(root_seed: int, subset_B: np.ndarray, seed_B: np.ndarray) -> jax.Array:
    """Key of each model: a function of (root seed, subset, seed) alone."""
    root = jax.random.key(root_seed)
    fold = jax.vmap(lambda j, e: jax.random.fold_in(jax.random.fold_in(root, j), e))
    return fold(jnp.asarray(subset_B, jnp.uint32), jnp.asarray(seed_B, jnp.uint32))


def device_data(setup: Retraining) -> dict[str, Any]:
    """Training examples, queries and start on the device, as `train_and_score` takes them."""
    train, query = setup.train, setup.query
    start = {} if setup.start is None else {"start": jax.device_put(setup.start.load())}
    return start | {
        "inputs": jnp.asarray(train.inputs),
        "labels": jnp.asarray(train.labels),
        "query_inputs": jnp.asarray(query.inputs),
        "query_labels": jnp.asarray(query.labels),
    }


@functools.partial(jax.jit, static_argnames=("module", "training", "mesh"))
def train_and_score(
    data: dict[str, Any],
    members_BxS: jax.Array,
    keys_B: jax.Array,
    *,
    module: Any,
    training: TrainSettings,
    mesh: Mesh,
) -> Outputs:
    """Train a model on each row of `members_BxS` and evaluate it on every query.

    Args:
      data: arrays from `device_data`.
      members_BxS: training rows of each model.
      keys_B: keys of each model's initial parameters and order.
      module, training: as in `Retraining`.
      mesh: devices that share the models, from `mesh_of_models`.

    Returns:
      Losses and margins, `[B, Q]`.
    """

    def one(data: dict[str, Any], members_S: jax.Array, key: jax.Array) -> Outputs:
        init_key, order_key = jax.random.split(key)
        fresh = functools.partial(initial_params, module, init_key, data["inputs"])
        params = data["start"] if "start" in data else fresh()
        forward = lambda p, x: module.apply({"params": p}, x)[0]  # noqa: E731
        params = fit(
            forward, params, data["inputs"], data["labels"], members_S, order_key, training
        )
        return answers(
            module, training.objective, params, data["query_inputs"], data["query_labels"]
        )

    own = P(mesh.axis_names)
    return jax.shard_map(
        jax.vmap(one, in_axes=(None, 0, 0)), mesh=mesh, in_specs=(P(), own, own), out_specs=own,
        check_vma=False,
    )(data, members_BxS, keys_B)  # fmt: skip


def answers(module: Any, name: str, params: Any, inputs: jax.Array, labels: jax.Array) -> Outputs:
    """One model's losses and margins on some queries, `[Q]`; traced.

    Args:
      module: as in `Retraining`.
      name: objective.
      params: of the model.
      inputs, labels: the queries.
    """
    logits, objective = module.apply({"params": params}, inputs)[0], named_objective(name)
    loss = losses(objective, logits, labels)
    own = margin(logits, labels) if objective.classes else jnp.full_like(loss, jnp.nan)
    return Outputs(*(v.reshape(len(labels), -1).sum(axis=1) for v in (loss, own)))


def program(
    module: Any,
    training: TrainSettings,
    data: dict[str, Any],
    members: tuple[int, int],
    devices: tuple[int, Mesh],
    total: int,
) -> Program:
    """The compiled step of `train_and_score` on one device of several that share the models.

    Args:
      module, training: as in `Retraining`.
      data: arrays from `device_data`, or their shapes.
      members: models trained together on one device, and members per subset.
      devices: number of devices, and one of them.
      total: models of the whole bank.
    """
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members[0]))
    count, alone = devices
    args = shapes_everywhere((data, shape(members, jnp.int32), keys), meshes.replicated(alone))
    statics = {"module": module, "training": training, "mesh": alone}
    calls = -(-total // (members[0] * count))
    return Program(train_and_score, args, statics, calls, members[0])


def mesh_of_models(models_at_once: int) -> Mesh:
    """A mesh of as many of this process's devices as divide the number of models evenly."""
    devices = jax.local_devices()
    return meshes.arranged((1, math.gcd(models_at_once, len(devices))), devices)


def chunks(total: int, size: int) -> list[tuple[int, int]]:
    """`(start, stop)` of consecutive chunks of at most `size`.

    >>> chunks(5, 2)
    [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(start + size, total)) for start in range(0, total, size)]


def retrain(
    setup: Retraining,
    members_JxS: np.ndarray,
    keys_J: jax.Array,
    *,
    models_at_once: int,
    progress: Progress = silent,
    desc: str = "retrain",
) -> Iterator[Outputs]:
    """`train_and_score` in chunks of `models_at_once`.

    All chunks have one shape, so one program is compiled: the last one repeats its last model.

    Args:
      setup: model, data and recipe.
      members_JxS: training rows of each model.
      keys_J: keys of each model's initial parameters and order.
      models_at_once: models per chunk.
      progress: wraps the chunks.
      desc: label of the progress bar.

    Yields:
      Losses and margins of each chunk's models, `[B, Q]` numpy.
    """
    data, total = device_data(setup), len(members_JxS)
    size = min(models_at_once, total)
    pieces = chunks(total, size)
    for start, stop in progress(pieces, desc=desc, total=len(pieces)):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        out = train_and_score(
            data, jnp.asarray(members_JxS[rows]), keys_J[rows],
            module=setup.module, training=setup.training, mesh=mesh_of_models(size),
        )  # fmt: skip
        yield Outputs(*(np.asarray(values)[: stop - start] for values in out))
