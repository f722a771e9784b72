"""Operators that act inside the network, at the output of a layer (docs/method.md §3.4).

Residual site: `z̃ = z + b a`, then the frozen layers after the tap,  a in R^{R x D}.
Layer site:    `z̃ = z + b a_z`, `õ = rest(z̃) + b a_o`,  `a = [a_z, a_o]` in R^{R x O}, O = D + C.

Both parts of a layer site read the same features, so that they share one curvature, in which what
moves the logits through the layer and what moves them directly are told apart. Of a network's
first layer, before its nonlinearity, `b a_z` is what another first layer would have said.

Letter of its own: D units of the layer.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from stride_jax.inputs import Inputs, on_device
from stride_jax.objectives import Hessian
from stride_jax.observed import Context, Observed
from stride_jax.taps import Params, Suffix

LOGIT_SITE = "logit"
WITH_LOGIT = "+logit"
"""What the name of a layer site ends in, after the name of its tap."""


def tap_of(site: str) -> str | None:
    """The tap that a site of this name steers; None for the logits alone.

    >>> tap_of("dense0+logit"), tap_of("block1"), tap_of("logit")
    ('dense0', 'block1', None)
    """
    return None if site == LOGIT_SITE else site.removesuffix(WITH_LOGIT)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResidualSite:
    """Operators that add to the activation of one tap; the frozen layers after it run as usual.

    Attributes:
      width: O = D, width of the tap.
      tap: name of the tap.
      shape: shape of the tap after the example axis, as `suffix` expects it.
      suffix: rest of the network as a function of the tap.
    """

    width: int = dataclasses.field(metadata={"static": True})
    tap: str = dataclasses.field(metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    suffix: Suffix = dataclasses.field(metadata={"static": True})
    has_exact_fisher: ClassVar[bool] = False
    reads_params: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Name of the tap."""
        return self.tap

    def context(self, observed: Observed, inputs: Inputs) -> Context:
        """Activation, logits and inputs, `{name: [N, ...]}`, or of inputs a tree of such."""
        return {
            "z": observed.activations[self.tap],
            "logits": observed.logits_NxTxC,
            "inputs": on_device(inputs),
        }

    def shift(
        self, params: Params, a_RxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`s = suffix(z + b a) − o`, `[B, T, C]`."""
        logits = self._rest(params, context, context["z"] + b_BxTxR @ a_RxO)
        return logits - context["logits"]

    def shifts(
        self, params: Params, a_KxRxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`shift` of K operators on the same examples, `[K, B, T, C]`."""
        return jax.vmap(lambda a: self.shift(params, a, b_BxTxR, context))(a_KxRxO)

    def errors(self, params: Params, observed: Observed, context: Context) -> jax.Array:
        """`δ = Jᵀ (omega e)`: the context's `errors`, or a vjp through the suffix, `[B, T, O]`."""
        return _errors(self, params, observed, context)

    def token_weights(self, observed: Observed, e_BxTxO: jax.Array) -> jax.Array:
        """1 where a shift of the token's activation moves the loss of any, itself or later; 0
        elsewhere, `[B, T]`. So a prompt counts, whose own loss does not, and padding does not.
        omega where an example is one token."""
        if observed.weights_NxT.shape[1] == 1:
            return observed.weights_NxT
        return (e_BxTxO != 0).any(axis=-1).astype(jnp.float32)

    def pulled(self, params: Params, v_BxTxC: jax.Array, context: Context) -> jax.Array:
        """`Jᵀ v` of the layers after the tap, `[B, T, O]`."""
        _, pull_back = jax.vjp(lambda z: self._rest(params, context, z), context["z"])
        return pull_back(v_BxTxC)[0]

    def drawn(self, params: Params, observed: Observed, context: Context) -> jax.Array:
        """`δ = Jᵀ e` of drawn errors (`Observed.drawn_errors`), `[B, T, O]`: the context's `drawn`,
        or a vjp through the suffix. What `fisher` and `variances` read.

        Where an example is one token, its errors as they are: there are too few to draw for."""
        omega_BxTx1 = observed.weights_NxT[..., None]
        if omega_BxTx1.shape[1] == 1:
            errors = self.errors(params, observed, context)
            return jnp.where(omega_BxTx1 > 0, errors / jnp.maximum(omega_BxTx1, 1e-30), 0.0)
        if "drawn" in context:
            return context["drawn"]
        return self.pulled(params, observed.drawn_errors(context["inputs"]), context)

    def fisher(self, w_n: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`Σ w δ δᵀ`, `[O, O]`."""
        del hessian
        return jnp.einsum("n,no,nu->ou", w_n, e_nxO, e_nxO)

    def variances(self, right_OxO: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`(q_oᵀ δ)²` of the columns q of `right_OxO`, `[n, O]`."""
        del hessian
        return (e_nxO @ right_OxO) ** 2

    def _rest(self, params: Params, context: Context, z: jax.Array) -> jax.Array:
        replaced = {self.tap: z.reshape(z.shape[0], *self.shape)}
        logits = self.suffix(params, context["inputs"], replaced)
        return logits.astype(jnp.float32).reshape(context["logits"].shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerSite:
    """Operators that add to the output of one layer and to the logits.

    Attributes:
      width: O = D + C.
      layer: operators at the layer alone.
    """

    width: int = dataclasses.field(metadata={"static": True})
    layer: ResidualSite
    has_exact_fisher: ClassVar[bool] = False
    reads_params: ClassVar[bool] = True

    @property
    def tap(self) -> str:
        """Name of the layer's output."""
        return self.layer.tap

    @property
    def name(self) -> str:
        """Name of the tap, and that the logits are steered too."""
        return self.tap + WITH_LOGIT

    def context(self, observed: Observed, inputs: Inputs) -> Context:
        """As at the layer alone."""
        return self.layer.context(observed, inputs)

    def shift(
        self, params: Params, a_RxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`s = rest(z + b a_z) − o + b a_o`, `[B, T, C]`."""
        through = self.layer.shift(params, a_RxO[:, : self.layer.width], b_BxTxR, context)
        return through + b_BxTxR @ a_RxO[:, self.layer.width :]

    def shifts(
        self, params: Params, a_KxRxO: jax.Array, b_BxTxR: jax.Array, context: Context
    ) -> jax.Array:
        """`shift` of K operators on the same examples, `[K, B, T, C]`."""
        return jax.vmap(lambda a: self.shift(params, a, b_BxTxR, context))(a_KxRxO)

    def errors(self, params: Params, observed: Observed, context: Context) -> jax.Array:
        """`omega [Jᵀ e, e]`: the context's `errors`, or a vjp through the rest, `[B, T, O]`."""
        return _errors(self, params, observed, context)

    def token_weights(self, observed: Observed, e_BxTxO: jax.Array) -> jax.Array:
        """omega, `[B, T]`; an example is one token."""
        del e_BxTxO
        return observed.weights_NxT

    def pulled(self, params: Params, v_BxTxC: jax.Array, context: Context) -> jax.Array:
        """`[Jᵀ v, v]`, with J of the layers after the tap, `[B, T, O]`."""
        return with_logits(self.layer.pulled(params, v_BxTxC, context), v_BxTxC)

    def rows(
        self, params: Params, observed: Observed, context: Context, count: int | None = None
    ) -> jax.Array:
        """`r_c` with `Σ_c r_c r_cᵀ = [J, I]ᵀ H [J, I]`, `[B, C, O]`, a vjp for each; or the `count`
        that hold most of H."""
        hessian = observed.hessian()
        roots_BxCxC = hessian.root() if count is None else hessian.leading(count)
        pull = functools.partial(self.pulled, params, context=context)
        return jax.vmap(pull, in_axes=1, out_axes=1)(roots_BxCxC[:, :, None])[:, :, 0]

    def fisher(self, w_n: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`Σ w [J, I]ᵀ H [J, I]`, `[O, O]`."""
        del e_nxO
        return hessian.total(w_n)

    def variances(self, right_OxO: jax.Array, hessian: Hessian, e_nxO: jax.Array) -> jax.Array:
        """`q_oᵀ [J, I]ᵀ H [J, I] q_o` of the columns q of `right_OxO`, `[n, O]`."""
        del e_nxO
        return hessian.along(right_OxO)

    def scales(self, outputs_OxO: jax.Array) -> jax.Array:
        """How far the prior lets each output go, `[O]`, from `E[[J, I]ᵀ H [J, I]]`.

        The prior is one of shifts of the logits: half of its variance goes through the layer and
        half directly, so a_z is scaled by how much less a unit of it moves them.
        """
        power_O = jnp.diag(outputs_OxO)
        layer, logits = power_O[: self.layer.width].sum(), power_O[self.layer.width :].sum()
        scale = jnp.where(layer > 0, jnp.sqrt(logits / jnp.where(layer > 0, layer, 1.0)), 1.0)
        own = jnp.where(jnp.arange(self.width) < self.layer.width, scale, 1.0)
        return own / jnp.sqrt(2.0)


def _errors(
    site: ResidualSite | LayerSite, params: Params, observed: Observed, context: Context
) -> jax.Array:
    if "errors" in context:
        return context["errors"]
    return site.pulled(params, observed.weighted_errors(), context)


def with_logits(layer: jax.Array, logits: jax.Array) -> jax.Array:
    """Gradients in a layer's output and in the logits as those in a layer site's outputs.

    >>> with_logits(jnp.zeros((1, 1, 2)), jnp.ones((1, 1, 3))).shape
    (1, 1, 5)
    """
    return jnp.concatenate([layer, logits], axis=-1)
