"""How questions grow with the corpus: clusters' sums and an inverted file against their likes.

    python -m benchmarks.growth --workdir=runs/growth
    python -m benchmarks.growth --workdir=runs/growth --num_train=100000,1000000

Synthetic gradients of a mixture with heavy-tailed sizes stand for `g`: an operator is the sum of a
cluster's, a query's influence is `v · g`. The sums share out a score per size, the inverted file
names the P strongest, and those are scored exactly by their vectors. Opponents: a scan of all N,
and an inverted file of the same vectors with a search for the maximum inner product, faiss-cpu's
where it is installed, else scikit-learn's k-means. All look for the largest positive influences.

Letters of its own: Z numbers of a gradient, P examples scored exactly per query, W places of the
answer.
"""

import dataclasses
import importlib.util
import pathlib
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from benchmarks.house import ROOT, Row, command, record
from benchmarks.levels import Levels, assign_levels, fit_levels, nearest
from benchmarks.program import listed
from stride_jax.cli.doors import Parser, at_least
from stride_jax.inverted import Inverted, invert, strongest
from stride_jax.operators.content import spherical_means

POINTING = ROOT / "docs/results/pointing.json"
_WIDTH = 32
_CHUNK = 100_000
_TOP = (10, 50)
_SAMPLE = 1 << 18
_SPREAD = 1.5
_TWO_LEVELS_FROM = 4000
_SEED = 0


# ── gradients ────────────────────────────────────────────────────────────────────────────────────


class Mixture:
    """Directions around 2,000 centres in 100 families, of very different frequency."""

    def __init__(self) -> None:
        rng = np.random.default_rng(_SEED)
        families = _unit(rng.normal(size=(100, _WIDTH)))
        around = rng.normal(size=(2000, _WIDTH)) * 0.8 / _WIDTH**0.5
        self.centre_CxZ = _unit(families[rng.integers(0, 100, 2000)] + around)
        self.share_C = 1 / (10 + rng.permutation(2000))
        self.share_C /= self.share_C.sum()

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Unit vectors, `[count, Z]` float32."""
        centre = self.centre_CxZ[rng.choice(len(self.share_C), count, p=self.share_C)]
        noise = rng.normal(size=(count, _WIDTH)) * 0.6 / _WIDTH**0.5
        return _unit(centre + noise).astype(np.float32)


def _unit(z_BxZ: np.ndarray) -> np.ndarray:
    return z_BxZ / np.linalg.norm(z_BxZ, axis=1, keepdims=True)


def gradients(path: pathlib.Path, count: int, spread: float) -> np.memmap:
    """Gradients in a file, written once, chunk by chunk: a shorter file is the start of a longer.

    Sizes are log-normal, whatever the direction; `spread` is the σ of their logarithm.
    """
    shape = (count, _WIDTH)
    if not path.exists() or path.stat().st_size < 4 * count * _WIDTH:
        mixture, part = Mixture(), path.with_suffix(".part")
        with part.open("wb") as file:
            for chunk, first in enumerate(range(0, count, _CHUNK)):
                rng = np.random.default_rng((_SEED, chunk))
                g_BxZ = mixture.draw(_CHUNK, rng) * rng.lognormal(0, spread, (_CHUNK, 1))
                g_BxZ[: count - first].astype(np.float32).tofile(file)
        part.rename(path)
    return np.memmap(path, np.float32, "r", shape=shape)


def chunks(g_NxZ: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of each chunk."""
    for first in range(0, len(g_NxZ), _CHUNK):
        yield first, np.asarray(g_NxZ[first : first + _CHUNK])


# ── ours ─────────────────────────────────────────────────────────────────────────────────────────

Clusters = Levels | np.ndarray
"""Centroids on two levels, or on one."""


def fit_clusters(g_NxZ: np.ndarray, num_clusters: int, two_levels: bool) -> Clusters:
    """Centroids from the first 262,144 examples."""
    sample = np.asarray(g_NxZ[:_SAMPLE])
    size_M = np.linalg.norm(sample, axis=1)
    fit = fit_levels if two_levels else spherical_means
    return fit(sample / size_M[:, None], size_M.astype(np.float64) ** 2, num_clusters, _SEED)


