"""Recovery against other Lasso solvers: same problem, same cores, same certified gap.

    python -m benchmarks.recovery --num_train=11400 --num_queries=512 --workdir=runs/recovery/11k
    python -m benchmarks.recovery --measured=runs/quickstart --workdir=runs/recovery/mnist5k

The first plants sparse influences and adds noise. The second takes the measurements and the design
of a run (its files are reused; what is missing is computed). Writes `recovery.json`.
Rounds are interleaved: each asks every solver once, and the first, which compiles, is not counted.
"""

import contextlib
import importlib.metadata
import pathlib
import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from benchmarks.meter import Meter
from benchmarks.signals import Problem, measured, plant, pose, relative_gaps, rows_of
from benchmarks.solvers import SOLVERS, Answer, left_out
from stride_jax import attribution
from stride_jax.runtime.files import plain, write_json
from stride_jax.runtime.progress import bars

_MEASURED = flags.DEFINE_string(
    "measured", None, "Workdir of a run whose measurements are taken, in place of planted signals."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where recovery.json is written.", required=True)
_NUM_TRAIN = flags.DEFINE_integer("num_train", 11_400, "N of planted signals.")
_NUM_SUBSETS = flags.DEFINE_integer("num_subsets", 1000, "K.")
_DEGREE = flags.DEFINE_integer("degree", 10, "d.")
_NUM_QUERIES = flags.DEFINE_integer("num_queries", 512, "Q, at most, for measured ones.")
_SPARSITY = flags.DEFINE_integer("sparsity", 50, "Influences planted per query.")
_NOISE = flags.DEFINE_float("noise", 0.1, "Standard deviation of noise over that of the signal.")
_FRACTION = flags.DEFINE_float("lambda_fraction", 0.05, "Lambda over lambda_max.")
_GAP = flags.DEFINE_float("relative_gap", 1e-4, "Duality gap over ½ ||y||² that all must reach.")
_SOLVERS = flags.DEFINE_list("solvers", list(SOLVERS), "Who takes part.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timed rounds.")
_SLOW = flags.DEFINE_list(
    "slow", ["celer", "jaxopt-dense"], "Solvers asked for a few queries only."
)
_MAX_SLOW = flags.DEFINE_integer("max_queries_slow", 8, "How many.")
_CORES = flags.DEFINE_integer("cores", 2, "Cores a solver may use; JAX gets a CPU device for each.")
_MEMORY = flags.DEFINE_float("memory_gib", 6.0, "A solver that needs more is left out.")


def _versions() -> dict[str, str]:
    installed = attribution.versions()
    for name in ("scikit-learn", "celer"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def contest(
    problem: Problem, names: Sequence[str], repeats: int, few: dict[str, int]
) -> list[dict[str, Any]]:
    """Interleaved rounds; rows of `recovery.json`.

    Args:
      problem: what is asked.
      names: solvers.
      repeats: timed rounds.
      few: queries of a solver that is not asked for all.
    """
    every = np.arange(len(problem.y_QxK))
    asked = {n: every[: few.get(n, len(every))] for n in names}
    runs, prepare_seconds = {}, {}
    for name in names:
        began = time.monotonic()
        runs[name] = SOLVERS[name].prepare(problem)
        prepare_seconds[name] = time.monotonic() - began
    costs, cpu = {n: [] for n in names}, {n: [] for n in names}
    answers: dict[str, Answer] = {}
    for _ in bars(range(repeats + 1), desc="rounds"):
        for name in names:
            began = time.process_time()
            with Meter() as cost:
                answers[name] = runs[name](asked[name])
            costs[name].append(cost)
            cpu[name].append((time.process_time() - began) / len(asked[name]))
    seconds = {n: [c.seconds / len(asked[n]) for c in costs[n][1:]] for n in names}
    rows = []
    for name in names:
        answer, scores = answers[name], rows_of(answers[name].scores)
        gaps = relative_gaps(problem, asked[name], scores, SOLVERS[name].intercept)
        row = {
            "solver": name,
            "queries": len(asked[name]),
            "seconds_per_query": statistics.median(seconds[name]),
            "seconds_spread": [min(seconds[name]), max(seconds[name])],
            "cpu_seconds_per_query": (
                None if SOLVERS[name].in_processes else statistics.median(cpu[name][1:])
            ),
            "prepare_seconds": prepare_seconds[name],
            "compile_seconds": costs[name][0].compile_seconds,
            "max_relative_gap": float(gaps.max()),
            "mean_support": float(scores.count_nonzero() / len(asked[name])),
            "peak_bytes": max(c.peak_bytes for c in costs[name]),
            "passes_over_n": answer.passes,
        }
        for other in {"sklearn", "sklearn-nointercept"} & set(names):
            ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
            row[f"ratio_to_{other}"] = statistics.median(ratios)
            row[f"ratio_to_{other}_spread"] = [min(ratios), max(ratios)]
        rows.append(row)
    return rows


def table(result: dict[str, Any]) -> str:
    """The rows for a terminal."""
    lines = [
        f"{result['signals']}: N={result['num_train']} K={result['num_subsets']} "
        f"d={result['degree']} Q={result['num_queries']}",
        f"{'solver':<20}{'ms/query':>10}{'cpu ms':>9}{'ratio':>8}{'gap':>10}{'support':>9}"
        f"{'passes':>8}{'MiB':>7}",
    ]
    for row in result["rows"]:
        passes, cpu = row["passes_over_n"], row["cpu_seconds_per_query"]
        lines.append(
            f"{row['solver']:<20}{1e3 * row['seconds_per_query']:>10.2f}"
            f"{'' if cpu is None else f'{1e3 * cpu:.2f}':>9}"
            f"{row.get('ratio_to_sklearn', float('nan')):>8.3f}{row['max_relative_gap']:>10.1e}"
            f"{row['mean_support']:>9.1f}{'' if passes is None else f'{passes:.1f}':>8}"
            f"{row['peak_bytes'] / 2**20:>7.0f}"
        )
    lines += [f"{name} left out: {why}" for name, why in result["left_out"].items()]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Pose the problem, hold the contest, write the results."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if unknown := sorted(set(_SOLVERS.value) - set(SOLVERS)):
        raise app.UsageError(f"--solvers={','.join(unknown)}: know {', '.join(SOLVERS)}")
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_num_cpu_devices", _CORES.value)
    if _MEASURED.value is None:
        signals = plant(
            _NUM_TRAIN.value, _NUM_SUBSETS.value, _DEGREE.value, _NUM_QUERIES.value,
            _SPARSITY.value, _NOISE.value,
        )  # fmt: skip
    else:
        signals = measured(pathlib.Path(_MEASURED.value), _NUM_QUERIES.value)
    problem = pose(signals, _FRACTION.value, _GAP.value, _CORES.value)
    why = {n: left_out(n, problem, int(_MEMORY.value * 2**30)) for n in _SOLVERS.value}
    names = [n for n in _SOLVERS.value if why[n] is None]
    result = {
        "rows": contest(
            problem, names, _REPEATS.value, dict.fromkeys(_SLOW.value, _MAX_SLOW.value)
        ),
        "left_out": {n: reason for n, reason in why.items() if reason is not None},
        "signals": signals.origin,
        "num_train": len(problem.subsets_Nxd),
        "num_subsets": problem.num_subsets,
        "degree": problem.subsets_Nxd.shape[1],
        "num_queries": len(problem.y_QxK),
        "lambda_fraction": problem.fraction,
        "relative_gap": problem.relative_gap,
        "repeats": _REPEATS.value,
        "cores": problem.cores,
        "process_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "device": str(jax.devices()[0].device_kind),
        "versions": _versions(),
    }
    path = pathlib.Path(_WORKDIR.value) / "recovery.json"
    write_json(path, plain(result))
    print(table(result))
    print(f"written: {path}")


if __name__ == "__main__":
    app.run(main)
