"""How questions grow with the corpus: clusters' sums and an inverted file against their likes.

    python -m benchmarks.growth --workdir=runs/growth
    python -m benchmarks.growth --workdir=runs/growth --num_train=100000,1000000

Synthetic gradients of a mixture with heavy-tailed sizes stand for `g`: an operator is the sum of a
cluster's, a query's influence is `v · g`. The sums share out a score per size, the inverted file
names the P strongest, and those are scored exactly by their vectors. Opponents: a scan of all N,
and an inverted file of the same vectors with a search for the maximum inner product, faiss-cpu's
where it is installed, else scikit-learn's k-means. All look for the largest positive influences.

From K = 4000 on, clusters are on two levels, without which ten million assignments would take an
hour; rows `one level` say what that costs. The product's clusters are on one level.

Letters of its own: Z numbers of a gradient, P examples scored exactly per query.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.growth_data import SEED, SPREAD, Mixture, gradients
from benchmarks.growth_figures import cost_rows, level_rows, opponent_rows, place_of, recall_rows
from benchmarks.growth_search import TOP, Ours, build, fit_clusters, scan
from benchmarks.house import ROOT, Row, command, record
from benchmarks.program import listed
from stride_jax.cli.doors import Parser, at_least

POINTING = ROOT / "docs/results/pointing.json"
_TWO_LEVELS_FROM = 4000


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
    v_QxZ = Mixture().draw(plan.queries, np.random.default_rng((SEED, 1 << 20)))
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
            note(recall_rows(ours[n], v_QxZ, truths[n], plan.budgets))
        note(cost_rows(ours, scanned, v_QxZ, plan.budgets))
        for n in () if plan.alone else plan.num_train:
            note(opponent_rows(g_NxZ[:n], k, v_QxZ, truths[n], plan.budgets))
        if k >= _TWO_LEVELS_FROM and not plan.alone:
            middle = sorted(plan.num_train)[len(plan.num_train) // 2]
            note(level_rows(ours[middle], v_QxZ, truths[middle], plan.budgets))


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
    parser.flag("spread", "σ of the logarithms of sizes.", type=float, default=SPREAD)
    parser.switch("alone", "Without opponents and other ways of clustering.")
    given, _ = parser.read(words)
    workdir = pathlib.Path(given.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    corpora = tuple(sorted(given.num_train))
    sizes = given.num_clusters, given.budgets, given.queries
    plan = Plan(corpora, *sizes, given.spread, given.alone)
    if min(plan.budgets) < max(TOP):
        raise ValueError(f"--budgets={min(plan.budgets)} is below {max(TOP)}, an answer's length")
    if (least := max(*plan.num_clusters, *plan.budgets)) > plan.num_train[0]:
        raise ValueError(f"--num_train={plan.num_train[0]} is below {least}, the largest K or P")
    kept: dict[str, Row] = {}

    def note(rows: list[Row]) -> None:
        kept.update((row.name, row) for row in rows)
        if plan.spread != SPREAD:
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
    low, high = (kept[f"growth: query seconds, {place_of(n, *end)}"].value for end in ends)
    assert low is not None, "seconds were measured"
    assert high is not None, "seconds were measured"
    (few, least), (many, most) = ends
    name = f"growth: query seconds at K={many}, P={most} over K={few}, P={least}, N={n:.0e}"
    return Row(name, high / low, "lower", asked=(many + most) / (few + least))


if __name__ == "__main__":
    command(main, "growth")
