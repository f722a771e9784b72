"""The loss a model was trained with, as a small pure object; and one of the user's own.

Operators, measurements, scores, banks and baselines read a loss through what is here: its value,
minus its gradient in the outputs, its Hessian there, and by how much a shift of the outputs lowers
it (docs/method.md §3.6).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.objectives.hessian import Hessian

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""`(outputs, targets) -> [...]`, nats per token."""


def _as_they_are(outputs: jax.Array, doubt: float) -> jax.Array:
    del doubt
    return outputs


def _any_target(targets: np.ndarray, width: int) -> None:
    del targets, width


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss of a token's outputs, convex in them; add up tokens for that of an example.

    Outputs are `[..., C]`; targets `[...]` integers where they are classes, else `[..., M]`.

    Attributes:
      name: says what it is; results keep it.
      loss: `(outputs, targets) -> [...]`.
      errors: `(outputs, targets) -> [..., C]`, e, minus the gradient of the loss in the outputs.
      hessian: `(outputs, targets) -> Hessian`.
      drop: `(shift, outputs, targets) -> [...]`, `loss(o) − loss(o + s)` without cancellation.
      classes: whether targets are integers, of which −1 does not count.
      invariant: whether a constant added to all outputs changes nothing, so that the Hessian's
        rows add up to zero.
      doubted: `(outputs, eps) -> outputs`, less certain of themselves
        (`ClosedFormSettings.doubt`).
      check: `(targets, C)`, refuses targets that the loss is not made for.
    """

    name: str
    loss: Loss
    errors: Callable[[jax.Array, jax.Array], jax.Array]
    hessian: Callable[[jax.Array, jax.Array], Hessian]
    drop: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    classes: bool = False
    invariant: bool = False
    doubted: Callable[[jax.Array, float], jax.Array] = _as_they_are
    check: Callable[[np.ndarray, int], None] = _any_target

    def targets(self, labels: jax.Array, outputs: jax.Array) -> jax.Array:
        """Labels as `Examples` has them, `[N]` numbers too, as the targets of these outputs."""
        if self.classes:
            return labels
        return labels.reshape(*outputs.shape[:-1], -1).astype(outputs.dtype)

    def divergence(self, shift: jax.Array, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """What a shift costs to second order and beyond: `<e, s> − drop(s)`, `[...]`.

        It is zero at s = 0 and, since the loss is convex, never negative; for cross-entropy it is
        `KL(softmax(o) || softmax(o + s))`, whatever the targets.
        """
        linear = (self.errors(outputs, targets) * shift).sum(axis=-1)
        return linear - self.drop(shift, outputs, targets)


# Gauss and Legendre's nodes on [0, 1]: exact for gradients of degree 7 along the shift.
_NODES, _WEIGHTS = (v.tolist() for v in np.polynomial.legendre.leggauss(4))


@functools.lru_cache(maxsize=64)
def objective_of(
    loss: Callable[[jax.Array, jax.Array], jax.Array], name: str = "", *, classes: bool = False
) -> Objective:
    """An objective of one's own: any loss of a token's outputs that is convex in them.

    Its gradient and Hessian are JAX's. By how much a shift lowers it is
    `∫_0^1 <e(o + τ s), s> dτ`, by four nodes of Gauss and Legendre's: no small difference of two
    large numbers.

    Args:
      loss: `(outputs [C], target) -> scalar` in nats, of one token; the target is `[M]` numbers,
        or an integer with `classes`.
      name: what results call it; the function's own name by default.
      classes: whether targets are integer classes.

    >>> smooth = objective_of(lambda o, y: 2 * jax.nn.softplus(y - o)[0] - (y - o)[0], "smooth L1")
    >>> o, y = jnp.zeros((1, 1)), jnp.ones((1, 1))
    >>> round(float(smooth.errors(o, y)[0, 0]), 4), smooth.hessian(o, y).whole.shape
    (0.4621, (1, 1, 1))
    """

    def per_token(f: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
        def rows(outputs: jax.Array, targets: jax.Array) -> jax.Array:
            lead = jnp.broadcast_shapes(outputs.shape[:-1], targets.shape[: outputs.ndim - 1])
            rest = targets.shape[outputs.ndim - 1 :]
            flat = jnp.broadcast_to(outputs, (*lead, outputs.shape[-1])).reshape(
                -1, outputs.shape[-1]
            )
            made = jax.vmap(f)(flat, jnp.broadcast_to(targets, (*lead, *rest)).reshape(-1, *rest))
            return made.reshape(*lead, *made.shape[1:])

        return rows

    gradient = per_token(jax.grad(loss))

    def errors(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return -gradient(outputs, targets)

    def drop(shift: jax.Array, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        total: jax.Array = jnp.zeros(())
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            e = errors(outputs + (node + 1) / 2 * shift, targets)
            total = total + weight / 2 * (e * shift).sum(axis=-1)
        return total

    whole = per_token(jax.hessian(loss))
    return Objective(
        name or getattr(loss, "__name__", "own"),
        per_token(loss),
        errors,
        lambda outputs, targets: Hessian(None, None, whole(outputs, targets)),
        drop,
        classes,
    )
