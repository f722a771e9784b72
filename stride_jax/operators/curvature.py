"""One pass over the training set: the moments that the closed form needs.

A batch runs the frozen model a part at a time, and keeps of each part its features b, its errors e
and its share of the curvature; then it adds each example's `g_i = Σ_t omega_t b_{i,t} e_{i,t}ᵀ` to
its subsets. Nothing of size N, or of tokens times vocabulary, outlives a part.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.design import gather_add, members
from stride_jax.observed import Observed
from stride_jax.operators.basis import Basis, features, standardise
from stride_jax.operators.gradients import output_errors, squared_errors
from stride_jax.operators.moments import (
    FORMS,
    Moments,
    compensated,
    eigenbases,
    pairs,
    shardings,
    zeros,
)
from stride_jax.operators.outputs import fold, unfold
from stride_jax.operators.steering import Context, Site, with_params
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.keep import Keep, nowhere
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import Params

View = Callable[[Params, Site, Any], tuple[Observed, Context]]
"""What the frozen model says about a batch of examples, and what the site needs of them."""


def given(params: Params, site: Site, data: tuple[Observed, Context]) -> tuple[Observed, Context]:
    """The view of examples that were looked at before."""
    del params, site
    return data


class _Curvature(NamedTuple):
    """A part's share of the sums that are not by subset; letters as in `Moments`."""

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

        # One sum over devices, after the loop: XLA on CPU runs a loop that waits for other devices
        # beside whatever else waits for them, and runs out of threads.
        return jax.lax.psum(jax.lax.map(block, (first, second)), mesh.axis_names)

    rows = meshes.over_examples(mesh).spec
    own = jax.shard_map(local, mesh=mesh, in_specs=(rows,) * 3, out_specs=P())
    return own(b_nxR, w_n, p_nxC)


def _rotated_diagonal(
    rotation: tuple[jax.Array, jax.Array],
    b_nxR: jax.Array,
    w_n: jax.Array,
    p_nxC: jax.Array,
    errors_nxO: jax.Array | None,
) -> jax.Array:
    """`Σ w (Q_bᵀ b)² ⊗ (variance of the errors along Q_o)`, `[R, O]`."""
    left, right = rotation
    if errors_nxO is None:  # q_oᵀ (diag p − p pᵀ) q_o, the columns of `right` in logit space
        variance_nxO = p_nxC @ right**2 - (p_nxC @ right) ** 2
    else:
        variance_nxO = (errors_nxO @ right) ** 2
    return ((b_nxR @ left) ** 2 * w_n[:, None]).T @ variance_nxO


def _logit_fisher(site: Site, w_nxT: jax.Array, p_nxTxC: jax.Array) -> jax.Array:
    """`Σ w Uᵀ (diag p − p pᵀ) U`, `[O, O]`."""
    diagonal, seen = jnp.einsum("nt,ntc->c", w_nxT, p_nxTxC), p_nxTxC
    if site.signs_C is not None:
        # Buckets have no class in common, so Uᵀ diag(p) U is diagonal too.
        diagonal = fold(diagonal * site.signs_C, site.signs_C, site.width)
        diagonal *= (site.width / site.signs_C.shape[0]) ** 0.5
        seen = fold(p_nxTxC, site.signs_C, site.width)
    return jnp.diag(diagonal) - jnp.einsum("nt,nto,ntu->ou", w_nxT, seen, seen)


def _by_subset(
    b_BxTxR: jax.Array, e_BxTxO: jax.Array, rows_DxSxK: jax.Array, width: int, mesh: Mesh
) -> jax.Array:
    """`Σ_{i in A_k} Σ_t b_{i,t} e_{i,t}ᵀ`, `[K, R, O]`.

    Each example's outer product is made once, `width` outputs at a time, and added to its subsets;
    each device adds up its own examples.

    Args:
      b_BxTxR, e_BxTxO: features and weighted errors.
      rows_DxSxK: from `sum_tables`.
      width: outputs of a block.
      mesh: devices.
    """
    outputs = e_BxTxO.shape[2]
    blocks = -(-outputs // width)

    def local(b_nxTxR: jax.Array, e_nxTxO: jax.Array, rows_1xSxk: jax.Array) -> jax.Array:
        n, tokens, rank = b_nxTxR.shape
        # One more example, of zeros, is what rows point at for padding.
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
    summed = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(meshes.SUBSET))
    return summed(b_BxTxR, e_BxTxO, rows_DxSxK)


