"""One pass over the training set: batches in, the moments of the closed form out.

Letter of its own: W devices along the mesh axis `data`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.design import Design, members
from stride_jax.observed import Source, refuse_not_finite
from stride_jax.operators.basis import Basis
from stride_jax.operators.curvature import Batch, Step, add_batch
from stride_jax.operators.moments import (
    FORMS,
    Curvature,
    Moments,
    eigenbases,
    empty,
    shardings,
    zeros,
)
from stride_jax.operators.sites import Site
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.programs import Program, shape, shapes_everywhere, shapes_like


def accumulate(
    design: Design,
    subsets_Nxd: jax.Array,
    site: Site,
    basis: Basis,
    source: Source,
    curvature: Curvature,
    execution: Execution = Execution(),
) -> tuple[Moments, np.ndarray]:
    """Moments of a set of examples, in one pass (docs/method.md §5.2).

    Args:
      design: K.
      subsets_Nxd: membership of these examples.
      site: where operators act.
      basis: psi, fitted before.
      source: the examples; `observed_source` for ones that were observed before.
      curvature: form of curvature that is summed.
      execution: devices: examples of a batch are split over all of them, the K axis over `subset`.

    Returns:
      The moments, and each example's residual `||e_i|| = sqrt(Σ_t omega_t ||e_y − p||²)`, `[N]`
      float32. An example's influence on any query is proportional to it, so recovery may use it as
      a prior.

    Raises:
      ValueError: an unknown form, `exact` where the site has none, or logits that are not finite.
    """
    form, rotation = curvature
    if form not in FORMS or (form == "exact" and not site.has_exact_fisher):
        raise ValueError(
            f"form={form!r}: use one of {FORMS}; 'exact' is for the logit site alone, without an "
            "output basis"
        )
    if form == "eigen" and rotation is None:
        factors, _ = accumulate(
            design, subsets_Nxd, site, basis, source, Curvature("kronecker"), execution
        )
        rotation = eigenbases(factors)
    mesh, count = execution.mesh_for(design.num_subsets), len(subsets_Nxd)
    params, site, basis, rotation = meshes.everywhere((source.params, site, basis, rotation), mesh)
    source = source._replace(params=params)
    step = program(design, site, basis, source, Curvature(form, rotation), count, execution)
    total = empty(design.num_subsets, basis.rank, site.width, Curvature(form, rotation), mesh)
    size, loop, keep = step.batch, f"{site.name}-{form}", execution.keep
    begin, (total, norms_N) = keep.resume(loop, (total, np.zeros(count, np.float32)))
    tables = sum_tables(np.asarray(subsets_Nxd)[begin:], design.num_subsets, size, mesh)
    waiting: list[tuple[int, jax.Array]] = []

    def state() -> tuple[Moments, np.ndarray]:
        while waiting:
            first, norms_B = waiting.pop()
            norms_N[first : first + size] = meshes.fetch(norms_B)[: count - first]
        return total, norms_N

    for i, first in enumerate(execution.progress(range(begin, count, size), desc="operators")):
        batch = _placed(source.data, np.arange(first, first + size), tables[i], mesh)
        total, norms_B = step(total, params, site, basis, batch)
        waiting.append((first, norms_B))
        keep.step(loop, min(first + size, count), state)
    total, norms_N = state()
    refuse_not_finite(norms_N)
    return total, norms_N


def _placed(
    data: Any, rows_B: np.ndarray, table: tuple[np.ndarray, np.ndarray], mesh: Mesh
) -> Batch:
    """A batch laid out over the devices; rows after the last example are padding."""
    count = len(jax.tree.leaves(data)[0])
    examples = meshes.over_examples(mesh)
    return Batch(
        meshes.place(data, examples, np.minimum(rows_B, count - 1)),
        meshes.place((rows_B < count).astype(np.float32), examples),
        meshes.place(table[0], NamedSharding(mesh, P(meshes.DATA, None, meshes.SUBSET))),
        meshes.place(table[1], meshes.over_subsets(mesh)),
    )


def program(
    design: Design,
    site: Site,
    basis: Basis,
    source: Source,
    curvature: Curvature,
    count: int,
    execution: Execution,
) -> Program:
    """The compiled step of a pass over `count` examples like the source's.

    Its abstract table of sums has as many rows as the largest subset's share of a batch is likely
    to need; a pass itself knows the number.
    """
    mesh, k = execution.mesh_for(design.num_subsets), design.num_subsets
    size, step = batch_sizes(source.extent(site), (basis.rank, site.width), count, execution, mesh)
    total = jax.eval_shape(
        lambda rotation: zeros(k, basis.rank, site.width, Curvature(curvature.form, rotation)),
        curvature.rotation,
    )
    total = shapes_like(total, shardings(total, mesh))
    mean = size / mesh.shape[meshes.DATA] * design.degree / k
    largest = math.ceil(mean + 4 * mean**0.5)
    examples, by_device = meshes.over_examples(mesh), P(meshes.DATA, None, meshes.SUBSET)
    batch = Batch(
        jax.tree.map(lambda v: shape((size, *v.shape[1:]), v.dtype, examples), source.data),
        shape((size,), sharding=examples),
        shape(
            (mesh.shape[meshes.DATA], largest, k), jnp.int32, NamedSharding(mesh, by_device)
        ),
        shape((k,), sharding=meshes.over_subsets(mesh)),
    )  # fmt: skip
    whole = meshes.replicated(mesh)
    args = (total, *shapes_everywhere((source.params, site, basis), whole), batch)
    step = Step(source.forward, *step, mesh)
    return Program(add_batch, args, {"step": step}, -(-count // size), size)


def batch_sizes(
    extent: tuple[int, int],
    outer: tuple[int, int],
    count: int,
    execution: Execution,
    mesh: Mesh,
) -> tuple[int, tuple[int, int]]:
    """Examples per batch; its parts, and the outputs taken at a time, as the memory allows.

    Args:
      extent: T tokens and C classes.
      outer: R features and O outputs.
      count: N.
      execution: its `batch_size` counts examples per row of devices along `subset`, all of which
        hold the row's features and errors.
      mesh: devices.
    """
    (tokens, classes), (rank, outputs) = extent, outer
    # One share: a part's logits, or the outer products held at a time. Four: a batch's features
    # and errors.
    memory = execution.memory // 16
    devices, rows = mesh.size, mesh.shape[meshes.DATA]
    held = 4 * tokens * (rank + outputs)
    batch = meshes.even(count, rows * min(execution.batch_size, max(1, 4 * memory // held)))
    own = -(-batch // devices)
    # About four arrays of a part's logits are alive at once.
    parts = -(-own // max(1, memory // (4 * 4 * tokens * classes)))
    size = devices * parts * -(-own // parts)
    width = memory // (4 * rank * size // rows)
    return size, (parts, max(1, min(outputs, width)))


def sum_tables(
    subsets_Nxd: np.ndarray, num_subsets: int, size: int, mesh: Mesh
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every batch, the rows that each sum adds, `[W, S, K]`, and the subsets' sizes, `[K]`.

    The W devices along `data` number their rows of the batch from 0; the row after the last one is
    zero and serves as padding.
    """
    own = size // mesh.shape[meshes.DATA]
    tables = []
    for start in range(0, len(subsets_Nxd), size):
        batch = subsets_Nxd[start : start + size]
        parts = [members(batch[i : i + own], num_subsets) for i in range(0, size, own)]
        rows = [np.where(mask > 0, rows, own).T for rows, mask in parts]
        tables.append((rows, np.sum([mask.sum(axis=1) for _, mask in parts], 0, np.float32)))
    most = max((len(rows) for parts, _ in tables for rows in parts), default=0)
    pad = lambda v: np.pad(v, ((0, most - len(v)), (0, 0)), constant_values=own)  # noqa: E731
    return [(np.stack([pad(rows) for rows in parts]), sizes) for parts, sizes in tables]
