"""A batch's share of the sums that the closed form needs (docs/method.md §5.3).

A batch runs the frozen model one part at a time, and holds of each part its features b, its errors
e and its share of the curvature; then it adds each example's `g_i = Σ_t omega_t b_{i,t} e_{i,t}ᵀ`
to its subsets, which a table says or the nearest centroid, and its heaviest tokens to the store of
those that are kept. Nothing of size N, or of tokens times vocabulary, outlives a part.

Letters of its own: W devices along the mesh axis `data`, n examples of a part or of a device, k
subsets of a device, o outputs taken at a time, P pairs of outputs, G named groups.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stride_jax.objectives import Hessian
from stride_jax.observed import Context, Forward, Observed
from stride_jax.operators import kept as stores
from stride_jax.operators.basis import Basis, example_features
from stride_jax.operators.content import Content, assign
from stride_jax.operators.inner_sites import LayerSite, ResidualSite
from stride_jax.operators.kept import Kept
from stride_jax.operators.moments import Moments, compensated, pairs
from stride_jax.operators.products import Joined, squared, sum_products
from stride_jax.operators.sites import Site
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.precision import precise
from stride_jax.taps import Params


class Batch(NamedTuple):
    """A batch of examples and the subsets they join.

    Attributes:
      data: input of `Step.forward`.
      row_B: int32 rows of the examples in the training set; −1 for padding.
      rows_WxSxK: rows of each device's share that each subset sums, from `passes.sum_table`; None
        where content says who joins, or nobody does.
      sizes_K: members of each subset in the batch; None likewise.
      group_B: int32 named group of each example, −1 for none; None where none are named.
    """

    data: Any
    row_B: jax.Array
    rows_WxSxK: jax.Array | None
    sizes_K: jax.Array | None
    group_B: jax.Array | None = None


class Sums(NamedTuple):
    """What a pass carries from batch to batch.

    Attributes:
      moments: sums over examples.
      kept: stores of the devices along `data`; None where nothing is kept.
    """

    moments: Moments
    kept: Kept | None


class PerExample(NamedTuple):
    """What a pass says of each example.

    Attributes:
      residual_B: `||e_i|| = sqrt(Σ_t omega_t ||e_{i,t}||²)`.
      cluster_B: the subset that its content chose; −1 where a table did.
      norm_B: `||g_i||`.
    """

    residual_B: Any
    cluster_B: Any
    norm_B: Any


class Step(NamedTuple):
    """What a compiled step of the pass depends on besides shapes.

    Attributes:
      forward: the frozen model; traced.
      parts: number of equal parts that the batch is cut into.
      width: number of outputs whose outer products are held at a time, where a row of devices
        shares features and errors; 0 where it shares the products, which are smaller.
      mesh: devices.
      rows: as in `moments.Curvature`.
    """

    forward: Forward
    parts: int
    width: int
    mesh: Mesh
    rows: int


class _Curvature(NamedTuple):
    """A part's share of the sums that are not per subset; names as in `Moments`."""

    features_RxR: jax.Array
    outputs_OxO: jax.Array
    fisher_PxRxR: jax.Array | None
    eigenvalues_RxO: jax.Array | None
    tokens: jax.Array
    coupled_MxM: jax.Array | None


