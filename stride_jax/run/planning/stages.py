"""The stages of a run as compiled programs over a mesh, from settings and shapes alone."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax import measure as measures
from stride_jax import models, stride, taps
from stride_jax import operators as ops
from stride_jax.adapters import from_model
from stride_jax.corpus import Corpus, named_taps
from stride_jax.evaluation import retrain
from stride_jax.index import StrideSettings
from stride_jax.operators import curvature, joint, moments, steering
from stride_jax.operators.closed_form import solve_steps
from stride_jax.recovery import lasso, working_set
from stride_jax.recovery.columns import LassoState, layout
from stride_jax.run.planning.costs import StageCost, cost
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.settings import build

Shape = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much data there is; the section `plan` of a config.

    Attributes:
      num_train: N.
      num_queries: Q.
      input_shape: of an example; its tokens for a language model.
      num_classes: or size of the vocabulary.
    """

    num_train: int
    num_queries: int
    input_shape: tuple[int, ...]
    num_classes: int

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_queries, self.num_classes, *self.input_shape) < 1:
            raise ValueError(f"{self}: every number must be at least 1")


def extent_of(values: Mapping[str, Any]) -> Extent:
    """The section `plan` of a config, filled up with what the section `text` says.

    Raises:
      ValueError: numbers that neither of them gives; names them.
    """
    given, text = dict(values.get("plan", {})), values.get("text")
    if text:
        given.setdefault("num_train", text.get("max_train"))
        given.setdefault("num_queries", text.get("num_query", 200))
        given.setdefault("input_shape", (text.get("length", 64),))
        given.setdefault("num_classes", text.get("vocab_size", 1024))
    names = ("num_train", "num_queries", "input_shape", "num_classes")
    if missing := [name for name in names if not given.get(name)]:
        raise ValueError(
            f"config.plan lacks {', '.join(missing)}: a plan reads no data, so the config must say "
            "how much there is"
        )
    return build(Extent, given, "config.plan")


@dataclasses.dataclass(frozen=True)
class _Scene:
    """What every stage is compiled from."""

    settings: RunSettings
    stride: StrideSettings
    extent: Extent
    mesh: Mesh
    corpus: Corpus
    params: Any
    basis: ops.Basis
    signs_C: jax.Array | None

    def examples(self, data: dict[str, np.ndarray], count: int) -> dict[str, Shape]:
        """Abstract examples, split over all devices."""
        where = meshes.over_examples(self.mesh)
        return {n: Shape((count, *v.shape[1:]), _dtype(v), sharding=where) for n, v in data.items()}

    def everywhere(self, tree: Any) -> Any:
        """Abstract arrays on every device; those that say where they are keep it."""
        whole = meshes.replicated(self.mesh)
        return jax.tree.map(
            lambda v: (
                Shape(v.shape, _dtype(v), sharding=getattr(v, "sharding", None) or whole)
                if isinstance(v, Shape)
                else Shape(np.shape(v), _dtype(v), sharding=whole)
            ),
            tree,
        )


