"""The stages of a run as programs over a mesh, from settings and shapes alone.

Every program is the one that the run itself calls. With each stands what a process holds for it on
its host: the largest of what is surely there at once, whatever the readers and the runtime take.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from stride_jax import measure, models, recovery
from stride_jax import operators as ops
from stride_jax.evaluation import BankSettings, retrain
from stride_jax.fitting import fit_programs
from stride_jax.models.order import PIECE_BYTES
from stride_jax.models.pretrain import devices_for
from stride_jax.models.pretrain import program as training_program
from stride_jax.observed import activations_program, observed_source
from stride_jax.operators import joint
from stride_jax.run.planning.costs import Stage, StageCost, cost
from stride_jax.run.planning.stages import Extent, Scene, scene_of
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.flops import bytes_held
from stride_jax.runtime.programs import shape
from stride_jax.taps import only

_FLOAT = 4


def plan(settings: RunSettings, extent: Extent, mesh: Mesh) -> list[StageCost]:
    """Compile every stage's program for a mesh, and read its costs.

    Args:
      settings: settings of the run; of their `mesh` only `parameters` is read.
      extent: amount of data.
      mesh: devices of the CPU in place of the real ones, or of a topology.

    Returns:
      Costs of the stages, in the order of `planned_stages`.

    Raises:
      ValueError: settings that a real run would refuse too.
    """
    return [cost(stage) for stage in planned_stages(settings, extent, mesh)]


def planned_stages(settings: RunSettings, extent: Extent, mesh: Mesh) -> Iterator[Stage]:
    """The stages of a run, not compiled yet.

    Args:
      settings, extent, mesh: as in `plan`.

    Yields:
      Pre-training, where the model is trained; its loading; the sample that the basis is fitted on;
      the pass over the training set and the solution, or joint training, site by site; measuring;
      by hash the table of the design, and recovery; and, where the settings have them, the models
      that tell the unit, and the bank.
    """
    scene = scene_of(settings, extent, mesh)
    names, joint_fit = scene.frozen.sites, settings.index.fit == "joint"
    if settings.train.epochs:
        yield _pretraining(scene)
    yield _loading(scene)
    if not joint_fit:
        yield _sample(scene)
    for name in names:
        yield from (_training if joint_fit else _closed_form)(scene, name)
    for name in names:
        yield _measurement(scene, name)
    if scene.frozen.settings.design.kind == "hash":
        yield _recovery(scene)
    if settings.unit is not None:
        yield _bank(scene, settings.unit.bank, "unit")
    if settings.bank is not None:
        yield _bank(scene, settings.bank, "bank")


def _processes(mesh: Mesh) -> int:
    """Processes that share the devices."""
    return len({device.process_index for device in mesh.devices.flat})


def _first(mesh: Mesh) -> Mesh:
    """The first device alone, for work that devices do not share."""
    return meshes.arranged((1, 1), list(mesh.devices.flat[:1]))


def _pretraining(scene: Scene) -> Stage:
    """A step of training, and on the host the order of the examples and two pieces of batches."""
    settings, one = scene.settings, scene.one
    module = models.make_model(settings.model, scene.extent.num_classes)
    parameters = settings.execution.mesh.parameters
    inputs, labels = (shape(v.shape, v.dtype) for v in (one.inputs, one.labels))
    mesh = devices_for(module, inputs, settings.train, scene.execution, parameters).mesh
    mesh = scene.mesh if mesh is not None and mesh.size == scene.mesh.size else _first(scene.mesh)
    program = training_program(
        module, inputs, labels, scene.extent.num_train, settings.train, mesh, parameters
    )
    row = one.inputs.nbytes + one.labels.nbytes
    piece = max(PIECE_BYTES, program.batch * row)
    held = _FLOAT * scene.extent.num_train + 2 * piece / _processes(scene.mesh)
    return Stage("pre-training, a step", program, held)


def _loading(scene: Scene) -> Stage:
    """The checkpoints of the base model, each device its part; the host reads array by array."""
    count, params = scene.settings.num_checkpoints, scene.frozen.params
    here = scene.mesh.size / _processes(scene.mesh)
    largest = max(bytes_held(leaf) for leaf in jax.tree.leaves(params))
    return Stage("loading the model", None, here * largest, [params] * count)


def _sample(scene: Scene) -> Stage:
    """The taps of the sample, gathered on every host."""
    settings, tokens = scene.frozen.settings, math.prod(scene.one.token_shape[1:])
    count = min(scene.extent.num_train, -(-settings.basis.sample // tokens))
    tapped, params = only(scene.frozen.tapped, settings.every_tap()), scene.frozen.params
    program = activations_program(tapped, params, scene.one, count, scene.execution)
    depth = max(sum(v.shape[0] for v in own.mean.values()) for own in scene.bases.values())
    # Taps, their product, and its eigenvectors in float64.
    held = 2 * _FLOAT * count * tokens * depth + 3 * 8 * depth**2
    return Stage("basis, the sample", program, held, mesh=scene.mesh)


def _closed_form(scene: Scene, name: str) -> Iterator[Stage]:
    programs = fit_programs(
        scene.frozen, name, scene.bases[name], scene.one, scene.extent.num_train, scene.execution
    )
    for stage, program in programs.items():
        held = 0.0
        if stage == "pass":
            batch = program.args[-1]
            # A batch's rows, the whole table of its sums, and three numbers of every example.
            rows = program.batch * (scene.one.inputs.nbytes + scene.one.labels.nbytes)
            table = 0 if batch.rows_WxSxK is None else _FLOAT * math.prod(batch.rows_WxSxK.shape)
            held = rows / _processes(scene.mesh) + table + 3 * _FLOAT * scene.extent.num_train
        yield Stage(f"{stage}, {name}", program, held)


def _training(scene: Scene, name: str) -> Iterator[Stage]:
    """A step of joint training, on the frozen model's output for all examples."""
    frozen, site = scene.frozen, scene.frozen.sites[name]
    source = frozen.source(scene.one)
    count = scene.extent.num_train
    data = jax.tree.map(lambda v: shape((count, *v.shape[1:]), v.dtype), source.data)
    observed, context = jax.eval_shape(source.forward, source.params, site, data)
    context.pop("errors", None)
    params = frozen.params if site.reads_params else None
    program = joint.program(
        frozen.settings.design, site, scene.bases[name], observed_source(observed, context, params),
        frozen.settings.joint, scene.execution,
    )  # fmt: skip
    yield Stage(f"training, {name}", program)


