"""Is a run's model safe to attribute, and what will its index cost? A table in words.

    stride-jax check --config=configs/mnist5k.py --workdir=runs/quickstart

Trains the model, or restores it from the workdir, and checks it: a few forward passes. Ends with
code 2 where something would make every score meaningless.
"""

from collections.abc import Sequence

from absl import logging

from stride_jax.check import Report, check
from stride_jax.cli.doors import USAGE, Parser, read_settings
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import check_workdir
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.progress import bars
from stride_jax.runtime.screen import json_text, visible


def _parser() -> Parser:
    parser = Parser("check", __doc__, config=True)
    parser.flag("workdir", "Folder of the run's products.", required=True)
    parser.switch("reuse", "Take a folder of other settings; stages that still fit are reused.")
    parser.switch("json", "Print JSON.")
    return parser


def check_run(run: Run) -> Report:
    """The report of a run's calibrated model on its training and calibration split."""
    execution = Execution(run.mesh, memory=run.settings.execution.memory)
    return check(
        run.tapped, run.model.params, run.train, run.settings.index,
        held_out=run.data[0]["calibration"], execution=execution,
    )  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Train or restore the model, check it, print the table."""
    given, changes = _parser().read(words)
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    _, settings = read_settings(given.config, changes)
    workdir = local_folder(given.workdir)
    check_workdir(workdir, settings, given.reuse)
    report = check_run(Run(settings, workdir, bars))
    print(json_text(report.to_dict(), indent=1) if given.json else visible(str(report)))
    return USAGE if report.level == "error" else 0
