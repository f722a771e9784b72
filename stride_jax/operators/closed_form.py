"""Operators in closed form: one factorisation instead of training.

To first order around `a_k = 0` the objective of joint training is quadratic, with a Hessian that
all subsets share (method §4.2):

    a_k = (F + gamma I)^{-1} mean_{i in A_k} g_i

so that a query's measurement is `<g_x, a_k>`: the mean influence of the subset's members on the
query through a ridge readout of the taps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from stride_jax.operators.basis import Basis
from stride_jax.operators.curvature import Moments
from stride_jax.operators.steering import Operators


@dataclasses.dataclass(frozen=True)
class ClosedFormSettings:
    """Curvature and damping.

    Attributes:
      damping: gamma relative to the mean eigenvalue of the Fisher.
      output_damping: with Kronecker factors, that of the output side; `damping` is the feature
        side's.
      fisher: `exact`, `kronecker`, or `auto`: exact while R·O is at most `exact_limit`.
      exact_limit: largest side of an exact Fisher.
      batch_size: examples a step of the pass.
    """

    damping: float = 0.03
    output_damping: float = 1.0
    fisher: str = "auto"
    exact_limit: int = 4096
    batch_size: int = 512

    def __post_init__(self) -> None:
        if self.fisher not in ("auto", "exact", "kronecker"):
            raise ValueError(f"fisher={self.fisher!r}: use 'auto', 'exact' or 'kronecker'")
        if self.damping <= 0 or self.output_damping <= 0:
            raise ValueError(
                f"damping={self.damping}, output_damping={self.output_damping}: must be positive, "
                "since the Fisher is singular (logits have a free constant)"
            )

    def exact(self, rank: int, width: int, residual: bool) -> bool:
        """Whether the exact Fisher is used at these sizes."""
        if self.fisher != "auto":
            return self.fisher == "exact"
        return not residual and rank * width <= self.exact_limit


@functools.partial(jax.jit, static_argnames="settings")
def _solve(moments: Moments, settings: ClosedFormSettings) -> jax.Array:
    mean_KxRxO = moments.gradients_KxRxO[0] / moments.sizes_K[0][:, None, None]
    k, r, o = mean_KxRxO.shape
    tokens = moments.tokens[0]
    if moments.fisher is not None:
        # [O, O, R, R] to rows and columns (r, o), as the gradients are laid out.
        fisher = moments.fisher[0].transpose(2, 0, 3, 1).reshape(r * o, r * o) / tokens
        ridge = settings.damping * jnp.trace(fisher) / (r * o)
        factor = jax.scipy.linalg.cho_factor(fisher + ridge * jnp.eye(r * o))
        flat = jax.scipy.linalg.cho_solve(factor, mean_KxRxO.reshape(k, r * o).T)
        return flat.T.reshape(k, r, o)

    def damped(total: jax.Array, damping: float) -> jax.Array:
        side = total / tokens
        return side + damping * jnp.trace(side) / len(side) * jnp.eye(len(side))

    left = damped(moments.features_RxR[0], settings.damping)
    right = damped(moments.outputs_OxO[0], settings.output_damping)
    by_feature = jnp.linalg.solve(left, mean_KxRxO.transpose(1, 0, 2).reshape(r, k * o))
    by_feature = by_feature.reshape(r, k, o).transpose(1, 0, 2)
    return jnp.linalg.solve(right, by_feature.reshape(k * r, o).T).T.reshape(k, r, o)


def closed_form(basis: Basis, moments: Moments, settings: ClosedFormSettings) -> Operators:
    """All K operators at once from the moments of the training set.

    Exact: `vec(a_k) = (F + gamma I)^{-1} vec(mean g)`; Kronecker: `F ≈ E[b bᵀ] ⊗ E[diag p − p pᵀ]`,
    each factor damped relative to its own mean eigenvalue.

    Args:
      basis: the one the moments were made with.
      moments: from `curvature.accumulate`, one set or several added up.
      settings: damping.

    Returns:
      Operators of size one Newton step: measure them with a small scale (additivity holds to first
      order only).
    """
    return Operators(basis, _solve(moments, settings))
