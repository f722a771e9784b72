"""Sums over examples: what the closed form needs of the training set, nothing of size N.

Sums add up, so examples that come later update an index without a second pass over the old ones.

Letters of its own: P = O (O + 1) / 2 pairs of outputs, G named groups.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.precision import precise

FORMS = ("exact", "eigen", "kronecker")
"""The whole Fisher; Kronecker factors with corrected eigenvalues; Kronecker factors."""

Sum = tuple[jax.Array, jax.Array]
"""A float32 sum and its compensation (Kahan)."""


class Curvature(NamedTuple):
    """Which curvature a pass sums.

    Attributes:
      form: one of `FORMS`; `exact` at the plain logit site only.
      rotation: eigenvectors for `eigen`, `([R, R], [O, O])`; None for those of the examples' own
        factors, which takes one more pass. Moments can be added up if theirs are the same.
    """

    form: str
    rotation: tuple[jax.Array, jax.Array] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sums over examples.

    Attributes:
      features_RxR: `Σ omega b bᵀ`.
      outputs_OxO: `Σ omega Uᵀ H U` at the logit site, with the objective's Hessian H in the outputs
        (`diag p − p pᵀ` of cross-entropy); `Σ omega δ δᵀ` at a residual one.
      fisher_PxRxR: `Σ omega b bᵀ H_{cc'}` for the P pairs `c <= c'`; None for other forms.
      eigenvalues_RxO: the diagonal of the Fisher in the basis `rotation`; None for other forms.
      gradients_KxRxO: `Σ_{i in A_k} g_i`.
      sizes_K: members of each subset.
      tokens: `Σ omega`.
      rotation: eigenvectors of the two factors, `([R, R], [O, O])`, fixed before the pass.
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
    form, rotation = curvature

    def pair(*shape: int) -> Sum:
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)

    return Moments(
        pair(rank, rank),
        pair(width, width),
        pair(len(pairs(width)[0]), rank, rank) if form == "exact" else None,
        pair(rank, width) if form == "eigen" else None,
        pair(num_subsets, rank, width),
        pair(num_subsets),
        pair(),
        rotation if form == "eigen" else None,
        pair(num_groups, rank, width) if num_groups else None,
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

    def fresh(rotation: tuple[jax.Array, jax.Array] | None) -> Moments:
        own = curvature._replace(rotation=rotation)
        return zeros(num_subsets, rank, width, own, num_groups)

    where = shardings(jax.eval_shape(fresh, curvature.rotation), mesh)
    return jax.jit(fresh, out_shardings=where)(curvature.rotation)


def shardings(moments: Moments, mesh: Mesh) -> Moments:
    """Shardings of the moments: sums per subset over `subset`, the others on every device."""
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, moments)
    return dataclasses.replace(everywhere, gradients_KxRxO=(split, split), sizes_K=(split, split))


def add(a: Moments, b: Moments) -> Moments:
    """Moments of two disjoint sets of examples together, in the rotation of the first."""
    sums = jax.tree.map(
        lambda x, y: compensated(compensated(x, y[0]), -y[1]),
        dataclasses.replace(a, rotation=None),
        dataclasses.replace(b, rotation=None),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return dataclasses.replace(sums, rotation=a.rotation)


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
def eigenbases(moments: Moments) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors of the two Kronecker factors, in which the Fisher is taken as diagonal."""
    return (
        jnp.linalg.eigh(moments.features_RxR[0])[1],
        jnp.linalg.eigh(moments.outputs_OxO[0])[1],
    )
