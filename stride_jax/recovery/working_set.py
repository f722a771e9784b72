"""One round of recovery on the devices: solve each query's working set, then let all N columns
nominate the ones it lacks.

Queries are split over the devices and each device's loops end with its own queries. With sharded
columns every device passes over its own columns for all queries: residuals are gathered and
nominees exchanged once a round, which is less than the all-reduce of `[K, Q]` that columns with
their own coefficients would need.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from stride_jax.design import gather_add
from stride_jax.recovery import proximal
from stride_jax.recovery.columns import LassoState, group_maxima

# Columns that may join a working set in one round.
_NOMINEES = 256


Array = Any  # numpy on the host between rounds, JAX within one


class WorkingSet(NamedTuple):
    """The columns a query is solved on. Free places have id N, subsets K and w = 0.

    Attributes:
      id_QxW: training examples.
      rows_QxWxD: their subsets.
      penalty_QxW: their penalty weights.
      w_QxW: their influences.
    """

    id_QxW: Array
    rows_QxWxD: Array
    penalty_QxW: Array
    w_QxW: Array


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
      most_Q: largest `|m_iᵀ r| / penalty_i` over all N columns, in float32.
      gap_Q: relative duality gap over all N columns, in float32: a guide, not a certificate.
      lipschitz_Q: step bound learnt.
      steps_Q: proximal-gradient steps.
      active_Q: examples with an influence.
      wanted_Q: active examples and nominees, whether they found a place or not.
    """

    working: WorkingSet
    r_QxK: Array
    most_Q: Array
    gap_Q: Array
    lipschitz_Q: Array
    steps_Q: Array
    active_Q: Array
    wanted_Q: Array


class _Nominees(NamedTuple):
    """Columns proposed for a query's working set, and how strongly they correlate, per penalty.

    A column that is in the set already has value −1.
    """

    id_M: jax.Array
    rows_MxD: jax.Array
    penalty_M: jax.Array
    value_M: jax.Array


def _nominate(
    state: LassoState, penalty: str, count: int, first: jax.Array,
    maxima_G: jax.Array, r_L: jax.Array, id_W: jax.Array, shift_W: jax.Array,
) -> tuple[_Nominees, jax.Array]:  # fmt: skip
    """The strongest example of each of the `count` strongest groups.

    Under the elastic net an active example's correlation exceeds its penalty by `shift_W`, which
    would hide the others of its group: such groups are opened besides, and corrected.

    Returns:
      The nominees, and the largest correlation over all columns of this device.
    """
    groups, n_local = maxima_G.shape[0], state.table_PxD.shape[0]
    # Ids of other devices, and free places, fall outside and are dropped.
    local_W = jnp.where(id_W >= first, id_W - first, n_local)
    own_W = jnp.where(local_W < n_local, local_W % groups, 0)
    if penalty == "elastic_net":
        maxima_G = maxima_G.at[own_W].set(-1.0)
    group_M = jax.lax.top_k(maxima_G, count)[1]
    if penalty == "elastic_net":
        group_M = jnp.concatenate([group_M, own_W])
    member_MxJ = group_M[:, None] + groups * jnp.arange(state.group)[None, :]
    rows_MxJxD = state.table_PxD[member_MxJ].astype(jnp.int32)
    c_MxJ = gather_add(r_L, jnp.moveaxis(rows_MxJxD, -1, 0))
    if penalty == "elastic_net":
        shift = jnp.zeros(n_local).at[local_W].set(shift_W, mode="drop")
        c_MxJ = c_MxJ - shift[member_MxJ]
    value_MxJ = c_MxJ if penalty == "nonnegative" else jnp.abs(c_MxJ)
    weight_MxJ = jnp.ones_like(value_MxJ)
    if state.penalty_P is not None:
        weight_MxJ = state.penalty_P[member_MxJ]
        value_MxJ = value_MxJ / weight_MxJ
    most = jnp.maximum(maxima_G.max(), value_MxJ.max()).clip(0.0)
    inside = jnp.zeros(n_local, bool).at[local_W].set(True, mode="drop")
    value_MxJ = jnp.where(inside[member_MxJ], -1.0, value_MxJ)
    best_M, at = value_MxJ.argmax(axis=1), jnp.arange(len(group_M))
    return _Nominees(
        first + member_MxJ[at, best_M],
        rows_MxJxD[at, best_M].astype(state.table_PxD.dtype),
        weight_MxJ[at, best_M],
        value_MxJ[at, best_M],
    ), most


def _admit(
    working: WorkingSet, nominees: _Nominees, floor: jax.Array
) -> tuple[WorkingSet, jax.Array, jax.Array]:
    """Put nominees above the floor, strongest groups first, where a query's influences are zero."""
    size, count = working.w_QxW.shape[0], nominees.value_M.shape[0]
    new_M, free_W = nominees.value_M > floor, working.w_QxW == 0
    rank_W, rank_M = jnp.cumsum(free_W) - 1, jnp.cumsum(new_M) - 1
    places_M = jnp.full(count, size)
    places_M = places_M.at[jnp.where(free_W, rank_W, count)].set(jnp.arange(size), mode="drop")
    to_M = jnp.where(new_M, places_M[rank_M], size)
    admitted = WorkingSet(
        working.id_QxW.at[to_M].set(nominees.id_M, mode="drop"),
        working.rows_QxWxD.at[to_M].set(nominees.rows_MxD, mode="drop"),
        working.penalty_QxW.at[to_M].set(nominees.penalty_M, mode="drop"),
        working.w_QxW,
    )
    active = size - free_W.sum()
    return admitted, active, active + new_M.sum()