def _part(
    site: Site,
    basis: Basis,
    observed: Observed,
    context: Context,
    mask_n: jax.Array,
    exact: bool,
    rotation: tuple[jax.Array, jax.Array] | None,
    mesh: Mesh,
) -> tuple[_Curvature, tuple[jax.Array, jax.Array, jax.Array]]:
    """Curvature of n examples; their features, weighted errors and `||e_i||`."""
    b_nxTxR = features(basis.weights, standardise(basis, observed.activations))
    weights_nxT = observed.weights_NxT * mask_n[:, None]
    errors_nxTxO = output_errors(site, observed, context)
    p_nxTxC = jax.nn.softmax(observed.logits_NxTxC)
    w, b, e, p = (
        v.reshape(weights_nxT.size, -1) for v in (weights_nxT, b_nxTxR, errors_nxTxO, p_nxTxC)
    )
    at_logits = site.suffix is None
    eigenvalues = None
    if rotation is not None:
        left, right = rotation
        if at_logits and site.signs_C is not None:
            right = unfold(right.T, site.signs_C).T
        eigenvalues = _rotated_diagonal((left, right), b, w[:, 0], p, None if at_logits else e)
    curvature = _Curvature(
        (w * b).T @ b,
        _logit_fisher(site, weights_nxT, p_nxTxC) if at_logits else (w * e).T @ e,
        _fisher_pairs(b, w[:, 0], p, mesh) if exact else None,
        eigenvalues,
        w.sum(),
    )
    squares_nxT = squared_errors(p_nxTxC, observed.labels_NxT)
    norms_n = jnp.sqrt((weights_nxT * squares_nxT).sum(axis=1))
    return curvature, (b_nxTxR, errors_nxTxO * weights_nxT[..., None], norms_n)


def _cut(v: jax.Array, devices: int, parts: int) -> jax.Array:
    """Cut a batch into parts with as many rows of each device, so that no row moves."""
    own = v.reshape(devices, parts, -1, *v.shape[1:])
    return jnp.swapaxes(own, 0, 1).reshape(parts, -1, *v.shape[1:])


def _join(v: jax.Array, devices: int) -> jax.Array:
    """The batch that `_cut` cut."""
    own = v.reshape(v.shape[0], devices, -1, *v.shape[2:])
    return jnp.swapaxes(own, 0, 1).reshape(-1, *v.shape[2:])


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("view", "parts", "width", "mesh"))
def add_batch(
    total: Moments,
    params: Params,
    site: Site,
    basis: Basis,
    data: Any,
    rows_DxSxK: jax.Array,
    sizes_K: jax.Array,
    mask_B: jax.Array,
    view: View,
    parts: int,
    width: int,
    mesh: Mesh,
) -> tuple[Moments, jax.Array]:
    """Moments with a batch added, and its examples' `||e_i||`."""

    site = with_params(site, params)

    def look(some: tuple[Any, jax.Array]) -> tuple[_Curvature, tuple[jax.Array, ...]]:
        observed, context = view(params, site, some[0])
        exact = total.fisher_PxRxR is not None
        return _part(site, basis, observed, context, some[1], exact, total.rotation, mesh)

    def step(sums: _Curvature, some: Any) -> tuple[_Curvature, tuple[jax.Array, ...]]:
        new, kept = look(some)
        return jax.tree.map(jnp.add, sums, new), kept

    pieces = jax.tree.map(lambda v: _cut(v, mesh.size, parts), (data, mask_B))
    shapes, _ = jax.eval_shape(look, jax.tree.map(lambda v: v[0], pieces))
    none = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    sums, kept = jax.lax.scan(step, none, pieces)
    b_BxTxR, e_BxTxO, norms_B = jax.tree.map(lambda v: _join(v, mesh.size), kept)
    by_subset = _by_subset(b_BxTxR, e_BxTxO, rows_DxSxK, width, mesh)
    fisher, eigenvalues = total.fisher_PxRxR, total.eigenvalues_RxO
    if fisher is not None and sums.fisher_PxRxR is not None:
        fisher = compensated(fisher, sums.fisher_PxRxR)
    if eigenvalues is not None and sums.eigenvalues_RxO is not None:
        eigenvalues = compensated(eigenvalues, sums.eigenvalues_RxO)
    grown = Moments(
        compensated(total.features_RxR, sums.features_RxR),
        compensated(total.outputs_OxO, sums.outputs_OxO),
        fisher,
        eigenvalues,
        compensated(total.gradients_KxRxO, by_subset),
        compensated(total.sizes_K, sizes_K),
        compensated(total.tokens, sums.tokens),
        total.rotation,
    )
    return grown, norms_B


