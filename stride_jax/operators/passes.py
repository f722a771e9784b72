"""One pass over the training set: batches in, the moments of the closed form out.

Letter of its own: W devices along the mesh axis `data`.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.design import Design, members
from stride_jax.observed import Source, refuse_not_finite
from stride_jax.operators import kept as stores
from stride_jax.operators.basis import Basis
from stride_jax.operators.content import Content
from stride_jax.operators.curvature import Batch, PerExample, Step, Sums, add_batch
from stride_jax.operators.inner_sites import LayerSite
from stride_jax.operators.kept import Kept
from stride_jax.operators.moments import (
    FORMS,
    PAIRS,
    ROWS,
    Curvature,
    Moments,
    eigenbases,
    empty,
    shardings,
    strongest_pairs,
    zeros,
)
from stride_jax.operators.sites import Site
from stride_jax.resident import resident
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.programs import Program, shape, shapes_everywhere, shapes_like
from stride_jax.runtime.rows import Rows


class Store(NamedTuple):
    """The size of the store of kept tokens.

    Attributes:
      places: H, on each device along `data`; 0 keeps nothing.
      precision: of features and errors.
    """

    places: int = 0
    precision: str = "float32"


class Labels(NamedTuple):
    """Named groups of the examples, whose gradients are summed beside the subsets'.

    Attributes:
      place_N: int32 group of each example; −1 for one of none.
      groups: their number, G.
    """

    place_N: np.ndarray
    groups: int


class Pass(NamedTuple):
    """What one pass makes.

    Attributes:
      moments: sums over the examples.
      residual_N: `||e_i|| = sqrt(Σ_t omega_t ||e_{i,t}||²)`, float32. An example's influence on any
        query is proportional to it, so recovery may use it as a prior.
      cluster_N: int32 subset of each example, where content chose it.
      norm_N: `||g_i||`, float32.
      kept: the heaviest tokens, by row; None where nothing is kept.
    """

    moments: Moments
    residual_N: np.ndarray
    cluster_N: np.ndarray
    norm_N: np.ndarray
    kept: Kept | None


def accumulate(
    design: Design,
    members: jax.Array | np.ndarray | Rows | Content | None,
    site: Site,
    basis: Basis,
    source: Source,
    curvature: Curvature,
    execution: Execution = Execution(),
    store: Store = Store(),
    labels: Labels | None = None,
) -> Pass:
    """Moments of a set of examples, in one pass (docs/method.md §5.2).

    Args:
      design: K.
      members: `[N, d]` membership of these examples, or what assigns them by content. None sums
        the curvature alone, without sums by subset and norms.
      site: where operators act.
      basis: psi, fitted before.
      source: the examples; `observed_source` for ones that were observed before.
      curvature: form of curvature that is summed.
      execution: devices: examples of a batch are split over all of them, the K axis over `subset`.
      store: size of the store of kept tokens.
      labels: named groups.

    Raises:
      ValueError: an unknown form, `exact` where the site has none, or logits that are not finite.
    """
    form, layered = curvature.form, isinstance(site, LayerSite)
    if (
        form not in FORMS
        or (form == "exact" and not site.has_exact_fisher)
        or (form == "coupled" and not layered)
    ):
        raise ValueError(
            f"form={form!r}: use one of {FORMS}; 'exact' is for the logit site alone, without an "
            "output basis, 'coupled' for layer sites ('<tap>+logit')"
        )
    assert members is not None or labels is None, "groups are summed beside subsets"
    if form in ("eigen", "coupled") and curvature.rotation is None:
        factors = accumulate(design, None, site, basis, source, Curvature("kronecker"), execution)
        curvature = rotated(form, site, factors.moments, rows=curvature.rows)
    mesh, count = execution.mesh_for(design.num_subsets), source.num_rows
    content = members if isinstance(members, Content) else None
    fixed = curvature.rotation, curvature.strongest_M
    site, basis, fixed, content = meshes.everywhere((site, basis, fixed, content), mesh)
    source = resident(source, mesh, execution.memory)
    curvature = Curvature(form, *fixed, rows=curvature.rows)
    step = program(design, site, basis, source, curvature, count, execution, content, store)
    num_groups = 0 if labels is None else labels.groups
    sums = Sums(
        empty(design.num_subsets, basis.rank, site.width, curvature, mesh, num_groups),
        jax.tree.map(np.asarray, _no_kept(site, basis, store)),
    )
    size, loop, keep = step.batch, f"{site.name}-{form}", execution.keep
    fresh = PerExample(*(np.zeros(count, kind) for kind in (np.float32, np.int32, np.float32)))
    begin, (sums, own) = keep.resume(loop, (sums, fresh))
    if sums.kept is not None:
        everywhere = stores.spread(sums.kept, mesh.shape[meshes.DATA])
        kept = meshes.place(everywhere, NamedSharding(mesh, P(meshes.DATA)))
        sums = sums._replace(kept=kept)
    tables = _tables(members, begin, design.num_subsets, size, mesh)
    waiting: list[tuple[int, PerExample]] = []

    def state() -> tuple[Sums, PerExample]:
        while waiting:
            first, made = waiting.pop()
            for whole, part in zip(own, made, strict=True):
                whole[first : first + size] = meshes.fetch(part)[: count - first]
        # One store of all devices, so that others can go on.
        kept = None if sums.kept is None else stores.gathered(sums.kept, store.places)
        return sums._replace(kept=kept), own

    for first in execution.progress(range(begin, count, size), desc="operators"):
        batch = _placed(source.data, np.arange(first, first + size), next(tables), mesh, labels)
        sums, made = step(sums, source.params, site, basis, content, batch)
        waiting.append((first, made))
        keep.step(loop, min(first + size, count), state)
    sums, own = state()
    refuse_not_finite(own.residual_B)
    kept = None if sums.kept is None else stores.heaviest(sums.kept, store.places)
    return Pass(sums.moments, *own, kept)


def rotated(
    form: str, site: Site, factors: Moments, pairs: int = PAIRS, rows: int = ROWS
) -> Curvature:
    """A form in the coordinates of Kronecker factors' eigenvectors.

    Args:
      form: `eigen` or `coupled`.
      site: where operators act.
      factors: moments of the form `kronecker`, of a sample or of everyone.
      pairs, rows: of `coupled`: M, and as in `Curvature`.
    """
    scales_O = site.scales(factors.outputs_OxO[0]) if isinstance(site, LayerSite) else None
    rotation = eigenbases(factors, scales_O)
    strongest_M = strongest_pairs(factors, rotation, pairs) if form == "coupled" else None
    return Curvature(form, rotation, strongest_M, rows)


def _no_kept(site: Site, basis: Basis, store: Store, devices: int = 1) -> Kept | None:
    if not store.places:
        return None
    return stores.free(devices, store.places, basis.rank, site.width, store.precision)


def _placed(
    data: Any,
    rows_B: np.ndarray,
    table: "Table",
    mesh: Mesh,
    labels: Labels | None,
) -> Batch:
    """A batch laid out over the devices; rows after the last example are padding."""
    count = len(jax.tree.leaves(data)[0])
    examples = meshes.over_examples(mesh)
    batch = Batch(
        meshes.place(data, examples, np.minimum(rows_B, count - 1)),
        meshes.place(np.where(rows_B < count, rows_B, -1).astype(np.int32), examples),
        None,
        None,
    )
    if labels is not None:
        own_B = np.where(rows_B < count, labels.place_N[np.minimum(rows_B, count - 1)], -1)
        batch = batch._replace(group_B=meshes.place(own_B.astype(np.int32), examples))
    if table[0] is None:
        return batch
    return batch._replace(
        rows_WxSxK=meshes.place(table[0], NamedSharding(mesh, P(meshes.DATA, None, meshes.SUBSET))),
        sizes_K=meshes.place(table[1], meshes.over_subsets(mesh)),
    )


def program(
    design: Design,
    site: Site,
    basis: Basis,
    source: Source,
    curvature: Curvature,
    count: int,
    execution: Execution,
    content: Content | None = None,
    store: Store = Store(),
) -> Program:
    """The compiled step of a pass over `count` examples like the source's.

    Without content, its abstract table of sums has as many rows as the largest subset's share of a
    batch is likely to need; a pass itself knows the number. Named groups are left out.
    """
    mesh, k = execution.mesh_for(design.num_subsets), design.num_subsets
    source = resident(source, mesh, execution.memory)
    tokens, classes = source.extent(site)
    if isinstance(site, LayerSite):  # rows of the outputs for each class, and a few of the pairs
        strongest_M = curvature.strongest_M
        pairs = 0 if strongest_M is None else min(curvature.rows, classes) * strongest_M.shape[0]
        classes = classes * site.width + pairs
    outer = basis.rank, site.width
    size, step = batch_sizes((tokens, classes), outer, count, execution, mesh)
    total = jax.eval_shape(
        lambda *fixed: zeros(k, basis.rank, site.width, Curvature(curvature.form, *fixed)),
        curvature.rotation, curvature.strongest_M,
    )  # fmt: skip
    total = shapes_like(total, shardings(total, mesh))
    mean = size / mesh.shape[meshes.DATA] * design.degree / k
    largest = math.ceil(mean + 4 * mean**0.5)
    examples, by_device = meshes.over_examples(mesh), P(meshes.DATA, None, meshes.SUBSET)
    table = (mesh.shape[meshes.DATA], largest, k)
    batch = Batch(
        jax.tree.map(lambda v: shape((size, *v.shape[1:]), v.dtype, examples), source.data),
        shape((size,), jnp.int32, examples),
        None if content else shape(table, jnp.int32, NamedSharding(mesh, by_device)),
        None if content else shape((k,), sharding=meshes.over_subsets(mesh)),
    )
    whole = meshes.replicated(mesh)
    kept = jax.eval_shape(lambda: _no_kept(site, basis, store, mesh.shape[meshes.DATA]))
    where = NamedSharding(mesh, P(meshes.DATA))
    kept = jax.tree.map(lambda v: shape(v.shape, v.dtype, where), kept)
    fixed = shapes_everywhere((source.params, site, basis, content), whole)
    args = (Sums(total, kept), *fixed, batch)
    step = Step(source.forward, *step, mesh, curvature.rows)
    return Program(add_batch, args, {"step": step}, -(-count // size), size)


def batch_sizes(
    extent: tuple[int, int],
    outer: tuple[int, int],
    count: int,
    execution: Execution,
    mesh: Mesh,
) -> tuple[int, tuple[int, int]]:
    """Examples per batch; its parts, and the outputs taken at a time, as the memory allows.

    An example's product is `[R, O]`, its features and errors are `[T, R + O]`: a row of devices
    along `subset` shares what is smaller, of all outputs at once (0) if it is the product.

    Args:
      extent: T tokens and C classes.
      outer: R features and O outputs.
      count: N.
      execution: its `batch_size` counts examples per row of devices along `subset`.
      mesh: devices.
    """
    (tokens, classes), (rank, outputs) = extent, outer
    # One share: a part's logits, or the outer products held at a time. Four: a batch's features
    # and errors, or what a device holds of them and the row's products.
    memory = execution.memory // 16
    devices, rows = mesh.size, mesh.shape[meshes.DATA]
    held, product = 4 * tokens * (rank + outputs), 4 * rank * outputs
    shares_products = product < held
    if shares_products:
        held = -(-held // mesh.shape[meshes.SUBSET]) + product
    batch = meshes.even(count, rows * min(execution.batch_size, max(1, 4 * memory // held)))
    own = -(-batch // devices)
    # About four arrays of a part's logits are alive at once.
    parts = -(-own // max(1, memory // (4 * 4 * tokens * classes)))
    size = devices * parts * -(-own // parts)
    if shares_products:
        return size, (parts, 0)
    width = max(1, memory // (4 * rank * size // rows))
    return size, (parts, meshes.even(outputs, width))


Table = tuple[np.ndarray | None, np.ndarray | None]
"""Of a batch: the rows that each sum adds, and the subsets' sizes."""


