"""A batch's share of the moments that the closed form needs (docs/method.md §5.3).

A batch runs the frozen model one part at a time, and holds of each part its features b, its errors
e and its share of the curvature; then it adds each example's `g_i = Σ_t omega_t b_{i,t} e_{i,t}ᵀ`
to its subsets. Nothing of size N, or of tokens times vocabulary, outlives a part.

Letters of its own: W devices along the mesh axis `data`, n examples of a part or of a device, k
subsets of a device, o outputs taken at a time, P pairs of outputs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stride_jax.design import gather_add
from stride_jax.observed import Context, Forward, Observed
from stride_jax.operators.basis import Basis, example_features
from stride_jax.operators.gradients import squared_errors
from stride_jax.operators.moments import Moments, compensated, pairs
from stride_jax.operators.sites import Site
from stride_jax.runtime import mesh as meshes
from stride_jax.taps import Params


class Batch(NamedTuple):
    """A batch of examples and the subsets they join.

    Attributes:
      data: input of `Step.forward`.
      mask_B: 1 for examples, 0 for padding.
      rows_WxSxK: rows of each device's share that each subset sums, from `passes.sum_tables`.
      sizes_K: members of each subset in the batch.
    """

    data: Any
    mask_B: jax.Array
    rows_WxSxK: jax.Array
    sizes_K: jax.Array


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


class _Curvature(NamedTuple):
    """A part's share of the sums that are not per subset; names as in `Moments`."""

    features_RxR: jax.Array
    outputs_OxO: jax.Array
    fisher_PxRxR: jax.Array | None
    eigenvalues_RxO: jax.Array | None
    tokens: jax.Array


def _fisher_pairs(b_nxR: jax.Array, w_n: jax.Array, p_nxC: jax.Array, mesh: Mesh) -> jax.Array:
    """`Σ w b bᵀ (diag p − p pᵀ)_{cc'}` of the pairs `c <= c'`, `[P, R, R]`."""
    first, second = (jnp.asarray(i) for i in pairs(p_nxC.shape[1]))

    def local(b_nxR: jax.Array, w_n: jax.Array, p_nxC: jax.Array) -> jax.Array:
        def block(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            c, other = pair
            weight_n = w_n * p_nxC[:, c] * ((c == other) - p_nxC[:, other])
            return (b_nxR * weight_n[:, None]).T @ b_nxR

        # One sum over devices, after the loop: on CPU, XLA runs a loop that waits for other devices
        # concurrently with other waiting work, and runs out of threads.
        return jax.lax.psum(jax.lax.map(block, (first, second)), mesh.axis_names)

    rows = meshes.over_examples(mesh).spec
    own = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 3, out_specs=P())
    return own(b_nxR, w_n, p_nxC)


