"""Rows about cost: fit and all queries of default STRIDE against LoGRA, round by round."""

import pathlib
import statistics

import jax

from benchmarks.house import Row
from benchmarks.leaderboard import contest, timings
from benchmarks.methods import Stride, contestants
from benchmarks.pointing_figures import Note, lds_row, open_run

ASKED = {"mnist5k": 1.0, "bible_gpt": 0.25}


def cost(workdir: pathlib.Path, note: Note, rounds: int) -> None:
    """Seconds of fit and all queries without compilation, STRIDE's over LoGRA's.

    LoGRA's settings are chosen on the bank's tuning half; a round before the first compiles and is
    not counted. Nothing else may run meanwhile.

    Args:
      workdir: folder of the runs.
      note: writes rows down.
      rounds: timed ones, interleaved; the interval is from the least ratio to the largest.
    """
    for config, asked in ASKED.items():
        run = open_run(config, workdir)
        halves = run.bank.halves()
        names = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
        methods = contestants(
            sorted(names), Stride.of(run.settings), is_text=run.settings.is_text,
            only=("stride", "logra"),
        )  # fmt: skip
        folder = run.workdir / "methods"
        outcomes = {m.name: contest(m, run, halves, folder, False) for m in methods}
        times = timings(methods, outcomes, run, rounds)
        seconds = {
            name: [fit.seconds + score.seconds for fit, score in own] for name, own in times.items()
        }
        ratios = [a / b for a, b in zip(seconds["stride"], seconds["logra"], strict=True)]
        ends = min(ratios), max(ratios)
        name = f"{config}: fit and queries, seconds"
        note([
            Row(f"{name}, STRIDE over LoGRA", statistics.median(ratios), "lower", ends, asked),
            *(Row(f"{name}, {m}", statistics.median(own), "lower") for m, own in seconds.items()),
            *(
                lds_row(f"{config} LDS, {m}, settings of the cost", own.scores_QxN, halves[1])
                for m, own in outcomes.items()
            ),
        ])  # fmt: skip
