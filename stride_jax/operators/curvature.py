"""One pass over the training set: what the closed form needs, and nothing of size N.

Each batch adds its share of three sums: the curvature of the frozen model in the steering
parameters, the gradients `g_i = Σ_t omega_t b_{i,t} e_{i,t}ᵀ` by subset, and the subset sizes.
Sums add up, so examples that come later update an index without a second pass over the old ones.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.design import members
from stride_jax.operators.basis import Basis, features, standardise
from stride_jax.operators.steering import Context, Site
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import Observed

FORMS = ("exact", "eigen", "kronecker")
"""The whole Fisher; Kronecker factors with corrected eigenvalues; Kronecker factors."""

Sum = tuple[jax.Array, jax.Array]
"""A float32 sum and its compensation (Kahan)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over examples.

    Attributes:
      features_RxR: `Σ omega b bᵀ`.
      outputs_OxO: `Σ omega Uᵀ (diag p − p pᵀ) U` at the logit site, `Σ omega δ δᵀ` at a residual
        one.
      fisher_PxRxR: `Σ omega b bᵀ (diag p − p pᵀ)_{cc'}` for the P = O (O + 1) / 2 pairs
        `c <= c'`; None where factors do.
      eigenvalues_RxO: the diagonal of the Fisher in the basis `rotation`; None without one.
      gradients_KxRxO: `Σ_{i in A_k} g_i`.
      sizes_K: members of each subset.
      tokens: `Σ omega`.
      rotation: eigenvectors of the two factors, `([R, R], [O, O])`, fixed before the pass.
    """

    features_RxR: Sum
    outputs_OxO: Sum
    fisher_PxRxR: Sum | None
    eigenvalues_RxO: Sum | None
    gradients_KxRxO: Sum
    sizes_K: Sum
    tokens: Sum
    rotation: tuple[jax.Array, jax.Array] | None


def output_errors(site: Site, observed: Observed, context: Context) -> jax.Array:
    """Minus the gradient of each token's loss in the operator's outputs, `[B, T, O]`.

    `Uᵀ (e_y − p)` at the logit site; at a residual site its pull-back through the frozen layers
    after the tap, `δ = Jᵀ (e_y − p)`, by one vjp at a zero perturbation.
    """
    logits = observed.logits_NxTxC
    errors = jax.nn.one_hot(observed.labels_NxT, logits.shape[-1]) - jax.nn.softmax(logits)
    suffix = site.suffix
    if suffix is None:
        return errors if site.outputs_CxO is None else errors @ site.outputs_CxO

    def rest(z: jax.Array) -> jax.Array:
        replaced = {str(site.tap): z.reshape(z.shape[0], *site.shape)}
        return suffix(site.params, context["inputs"], replaced).reshape(logits.shape)

    _, pull_back = jax.vjp(rest, context["z"])
    return pull_back(errors)[0]


def token_groups(x_BxTx: jax.Array, size: int) -> jax.Array:
    """Runs of `size` tokens as examples of their own, `[B G, size, …]`; the last padded with zeros.

    >>> token_groups(jnp.arange(6.0).reshape(2, 3), 2).tolist()
    [[0.0, 1.0], [2.0, 0.0], [3.0, 4.0], [5.0, 0.0]]
    """
    batch, tokens, *rest = x_BxTx.shape
    groups = -(-tokens // size)
    pad = [(0, 0), (0, groups * size - tokens), *((0, 0) for _ in rest)]
    return jnp.pad(x_BxTx, pad).reshape(batch * groups, size, *rest)


def steering_gradients(
    site: Site, b_BxTxR: jax.Array, observed: Observed, context: Context, group: int = 0
) -> jax.Array:
    """`g = Σ_t omega_t b_t e_tᵀ` of each example, `[B, R, O]`, or group of tokens, `[B G, R, O]`.

    Minus the gradient of its loss in the steering matrix at `a = 0`, so that an operator lowers
    the loss by `<g, a>` to first order.
    """
    errors_BxTxO = output_errors(site, observed, context) * observed.weights_NxT[..., None]
    if group:
        b_BxTxR, errors_BxTxO = (token_groups(v, group) for v in (b_BxTxR, errors_BxTxO))
    return jnp.einsum("btr,bto->bro", b_BxTxR, errors_BxTxO)


def _compensated(total: Sum, new: jax.Array) -> Sum:
    """Kahan's sum: the second array carries what rounding lost."""
    value, lost = total
    new = new - lost
    grown = value + new
    return grown, (grown - value) - new


def pairs(width: int) -> tuple[np.ndarray, np.ndarray]:
    """The output pairs `c <= c'` of an exact Fisher, in the order it is kept."""
    return np.triu_indices(width)