def _measurement(scene: Scene, name: str) -> Stage:
    frozen, site, basis = scene.frozen, scene.frozen.sites[name], scene.bases[name]
    k = frozen.settings.design.num_subsets
    signs = frozen.signs_C if name == "logit" else None
    matrices = shape((k, basis.rank, site.width))
    operators = ops.Operators(basis, matrices, shape((k,)), signs)
    program = measure.program(
        site, operators, frozen.source(scene.one), scene.extent.num_queries,
        scene.settings.read.measure, scene.execution,
    )  # fmt: skip
    rows = scene.extent.num_queries * scene.token_groups
    return Stage(f"measure, {name}", program, _FLOAT * rows * k)


def _recovery(scene: Scene) -> Stage:
    """A round for the queries of one device; queries are divided among devices."""
    settings, design = scene.settings, scene.settings.index.design
    rows = scene.extent.num_queries * scene.token_groups
    program = recovery.program(
        scene.extent.num_train, design, -(-rows // scene.mesh.size),
        settings.read.lasso, weighted=settings.read.prior > 0,
        execution=dataclasses.replace(scene.execution, mesh=_first(scene.mesh)),
    )  # fmt: skip
    # The membership, and the table of its columns as the devices get it.
    entry = _FLOAT + (2 if design.num_subsets < 2**15 else 4)
    table = scene.extent.num_train * design.degree * entry
    return Stage("recovery, a round", program, table + _FLOAT * rows * design.num_subsets)


def _bank(scene: Scene, bank: BankSettings, name: str) -> Stage:
    """Retrained models that one device trains together; or a step of one, split over all."""
    s, extent, one = scene.settings, scene.extent, scene.one
    devices = math.gcd(bank.models_at_once, scene.mesh.size)
    members = round(bank.alpha * extent.num_train)
    if bank.kind == "groups":
        members = extent.num_train - extent.num_train // bank.num_subsets
    module = models.make_model(s.model, extent.num_classes)
    total, held = bank.num_subsets * bank.num_seeds, members * _FLOAT * bank.num_subsets
    if s.execution.mesh.parameters == "sharded":
        inputs, labels = (shape(v.shape, v.dtype) for v in (one.inputs, one.labels))
        step = training_program(module, inputs, labels, members, s.train, scene.mesh, "sharded")
        step = dataclasses.replace(step, calls=step.calls * total)
        return Stage(f"{name}, a step of one model", step, held)

    def rows(v: np.ndarray, count: int) -> Any:
        return shape((count, *v.shape[1:]), v.dtype)

    data = {
        "inputs": rows(one.inputs, extent.num_train),
        "labels": rows(one.labels, extent.num_train),
        "query_inputs": rows(one.inputs, extent.num_queries),
        "query_labels": rows(one.labels, extent.num_queries),
    }
    program = retrain.program(
        module, s.train, data,
        (bank.models_at_once // devices, members), (scene.mesh.size, _first(scene.mesh)),
        total,
    )  # fmt: skip
    return Stage(f"{name}, models together", program, held)