def assign(clusters: Clusters, z_BxZ: np.ndarray) -> np.ndarray:
    """The cluster of each direction."""
    if isinstance(clusters, Levels):
        return assign_levels(clusters, z_BxZ)
    parts = [nearest(clusters, z_BxZ[i : i + 4096]) for i in range(0, len(z_BxZ), 4096)]
    return np.concatenate(parts).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Ours:
    """Sums of clusters and the inverted file.

    Attributes:
      g_NxZ: gradients, of which P are read per query.
      clusters: centroids.
      sums_KxZ: sums of the clusters' gradients, the operators.
      size_K: sums of the sizes of their members' gradients.
      file: members by cluster and size, the only numbers per example.
      error: squared distance of gradients from their centroid's direction, over their squares.
      build_seconds: assignment, sums and order, without the fit of centroids.
    """

    g_NxZ: np.ndarray
    clusters: Clusters
    sums_KxZ: np.ndarray
    size_K: np.ndarray
    file: Inverted
    error: float
    build_seconds: float

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the index without the numbers per example."""
        if isinstance(self.clusters, Levels):
            own = [getattr(self.clusters, f.name).nbytes for f in dataclasses.fields(Levels)]
        else:
            own = [self.clusters.nbytes]
        return sum(own) + self.sums_KxZ.nbytes + self.size_K.nbytes + self.file.start_K1.nbytes

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        """Rows of the largest influences among the strongest P, `[W]`."""
        share_K = self.sums_KxZ @ v_Z / self.size_K
        rows, _ = strongest(self.file, np.maximum(share_K, 0), count)
        rows = np.sort(rows[rows >= 0])
        return rows[best(self.g_NxZ[rows] @ v_Z)]


@threadpool_limits.wrap(limits=1)  # threads of small products wait for each other on busy cores
def build(g_NxZ: np.ndarray, clusters: Clusters) -> Ours:
    """Sums and inverted file of all gradients, chunk by chunk."""
    began = time.perf_counter()
    fine = clusters.centroids_KxZ if isinstance(clusters, Levels) else clusters
    centre_KxZ = fine / np.maximum(np.linalg.norm(fine, axis=1, keepdims=True), 1e-30)
    sums_KxZ = np.zeros(fine.shape)
    own_N, size_N = np.empty(len(g_NxZ), np.int32), np.empty(len(g_NxZ), np.float32)
    missed = squares = 0.0
    for first, g_BxZ in chunks(g_NxZ):
        size_B = np.linalg.norm(g_BxZ, axis=1)
        z_BxZ = g_BxZ / size_B[:, None]
        own_B = assign(clusters, z_BxZ)
        ones = scipy.sparse.csr_array(
            (np.ones(len(own_B)), (own_B, np.arange(len(own_B)))), (len(fine), len(own_B))
        )
        sums_KxZ += ones @ g_BxZ
        missed += (size_B**2 * ((z_BxZ - centre_KxZ[own_B]) ** 2).sum(axis=1)).sum()
        squares += (size_B**2).sum()
        own_N[first : first + len(own_B)], size_N[first : first + len(own_B)] = own_B, size_B
    size_K = np.maximum(np.bincount(own_N, size_N, len(fine)), 1e-30).astype(np.float32)
    file = invert(own_N, size_N, len(fine))
    seconds = time.perf_counter() - began
    sums_KxZ = sums_KxZ.astype(np.float32)
    return Ours(g_NxZ, clusters, sums_KxZ, size_K, file, float(missed / squares), seconds)


def best(w: np.ndarray) -> np.ndarray:
    """Places of the largest values, falling, the width of the answer at most."""
    width = min(max(_TOP), len(w))
    if width == 0:
        return np.zeros(0, np.int64)
    top = np.argpartition(-w, width - 1)[:width]
    return top[np.argsort(-w[top], kind="stable")]


# ── opponents ────────────────────────────────────────────────────────────────────────────────────


def scan(g_NxZ: np.ndarray, v_Z: np.ndarray) -> np.ndarray:
    """Rows of the largest of all N influences, `[W]`."""
    w_N = np.empty(len(g_NxZ), np.float32)
    for first, g_BxZ in chunks(g_NxZ):
        np.matmul(g_BxZ, v_Z, out=w_N[first : first + len(g_BxZ)])
    return best(w_N)


class Probing(Protocol):
    """An inverted file of vectors, of which the clusters nearest to a query are read whole."""

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        """Rows of the largest inner products among about `count` vectors, `[W]`."""
        ...

    def evaluated(self, v_QxZ: np.ndarray, count: int) -> float:
        """Mean number of vectors that questions of `count` compare."""
        ...


class Faiss:
    """faiss-cpu's `IndexIVFFlat`: vectors join the nearest centroid, which `centroid · v` ranks.

    Its default for inner products, which joins by the inner product with unit centroids too, finds
    far less: .07 of the top ten where this finds .997 (N = 300,000, K = 8000, P = 1000).
    """

    name = "faiss IndexIVFFlat"

    def __init__(self, g_NxZ: np.ndarray, num_clusters: int, v_QxZ: np.ndarray) -> None:
        import faiss  # pyright: ignore[reportMissingImports]

        by_distance, self.ranked = faiss.IndexFlatL2(_WIDTH), faiss.IndexFlatIP(_WIDTH)
        metric = faiss.METRIC_INNER_PRODUCT
        self.index: Any = faiss.IndexIVFFlat(by_distance, _WIDTH, num_clusters, metric)
        self.index.cp.spherical = False
        self.index.train(np.ascontiguousarray(g_NxZ[:_SAMPLE]))
        for _, g_BxZ in chunks(g_NxZ):
            self.index.add(np.ascontiguousarray(g_BxZ))
        faiss.omp_set_num_threads(1)  # for questions, as for ours
        lists = self.index.invlists
        self.length_K = np.array([lists.list_size(k) for k in range(num_clusters)])
        self.ranked.add(by_distance.reconstruct_n(0, num_clusters))
        _, order_QxK = self.ranked.search(v_QxZ, num_clusters)
        self.seen_QxK = np.cumsum(self.length_K[order_QxK], axis=1)

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        most = 1 + int((self.seen_QxK[:, :-1] < count).sum(axis=1).max())  # for any query
        near, own = self.ranked.search(v_Z[None], most)
        probes = 1 + int((np.cumsum(self.length_K[own[0, :-1]]) < count).sum())
        self.index.nprobe = probes
        chosen = np.ascontiguousarray(own[:, :probes]), np.ascontiguousarray(near[:, :probes])
        return self.index.search_preassigned(v_Z[None], max(_TOP), *chosen)[1][0]

    def evaluated(self, v_QxZ: np.ndarray, count: int) -> float:
        last_Q = (self.seen_QxK[:, :-1] < count).sum(axis=1)
        return float(self.seen_QxK[np.arange(len(last_Q)), last_Q].mean())


class Sklearn:
    """scikit-learn's k-means; clusters by `centroid · v` until P members are seen."""

    name = "scikit-learn k-means"

    def __init__(self, g_NxZ: np.ndarray, num_clusters: int, v_QxZ: np.ndarray) -> None:
        model: Any = MiniBatchKMeans(num_clusters, random_state=_SEED, batch_size=16_384)
        model.fit(np.asarray(g_NxZ[:_SAMPLE]))
        own_N = np.concatenate([model.predict(g_BxZ) for _, g_BxZ in chunks(g_NxZ)])
        self.g_NxZ, self.centre_KxZ = g_NxZ, model.cluster_centers_.astype(np.float32)
        self.row_N = np.argsort(own_N, kind="stable")
        self.start_K1 = np.append(0, np.cumsum(np.bincount(own_N, minlength=num_clusters)))

    def _rows(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        order_K = np.argsort(-(self.centre_KxZ @ v_Z), kind="stable")
        seen_K = np.cumsum(np.diff(self.start_K1)[order_K])
        probed = order_K[: 1 + int(np.searchsorted(seen_K[:-1], count))]
        return np.concatenate([self.row_N[self.start_K1[k] : self.start_K1[k + 1]] for k in probed])

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        rows = np.sort(self._rows(v_Z, count))
        return rows[best(self.g_NxZ[rows] @ v_Z)]

    def evaluated(self, v_QxZ: np.ndarray, count: int) -> float:
        return float(np.mean([len(self._rows(v_Z, count)) for v_Z in v_QxZ]))


# ── figures ──────────────────────────────────────────────────────────────────────────────────────


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


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
      num_train: corpus sizes, ascending.
      num_clusters: numbers of clusters.
      budgets: P.
      queries: Q.
      spread: standard deviation of the sizes' logarithms.
      alone: without opponents and other ways of clustering.
    """

    num_train: tuple[int, ...]
    num_clusters: tuple[int, ...]
    budgets: tuple[int, ...]
    queries: int
    spread: float
    alone: bool


def growth_rows(plan: Plan, workdir: pathlib.Path, note: Callable[[list[Row]], None]) -> None:
    """All rows, noted as soon as they are measured."""
    path = workdir / f"gradients-{plan.spread:g}.f32"
    g_NxZ = gradients(path, max(plan.num_train), plan.spread)
    v_QxZ = Mixture().draw(plan.queries, np.random.default_rng((_SEED, 1 << 20)))
    truths: dict[int, list[np.ndarray]] = {}
    scanned: dict[int, float] = {}
    for n in plan.num_train:
        with threadpool_limits(1):
            began = time.perf_counter()
            truths[n] = [scan(g_NxZ[:n], v_Z) for v_Z in v_QxZ]
            scanned[n] = (time.perf_counter() - began) / len(v_QxZ)
    note(
        [Row(f"growth: scan seconds per query, N={n:.0e}", s, "lower") for n, s in scanned.items()]
    )
    for k in plan.num_clusters:
        ours: dict[int, Ours] = {}
        for n in plan.num_train:
            clusters = fit_clusters(g_NxZ[:n], k, k >= _TWO_LEVELS_FROM)
            ours[n] = build(g_NxZ[:n], clusters)
            note(_own_recall(ours[n], v_QxZ, truths[n], plan.budgets))
        note(_grown(ours, scanned, v_QxZ, plan.budgets))
        for n in () if plan.alone else plan.num_train:
            note(_opponent(g_NxZ[:n], k, v_QxZ, truths[n], plan.budgets))
        if k >= _TWO_LEVELS_FROM and not plan.alone:
            middle = sorted(plan.num_train)[len(plan.num_train) // 2]
            note(_levels(ours[middle], v_QxZ, truths[middle], plan.budgets))


def _place(n: int, k: int, count: int) -> str:
    return f"N={n:.0e}, K={k}, P={count}"


def _own_recall(
    ours: Ours, v_QxZ: np.ndarray, truth: Sequence[np.ndarray], budgets: Sequence[int]
) -> list[Row]:
    rows = []
    n, k = len(ours.g_NxZ), len(ours.size_K)
    for count in budgets:
        answers = [ours.ask(v_Z, count) for v_Z in v_QxZ]
        for top in _TOP:
            name = f"growth: true top {top} found, {_place(n, k, count)}"
            rows.append(recall_row(name, answers, truth, top))
    return rows


def _grown(
    ours: Mapping[int, Ours],
    scanned: Mapping[int, float],
    v_QxZ: np.ndarray,
    budgets: Sequence[int],
) -> list[Row]:
    """Time and memory per query for all N, interleaved, and their ratios."""
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
            place = _place(n, k, count)
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
    fixed = {n: own.fixed_bytes for n, own in ours.items()}
    rows += [
        Row(
            f"growth: index bytes without numbers per example {ratio}, K={k}",
            fixed[high] / fixed[low],
            "lower",
            asked=1.0,
        ),
        Row(f"growth: index bytes without numbers per example, K={k}", fixed[high], "lower"),
        Row(
            f"growth: seconds to assign and order, per million examples, N={high:.0e}, K={k}",
            ours[high].build_seconds / high * 1e6,
            "lower",
        ),
    ]
    return rows


def _asking(own: Any, count: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda v_Z: own.ask(v_Z, count)


def _opponent(
    g_NxZ: np.ndarray,
    k: int,
    v_QxZ: np.ndarray,
    truth: Sequence[np.ndarray],
    budgets: Sequence[int],
) -> list[Row]:
    """Recall, evaluations and time of the other inverted file."""
    kind = Sklearn if importlib.util.find_spec("faiss") is None else Faiss
    other: Probing = kind(g_NxZ, k, v_QxZ)
    rows = []
    for count in budgets:
        place = f"{_place(len(g_NxZ), k, count)}, {kind.name}"
        answers = [other.ask(v_Z, count) for v_Z in v_QxZ]
        rows += [
            recall_row(f"growth: true top {top} found, {place}", answers, truth, top)
            for top in _TOP
        ]
        with threadpool_limits(1):
            seconds = seconds_each({0: _asking(other, count)}, v_QxZ)[0].wall
        rows += [
            Row(f"growth: query seconds, {place}", seconds, "lower"),
            Row(f"growth: exact evaluations, {place}", other.evaluated(v_QxZ, count), "lower"),
        ]
    return rows


def _levels(
    two: Ours, v_QxZ: np.ndarray, truth: Sequence[np.ndarray], budgets: Sequence[int]
) -> list[Row]:
    """Two levels against one, of the same sample and K."""
    n, k = len(two.g_NxZ), len(two.size_K)
    one = build(two.g_NxZ, fit_clusters(two.g_NxZ, k, two_levels=False))
    rows = [
        Row(
            f"growth: squared error of two levels over one, N={n:.0e}, K={k}",
            two.error / one.error,
            "lower",
        ),
        Row(
            f"growth: seconds to assign and order, one level over two, N={n:.0e}, K={k}",
            one.build_seconds / two.build_seconds,
            "higher",
        ),
    ]
    found = _own_recall(one, v_QxZ, truth, budgets)
    return rows + [dataclasses.replace(row, name=f"{row.name}, one level") for row in found]


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def main(words: Sequence[str]) -> int:
    """Measure, print each row, and write it down."""
    parser = Parser("growth", __doc__)
    parser.prog = "python -m benchmarks.growth"
    parser.usage = f"{parser.prog} --flag=value …"
    counts = listed(int)
    parser.flag("workdir", "Folder of the synthetic gradients.", required=True)
    parser.flag("out", "Results file.", default=str(POINTING))
    parser.flag("num_train", "N.", type=counts, default=(10**5, 10**6, 10**7))
    parser.flag("num_clusters", "K.", type=counts, default=(1000, 4000, 16000))
    parser.flag("budgets", "P, exact scores per query.", type=counts, default=(1000, 5000))
    parser.flag("queries", "Q.", type=at_least(1), default=50)
    parser.flag("spread", "σ of the logarithms of sizes.", type=float, default=_SPREAD)
    parser.switch("alone", "Without opponents and other ways of clustering.")
    given, _ = parser.read(words)
    workdir = pathlib.Path(given.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    corpora = tuple(sorted(given.num_train))
    sizes = given.num_clusters, given.budgets, given.queries
    plan = Plan(corpora, *sizes, given.spread, given.alone)
    if min(plan.budgets) < max(_TOP):
        raise ValueError(f"--budgets={min(plan.budgets)} is below {max(_TOP)}, an answer's length")
    if (least := max(*plan.num_clusters, *plan.budgets)) > plan.num_train[0]:
        raise ValueError(f"--num_train={plan.num_train[0]} is below {least}, the largest K or P")
    kept: dict[str, Row] = {}

    def note(rows: list[Row]) -> None:
        kept.update((row.name, row) for row in rows)
        if plan.spread != _SPREAD:
            about = f"growth, sizes' σ = {plan.spread:g}"
            rows = [
                dataclasses.replace(row, name=row.name.replace("growth", about, 1)) for row in rows
            ]
        for row in rows:
            asked = "" if row.asked is None else f" (asked: {row.asked:g})"
            print(f"{row.name}: {row.value:.4g}{asked}", flush=True)
        record(rows, path=pathlib.Path(given.out))

    growth_rows(plan, workdir, note)
    note([_cheapest_and_dearest(kept, plan)])
    return 0


def _cheapest_and_dearest(kept: Mapping[str, Row], plan: Plan) -> Row:
    """How the time of a query grows from the least budget and K to the most."""
    n = max(plan.num_train)
    ends = [(pick(plan.num_clusters), pick(plan.budgets)) for pick in (min, max)]
    low, high = (kept[f"growth: query seconds, {_place(n, *end)}"].value for end in ends)
    assert low is not None, "seconds were measured"
    assert high is not None, "seconds were measured"
    (few, least), (many, most) = ends
    name = f"growth: query seconds at K={many}, P={most} over K={few}, P={least}, N={n:.0e}"
    return Row(name, high / low, "lower", asked=(many + most) / (few + least))


if __name__ == "__main__":
    command(main, "growth")
