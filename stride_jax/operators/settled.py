"""Whether a model's training was stopped before it had settled, told without retraining.

At a model that has settled the gradients of its training examples add up to nothing, and leaving
one out moves the optimum by `F⁻¹ g_i`: the closed form's equation. Where training was stopped
early they still agree on a direction. Then directions of small curvature have hardly been learnt,
and what an example did is its gradient over the whole training, not the last one.

Letter of its own: P = R C numbers of a step.
"""

import numpy as np
import scipy.linalg
import scipy.special

from stride_jax.observed import Observed
from stride_jax.operators.fisher import DECAY
from stride_jax.taps import Activations

SAMPLE = 4096
"""Training examples that are read."""
MOST_CLASSES = 256
"""Of more classes a step is not solved for."""
# Features, before and after principal components are taken; numbers of a step at most.
_WIDTH, _RANK, _NUMBERS = 512, 64, 1040
# A loss below this share of log C counts as that: little is left to learn, and much of little.
_LEAST = 0.05
# Gains that the rule begins and ends at.
_BEGIN, _END = 0.005, 0.04
_DECAYS = 128.0


def gain(observed: Observed, temperature: float = 1.0) -> float:
    """Share of the training loss that a step learnt from other examples would still take away.

    One Newton step of operators at the logits, and its value to an example that it was not learnt
    from, over all pairs of different examples:

        ½ mean_{i ≠ j} g_iᵀ (F + gamma I)^{-1} g_j / max(mean_i Loss(o_i), .05 log C)

    The logits are read as training left them, without the temperature that calibrates them: a
    model that knows its training set by heart has no loss left there, and a calibrated one would.

    Args:
      observed: training examples of a classifier, one token each.
      temperature: what the logits have been divided by.

    Returns:
      The share; about 0, or less, for a model that has settled.

    Source: docs/method.md §5.7.

    >>> import jax.numpy as jnp
    >>> x, y = np.linspace(-1, 1, 40), np.arange(40) >= 16
    >>> said = lambda w: Observed({"input": jnp.asarray(x[:, None, None])},
    ...     jnp.asarray(np.stack([0 * x, w * x + w / 5], 1)[:, None]),
    ...     jnp.asarray(y[:, None], int), jnp.ones((40, 1)))
    >>> [round(gain(said(w)), 2) for w in (0.0, 1.0, 20.0)]
    [0.49, 0.37, -0.08]
    """
    kept = np.asarray(observed.weights_NxT[:, 0]) > 0
    o_NxC = np.asarray(observed.logits_NxTxC[:, 0], np.float64)[kept] * temperature
    labels_N = np.asarray(observed.labels_NxT[:, 0])[kept]
    count, classes = o_NxC.shape
    if min(count, classes) < 2:
        return 0.0
    rank = max(4, min(_RANK, _NUMBERS // classes))
    b_NxR = _features(observed.activations, kept, rank)
    log_p_NxC = np.asarray(scipy.special.log_softmax(o_NxC, axis=1))
    loss = -float(log_p_NxC[np.arange(count), labels_N].mean())
    p_NxC = np.exp(log_p_NxC)
    g_NxP = ((np.eye(classes)[labels_N] - p_NxC)[:, :, None] * b_NxR[:, None]).reshape(count, -1)
    gamma = DECAY * float((b_NxR**2).sum(axis=1).mean()) / count
    factor = np.linalg.cholesky(_fisher(b_NxR, p_NxC) + gamma * np.eye(g_NxP.shape[1]))
    white_PxN = scipy.linalg.solve_triangular(factor, g_NxP.T, lower=True)
    pairs = (white_PxN.sum(axis=1) ** 2).sum() - (white_PxN**2).sum()
    return float(pairs) / (2 * count * (count - 1) * max(loss, _LEAST * np.log(classes)))


def unsettled(share: float) -> tuple[float, float]:
    """Doubt and weight decay for a model of that gain.

    With `u = (gain − .005) / .035`, in [0, 1]: doubt `u / 2`, the mean of predictions on a straight
    way from uniform ones to the last, and a decay of `.2 · 128^u`.

    >>> unsettled(-0.01), unsettled(0.2)
    ((0.0, 0.2), (0.5, 25.6))
    """
    u = float(np.clip((share - _BEGIN) / (_END - _BEGIN), 0.0, 1.0))
    return u / 2, DECAY * _DECAYS**u


def _features(activations: Activations, kept: np.ndarray, rank: int) -> np.ndarray:
    """Leading principal components of the taps and a constant, `[N, R]`, of mean square 1."""
    columns = []
    for name in sorted(activations):
        x = np.asarray(activations[name][:, 0], np.float32)[kept]
        columns.append((x - x.mean(axis=0)) / max(float(x.std(axis=0).mean()), 1e-30))
    x = np.concatenate(columns, axis=1)
    if x.shape[1] > _WIDTH:  # principal components of all of it would take longer than a fit
        signs = np.random.default_rng(0).integers(0, 2, (x.shape[1], _WIDTH)) * 2 - 1
        x = x @ signs.astype(np.float32)
    values, vectors = np.linalg.eigh(x.T.astype(np.float64) @ x)
    rank = min(rank, int((values > values[-1] * 1e-7).sum()))
    b_NxR = x @ vectors[:, ::-1][:, :rank]
    b_NxR *= np.sqrt(max(b_NxR.size, 1) / max(float((b_NxR**2).sum()), 1e-30))
    return np.concatenate([b_NxR, np.ones((len(b_NxR), 1))], axis=1)


def _fisher(b_NxR: np.ndarray, p_NxC: np.ndarray) -> np.ndarray:
    """Mean Fisher of operators at the logits, `[P, P]`, ordered (output, feature)."""
    (count, rank), classes = b_NxR.shape, p_NxC.shape[1]
    out = np.empty((classes, rank, classes, rank))
    for c in range(classes):
        for d in range(c + 1):
            weight_N = p_NxC[:, c] * ((c == d) - p_NxC[:, d]) / count
            out[c, :, d] = out[d, :, c] = b_NxR.T @ (b_NxR * weight_N[:, None])
    return out.reshape(classes * rank, -1)
