"""Batched Lasso over queries with the implicit left-d-regular M, certified over all N columns.

    minimise over w:  ½ || y_x − mean(y_x) − (M − row means) w ||² + lambda_x || w ||_1

`init` once per design, `solve` as often as needed. Every query has a working set of columns that
grows by the columns which violate optimality; passes over all N are few, and end with a proof.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from stride_jax.recovery.certificate import Certificate, certify
from stride_jax.recovery.columns import LassoState, init, init_rows, pass_bytes
from stride_jax.recovery.proximal import PENALTIES
from stride_jax.recovery.result import Recovery, least_squares, packed
from stride_jax.recovery.working_set import Problem, Round, WorkingSet, play_round
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.progress import Progress, silent

__all__ = ["LassoSettings", "LassoState", "Recovery", "init", "init_rows", "lambda_max", "solve"]


STEPS_PER_ROUND = 400
"""After so many steps all N columns are looked at again."""

# Rounds without progress after which float32 has given all it can.
_PATIENCE = 3


@dataclasses.dataclass(frozen=True)
class LassoSettings:
    """How influences are recovered.

    Attributes:
      lambda_fraction: lambda as a fraction of each query's lambda_max, where w becomes zero.
      relative_gap: stop when the duality gap over all N is below this share of `½ ||y||²`. The
        certificate allows for float32's rounding, which costs about 1e-6: asking for less ends
        where progress does, with the gap that was reached.
      penalty: `lasso`; `nonnegative`, proponents only; or `elastic_net`.
      gamma: of the elastic net, `lambda (||w||_1 + gamma / 2 ||w||²)`, in 1/nats.
      intercept: centre y and the columns of M over the K subsets.
      debias: refit by least squares on the support; gap and violation stay those of the Lasso.
      working_set: columns a query starts with, a power of two; N or more: all columns at once.
      chunk: queries solved together on one device.
      max_iterations: proximal-gradient steps a query, at most.
      max_rounds: passes over all N columns a query, at most.
      memory_bytes: what a pass may take on a device, the design's table aside.
    """

    lambda_fraction: float = 0.05
    relative_gap: float = 1e-4
    penalty: str = "lasso"
    gamma: float = 0.0
    intercept: bool = True
    debias: bool = False
    working_set: int = 256
    chunk: int = 64
    max_iterations: int = 20_000
    max_rounds: int = 60
    memory_bytes: int = 2**30

    def __post_init__(self) -> None:
        if not 0 < self.lambda_fraction <= 1:
            raise ValueError(f"lambda_fraction={self.lambda_fraction} must lie in (0, 1]")
        if not 0 < self.relative_gap < 1:
            raise ValueError(f"relative_gap={self.relative_gap} must lie in (0, 1)")
        if min(self.max_iterations, self.max_rounds, self.chunk, self.working_set) < 1:
            raise ValueError(
                f"max_iterations={self.max_iterations}, max_rounds={self.max_rounds}, "
                f"chunk={self.chunk}, working_set={self.working_set}: all must be at least 1"
            )
        if self.penalty not in PENALTIES:
            raise ValueError(f"penalty={self.penalty!r}: use one of {', '.join(PENALTIES)}")
        if self.gamma < 0 or (self.gamma > 0) != (self.penalty == "elastic_net"):
            raise ValueError(
                f"gamma={self.gamma} with penalty={self.penalty!r}: the elastic net needs a "
                "positive gamma, the others none"
            )


@dataclasses.dataclass
class Opened:
    """Queries under way: what `solve` and a path of lambdas hand from one lambda to the next.

    Attributes:
      y_QxK: float64 measurements, centred, and scaled so that each query's lambda_max is 1.
      top_Q: lambda_max; 0 for a query without signal.
      working: each query's working set, arrays of numpy.
      lipschitz_Q: step bound learnt of each.
      tolerance_Q: relative gap to which the next round solves each working set.
    """

    y_QxK: np.ndarray
    top_Q: np.ndarray
    working: list[WorkingSet]
    lipschitz_Q: np.ndarray
    tolerance_Q: np.ndarray


def checked(state: LassoState, y_QxK: np.ndarray) -> np.ndarray:
    """Measurements as float64.

    Raises:
      ValueError: not finite or of another K (names query and values).
    """
    y = np.asarray(y_QxK, np.float64)
    if y.ndim != 2 or y.shape[1] != state.num_subsets:
        raise ValueError(
            f"measurements of shape {y.shape} do not fit the design's K={state.num_subsets} subsets"
        )
    if not np.isfinite(y).all():
        bad = np.flatnonzero(~np.isfinite(y).all(axis=1))
        raise ValueError(
            f"measurements of {len(bad)} queries are not finite, first of row {bad[0]}"
        )
    return y


def slots_for(state: LassoState, settings: LassoSettings, count: int) -> int:
    """Queries in flight: what the memory setting and the number of queries allow.

    Raises:
      ValueError: the memory setting is too small for a single chunk.
    """
    parts = state.mesh.size
    # With sharded columns a device passes for all queries, else for its own.
    least = parts if state.sharded else 1
    if (need := pass_bytes(state, least)) > settings.memory_bytes:
        raise ValueError(
            f"memory_bytes={settings.memory_bytes} is too small for one chunk of a pass over "
            f"{state.num_train} columns, which takes {need} bytes; raise it to at least that"
        )
    each = 1
    while (
        2 * each <= settings.chunk
        and each * parts < count
        and pass_bytes(state, 2 * each * least) <= settings.memory_bytes
    ):
        each *= 2
    # No more than fills them evenly, in eights: each number of them is compiled for.
    fill = meshes.even(-(-count // parts), each)
    return parts * min(each, -(-fill // 8) * 8)


def _empty(state: LassoState, size: int) -> WorkingSet:
    shape = (size, state.table_PxD.shape[1])
    return WorkingSet(
        np.full(size, state.num_train, np.int32),
        np.full(shape, state.num_subsets, state.table_PxD.dtype),
        np.ones(size, np.float32),
        np.zeros(size, np.float32),
    )


def _grown(state: LassoState, working: WorkingSet) -> WorkingSet:
    """A working set with as many free places again."""
    more = _empty(state, len(working.w_QxW))
    return WorkingSet(*(np.concatenate(pair) for pair in zip(working, more, strict=True)))


def _play(
    state: LassoState,
    opened: Opened,
    queries: Sequence[int],
    settings: LassoSettings,
    slots: int,
    size: int,
    penalty_Q: np.ndarray,
    floor_Q: np.ndarray,
) -> Round:
    """One round for these queries; places that no query takes are filled with silent ones."""
    missing = slots - len(queries)
    blank = _empty(state, size)
    sets = [opened.working[q] for q in queries] + [blank] * missing
    rows = np.array(queries)

    def column(values: np.ndarray, fill: float) -> np.ndarray:
        return np.pad(values[rows], (0, missing), constant_values=fill).astype(np.float32)

    y = np.pad(opened.y_QxK[rows], ((0, missing), (0, 0))).astype(np.float32)
    problem = Problem(
        y, column(penalty_Q, 1.0), column(settings.gamma * opened.top_Q, 0.0),
        column(opened.lipschitz_Q, 1.0), column(opened.tolerance_Q, 1.0), column(floor_Q, 1.0),
    )  # fmt: skip
    out = play_round(
        state,
        WorkingSet(*(np.stack(parts) for parts in zip(*sets, strict=True))),
        problem,
        penalty=settings.penalty,
        intercept=settings.intercept,
        max_steps=min(settings.max_iterations, STEPS_PER_ROUND),
        one_by_one=jax.default_backend() == "cpu",
    )
    return jax.device_get(out)


def open_queries(state: LassoState, y_QxK: np.ndarray, settings: LassoSettings) -> Opened:
    """The first pass: every query's exact lambda_max and its most correlated columns."""
    y = checked(state, y_QxK)
    loudest = np.abs(y).max(axis=1, initial=0.0)
    if settings.intercept:
        y = y - y.mean(axis=1, keepdims=True)
    spread = np.abs(y).max(axis=1, initial=0.0)
    # What varies by less than a float32 of its size is rounding, not signal.
    signal = spread > 1e-7 * loudest
    count, k = y.shape
    y = y / np.where(signal, spread, 1.0)[:, None]
    slots = slots_for(state, settings, count)
    size = 1 << (min(settings.working_set, state.num_train) - 1).bit_length()
    blank = _empty(state, size)
    start = state.table_PxD.shape[1] * (1 + np.sqrt(size / k)) ** 2
    opened = Opened(y, np.zeros(count), [blank] * count, np.full(count, start), np.ones(count))
    for at in range(0, count, slots):
        queries = range(at, min(at + slots, count))
        # No column joins at a lambda this large, and all may be nominated: a pass, no more.
        huge, zero = np.full(count, 1e30), np.zeros(count)
        out = _play(state, opened, queries, settings, slots, size, huge, zero)
        opened.top_Q[queries] = out.most_Q[: len(queries)]
        for place, q in enumerate(queries):
            opened.working[q] = WorkingSet(*(a[place] for a in out.working))
    opened.top_Q[~signal] = 0.0
    if settings.working_set >= state.num_train:
        opened.working = [_everything(state, size)] * count
    scale = np.where(opened.top_Q > 0, opened.top_Q, 1.0)
    return dataclasses.replace(opened, y_QxK=y / scale[:, None], top_Q=opened.top_Q * spread)


