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

from stride_jax.design import gather_add
from stride_jax.objectives import Hessian
from stride_jax.observed import Context, Forward, Observed
from stride_jax.operators import kept as stores
from stride_jax.operators.basis import Basis, example_features
from stride_jax.operators.content import Content, assign
from stride_jax.operators.kept import Kept
from stride_jax.operators.moments import Moments, compensated, pairs
from stride_jax.operators.sites import Site
from stride_jax.runtime import mesh as meshes
from stride_jax.taps import Params


class Batch(NamedTuple):
    """A batch of examples and the subsets they join.

    Attributes:
      data: input of `Step.forward`.
      row_B: int32 rows of the examples in the training set; −1 for padding.
      rows_WxSxK: rows of each device's share that each subset sums, from `passes.sum_tables`; None
        where content says who joins.
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
      width: number of outputs whose outer products are held at a time.
      mesh: devices.
    """

    forward: Forward
    parts: int
    width: int
    mesh: Mesh


class _Joined(NamedTuple):
    """Who adds to what.

    Attributes:
      members: `[W, S, K]` as in `Batch`; or `[B]`, the one subset of each example.
      num_subsets: K.
      group_B: as in `Batch`.
      num_groups: G.
    """

    members: jax.Array
    num_subsets: int
    group_B: jax.Array | None
    num_groups: int


class _Curvature(NamedTuple):
    """A part's share of the sums that are not per subset; names as in `Moments`."""

    features_RxR: jax.Array
    outputs_OxO: jax.Array
    fisher_PxRxR: jax.Array | None
    eigenvalues_RxO: jax.Array | None
    tokens: jax.Array


def _fisher_pairs(
    b_nxR: jax.Array, w_n: jax.Array, hessian: Hessian, width: int, mesh: Mesh
) -> jax.Array:
    """`Σ w b bᵀ H_{cc'}` of the pairs `c <= c'` of C = `width` outputs, `[P, R, R]`."""
    first, second = (jnp.asarray(i) for i in pairs(width))

    def local(b_nxR: jax.Array, w_n: jax.Array, hessian: Hessian) -> jax.Array:
        def block(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            weight_n = w_n * hessian.entry(*pair)
            return (b_nxR * weight_n[:, None]).T @ b_nxR

        # One sum over devices, after the loop: on CPU, XLA runs a loop that waits for other devices
        # concurrently with other waiting work, and runs out of threads.
        return jax.lax.psum(jax.lax.map(block, (first, second)), mesh.axis_names)

    rows = meshes.over_examples(mesh).spec
    own = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 3, out_specs=P())
    return own(b_nxR, w_n, hessian)


