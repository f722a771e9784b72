"""Batched Lasso over queries with the implicit left-d-regular M, certified over all N columns.

    minimise over w:  ½ || y_x − mean(y_x) − (M − row means) w ||² + lambda_x || w ||_1

`init` once per design, `solve` as often as needed. Every query has a working set of columns that
grows by the columns which violate optimality; passes over all N are few, and end with a proof
(docs/method.md §7).
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from stride_jax.recovery import working_set as sets
from stride_jax.recovery.certificate import Certificate, ColumnPass, Support, Terms, certify
from stride_jax.recovery.columns import LassoState
from stride_jax.recovery.result import Recovery, least_squares, packed
from stride_jax.recovery.rounds import Problem, Round, round_shapes, run_round, slots_for, statics
from stride_jax.recovery.settings import LassoSettings, power_of_two
from stride_jax.recovery.working_set import WorkingSet
from stride_jax.runtime.progress import Progress, silent

# Rounds without progress after which float32 has given all it can.
_PATIENCE = 3


@dataclasses.dataclass
class Opened:
    """Queries under way: what `solve` and a path of lambdas hand from one lambda to the next.

    Attributes:
      y_QxK: float64 measurements, centred, and scaled so that each query's lambda_max is 1.
      top_Q: lambda_max; 0 for a query without signal.
      working: each query's working set, arrays of numpy.
      lipschitz_Q: step bound learnt for each.
      tolerance_Q: relative gap to which the next round solves each working set.
      least_weight: smallest penalty weight of the design.
    """

    y_QxK: np.ndarray
    top_Q: np.ndarray
    working: list[WorkingSet]
    lipschitz_Q: np.ndarray
    tolerance_Q: np.ndarray
    least_weight: float


@dataclasses.dataclass
class _Progress:
    """What each query's rounds came to so far.

    Attributes:
      steps_Q, passes_Q: taken.
      stalled_Q: rounds in a row without progress.
      gap_Q: best float32 gap.
      proof: certificates of the queries that are done.
    """

    steps_Q: np.ndarray
    passes_Q: np.ndarray
    stalled_Q: np.ndarray
    gap_Q: np.ndarray
    proof: list[Certificate]


def checked(state: LassoState, y_QxK: np.ndarray) -> np.ndarray:
    """Measurements as float64.

    Raises:
      ValueError: not finite or of another K (names query and values).
    """
    y = np.asarray(y_QxK, np.float64)
    if y.ndim != 2 or y.shape[1] != state.num_subsets:
        raise ValueError(
            f"measurements of shape {y.shape} do not fit the design's K={state.num_subsets} "
            "subsets: give [queries, K]"
        )
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
        raise ValueError(
            f"measurements of {len(bad)} queries are not finite, first of row {bad[0]}: check the "
            "queries and the operators"
        )
    return y


def _run(
    state: LassoState,
    opened: Opened,
    queries: Sequence[int],
    settings: LassoSettings,
    slots: int,
    penalty_Q: np.ndarray,
    floor_Q: np.ndarray,
) -> Round:
    """One round for these queries, whose sets are of one size; free slots get empty queries."""
    rows, missing = np.array(queries), slots - len(queries)
    size = len(opened.working[queries[0]].w_QxW)
    blank = sets.empty_set(state, size)
    chosen = [opened.working[q] for q in queries] + [blank] * missing

    def column(values: np.ndarray, fill: float) -> np.ndarray:
        return np.pad(values[rows], (0, missing), constant_values=fill)

    problem = Problem(
        np.pad(opened.y_QxK[rows], ((0, missing), (0, 0))),
        column(penalty_Q, 1.0), column(settings.gamma * opened.top_Q, 0.0),
        column(opened.lipschitz_Q, 1.0), column(opened.tolerance_Q, 1.0), column(floor_Q, 1.0),
    )  # fmt: skip
    working = WorkingSet(*(np.stack(parts) for parts in zip(*chosen, strict=True)))
    placed = jax.tree.map(
        lambda v, like: jax.device_put(v.astype(like.dtype, copy=False), like.sharding),
        (working, problem),
        round_shapes(state, slots, size),
    )
    return jax.device_get(run_round(state, *placed, **statics(state, settings)))


def open_queries(state: LassoState, y_QxK: np.ndarray, settings: LassoSettings) -> Opened:
    """The first pass: every query's exact lambda_max and its most correlated columns."""
    y = checked(state, y_QxK)
    largest = np.abs(y).max(axis=1, initial=0.0)
    if settings.intercept:
        y = y - y.mean(axis=1, keepdims=True)
    spread = np.abs(y).max(axis=1, initial=0.0)
    # What varies by less than a float32 of its size is rounding, not signal.
    signal = spread > 1e-7 * largest
    count, k = y.shape
    y = y / np.where(signal, spread, 1.0)[:, None]
    slots = slots_for(state, settings, count)
    size = settings.first_size(state.num_train)
    blank = sets.empty_set(state, size)
    degree = state.table_Pxd.shape[1]
    start = np.full(count, degree * (1 + np.sqrt(size / k)) ** 2)
    least = 1.0 if state.penalty_P is None else float(np.asarray(state.penalty_P).min())
    opened = Opened(y, np.zeros(count), [blank] * count, start, np.ones(count), least)
    for at in range(0, count, slots):
        queries = range(at, min(at + slots, count))
        # No column joins at a lambda this large, and all may be nominated: a pass, no more.
        huge, zero = np.full(count, 1e30), np.zeros(count)
        out = _run(state, opened, queries, settings, slots, huge, zero)
        opened.top_Q[queries] = out.largest_Q[: len(queries)]
        for place, q in enumerate(queries):
            opened.working[q] = WorkingSet(*(a[place] for a in out.working))
    if settings.intercept:
        # Columns that are all alike (d = K) correlate with nothing but the rounding of d numbers.
        signal &= opened.top_Q > 2.0**-22 * np.sqrt(degree) / least
    opened.top_Q[~signal] = 0.0
    if settings.working_set >= state.num_train:
        opened.working = [sets.whole_set(state, size)] * count
    scale = np.where(opened.top_Q > 0, opened.top_Q, 1.0)
    return dataclasses.replace(opened, y_QxK=y / scale[:, None], top_Q=opened.top_Q * spread)


