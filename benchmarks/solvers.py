"""Lasso solvers on one problem: ours and its opponents, each in its fastest form.

A solver is prepared once (`Solver.prepare`) and then asked for rows of measurements. All solve

    minimise over w:  ½ || y − (M − row means) w ||² + lambda || w ||_1,    y centred,

but `sklearn-nointercept`, which leaves M as it is: an easier problem of another answer.
"""

import dataclasses
import importlib.util
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import joblib
import numpy as np
import scipy.sparse
from sklearn.linear_model import Lasso

from benchmarks.signals import Problem
from stride_jax.design import Design
from stride_jax.recovery import LassoSettings, init, solve


@dataclasses.dataclass(frozen=True)
class Answer:
    """A solver's answer.

    Attributes:
      scores: `[rows, N]` influences, dense or sparse.
      passes: mean passes over the N columns per query; None where the solver does not say.
    """

    scores: Any
    passes: float | None


@dataclasses.dataclass(frozen=True)
class Solver:
    """A contestant.

    Attributes:
      prepare: what is done once per design; gives the function that is timed, of query rows.
      intercept: whether the columns of M are centred.
      in_processes: its workers' processor time and memory are not measured here.
      bytes_needed: rough memory for Q queries, to leave it out where it can't fit.
    """

    prepare: Callable[[Problem], Callable[[np.ndarray], Answer]]
    intercept: bool = True
    in_processes: bool = False
    bytes_needed: Callable[[Problem], int] = lambda _: 0


def _stride(problem: Problem) -> Callable[[np.ndarray], Answer]:
    k, degree = problem.num_subsets, problem.subsets_Nxd.shape[1]
    # Columns are split where queries are few, so that a pass gathers whole cache lines.
    few = len(problem.y_QxK) < 32 * jax.device_count()
    state = init(Design(k, degree), problem.subsets_Nxd, shard_columns=few)
    settings = LassoSettings(lambda_fraction=problem.fraction, relative_gap=problem.relative_gap)

    def run(rows: np.ndarray) -> Answer:
        recovery = solve(state, problem.y_QxK[rows], settings)
        return Answer(recovery.sparse, float(recovery.passes_Q.mean()))

    return run


def _sklearn(problem: Problem, intercept: bool) -> Callable[[np.ndarray], Answer]:
    m = problem.columns
    # It stops at `tol ||y||²`. Several targets in one fit spare it half of its time, the checks of
    # its input; the descent itself runs without the interpreter's lock.
    model = {"fit_intercept": intercept, "tol": problem.relative_gap / 2, "max_iter": 100_000}

    def fit(rows: np.ndarray) -> tuple[np.ndarray, list[int]]:
        alpha = problem.fraction / problem.num_subsets
        fitted = Lasso(alpha, copy_X=False, **model).fit(m, problem.y_QxK[rows].T)
        return np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.n_iter_).tolist()

    def run(rows: np.ndarray) -> Answer:
        shares = np.array_split(rows, min(problem.cores, len(rows)))
        with ThreadPoolExecutor(problem.cores) as pool:
            parts = list(pool.map(fit, shares))
        epochs = [n for _, counts in parts for n in counts]
        return Answer([w for w, _ in parts], float(np.mean(epochs)))

    return run


