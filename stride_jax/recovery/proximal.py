"""The Lasso on a few columns, by jaxopt's accelerated proximal gradient. jaxopt is imported here
alone.

    minimise over w:  ½ || y − M w ||² + Σ_i lambda_i (|w_i| + gamma / 2 w_i²),  w ≥ 0 if asked
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxopt

from stride_jax.design import gather_add

PENALTIES = ("lasso", "nonnegative", "elastic_net")


class Inner(NamedTuple):
    """A working set's problem, solved.

    Attributes:
      w_W: influences.
      r_L: residual `y − M w`, centred with an intercept; the last of K + 1 entries is zero.
      lipschitz: bound on the largest eigenvalue of `MᵀM` that held during the solve.
      steps: proximal-gradient steps taken.
      gap: relative duality gap of the working set's problem.
    """

    w_W: jax.Array
    r_L: jax.Array
    lipschitz: jax.Array
    steps: jax.Array
    gap: jax.Array


def padded_residual(
    rows_WxD: jax.Array, w_W: jax.Array, y_K: jax.Array, intercept: bool
) -> jax.Array:
    """`y − M w`, centred if there is an intercept, with a zero appended: `[K + 1]`."""
    k = y_K.shape[0]
    each = jnp.broadcast_to(w_W[:, None], rows_WxD.shape).reshape(-1)
    total = jnp.zeros(k + 1, w_W.dtype).at[rows_WxD.reshape(-1)].add(each)
    r = y_K - total[:k]
    if intercept:
        r = r - r.mean()
    return jnp.concatenate([r, jnp.zeros(1, r.dtype)])


def _prox(penalty: str) -> Callable[..., Any]:
    if penalty == "lasso":
        return jaxopt.prox.prox_lasso
    if penalty == "nonnegative":
        return jaxopt.prox.prox_non_negative_lasso
    return jaxopt.prox.prox_elastic_net


def solve_inner(
    rows_WxD: jax.Array,
    w_W: jax.Array,
    y_K: jax.Array,
    l1_W: jax.Array,
    gamma: jax.Array,
    lipschitz: jax.Array,
    tolerance: jax.Array,
    *,
    penalty: str,
    intercept: bool,
    max_steps: int,
) -> Inner:
    """Accelerated proximal gradient with restarts, until the duality gap is small.

    The step is `1 / L` with an L that is learnt: wherever a step shows that `||M v||² > L ||v||²`
    L is raised and the step is taken again. So L is that of the working set, much smaller than
    that of M, and costs no power iteration.

    Args:
      rows_WxD: subsets of the working set's examples, K for padding.
      w_W: where to start.
      y_K: measurements, centred with an intercept.
      l1_W: lambda_i.
      gamma: of the elastic net; ignored by the others.
      lipschitz: L to start from.
      tolerance: relative duality gap to stop at.
      penalty: one of `PENALTIES`.
      intercept: whether an intercept is fitted.
      max_steps: steps at most.
    """
    columns_DxW = rows_WxD.T.astype(jnp.int32)
    rows_WxD = rows_WxD.astype(jnp.int32)
    half_yy = jnp.maximum(0.5 * jnp.vdot(y_K, y_K), 1e-30)
    elastic = penalty == "elastic_net"
    hyper = (l1_W, gamma) if elastic else l1_W

    def fun(z_W: jax.Array, *_: object) -> tuple[tuple[jax.Array, object], jax.Array]:
        r_L = padded_residual(rows_WxD, z_W, y_K, intercept)
        c_W = gather_add(r_L, columns_DxW)
        squares, ridge = jnp.vdot(r_L, r_L), jnp.zeros(())
        slope = c_W
        if elastic:
            ridge = jnp.vdot(l1_W * gamma * z_W, z_W)
            slope = c_W - l1_W * gamma * z_W
        ratio = slope / l1_W if penalty == "nonnegative" else jnp.abs(slope) / l1_W
        shrink = 1 / jnp.maximum(ratio.max(), 1.0)
        # P − D = ½||r||² (1 − s)² + Σ lambda|w| − s r·(y − r), r shrunk by s to be dual feasible.
        gap = 0.5 * (squares + ridge) * (1 - shrink) ** 2 + jnp.vdot(l1_W, jnp.abs(z_W))
        gap = gap - shrink * (jnp.vdot(r_L[:-1], y_K) - squares - ridge)
        return (0.5 * squares, (gap / half_yy, r_L)), -c_W

    def solver_with(lipschitz: jax.Array) -> jaxopt.ProximalGradient:
        return jaxopt.ProximalGradient(
            fun=fun, prox=_prox(penalty), value_and_grad=True, has_aux=True,
            stepsize=lambda _: 1 / lipschitz, acceleration=True, implicit_diff=False,
        )  # fmt: skip

    def step(carry: tuple) -> tuple:
        w_W, state, last_W, last_r_L, lipschitz, _, count = carry
        z_W = state.velocity
        new_W, new = solver_with(lipschitz).update(w_W, state, hyper)
        gap, r_L = new.aux
        moved, changed = z_W - last_W, r_L - last_r_L
        length = jnp.vdot(moved, moved)
        seen = jnp.where(
            # Below this the change of r is rounding.
            length > 1e-10 * jnp.vdot(z_W, z_W),
            jnp.vdot(changed, changed) / jnp.maximum(length, 1e-30),
            0.0,
        )
        unsafe = seen > lipschitz
        new_W = jnp.where(unsafe, w_W, new_W)
        # Momentum that points uphill is dropped (O'Donoghue and Candès, 2015).
        restart = unsafe | (jnp.vdot(z_W - new_W, new_W - w_W) > 0)
        state = new._replace(
            velocity=jnp.where(restart, new_W, new.velocity),
            t=jnp.where(restart, 1.0, new.t),
            aux=None,
        )
        lipschitz = jnp.where(unsafe, 1.1 * seen, lipschitz)
        return new_W, state, z_W, r_L, lipschitz, jnp.where(unsafe, jnp.inf, gap), count + 1

    def unfinished(carry: tuple) -> jax.Array:
        return (carry[5] > tolerance) & (carry[6] < max_steps)

    r_L = padded_residual(rows_WxD, w_W, y_K, intercept)
    start = solver_with(lipschitz).init_state(w_W, hyper)._replace(aux=None)
    carry = (w_W, start, w_W, r_L, lipschitz, jnp.inf * half_yy, jnp.int32(0))
    w_W, _, _, _, lipschitz, gap, count = jax.lax.while_loop(unfinished, step, carry)
    r_L = padded_residual(rows_WxD, w_W, y_K, intercept)
    return Inner(w_W, r_L, lipschitz, count, gap)
