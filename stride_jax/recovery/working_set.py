"""One round of recovery on the devices: solve each query's working set, then let all N columns
nominate the ones it lacks.

Queries are split over the devices and each device's loops end with its own queries. With sharded
columns every device passes over its own columns for all queries: residuals are gathered and
nominees exchanged once a round, which is less than the all-reduce of `[K, Q]` that columns with
their own coefficients would need.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from stride_jax.recovery import proximal
from stride_jax.recovery.columns import LassoState, gather_add, group_maxima


class WorkingSet(NamedTuple):
    """The columns a query is solved on. Free places have id N, subsets K and w = 0.

    Attributes:
      id_QxW: training examples.
      rows_QxWxD: their subsets.
      penalty_QxW: their penalty weights.
      w_QxW: their influences.
    """

    id_QxW: jax.Array
    rows_QxWxD: jax.Array
    penalty_QxW: jax.Array
    w_QxW: jax.Array


class Problem(NamedTuple):
    """What a query asks for.

    Attributes:
      y_QxK: measurements.
      penalty_Q: lambda.
      gamma_Q: of the elastic net.
      lipschitz_Q: step bound learnt so far.
      tolerance_Q: relative gap that the working set's own problem is solved to.
    """

    y_QxK: jax.Array
    penalty_Q: jax.Array
    gamma_Q: jax.Array
    lipschitz_Q: jax.Array
    tolerance_Q: jax.Array


class Round(NamedTuple):
    """A round's outcome; the working set holds twice as many places as the one it came from.

    Attributes:
      working: what was solved, active examples first, then nominees, then the rest.
      r_QxK: residuals.
      most_Q: largest `|m_iᵀ r| / penalty_i` over all N columns, in float32.
      gap_Q: relative duality gap over all N columns, in float32: a guide, not a certificate.
      lipschitz_Q: step bound learnt.
      steps_Q: proximal-gradient steps.
      active_Q: examples with an influence.
      wanted_Q: active examples and nominees: places the next round could use.
    """

    working: WorkingSet
    r_QxK: jax.Array
    most_Q: jax.Array
    gap_Q: jax.Array
    lipschitz_Q: jax.Array
    steps_Q: jax.Array
    active_Q: jax.Array
    wanted_Q: jax.Array


class _Nominees(NamedTuple):
    """Columns proposed for a query's working set, and how strongly they correlate, per penalty."""

    id_M: jax.Array
    rows_MxD: jax.Array
    penalty_M: jax.Array
    value_M: jax.Array


def _found_in(sorted_W: jax.Array, id_x: jax.Array) -> tuple[jax.Array, jax.Array]:
    place = jnp.searchsorted(sorted_W, id_x).clip(0, sorted_W.shape[0] - 1)
    return sorted_W[place] == id_x, place


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
    shifted = penalty == "elastic_net"
    order = jnp.argsort(id_W) if shifted else id_W
    if shifted:
        local = id_W - first
        own = jnp.where((local >= 0) & (local < n_local), local % groups, 0)
        maxima_G = maxima_G.at[own].set(-1.0)
        group_M = jnp.concatenate([jax.lax.top_k(maxima_G, count)[1], own])
    else:
        group_M = jax.lax.top_k(maxima_G, count)[1]
    member_MxJ = group_M[:, None] + groups * jnp.arange(state.group)[None, :]
    rows_MxJxD = state.table_PxD[member_MxJ].astype(jnp.int32)
    c_MxJ = gather_add(r_L, jnp.moveaxis(rows_MxJxD, -1, 0))
    if shifted:
        inside, place = _found_in(id_W[order], first + member_MxJ)
        c_MxJ = c_MxJ - jnp.where(inside, shift_W[order][place], 0.0)
    value_MxJ = c_MxJ if penalty == "nonnegative" else jnp.abs(c_MxJ)
    weight_MxJ = jnp.ones_like(value_MxJ)
    if state.penalty_P is not None:
        weight_MxJ = state.penalty_P[member_MxJ]
        value_MxJ = value_MxJ / weight_MxJ
    best_M = value_MxJ.argmax(axis=1)
    at = jnp.arange(len(best_M))
    rows_MxD = rows_MxJxD[at, best_M].astype(state.table_PxD.dtype)
    member_M = first + member_MxJ[at, best_M]
    value_M = value_MxJ[at, best_M]
    most = jnp.maximum(maxima_G.max(), value_M.max()).clip(0.0)
    return _Nominees(member_M, rows_MxD, weight_MxJ[at, best_M], value_M), most


