"""What scores are worth where training was stopped early, and what STRIDE does about it.

    python -m benchmarks.stopped_early --config=configs/letters.py --epochs=1,3,8 \\
        --workdir=runs/stopped_early/letters

A board's model and its bank are trained anew for each number of epochs. Direct scores with doubt
and weight decay by the training set (docs/method.md §5.7), with those of a model that has settled,
and of opponents tuned on the bank's first half of subsets; every figure is from the second half.
Rows go to `docs/results/boards.json`.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
from absl import logging

from benchmarks.contestants import contestants
from benchmarks.house import BOARDS, Row, record
from benchmarks.leaderboard import LeaderboardSettings, on_bank_of, tune
from benchmarks.methods import Stride, changed, fit_direct, score_direct
from benchmarks.program import Asked, Program, listed
from stride_jax import evaluation
from stride_jax.operators.closed_form import DOUBT
from stride_jax.operators.fisher import DECAY
from stride_jax.run.pipeline import Run
from stride_jax.runtime.progress import bars


def rows(name: str, run: Run, opponents: Sequence[str]) -> list[Row]:
    """LDS by the rule, without it, and of opponents; what the rule gains, paired over queries."""
    tuning, judging = run.bank.halves()
    base = Stride.of(run.settings)
    as_settled = {"index.closed_form.decay": DECAY, "index.closed_form.doubt": DOUBT}
    scores, by_rule = {}, None
    for label, settings in (("by the rule", base), ("as if settled", changed(base, as_settled))):
        index = fit_direct(run.model, run.train, settings)
        by_rule = by_rule or index.settings.closed_form
        scores[label] = score_direct(index, run.model, run.train, run.query, settings)
    assert by_rule is not None
    assert by_rule.decay is not None
    assert by_rule.doubt is not None
    taps = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
    checkpoints = len(run.model.checkpoints)
    for method in contestants(sorted(taps), base, only=opponents, checkpoints=checkpoints):
        scores[method.name] = tune(method, run.model, run, tuning)[1]
    judged = {label: evaluation.lds(own, judging) for label, own in scores.items()}
    out = [Row(f"{name}: {label}, LDS", s.lds, "higher", s.ci95) for label, s in judged.items()]
    gain, ends = evaluation.lds_difference(judged["by the rule"], judged["as if settled"])
    return [
        *out,
        Row(f"{name}: gained by the rule, LDS", gain, "higher", ends),
        Row(f"{name}: doubt by the rule", by_rule.doubt, "lower"),
        Row(f"{name}: weight decay by the rule", by_rule.decay, "lower"),
    ]


def main(asked: Asked) -> None:
    """Measure, print, write the rows down."""
    flags, board = asked.flags, pathlib.Path(asked.flags.config).stem
    if asked.settings.is_text:
        raise ValueError(f"config={flags.config!r} is of texts: give a board of classes")
    if not flags.epochs or min(flags.epochs) < 1:
        raise ValueError(f"--epochs={flags.epochs}: give numbers of epochs, 1 or more")
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    whole = on_bank_of(LeaderboardSettings(num_subsets=flags.subsets), asked.settings)
    for epochs in flags.epochs:
        train = dataclasses.replace(whole.train, epochs=epochs)
        run = Run(dataclasses.replace(whole, train=train), asked.workdir / str(epochs), bars)
        name = f"stopped early, {board}, {epochs} of {whole.train.epochs} epochs"
        measured = rows(name, run, flags.methods)
        for row in measured:
            print(f"{row.name}: {row.value:.4g} {row.interval or ''}", flush=True)
        record(measured, path=BOARDS)


if __name__ == "__main__":
    program = Program("stopped_early", __doc__, {"leaderboard": LeaderboardSettings})
    program.flag("epochs", "Numbers of epochs.", type=listed(int), default=(1, 3))
    program.flag("subsets", "Subsets of each bank; half tunes.", type=int, default=60)
    program.flag("methods", "Opponents.", type=listed(str), default=("tracin", "ekfac"))
    program.run(main)
