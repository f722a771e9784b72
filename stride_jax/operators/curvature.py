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
from jax.sharding import Mesh

from stride_jax.design import subset_sum
from stride_jax.operators.basis import Basis, features, standardise
from stride_jax.operators.steering import Context, Site
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.progress import Progress, silent
from stride_jax.taps import Observed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over examples, as pairs of float32 arrays `(sum, compensation)`.

    Attributes:
      features_RxR: `Σ omega b bᵀ`.
      outputs_OxO: `Σ omega (diag p − p pᵀ)` at the logit site, `Σ omega δ δᵀ` at a residual one.
      fisher: `Σ omega b bᵀ ⊗ (diag p − p pᵀ)` as `[O, O, R, R]`; None where Kronecker factors do.
      gradients_KxRxO: `Σ_{i in A_k} g_i`.
      sizes_K: members of each subset.
      tokens: `Σ omega`.
    """

    features_RxR: tuple[jax.Array, jax.Array]
    outputs_OxO: tuple[jax.Array, jax.Array]
    fisher: tuple[jax.Array, jax.Array] | None
    gradients_KxRxO: tuple[jax.Array, jax.Array]
    sizes_K: tuple[jax.Array, jax.Array]
    tokens: tuple[jax.Array, jax.Array]


def output_errors(site: Site, observed: Observed, context: Context) -> jax.Array:
    """Minus the gradient of each token's loss in the operator's outputs, `[B, T, O]`.

    `e_y − p` at the logit site; at a residual site its pull-back through the frozen layers after
    the tap, `δ = Jᵀ (e_y − p)`, by one vjp at a zero perturbation.
    """
    logits = observed.logits_NxTxC
    errors = jax.nn.one_hot(observed.labels_NxT, logits.shape[-1]) - jax.nn.softmax(logits)
    suffix = site.suffix
    if suffix is None:
        return errors

    def rest(z: jax.Array) -> jax.Array:
        replaced = {str(site.tap): z.reshape(z.shape[0], *site.shape)}
        return suffix(site.params, context["inputs"], replaced).reshape(logits.shape)

    _, pull_back = jax.vjp(rest, context["z"])
    return pull_back(errors)[0]


def _compensated(total: tuple[jax.Array, jax.Array], new: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum: the second array carries what rounding lost."""
    value, lost = total
    new = new - lost
    grown = value + new
    return grown, (grown - value) - new


def zeros(num_subsets: int, rank: int, width: int, exact: bool) -> Moments:
    """Moments of no examples."""

    def pair(*shape: int) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros(shape), jnp.zeros(shape)

    return Moments(
        pair(rank, rank),
        pair(width, width),
        pair(width, width, rank, rank) if exact else None,
        pair(num_subsets, rank, width),
        pair(num_subsets),
        pair(),
    )


def add(a: Moments, b: Moments) -> Moments:
    """Moments of two disjoint sets of examples together."""
    return jax.tree.map(
        lambda x, y: _compensated(_compensated(x, y[0]), -y[1]),
        a,
        b,
        is_leaf=lambda node: isinstance(node, tuple),
    )


@functools.partial(jax.jit, donate_argnums=0)
def _add_batch(
    total: Moments,
    site: Site,
    b_BxTxR: jax.Array,
    observed: Observed,
    context: Context,
    subsets_Bxd: jax.Array,
    mask_B: jax.Array,
) -> Moments:
    weights = observed.weights_NxT * mask_B[:, None]
    errors_BxTxO = output_errors(site, observed, context)
    num_subsets, rank, width = total.gradients_KxRxO[0].shape
    b, w = b_BxTxR.reshape(-1, rank), weights.reshape(-1)
    if site.suffix is None:
        p = jax.nn.softmax(observed.logits_NxTxC).reshape(-1, width)
        outputs = jnp.diag((w[:, None] * p).sum(axis=0)) - (w[:, None] * p).T @ p
    else:
        e = errors_BxTxO.reshape(-1, width)
        outputs = (w[:, None] * e).T @ e
    fisher = total.fisher
    if fisher is not None:
        p = jax.nn.softmax(observed.logits_NxTxC).reshape(-1, width)

        def block(c: jax.Array) -> jax.Array:
            # Row c of diag p − p pᵀ, token by token, weights the features' Gram matrix.
            row = w[:, None] * p[:, c, None] * (jax.nn.one_hot(c, width)[None] - p)
            return jax.lax.map(lambda v: (b * v[:, None]).T @ b, row.T)

        fisher = _compensated(fisher, jax.lax.map(block, jnp.arange(width)))
    g_BxRxO = jnp.einsum("btr,bt,bto->bro", b_BxTxR, weights, errors_BxTxO)
    return Moments(
        _compensated(total.features_RxR, (w[:, None] * b).T @ b),
        _compensated(total.outputs_OxO, outputs),
        fisher,
        _compensated(total.gradients_KxRxO, subset_sum(subsets_Bxd, g_BxRxO, num_subsets)),
        _compensated(total.sizes_K, subset_sum(subsets_Bxd, mask_B, num_subsets)),
        _compensated(total.tokens, w.sum()),
    )


def accumulate(
    num_subsets: int,
    subsets_Nxd: jax.Array,
    site: Site,
    basis: Basis,
    observed: Observed,
    context: Context,
    *,
    exact: bool,
    batch_size: int = 512,
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
      exact: keep the whole Fisher (`(R O)²` numbers) beside its Kronecker factors; logit site only.
      batch_size: examples a step.
      mesh: the K axis is split over `subset`.
      progress: wraps the batches.

    Raises:
      ValueError: `exact` at a residual site.
    """
    if exact and site.suffix is not None:
        raise ValueError(
            "the exact Fisher is for the logit site; use 'kronecker' at a residual one"
        )
    mesh = meshes.make_mesh() if mesh is None else mesh
    count = len(observed)
    total = zeros(num_subsets, basis.rank, site.width, exact)
    total = jax.device_put(total, _shardings(total, mesh, num_subsets))
    for start in progress(range(0, count, batch_size), desc="operators"):
        rows = np.minimum(np.arange(start, start + min(batch_size, count)), count - 1)
        mask = jnp.asarray(np.arange(start, start + len(rows)) < count, jnp.float32)
        part, own, subsets = jax.tree.map(lambda v: v[rows], (observed, context, subsets_Nxd))  # noqa: B023
        b_BxTxR = features(basis.weights, standardise(basis, part.activations))
        part = dataclasses.replace(part, activations={})
        total = _add_batch(total, site, b_BxTxR, part, own, subsets, mask)
    return total


def _shardings(total: Moments, mesh: Mesh, num_subsets: int) -> Moments:
    meshes.check_divisible("num_subsets", num_subsets, mesh, meshes.SUBSET)
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, total)
    return dataclasses.replace(everywhere, gradients_KxRxO=(split, split), sizes_K=(split, split))