def _fisher_pairs(b_nxR: jax.Array, w_n: jax.Array, hessian: Hessian, width: int) -> jax.Array:
    """`Σ w b bᵀ H_{cc'}` of the pairs `c <= c'` of C = `width` outputs, `[P, R, R]`."""

    def block(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        weight_n = w_n * hessian.entry(*pair)
        return (b_nxR * weight_n[:, None]).T @ b_nxR

    first, second = (jnp.asarray(i) for i in pairs(width))
    return jax.lax.map(block, (first, second))


def _assigned(content: Content, b_BxTxR: jax.Array, e_BxTxO: jax.Array, mesh: Mesh) -> jax.Array:
    """The cluster of each example, which the one device that holds the example finds."""
    rows = meshes.over_examples(mesh).spec
    own = jax.shard_map(
        assign, mesh=mesh, in_specs=(P(), rows, rows), out_specs=rows, check_vma=False
    )
    return own(content, b_BxTxR, e_BxTxO)


def _keep(kept: Kept, b_BxTxR: jax.Array, e_BxTxO: jax.Array, row_B: jax.Array, mesh: Mesh) -> Kept:
    """Each row's store with the heaviest of its devices' own examples."""
    row, rows = P(meshes.DATA), meshes.over_examples(mesh).spec

    def local(kept: Kept, b_nxTxR: jax.Array, e_nxTxO: jax.Array, row_n: jax.Array) -> Kept:
        new = stores.of_batch(kept, b_nxTxR, e_nxTxO, row_n)
        new = jax.tree.map(lambda v: jax.lax.all_gather(v, meshes.SUBSET, tiled=True), new)
        return stores.with_more(kept, new)

    own = jax.shard_map(
        local, mesh=mesh, in_specs=(row, rows, rows, rows), out_specs=row, check_vma=False
    )
    return own(kept, b_BxTxR, e_BxTxO, row_B)


class _Part(NamedTuple):
    """What outlives a part of a batch: features, weighted errors and `||e_i||`."""

    b_nxTxR: jax.Array
    e_nxTxO: jax.Array
    residual_n: jax.Array


def _curvature(
    fixed: tuple[tuple[jax.Array, jax.Array] | None, jax.Array | None],
    site: Site,
    observed: Observed,
    b_nxTxR: jax.Array,
    e_nxTxO: jax.Array,
    rows_nxCxO: jax.Array | None,
    few_nxcxO: jax.Array | None,
    exact: bool,
) -> _Curvature:
    """The curvature of one device's examples, whose weights are those of the site's tokens."""
    w, b, e = (v.reshape(observed.weights_NxT.size, -1)
               for v in (observed.weights_NxT, b_nxTxR, e_nxTxO))  # fmt: skip
    hessian = observed.hessian() if rows_nxCxO is None else Hessian(rows=rows_nxCxO)
    w_n, eigenvalues, coupled, (rotation, strongest_M) = w[:, 0], None, None, fixed
    if rotation is not None:
        left, right = rotation
        # `Σ w (Q_bᵀ b)² ⊗ (variance of the outputs' errors along Q_o)`
        eigenvalues = ((b @ left) ** 2 * w).T @ site.variances(right, hessian, e)
        if strongest_M is not None:
            assert few_nxcxO is not None, "a layer site has the rows of its curvature"
            at_r, at_o = strongest_M // right.shape[1], strongest_M % right.shape[1]
            along = jnp.einsum("nco,ou->ncu", few_nxcxO, right)[..., at_o]
            along *= jnp.sqrt(w)[:, :, None]
            pairs_mxM = ((b @ left)[:, None, at_r] * along).reshape(-1, len(strongest_M))
            own = jnp.arange(len(strongest_M))
            whole_M = eigenvalues.ravel()[strongest_M]
            coupled = squared(pairs_mxM).at[own, own].set(whole_M)
    return _Curvature(
        (w * b).T @ b,
        site.fisher(w_n, hessian, e),
        _fisher_pairs(b, w_n, hessian, site.width) if exact else None,
        eigenvalues,
        w_n.sum(),
        coupled,
    )


def _part(
    total: Moments,
    params: Params,
    site: Site,
    basis: Basis,
    output: tuple[Observed, Context, jax.Array],
    step: Step,
) -> tuple[_Curvature, _Part]:
    """Curvature of a part's examples by device, `[devices, …]`; what is summed by subset later."""
    observed, context, mask_n = output
    # The sums read them several times, and are not to compute them anew each time.
    b_nxTxR, errors_nxTxO = jax.lax.optimization_barrier(
        (example_features(basis, observed.activations), site.errors(params, observed, context))
    )
    rows_nxCxO = few_nxcxO = None
    if isinstance(site, LayerSite):
        rows_nxCxO = site.rows(params, observed, context)
        if total.strongest_M is not None:
            count = min(step.rows, rows_nxCxO.shape[1] - observed.objective.invariant)
            few_nxcxO = site.rows(params, observed, context, count)
    expected_nxTxO = errors_nxTxO
    if isinstance(site, ResidualSite):
        expected_nxTxO = site.drawn(params, observed, context)
    residual_n = observed.residuals()
    mask_nx1 = mask_n[:, None]
    weights_nxT = site.token_weights(observed, errors_nxTxO) * mask_nx1
    observed = dataclasses.replace(observed.without_taps(), weights_NxT=weights_nxT)

    def local(*args: Any) -> _Curvature:
        own = _curvature(*args, exact=total.fisher_PxRxR is not None)
        return jax.tree.map(lambda v: v[None], own)

    rows = meshes.over_examples(step.mesh).spec
    by_device = jax.shard_map(
        local, mesh=step.mesh, in_specs=(P(), P(), *[rows] * 5), out_specs=rows, check_vma=False
    )  # fmt: skip
    fixed = total.rotation, total.strongest_M
    curvature = by_device(fixed, site, observed, b_nxTxR, expected_nxTxO, rows_nxCxO, few_nxcxO)
    return curvature, _Part(b_nxTxR, errors_nxTxO * mask_nx1[..., None], residual_n)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="step")