def lambda_max(
    state: LassoState, y_QxK: np.ndarray, settings: LassoSettings = LassoSettings()
) -> np.ndarray:
    """The penalty from which on all influences are zero, `max |m_iᵀ(y − mean y)| / penalty_i`.

    Returns:
      `[Q]` float64, exact to the rounding of one float32 sum.
    """
    return open_queries(state, y_QxK, settings).top_Q


def finish(
    state: LassoState,
    opened: Opened,
    fraction_Q: np.ndarray,
    settings: LassoSettings,
    progress: Progress = silent,
) -> Recovery:
    """Solve opened queries at a fraction of their lambda_max, from where they stand.

    Queries with working sets of one size share a round; each leaves when its certificate is good
    enough, and another takes its slot.
    """
    count = len(opened.top_Q)
    slots = slots_for(state, settings, count)
    steps, passes, stalled = (np.zeros(count, np.int64) for _ in range(3))
    best, proof = np.full(count, np.inf), [Certificate(0.0, 0.0)] * count
    so_far = _Progress(steps, passes, stalled, best, proof)
    waiting: dict[int, list[int]] = {}
    for q in np.flatnonzero(opened.top_Q > 0)[::-1].tolist():
        waiting.setdefault(len(opened.working[q].w_QxW), []).append(q)
    opened.tolerance_Q[:] = 0.1
    ticks = iter(progress(range(count), desc="recover", total=count))
    while waiting:
        queries = _take(waiting, slots)
        out = _run(state, opened, queries, settings, slots, fraction_Q, fraction_Q)
        for place, q in enumerate(queries):
            working = WorkingSet(*(a[place] for a in out.working))
            own = Round(working, *(a[place] for a in out[1:]))
            if _is_done(state, opened, so_far, q, own, float(fraction_Q[q]), settings):
                next(ticks, None)
            else:
                waiting.setdefault(len(opened.working[q].w_QxW), []).append(q)
    next(ticks, None)  # lets the bar close
    return _recovery(state, opened, so_far, fraction_Q, settings)


def _take(waiting: dict[int, list[int]], slots: int) -> list[int]:
    """Queries of the next round: small sets first, but those that fill all slots before others."""
    # A round costs the same for fewer queries.
    size = min(waiting, key=lambda s: (len(waiting[s]) < slots, s))
    queries = waiting.pop(size)
    if rest := queries[:-slots]:
        waiting[size] = rest
    return queries[-slots:][::-1]


