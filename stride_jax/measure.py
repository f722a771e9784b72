"""Measurements: how each operator changes each query's loss (docs/method.md §6)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stride_jax.observed import Context, Forward, Observed, Source
from stride_jax.operators.basis import example_features
from stride_jax.operators.gradients import steering_gradients, token_groups
from stride_jax.operators.questions import LOSS, Question, asked_of, named_question
from stride_jax.operators.sites import Site
from stride_jax.operators.steering import Operators, shardings
from stride_jax.resident import resident
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.precision import precise
from stride_jax.runtime.programs import Program, shape, shapes_everywhere, shapes_like
from stride_jax.runtime.settings import check_types
from stride_jax.taps import Params


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """How queries are measured.

    Attributes:
      form: `exact` steers the model; `first_order` takes the derivative at zero, one product per
        query and subset; `auto` is exact while K operators' shifts of one query stay below
        `exact_limit`; but `attribute` takes the first order of an index that keeps all examples,
        whose scores are exact whatever is measured.
      scale: factor on the steering matrices before an exact measurement, divided out again
        afterwards; additivity holds to first order, so a small factor reads the derivative, and
        the exact identity reads it without cancellation. 1 reads operators as published.
      exact_limit: largest K T C, numbers in the shifts of one query, that `auto` measures exactly.
      tolerance: where `auto` goes first-order, largest relative difference from exact
        measurements of a sample.
      question: what is asked of a query: `loss`, or `margin`, the log odds of its label.
      group: tokens read together, each group with K measurements of its own; 0 for whole sequences.
        A group's influences are sparser than a sequence's, so the sketch loses less.
    """

    form: str = "auto"
    scale: float = 0.01
    exact_limit: int = 2**24
    tolerance: float = 0.05
    question: str = "loss"
    group: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.form not in ("auto", "exact", "first_order"):
            raise ValueError(f"form={self.form!r}: use 'auto', 'exact' or 'first_order'")
        named_question(self.question)
        if self.group < 0:
            raise ValueError(f"group={self.group} tokens: use at least 1, or 0 for all of them")
        if self.scale <= 0 or self.exact_limit < 0 or self.tolerance <= 0:
            raise ValueError(
                f"scale={self.scale}, exact_limit={self.exact_limit}, tolerance={self.tolerance}: "
                "scale and tolerance must be positive, exact_limit 0 or more"
            )


class Step(NamedTuple):
    """What a compiled step depends on besides shapes.

    Attributes:
      forward: the frozen model; traced.
      first_order: else exact.
      question: what is asked.
      scale: of the steering matrices.
      group: tokens read together.
      subsets: taken at a time on a device, where exact.
      mesh: devices.
    """

    forward: Forward
    first_order: bool
    question: Question
    scale: float
    group: int
    subsets: int
    mesh: Mesh


class _Queries(NamedTuple):
    """What steering a batch of queries needs."""

    params: Params
    b_BxTxR: jax.Array
    observed: Observed
    context: Context


def _exact(site: Site, a_kxRxO: jax.Array, queries: _Queries, step: Step) -> jax.Array:
    """Measurements under a few operators, `[B, k]`, or of token groups, `[B G, k]`."""
    params, b_BxTxR, observed, context = queries
    shift_kxBxTxC = site.shifts(params, a_kxRxO * step.scale, b_BxTxR, context)
    gain_kxBxT = asked_of(step.question, observed.objective).gain(
        shift_kxBxTxC, observed.logits_NxTxC[None], observed.labels_NxT[None]
    )
    gain_BxTxk = jnp.moveaxis(gain_kxBxT * observed.weights_NxT[None], 0, -1)
    grouped = token_groups(gain_BxTxk, step.group) if step.group else gain_BxTxk
    return grouped.sum(axis=1)


def _exact_all(site: Site, a_KxRxO: jax.Array, queries: _Queries, step: Step) -> jax.Array:
    """`_exact`, one block of subsets after another; the last is padded."""
    k = len(a_KxRxO)
    blocks = -(-k // step.subsets)
    a = jnp.pad(a_KxRxO, ((0, blocks * step.subsets - k), (0, 0), (0, 0)))
    a = a.reshape(blocks, step.subsets, *a.shape[1:])
    out_bxBxk = jax.lax.map(lambda some: _exact(site, some, queries, step), a)
    return jnp.moveaxis(out_bxBxk, 0, 1).reshape(out_bxBxk.shape[1], -1)[:, :k]


@functools.partial(jax.jit, static_argnames="step")
@precise
def measure_batch(
    params: Params, site: Site, operators: Operators, batch: Any, step: Step
) -> jax.Array:
    """Measurements of a batch, queries over `data` and subsets over `subset`."""
    with meshes.traced_over(step.mesh):
        observed, context = step.forward(params, site, batch)
    b_BxTxR = example_features(operators.basis, observed.activations)
    own, rows = P(meshes.SUBSET), P(meshes.DATA)
    over = functools.partial(
        jax.shard_map, mesh=step.mesh, out_specs=P(meshes.DATA, meshes.SUBSET), check_vma=False
    )
    if step.first_order:
        # Each device takes its own queries' gradients; a row of devices shares them.
        g_BxRxO = steering_gradients(site, params, b_BxTxR, observed, context, step.group)
        flat = g_BxRxO.reshape(len(g_BxRxO), -1)
        product = over(lambda g, a: g @ a.reshape(len(a), -1).T, in_specs=(rows, own))
        y_BxK = product(flat, operators.a_KxRxO)
    else:
        context = {name: v for name, v in context.items() if name != "errors"}
        needed = params if site.reads_params else None
        queries = _Queries(needed, b_BxTxR, observed.without_taps(), context)
        specs = _Queries(P(), rows, rows, rows)  # pyright: ignore[reportArgumentType]
        steered = over(
            lambda site, a, queries: _exact_all(site, a, queries, step),
            in_specs=(P(), own, specs),
        )
        y_BxK = steered(site, operators.a_KxRxO, queries) / step.scale
    return y_BxK * operators.size_K[None]


def program(
    site: Site,
    operators: Operators,
    source: Source,
    count: int,
    settings: MeasureSettings,
    execution: Execution,
    question: Question = LOSS,
) -> Program:
    """The compiled step that measures `count` queries like the source's.

    Args:
      site, operators: arrays, or their shapes.
      source: queries, one at least.
      count: Q.
      settings: form, scale, group.
      execution: devices and memory.
      question: what is asked.
    """
    matrices = operators.a_KxRxO.shape
    mesh = execution.mesh_for(matrices[0])
    source = resident(source, mesh, execution.memory)
    size, step = batch_sizes(matrices, source.extent(site), count, settings, execution)
    examples, whole = meshes.over_examples(mesh), meshes.replicated(mesh)
    batch = jax.tree.map(lambda v: shape((size, *v.shape[1:]), v.dtype, examples), source.data)
    args = (
        *shapes_everywhere((source.params, site), whole),
        shapes_like(operators, shardings(operators, mesh)),
        batch,
    )
    first_order, scale, group, subsets = step
    step = Step(source.forward, first_order, question, scale, group, subsets, mesh)
    return Program(measure_batch, args, {"step": step}, -(-count // size), size)


def measure(
    site: Site,
    operators: Operators,
    source: Source,
    settings: MeasureSettings = MeasureSettings(),
    execution: Execution = Execution(),
    question: Question | None = None,
) -> np.ndarray:
    """Measurements of all queries under all operators of one site.

    Exact: `y_{x,k} = Σ_t omega_t [f(õ_k(x)) − f(o_x)]_t / s` with steering matrices `s a_k`,
    without cancellation (`operators.questions`); for the loss, `f = log p_y`. First order:
    `y_{x,k} = Σ_t omega_t <e_t, b_t a_k>`, with `e = ∂f/∂o`, for the loss `e_y − p` (pulled back
    to the site). Either is multiplied by the operator's own size.

    Args:
      site: where the operators act.
      operators: K of them.
      source: Q queries; `observed_source` for ones that were observed before.
      settings: form, scale and group, and the name of what is asked.
      execution: queries are split over all devices, operators over `subset`.
      question: what is asked, where a name is not enough. The source was told the same
        (`FrozenModel.source`), since first order reads its gradient.

    Returns:
      `[Q, K]` float32 nats; positive: the subset helps the query. With token groups `[Q G, K]`, a
      query's G groups one after the other.

    Raises:
      ValueError: where `auto` chose first order, and a sample of exact measurements disagrees.
    """
    question = named_question(question or settings.question)
    mesh, count, k = execution.mesh_for(len(operators)), source.num_rows, len(operators)
    source, site = resident(source, mesh, execution.memory), meshes.everywhere(site, mesh)
    operators = jax.tree.map(meshes.place, operators, shardings(operators, mesh))
    step = program(site, operators, source, count, settings, execution, question)
    if settings.form == "auto" and step.statics["step"].first_order:
        _check_first_order(site, operators, source, settings, step.statics["step"])
    tokens = source.extent(site)[0]
    groups = -(-tokens // settings.group) if settings.group else 1
    keep, loop, size = execution.keep, site.name, step.batch
    begin, y_QxGxK = keep.resume(loop, np.zeros((count, groups, k), np.float32))
    for first in execution.progress(range(begin, count, size), desc="measure"):
        rows = np.minimum(np.arange(first, first + size), count - 1)  # one shape for every batch
        batch = meshes.place(source.data, meshes.over_examples(mesh), rows)
        y_BxGxK = meshes.fetch(step(source.params, site, operators, batch)).reshape(size, groups, k)
        y_QxGxK[first : first + size] = y_BxGxK[: count - first]
        keep.step(loop, min(first + size, count), lambda: y_QxGxK)
    return y_QxGxK.reshape(-1, k)


def batch_sizes(
    matrices: tuple[int, ...],
    extent: tuple[int, int],
    count: int,
    settings: MeasureSettings,
    execution: Execution,
) -> tuple[int, tuple[bool, float, int, int]]:
    """Queries per batch, of all devices, and the choices of a `Step`, as the memory allows.

    Args:
      matrices: K, R and O.
      extent: T tokens and C classes.
      count: Q.
      settings: form and group.
      execution: a quarter of the memory holds shifts, or gradients of queries.
    """
    (k, rank, outputs), (tokens, classes) = matrices, extent
    mesh, memory = execution.mesh_for(k), execution.memory // 4
    own = k // mesh.shape[meshes.SUBSET]
    # About three arrays of shifts are alive at once.
    shifts = 3 * 4 * tokens * classes
    first_order = settings.form == "first_order" or (
        settings.form == "auto" and k * tokens * classes > settings.exact_limit
    )
    if first_order:
        groups = -(-tokens // settings.group) if settings.group else 1
        gradient = 2 * 4 * rank * outputs * groups
        queries, subsets = memory // max(gradient, shifts), own
    else:
        queries, subsets = block_sizes(count, own, shifts, memory)
    # A row of devices holds the same queries together; each runs the model on a share of them.
    queries = meshes.even(-(-count // mesh.shape[meshes.DATA]), max(1, queries))
    queries = -(-queries // mesh.shape[meshes.SUBSET]) * mesh.size
    scale = 1.0 if first_order else settings.scale
    return queries, (first_order, scale, settings.group, subsets)


def block_sizes(
    num_queries: int, num_subsets: int, bytes_each: int, memory: int
) -> tuple[int, int]:
    """Queries and subsets of a block so that `queries * subsets * bytes_each <= memory`.

    >>> block_sizes(400, 1000, 1000, 50_000_000)
    (50, 1000)
    """
    cells = max(1, memory // bytes_each)
    subsets = min(num_subsets, cells)
    return min(num_queries, max(1, cells // subsets)), subsets


def _check_first_order(
    site: Site,
    operators: Operators,
    source: Source,
    settings: MeasureSettings,
    step: Step,
    sample: int = 8,
) -> None:
    """Refuse to go first-order where real steering disagrees with the derivative."""
    mesh, k = step.mesh, len(operators)

    def some(count: int, multiple: int) -> np.ndarray:
        """A few rows of `count`, repeated until the devices can share them evenly."""
        return np.resize(np.arange(min(sample, count)), -(-sample // multiple) * multiple)

    rows = some(source.num_rows, mesh.size)
    batch = meshes.place(source.data, meshes.over_examples(mesh), rows)
    subsets = some(k, mesh.shape[meshes.SUBSET])
    few = dataclasses.replace(
        operators, a_KxRxO=operators.a_KxRxO[subsets], size_K=operators.size_K[subsets]
    )
    steps = (step._replace(first_order=form, scale=settings.scale, subsets=1)
             for form in (True, False))  # fmt: skip
    linear, exact = (
        meshes.fetch(measure_batch(source.params, site, few, batch, step=one)) for one in steps
    )
    difference = np.linalg.norm(linear - exact) / max(np.linalg.norm(exact), 1e-30)
    if not difference <= settings.tolerance:
        raise ValueError(
            f"first-order measurements differ from exact ones by {difference:.3f} of their size "
            f"(tolerance={settings.tolerance}) at scale={settings.scale}: lower the scale, or set "
            "form='exact'"
        )
