"""The Lasso on a few columns, by jaxopt's accelerated proximal gradient. jaxopt is imported here
alone.

    minimise over w:  ½ || y − M w ||² + Σ_i lambda_i (|w_i| + gamma / 2 w_i²),  w ≥ 0 if asked

Letters: W columns of the working set, L = K + 1 entries of a residual with a zero for padding.
Everything is float32, with x64 enabled too.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from stride_jax.design import gather_add

with warnings.catch_warnings():
    # That it is no longer maintained: its version is pinned.
    warnings.simplefilter("ignore", DeprecationWarning)
    import jaxopt

PENALTIES = ("lasso", "nonnegative", "elastic_net")


class InnerSettings(NamedTuple):
    """How a working set's problem is solved; static under `jit`.

    Attributes:
      penalty: one of `PENALTIES`.
      intercept: whether one is fitted.
      max_steps: steps at most.
    """

    penalty: str
    intercept: bool
    max_steps: int


class InnerProblem(NamedTuple):
    """A working set's problem.

    Attributes:
      rows_Wxd: subsets of its examples, K for padding.
      y_K: measurements, centred with an intercept.
      l1_W: lambda_i.
      gamma: of the elastic net; ignored by the others.
      tolerance: relative duality gap to stop at.
    """

    rows_Wxd: jax.Array
    y_K: jax.Array
    l1_W: jax.Array
    gamma: jax.Array
    tolerance: jax.Array


class Inner(NamedTuple):
    """A working set's problem, solved.

    Attributes:
      w_W: influences.
      r_L: residual `y − M w`, centred with an intercept; the last of K + 1 entries is zero.
      lipschitz: bound on the largest eigenvalue of `MᵀM` that held during the solve.
      steps: int32, proximal-gradient steps taken.
      gap: relative duality gap of the working set's problem.
    """

    w_W: jax.Array
    r_L: jax.Array
    lipschitz: jax.Array
    steps: jax.Array
    gap: jax.Array


class _Carry(NamedTuple):
    """One step of the descent: iterate, jaxopt's state, and the last point with its residual."""

    w_W: jax.Array
    state: Any
    last_W: jax.Array
    last_r_L: jax.Array
    lipschitz: jax.Array
    gap: jax.Array
    steps: jax.Array


def padded_residual(problem: InnerProblem, w_W: jax.Array, intercept: bool) -> jax.Array:
    """`y − M w`, centred if there is an intercept, with a zero appended: `[K + 1]`."""
    k = problem.y_K.shape[0]
    each = jnp.broadcast_to(w_W[:, None], problem.rows_Wxd.shape).reshape(-1)
    total = jnp.zeros(k + 1, w_W.dtype).at[problem.rows_Wxd.reshape(-1)].add(each)
    r = problem.y_K - total[:k]
    if intercept:
        r = r - r.mean()
    return jnp.concatenate([r, jnp.zeros(1, r.dtype)])


def _prox(penalty: str) -> Callable[..., Any]:
    if penalty == "lasso":
        return jaxopt.prox.prox_lasso
    if penalty == "nonnegative":
        return jaxopt.prox.prox_non_negative_lasso
    return jaxopt.prox.prox_elastic_net


def _objective(problem: InnerProblem, settings: InnerSettings) -> Callable[..., Any]:
    """`z -> ((½ ||r||², (relative gap, r)), gradient)` of the smooth part."""
    y_K, l1_W, gamma = problem.y_K, problem.l1_W, problem.gamma
    columns_dxW = problem.rows_Wxd.T
    half_yy = jnp.maximum(0.5 * jnp.vdot(y_K, y_K), 1e-30)

    def fun(z_W: jax.Array, *_: object) -> tuple[tuple[jax.Array, object], jax.Array]:
        r_L = padded_residual(problem, z_W, settings.intercept)
        c_W = gather_add(r_L, columns_dxW)
        squares, ridge = jnp.vdot(r_L, r_L), jnp.zeros((), r_L.dtype)
        slope = c_W
        if settings.penalty == "elastic_net":
            ridge = jnp.vdot(l1_W * gamma * z_W, z_W)
            slope = c_W - l1_W * gamma * z_W
        ratio = slope / l1_W if settings.penalty == "nonnegative" else jnp.abs(slope) / l1_W
        shrink = 1 / jnp.maximum(ratio.max(), 1.0)
        # P − D = ½||r||² (1 − s)² + Σ lambda|w| − s r·(y − r), r shrunk by s to be dual feasible.
        gap = 0.5 * (squares + ridge) * (1 - shrink) ** 2 + jnp.vdot(l1_W, jnp.abs(z_W))
        gap = gap - shrink * (jnp.vdot(r_L[:-1], y_K) - squares - ridge)
        return (0.5 * squares, (gap / half_yy, r_L)), -c_W

    return fun


