"""Steering operators: K small matrices that shift the frozen model's logits.

Logit site:     `õ_k(x) = o_x + b_x a_k Uᵀ`,                a_k in R^{R x O}, U in R^{C x O}.
Residual site:  `z̃_l = z_l + b_x a_k`, then the frozen layers after l,  a_k in R^{R x D}.

U is a shared basis of the outputs; a classifier has few enough classes to do without (U = I).
Either way an operator is felt through its *logit shift* `s = õ_k(x) − o_x`; losses and
measurements are written in s alone and do not know the site.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.observed import Observed
from stride_jax.operators.basis import Basis, features, standardise
from stride_jax.operators.outputs import unfold
from stride_jax.taps import Activations, Params, Suffix, TappedModel

Context = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Operators:
    """The index: a shared basis and K steering matrices. Its size does not grow with N.

    Attributes:
      basis: `B_psi`.
      a_KxRxO: steering matrices; O = C at the logit site, or the buckets of its folding; D at a
        residual site. R counts the constant feature.
      size_K: what a measurement under `a_k` is multiplied by: the closed form stores matrices of
        one size and their own sizes here, training leaves matrices as they are and ones here.
      signs_C: of the folding that makes the logit site's output basis U; None where the outputs are
        the logits.
    """

    basis: Basis
    a_KxRxO: jax.Array
    size_K: jax.Array
    signs_C: jax.Array | None = None

    def __len__(self) -> int:
        return self.a_KxRxO.shape[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Site:
    """Where operators act, and how a shift there becomes a logit shift.

    Attributes:
      width: O, outputs of a steering matrix.
      tap: the tapped layer of a residual site; None at the logit site.
      shape: the tap's own shape after the example axis, which `suffix` expects.
      suffix: rest of the network as a function of the tap.
      params: its parameters; None for the model's own, where a program has them already.
      signs_C: of the folding U at the logit site; None for the identity.
    """

    width: int = dataclasses.field(metadata={"static": True})
    tap: str | None = dataclasses.field(default=None, metadata={"static": True})
    shape: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    suffix: Suffix | None = dataclasses.field(default=None, metadata={"static": True})
    params: Params = None
    signs_C: jax.Array | None = None


def logit_site(observed: Observed, signs_C: jax.Array | None = None, width: int = 0) -> Site:
    """Operators that add to the logits, folded to `width` outputs where signs are given."""
    classes = observed.logits_NxTxC.shape[-1]
    return Site(width=classes if signs_C is None else width, signs_C=signs_C)


def residual_site(
    tapped: TappedModel, params: Params, observed: Observed, inputs: Any, tap: str
) -> Site:
    """Operators that add to the activation of one tap; the frozen layers after it run as usual.

    Args:
      tapped: model with a suffix form.
      params: its parameters.
      observed: what it said, with the tap among the activations.
      inputs: a batch of inputs, for the tap's shape.
      tap: its name.

    Raises:
      ValueError: the model has no suffix form, or no such tap.
    """
    if tapped.suffix is None:
        raise ValueError(
            "a residual site needs the rest of the network as a function of the tap: give the "
            "tapped model a suffix (from_model, from_linen and from_nnx do)"
        )
    if tap not in observed.activations:
        raise ValueError(f"unknown tap {tap!r}: observed taps are {sorted(observed.activations)}")
    _, shapes = jax.eval_shape(tapped.forward, params, inputs)
    width = observed.activations[tap].shape[-1]
    return Site(width, tap, tuple(shapes[tap].shape[1:]), tapped.suffix, params)


def with_params(site: Site, params: Params) -> Site:
    """A residual site that was made without parameters of its own, with the model's."""
    if site.suffix is None or site.params is not None:
        return site
    return dataclasses.replace(site, params=params)


def context(site: Site, observed: Observed, inputs: np.ndarray | jax.Array) -> Context:
    """What `logit_shift` needs of each example besides its features, `{name: [N, ...]}`."""
    if site.tap is None:
        return {}
    return {
        "z": observed.activations[site.tap],
        "logits": observed.logits_NxTxC,
        "inputs": jnp.asarray(inputs),
    }


def logit_shift(site: Site, a_RxO: jax.Array, b_BxTxR: jax.Array, context_B: Context) -> jax.Array:
    """How one operator shifts the logits of a batch of examples.

    Args:
      site: where it acts.
      a_RxO: its steering matrix.
      b_BxTxR: features of the examples.
      context_B: rows of `context` for the same examples.

    Returns:
      `[B, T, C]` shift s.
    """
    shift = b_BxTxR @ a_RxO
    if site.suffix is None:
        return shift if site.signs_C is None else unfold(shift, site.signs_C)
    z = context_B["z"] + shift
    logits = site.suffix(
        site.params,
        context_B["inputs"],
        {str(site.tap): z.reshape(z.shape[0], *site.shape)},
    )
    return logits.reshape(context_B["logits"].shape) - context_B["logits"]


def all_logit_shifts(
    site: Site, a_KxRxO: jax.Array, b_BxTxR: jax.Array, context_B: Context
) -> jax.Array:
    """`logit_shift` of K operators on the same examples, `[K, B, T, C]`."""
    if site.suffix is None:
        # One matrix product for all operators is several times faster than K small ones.
        k, r, o = a_KxRxO.shape
        flat = b_BxTxR @ a_KxRxO.transpose(1, 0, 2).reshape(r, k * o)
        shift = jnp.moveaxis(flat.reshape(*b_BxTxR.shape[:2], k, o), 2, 0)
        return shift if site.signs_C is None else unfold(shift, site.signs_C)
    return jax.vmap(lambda a: logit_shift(site, a, b_BxTxR, context_B))(a_KxRxO)


def example_features(operators: Operators | Basis, activations: Activations) -> jax.Array:
    """Features of examples under an index' basis, `[N, T, R]`."""
    basis = operators.basis if isinstance(operators, Operators) else operators
    return features(basis.weights, standardise(basis, activations))