def _strongest(nominees: _Nominees, count: int) -> _Nominees:
    """Merge the nominees that several devices sent, `[devices, M]`, into the strongest ones."""
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), nominees)
    _, order = jax.lax.top_k(flat.value_M, min(count, len(flat.value_M)))
    return jax.tree.map(lambda a: a[order], flat)


def _gap(problem: Problem, working: WorkingSet, r_QxK: jax.Array, most_Q: jax.Array) -> jax.Array:
    """Relative duality gap; `certify` says how it is made up."""
    y_QxK, l1_QxW = problem.y_QxK, problem.penalty_Q[:, None] * working.penalty_QxW
    shrink = problem.penalty_Q / jnp.maximum(most_Q, problem.penalty_Q)
    ridge = (l1_QxW * problem.gamma_Q[:, None] * working.w_QxW**2).sum(axis=1)
    squares = (r_QxK**2).sum(axis=1) + ridge
    l1 = (l1_QxW * jnp.abs(working.w_QxW)).sum(axis=1)
    fit = (r_QxK * y_QxK).sum(axis=1)
    gap = 0.5 * squares * (1 - shrink) ** 2 + l1 - shrink * (fit - squares)
    return gap / jnp.maximum(0.5 * (y_QxK**2).sum(axis=1), 1e-30)


@functools.partial(jax.jit, static_argnames=("penalty", "intercept", "max_steps", "one_by_one"))
def play_round(
    state: LassoState,
    working: WorkingSet,
    problem: Problem,
    *,
    penalty: str,
    intercept: bool,
    max_steps: int,
    one_by_one: bool,
) -> Round:
    """Solve every query's working set, then pass over all N columns once.

    Args:
      state: the design.
      working: a working set a query.
      problem: the queries, as many as the devices can share evenly.
      penalty, intercept, max_steps: of the inner problem.
      one_by_one: inner problems one after the other, each with its own number of steps, which on
        CPU keeps them in cache; or all of a device's at once, which an accelerator wants.

    Returns:
      What was found, laid out like the queries.
    """
    mesh, every = state.mesh, state.mesh.axis_names
    size = working.id_QxW.shape[1]

    def each(fun: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if one_by_one:
            return jax.lax.map(lambda a: fun(*a), arguments)
        return jax.vmap(lambda a: fun(*a))(arguments)

    def local(state: LassoState, working: WorkingSet, problem: Problem) -> Round:
        q = problem.y_QxK.shape[0]

        def inner(work: WorkingSet, p: Problem) -> proximal.Inner:
            return proximal.solve_inner(
                work.rows_QxWxD, work.w_QxW, p.y_QxK, p.penalty_Q * work.penalty_QxW, p.gamma_Q,
                p.lipschitz_Q, p.tolerance_Q,
                penalty=penalty, intercept=intercept, max_steps=max_steps,
            )  # fmt: skip

        found = each(inner, (working, problem))
        working = working._replace(w_QxW=found.w_W)
        shift_QxW = (problem.penalty_Q * problem.gamma_Q)[:, None] * working.penalty_QxW
        asked = (found.r_L, working.id_QxW, shift_QxW * working.w_QxW)
        first = jnp.int32(0)
        if state.sharded:
            asked = jax.lax.all_gather(asked, every, tiled=True)
            first = jax.lax.axis_index(every).astype(jnp.int32) * state.table_PxD.shape[0]
        maxima_GxQ = group_maxima(
            state.table_PxD, state.penalty_P, asked[0].T, state.group, penalty == "nonnegative"
        )
        count = max(1, min(size // 2, _NOMINEES, maxima_GxQ.shape[0]))
        nominees, most_Q = each(
            functools.partial(_nominate, state, penalty, count, first), (maxima_GxQ.T, *asked)
        )
        if state.sharded:
            sent, most_DxQ = jax.tree.map(
                lambda a: jax.lax.all_to_all(a.reshape(mesh.size, q, *a.shape[1:]), every, 0, 0),
                (nominees, most_Q),
            )
            most_Q = most_DxQ.max(axis=0)
            nominees = jax.vmap(lambda n: _strongest(n, count), in_axes=1)(sent)
        admitted, active, wanted = each(_admit, (working, nominees, problem.floor_Q))
        gap_Q = _gap(problem, working, found.r_L[:, :-1], most_Q)
        return Round(
            admitted, found.r_L[:, :-1], most_Q, gap_Q, found.lipschitz, found.steps, active, wanted
        )

    queries = P(every)
    columns = jax.tree.map(lambda _: state.over_columns, state)
    return jax.shard_map(
        local, mesh=mesh, in_specs=(columns, queries, queries), out_specs=queries,
        check_vma=False,
    )(state, working, problem)  # fmt: skip
