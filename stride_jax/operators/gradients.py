"""Gradients of a token's loss in the steering matrices, in the site's own coordinates."""

import jax
import jax.numpy as jnp

from stride_jax.observed import Observed
from stride_jax.operators.outputs import fold, fold_classes
from stride_jax.operators.steering import Context, Site


def logit_errors(observed: Observed) -> jax.Array:
    """Minus the gradient of each token's loss in the logits, `e_y − p`, `[B, T, C]`."""
    logits = observed.logits_NxTxC
    return jax.nn.one_hot(observed.labels_NxT, logits.shape[-1]) - jax.nn.softmax(logits)


def output_errors(site: Site, observed: Observed, context: Context) -> jax.Array:
    """Minus the gradient of each token's loss in the operator's outputs, `[B, T, O]`.

    `Uᵀ (e_y − p)` at the logit site; at a residual site its pull-back through the frozen layers
    after the tap, `δ = Jᵀ (e_y − p)`: the context's `errors`, or one vjp at a zero perturbation.
    """
    logits, suffix = observed.logits_NxTxC, site.suffix
    if suffix is None and site.signs_C is not None:
        # Apart, so that the curvature can share the second term.
        seen = fold(jax.nn.softmax(logits), site.signs_C, site.width)
        return fold_classes(observed.labels_NxT, site.signs_C, site.width) - seen
    if suffix is None:
        return logit_errors(observed)
    if "errors" in context:
        return context["errors"]

    def rest(z: jax.Array) -> jax.Array:
        replaced = {str(site.tap): z.reshape(z.shape[0], *site.shape)}
        return suffix(site.params, context["inputs"], replaced).reshape(logits.shape)

    _, pull_back = jax.vjp(rest, context["z"])
    return pull_back(logit_errors(observed))[0]


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


def squared_errors(p: jax.Array, labels: jax.Array) -> jax.Array:
    """`||e_y − p||²` of probabilities `[..., C]`, `[...]`.

    >>> float(squared_errors(jnp.array([0.5, 0.5]), jnp.array(0)))
    0.5
    """
    return ((jax.nn.one_hot(labels, p.shape[-1]) - p) ** 2).sum(axis=-1)
