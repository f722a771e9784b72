"""The three published losses, and the exact change of a loss under a logit shift.

Each is a pure function of logit shifts s; docs/method.md §4 has the equations.

Letter of its own: q columns of the Johnson-Lindenstrauss sketch.
"""

import jax
import jax.numpy as jnp

from stride_jax.models.train import cross_entropy

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


def fidelity(
    shift_SxTxC: jax.Array,
    logits_SxTxC: jax.Array,
    labels_SxT: jax.Array,
    weights_SxT: jax.Array,
    mask_S: jax.Array,
) -> jax.Array:
    """Cross-entropy of the steered model on a subset's members.

    `mean_{x in A_k} Σ_t omega_t CE(o_x + s_x, y_x)_t`

    Args:
      shift_SxTxC: shifts of one operator.
      logits_SxTxC, labels_SxT, weights_SxT: the members' own; weights omega in [0, 1].
      mask_S: 1 for members, 0 for padding.

    Returns:
      Scalar, nats per example.
    """
    steered = cross_entropy(logits_SxTxC, labels_SxT) - loss_drop(
        shift_SxTxC, logits_SxTxC, labels_SxT
    )
    per_example = (weights_SxT * steered).sum(axis=-1)
    return (mask_S * per_example).sum() / mask_S.sum()


def stability(
    shift_BxTxC: jax.Array, logits_BxTxC: jax.Array, weights_BxT: jax.Array, mask_B: jax.Array
) -> jax.Array:
    """How far an operator moves the model's predictions on examples outside its subset.

    `mean_{x in R_k} Σ_t omega_t KL(softmax(o_x) || softmax(o_x + s_x))_t`, where
    `KL(p || softmax(o + s)) = log Σ_c p_c exp(s_c) − Σ_c p_c s_c`.

    Args:
      shift_BxTxC: shifts of one operator.
      logits_BxTxC, weights_BxT: the batch's own.
      mask_B: 1 for examples outside the subset, 0 for its members.

    Returns:
      Scalar, nats per example.
    """
    p = jax.nn.softmax(logits_BxTxC)
    kl = log_mean_exp(p, shift_BxTxC) - (p * shift_BxTxC).sum(axis=-1)
    return (mask_B * (weights_BxT * kl).sum(axis=-1)).sum() / jnp.maximum(mask_B.sum(), 1.0)


def linearity(y_BxK: jax.Array, sketch_Kxq: jax.Array, gamma: jax.Array | float) -> jax.Array:
    """How far measurements lie from the range of the (sketched) design.

    `mean_x || M̃ (M̃ᵀM̃ + gamma I)^{-1} M̃ᵀ y_x − y_x ||²`, with the Johnson-Lindenstrauss sketch
    M̃ of M. It pulls y towards vectors that `M w` can explain.

    Args:
      y_BxK: measurements of a batch of examples under all operators.
      sketch_Kxq: M̃.
      gamma: ridge.

    Returns:
      Scalar.
    """
    q = sketch_Kxq.shape[1]
    gram = sketch_Kxq.T @ sketch_Kxq + gamma * jnp.eye(q, dtype=sketch_Kxq.dtype)
    w_qxB = jax.scipy.linalg.solve(gram, sketch_Kxq.T @ y_BxK.T, assume_a="pos")
    return ((sketch_Kxq @ w_qxB - y_BxK.T) ** 2).sum(axis=0).mean()