def accumulate(
    num_subsets: int,
    subsets_Nxd: jax.Array,
    site: Site,
    basis: Basis,
    data: Any,
    *,
    form: str,
    view: View = given,
    params: Params = None,
    rotation: tuple[jax.Array, jax.Array] | None = None,
    batch_size: int = 2048,
    max_bytes: int = 1 << 27,
    mesh: Mesh | None = None,
    progress: Progress = silent,
    keep: Keep = nowhere,
    loop: str = "pass",
) -> tuple[Moments, np.ndarray]:
    """Moments of a set of examples, in one pass.

    Args:
      num_subsets: K.
      subsets_Nxd: membership of these examples.
      site: logit or residual.
      basis: psi, fitted before.
      data: the examples, arrays of N rows each; what `view` takes. By default the frozen model's
        `Observed` and the site's `context`.
      form: which curvature is kept, one of `FORMS`; `exact` at the logit site only.
      view: how the frozen model sees a batch; traced.
      params: the first argument of `view`.
      rotation: eigenvectors for `eigen`; of these examples' own factors by default, which takes
        one more pass. Moments that are to be added up need the same.
      batch_size: examples a step of each row of devices along `subset`, if `max_bytes` lets it.
      max_bytes: on a device, of a part's logits, of a batch's features and errors, and of a batch's
        outer products at a time.
      mesh: examples of a batch are split over all devices, the K axis over `subset`.
      progress: wraps the batches.
      keep: where sums and position are kept on the way.
      loop: the name they are kept under.

    Returns:
      The moments, and how wrong the model is about each example: `||e_i|| = sqrt(Σ_t omega_t
      ||e_y − p||²)`, `[N]` float32. An example's influence on anything is proportional to it, which
      recovery may know beforehand.

    Raises:
      ValueError: an unknown form, `exact` at a residual site, or logits that are not finite.
    """
    inner = site.suffix is not None or site.signs_C is not None
    if form not in FORMS or (form == "exact" and inner):
        raise ValueError(
            f"form={form!r}: use one of {FORMS}; 'exact' is for the logit site alone, without an "
            "output basis"
        )
    mesh = meshes.mesh_for(num_subsets) if mesh is None else mesh
    run = functools.partial(
        accumulate, num_subsets, subsets_Nxd, site, basis, data, view=view, params=params,
        batch_size=batch_size, max_bytes=max_bytes, mesh=mesh, progress=progress, keep=keep,
    )  # fmt: skip
    if form == "eigen" and rotation is None:
        factors, _ = run(form="kronecker", loop=f"{loop} of factors")
        return run(form=form, loop=loop, rotation=eigenbases(factors))
    params, site, basis, rotation = meshes.everywhere((params, site, basis, rotation), mesh)
    total = _zeros(num_subsets, basis.rank, site.width, form, rotation, mesh)
    count = len(subsets_Nxd)
    begin, (total, norms_N) = keep.resume(loop, (total, np.zeros(count, np.float32)))
    one = jax.tree.map(lambda v: v[:1], data)
    _, tokens, classes = jax.eval_shape(view, params, site, one)[0].logits_NxTxC.shape
    size, parts, width = batch_sizes(
        batch_size, count, tokens, classes, basis.rank, site.width, max_bytes, mesh
    )
    tables = sum_tables(np.asarray(subsets_Nxd)[begin:], num_subsets, size, mesh.shape[meshes.DATA])
    by_device = NamedSharding(mesh, P(meshes.DATA, None, meshes.SUBSET))
    waiting: list[tuple[int, jax.Array]] = []

    def state() -> tuple[Moments, np.ndarray]:
        while waiting:
            first, norms_B = waiting.pop()
            norms_N[first : first + size] = meshes.fetch(norms_B)[: count - first]
        return total, norms_N

    for i, first in enumerate(progress(range(begin, count, size), desc="operators")):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        mask = np.asarray(np.arange(first, first + size) < count, np.float32)
        batch = meshes.place(data, meshes.over_examples(mesh), rows)
        mask = meshes.place(mask, meshes.over_examples(mesh))
        table, sizes_K = tables[i]
        table = meshes.place(table, by_device)
        sizes_K = meshes.place(sizes_K, meshes.over_subsets(mesh))
        total, norms_B = add_batch(
            total, params, site, basis, batch, table, sizes_K, mask, view, parts, width, mesh
        )
        waiting.append((first, norms_B))
        keep.step(loop, min(first + size, count), state)
    total, norms_N = state()
    if bad := int((~np.isfinite(norms_N)).sum()):
        raise ValueError(
            f"the model's logits are not finite for {bad} of {count} examples; compute them in "
            "float32 and check the checkpoint"
        )
    return total, norms_N


