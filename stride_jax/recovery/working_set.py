"""The columns that a query is solved on, and which columns join them.

Letters: W columns of a working set, V nominees, G groups of J examples, L = K + 1 entries of a
residual with a zero for padding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.design import gather_add
from stride_jax.recovery.columns import LassoState
from stride_jax.runtime.programs import shape

# Columns that may join a working set in one round.
_NOMINEES = 256

Array = Any  # numpy on the host between rounds, JAX within one


class WorkingSet(NamedTuple):
    """The columns a query is solved on. Free places have id N, subsets K and w = 0.

    Attributes:
      id_QxW: training examples.
      rows_QxWxd: their subsets.
      penalty_QxW: their penalty weights.
      w_QxW: their influences.
    """

    id_QxW: Array
    rows_QxWxd: Array
    penalty_QxW: Array
    w_QxW: Array


class Asked(NamedTuple):
    """What all columns are asked on behalf of a query.

    Attributes:
      r_L: residual of its working set.
      id_W: examples of the set.
      shift_W: how much more than its penalty an active example correlates, under the elastic net.
    """

    r_L: jax.Array
    id_W: jax.Array
    shift_W: jax.Array


class Nominees(NamedTuple):
    """Columns proposed for a query's working set, and how strongly they correlate, per penalty.

    A column that is in the set already has value −1.
    """

    id_V: jax.Array
    rows_Vxd: jax.Array
    penalty_V: jax.Array
    value_V: jax.Array


def set_shapes(state: LassoState, queries: int, size: int) -> WorkingSet:
    """Abstract working sets of this many columns."""
    degree, dtype = state.table_Pxd.shape[1], state.table_Pxd.dtype
    flat = (queries, size)
    return WorkingSet(
        shape(flat, np.int32), shape((*flat, degree), dtype), shape(flat), shape(flat)
    )


def empty_set(state: LassoState, size: int) -> WorkingSet:
    """One query's working set, all places free."""
    fills = (state.num_train, state.num_subsets, 1, 0)
    like = set_shapes(state, 1, size)
    return WorkingSet(*(np.full(s.shape[1:], v, s.dtype) for s, v in zip(like, fills, strict=True)))


def grown(state: LassoState, working: WorkingSet) -> WorkingSet:
    """One query's working set with as many free places again."""
    more = empty_set(state, len(working.w_QxW))
    return WorkingSet(*(np.concatenate(pair) for pair in zip(working, more, strict=True)))


def whole_set(state: LassoState, size: int) -> WorkingSet:
    """All columns as one working set: recovery without screening."""
    n, whole = state.num_train, empty_set(state, size)
    whole.id_QxW[:n] = np.arange(n)
    whole.rows_QxWxd[:n] = np.asarray(state.table_Pxd)[:n]
    if state.penalty_P is not None:
        whole.penalty_QxW[:n] = np.asarray(state.penalty_P)[:n]
    return whole


def num_nominees(size: int, groups: int) -> int:
    """Groups that may each send an example to a working set in one round."""
    return max(1, min(size // 2, _NOMINEES, groups))


def nominate(
    state: LassoState, penalty: str, count: int, first: jax.Array, maxima_G: jax.Array, asked: Asked
) -> tuple[Nominees, jax.Array]:
    """The strongest example of each of the `count` strongest groups.

    Under the elastic net an active example's correlation exceeds its penalty by `shift_W`, which
    would hide the others of its group: such groups are opened besides, and corrected.

    Args:
      state: with the columns of this device.
      penalty: kind of the problem.
      count: groups that are opened.
      first: example of this device's first column.
      maxima_G: from `group_maxima`.
      asked: residual and working set of the query.

    Returns:
      The nominees, and the largest correlation over all columns of this device.
    """
    groups, n_local = maxima_G.shape[0], state.table_Pxd.shape[0]
    # Ids of other devices, and free places, fall outside and are dropped.
    local_W = jnp.where(asked.id_W >= first, asked.id_W - first, n_local)
    own_W = jnp.where(local_W < n_local, local_W % groups, 0)
    if penalty == "elastic_net":
        maxima_G = maxima_G.at[own_W].set(-1.0)
    group_V = jax.lax.top_k(maxima_G, count)[1]
    if penalty == "elastic_net":
        group_V = jnp.concatenate([group_V, own_W])
    member_VxJ = group_V[:, None] + groups * jnp.arange(state.group, dtype=jnp.int32)[None, :]
    rows_VxJxd = state.table_Pxd[member_VxJ].astype(jnp.int32)
    c_VxJ = gather_add(asked.r_L, jnp.moveaxis(rows_VxJxd, -1, 0))
    if penalty == "elastic_net":
        shift = jnp.zeros(n_local, c_VxJ.dtype).at[local_W].set(asked.shift_W, mode="drop")
        c_VxJ = c_VxJ - shift[member_VxJ]
    value_VxJ = c_VxJ if penalty == "nonnegative" else jnp.abs(c_VxJ)
    weight_VxJ = jnp.ones_like(value_VxJ)
    if state.penalty_P is not None:
        weight_VxJ = state.penalty_P[member_VxJ]
        value_VxJ = value_VxJ / weight_VxJ
    largest = jnp.maximum(maxima_G.max(), value_VxJ.max()).clip(0.0)
    inside = jnp.zeros(n_local, bool).at[local_W].set(True, mode="drop")
    value_VxJ = jnp.where(inside[member_VxJ], -1.0, value_VxJ)
    best_V, at = value_VxJ.argmax(axis=1), jnp.arange(len(group_V))
    return Nominees(
        first + member_VxJ[at, best_V],
        rows_VxJxd[at, best_V].astype(state.table_Pxd.dtype),
        weight_VxJ[at, best_V],
        value_VxJ[at, best_V],
    ), largest


def strongest(nominees: Nominees, count: int) -> Nominees:
    """The strongest of the nominees that several devices sent, `[devices, V]` each."""
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), nominees)
    _, order = jax.lax.top_k(flat.value_V, min(count, len(flat.value_V)))
    return jax.tree.map(lambda a: a[order], flat)


def admit(
    working: WorkingSet, nominees: Nominees, floor: jax.Array
) -> tuple[WorkingSet, jax.Array, jax.Array]:
    """Put nominees above the floor, strongest groups first, where a query's influences are zero.

    Returns:
      The set; its active examples; and these with all nominees above the floor, whether there was
      a place for them or not.
    """
    size, count = working.w_QxW.shape[0], nominees.value_V.shape[0]
    new_V, free_W = nominees.value_V > floor, working.w_QxW == 0
    rank_W, rank_V = (jnp.cumsum(v, dtype=jnp.int32) - 1 for v in (free_W, new_V))
    places_V = jnp.full(count, size, jnp.int32)
    free = jnp.where(free_W, rank_W, count)
    places_V = places_V.at[free].set(jnp.arange(size, dtype=jnp.int32), mode="drop")
    to_V = jnp.where(new_V, places_V[rank_V], size)
    admitted = WorkingSet(
        working.id_QxW.at[to_V].set(nominees.id_V, mode="drop"),
        working.rows_QxWxd.at[to_V].set(nominees.rows_Vxd, mode="drop"),
        working.penalty_QxW.at[to_V].set(nominees.penalty_V, mode="drop"),
        working.w_QxW,
    )
    active = size - free_W.sum(dtype=jnp.int32)
    return admitted, active, active + new_V.sum(dtype=jnp.int32)
