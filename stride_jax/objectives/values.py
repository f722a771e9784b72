"""Losses of numbers: squared error, sigmoid cross-entropy of several labels, Poisson counts.

| loss | of a token | minus its gradient e | Hessian |
|---|---|---|---|
| squared error | `Σ_c (o_c − y_c)² / 2v` | `(y − o) / v` | `1 / v` |
| sigmoid | `Σ_c log(1 + exp o_c) − y_c o_c` | `y − p` | `diag p (1 − p)` |
| Poisson | `Σ_c exp o_c − y_c o_c` | `y − exp o` | `diag exp o` |

with the variance v of the noise, `p = 1 / (1 + exp −o)`, and constants of the targets left out.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.objectives.cross_entropy import log_mean_exp
from stride_jax.objectives.hessian import Hessian
from stride_jax.objectives.objective import Objective


def _check_width(targets: np.ndarray, width: int) -> None:
    if targets.shape[-1] != width:
        raise ValueError(
            f"targets of {targets.shape[-1]} numbers do not fit the model's {width} outputs: give "
            f"labels of shape [N, {width}]"
        )


@functools.lru_cache(maxsize=64)
def squared_error(variance: float = 1.0) -> Objective:
    """Half the squared error, over the variance of the noise: nats of a normal distribution.

    Args:
      variance: v; 1 for half the squared error itself (`models.fit_variance` fits it on held-out
        examples). It scales all scores and changes no order.

    Raises:
      ValueError: a variance that is not positive.

    >>> half = squared_error()
    >>> o, y = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]])
    >>> half.loss(o, y).tolist(), half.drop(-o, o, y).tolist()
    ([0.5], [0.5])
    """
    if not variance > 0:
        raise ValueError(f"variance={variance} of the noise must be positive")

    def loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return ((outputs - targets) ** 2).sum(axis=-1) / (2 * variance)

    def errors(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return (targets - outputs) / variance

    def hessian(outputs: jax.Array, targets: jax.Array) -> Hessian:
        del targets
        return Hessian(jnp.full_like(outputs, 1 / variance))

    def drop(shift: jax.Array, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return (shift * (targets - outputs - shift / 2)).sum(axis=-1) / variance

    # Scores of another variance are in other units, so an index must not take one for the other.
    name = "squared_error" if variance == 1 else f"squared_error({variance!r})"
    return Objective(name, loss, errors, hessian, drop, check=_check_width)


def _sigmoid_drop(shift: jax.Array, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """`Σ_c −y log(p + (1 − p) exp(−s)) − (1 − y) log(1 − p + p exp s)`."""
    p = jax.nn.sigmoid(outputs)
    # `1 − p` from the other side, so that a label the model is sure of keeps its digits.
    both = jnp.stack(jnp.broadcast_arrays(jax.nn.sigmoid(-outputs), p), axis=-1)
    zero = jnp.zeros_like(shift)
    present = log_mean_exp(both, jnp.stack([-shift, zero], axis=-1))
    absent = log_mean_exp(both, jnp.stack([zero, shift], axis=-1))
    return -(targets * present + (1 - targets) * absent).sum(axis=-1)


def _sigmoid_loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return (jax.nn.softplus(outputs) - targets * outputs).sum(axis=-1)


def _sigmoid_errors(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return targets - jax.nn.sigmoid(outputs)


def _sigmoid_hessian(outputs: jax.Array, targets: jax.Array) -> Hessian:
    del targets
    return Hessian(jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs))


def _sigmoid_doubted(outputs: jax.Array, doubt: float) -> jax.Array:
    """`p' = (1 − eps) p + eps / 2`."""
    p, rest = jax.nn.sigmoid(outputs), jax.nn.sigmoid(-outputs)
    return jnp.log((1 - doubt) * p + doubt / 2) - jnp.log((1 - doubt) * rest + doubt / 2)


def _check_shares(targets: np.ndarray, width: int) -> None:
    _check_width(targets, width)
    low, high = float(targets.min()), float(targets.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"labels of a sigmoid cross-entropy run from {low:g} to {high:g}: each output's label "
            "is 0, 1 or a share between"
        )


def _poisson_loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return (jnp.exp(outputs) - targets * outputs).sum(axis=-1)


def _poisson_errors(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return targets - jnp.exp(outputs)


def _poisson_hessian(outputs: jax.Array, targets: jax.Array) -> Hessian:
    del targets
    return Hessian(jnp.exp(outputs))


def _poisson_drop(shift: jax.Array, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return (targets * shift - jnp.exp(outputs) * jnp.expm1(shift)).sum(axis=-1)


def _check_counts(targets: np.ndarray, width: int) -> None:
    _check_width(targets, width)
    if (low := float(targets.min())) < 0:
        raise ValueError(f"counts of a Poisson loss hold {low:g}: they can't be negative")


SIGMOID = Objective(
    "sigmoid", _sigmoid_loss, _sigmoid_errors, _sigmoid_hessian, _sigmoid_drop,
    doubted=_sigmoid_doubted, check=_check_shares,
)  # fmt: skip
"""Cross-entropy of C labels that are there or not, each with an output of its own."""

POISSON = Objective(
    "poisson", _poisson_loss, _poisson_errors, _poisson_hessian, _poisson_drop,
    check=_check_counts,
)  # fmt: skip
"""Minus the log-likelihood of counts whose log rates are the outputs, less `log y!`."""
