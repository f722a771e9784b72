"""The three published losses of joint training.

Each is a pure function of logit shifts s; docs/method.md §4 has the equations.

Letter of its own: q columns of the Johnson-Lindenstrauss sketch.
"""

import jax
import jax.numpy as jnp

from stride_jax.observed import Observed


def fidelity(shift_SxTxC: jax.Array, members: Observed, mask_S: jax.Array) -> jax.Array:
    """The steered model's loss on a subset's members.

    `mean_{x in A_k} Σ_t omega_t Loss(o_x + s_x, y_x)_t`

    Args:
      shift_SxTxC: shifts of one operator.
      members: of the subset.
      mask_S: 1 for members, 0 for padding.

    Returns:
      Scalar, nats per example.
    """
    objective, outputs, labels = members.objective, members.logits_NxTxC, members.labels_NxT
    steered = objective.loss(outputs, labels) - objective.drop(shift_SxTxC, outputs, labels)
    per_example = (members.weights_NxT * steered).sum(axis=-1)
    return (mask_S * per_example).sum() / mask_S.sum()


def stability(shift_BxTxC: jax.Array, batch: Observed, mask_B: jax.Array) -> jax.Array:
    """How far an operator moves the model's predictions on examples outside its subset.

    `mean_{x in R_k} Σ_t omega_t D(o_x, o_x + s_x)_t` with the objective's divergence D; for
    cross-entropy it is `KL(softmax(o_x) || softmax(o_x + s_x))`.

    Args:
      shift_BxTxC: shifts of one operator.
      batch: examples that all subsets share.
      mask_B: 1 for examples outside the subset, 0 for its members.

    Returns:
      Scalar, nats per example.
    """
    moved = batch.objective.divergence(shift_BxTxC, batch.logits_NxTxC, batch.labels_NxT)
    return (mask_B * (batch.weights_NxT * moved).sum(axis=-1)).sum() / jnp.maximum(
        mask_B.sum(), 1.0
    )


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
