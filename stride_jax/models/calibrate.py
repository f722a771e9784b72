"""One temperature for the logits, or the variance of the noise, fitted on held-out examples.

A model that has memorised its training set has residuals `e_y − p` near zero there, which say too
little about influence. Dividing the logits by one temperature fitted on examples that are neither
trained on nor scored undoes much of it. It is a property of the base model: every method,
ours and the baselines, reads the calibrated logits. (Guo et al., On Calibration of Modern Neural
Networks, 2017.)

For numbers the variance of the noise does the same: residuals `(y − o) / v` are in nats, and
training residuals, which overfitting makes small, do not set the scale. A Poisson loss has its
variance already.

Letter of its own: τ the temperature.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from stride_jax.objectives import Objective, named_objective, squared_error


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
    _refuse(logits)

    def loss(scaled: np.ndarray) -> float:
        picked = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
        return float(np.mean(scipy.special.logsumexp(scaled, axis=1) - picked))

    return _best_temperature(loss, logits)


def fit_sigmoid_temperature(logits_NxC: np.ndarray, targets_NxC: np.ndarray) -> float:
    """The temperature that minimises held-out sigmoid cross-entropy, τ in [1/20, 20].

    Args:
      logits_NxC: `[N, C]` logits of held-out examples.
      targets_NxC: `[N, C]`, each 0, 1 or a share between.

    Raises:
      ValueError: no examples, or logits that are not finite.

    >>> round(fit_sigmoid_temperature(np.full((3, 1), 10.0), np.array([[1], [1], [0]])), 2)
    14.43
    """
    logits, targets = _held_out(logits_NxC, targets_NxC)
    return _best_temperature(
        lambda scaled: float(np.mean(np.logaddexp(0.0, scaled) - targets * scaled)), logits
    )


def fit_variance(outputs_NxC: np.ndarray, targets_NxC: np.ndarray) -> float:
    """The noise's variance per output number: the mean squared held-out residual.

    Args:
      outputs_NxC: `[N, C]` outputs of held-out examples.
      targets_NxC: `[N, C]` what they should be; `[N]` for C = 1.

    Raises:
      ValueError: no examples, outputs that are not finite, or no residual at all.

    >>> fit_variance(np.array([[1.0], [2.0]]), np.array([0.0, 2.0]))
    0.5
    """
    outputs, targets = _held_out(outputs_NxC, targets_NxC)
    variance = float(np.mean((outputs - targets) ** 2))
    if variance == 0:
        raise ValueError(
            "held-out residuals are all zero: without noise there is no variance to fit; use "
            "squared_error(1.0)"
        )
    return variance


_MEMORY = 1e-3
_MOST_DOUBT = 0.05


def fit_doubt(train_nats: float, held_out_nats: float) -> float:
    """Doubt of what a model says of its training examples, by how much better it does on them.

    `ε = min(κ (held-out loss / training loss − 1), .05)`, κ = .001: a model that does as well on
    examples that it has not seen is believed, one that knows its training set by heart is not.

    Args:
      train_nats: mean loss on training examples, nats, calibrated.
      held_out_nats: on examples that were not trained on.

    Returns:
      What `ClosedFormSettings.doubt` is, in [0, .05].

    Raises:
      ValueError: losses that are negative or not finite.

    Source: docs/method.md §5.6.

    >>> fit_doubt(0.01, 0.06)
    0.005
    >>> fit_doubt(0.2, 0.1), fit_doubt(0.0, 0.1)
    (0.0, 0.05)
    """
    if not (0 <= train_nats < np.inf and 0 <= held_out_nats < np.inf):
        raise ValueError(
            f"mean losses {train_nats} and {held_out_nats} must be finite and at least 0: doubt is "
            "of losses of classes; give closed_form.doubt a number"
        )
    if held_out_nats <= train_nats:
        return 0.0
    if train_nats * (1 + _MOST_DOUBT / _MEMORY) <= held_out_nats:
        return _MOST_DOUBT
    return _MEMORY * (held_out_nats / train_nats - 1)


class Calibration(NamedTuple):
    """What held-out examples say of a model's certainty.

    Attributes:
      temperature: what its outputs are divided by; 1 where they are numbers.
      variance: of the noise of a squared error; None for other losses.
    """

    temperature: float = 1.0
    variance: float | None = None

    def objective(self, name: str) -> Objective:
        """The objective of that name, with its variance.

        >>> own = Calibration(variance=0.25).objective("squared_error")
        >>> float(own.loss(np.ones(1), np.zeros(1)))
        2.0
        """
        if self.variance is None:
            return named_objective(name)
        return squared_error(self.variance)


def calibrate(objective: str, outputs: np.ndarray, labels: np.ndarray) -> Calibration:
    """Fit what the objective has to fit.

    Args:
      objective: its name.
      outputs: `[N, …, C]` of held-out examples.
      labels: theirs, as in `Examples`.

    Raises:
      ValueError: nothing to calibrate on, or outputs that are not finite.
    """
    flat = outputs.reshape(-1, outputs.shape[-1])
    if objective == "cross_entropy":
        return Calibration(fit_temperature(flat, labels.reshape(-1)))
    _refuse(flat)
    targets = labels.reshape(len(flat), -1)
    if objective == "sigmoid":
        return Calibration(fit_sigmoid_temperature(flat, targets))
    if objective == "squared_error":
        return Calibration(variance=fit_variance(flat, targets))
    return Calibration()


def _held_out(outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as `[N, C]` float64."""
    outputs = np.asarray(outputs, np.float64)
    _refuse(outputs)
    targets = np.asarray(targets, np.float64).reshape(len(outputs), -1)
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets of shape {targets.shape} do not fit outputs of shape {outputs.shape}: give "
            "one number for each output"
        )
    return outputs, targets


def _refuse(outputs: np.ndarray) -> None:
    if len(outputs) == 0:
        raise ValueError("no held-out examples to calibrate on: give the calibration split some")
    if not np.isfinite(outputs).all():
        raise ValueError(
            "held-out logits are not finite: the base model diverged in training; lower its "
            "learning_rate"
        )


def _best_temperature(loss: Callable[[np.ndarray], float], logits: np.ndarray) -> float:
    def scaled_loss(log_tau: float) -> float:
        return loss(logits * np.exp(-log_tau))

    bound = np.log(20.0)
    minimum = scipy.optimize.minimize_scalar(scaled_loss, bounds=(-bound, bound), method="bounded")
    return float(np.exp(minimum.x))  # pyright: ignore[reportAttributeAccessIssue]
