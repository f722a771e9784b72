"""Sums over examples: what the closed form needs of the training set, nothing of size N.

Sums add up, so examples that come later update an index without a second pass over the old ones.

Letters of its own: P = O (O + 1) / 2 pairs of outputs, G named groups.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.precision import precise

FORMS = ("exact", "coupled", "eigen", "kronecker")
"""The whole Fisher; its whole block of the strongest pairs of eigenvectors and its diagonal of the
others; Kronecker factors with corrected eigenvalues, its diagonal; Kronecker factors."""

PAIRS = 1024
"""Pairs of eigenvectors whose curvature is kept whole: with as many scores lose at most .005 LDS on
five boards (docs/lab.md)."""

ROWS = 4
"""Rows of each token's curvature in that block; as good as all ten or 26 of them within .001 LDS on
three boards, at a fraction of the products (docs/lab.md)."""

Sum = tuple[jax.Array, jax.Array]
"""A float32 sum and its compensation (Kahan)."""


class Curvature(NamedTuple):
    """Which curvature a pass sums.

    Attributes:
      form: one of `FORMS`; `exact` at the plain logit site only, `coupled` at layer sites.
      rotation: eigenvectors for `eigen` and `coupled`, `([R, R], [O, O])`; None for those of the
        examples' own factors, which takes one more pass. Moments can be added up if theirs are the
        same.
      strongest_M: int32 places `r O + o` of the pairs of `coupled`.
      rows: rows of each token's curvature that count in the block of these pairs; what they leave
        over counts on its diagonal.
    """

    form: str
    rotation: tuple[jax.Array, jax.Array] | None = None
    strongest_M: jax.Array | None = None
    rows: int = ROWS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over examples.

    Attributes:
      features_RxR: `Σ omega b bᵀ`, inside the network over the tokens that move any loss.
      outputs_OxO: `Σ omega Uᵀ H U` at the logit site, with the objective's Hessian H in the outputs
        (`diag p − p pᵀ` of cross-entropy); `Σ δ δᵀ` of drawn errors at a residual one.
      fisher_PxRxR: `Σ omega b bᵀ H_{cc'}` for the P pairs `c <= c'`; None for other forms.
      eigenvalues_RxO: the diagonal of the Fisher in the basis `rotation`; None for other forms.
      gradients_KxRxO: `Σ_{i in A_k} g_i`.
      sizes_K: members of each subset.
      tokens: `Σ omega`.
      rotation: eigenvectors of the two factors, `([R, R], [O, O])`, fixed before the pass; those
        of outputs times their scales, where a site has such.
      coupled_MxM: the Fisher of the M strongest pairs of them; None for other forms.
      strongest_M: int32 places `r O + o` of these pairs.
      groups_GxRxO: `Σ g_i` over each named group; None where none are named.
    """

    features_RxR: Sum
    outputs_OxO: Sum
    fisher_PxRxR: Sum | None
    eigenvalues_RxO: Sum | None
    gradients_KxRxO: Sum
    sizes_K: Sum
    tokens: Sum
    rotation: tuple[jax.Array, jax.Array] | None
    groups_GxRxO: Sum | None = None
    coupled_MxM: Sum | None = None
    strongest_M: jax.Array | None = None


def compensated(total: Sum, new: jax.Array) -> Sum:
    """Kahan's sum: the second array carries what rounding lost."""
    value, lost = total
    new = new - lost
    grown = value + new
    return grown, (grown - value) - new


def pairs(width: int) -> tuple[np.ndarray, np.ndarray]:
    """The output pairs `c <= c'` of an exact Fisher, in the order in which it is stored."""
    return np.triu_indices(width)


def zeros(
    num_subsets: int, rank: int, width: int, curvature: Curvature, num_groups: int = 0
) -> Moments:
    """Moments of no examples."""
    form, rotation, strongest_M, _ = curvature
    rotated = form in ("eigen", "coupled")

    def pair(*shape: int) -> Sum:
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)

    return Moments(
        pair(rank, rank),
        pair(width, width),
        pair(len(pairs(width)[0]), rank, rank) if form == "exact" else None,
        pair(rank, width) if rotated else None,
        pair(num_subsets, rank, width),
        pair(num_subsets),
        pair(),
        rotation if rotated else None,
        pair(num_groups, rank, width) if num_groups else None,
        None if strongest_M is None else pair(len(strongest_M), len(strongest_M)),
        strongest_M,
    )