def _dtype(v: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(v.dtype)


def plan(
    settings: RunSettings, extent: Extent, mesh: Mesh, *, with_bank: bool = True
) -> list[StageCost]:
    """Compile every stage's program for a mesh of fake devices, and read what each takes.

    Args:
      settings: of the run; its own `mesh` is not looked at, but for `parameters`.
      extent: how much data.
      mesh: devices of the CPU that stand for the real ones.
      with_bank: whether the ground truth is planned too.

    Returns:
      Costs of the pass over the training set and of the solution, or of joint training, site by
      site; of measuring, recovery and the bank.

    Raises:
      ValueError: settings that do not go together, as in a real run.
    """
    scene = _scene(settings, extent, mesh)
    out: list[StageCost] = []
    if scene.stride.fit == "joint":
        view, data, sites = scene.corpus.view(scene.stride)
        out += [_training(scene, name, site, view, data) for name, site in sites.items()]
    else:
        view, data, sites = scene.corpus.view(scene.stride, scene.signs_C, training=True)
        for name, site in sites.items():
            out += _operators(scene, name, site, view, data)
    view, data, sites = scene.corpus.view(scene.stride, scene.signs_C)
    for name, site in sites.items():
        out.append(_measurement(scene, name, site, view, data))
    tokens = math.prod(data["labels"].shape[1:])
    group = scene.stride.measure.group
    rows = extent.num_queries * (-(-tokens // group) if group else 1)
    out.append(_recovery(scene, rows))
    return [*out, _bank(scene)] if with_bank else out


def index_bytes(settings: RunSettings, extent: Extent, mesh: Mesh) -> int:
    """Bytes of the K steering matrices of all sites, on all devices together."""
    scene = _scene(settings, extent, mesh)
    sites = scene.corpus.view(scene.stride, scene.signs_C)[2].values()
    return sum(
        4 * scene.stride.design.num_subsets * (scene.basis.rank * site.width + 1) for site in sites
    )


def _scene(settings: RunSettings, extent: Extent, mesh: Mesh) -> _Scene:
    module = models.make_model(settings.model, extent.num_classes)
    tokens = settings.model.kind in ("gpt", "llama")
    one = np.zeros((1, *extent.input_shape), np.int32 if tokens else np.float32)
    params = jax.eval_shape(
        functools.partial(models.initial_params, module, inputs=jnp.asarray(one)), _key()
    )
    rule = meshes.sharded_parameters(params, mesh)
    if settings.mesh.parameters == "replicated":
        rule = jax.tree.map(lambda _: meshes.replicated(mesh), params)
    params = jax.tree.map(lambda v, s: Shape(v.shape, v.dtype, sharding=s), params, rule)
    tapped = taps.with_temperature(from_model(module), 1.0)
    shapes = jax.eval_shape(tapped.forward, params, one)[1]
    how = settings.stride
    if not how.taps:  # which one is chosen depends on the weights: the widest costs most
        widest = max(shapes, key=lambda name: math.prod(shapes[name].shape[1:]))
        how = dataclasses.replace(how, taps=(widest,))
    labels = np.zeros((1, *extent.input_shape) if tokens else (1,), np.int32)
    corpus = Corpus(tapped, params, one, labels, mesh=mesh)
    taps.select(dict.fromkeys(shapes), named_taps(how))
    basis = _basis(how, {name: shapes[name].shape for name in how.taps}, labels.size)
    return _Scene(settings, how, extent, mesh, corpus, params, basis, corpus.signs(how))


def _key() -> jax.Array:
    return jax.random.key(0)


def _basis(how: StrideSettings, shapes: dict[str, Any], tokens: int) -> ops.Basis:
    """Shapes of a basis that finds all the directions it may have."""
    widths = {name: math.prod(shape) // tokens for name, shape in shapes.items()}
    depth, rank = sum(widths.values()), min(how.basis.rank, sum(widths.values()))
    f32 = functools.partial(Shape, dtype=jnp.float32)
    weights = {"projection": f32((depth, rank))}
    if how.basis.kind == "mlp":
        hidden = how.basis.hidden
        weights |= {"inner": f32((depth, hidden)), "bias": f32((hidden,))}
        weights |= {"outer": f32((hidden, rank))}
    mean, scale = {n: f32((w,)) for n, w in widths.items()}, {n: f32(()) for n in widths}
    return ops.Basis(mean, scale, weights)  # pyright: ignore[reportArgumentType]


def _operators(scene: _Scene, name: str, site: Any, view: Any, data: Any) -> list[StageCost]:
    how, mesh, basis = scene.stride, scene.mesh, scene.basis
    k, count = how.design.num_subsets, scene.extent.num_train
    form = stride.curvature_form(how, site, basis)
    _, tokens, classes = jax.eval_shape(view, scene.params, site, data)[0].logits_NxTxC.shape
    size, parts, width = curvature.batch_sizes(
        how.closed_form.batch_size, count, tokens, classes, basis.rank, site.width,
        how.chunk_bytes // 8, mesh,
    )  # fmt: skip
    f32 = functools.partial(Shape, dtype=jnp.float32)
    rotation = (f32((basis.rank,) * 2), f32((site.width,) * 2)) if form == "eigen" else None
    total = jax.eval_shape(
        functools.partial(moments.zeros, k, basis.rank, site.width, form), rotation
    )
    where = moments.shardings(total, mesh)
    total = jax.tree.map(lambda v, s: Shape(v.shape, v.dtype, sharding=s), total, where)
    # The largest subset's share of a batch, as it falls out for a random one.
    rng = np.random.default_rng(0)
    members = np.stack([rng.choice(k, how.design.degree, replace=False) for _ in range(size)])
    rows, sizes_K = curvature.sum_tables(members, k, size, mesh.shape[meshes.DATA])[0]
    table = Shape(
        rows.shape, jnp.int32, sharding=NamedSharding(mesh, P(meshes.DATA, None, meshes.SUBSET))
    )
    sizes = Shape(sizes_K.shape, jnp.float32, sharding=meshes.over_subsets(mesh))
    batch = scene.examples(data, size)
    mask = Shape((size,), jnp.float32, sharding=meshes.over_examples(mesh))
    given = scene.everywhere((scene.params, site, basis))
    return [
        cost(
            f"pass, {name}", -(-count // size), curvature.add_batch, total, *given, batch, table,
            sizes, mask, view=view, parts=parts, width=width, mesh=mesh,
        ),
        cost(
            f"solve, {name}", 1, solve_steps, total, settings=how.closed_form, mesh=mesh
        ),
    ]  # fmt: skip


def _training(scene: _Scene, name: str, site: Any, view: Any, data: Any) -> StageCost:
    """A step of joint training, on what the frozen model said about all examples."""
    how, mesh, basis = scene.stride, scene.mesh, scene.basis
    k, count, degree = how.design.num_subsets, scene.extent.num_train, how.design.degree
    everyone = {n: Shape((count, *v.shape[1:]), _dtype(v)) for n, v in data.items()}
    seen, context = jax.eval_shape(view, scene.params, site, everyone)
    context.pop("errors", None)
    learns = how.joint.basis_learning_rate > 0
    depth = basis.weights["projection"].shape[0] if learns else basis.rank
    mean = count * degree / k
    largest = min(count, math.ceil(mean + 4 * mean**0.5))  # of K random ones
    f32, i32 = (functools.partial(Shape, dtype=t) for t in (jnp.float32, jnp.int32))
    problem: Any = joint.Problem(
        dataclasses.replace(seen, activations={}), context, f32((*seen.labels_NxT.shape, depth)),  # pyright: ignore[reportArgumentType]
        i32((count, degree)), i32((k, largest)), f32((k, largest)),  # pyright: ignore[reportArgumentType]
        f32((k, how.joint.sketch if how.joint.linearity else 1)),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    where = joint.shardings(problem, mesh)
    problem = jax.tree.map(lambda v, at: Shape(v.shape, _dtype(v), sharding=at), problem, where)
    own = k // mesh.shape[meshes.SUBSET]
    chunks = joint.num_chunks(own, largest, seen, basis.rank, how.joint)
    _, step, state = joint.program(k, site.width, basis, how.joint, chunks, mesh)
    site = scene.everywhere(steering.with_params(site, scene.params))
    return cost(
        f"training, {name}", how.joint.steps, step, state, problem, site, jax.eval_shape(_key)
    )


def _measurement(scene: _Scene, name: str, site: Any, view: Any, data: Any) -> StageCost:
    how, mesh, basis = scene.stride, scene.mesh, scene.basis
    k = how.design.num_subsets
    f32 = functools.partial(Shape, dtype=jnp.float32)
    signs = site.signs_C if name == "logit" else None
    operators: Any = ops.Operators(basis, f32((k, basis.rank, site.width)), f32((k,)), signs)  # pyright: ignore[reportArgumentType]
    _, tokens, classes = jax.eval_shape(view, scene.params, site, data)[0].logits_NxTxC.shape
    size, form = measures.batch_sizes(
        k, math.prod(operators.a_KxRxO.shape[1:]), scene.extent.num_queries, tokens, classes,
        how.measure, mesh,
    )  # fmt: skip
    where = measures.shardings(operators, mesh)
    operators = jax.tree.map(lambda v, s: Shape(v.shape, _dtype(v), sharding=s), operators, where)
    return cost(
        f"measure, {name}", -(-scene.extent.num_queries // size), measures.measure_batch,
        *scene.everywhere((scene.params, site)), operators, scene.examples(data, size),
        view=view, how=form, mesh=mesh,
    )  # fmt: skip


def _recovery(scene: _Scene, rows: int) -> StageCost:
    """A round for as many queries as one device takes together; devices share the queries."""
    how, n = scene.stride.lasso, scene.extent.num_train
    k, degree = scene.stride.design.num_subsets, scene.stride.design.degree
    mesh = meshes.single_mesh()
    padded, group, dtype = layout(n, k)
    f32, i32 = (functools.partial(Shape, dtype=t) for t in (jnp.float32, jnp.int32))
    weights = f32((padded,)) if scene.stride.prior else None
    state: Any = LassoState(
        Shape((padded, degree), dtype), weights, n, k, group, mesh, sharded=False  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    own = -(-rows // scene.mesh.size)
    slots = lasso.slots_for(state, how, own)
    size = 1 << (min(how.working_set, n) - 1).bit_length()
    working = working_set.WorkingSet(
        i32((slots, size)), Shape((slots, size, degree), dtype), f32((slots, size)),
        f32((slots, size)),
    )  # fmt: skip
    problem = working_set.Problem(f32((slots, k)), *(f32((slots,)) for _ in range(5)))
    rounds = 6  # a few passes over all columns end most queries (docs/lab.md)
    return cost(
        "recovery, a round", rounds * -(-own // slots),
        working_set.play_round, state, working, problem, penalty=how.penalty,
        intercept=how.intercept, max_steps=min(how.max_iterations, lasso.STEPS_PER_ROUND),
        one_by_one=jax.default_backend() == "cpu",
    )  # fmt: skip


def _bank(scene: _Scene) -> StageCost:
    """Models of the ground truth that one device trains together."""
    s, extent = scene.settings, scene.extent
    devices = math.gcd(s.bank.models_at_once, scene.mesh.size)
    own = s.bank.models_at_once // devices
    i32 = functools.partial(Shape, dtype=jnp.int32)
    one = scene.corpus.inputs
    labels = np.asarray(scene.corpus.labels).shape[1:]
    data = {
        "inputs": Shape((extent.num_train, *one.shape[1:]), _dtype(one)),
        "labels": i32((extent.num_train, *labels)),
        "query_inputs": Shape((extent.num_queries, *one.shape[1:]), _dtype(one)),
        "query_labels": i32((extent.num_queries, *labels)),
    }
    members = i32((own, round(s.bank.alpha * extent.num_train)))
    keys = jax.eval_shape(lambda: jax.random.split(_key(), own))
    total = s.bank.num_subsets * s.bank.num_seeds
    return cost(
        "bank, models together", -(-total // (own * scene.mesh.size)), retrain.train_and_score,
        module=models.make_model(s.model, extent.num_classes), training=s.train, data=data,
        members_BxS=members, keys_B=keys, mesh=meshes.single_mesh(),
    )  # fmt: skip