def _by_subset(
    b_BxTxR: jax.Array,
    e_BxTxO: jax.Array,
    joined: _Joined,
    step: Step,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`Σ_{i in A_k} g_i`, `[K, R, O]`, `g_i = Σ_t b_{i,t} e_{i,t}ᵀ`; and `||g_i||`, `[B]`.

    Each example's outer product is computed once, `step.width` outputs at a time, and added to its
    subsets; each device adds up its own examples. Third, the sums by named group, `[G, R, O]`.

    Args:
      b_BxTxR, e_BxTxO: features and weighted errors.
      joined: subsets and groups.
      step: width and mesh.
    """
    outputs, width = e_BxTxO.shape[2], step.width
    blocks = -(-outputs // width)
    own = joined.num_subsets // step.mesh.shape[meshes.SUBSET]

    def add(g_nxRo: jax.Array, members: jax.Array) -> jax.Array:
        if members.ndim == 3:
            return gather_add(g_nxRo, members[0])
        first = jax.lax.axis_index(meshes.SUBSET) * own
        # Those of other devices fall outside and are dropped.
        place_n = jnp.where(members >= first, members - first, own)
        return jax.ops.segment_sum(g_nxRo[:-1], place_n, own)

    def whole(sums: jax.Array) -> jax.Array:
        """Blocks of outputs joined, `[…, R, O]`."""
        sums = sums.reshape(blocks, -1, b_BxTxR.shape[2], width)
        return jnp.moveaxis(sums, 0, 2).reshape(*sums.shape[1:3], blocks * width)[..., :outputs]

    def local(
        b_nxTxR: jax.Array, e_nxTxO: jax.Array, members: jax.Array, group_n: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        n, tokens, _ = b_nxTxR.shape
        # Padding rows point at one more example, of zeros.
        b_nxTxR = jnp.pad(b_nxTxR, ((0, 1), (0, 0), (0, 0)))
        padded = jnp.pad(e_nxTxO, ((0, 1), (0, 0), (0, blocks * width - outputs)))

        def block(e_nxTxo: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
            g_nxRo = jnp.einsum("ntr,nto->nro", b_nxTxR, e_nxTxo).reshape(n + 1, -1)
            by_group = None
            if group_n is not None:
                # Those of no group come after the last one, and are dropped.
                place_n = jnp.where(group_n >= 0, group_n, joined.num_groups)
                by_group = jax.ops.segment_sum(g_nxRo[:-1], place_n, joined.num_groups)
            return add(g_nxRo, members), (g_nxRo[:-1] ** 2).sum(axis=1), by_group

        split = jnp.moveaxis(padded.reshape(n + 1, tokens, blocks, width), 2, 0)
        sums, squares_n, by_group = jax.lax.map(block, split)
        total, named = jax.lax.psum(jax.tree.map(whole, (sums, by_group)), meshes.DATA)
        return total, jnp.sqrt(squares_n.sum(axis=0)), named

    rows = P(meshes.DATA)
    table = P(meshes.DATA, None, meshes.SUBSET) if joined.members.ndim == 3 else rows
    # Norms and the groups' sums are the same along `subset`, which the checker can't know.
    summed = jax.shard_map(
        local, mesh=step.mesh, in_specs=(rows, rows, table, rows),
        out_specs=(P(meshes.SUBSET), rows, P()), check_vma=False,
    )  # fmt: skip
    return summed(b_BxTxR, e_BxTxO, joined.members, joined.group_B)


def _assigned(content: Content, b_BxTxR: jax.Array, e_BxTxO: jax.Array, mesh: Mesh) -> jax.Array:
    """The cluster of each example, which the one device that holds the example finds."""
    rows = meshes.over_examples(mesh).spec
    own = jax.shard_map(
        assign, mesh=mesh, in_specs=(P(), rows, rows), out_specs=rows, check_vma=False
    )
    return own(content, b_BxTxR, e_BxTxO)


def _keep(kept: Kept, b_BxTxR: jax.Array, e_BxTxO: jax.Array, row_B: jax.Array, mesh: Mesh) -> Kept:
    """Each device's store with the heaviest of its own examples."""
    rows = P(meshes.DATA)
    own = jax.shard_map(
        stores.with_batch, mesh=mesh, in_specs=(rows,) * 4, out_specs=rows, check_vma=False
    )
    return own(kept, b_BxTxR, e_BxTxO, row_B)


class _Part(NamedTuple):
    """What outlives a part of a batch: features, weighted errors and `||e_i||`."""

    b_nxTxR: jax.Array
    e_nxTxO: jax.Array
    residual_n: jax.Array


def _part(
    total: Moments,
    params: Params,
    site: Site,
    basis: Basis,
    output: tuple[Observed, Context, jax.Array],
    mesh: Mesh,
) -> tuple[_Curvature, _Part]:
    """Curvature of a part's examples, and what is summed by subset later."""
    observed, context, mask_n = output
    b_nxTxR = example_features(basis, observed.activations)
    weights_nxT = observed.weights_NxT * mask_n[:, None]
    errors_nxTxO = site.errors(params, observed, context)
    w, b, e = (v.reshape(weights_nxT.size, -1) for v in (weights_nxT, b_nxTxR, errors_nxTxO))
    w_n, hessian, eigenvalues = w[:, 0], observed.hessian(), None
    if total.rotation is not None:
        left, right = total.rotation
        # `Σ w (Q_bᵀ b)² ⊗ (variance of the outputs' errors along Q_o)`
        eigenvalues = ((b @ left) ** 2 * w).T @ site.variances(right, hessian, e)
    curvature = _Curvature(
        (w * b).T @ b,
        site.fisher(w_n, hessian, e),
        None if total.fisher_PxRxR is None else _fisher_pairs(b, w_n, hessian, site.width, mesh),
        eigenvalues,
        w_n.sum(),
    )
    residual_n = dataclasses.replace(observed, weights_NxT=weights_nxT).residuals()
    return curvature, _Part(b_nxTxR, errors_nxTxO * weights_nxT[..., None], residual_n)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="step")
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
        output = (*step.forward(params, site, rows[0]), rows[1])
        return _part(total, params, site, basis, output, step.mesh)

    def add(so_far: _Curvature, rows: Any) -> tuple[_Curvature, _Part]:
        new, rest = part(rows)
        return jax.tree.map(jnp.add, so_far, new), rest

    pieces = jax.tree.map(lambda v: meshes.cut(v, devices, step.parts), (batch.data, mask_B))
    shapes, _ = jax.eval_shape(part, jax.tree.map(lambda v: v[0], pieces))
    none = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    new, rest = jax.lax.scan(add, none, pieces)
    rest = jax.tree.map(lambda v: meshes.joined(v, devices), rest)
    b_BxTxR, e_BxTxO = rest.b_nxTxR, rest.e_nxTxO
    if content is not None:
        nearest_B = _assigned(content, b_BxTxR, e_BxTxO, step.mesh)
        cluster_B = jnp.where(mask_B > 0, nearest_B, num_subsets)
        members, sizes_K = cluster_B, jax.ops.segment_sum(mask_B, cluster_B, num_subsets)
    else:
        assert batch.rows_WxSxK is not None, "a table, or content"
        assert batch.sizes_K is not None, "a table, or content"
        members, sizes_K = batch.rows_WxSxK, batch.sizes_K
        cluster_B = jnp.full_like(batch.row_B, -1)
    num_groups = 0 if total.groups_GxRxO is None else len(total.groups_GxRxO[0])
    joined = _Joined(members, num_subsets, batch.group_B, num_groups)
    by_subset, norm_B, by_group = _by_subset(b_BxTxR, e_BxTxO, joined, step)
    kept = None
    if sums.kept is not None:
        kept = _keep(sums.kept, b_BxTxR, e_BxTxO, batch.row_B, step.mesh)

    def grown(old: Any, new: jax.Array | None) -> Any:
        return None if new is None else compensated(old, new)

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
    )
    return Sums(moments, kept), PerExample(rest.residual_n, cluster_B, norm_B)
