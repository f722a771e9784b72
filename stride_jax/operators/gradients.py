"""Gradients of a token's loss in the steering matrices, in the site's own coordinates.

Letter of its own: G groups of tokens per sequence.
"""

import jax
import jax.numpy as jnp

from stride_jax.observed import Context, Observed
from stride_jax.operators.sites import Site
from stride_jax.taps import Params


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
    site: Site,
    params: Params,
    b_BxTxR: jax.Array,
    observed: Observed,
    context: Context,
    group: int = 0,
) -> jax.Array:
    """`g = Σ_t b_t e_tᵀ` per example, `[B, R, O]`, or per group of tokens, `[B G, R, O]`.

    The site's errors e have the weights in them. It is minus the gradient of the loss in the
    steering matrix at `a = 0`, so that an operator lowers the loss by `<g, a>` to first order.
    """
    errors_BxTxO = site.errors(params, observed, context)
    return outer(b_BxTxR, errors_BxTxO, group)


def outer(b_BxTxR: jax.Array, e_BxTxO: jax.Array, group: int = 0) -> jax.Array:
    """`Σ_t b_t e_tᵀ` per example, `[B, R, O]`, or per group of tokens, `[B G, R, O]`."""
    if group:
        b_BxTxR, e_BxTxO = (token_groups(v, group) for v in (b_BxTxR, e_BxTxO))
    return jnp.einsum("btr,bto->bro", b_BxTxR, e_BxTxO)