def solve_inner(
    problem: InnerProblem, w_W: jax.Array, lipschitz: jax.Array, settings: InnerSettings
) -> Inner:
    """Accelerated proximal gradient with restarts, until the duality gap is small.

    The step is `1 / L` with an L that is learnt: wherever a step shows that `||M v||² > L ||v||²`
    L is raised and the step is taken again. So L is that of the working set, much smaller than
    that of M, and costs no power iteration.

    Args:
      problem: columns, measurements, penalties.
      w_W: where to start.
      lipschitz: L to start from.
      settings: penalty, intercept, steps.
    """
    problem = problem._replace(rows_Wxd=problem.rows_Wxd.astype(jnp.int32))
    fun = _objective(problem, settings)
    hyper = (problem.l1_W, problem.gamma) if settings.penalty == "elastic_net" else problem.l1_W

    def solver_with(lipschitz: jax.Array) -> jaxopt.ProximalGradient:
        return jaxopt.ProximalGradient(
            fun=fun, prox=_prox(settings.penalty), value_and_grad=True, has_aux=True,
            stepsize=lambda _: 1 / lipschitz, acceleration=True, implicit_diff=False,
        )  # fmt: skip

    def step(now: _Carry) -> _Carry:
        z_W = now.state.velocity
        new_W, new = solver_with(now.lipschitz).update(now.w_W, now.state, hyper)
        gap, r_L = new.aux
        moved, changed = z_W - now.last_W, r_L - now.last_r_L
        length = jnp.vdot(moved, moved)
        curvature = jnp.where(
            # Below this the change of r is rounding.
            length > 1e-10 * jnp.vdot(z_W, z_W),
            jnp.vdot(changed, changed) / jnp.maximum(length, 1e-30),
            0.0,
        )
        unsafe = curvature > now.lipschitz
        new_W = jnp.where(unsafe, now.w_W, new_W)
        # Momentum that points uphill is dropped (O'Donoghue and Candès, 2015).
        restart = unsafe | (jnp.vdot(z_W - new_W, new_W - now.w_W) > 0)
        state = new._replace(
            velocity=jnp.where(restart, new_W, new.velocity),
            t=jnp.where(restart, 1.0, new.t),
            aux=None,
        )
        lipschitz = jnp.where(unsafe, 1.1 * curvature, now.lipschitz)
        gap = jnp.where(unsafe, jnp.inf, gap)
        return _Carry(new_W, state, z_W, r_L, lipschitz, gap, now.steps + 1)

    def unfinished(now: _Carry) -> jax.Array:
        return (now.gap > problem.tolerance) & (now.steps < settings.max_steps)

    r_L = padded_residual(problem, w_W, settings.intercept)
    # jaxopt's own t would be float64 under x64.
    state = solver_with(lipschitz).init_state(w_W, hyper)
    state = state._replace(t=jnp.ones((), w_W.dtype), aux=None)
    gap = jnp.full((), jnp.inf, w_W.dtype)
    start = _Carry(w_W, state, w_W, r_L, lipschitz, gap, jnp.int32(0))
    last = jax.lax.while_loop(unfinished, step, start)
    r_L = padded_residual(problem, last.w_W, settings.intercept)
    return Inner(last.w_W, r_L, last.lipschitz, last.steps, last.gap)
