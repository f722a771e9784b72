"""One temperature for the logits, fitted on held-out examples.

A model that has memorised its training set has residuals `e_y − p` near zero there, which say too
little about influence. Dividing the logits by one temperature fitted on examples that are neither
trained on nor scored undoes much of it. It is a property of the base model: every method,
ours and the baselines, reads the calibrated logits. (Guo et al., On Calibration of Modern Neural
Networks, 2017.)

Letter of its own: τ the temperature.
"""

import numpy as np
import scipy.optimize
import scipy.special


def fit_temperature(logits_NxC: np.ndarray, labels_N: np.ndarray) -> float:
    """The temperature that minimises held-out cross-entropy.

    `argmin_τ mean_i −log softmax(o_i / τ)[y_i]`, τ in [1/20, 20].

    Args:
      logits_NxC: `[N, C]` logits of held-out examples.
      labels_N: `[N]` int; −1 does not count.

    Returns:
      τ; above 1 where the model is over-confident.

    Raises:
      ValueError: no examples, or logits that are not finite.

    >>> logits = np.array([[10.0, 0.0], [10.0, 0.0], [10.0, 0.0]])
    >>> round(fit_temperature(logits, np.array([0, 0, 1])), 2)  # 2 of 3 right: log-odds log 2
    14.43
    """
    labels = np.asarray(labels_N)
    logits = np.asarray(logits_NxC, np.float64)[labels >= 0]
    labels = labels[labels >= 0]
    if len(logits) == 0:
        raise ValueError("no held-out examples to calibrate on: give the calibration split some")
    if not np.isfinite(logits).all():
        raise ValueError(
            "held-out logits are not finite: the base model diverged in training; lower its "
            "learning_rate"
        )

    def loss(log_tau: float) -> float:
        scaled = logits * np.exp(-log_tau)
        picked = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
        return float(np.mean(scipy.special.logsumexp(scaled, axis=1) - picked))

    bound = np.log(20.0)
    minimum = scipy.optimize.minimize_scalar(loss, bounds=(-bound, bound), method="bounded")
    return float(np.exp(minimum.x))  # pyright: ignore[reportAttributeAccessIssue]
