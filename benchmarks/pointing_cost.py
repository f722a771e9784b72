"""Rows about cost: fit and all queries of STRIDE against LoGRA, round by round."""

import math
import pathlib
import statistics
from typing import Any

import jax

from benchmarks.contestants import contestants
from benchmarks.house import Row
from benchmarks.leaderboard import LeaderboardSettings, contest, timings
from benchmarks.methods import Method, Stride, changed, fit_stride, score_stride
from benchmarks.pointing_figures import Note, lds_row, open_run

FAST: dict[str, dict[str, Any]] = {
    "mnist5k": {"index.design.num_subsets": 300, "index.basis.rank": 128},
    "bible_gpt": {
        "index.design.degree": 5, "index.output_rank": 128, "read.exact.budget": 0,
        "read.lasso.relative_gap": 0.1,
    },
}  # fmt: skip
"""Cheaper settings, as good as the published ones; chosen on the bank's half that tunes."""

ASKED = {"mnist5k": (1.0, 0.532), "bible_gpt": (0.25, 0.531)}
"""STRIDE's seconds over LoGRA's, and the LDS at that cost."""


def cost(workdir: pathlib.Path, note: Note, rounds: int) -> None:
    """Seconds of fit and all queries without compilation, STRIDE's over LoGRA's.

    STRIDE runs at its default settings and at fast ones. LoGRA's settings are chosen on the bank's
    tuning half; a round before the first compiles and is not counted. Nothing else may run
    meanwhile.

    Args:
      workdir: folder of the runs.
      note: writes rows down.
      rounds: timed ones, interleaved; the interval is from the least ratio to the largest.
    """
    for config, (asked, least) in ASKED.items():
        run = open_run(config, workdir)
        halves = run.bank.halves()
        names = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
        base = Stride.of(run.settings)
        methods = contestants(
            sorted(names), base, is_text=run.settings.is_text, only=("stride", "logra")
        )
        fast = changed(base, FAST[config])
        methods.append(Method("stride-fast", fit_stride, score_stride, [[fast]]))
        folder = run.workdir / "methods"
        outcomes = {m.name: contest(m, run, halves, folder, False) for m in methods}
        every = LeaderboardSettings(repeats=rounds, timed_seconds=math.inf)
        times = timings(methods, outcomes, run, every)
        seconds = {
            name: [fit.seconds + score.seconds for fit, score in own] for name, own in times.items()
        }
        label = f"{config}: fit and queries, seconds"
        rows = [Row(f"{label}, {m}", statistics.median(own), "lower") for m, own in seconds.items()]
        for name, goals in (("stride", (None, None)), ("stride-fast", (asked, least))):
            ratios = [a / b for a, b in zip(seconds[name], seconds["logra"], strict=True)]
            ends = min(ratios), max(ratios)
            median = statistics.median(ratios)
            rows.append(Row(f"{label}, {name} over LoGRA", median, "lower", ends, goals[0]))
        note(rows + [
            lds_row(
                f"{config} LDS, {m}, settings of the cost", own.scores_QxN, halves[1],
                least if m == "stride-fast" else None,
            )
            for m, own in outcomes.items()
        ])  # fmt: skip
