"""Cross-entropy, the loss of classifiers and language models, and sums that it needs exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from stride_jax.objectives.hessian import Hessian
from stride_jax.objectives.objective import Objective

_LARGE = 0.5
"""Shifts above this (in nats) are handled by log-sum-exp, below by log1p and expm1."""


def log_mean_exp(p: jax.Array, shift: jax.Array) -> jax.Array:
    """`log Σ_c p_c exp(s_c)` to full relative accuracy for small and large s alike."""
    top = shift.max(axis=-1, keepdims=True)
    large = jnp.max(jnp.abs(shift), axis=-1) > _LARGE
    # Both branches are finite everywhere: the gradient of the one not taken adds no NaN.
    small_shift = jnp.where(large[..., None], 0.0, shift)
    small = jnp.log1p(jnp.sum(p * jnp.expm1(small_shift), axis=-1))
    direct = jnp.log(jnp.sum(p * jnp.exp(shift - top), axis=-1) + 1e-37) + top[..., 0]
    return jnp.where(large, direct, small)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`−log softmax(o)_y` in nats; logits `[..., C]`, labels and result `[...]`.

    A label of −1 does not count: its loss is 0.
    """
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(labels < 0, 0.0, loss)


def margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Log odds of the true class, `o_y − logsumexp_{c≠y} o_c = log p / (1 − p)`.

    Logits `[..., C]`, labels and result `[...]`; 0 for a label of −1.

    >>> round(float(margin(jnp.log(jnp.array([[0.75, 0.25]])), jnp.array([0]))[0]), 4)  # log 3
    1.0986
    """
    counted = jnp.maximum(labels, 0)
    true = jax.nn.one_hot(counted, logits.shape[-1], dtype=bool)
    others = jax.nn.logsumexp(jnp.where(true, -jnp.inf, logits), axis=-1)
    own = jnp.take_along_axis(logits, counted[..., None], axis=-1)[..., 0]
    return jnp.where(labels < 0, 0.0, own - others)


def _errors(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`e_y − p`."""
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return hot - jax.nn.softmax(logits)


def _hessian(logits: jax.Array, labels: jax.Array) -> Hessian:
    """`diag p − p pᵀ`."""
    del labels
    p = jax.nn.softmax(logits)
    return Hessian(p, p)


def loss_drop(shift: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How much a logit shift lowers the cross-entropy, per token, without cancellation.

    `Loss(o) − Loss(o + s) = −log1p(Σ_c p_c expm1(s_c − s_y))`, `p = softmax(o)`: the difference of
    two float32 losses would be nothing but rounding for small s (docs/method.md §6.1). The true
    class is the reference inside, so that a query with p_y near 1 keeps its digits too.

    Args:
      shift: `[..., C]` s.
      logits: `[..., C]` o, of a shape that broadcasts against `shift` with as many axes.
      labels: `[...]` int y.

    Returns:
      `[...]` nats; positive where the shift helps.

    >>> o, s = jnp.array([[1.0, 0.0]]), jnp.array([[1e-6, 0.0]])
    >>> bool(jnp.allclose(loss_drop(s, o, jnp.array([0])), 1e-6 * 0.26894, rtol=1e-3))
    True
    """
    p = jax.nn.softmax(logits)
    picked = jnp.take_along_axis(
        shift, jnp.broadcast_to(labels[..., None], (*shift.shape[:-1], 1)), axis=-1
    )
    return -log_mean_exp(p, shift - picked)


def _doubted(logits: jax.Array, doubt: float) -> jax.Array:
    """`p' = (1 − eps) p + eps / C`."""
    p = jax.nn.softmax(logits)
    return jnp.log((1 - doubt) * p + doubt / p.shape[-1])


def _check(labels: np.ndarray, classes: int) -> None:
    if classes < 2:
        raise ValueError(
            f"the model has {classes} class: a cross-entropy needs 2 or more; give a binary "
            "classifier two logits, such as (0, o), or another loss by with_objective"
        )
    if (high := int(labels.max())) >= classes:
        raise ValueError(
            f"labels run up to {high}, but the model has {classes} classes, 0 … {classes - 1}; "
            "the last axis of its logits must be the classes"
        )


CROSS_ENTROPY = Objective(
    "cross_entropy", cross_entropy, _errors, _hessian, loss_drop, True, True, _doubted, _check
)
"""`−log softmax(o)_y` of integer classes."""