def _merge(
    state: LassoState, working: WorkingSet, nominees: _Nominees, floor: jax.Array
) -> tuple[WorkingSet, jax.Array, jax.Array]:
    """Working set of one query with its nominees: active first, then nominees, then the rest."""
    id_W, w_W = working.id_QxW, working.w_QxW
    size, free = id_W.shape[0], state.num_train
    inside, _ = _found_in(jnp.sort(id_W), nominees.id_M)
    # Nominees come strongest group first, so the first places go to the strongest.
    new_M = (nominees.value_M > floor) & ~inside & (nominees.id_M < free)
    active_W, idle_W = w_W != 0, (w_W == 0) & (id_W < free)
    kinds = (
        jnp.concatenate([active_W, jnp.zeros_like(new_M)]),
        jnp.concatenate([jnp.zeros_like(active_W), new_M]),
        jnp.concatenate([idle_W, jnp.zeros_like(new_M)]),
    )
    place, taken = jnp.full(kinds[0].shape, 2 * size), jnp.int32(0)
    for kind in kinds:
        place = jnp.where(kind, taken + jnp.cumsum(kind) - 1, place)
        taken = taken + kind.sum()

    def put(old: jax.Array, new: jax.Array, empty: float) -> jax.Array:
        both = jnp.concatenate([old, new])
        blank = jnp.full((2 * size, *old.shape[1:]), empty, old.dtype)
        return blank.at[place].set(both, mode="drop")

    merged = WorkingSet(
        put(id_W, nominees.id_M, free),
        put(working.rows_QxWxD, nominees.rows_MxD, state.num_subsets),
        put(working.penalty_QxW, nominees.penalty_M, 1.0),
        put(w_W, jnp.zeros_like(nominees.penalty_M), 0.0),
    )
    return merged, active_W.sum(), active_W.sum() + new_M.sum()


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


@functools.partial(
    jax.jit, static_argnames=("penalty", "intercept", "max_steps", "one_by_one", "first_round")
)
def play_round(
    state: LassoState,
    working: WorkingSet,
    problem: Problem,
    *,
    penalty: str,
    intercept: bool,
    max_steps: int,
    one_by_one: bool,
    first_round: bool = False,
) -> Round:
    """Solve every query's working set, then pass over all N columns once.

    Args:
      state: the design.
      working: a working set a query.
      problem: the queries, as many as the devices can share evenly.
      penalty, intercept, max_steps: of the inner problem.
      one_by_one: inner problems one after the other, each with its own number of steps, which on
        CPU keeps them in cache; or all of a device's at once, which an accelerator wants.
      first_round: the working sets are empty: pass only, and nominate without a threshold.

    Returns:
      What was found, laid out like the queries.
    """
    mesh, every = state.mesh, state.mesh.axis_names
    size = working.id_QxW.shape[1]

    def each(fun: object, arguments: object) -> object:
        if one_by_one:
            return jax.lax.map(lambda a: fun(*a), arguments)  # pyright: ignore[reportCallIssue]
        return jax.vmap(lambda a: fun(*a))(arguments)  # pyright: ignore[reportCallIssue]

    def local(state: LassoState, working: WorkingSet, problem: Problem) -> Round:
        q = problem.y_QxK.shape[0]

        def inner(work: WorkingSet, p: Problem) -> proximal.Inner:
            return proximal.solve_inner(
                work.rows_QxWxD, work.w_QxW, p.y_QxK, p.penalty_Q * work.penalty_QxW, p.gamma_Q,
                p.lipschitz_Q, p.tolerance_Q,
                penalty=penalty, intercept=intercept, max_steps=max_steps,
            )  # fmt: skip

        if first_round:
            r_QxL = jnp.concatenate([problem.y_QxK, jnp.zeros((q, 1))], axis=1)
            zero = jnp.zeros_like(problem.penalty_Q)
            found = proximal.Inner(
                working.w_QxW, r_QxL, problem.lipschitz_Q, zero.astype(jnp.int32), zero
            )
        else:
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
        count = max(1, min(size // 2, maxima_GxQ.shape[0]))
        nominees, most_Q = each(
            functools.partial(_nominate, state, penalty, count, first), (maxima_GxQ.T, *asked)
        )
        if state.sharded:
            sent, most_DxQ = jax.tree.map(
                lambda a: jax.lax.all_to_all(
                    a.reshape(mesh.size, q, *a.shape[1:]), every, 0, 0
                ),
                (nominees, most_Q),
            )
            most_Q = most_DxQ.max(axis=0)
            nominees = jax.vmap(lambda n: _strongest(n, count), in_axes=1)(sent)
        floor = jnp.zeros_like(most_Q) if first_round else problem.penalty_Q
        merged, active, wanted = each(
            functools.partial(_merge, state), (working, nominees, floor)
        )
        gap_Q = _gap(problem, working, found.r_L[:, :-1], most_Q)
        return Round(
            merged, found.r_L[:, :-1], most_Q, gap_Q, found.lipschitz, found.steps, active, wanted
        )

    queries = P(every)
    columns = LassoState(
        state.over_columns, None if state.penalty_P is None else state.over_columns,
        state.num_train, state.num_subsets, state.group, mesh, state.sharded,
    )  # fmt: skip
    return jax.shard_map(
        local, mesh=mesh, in_specs=(columns, queries, queries), out_specs=queries,
        check_vma=False,
    )(state, working, problem)  # fmt: skip
