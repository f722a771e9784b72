"""Sums over examples: what the closed form needs of the training set, nothing of size N.

Sums add up, so examples that come later update an index without a second pass over the old ones.

Letter of its own: P = O (O + 1) / 2 pairs of outputs.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax.runtime import mesh as meshes

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
      outputs_OxO: `Σ omega Uᵀ (diag p − p pᵀ) U` at the logit site, `Σ omega δ δᵀ` at a residual
        one.
      fisher_PxRxR: `Σ omega b bᵀ (diag p − p pᵀ)_{cc'}` for the P pairs `c <= c'`; None for other
        forms.
      eigenvalues_RxO: the diagonal of the Fisher in the basis `rotation`; None for other forms.
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


def compensated(total: Sum, new: jax.Array) -> Sum:
    """Kahan's sum: the second array carries what rounding lost."""
    value, lost = total
    new = new - lost
    grown = value + new
    return grown, (grown - value) - new


def pairs(width: int) -> tuple[np.ndarray, np.ndarray]:
    """The output pairs `c <= c'` of an exact Fisher, in the order in which it is stored."""
    return np.triu_indices(width)


def zeros(num_subsets: int, rank: int, width: int, curvature: Curvature) -> Moments:
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
    )


def empty(num_subsets: int, rank: int, width: int, curvature: Curvature, mesh: Mesh) -> Moments:
    """`zeros`, laid out over the mesh."""
    meshes.check_divisible("num_subsets", num_subsets, mesh, meshes.SUBSET)

    def fresh(rotation: tuple[jax.Array, jax.Array] | None) -> Moments:
        return zeros(num_subsets, rank, width, curvature._replace(rotation=rotation))

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


def eigenbases(moments: Moments) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors of the two Kronecker factors, in which the Fisher is taken as diagonal."""
    return (
        jnp.linalg.eigh(moments.features_RxR[0])[1],
        jnp.linalg.eigh(moments.outputs_OxO[0])[1],
    )