@precise
def add_batch(
    sums: Sums,
    params: Params,
    site: Site,
    basis: Basis,
    content: Content | None,
    batch: Batch,
    step: Step,
) -> tuple[Sums, PerExample]:
    """Sums with a batch added, and what the batch says of its examples."""
    devices, total = step.mesh.size, sums.moments
    num_subsets, mask_B = total.sizes_K[0].shape[0], (batch.row_B >= 0).astype(jnp.float32)

    def part(rows: tuple[Any, jax.Array]) -> tuple[_Curvature, _Part]:
        with meshes.traced_over(step.mesh):
            output = (*step.forward(params, site, rows[0]), rows[1])
        return _part(total, params, site, basis, output, step)

    def add(so_far: _Curvature, rows: Any) -> tuple[_Curvature, _Part]:
        new, rest = part(rows)
        return jax.tree.map(jnp.add, so_far, new), rest

    pieces = jax.tree.map(lambda v: meshes.cut(v, devices, step.parts), (batch.data, mask_B))
    shapes, _ = jax.eval_shape(part, jax.tree.map(lambda v: v[0], pieces))
    own = meshes.over_examples(step.mesh)
    none = jax.tree.map(
        lambda v: jax.lax.with_sharding_constraint(jnp.zeros(v.shape, v.dtype), own), shapes
    )
    # Devices wait for each other once a batch, after the loop.
    new, rest = jax.lax.scan(add, none, pieces)
    new = jax.tree.map(lambda v: v.sum(axis=0), new)
    rest = jax.tree.map(lambda v: meshes.joined(v, devices), rest)
    b_BxTxR, e_BxTxO = rest.b_nxTxR, rest.e_nxTxO
    cluster_B, norm_B = jnp.full_like(batch.row_B, -1), jnp.zeros_like(rest.residual_n)
    members, sizes_K, by_subset, by_group, kept = None, None, None, None, None
    if content is not None:
        nearest_B = _assigned(content, b_BxTxR, e_BxTxO, step.mesh)
        cluster_B = jnp.where(mask_B > 0, nearest_B, num_subsets)
        members, sizes_K = cluster_B, jax.ops.segment_sum(mask_B, cluster_B, num_subsets)
    elif batch.rows_WxSxK is not None:
        members, sizes_K = batch.rows_WxSxK, batch.sizes_K
    if members is not None:
        num_groups = 0 if total.groups_GxRxO is None else len(total.groups_GxRxO[0])
        joined = Joined(members, num_subsets, batch.group_B, num_groups)
        by_subset, norm_B, by_group = sum_products(b_BxTxR, e_BxTxO, joined, step.width, step.mesh)
    if sums.kept is not None:
        kept = _keep(sums.kept, b_BxTxR, e_BxTxO, batch.row_B, step.mesh)

    def grown(old: Any, new: jax.Array | None) -> Any:
        return old if new is None else compensated(old, new)

    moments = Moments(
        grown(total.features_RxR, new.features_RxR),
        grown(total.outputs_OxO, new.outputs_OxO),
        grown(total.fisher_PxRxR, new.fisher_PxRxR),
        grown(total.eigenvalues_RxO, new.eigenvalues_RxO),
        grown(total.gradients_KxRxO, by_subset),
        grown(total.sizes_K, sizes_K),
        grown(total.tokens, new.tokens),
        total.rotation,
        grown(total.groups_GxRxO, by_group),
        grown(total.coupled_MxM, new.coupled_MxM),
        total.strongest_M,
    )
    return Sums(moments, kept), PerExample(rest.residual_n, cluster_B, norm_B)
