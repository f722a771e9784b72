"""Steering operators: a shared basis and K small matrices that shift the frozen model's logits."""

import dataclasses

import jax

from stride_jax.operators.basis import Basis
from stride_jax.runtime import mesh as meshes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operators:
    """K steering matrices of one site over a shared basis. Their size does not grow with N.

    Attributes:
      basis: `B_psi`.
      a_KxRxO: steering matrices; O = C at the logit site, or the buckets of its folding; D at a
        residual site. R counts the constant feature.
      size_K: factor of a measurement under `a_k`: the closed form stores matrices of unit size and
        their own sizes here; joint training stores matrices as they are and ones here.
      signs_C: signs of the folding U of the logit site; None where the outputs are the logits.
    """

    basis: Basis
    a_KxRxO: jax.Array
    size_K: jax.Array
    signs_C: jax.Array | None = None

    def __len__(self) -> int:
        return self.a_KxRxO.shape[0]


def shardings(operators: Operators, mesh: jax.sharding.Mesh) -> Operators:
    """Shardings of operators: their K matrices over `subset`, the basis on every device."""
    meshes.check_divisible("num_subsets", len(operators), mesh, meshes.SUBSET)
    split, whole = meshes.over_subsets(mesh), meshes.replicated(mesh)
    everywhere = jax.tree.map(lambda _: whole, operators)
    return dataclasses.replace(everywhere, a_KxRxO=split, size_K=split)