def _tables(members: Any, begin: int, num_subsets: int, size: int, mesh: Mesh) -> Iterator[Table]:
    """The tables of batches from `begin` on, one after the other."""
    if members is None or isinstance(members, Content):
        yield from itertools.repeat((None, None))
    else:
        members = members if isinstance(members, Rows) else np.asarray(members)
        own = size // mesh.shape[meshes.DATA]
        most = _longest(members, num_subsets, own)
        for first in range(begin, members.shape[0], size):
            some = members[first : first + size]
            rows, sizes = sum_table(some, num_subsets, own, size // own, most)
            most = rows.shape[1]
            yield rows, sizes


def _longest(subsets_Nxd: np.ndarray | Rows, num_subsets: int, own: int) -> int:
    """Rows of the longest sum of `own` examples of a batch, so that one program serves them all.

    Of rows that are drawn as they are read, a number that hardly ever fails to suffice.
    """
    if isinstance(subsets_Nxd, Rows):
        mean = own * subsets_Nxd.shape[1] / num_subsets
        return math.ceil(mean + 6 * mean**0.5 + 4)
    parts = (subsets_Nxd[i : i + own].ravel() for i in range(0, len(subsets_Nxd), own))
    return max((int(np.bincount(part).max()) for part in parts), default=0)


def sum_table(
    subsets_Bxd: np.ndarray, num_subsets: int, own: int, devices: int, least: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of a batch, the rows that each sum adds, `[W, S, K]`, and the subsets' sizes, `[K]`.

    The W devices along `data` number their `own` rows from 0; the row after the last one is zero
    and serves as padding. S is the number of rows of the longest sum, and at least `least`.
    """
    starts = range(0, own * devices, own)
    parts = [members(subsets_Bxd[i : i + own], num_subsets) for i in starts]
    rows = [np.where(mask > 0, rows, own).T for rows, mask in parts]
    most = max(least, *(len(v) for v in rows))
    padded = [np.pad(v, ((0, most - len(v)), (0, 0)), constant_values=own) for v in rows]
    sizes_K = np.stack([mask.sum(axis=1) for _, mask in parts]).sum(axis=0, dtype=np.float32)
    return np.stack(padded), sizes_K
