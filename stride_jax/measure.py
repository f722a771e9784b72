"""Measurements: how each operator changes each query's loss."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stride_jax.observed import Observed
from stride_jax.operators.curvature import View, given
from stride_jax.operators.gradients import steering_gradients, token_groups
from stride_jax.operators.losses import loss_drop
from stride_jax.operators.steering import (
    Context,
    Operators,
    Site,
    all_logit_shifts,
    example_features,
    with_params,
)
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.keep import Keep, nowhere
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import Params


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """How queries are measured.

    Attributes:
      form: `exact` steers the model; `first_order` takes the derivative at zero, one product a
        query and subset; `auto` is exact while one query under all subsets fits `max_bytes`.
      scale: factor on the steering matrices before an exact measurement, divided out again
        afterwards; additivity holds to first order, so a small factor reads the derivative, and
        the exact identity reads it without cancellation. 1 reads operators as published.
      max_bytes: largest temporary; queries and subsets are taken in chunks to stay below it.
      tolerance: where `auto` goes first-order, largest relative difference from exact
        measurements of a sample.
      group: tokens read together, each group with K measurements of its own; 0 for whole sequences.
        A group's influences are sparser than a sequence's, so the sketch loses less (method §5).
    """

    form: str = "auto"
    scale: float = 0.01
    max_bytes: int = 1 << 28
    tolerance: float = 0.05
    group: int = 0

    def __post_init__(self) -> None:
        if self.form not in ("auto", "exact", "first_order"):
            raise ValueError(f"form={self.form!r}: use 'auto', 'exact' or 'first_order'")
        if self.group < 0:
            raise ValueError(f"group={self.group} tokens: use at least 1, or 0 for all of them")
        if self.scale <= 0 or self.max_bytes < 1 or self.tolerance <= 0:
            raise ValueError(
                f"scale={self.scale}, max_bytes={self.max_bytes}, tolerance={self.tolerance}: "
                "must be positive"
            )


class _How(NamedTuple):
    """What a compiled step depends on besides shapes.

    Attributes:
      first_order: else exact.
      scale: of the steering matrices.
      group: tokens read together.
      subsets: taken at a time on a device, where exact.
    """

    first_order: bool
    scale: float
    group: int
    subsets: int


class _Queries(NamedTuple):
    """What measuring needs of some queries."""

    b_BxTxR: jax.Array
    observed: Observed
    context: Context


def _exact(site: Site, a_kxRxO: jax.Array, queries: _Queries, how: _How) -> jax.Array:
    """Measurements under a few operators, `[B, k]`, or of token groups, `[B G, k]`."""
    shift_kxBxTxC = all_logit_shifts(site, a_kxRxO * how.scale, queries.b_BxTxR, queries.context)
    seen = queries.observed
    drop_kxBxT = loss_drop(shift_kxBxTxC, seen.logits_NxTxC[None], seen.labels_NxT[None])
    drop_BxTxk = jnp.moveaxis(drop_kxBxT * seen.weights_NxT[None], 0, -1)
    grouped = token_groups(drop_BxTxk, how.group) if how.group else drop_BxTxk
    return grouped.sum(axis=1)


def _exact_all(site: Site, a_KxRxO: jax.Array, queries: _Queries, how: _How) -> jax.Array:
    """`_exact`, a block of subsets after the other; the last one is filled up."""
    k = len(a_KxRxO)
    blocks = -(-k // how.subsets)
    missing = blocks * how.subsets - k
    a = jnp.pad(a_KxRxO, ((0, missing), (0, 0), (0, 0)))
    a = a.reshape(blocks, how.subsets, *a.shape[1:])
    out_bxBxk = jax.lax.map(lambda some: _exact(site, some, queries, how), a)
    return jnp.moveaxis(out_bxBxk, 0, 1).reshape(out_bxBxk.shape[1], -1)[:, :k]


@functools.partial(jax.jit, static_argnames=("view", "how", "mesh"))
def measure_batch(
    params: Params,
    site: Site,
    operators: Operators,
    batch: Any,
    view: View,
    how: _How,
    mesh: Mesh,
) -> jax.Array:
    """Measurements of a batch, queries over `data` and subsets over `subset`."""
    site = with_params(site, params)
    observed, context = view(params, site, batch)
    b_BxTxR = example_features(operators, observed.activations)
    queries = _Queries(b_BxTxR, dataclasses.replace(observed, activations={}), context)
    own, rows = P(meshes.SUBSET), P(meshes.DATA)
    over = functools.partial(
        jax.shard_map, mesh=mesh, out_specs=P(meshes.DATA, meshes.SUBSET), check_vma=False
    )
    if how.first_order:
        # Each device takes its own queries' gradients; a row of devices shares them.
        g_BxRxO = steering_gradients(site, b_BxTxR, observed, context, how.group)
        flat = g_BxRxO.reshape(len(g_BxRxO), -1)
        product = over(lambda g, a: g @ a.reshape(len(a), -1).T, in_specs=(rows, own))
        y_BxK = product(flat, operators.a_KxRxO)
    else:
        needed = {name: v for name, v in context.items() if name != "errors"}
        queries = queries._replace(context=needed)
        steered = over(
            lambda site, a, queries: _exact_all(site, a, queries, how), in_specs=(P(), own, rows)
        )
        y_BxK = steered(site, operators.a_KxRxO, queries) / how.scale
    return y_BxK * operators.size_K[None]


def block_sizes(
    num_queries: int, num_subsets: int, bytes_each: int, max_bytes: int
) -> tuple[int, int]:
    """Queries and subsets of a block so that `queries * subsets * bytes_each <= max_bytes`.

    >>> block_sizes(400, 1000, 1000, 50_000_000)
    (50, 1000)
    """
    cells = max(1, max_bytes // bytes_each)
    subsets = min(num_subsets, cells)
    return min(num_queries, max(1, cells // subsets)), subsets


def measure(
    site: Site,
    operators: Operators,
    data: Any,
    settings: MeasureSettings = MeasureSettings(),
    *,
    view: View = given,
    params: Params = None,
    mesh: Mesh | None = None,
    progress: Progress = silent,
    keep: Keep = nowhere,
    loop: str = "measure",
) -> np.ndarray:
    """Measurements of all queries under all operators.

    Exact: `y_{x,k} = Σ_t omega_t [Loss(o_x) − Loss(õ_k(x))]_t / s` with steering matrices `s a_k`,
    by the identity of `losses.loss_drop`. First order: `y_{x,k} = Σ_t omega_t <e_t, b_t a_k>`, with
    `e = e_y − p` (pulled back to the site). Either is multiplied by the operator's own size.

    Args:
      site: where the operators act.
      operators: the index.
      data: the queries, arrays of Q rows each; what `view` takes. By default the frozen model's
        `Observed` and the site's `context`.
      settings: form, scale and memory.
      view: how the frozen model sees a batch; traced.
      params: the first argument of `view`.
      mesh: queries are split over all devices, operators over `subset`.
      progress: wraps the batches.
      keep: where measurements are kept on the way.
      loop: the name they are kept under.

    Returns:
      `[Q, K]` float32 nats; positive: the subset helps the query. With token groups `[Q G, K]`, a
      query's groups one after the other, G of them.

    Raises:
      ValueError: where `auto` chose first order, and a sample of exact measurements disagrees.
    """
    mesh = meshes.mesh_for(len(operators)) if mesh is None else mesh
    params, site = meshes.everywhere((params, site), mesh)
    operators = jax.tree.map(meshes.place, operators, shardings(operators, mesh))
    measured = functools.partial(measure_batch, params, site, view=view, mesh=mesh)
    count, k = len(jax.tree.leaves(data)[0]), len(operators)
    one = jax.tree.map(lambda v: v[:1], data)
    _, tokens, classes = jax.eval_shape(view, params, site, one)[0].logits_NxTxC.shape
    each = operators.a_KxRxO[0].size
    size, how = batch_sizes(k, each, count, tokens, classes, settings, mesh)
    if settings.form == "auto" and how.first_order:
        _check_first_order(measured, operators, data, settings, mesh)
    groups = -(-tokens // how.group) if how.group else 1
    begin, y_QxGxK = keep.resume(loop, np.zeros((count, groups, k), np.float32))
    for first in progress(range(begin, count, size), desc="measure"):
        rows = np.minimum(np.arange(first, first + size), count - 1)  # one shape for every batch
        batch = meshes.place(data, meshes.over_examples(mesh), rows)
        found = meshes.fetch(measured(operators, batch, how=how)).reshape(size, groups, k)
        y_QxGxK[first : first + size] = found[: count - first]
        keep.step(loop, min(first + size, count), lambda: y_QxGxK)
    return y_QxGxK.reshape(-1, k)


def shardings(operators: Operators, mesh: Mesh) -> Operators:
    """Where an index lives: its K matrices over `subset`, the basis on every device."""
    meshes.check_divisible("num_subsets", len(operators), mesh, meshes.SUBSET)
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, operators)
    return dataclasses.replace(everywhere, a_KxRxO=split, size_K=split)


def batch_sizes(
    k: int,
    each: int,
    count: int,
    tokens: int,
    classes: int,
    settings: MeasureSettings,
    mesh: Mesh,
) -> tuple[int, _How]:
    """Queries a batch, of all devices, and how they are measured, as `max_bytes` lets them.

    Args:
      k: subsets.
      each: numbers in a steering matrix.
      count: Q.
      tokens, classes: T and C.
      settings: form, group and memory.
      mesh: devices.
    """
    own = k // mesh.shape[meshes.SUBSET]
    # About three arrays of shifts are alive at once.
    shifts = 3 * 4 * tokens * classes
    first_order = settings.form == "first_order" or (
        settings.form == "auto" and k * shifts > settings.max_bytes
    )
    if first_order:
        groups = -(-tokens // settings.group) if settings.group else 1
        gradient = 2 * 4 * each * groups
        queries, subsets = settings.max_bytes // max(gradient, shifts), own
    else:
        queries, subsets = block_sizes(count, own, shifts, settings.max_bytes)
    # A row of devices holds the same queries together, each of them a share while looking.
    queries = meshes.even(-(-count // mesh.shape[meshes.DATA]), max(1, queries))
    queries = -(-queries // mesh.shape[meshes.SUBSET]) * mesh.size
    scale = 1.0 if first_order else settings.scale
    return queries, _How(first_order, scale, settings.group, subsets)


def _check_first_order(
    measured: Callable[..., jax.Array],
    operators: Operators,
    data: Any,
    settings: MeasureSettings,
    mesh: Mesh,
    sample: int = 8,
) -> None:
    """Refuse to go first-order where steering for real says something else."""
    total, k = len(jax.tree.leaves(data)[0]), len(operators)

    def some(count: int, multiple: int) -> np.ndarray:
        """A few rows of `count`, over and over until the devices can share them evenly."""
        return np.resize(np.arange(min(sample, count)), -(-sample // multiple) * multiple)

    batch = meshes.place(data, meshes.over_examples(mesh), some(total, mesh.size))
    subsets = some(k, mesh.shape[meshes.SUBSET])
    few = dataclasses.replace(
        operators, a_KxRxO=operators.a_KxRxO[subsets], size_K=operators.size_K[subsets]
    )
    linear, exact = (
        meshes.fetch(measured(few, batch, how=_How(form, settings.scale, settings.group, 1)))
        for form in (True, False)
    )
    difference = np.linalg.norm(linear - exact) / max(np.linalg.norm(exact), 1e-30)
    if not difference <= settings.tolerance:
        raise ValueError(
            f"first-order measurements differ from exact ones by {difference:.3f} of their size "
            f"(tolerance={settings.tolerance}) at scale={settings.scale}: lower the scale, or set "
            "form='exact'"
        )