def empty(
    num_subsets: int,
    rank: int,
    width: int,
    curvature: Curvature,
    mesh: Mesh,
    num_groups: int = 0,
) -> Moments:
    """`zeros`, laid out over the mesh."""
    meshes.check_divisible("num_subsets", num_subsets, mesh, meshes.SUBSET)
    sizes, fixed = (num_subsets, rank, width, num_groups), curvature[1:3]
    return _empty(sizes, curvature.form, mesh, *fixed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty(
    sizes: tuple[int, int, int, int], form: str, mesh: Mesh, rotation: Any, strongest_M: Any
) -> Moments:
    """`empty`, compiled once for all passes of these sizes."""
    num_subsets, rank, width, num_groups = sizes
    own = Curvature(form, rotation, strongest_M)
    fresh = zeros(num_subsets, rank, width, own, num_groups)
    return jax.lax.with_sharding_constraint(fresh, shardings(fresh, mesh))


def shardings(moments: Moments, mesh: Mesh) -> Moments:
    """Shardings of the moments: sums per subset over `subset`, the others on every device."""
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, moments)
    return dataclasses.replace(everywhere, gradients_KxRxO=(split, split), sizes_K=(split, split))


def add(a: Moments, b: Moments) -> Moments:
    """Moments of two disjoint sets of examples together, in the rotation of the first."""
    sums = jax.tree.map(
        lambda x, y: compensated(compensated(x, y[0]), -y[1]),
        dataclasses.replace(a, rotation=None, strongest_M=None),
        dataclasses.replace(b, rotation=None, strongest_M=None),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return dataclasses.replace(sums, rotation=a.rotation, strongest_M=a.strongest_M)


def with_groups(moments: Moments, num_groups: int) -> Moments:
    """The same sums with rows for groups that came later."""
    if moments.groups_GxRxO is None:
        return moments
    new = num_groups - len(moments.groups_GxRxO[0])
    value, lost = (jnp.pad(v, ((0, new), (0, 0), (0, 0))) for v in moments.groups_GxRxO)
    return dataclasses.replace(moments, groups_GxRxO=(value, lost))


def of_groups(moments: Moments) -> Moments:
    """The same sums with the groups in the place of the subsets, on one device.

    Their number need not suit the devices, so each process solves for all of them.
    """
    assert moments.groups_GxRxO is not None, "groups were named"
    none = jnp.zeros(len(moments.groups_GxRxO[0]))
    own = dataclasses.replace(
        moments, gradients_KxRxO=moments.groups_GxRxO, sizes_K=(none, none), groups_GxRxO=None
    )
    return jax.tree.map(lambda v: jnp.asarray(meshes.fetch(v)), own)


@precise
def eigenbases(moments: Moments, scales_O: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors of the two Kronecker factors, in which the Fisher is taken as diagonal.

    Args:
      moments: of a sample.
      scales_O: of the outputs (`LayerSite.scales`), multiplied into their eigenvectors, so that a
        solution in these coordinates is one with a prior of these scales.
    """
    outputs_OxO = moments.outputs_OxO[0]
    if scales_O is not None:
        outputs_OxO = scales_O[:, None] * outputs_OxO * scales_O[None]
    right = jnp.linalg.eigh(outputs_OxO)[1]
    if scales_O is not None:
        right = scales_O[:, None] * right
    return jnp.linalg.eigh(moments.features_RxR[0])[1], right


@precise
def strongest_pairs(
    moments: Moments, rotation: tuple[jax.Array, jax.Array], count: int
) -> jax.Array:
    """Places `r O + o` of the pairs of eigenvectors along which the curvature is largest.

    By the product of the two factors' eigenvalues.

    Args:
      moments: of a sample.
      rotation: from `eigenbases`.
      count: M; all pairs if there are fewer.

    Returns:
      int32, ascending.
    """
    left, right = rotation
    of_b, of_o = (
        jnp.einsum("pi,pq,qi->i", v, factor, v)
        for v, factor in ((left, moments.features_RxR[0]), (right, moments.outputs_OxO[0]))
    )
    values = jnp.outer(of_b, of_o).ravel()
    return jnp.sort(jax.lax.top_k(values, min(count, len(values)))[1]).astype(jnp.int32)