def _everything(state: LassoState, size: int) -> WorkingSet:
    """All columns as one working set: recovery without screening."""
    n, whole = state.num_train, _empty(state, size)
    whole.id_QxW[:n] = np.arange(n)
    whole.rows_QxWxD[:n] = np.asarray(state.table_PxD)[:n]
    if state.penalty_P is not None:
        whole.penalty_QxW[:n] = np.asarray(state.penalty_P)[:n]
    return whole


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

    Queries with working sets of one size play a round together; each leaves when its certificate
    is good enough, and another takes its place.
    """
    count = len(opened.top_Q)
    slots = slots_for(state, settings, count)
    largest = 1 << (state.num_train - 1).bit_length()
    least_weight = 1.0 if state.penalty_P is None else float(np.asarray(state.penalty_P).min())
    proof = [Certificate(0.0, 0.0)] * count
    steps, passes, stalled = (np.zeros(count, np.int64) for _ in range(3))
    gap_Q = np.full(count, np.inf)
    waiting: dict[int, list[int]] = {}
    for q in np.flatnonzero(opened.top_Q > 0)[::-1].tolist():
        waiting.setdefault(len(opened.working[q].w_QxW), []).append(q)
    opened.tolerance_Q[:] = 0.1
    ticks = iter(progress(range(count), desc="recover", total=count))
    while waiting:
        # A full house first: a round costs the same for fewer queries.
        size = min(waiting, key=lambda s: (len(waiting[s]) < slots, s))
        queries, rest = waiting[size][-slots:][::-1], waiting[size][:-slots]
        waiting.pop(size)
        if rest:
            waiting[size] = rest
        out = _play(state, opened, queries, settings, slots, size, fraction_Q, fraction_Q)
        for place, q in enumerate(queries):
            steps[q] += out.steps_Q[place]
            passes[q] += 1
            opened.lipschitz_Q[q] = out.lipschitz_Q[place]
            opened.tolerance_Q[q] = _next_tolerance(out, place, settings.relative_gap)
            slow = out.gap_Q[place] > 0.8 * gap_Q[q] and out.wanted_Q[place] == out.active_Q[place]
            stalled[q] = stalled[q] + 1 if slow else 0
            gap_Q[q] = min(gap_Q[q], out.gap_Q[place])
            spent = (
                steps[q] >= settings.max_iterations
                or passes[q] >= settings.max_rounds
                or stalled[q] >= _PATIENCE
            )
            working = WorkingSet(*(a[place] for a in out.working))
            opened.working[q] = working
            if spent or out.gap_Q[place] <= 1.1 * settings.relative_gap:
                kept = working.w_QxW != 0
                proof[q] = certify(
                    working.rows_QxWxD[kept], working.w_QxW[kept], opened.y_QxK[q],
                    out.r_QxK[place], float(out.most_Q[place]),
                    fraction_Q[q] * working.penalty_QxW[kept].astype(float),
                    fraction_Q[q], settings.gamma * opened.top_Q[q], least_weight=least_weight,
                    signed=settings.penalty == "nonnegative", intercept=settings.intercept,
                )  # fmt: skip
                if spent or proof[q].relative_gap <= settings.relative_gap:
                    next(ticks, None)
                    continue
            crowded = out.wanted_Q[place] > size and out.active_Q[place] > 0.75 * size
            if crowded and size < largest:
                opened.working[q] = _grown(state, working)
            waiting.setdefault(len(opened.working[q].w_QxW), []).append(q)
    next(ticks, None)  # lets the bar close
    ids, values = [], []
    for q, working in enumerate(opened.working):
        kept = (working.w_QxW != 0) & (opened.top_Q[q] > 0)
        ids.append(working.id_QxW[kept])
        found = working.w_QxW[kept].astype(np.float64)
        if settings.debias and kept.any():
            rows = working.rows_QxWxD[kept]
            found = least_squares(rows, opened.y_QxK[q], settings.intercept)
        values.append((found * opened.top_Q[q]).astype(np.float32))
    return Recovery(
        *packed(ids, values, state.num_train),
        state.num_train,
        fraction_Q * opened.top_Q,
        steps,
        passes + 1,
        np.array([p.relative_gap for p in proof]),
        np.array([p.kkt for p in proof]),
    )


def _next_tolerance(out: Round, place: int, target: float) -> float:
    """How well to solve a working set next: to the end, if hardly a column was missing from it."""
    active, wanted = out.active_Q[place], out.wanted_Q[place]
    if wanted - active > 1 + 0.02 * active:
        return max(0.5 * target, 0.1 * float(out.gap_Q[place]))
    # A certificate that failed all the same asks for more than the target.
    return min(0.5 * target, 0.3 * float(out.gap_Q[place]))


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
      progress: wraps the queries.

    Returns:
      Supports and certificates. A query whose measurements are all equal has no signal: its scores
      are zero, its lambda 0.

    Raises:
      ValueError: measurements that are not finite or of another K (names query and values), or
        too little memory for one chunk.

    >>> from stride_jax.design import Design, membership, subset_sum
    >>> design = Design(num_subsets=40, degree=3)
    >>> subsets = membership(design, [str(i) for i in range(100)])
    >>> w = np.zeros(100, np.float32)
    >>> w[7] = 2.0
    >>> found = solve(init(design, subsets), np.asarray(subset_sum(subsets, w, 40))[None])
    >>> int(found.id_QxS[0, 0]), bool(found.relative_gap_Q[0] <= 1e-4)
    (7, True)
    """
    opened = open_queries(state, y_QxK, settings)
    fraction = np.full(len(opened.top_Q), settings.lambda_fraction)
    return finish(state, opened, fraction, settings, progress)
