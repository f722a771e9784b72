"""Where operators act, one class per kind of site (docs/method.md §3).

Logit site:     `õ_k(x) = o_x + b_x a_k`,                          a_k in R^{R x C}.
Folded site:    `õ_k(x) = o_x + b_x a_k Uᵀ`,                       a_k in R^{R x O}, U in R^{C x O}.
Residual site:  `z̃_l = z_l + b_x a_k`, then the frozen layers after l,  a_k in R^{R x D}.
Layer site:     both,                                                      a_k in R^{R x (D + C)}.

An operator acts through its *logit shift* `s = õ_k(x) − o_x`; losses and measurements are written
in s alone and do not know the site. Each class says how a steering matrix shifts the logits
(`shift`, `shifts`), what the gradient of a token's loss in its outputs is (`errors`), and what the
curvature of its outputs is (`fisher`, `variances`); whether the whole Fisher may be summed
(`has_exact_fisher`), and whether a shift runs layers of the frozen model (`reads_params`).

Letter of its own: n tokens, or sequences of T tokens.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from stride_jax.inputs import Inputs
from stride_jax.objectives import CROSS_ENTROPY, Hessian
from stride_jax.observed import Context, Observed
from stride_jax.operators.inner_sites import LayerSite, ResidualSite
from stride_jax.operators.outputs import fold, fold_classes, unfold
from stride_jax.taps import Params


def _products(a_KxRxO: jax.Array, b_BxTxR: jax.Array) -> jax.Array:
    """`b a_k` of K matrices, `[K, B, T, O]`; one matrix product is faster than K small ones."""
    k, r, o = a_KxRxO.shape
    flat = b_BxTxR @ a_KxRxO.transpose(1, 0, 2).reshape(r, k * o)
    return jnp.moveaxis(flat.reshape(*b_BxTxR.shape[:2], k, o), 2, 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitSite:
    """Operators that add to the logits; their outputs are the classes, O = C.

    Attributes:
      width: O.
    """

    width: int = dataclasses.field(metadata={"static": True})
    name: ClassVar[str] = "logit"
    has_exact_fisher: ClassVar[bool] = True
    reads_params: ClassVar[bool] = False

    def context(self, observed: Observed, inputs: Inputs) -> Context:
        """Nothing besides the features."""
        del observed, inputs
        return {}

    def shift(
        self, params: Params, a_RxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`s = b a`, `[B, T, C]`."""
        del params, context
        return b_BxTxR @ a_RxO

    def shifts(
        self, params: Params, a_KxRxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`shift` of K operators on the same examples, `[K, B, T, C]`."""
        del params, context
        return _products(a_KxRxO, b_BxTxR)

    def errors(self, params: Params, observed: Observed, context: Context) -> jax.Array:
        """The context's `errors`, or minus the gradient of an example's loss in the outputs,
        `[B, T, O]`; `omega (e_y − p)` of cross-entropy."""
        del params
        return context["errors"] if "errors" in context else observed.weighted_errors()

    def token_weights(self, observed: Observed, e_BxTxO: jax.Array) -> jax.Array:
        """omega, `[B, T]`: a shift of a token's logits moves its own loss alone."""
        del e_BxTxO
        return observed.weights_NxT

    def pulled(self, params: Params, v_BxTxC: jax.Array, context: Context) -> jax.Array:
        """Gradients in the logits as gradients in the outputs, `[B, T, O]`."""
        del params, context
        return v_BxTxC

    def fisher(self, w_n: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`Σ w H`, the outputs' Kronecker factor, `[O, O]`; `H = diag p − p pᵀ` of
        cross-entropy."""
        del e_nxO
        return hessian.total(w_n)

    def variances(self, right_OxO: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`q_oᵀ H q_o` of the columns q of `right_OxO`, `[n, O]`."""
        del e_nxO
        return hessian.along(right_OxO)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FoldedSite:
    """Operators that add to the logits through a shared basis U of O folded classes.

    Attributes:
      width: O, buckets.
      signs_C: the signs of the folding (`operators.outputs`).
    """

    width: int = dataclasses.field(metadata={"static": True})
    signs_C: jax.Array
    name: ClassVar[str] = "logit"
    has_exact_fisher: ClassVar[bool] = False
    reads_params: ClassVar[bool] = False

    def context(self, observed: Observed, inputs: Inputs) -> Context:
        """Nothing besides the features."""
        del observed, inputs
        return {}

    def shift(
        self, params: Params, a_RxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`s = b a Uᵀ`, `[B, T, C]`."""
        del params, context
        return unfold(b_BxTxR @ a_RxO, self.signs_C)

    def shifts(
        self, params: Params, a_KxRxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`shift` of K operators on the same examples, `[K, B, T, C]`."""
        del params, context
        return unfold(_products(a_KxRxO, b_BxTxR), self.signs_C)

    def errors(self, params: Params, observed: Observed, context: Context) -> jax.Array:
        """The context's `errors`, or `omega Uᵀ e`, `[B, T, O]`; `e = e_y − p` of cross-entropy."""
        del params
        if "errors" in context:
            return context["errors"]
        if observed.objective != CROSS_ENTROPY:
            return fold(observed.weighted_errors(), self.signs_C, self.width)
        # Two terms, so that the curvature can share the second.
        folded = fold(jax.nn.softmax(observed.logits_NxTxC), self.signs_C, self.width)
        hot = fold_classes(observed.labels_NxT, self.signs_C, self.width)
        return observed.weighted(hot - folded)

    def token_weights(self, observed: Observed, e_BxTxO: jax.Array) -> jax.Array:
        """As at the logits, `[B, T]`."""
        del e_BxTxO
        return observed.weights_NxT

    def pulled(self, params: Params, v_BxTxC: jax.Array, context: Context) -> jax.Array:
        """`Uᵀ v`, `[B, T, O]`."""
        del params, context
        return fold(v_BxTxC, self.signs_C, self.width)

    def fisher(self, w_n: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`Σ w Uᵀ H U`, `[O, O]`."""
        del e_nxO
        if hessian.whole is not None:
            half = fold(hessian.total(w_n), self.signs_C, self.width)
            return fold(half.T, self.signs_C, self.width)
        assert hessian.diagonal is not None, "a diagonal, or whole blocks"
        # Buckets have no class in common, so Uᵀ diag(d) U is diagonal too.
        diagonal_O = fold((w_n @ hessian.diagonal) * self.signs_C, self.signs_C, self.width)
        diagonal_O *= (self.width / self.signs_C.shape[0]) ** 0.5
        if hessian.rank_one is None:
            return jnp.diag(diagonal_O)
        folded = fold(hessian.rank_one, self.signs_C, self.width)
        return jnp.diag(diagonal_O) - jnp.einsum("n,no,nu->ou", w_n, folded, folded)

    def variances(self, right_OxO: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`q_oᵀ Uᵀ H U q_o` of the columns q of `right_OxO`, `[n, O]`."""
        del e_nxO
        return hessian.along(unfold(right_OxO.T, self.signs_C).T)


Site = LogitSite | FoldedSite | ResidualSite | LayerSite
