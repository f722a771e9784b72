"""What is asked of a query: a function of its outputs, its change under a shift, its gradient.

| question | `f(o)` | change under a shift s, exactly | `∂f/∂o` |
|---|---|---|---|
| `loss` | `log p_y` | `−log Σ_c p_c exp(s_c − s_y)` | `e_y − p` |
| `margin` | `log p_y / (1 − p_y)` | `−log Σ_{c≠y} q_c exp(s_c − s_y)` | `e_y − q` |

with `q_c = p_c / (1 − p_y)`, the other classes among themselves. The margin speaks where the loss
has nothing left to say: at p_y = 1 its gradient is as long as ever. With another class as the label
it is that class' log odds. Of other objectives `loss` is minus their loss, and there is no margin.
A user's own f is read to first order (docs/method.md §6.4).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from stride_jax.objectives import CROSS_ENTROPY, Objective, log_mean_exp

Gain = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(shift, logits, labels) -> f(o + s) − f(o)`, `[..., C]` and `[...]` to `[...]`."""

Gradient = Callable[[jax.Array, jax.Array], jax.Array]
"""`(logits, labels) -> ∂f/∂o`, `[..., C]`."""


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a query; more of it is what proponents give.

    Attributes:
      name: says what it is.
      gain: its change under a shift of the logits.
      gradient: its gradient in the logits.
      classes: whether it needs classes, as cross-entropy has them.
    """

    name: str
    gain: Gain
    gradient: Gradient
    classes: bool = False


def _others(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`q`: probabilities of the classes besides the true one, 0 there."""
    true = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jax.nn.softmax(jnp.where(true, -jnp.inf, logits))


def margin_gain(shift: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How much a shift raises the margin `o_y − log Σ_{c≠y} exp(o_c)`, without cancellation.

    >>> o, s = jnp.array([[100.0, 0.0, 0.0]]), jnp.array([[1e-6, 0.0, 0.0]])
    >>> bool(jnp.allclose(margin_gain(s, o, jnp.array([0])), 1e-6, rtol=1e-3))
    True
    """
    at = jnp.broadcast_to(labels[..., None], (*shift.shape[:-1], 1))
    return -log_mean_exp(_others(logits, labels), shift - jnp.take_along_axis(shift, at, axis=-1))


def margin_gradient(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`e_y − q`."""
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return hot - _others(logits, labels)


QUESTIONS = {
    "loss": Question("loss", CROSS_ENTROPY.drop, CROSS_ENTROPY.errors),
    "margin": Question("margin", margin_gain, margin_gradient, classes=True),
}
"""Those that settings name; `loss` is minus the loss, so that a proponent has a positive score."""

LOSS = QUESTIONS["loss"]


@functools.lru_cache(maxsize=64)
def asked_of(question: Question, objective: Objective) -> Question:
    """A question as it is asked of a model with this objective: `LOSS` is minus its own loss.

    Raises:
      ValueError: a question about classes, where there are none.
    """
    if question.classes and not objective.classes:
        raise ValueError(
            f"question={question.name!r} is about classes, but the model's loss is "
            f"{objective.name}: ask for 'loss', or for question_of(f), such as "
            "question_of(lambda outputs, targets: outputs[..., 0])"
        )
    if question == LOSS and objective != CROSS_ENTROPY:
        return Question("loss", objective.drop, objective.errors)
    return question


@functools.lru_cache(maxsize=64)
def question_of(f: Callable[[jax.Array, jax.Array], jax.Array], name: str = "") -> Question:
    """A question of one's own, read to first order: `f(o + s) − f(o) ≈ <∂f/∂o, s>`.

    Args:
      f: `(logits [..., C], labels [...]) -> [...]`, differentiable, row by row.
      name: what results say was asked; the function's own name by default.

    >>> logit = question_of(lambda o, y: o[..., 1], "logit of class 1")
    >>> o, s = jnp.zeros((1, 3)), jnp.array([[5.0, 0.25, 0.0]])
    >>> float(logit.gain(s, o, jnp.array([0]))[0])
    0.25
    """

    def gradient(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jax.grad(lambda o: f(o, labels).sum())(logits)

    def gain(shift: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return (gradient(logits, labels) * shift).sum(axis=-1)

    return Question(name or getattr(f, "__name__", "own"), gain, gradient)


def named_question(question: "str | Question") -> Question:
    """A question, by its name or as it is.

    Raises:
      ValueError: no question has that name.
    """
    if isinstance(question, Question):
        return question
    if question not in QUESTIONS:
        raise ValueError(
            f"question={question!r}: use one of {', '.join(QUESTIONS)}, or question_of(f)"
        )
    return QUESTIONS[question]