def _is_done(
    state: LassoState,
    opened: Opened,
    so_far: _Progress,
    q: int,
    own: Round,
    penalty: float,
    settings: LassoSettings,
) -> bool:
    """Record a query's round; certify it where its gap is small enough, or won't get smaller."""
    so_far.steps_Q[q] += own.steps_Q
    so_far.passes_Q[q] += 1
    slow = own.gap_Q > 0.8 * so_far.gap_Q[q] and own.wanted_Q == own.active_Q
    so_far.stalled_Q[q] = so_far.stalled_Q[q] + 1 if slow else 0
    so_far.gap_Q[q] = min(so_far.gap_Q[q], own.gap_Q)
    opened.lipschitz_Q[q] = own.lipschitz_Q
    opened.tolerance_Q[q] = _next_tolerance(own, settings.relative_gap)
    opened.working[q] = own.working
    spent = (
        so_far.steps_Q[q] >= settings.max_iterations
        or so_far.passes_Q[q] >= settings.max_rounds
        or so_far.stalled_Q[q] >= _PATIENCE
    )
    if spent or own.gap_Q <= 1.1 * settings.relative_gap:
        gamma = settings.gamma * opened.top_Q[q]
        terms = Terms(penalty, gamma, opened.least_weight, settings.intercept)
        proof = so_far.proof[q] = _certified(opened, q, own, terms)
        if spent or proof.relative_gap <= settings.relative_gap:
            return True
    size = len(own.working.w_QxW)
    crowded = own.wanted_Q > size and own.active_Q > 0.75 * size
    if crowded and size < power_of_two(state.num_train):
        opened.working[q] = sets.grown(state, own.working)
    return False


def _certified(opened: Opened, q: int, own: Round, terms: Terms) -> Certificate:
    """The certificate of a query's round."""
    working = own.working
    active = working.w_QxW != 0
    support = Support(
        working.rows_QxWxd[active],
        working.w_QxW[active],
        terms.penalty * working.penalty_QxW[active].astype(float),
    )
    return certify(support, opened.y_QxK[q], ColumnPass(own.r_QxK, float(own.largest_Q)), terms)


def _next_tolerance(own: Round, target: float) -> float:
    """How well to solve a working set next: to the end, if hardly a column was missing from it."""
    if own.wanted_Q - own.active_Q > 1 + 0.02 * own.active_Q:
        return max(0.5 * target, 0.1 * float(own.gap_Q))
    # A certificate that failed all the same asks for more than the target.
    return min(0.5 * target, 0.3 * float(own.gap_Q))


def _recovery(
    state: LassoState,
    opened: Opened,
    so_far: _Progress,
    fraction_Q: np.ndarray,
    settings: LassoSettings,
) -> Recovery:
    """Influences in nats, refitted if asked, with their certificates."""
    ids, values = [], []
    for q, working in enumerate(opened.working):
        active = (working.w_QxW != 0) & (opened.top_Q[q] > 0)
        ids.append(working.id_QxW[active])
        w = working.w_QxW[active].astype(np.float64)
        if settings.debias and active.any():
            w = least_squares(working.rows_QxWxd[active], opened.y_QxK[q], settings.intercept)
        values.append((w * opened.top_Q[q]).astype(np.float32))
    return Recovery(
        *packed(ids, values, state.num_train),
        state.num_train,
        fraction_Q * opened.top_Q,
        so_far.steps_Q,
        so_far.passes_Q + 1,
        np.array([p.relative_gap for p in so_far.proof]),
        np.array([p.kkt for p in so_far.proof]),
    )


def solve(
    state: LassoState,
    y_QxK: np.ndarray,
    settings: LassoSettings = LassoSettings(),
    *,
    progress: Progress = silent,
) -> Recovery:
    """Recover every query's influences from its measurements (docs/method.md §7).

    Args:
      state: from `init`.
      y_QxK: `[Q, K]` measurements.
      settings: lambda and stopping.
      progress: wraps the queries.

    Returns:
      Supports and certificates. A query whose measurements are all equal has no signal: its scores
      are zero, its lambda 0.

    Raises:
      ValueError: measurements that are not finite or of another K (names query and values), or
        too little memory for one chunk.

    >>> from stride_jax.design import Design, membership, subset_sum
    >>> from stride_jax.recovery import init
    >>> design = Design(num_subsets=40, degree=3)
    >>> subsets = membership(design, [str(i) for i in range(100)])
    >>> w = np.zeros(100, np.float32)
    >>> w[7] = 2.0
    >>> recovery = solve(init(design, subsets), np.asarray(subset_sum(subsets, w, 40))[None])
    >>> int(recovery.id_QxZ[0, 0]), bool(recovery.relative_gap_Q[0] <= 1e-3)
    (7, True)
    """
    opened = open_queries(state, y_QxK, settings)
    fraction = np.full(len(opened.top_Q), settings.lambda_fraction)
    return finish(state, opened, fraction, settings, progress)
