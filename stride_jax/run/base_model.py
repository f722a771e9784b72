"""A run's base model: trained or taken from elsewhere, calibrated, and restored."""

import functools
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax import models
from stride_jax.baselines.model import Model
from stride_jax.data import Examples
from stride_jax.frozen import evenly_spaced
from stride_jax.run import model_source
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import checkpoint
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import naming


def train_base(
    module: Any, splits: dict[str, Examples], settings: RunSettings, execution: Execution
) -> tuple[list[Any], dict[str, Any]]:
    """Train or fine-tune the base model, or take it as it is; calibrate it on `calibration`.

    Returns:
      Parameters of the checkpoints, the model itself last; and the config to store beside them.
    """
    began, held_out, train = time.monotonic(), splits["calibration"], splits["train"]
    parameters, mesh = settings.execution.mesh.parameters, execution.mesh
    if settings.train.epochs:
        execution = models.devices_for(module, train.inputs, settings.train, execution, parameters)
        mesh = execution.mesh
    if settings.train.epochs:
        checkpoints, rates = models.pretrain(
            module, train.inputs, train.labels, settings.train, settings.num_checkpoints,
            start=starting_params(module, train.inputs[:1], settings, mesh),
            parameters=parameters, execution=execution,
        )  # fmt: skip
    else:
        checkpoints = [starting_params(module, train.inputs[:1], settings, mesh)]
        rates = [1.0]
    logits, labels = _outputs(module, checkpoints[-1], held_out, mesh or meshes.single_mesh())
    calibration = models.calibrate(settings.train.objective, logits, labels)
    return checkpoints, {
        "model": settings.model,
        "train": settings.train,
        "num_classes": module.num_classes,
        **calibration._asdict(),
        "learning_rates": rates,
        "seconds": time.monotonic() - began,
    }


# Outputs that a model is calibrated on; of more, some tokens of each sequence are taken.
_OUTPUTS = 1 << 26


def _outputs(
    module: Any, params: Any, held_out: Examples, mesh: Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs on held-out examples and their labels; of long sequences every n-th token's."""
    inputs, labels = np.asarray(held_out.inputs), np.asarray(held_out.labels)
    total = math.prod(held_out.token_shape) * module.num_classes
    every = -(-total // _OUTPUTS) if len(held_out.token_shape) > 1 else 1

    @jax.jit
    def forward(params: Any, x: jax.Array) -> jax.Array:
        outputs = module.apply({"params": params}, x)[0]
        return outputs if every == 1 else outputs[:, ::every]

    if every == 1:
        return meshes.fetch(forward(params, inputs)), labels
    size, params = mesh.size, meshes.everywhere(params, mesh)
    batches = (
        meshes.place(meshes.pad_rows(inputs[i : i + size], size), meshes.over_examples(mesh))
        for i in range(0, len(inputs), size)
    )
    outputs = np.concatenate([meshes.fetch(forward(params, x)) for x in batches])
    return outputs[: len(inputs)], labels[:, ::every]


# Tokens of the training set that are compared with the calibration split.
_COMPARED = 1 << 13


def doubt_of(model: Model, params: Any, splits: dict[str, Examples], mesh: Mesh) -> float:
    """Doubt by the mean losses on the calibration split and on part of the training set.

    Args:
      model: the calibrated base model.
      params: its parameters, laid out as they will be used.
      splits: of the data.
      mesh: devices.
    """

    def nats(examples: Examples) -> float:
        outputs, labels = _outputs(model.module, params, examples, mesh)
        scaled = jnp.asarray(outputs / model.temperature)
        losses = model.objective.loss(scaled, model.objective.targets(jnp.asarray(labels), scaled))
        counted = labels != -1 if model.objective.classes else np.ones(losses.shape)
        return float(losses.sum() / counted.sum())

    few = evenly_spaced(splits["train"], _COMPARED)
    return models.fit_doubt(nats(few), nats(splits["calibration"]))


def starting_params(module: Any, one: np.ndarray, settings: RunSettings, mesh: Mesh | None) -> Any:
    """Parameters of `model.init_from`, each device reading its own part; None without.

    Args:
      module: linen module.
      one: inputs of one example, as a batch.
      settings: those of the run.
      mesh: devices that the parameters are laid out over; None for numpy arrays.

    Raises:
      WeightsError: the module has other arrays than the weights.
    """
    if not settings.model.init_from:
        return None
    shapes = jax.eval_shape(_fresh(module, one), jax.random.key(0))
    rule = None if mesh is None else _layout(shapes, settings, mesh)
    params = model_source.load(settings.model, rule)
    if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, shapes):
        raise models.WeightsError(
            f"the model in init_from={settings.model.init_from!r} does not read these data: inputs "
            f"of shape {one.shape[1:]}, {module.num_classes} classes"
        )
    return params


def _fresh(module: Any, one: np.ndarray) -> Any:
    return functools.partial(models.initial_params, module, inputs=jnp.asarray(one))


def _layout(shapes: Any, settings: RunSettings, mesh: Mesh) -> Any:
    """Shardings of the parameters by `execution.mesh.parameters`."""
    return meshes.parameters_layout(shapes, settings.execution.mesh.parameters, mesh)


def restore_base(
    folder: pathlib.Path, module: Any, one: np.ndarray, settings: RunSettings, mesh: Mesh
) -> tuple[Model, dict[str, Any]]:
    """The stored base model with its checkpoints, and the config beside them.

    Args:
      folder: folder of the checkpoint.
      module: linen module.
      one: inputs of one example, as a batch.
      settings: those of the run: number of stored checkpoints, and the objective.
      mesh: devices that the checkpoint is read onto.
    """
    shapes = jax.eval_shape(_fresh(module, one), jax.random.key(0))
    like = jax.tree.map(
        lambda v, where: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where),
        shapes, _layout(shapes, settings, mesh),
    )  # fmt: skip
    params, config = checkpoint.restore(folder, [like] * settings.num_checkpoints)
    if settings.execution.mesh.parameters == "replicated" or jax.process_count() > 1:
        # Methods that one process runs alone read local arrays.
        params = jax.tree.map(lambda v: jnp.asarray(meshes.fetch(v)), params)
    with naming(folder, "settings of a model", "remove the folder to have it trained again"):
        rates = tuple(config["learning_rates"])
        calibration = models.Calibration(config["temperature"], config.get("variance"))
    objective = calibration.objective(settings.train.objective)
    recipe = settings.train if settings.train.epochs else None
    model = Model(module, tuple(params), rates, calibration.temperature, objective, recipe)
    return model, config
