"""Rows of `growth`: what answers find, and the time and memory that a query takes.

Letters of its own: Z numbers of a gradient, P examples scored exactly per query.
"""

import dataclasses
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.growth_opponents import Probing, opponent
from benchmarks.growth_search import TOP, Ours, build, fit_clusters
from benchmarks.house import Row


def recall_row(
    name: str, answers: Sequence[np.ndarray], truth: Sequence[np.ndarray], top: int
) -> Row:
    """Mean share of the true top that answers hold, over queries.

    >>> recall_row("r", [np.array([1, 2])], [np.array([2, 3])], 2).value
    0.5
    """
    own = [
        len(np.intersect1d(a[:top], t[:top])) / len(t[:top])
        for a, t in zip(answers, truth, strict=True)
    ]
    half = 1.96 * float(np.std(own)) / len(own) ** 0.5
    mean = float(np.mean(own))
    return Row(name, mean, "higher", (max(0.0, mean - half), min(1.0, mean + half)))


class Seconds(NamedTuple):
    """Median time per query.

    Attributes:
      wall: by the clock.
      processor: of this process alone, whatever else the machine does.
    """

    wall: float
    processor: float


def seconds_each(
    asks: Mapping[int, Callable[[np.ndarray], np.ndarray]], v_QxZ: np.ndarray
) -> dict[int, Seconds]:
    """Time per query of each contestant; they take turns, query by query."""
    for ask in asks.values():
        ask(v_QxZ[0])
    taken: dict[int, list[Seconds]] = {key: [] for key in asks}
    for v_Z in v_QxZ:
        for key, ask in asks.items():
            began = Seconds(time.perf_counter(), time.process_time())
            ask(v_Z)
            ended = Seconds(time.perf_counter(), time.process_time())
            taken[key].append(Seconds(*np.subtract(ended, began).tolist()))
    return {
        key: Seconds(*map(statistics.median, zip(*own, strict=True))) for key, own in taken.items()
    }


def peak_bytes(ask: Callable[[np.ndarray], np.ndarray], v_QxZ: np.ndarray) -> int:
    """Largest memory that a question allocates."""
    tracemalloc.start()
    try:
        base = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for v_Z in v_QxZ:
            ask(v_Z)
        return tracemalloc.get_traced_memory()[1] - base
    finally:
        tracemalloc.stop()


def place_of(n: int, k: int, count: int) -> str:
    """How a row says what it was measured at."""
    return f"N={n:.0e}, K={k}, P={count}"


def recall_rows(
    ours: Ours, v_QxZ: np.ndarray, truth: Sequence[np.ndarray], budgets: Sequence[int]
) -> list[Row]:
    """What share of the true top our answers hold."""
    rows = []
    n, k = len(ours.g_NxZ), len(ours.size_K)
    for count in budgets:
        answers = [ours.ask(v_Z, count) for v_Z in v_QxZ]
        for top in TOP:
            name = f"growth: true top {top} found, {place_of(n, k, count)}"
            rows.append(recall_row(name, answers, truth, top))
    return rows


def cost_rows(
    ours: Mapping[int, Ours],
    scanned: Mapping[int, float],
    v_QxZ: np.ndarray,
    budgets: Sequence[int],
) -> list[Row]:
    """Time and memory per query for all N, interleaved, and their ratios; bytes of the indices.

    Args:
      ours: by N, all of one K.
      scanned: seconds that a scan takes per query, by N.
      v_QxZ: queries.
      budgets: P.
    """
    rows = []
    low, high = min(ours), max(ours)
    k = len(ours[low].size_K)
    ratio = f"at N={high:.0e} over N={low:.0e}"
    for count in budgets:
        asks = {n: _asking(own, count) for n, own in ours.items()}
        with threadpool_limits(1):
            seconds = seconds_each(asks, v_QxZ)
        peaks = {n: peak_bytes(ask, v_QxZ[:5]) for n, ask in asks.items()}
        for n in ours:
            place = place_of(n, k, count)
            speed = scanned[n] / seconds[n].wall
            rows += [
                Row(f"growth: query seconds, {place}", seconds[n].wall, "lower"),
                Row(f"growth: query peak memory in bytes, {place}", peaks[n], "lower"),
                Row(f"growth: scan seconds over query seconds, {place}", speed, "higher"),
            ]
        place, memory = f"{ratio}, K={k}, P={count}", peaks[high] / peaks[low]
        wall, processor = np.divide(seconds[high], seconds[low]).tolist()
        rows += [
            Row(f"growth: query seconds {place}", wall, "lower", asked=2.0),
            Row(f"growth: query processor seconds {place}", processor, "lower", asked=2.0),
            Row(f"growth: query peak memory {place}", memory, "lower"),
        ]
    fixed = ours[high].fixed_bytes
    grown, taken = fixed / ours[low].fixed_bytes, ours[high].build_seconds / high * 1e6
    size, work = "index bytes without numbers per example", "seconds to assign and order"
    return [
        *rows,
        Row(f"growth: {size} {ratio}, K={k}", grown, "lower", asked=1.0),
        Row(f"growth: {size}, K={k}", fixed, "lower"),
        Row(f"growth: {work}, per million examples, N={high:.0e}, K={k}", taken, "lower"),
    ]


class _Asked(Protocol):
    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray: ...


def _asking(own: _Asked, count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v_Z: own.ask(v_Z, count)


def opponent_rows(
    g_NxZ: np.ndarray,
    k: int,
    v_QxZ: np.ndarray,
    truth: Sequence[np.ndarray],
    budgets: Sequence[int],
) -> list[Row]:
    """Recall, evaluations and time of the other inverted file."""
    kind = opponent()
    other: Probing = kind(g_NxZ, k, v_QxZ)
    rows = []
    for count in budgets:
        place = f"{place_of(len(g_NxZ), k, count)}, {kind.name}"
        answers = [other.ask(v_Z, count) for v_Z in v_QxZ]
        rows += [
            recall_row(f"growth: true top {top} found, {place}", answers, truth, top) for top in TOP
        ]
        with threadpool_limits(1):
            seconds = seconds_each({0: _asking(other, count)}, v_QxZ)[0].wall
        rows += [
            Row(f"growth: query seconds, {place}", seconds, "lower"),
            Row(f"growth: exact evaluations, {place}", other.evaluated(v_QxZ, count), "lower"),
        ]
    return rows


def level_rows(
    two: Ours, v_QxZ: np.ndarray, truth: Sequence[np.ndarray], budgets: Sequence[int]
) -> list[Row]:
    """Two levels against one, of the same sample and K."""
    n, k = len(two.g_NxZ), len(two.size_K)
    one = build(two.g_NxZ, fit_clusters(two.g_NxZ, k, two_levels=False))
    place, faster = f"N={n:.0e}, K={k}", one.build_seconds / two.build_seconds
    work = "seconds to assign and order, one level over two"
    rows = [
        Row(
            f"growth: squared error of two levels over one, {place}", two.error / one.error, "lower"
        ),
        Row(f"growth: {work}, {place}", faster, "higher"),
    ]
    found = recall_rows(one, v_QxZ, truth, budgets)
    return rows + [dataclasses.replace(row, name=f"{row.name}, one level") for row in found]