def _fit_celer(
    m: scipy.sparse.csc_matrix, y_QxK: np.ndarray, alpha: float, tol: float
) -> list[Any]:
    import celer  # pyright: ignore[reportMissingImports]

    model = celer.Lasso(alpha=alpha, fit_intercept=True, tol=tol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own NumPy calls; the gap is checked by us
        return [model.fit(m, y).sparse_coef_ for y in y_QxK]


def _celer(problem: Problem) -> Callable[[np.ndarray], Answer]:
    m = problem.columns
    # It keeps the interpreter's lock, so cores are used by processes.
    pool = joblib.Parallel(problem.cores, prefer="processes")

    def run(rows: np.ndarray) -> Answer:
        shares = np.array_split(rows, min(problem.cores, len(rows)))
        asked = problem.fraction / problem.num_subsets, problem.relative_gap / 2
        parts: Any = pool(joblib.delayed(_fit_celer)(m, problem.y_QxK[s], *asked) for s in shares)
        return Answer([w for part in parts for w in part], None)

    return run


def _jaxopt_dense(problem: Problem) -> Callable[[np.ndarray], Answer]:
    k, n = problem.num_subsets, len(problem.subsets_Nxd)
    m = np.zeros((k, n), np.float32)
    np.add.at(m, (problem.subsets_Nxd, np.arange(n)[:, None]), 1)
    m = jnp.asarray(m - m.mean(axis=0))
    step = 1 / float(jnp.linalg.eigvalsh(m @ m.T)[-1])

    def residual(w_N: jax.Array, y_K: jax.Array) -> jax.Array:
        return y_K - m @ w_N

    def run_one(y_K: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
        solver = jaxopt.ProximalGradient(
            fun=lambda w_N, y_K: 0.5 * jnp.vdot(residual(w_N, y_K), residual(w_N, y_K)),
            prox=jaxopt.prox.prox_lasso, stepsize=step, tol=0.0, implicit_diff=False,
        )  # fmt: skip
        penalty = problem.fraction
        half_yy = 0.5 * jnp.vdot(y_K, y_K)

        def gap(w_N: jax.Array) -> jax.Array:
            r = residual(w_N, y_K)
            theta = r / jnp.maximum(1.0, jnp.abs(r @ m).max() / penalty)
            primal = 0.5 * jnp.vdot(r, r) + penalty * jnp.abs(w_N).sum()
            return (primal - half_yy + 0.5 * jnp.vdot(y_K - theta, y_K - theta)) / half_yy

        def block(
            carry: tuple,
        ) -> tuple:  # its own criterion is no gap, which is computed every 25 steps
            def one(_: jax.Array, c: tuple) -> tuple:
                return tuple(solver.update(*c, penalty, y_K))

            w_N, state = jax.lax.fori_loop(0, 25, one, carry[:2])
            return w_N, state, gap(w_N), carry[3] + 1

        w_N = jnp.zeros(n)
        start = (w_N, solver.init_state(w_N, penalty, y_K), jnp.inf, 0)
        target = 0.9 * problem.relative_gap  # float32 here, float64 in the check
        w_N, *_, blocks = jax.lax.while_loop(
            lambda c: (c[2] > target) & (c[3] < most), block, start
        )
        return w_N, jnp.asarray(25 * blocks)

    many = jax.jit(jax.vmap(run_one, in_axes=(0, None)))

    def run(rows: np.ndarray) -> Answer:
        y = jnp.asarray(problem.y_QxK[rows], jnp.float32)
        w, steps = jax.device_get(many(y, 400))
        return Answer(w, float(steps.mean()))

    return run


def _columns_bytes(problem: Problem) -> int:
    return 12 * problem.subsets_Nxd.size + 16 * problem.y_QxK.shape[0] * len(problem.subsets_Nxd)


def _dense_bytes(problem: Problem) -> int:
    return 12 * problem.num_subsets * len(problem.subsets_Nxd)


SOLVERS = {
    "stride": Solver(_stride),
    "sklearn": Solver(lambda p: _sklearn(p, True), bytes_needed=_columns_bytes),
    "sklearn-nointercept": Solver(
        lambda p: _sklearn(p, False), intercept=False, bytes_needed=_columns_bytes
    ),
    "celer": Solver(_celer, in_processes=True, bytes_needed=_columns_bytes),
    "jaxopt-dense": Solver(_jaxopt_dense, bytes_needed=_dense_bytes),
}


def left_out(name: str, problem: Problem, memory_bytes: int) -> str | None:
    """Why a solver can't take part, or None."""
    if name == "celer" and importlib.util.find_spec("celer") is None:
        return "not installed: it comes with the extra `peers`"
    if (need := SOLVERS[name].bytes_needed(problem)) > memory_bytes:
        return f"needs about {need / 2**30:.1f} GiB, more than the {memory_bytes / 2**30:.1f} given"
    return None
