"""Batched Lasso over queries with the implicit left-d-regular M, by jaxopt's proximal gradient.

    minimise over w:  ½ || y_x − mean(y_x) − (M − row means) w ||² + lambda_x || w ||_1

`init` once per design, `solve` as often as needed. Centring is implicit: the residual is centred
over the K subsets, which is the same as centring y and every column of M (an intercept). jaxopt is
imported in this file alone.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxopt
import numpy as np

from stride_jax.design import Design, example_sum, members
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class LassoSettings:
    """How influences are recovered.

    Attributes:
      lambda_fraction: lambda as a fraction of each query's lambda_max, where w becomes zero.
      relative_gap: stop when the duality gap is below this share of `½ ||y||²`.
      max_iterations: proximal-gradient steps, at most.
      steps_per_round: steps between two looks at the duality gap.
      chunk: queries solved together; one that is done makes room for the next.
    """

    lambda_fraction: float = 0.05
    relative_gap: float = 1e-4
    max_iterations: int = 5_000
    steps_per_round: int = 100
    chunk: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.lambda_fraction <= 1:
            raise ValueError(f"lambda_fraction={self.lambda_fraction} must lie in (0, 1]")
        if not 0 < self.relative_gap < 1:
            raise ValueError(f"relative_gap={self.relative_gap} must lie in (0, 1)")
        if min(self.max_iterations, self.steps_per_round, self.chunk) < 1:
            raise ValueError(
                f"max_iterations={self.max_iterations}, steps_per_round={self.steps_per_round}, "
                f"chunk={self.chunk}: all must be at least 1"
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LassoState:
    """The design, ready for products with M.

    Attributes:
      subsets_Nxd: M by columns, padded with K where columns differ in length.
      rows_KxS: M by rows, padded with N, the row of a zero.
      lipschitz: largest eigenvalue of the centred `MᵀM`.
    """

    subsets_Nxd: jax.Array
    rows_KxS: jax.Array
    lipschitz: jax.Array


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Influences and how well they are certified, per query.

    Attributes:
      scores_QxN: float32 influences, in nats; positive = proponent.
      lambda_Q: penalty used.
      iterations_Q: proximal-gradient steps.
      relative_gap_Q: duality gap over `½ ||y||²` (centred y); 0 is optimal.
      kkt_Q: largest violation of the optimality conditions, in units of lambda.
      support_Q: non-zero influences.
    """

    scores_QxN: np.ndarray
    lambda_Q: np.ndarray
    iterations_Q: np.ndarray
    relative_gap_Q: np.ndarray
    kkt_Q: np.ndarray
    support_Q: np.ndarray


def _forward(state: LassoState, w_N: jax.Array) -> jax.Array:
    """Centred `M w`, `[K]`, as a gather-and-add over the members of each subset."""
    padded = jnp.concatenate([w_N, jnp.zeros(1, w_N.dtype)])
    total = padded[state.rows_KxS].sum(axis=1)
    return total - total.mean()


def _adjoint(state: LassoState, r_K: jax.Array) -> jax.Array:
    """Centred `Mᵀ r`, `[N]`."""
    padded = jnp.concatenate([r_K - r_K.mean(), jnp.zeros(1, r_K.dtype)])
    return example_sum(state.subsets_Nxd, padded)


