"""A run's base model: trained, calibrated on held-out examples, and restored."""

import functools
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
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import checkpoint
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import naming


def train_base(
    module: Any, splits: dict[str, Examples], settings: RunSettings, execution: Execution
) -> tuple[list[Any], dict[str, Any]]:
    """Train the base model and calibrate it on the split `calibration`.

    Returns:
      Parameters of the checkpoints, the model itself last; and the config to store beside them.
    """
    began, held_out, train = time.monotonic(), splits["calibration"], splits["train"]
    checkpoints, rates = models.pretrain(
        module, train.inputs, train.labels, settings.train, settings.num_checkpoints,
        progress=execution.progress, keep=execution.keep,
    )  # fmt: skip
    forward = jax.jit(lambda params, x: module.apply({"params": params}, x)[0])
    logits = np.asarray(forward(checkpoints[-1], jnp.asarray(held_out.inputs)))
    calibration = models.calibrate(settings.train.objective, logits, np.asarray(held_out.labels))
    return checkpoints, {
        "model": settings.model,
        "train": settings.train,
        **calibration._asdict(),
        "learning_rates": rates,
        "seconds": time.monotonic() - began,
    }


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
    fresh = functools.partial(models.initial_params, module, inputs=jnp.asarray(one))
    whole = meshes.replicated(mesh)
    like = jax.tree.map(
        lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=whole),
        [jax.eval_shape(fresh, jax.random.key(0))] * settings.num_checkpoints,
    )
    params, config = checkpoint.restore(folder, like)
    params = jax.tree.map(lambda v: jnp.asarray(meshes.fetch(v)), params)
    with naming(folder, "settings of a model", "remove the folder to have it trained again"):
        rates = tuple(config["learning_rates"])
        calibration = models.Calibration(config["temperature"], config.get("variance"))
    objective = calibration.objective(settings.train.objective)
    model = Model(module, tuple(params), rates, calibration.temperature, objective)
    return model, config
