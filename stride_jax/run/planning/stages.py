"""The stages of a run as compiled programs over a mesh, from settings and shapes alone.

Every program is the one that the run itself calls; estimated here are the amount of data, and the
tap that would be chosen.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax import measure, models, recovery, taps
from stride_jax import operators as ops
from stride_jax.adapters import from_model
from stride_jax.data import ShardSettings, load_shards
from stride_jax.evaluation import BankSettings, retrain
from stride_jax.examples import Examples, token_shape
from stride_jax.fitting import fit_programs
from stride_jax.frozen import FrozenModel, resolve
from stride_jax.models.pretrain import program as training_program
from stride_jax.objectives import named_objective
from stride_jax.observed import observed_source
from stride_jax.operators import joint
from stride_jax.run.planning.costs import StageCost, cost
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.programs import shape
from stride_jax.runtime.settings import build


@dataclasses.dataclass(frozen=True)
class Extent:
    """The amount of data; the section `plan` of a config.

    Attributes:
      num_train: N.
      num_queries: Q.
      input_shape: shape of an example's inputs; `(T,)` for a language model.
      num_classes: C, classes, size of the vocabulary, or numbers of a label.
    """

    num_train: int
    num_queries: int
    input_shape: tuple[int, ...]
    num_classes: int

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_queries, self.num_classes, *self.input_shape) < 1:
            raise ValueError(f"{self}: every number must be at least 1")


def extent_of(values: Mapping[str, Any]) -> Extent:
    """The section `plan` of a config, completed by the section `text` or `shards`.

    Raises:
      ValueError: numbers that neither of them gives, or shards that are not there; names them.
    """
    given, text = dict(values.get("plan") or {}), values.get("text")
    if text:
        given.setdefault("num_train", text.get("max_train"))
        given.setdefault("num_queries", text.get("num_query", 200))
        given.setdefault("input_shape", (text.get("length", 64),))
        given.setdefault("num_classes", text.get("vocab_size", 1024))
    names = ("num_train", "num_queries", "input_shape", "num_classes")
    if (shards := values.get("shards")) and not all(given.get(name) for name in names):
        given = _shard_numbers(shards) | given
    if missing := [name for name in names if not given.get(name)]:
        raise ValueError(
            f"config.plan lacks {', '.join(missing)}: a plan reads no data, so give these numbers "
            "in the config"
        )
    return build(Extent, given, "config.plan")


def _shard_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a prepared corpus says of itself: of its tokens, none are read."""
    splits = load_shards(build(ShardSettings, values, "config.shards", from_text=True))
    return {
        "num_train": len(splits.train.rows),
        "num_queries": len(splits.query.rows),
        "input_shape": (splits.train.stream.length,),
        "num_classes": splits.tokenizer.vocab_size,
    }


@dataclasses.dataclass(frozen=True)
class Scene:
    """Inputs of every stage's compilation: shapes of the parameters and of one example."""

    settings: RunSettings
    extent: Extent
    execution: Execution
    frozen: FrozenModel
    one: Examples
    basis: ops.Basis

    @property
    def mesh(self) -> Mesh:
        assert self.execution.mesh is not None
        return self.execution.mesh


def plan(settings: RunSettings, extent: Extent, mesh: Mesh) -> list[StageCost]:
    """Compile every stage's program for a mesh of fake devices, and read its costs.

    Args:
      settings: settings of the run; of their `mesh` only `parameters` is read.
      extent: amount of data.
      mesh: devices of the CPU in place of the real ones.

    Returns:
      Costs of the pass over the training set and of the solution, or of joint training, site by
      site; of measuring, by hash of recovery, and, where the settings have them, of the models that
      tell the unit and of the bank.

    Raises:
      ValueError: settings that a real run would refuse too.
    """
    scene = scene_of(settings, extent, mesh)
    names = scene.frozen.sites
    fitted = _training if settings.index.fit == "joint" else _closed_form
    costs = [one for name in names for one in fitted(scene, name)]
    costs += [_measurement(scene, name) for name in names]
    if scene.frozen.settings.design.kind == "hash":
        costs.append(_recovery(scene))
    if settings.unit is not None:
        costs.append(_bank(scene, settings.unit.bank, "unit"))
    return costs if settings.bank is None else [*costs, _bank(scene, settings.bank, "bank")]


def index_bytes(settings: RunSettings, extent: Extent, mesh: Mesh) -> int:
    """Bytes of the K steering matrices of all sites, on all devices together."""
    scene = scene_of(settings, extent, mesh)
    k = settings.index.design.num_subsets
    return sum(4 * k * (scene.basis.rank * s.width + 1) for s in scene.frozen.sites.values())