@jax.jit
def _largest_eigenvalue(state: LassoState) -> jax.Array:
    def step(v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        v = _adjoint(state, _forward(state, v))
        norm = jnp.linalg.norm(v)
        return v / norm, norm

    start = jax.random.normal(jax.random.key(0), (state.subsets_Nxd.shape[0],))
    _, norms = jax.lax.scan(step, start / jnp.linalg.norm(start), length=100)
    # Power iteration approaches from below; a step of 1/L needs a bound from above.
    return norms[-1] * 1.02


def init(design: Design, subsets_Nxd: jax.Array) -> LassoState:
    """Prepare a design for `solve`.

    Args:
      design: K.
      subsets_Nxd: membership of the N training examples.
    """
    rows, mask = members(subsets_Nxd, design.num_subsets)
    return _prepared(subsets_Nxd, np.where(mask > 0, rows, subsets_Nxd.shape[0]))


def init_rows(rows_KxS: np.ndarray, num_train: int) -> LassoState:
    """Prepare any binary M, given by the members of each row, for `solve`.

    Args:
      rows_KxS: training rows of each subset, all of one size, distinct within a row.
      num_train: N.
    """
    k, size = rows_KxS.shape
    flat = rows_KxS.reshape(-1)
    order = np.argsort(flat, kind="stable")
    degrees = np.bincount(flat, minlength=num_train)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    subsets = np.full((num_train, max(1, int(degrees.max()))), k, np.int32)
    subsets[flat[order], place] = order // size
    return _prepared(jnp.asarray(subsets), rows_KxS)


def _prepared(subsets_Nxd: jax.Array, rows_KxS: np.ndarray) -> LassoState:
    state = LassoState(subsets_Nxd, jnp.asarray(rows_KxS, jnp.int32), jnp.ones(()))
    return dataclasses.replace(state, lipschitz=_largest_eigenvalue(state))


def lambda_max(state: LassoState, y_QxK: np.ndarray) -> np.ndarray:
    """The penalty from which on all influences are zero, `||Mᵀ(y − mean y)||_inf`, `[Q]`."""
    return np.asarray(
        jax.jit(jax.vmap(lambda y: jnp.abs(_adjoint(state, y)).max()))(jnp.asarray(y_QxK))
    )


def _value_and_grad(
    w_N: jax.Array, y_K: jax.Array, state: LassoState
) -> tuple[jax.Array, jax.Array]:
    residual = _forward(state, w_N) - y_K
    return 0.5 * jnp.vdot(residual, residual), _adjoint(state, residual)


def _certificate(
    state: LassoState, w_N: jax.Array, y_K: jax.Array, penalty: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Relative duality gap and KKT violation of w.

    The residual, shrunk until `||Mᵀ theta||_inf <= lambda`, is dual feasible; the primal minus the
    dual objective there bounds how far w is from optimal.
    """
    residual = y_K - _forward(state, w_N)
    correlation = _adjoint(state, residual)
    shrink = jnp.minimum(1.0, penalty / jnp.maximum(jnp.abs(correlation).max(), 1e-30))
    theta = shrink * residual
    # P − D = ½||r||² + λ||w||₁ − ½||y||² + ½||y − θ||², with y − θ = (y − r) + (1 − s) r.
    l1 = penalty * jnp.abs(w_N).sum()
    gap = (
        0.5 * jnp.vdot(residual, residual) * (1 - shrink) ** 2
        + l1
        - jnp.vdot(theta, y_K - residual)
    )
    active = jnp.abs(correlation - penalty * jnp.sign(w_N))
    idle = jnp.maximum(jnp.abs(correlation) - penalty, 0.0)
    kkt = jnp.where(w_N != 0, active, idle).max() / penalty
    return gap / (0.5 * jnp.vdot(y_K, y_K)), kkt


@functools.partial(jax.jit, static_argnames="steps")
def _advance(
    state: LassoState, w_QxN: jax.Array, y_QxK: jax.Array, penalty: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`steps` accelerated proximal-gradient steps on each query, then its certificate."""

    def one(w_N: jax.Array, y_K: jax.Array) -> tuple[jax.Array, ...]:
        solver = jaxopt.ProximalGradient(
            fun=_value_and_grad,
            value_and_grad=True,
            prox=jaxopt.prox.prox_lasso,
            stepsize=lambda _: 1 / state.lipschitz,  # a function, since it is traced
            maxiter=steps,
            # jaxopt stops by the length of its last step, which is no certificate: we stop by gap.
            tol=0.0,
            acceleration=True,
            implicit_diff=False,
        )
        found = solver.run(w_N, penalty, y_K, state).params
        return found, *_certificate(state, found, y_K, penalty)

    return jax.vmap(one)(w_QxN, y_QxK)  # pyright: ignore[reportReturnType]


def solve(
    state: LassoState,
    y_QxK: np.ndarray,
    settings: LassoSettings = LassoSettings(),
    *,
    progress: Progress = silent,
) -> Recovery:
    """Recover every query's influences from its measurements (method §2).

    Args:
      state: from `init`.
      y_QxK: `[Q, K]` measurements.
      settings: lambda and stopping.
      progress: wraps the chunks of queries.

    Returns:
      Scores and certificates. A query whose measurements are all equal has no signal: its scores
      are zero, its lambda 0.

    Raises:
      ValueError: measurements that are not finite or of another K (names query and values).

    >>> design = Design(num_subsets=40, degree=3)
    >>> from stride_jax.design import membership, subset_sum
    >>> subsets = membership(design, [str(i) for i in range(100)])
    >>> w = jnp.zeros(100).at[7].set(2.0)
    >>> found = solve(init(design, subsets), subset_sum(subsets, w, 40)[None])
    >>> int(found.scores_QxN[0].argmax()), bool(found.relative_gap_Q[0] < 1e-4)
    (7, True)
    """
    y = np.asarray(y_QxK, np.float32)
    k = state.rows_KxS.shape[0]
    if y.ndim != 2 or y.shape[1] != k:
        raise ValueError(f"measurements of shape {y.shape} do not fit the design's K={k} subsets")
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
        raise ValueError(
            f"measurements of {len(bad)} queries are not finite, first of row {bad[0]}"
        )
    y = y - y.mean(axis=1, keepdims=True)
    top = lambda_max(state, y)
    signal = top > 1e-30
    # Scaled so that lambda_max = 1: tolerances mean the same for every query.
    y = y / np.where(signal, top, 1.0)[:, None]
    w, iterations, gap, kkt = _solve_all(state, y, settings, progress)
    gap, kkt = np.where(signal, gap, 0.0), np.where(signal, kkt, 0.0)
    scores = np.where(signal[:, None], w * top[:, None], 0.0).astype(np.float32)
    return Recovery(
        scores,
        np.where(signal, settings.lambda_fraction * top, 0.0),
        iterations,
        gap,
        kkt,
        (scores != 0).sum(axis=1),
    )


def _solve_all(
    state: LassoState, y_QxK: np.ndarray, settings: LassoSettings, progress: Progress
) -> tuple[np.ndarray, ...]:
    """Keep `chunk` queries in flight; one that is done makes room for the next.

    Every round takes `steps_per_round` steps and restarts the momentum, which helps near the
    optimum. A query is done when its duality gap is small enough, or its steps are spent.
    """
    count, n = len(y_QxK), state.subsets_Nxd.shape[0]
    size = min(settings.chunk, count)
    w_QxN = np.zeros((count, n), np.float32)
    iterations = np.zeros(count, np.int64)
    gap, kkt = np.full(count, np.inf), np.full(count, np.inf)
    waiting = list(range(count))[::-1]
    slots = np.array([waiting.pop() for _ in range(size)])
    penalty = jnp.float32(settings.lambda_fraction)
    ticks = iter(progress(range(count), desc="recover", total=count))
    running = np.ones(size, bool)
    while running.any():
        out = _advance(
            state, jnp.asarray(w_QxN[slots]), jnp.asarray(y_QxK[slots]), penalty,
            settings.steps_per_round,
        )  # fmt: skip
        w, new_gap, new_kkt = map(np.asarray, out)
        for place in np.flatnonzero(running):
            query = slots[place]
            w_QxN[query], gap[query], kkt[query] = w[place], new_gap[place], new_kkt[place]
            iterations[query] += settings.steps_per_round
            # `not >` also ends a query without signal, whose gap is 0 / 0.
            done = not gap[query] > settings.relative_gap
            if done or iterations[query] >= settings.max_iterations:
                next(ticks, None)
                if waiting:
                    slots[place] = waiting.pop()
                else:
                    running[place] = False
    next(ticks, None)  # lets the bar close
    return w_QxN, iterations, gap, kkt
