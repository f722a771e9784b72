"""One round of recovery on the devices: solve each query's working set, then let all N columns
nominate the ones it lacks.

Queries are split over the devices and each device's loops end with its own queries. With sharded
columns every device passes over its own columns for all queries: residuals are gathered and
nominees exchanged once per round, which is less than the all-reduce of `[K, Q]` that columns with
their own coefficients would need.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from stride_jax.design import Design
from stride_jax.recovery import working_set as sets
from stride_jax.recovery.columns import LassoState, group_maxima, pass_bytes, state_shapes
from stride_jax.recovery.proximal import Inner, InnerProblem, InnerSettings, solve_inner
from stride_jax.recovery.settings import LassoSettings
from stride_jax.recovery.working_set import Array, Asked, Nominees, WorkingSet
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.programs import Program, shape, shapes_like

# What most queries end with (docs/lab.md).
_TYPICAL_ROUNDS = 6

# Queries of a round, free slots included, where they fit the memory.
_LEAST = 8


class Problem(NamedTuple):
    """What a query asks for.

    Attributes:
      y_QxK: measurements.
      penalty_Q: lambda.
      gamma_Q: of the elastic net.
      lipschitz_Q: step bound learnt so far.
      tolerance_Q: relative gap that the working set's own problem is solved to.
      floor_Q: correlation, per penalty weight, above which a column may join: lambda.
    """

    y_QxK: Array
    penalty_Q: Array
    gamma_Q: Array
    lipschitz_Q: Array
    tolerance_Q: Array
    floor_Q: Array


class Round(NamedTuple):
    """A round's outcome.

    Attributes:
      working: what was solved, with nominees in the places whose influence is zero.
      r_QxK: residuals.
      largest_Q: largest `|m_iᵀ r| / penalty_i` over all N columns, in float32.
      gap_Q: relative duality gap over all N columns, in float32: a guide, not a certificate.
      lipschitz_Q: step bound learnt.
      steps_Q: proximal-gradient steps.
      active_Q: examples with an influence.
      wanted_Q: active examples and nominees, whether these have a place or not.
    """

    working: WorkingSet
    r_QxK: Array
    largest_Q: Array
    gap_Q: Array
    lipschitz_Q: Array
    steps_Q: Array
    active_Q: Array
    wanted_Q: Array


def round_shapes(state: LassoState, slots: int, size: int) -> tuple[WorkingSet, Problem]:
    """Abstract working sets and problems of a round, laid out over the devices.

    Args:
      state: real or abstract.
      slots: queries.
      size: W.
    """
    problem = Problem(shape((slots, state.num_subsets)), *(shape((slots,)) for _ in range(5)))
    where = NamedSharding(state.mesh, state.over_queries)
    return shapes_like((sets.set_shapes(state, slots, size), problem), where)


def statics(state: LassoState, settings: LassoSettings) -> dict[str, Any]:
    """Static arguments of `run_round`."""
    on_cpu = state.mesh.devices.flat[0].platform == "cpu"
    return {"inner": settings.inner, "one_by_one": on_cpu}


def slots_for(state: LassoState, settings: LassoSettings, count: int) -> int:
    """Queries in one round: what the memory and the number of queries allow.

    Raises:
      ValueError: too little memory for a single chunk.
    """
    parts = state.mesh.size
    # With sharded columns a device passes for all queries, else for its own.
    least = parts if state.sharded else 1
    if (need := pass_bytes(state, least)) > state.memory:
        raise ValueError(
            f"memory={state.memory} bytes are too few for one chunk of a pass over "
            f"{state.num_train} columns, which takes {need}: raise Execution.memory to at least "
            "that"
        )
    # No fewer than eight altogether where they fit: a question of another length finds its program.
    each = 1
    while (
        2 * each <= settings.chunk
        and each * parts < max(count, _LEAST)
        and pass_bytes(state, 2 * each * least) <= state.memory
    ):
        each *= 2
    # No more than fills them evenly, in eights: each number of them is compiled for.
    fill = meshes.even(-(-max(count, _LEAST) // parts), each)
    return parts * min(each, -(-fill // 8) * 8)


def program(
    num_train: int,
    design: Design,
    queries: int,
    settings: LassoSettings = LassoSettings(),
    *,
    weighted: bool = True,
    execution: Execution = Execution(),
    shard_columns: bool = False,
    one_hot: bool | None = None,
) -> Program:
    """A recovery's rounds, to be compiled without data.

    Args:
      num_train: N.
      design: K and d.
      queries: that the devices of the execution's mesh share, token groups counted.
      settings: of the Lasso.
      weighted: whether examples have penalty weights: a prior.
      execution, shard_columns, one_hot: as in `init`.

    Returns:
      `run_round` with abstract arguments, its calls an estimate.
    """
    state = state_shapes(
        (num_train, design.degree), design.num_subsets, weighted=weighted, execution=execution,
        shard_columns=shard_columns, one_hot=one_hot,
    )  # fmt: skip
    slots = slots_for(state, settings, queries)
    shapes = round_shapes(state, slots, settings.first_size(num_train))
    calls = _TYPICAL_ROUNDS * -(-queries // slots)
    return Program(run_round, (state, *shapes), statics(state, settings), calls, slots)


def _gap(
    problem: Problem, working: WorkingSet, r_QxK: jax.Array, largest_Q: jax.Array
) -> jax.Array:
    """Relative duality gap; `certify` says what it is made of."""
    y_QxK, l1_QxW = problem.y_QxK, problem.penalty_Q[:, None] * working.penalty_QxW
    shrink = problem.penalty_Q / jnp.maximum(largest_Q, problem.penalty_Q)
    ridge = (l1_QxW * problem.gamma_Q[:, None] * working.w_QxW**2).sum(axis=1)
    squares = (r_QxK**2).sum(axis=1) + ridge
    l1 = (l1_QxW * jnp.abs(working.w_QxW)).sum(axis=1)
    fit = (r_QxK * y_QxK).sum(axis=1)
    gap = 0.5 * squares * (1 - shrink) ** 2 + l1 - shrink * (fit - squares)
    return gap / jnp.maximum(0.5 * (y_QxK**2).sum(axis=1), 1e-30)


@functools.partial(jax.jit, static_argnames=("inner", "one_by_one"))
def run_round(
    state: LassoState,
    working: WorkingSet,
    problem: Problem,
    *,
    inner: InnerSettings,
    one_by_one: bool,
) -> Round:
    """Solve every query's working set, then pass over all N columns once.

    Args:
      state: the design.
      working: a working set per query.
      problem: the queries, as many as the devices can share evenly.
      inner: of the working sets' problems.
      one_by_one: these one after the other, each with its own number of steps, which on CPU
        stays in cache; or all of a device's at once, which an accelerator wants.

    Returns:
      The round, laid out like the queries.
    """
    columns = jax.tree.map(lambda _: state.over_columns, state)
    queries = state.over_queries
    return jax.shard_map(
        functools.partial(_local_round, inner=inner, one_by_one=one_by_one),
        mesh=state.mesh, in_specs=(columns, queries, queries), out_specs=queries, check_vma=False,
    )(state, working, problem)  # fmt: skip


def _local_round(
    state: LassoState,
    working: WorkingSet,
    problem: Problem,
    *,
    inner: InnerSettings,
    one_by_one: bool,
) -> Round:
    """A round of one device's queries and columns."""

    def each(fun: Callable[..., Any], *arguments: Any) -> Any:
        if one_by_one:
            return jax.lax.map(lambda a: fun(*a), arguments)
        return jax.vmap(fun)(*arguments)

    def solve(own: WorkingSet, p: Problem) -> Inner:
        columns = InnerProblem(
            own.rows_QxWxd, p.y_QxK, p.penalty_Q * own.penalty_QxW, p.gamma_Q, p.tolerance_Q
        )
        return solve_inner(columns, own.w_QxW, p.lipschitz_Q, inner)

    solved = each(solve, working, problem)
    working = working._replace(w_QxW=solved.w_W)
    shift_QxW = (problem.penalty_Q * problem.gamma_Q)[:, None] * working.penalty_QxW
    asked = Asked(solved.r_L, working.id_QxW, shift_QxW * working.w_QxW)
    nominees, largest_Q = _nominees(state, asked, inner.penalty, each)
    admitted, active, wanted = each(sets.admit, working, nominees, problem.floor_Q)
    r_QxK = solved.r_L[:, :-1]
    gap_Q = _gap(problem, working, r_QxK, largest_Q)
    return Round(admitted, r_QxK, largest_Q, gap_Q, solved.lipschitz, solved.steps, active, wanted)


def _nominees(
    state: LassoState, asked: Asked, penalty: str, each: Callable[..., Any]
) -> tuple[Nominees, jax.Array]:
    """One pass over all columns for this device's queries, whichever device holds the columns."""
    queries, size = asked.id_W.shape
    every, first = state.mesh.axis_names, jnp.int32(0)
    if state.sharded:
        asked = jax.lax.all_gather(asked, every, tiled=True)
        first = jax.lax.axis_index(every).astype(jnp.int32) * state.table_Pxd.shape[0]
    maxima_GxQ = group_maxima(state, asked.r_L.T, penalty == "nonnegative")
    count = sets.num_nominees(size, maxima_GxQ.shape[0])
    nominate = functools.partial(sets.nominate, state, penalty, count, first)
    nominees, largest_Q = each(nominate, maxima_GxQ.T, asked)
    if not state.sharded:
        return nominees, largest_Q
    parts = state.mesh.size
    sent, largest = jax.tree.map(
        lambda a: jax.lax.all_to_all(a.reshape(parts, queries, *a.shape[1:]), every, 0, 0),
        (nominees, largest_Q),
    )
    own = jax.vmap(lambda n: sets.strongest(n, count), in_axes=1)(sent)
    return own, largest.max(axis=0)