def batch_sizes(
    batch: int,
    count: int,
    tokens: int,
    classes: int,
    rank: int,
    outputs: int,
    max_bytes: int,
    mesh: Mesh,
) -> tuple[int, int, int]:
    """Examples a batch, its parts, and the outputs taken at a time, as `max_bytes` lets them.

    `batch` is that of a row of devices along `subset`: they all get its features and errors.
    """
    devices, rows = mesh.size, mesh.shape[meshes.DATA]
    kept = 4 * tokens * (rank + outputs)
    batch = meshes.even(count, rows * min(batch, max(1, 4 * max_bytes // kept)))
    own = -(-batch // devices)
    # About four arrays of a part's logits are alive at once.
    parts = -(-own // max(1, max_bytes // (4 * 4 * tokens * classes)))
    size = devices * parts * -(-own // parts)
    width = max_bytes // (4 * rank * size // rows)
    return size, parts, max(1, min(outputs, width))


def sum_tables(
    subsets_Nxd: np.ndarray, num_subsets: int, size: int, devices: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every batch, who adds to which sum, `[D, S, K]`, and the members of each subset, `[K]`.

    A device's rows of the batch are numbered from 0; the row after them, zero, is padding.
    """
    own = size // devices
    found = []
    for start in range(0, len(subsets_Nxd), size):
        batch = subsets_Nxd[start : start + size]
        parts = [members(batch[i : i + own], num_subsets) for i in range(0, size, own)]
        found.append(
            (
                [np.where(mask > 0, rows, own).T for rows, mask in parts],
                np.sum([mask.sum(axis=1) for _, mask in parts], axis=0, dtype=np.float32),
            )
        )
    most = max((len(rows) for parts, _ in found for rows in parts), default=0)
    pad = lambda v: np.pad(v, ((0, most - len(v)), (0, 0)), constant_values=own)  # noqa: E731
    return [(np.stack([pad(rows) for rows in parts]), sizes) for parts, sizes in found]


def _zeros(
    num_subsets: int,
    rank: int,
    outputs: int,
    form: str,
    rotation: tuple[jax.Array, jax.Array] | None,
    mesh: Mesh,
) -> Moments:
    """Moments of no examples, made where they will live."""
    meshes.check_divisible("num_subsets", num_subsets, mesh, meshes.SUBSET)
    empty = functools.partial(zeros, num_subsets, rank, outputs, form)
    where = shardings(jax.eval_shape(empty, rotation), mesh)
    return jax.jit(empty, out_shardings=where)(rotation)