def _by_subset(
    b_BxTxR: jax.Array, e_BxTxO: jax.Array, rows_WxSxK: jax.Array, step: Step
) -> jax.Array:
    """`Σ_{i in A_k} Σ_t b_{i,t} e_{i,t}ᵀ`, `[K, R, O]`.

    Each example's outer product is computed once, `step.width` outputs at a time, and added to its
    subsets; each device adds up its own examples.
    """
    outputs, width = e_BxTxO.shape[2], step.width
    blocks = -(-outputs // width)

    def local(b_nxTxR: jax.Array, e_nxTxO: jax.Array, rows_1xSxk: jax.Array) -> jax.Array:
        n, tokens, rank = b_nxTxR.shape
        # Padding rows point at one more example, of zeros.
        b_nxTxR = jnp.pad(b_nxTxR, ((0, 1), (0, 0), (0, 0)))
        padded = jnp.pad(e_nxTxO, ((0, 1), (0, 0), (0, blocks * width - outputs)))

        def block(e_nxTxo: jax.Array) -> jax.Array:
            g_nxRo = jnp.einsum("ntr,nto->nro", b_nxTxR, e_nxTxo).reshape(n + 1, -1)
            return gather_add(g_nxRo, rows_1xSxk[0])

        split = jnp.moveaxis(padded.reshape(n + 1, tokens, blocks, width), 2, 0)
        sums = jax.lax.map(block, split).reshape(blocks, -1, rank, width)
        sums = jnp.moveaxis(sums, 0, 2).reshape(-1, rank, blocks * width)[..., :outputs]
        return jax.lax.psum(sums, meshes.DATA)

    specs = P(meshes.DATA), P(meshes.DATA), P(meshes.DATA, None, meshes.SUBSET)
    summed = jax.shard_map(local, mesh=step.mesh, in_specs=specs, out_specs=P(meshes.SUBSET))
    return summed(b_BxTxR, e_BxTxO, rows_WxSxK)


class _Part(NamedTuple):
    """What outlives a part of a batch: features, weighted errors and `||e_i||`."""

    b_nxTxR: jax.Array
    e_nxTxO: jax.Array
    norms_n: jax.Array


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
    p_nxTxC = jax.nn.softmax(observed.logits_NxTxC)
    w, b, e, p = (
        v.reshape(weights_nxT.size, -1) for v in (weights_nxT, b_nxTxR, errors_nxTxO, p_nxTxC)
    )
    eigenvalues = None
    if total.rotation is not None:
        left, right = total.rotation
        # `Σ w (Q_bᵀ b)² ⊗ (variance of the outputs' errors along Q_o)`
        eigenvalues = ((b @ left) ** 2 * w).T @ site.variances(right, p, e)
    curvature = _Curvature(
        (w * b).T @ b,
        site.fisher(weights_nxT, p_nxTxC, errors_nxTxO),
        None if total.fisher_PxRxR is None else _fisher_pairs(b, w[:, 0], p, mesh),
        eigenvalues,
        w.sum(),
    )
    squares_nxT = squared_errors(p_nxTxC, observed.labels_NxT)
    norms_n = jnp.sqrt((weights_nxT * squares_nxT).sum(axis=1))
    return curvature, _Part(b_nxTxR, errors_nxTxO * weights_nxT[..., None], norms_n)


def _cut(v: jax.Array, devices: int, parts: int) -> jax.Array:
    """Cut a batch into parts with as many rows of each device, so that no row moves."""
    own = v.reshape(devices, parts, -1, *v.shape[1:])
    return jnp.swapaxes(own, 0, 1).reshape(parts, -1, *v.shape[1:])


def _join(v: jax.Array, devices: int) -> jax.Array:
    """The batch that `_cut` cut."""
    own = v.reshape(v.shape[0], devices, -1, *v.shape[2:])
    return jnp.swapaxes(own, 0, 1).reshape(-1, *v.shape[2:])


@functools.partial(jax.jit, donate_argnums=0, static_argnames="step")
def add_batch(
    total: Moments, params: Params, site: Site, basis: Basis, batch: Batch, step: Step
) -> tuple[Moments, jax.Array]:
    """Moments with a batch added, and its examples' `||e_i||`, `[B]`."""
    devices = step.mesh.size

    def part(rows: tuple[Any, jax.Array]) -> tuple[_Curvature, _Part]:
        output = (*step.forward(params, site, rows[0]), rows[1])
        return _part(total, params, site, basis, output, step.mesh)

    def add(sums: _Curvature, rows: Any) -> tuple[_Curvature, _Part]:
        new, rest = part(rows)
        return jax.tree.map(jnp.add, sums, new), rest

    pieces = jax.tree.map(lambda v: _cut(v, devices, step.parts), (batch.data, batch.mask_B))
    shapes, _ = jax.eval_shape(part, jax.tree.map(lambda v: v[0], pieces))
    none = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    sums, rest = jax.lax.scan(add, none, pieces)
    rest = jax.tree.map(lambda v: _join(v, devices), rest)
    by_subset = _by_subset(rest.b_nxTxR, rest.e_nxTxO, batch.rows_WxSxK, step)

    def grown(old: Any, new: jax.Array | None) -> Any:
        return None if new is None else compensated(old, new)

    return Moments(
        grown(total.features_RxR, sums.features_RxR),
        grown(total.outputs_OxO, sums.outputs_OxO),
        grown(total.fisher_PxRxR, sums.fisher_PxRxR),
        grown(total.eigenvalues_RxO, sums.eigenvalues_RxO),
        grown(total.gradients_KxRxO, by_subset),
        grown(total.sizes_K, batch.sizes_K),
        grown(total.tokens, sums.tokens),
        total.rotation,
    ), rest.norms_n