def scene_of(
    settings: RunSettings,
    extent: Extent,
    mesh: Mesh,
    unnamed: Callable[..., str] = max,
) -> Scene:
    """Shapes of a run's model, sites and basis.

    Args:
      settings, extent, mesh: as in `plan`.
      unnamed: what chooses a tap where none is named: `max` the widest, `min` the narrowest.
    """
    module = models.make_model(settings.model, extent.num_classes)
    tokens = settings.model.kind in ("gpt", "llama")
    inputs = np.zeros((1, *extent.input_shape), np.int32 if tokens else np.float32)
    objective = named_objective(settings.train.objective)
    labels = np.zeros((1, *extent.input_shape) if tokens else (1,), np.int32)
    if not objective.classes:
        labels = np.zeros((*labels.shape, extent.num_classes), np.float32)
    token_rows = token_shape(labels)
    fresh = functools.partial(models.initial_params, module, inputs=jnp.asarray(inputs))
    params = jax.eval_shape(fresh, jax.eval_shape(lambda: jax.random.key(0)))
    rule = meshes.sharded_parameters(params, mesh)
    if settings.execution.mesh.parameters == "replicated":
        rule = jax.tree.map(lambda _: meshes.replicated(mesh), params)
    params = jax.tree.map(lambda v, where: shape(v.shape, v.dtype, where), params, rule)
    tapped = taps.with_objective(taps.with_temperature(from_model(module), 1.0), objective)
    shapes = jax.eval_shape(tapped.forward, params, inputs)[1]
    own = settings.index
    if not own.taps:  # the choice depends on the weights
        chosen = unnamed(shapes, key=lambda name: math.prod(shapes[name].shape[1:]))
        own = dataclasses.replace(own, taps=(chosen,))
    own = dataclasses.replace(
        own, design=own.design.resolved((extent.num_train, *token_rows[1:]), own.fit)
    )
    frozen = resolve(tapped, params, inputs, own)
    widths = {name: math.prod(shapes[name].shape) // math.prod(token_rows) for name in own.taps}
    basis = ops.basis_shapes(own.basis, widths)
    execution = Execution(
        mesh, memory=settings.execution.memory, batch_size=settings.execution.batch_size
    )
    one = Examples.trusted(inputs, labels, np.array(["one"]), None)
    return Scene(settings, extent, execution, frozen, one, basis)


def _closed_form(scene: Scene, name: str) -> list[StageCost]:
    programs = fit_programs(
        scene.frozen, name, scene.basis, scene.one, scene.extent.num_train, scene.execution
    )
    return [cost(f"{stage}, {name}", program) for stage, program in programs.items()]


def _training(scene: Scene, name: str) -> list[StageCost]:
    """A step of joint training, on the frozen model's output for all examples."""
    frozen, site = scene.frozen, scene.frozen.sites[name]
    source = frozen.source(scene.one)
    count = scene.extent.num_train
    data = jax.tree.map(lambda v: shape((count, *v.shape[1:]), v.dtype), source.data)
    observed, context = jax.eval_shape(source.forward, source.params, site, data)
    context.pop("errors", None)
    params = frozen.params if site.reads_params else None
    program = joint.program(
        frozen.settings.design, site, scene.basis, observed_source(observed, context, params),
        frozen.settings.joint, scene.execution,
    )  # fmt: skip
    return [cost(f"training, {name}", program)]


def _measurement(scene: Scene, name: str) -> StageCost:
    frozen, site, rank = scene.frozen, scene.frozen.sites[name], scene.basis.rank
    k = frozen.settings.design.num_subsets
    signs = frozen.signs_C if name == "logit" else None
    matrices = shape((k, rank, site.width))
    operators = ops.Operators(scene.basis, matrices, shape((k,)), signs)
    program = measure.program(
        site, operators, frozen.source(scene.one), scene.extent.num_queries,
        scene.settings.read.measure, scene.execution,
    )  # fmt: skip
    return cost(f"measure, {name}", program)


def _recovery(scene: Scene) -> StageCost:
    """A round for the queries of one device; queries are divided among devices."""
    settings, group = scene.settings, scene.settings.read.measure.group
    tokens = math.prod(scene.one.token_shape[1:])
    rows = scene.extent.num_queries * (-(-tokens // group) if group else 1)
    program = recovery.program(
        scene.extent.num_train, settings.index.design, -(-rows // scene.mesh.size),
        settings.read.lasso, weighted=settings.read.prior > 0,
        execution=dataclasses.replace(scene.execution, mesh=meshes.single_mesh()),
    )  # fmt: skip
    return cost("recovery, a round", program)


def _bank(scene: Scene, bank: BankSettings, name: str) -> StageCost:
    """Retrained models that one device trains together, or a step of one over all devices."""
    s, extent, one = scene.settings, scene.extent, scene.one
    devices = math.gcd(bank.models_at_once, scene.mesh.size)
    members = round(bank.alpha * extent.num_train)
    if bank.kind == "groups":
        members = extent.num_train - extent.num_train // bank.num_subsets

    module = models.make_model(s.model, extent.num_classes)
    if s.execution.mesh.parameters == "sharded":
        own = training_program(
            module, one.inputs, one.labels, members, s.train, scene.mesh, "sharded"
        )
        total = bank.num_subsets * bank.num_seeds
        own = dataclasses.replace(own, calls=own.calls * total)
        return cost(f"{name}, a step of one model", own)

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
        (bank.models_at_once // devices, members), scene.mesh.size,
        bank.num_subsets * bank.num_seeds,
    )  # fmt: skip
    return cost(f"{name}, models together", program)