def zeros(
    num_subsets: int,
    rank: int,
    width: int,
    form: str,
    rotation: tuple[jax.Array, jax.Array] | None = None,
) -> Moments:
    """Moments of no examples."""

    def pair(*shape: int) -> Sum:
        return jnp.zeros(shape), jnp.zeros(shape)

    return Moments(
        pair(rank, rank),
        pair(width, width),
        pair(len(pairs(width)[0]), rank, rank) if form == "exact" else None,
        pair(rank, width) if form == "eigen" else None,
        pair(num_subsets, rank, width),
        pair(num_subsets),
        pair(),
        rotation if form == "eigen" else None,
    )


def add(a: Moments, b: Moments) -> Moments:
    """Moments of two disjoint sets of examples together, in the rotation of the first."""
    sums = jax.tree.map(
        lambda x, y: _compensated(_compensated(x, y[0]), -y[1]),
        dataclasses.replace(a, rotation=None),
        dataclasses.replace(b, rotation=None),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return dataclasses.replace(sums, rotation=a.rotation)


def eigenbases(moments: Moments) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors of the two Kronecker factors, in which the Fisher is taken as diagonal."""
    return (
        jnp.linalg.eigh(moments.features_RxR[0])[1],
        jnp.linalg.eigh(moments.outputs_OxO[0])[1],
    )


def _fisher_pairs(b_nxR: jax.Array, w_n: jax.Array, p_nxC: jax.Array) -> jax.Array:
    """`Σ w b bᵀ (diag p − p pᵀ)_{cc'}` of the pairs `c <= c'`, `[P, R, R]`."""
    first, second = (jnp.asarray(i) for i in pairs(p_nxC.shape[1]))

    def block(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        c, other = pair
        weight_n = w_n * p_nxC[:, c] * ((c == other) - p_nxC[:, other])
        return (b_nxR * weight_n[:, None]).T @ b_nxR

    return jax.lax.map(block, (first, second))


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


def _logit_fisher(site: Site, w_nx1: jax.Array, p_nxC: jax.Array) -> jax.Array:
    """`Σ w Uᵀ (diag p − p pᵀ) U`, `[O, O]`."""
    total_C = (w_nx1 * p_nxC).sum(axis=0)
    if site.outputs_CxO is None:
        return jnp.diag(total_C) - (w_nx1 * p_nxC).T @ p_nxC
    u = site.outputs_CxO
    seen = p_nxC @ u
    return (u * total_C[:, None]).T @ u - (w_nx1 * seen).T @ seen


def _by_subset(
    b_BxTxR: jax.Array, e_BxTxO: jax.Array, rows_KxS: jax.Array, mask_KxS: jax.Array, chunk: int
) -> jax.Array:
    """`Σ_{i in A_k} Σ_t b_{i,t} e_{i,t}ᵀ`, `[K, R, O]`: the outer products are never formed."""

    def one(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows_S, mask_S = args
        own = b_BxTxR[rows_S] * mask_S[:, None, None]
        return jnp.einsum("str,sto->ro", own, e_BxTxO[rows_S])

    return jax.lax.map(one, (rows_KxS, mask_KxS), batch_size=chunk)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="chunk")
def _add_batch(
    total: Moments,
    site: Site,
    basis: Basis,
    observed: Observed,
    context: Context,
    rows_KxS: jax.Array,
    mask_KxS: jax.Array,
    mask_B: jax.Array,
    chunk: int,
) -> Moments:
    b_BxTxR = features(basis.weights, standardise(basis, observed.activations))
    weights_BxT = observed.weights_NxT * mask_B[:, None]
    errors_BxTxO = output_errors(site, observed, context)
    rank, width = total.gradients_KxRxO[0].shape[1:]
    b, w, e = (v.reshape(-1, n) for v, n in
               ((b_BxTxR, rank), (weights_BxT, 1), (errors_BxTxO, width)))  # fmt: skip
    p = jax.nn.softmax(observed.logits_NxTxC).reshape(b.shape[0], -1)
    at_logits = site.suffix is None
    outputs = _logit_fisher(site, w, p) if at_logits else (w * e).T @ e
    fisher, eigenvalues = total.fisher_PxRxR, total.eigenvalues_RxO
    if fisher is not None:
        fisher = _compensated(fisher, _fisher_pairs(b, w[:, 0], p))
    if eigenvalues is not None and total.rotation is not None:
        left, right = total.rotation
        if at_logits and site.outputs_CxO is not None:
            right = site.outputs_CxO @ right
        diagonal = _rotated_diagonal((left, right), b, w[:, 0], p, None if at_logits else e)
        eigenvalues = _compensated(eigenvalues, diagonal)
    weighted = errors_BxTxO * weights_BxT[..., None]
    return Moments(
        _compensated(total.features_RxR, (w * b).T @ b),
        _compensated(total.outputs_OxO, outputs),
        fisher,
        eigenvalues,
        _compensated(
            total.gradients_KxRxO, _by_subset(b_BxTxR, weighted, rows_KxS, mask_KxS, chunk)
        ),
        _compensated(total.sizes_K, mask_KxS.sum(axis=1)),
        _compensated(total.tokens, w.sum()),
        total.rotation,
    )


def accumulate(
    num_subsets: int,
    subsets_Nxd: jax.Array,
    site: Site,
    basis: Basis,
    observed: Observed,
    context: Context,
    *,
    form: str,
    rotation: tuple[jax.Array, jax.Array] | None = None,
    start: Moments | None = None,
    batch_size: int = 2048,
    max_bytes: int = 1 << 28,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Moments:
    """Moments of a set of examples, in one pass.

    Args:
      num_subsets: K.
      subsets_Nxd: membership of these examples.
      site: logit or residual.
      basis: psi, fitted before.
      observed, context: the frozen model on these examples, and the site's `context`.
      form: which curvature is kept, one of `FORMS`; `exact` at the logit site only.
      rotation: eigenvectors for `eigen`; of these examples' own factors by default, which takes
        one more pass. Moments that are to be added up need the same.
      start: moments of other examples, to go on from; they are used up.
      batch_size: examples a step; rounded up to a multiple of the mesh axis `data`.
      max_bytes: largest temporary of the sums by subset.
      mesh: examples of a batch are split over `data`, the K axis over `subset`.
      progress: wraps the batches.

    Raises:
      ValueError: an unknown form, or `exact` at a residual site.
    """
    inner = site.suffix is not None or site.outputs_CxO is not None
    if form not in FORMS or (form == "exact" and inner):
        raise ValueError(
            f"form={form!r}: use one of {FORMS}; 'exact' is for the logit site alone, without an "
            "output basis"
        )
    mesh = meshes.make_mesh() if mesh is None else mesh
    run = functools.partial(
        accumulate, num_subsets, subsets_Nxd, site, basis, observed, context,
        batch_size=batch_size, max_bytes=max_bytes, mesh=mesh, progress=progress,
    )  # fmt: skip
    if form == "eigen" and rotation is None:
        return run(form=form, rotation=eigenbases(run(form="kronecker")))
    count, devices = len(observed), mesh.shape[meshes.DATA]
    # Later chunks of a corpus keep the shape of the first.
    size = min(batch_size, count) if start is None else batch_size
    size = -(-size // devices) * devices
    total = start
    if total is None:
        total = zeros(num_subsets, basis.rank, site.width, form, rotation)
        total = jax.device_put(total, _shardings(total, mesh, num_subsets))
    split = NamedSharding(mesh, P(meshes.DATA))
    tables = _tables(subsets_Nxd, num_subsets, size)
    tokens, width = observed.labels_NxT.shape[1], site.width
    bytes_each = 4 * tables[0][0].shape[1] * tokens * (basis.rank + width)
    chunk = max(1, min(num_subsets, max_bytes // bytes_each))
    for i, first in enumerate(progress(range(0, count, size), desc="operators")):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        mask = jnp.asarray(np.arange(first, first + size) < count, jnp.float32)
        part, own = jax.device_put(jax.tree.map(lambda v: v[rows], (observed, context)), split)  # noqa: B023
        table = jax.device_put(tables[i], meshes.over_subsets(mesh))
        total = _add_batch(total, site, basis, part, own, *table, mask, chunk)
    return total


def _tables(
    subsets_Nxd: jax.Array, num_subsets: int, size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For every batch, M by its rows (`design.members`), all padded alike."""
    found = [
        members(subsets_Nxd[start : start + size], num_subsets)
        for start in range(0, len(subsets_Nxd), size)
    ]
    widest = max(rows.shape[1] for rows, _ in found)
    pad = lambda v: np.pad(v, ((0, 0), (0, widest - v.shape[1])))  # noqa: E731
    return [(pad(rows), pad(mask)) for rows, mask in found]


def _shardings(total: Moments, mesh: Mesh, num_subsets: int) -> Moments:
    meshes.check_divisible("num_subsets", num_subsets, mesh, meshes.SUBSET)
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, total)
    return dataclasses.replace(everywhere, gradients_KxRxO=(split, split), sizes_K=(split, split))
