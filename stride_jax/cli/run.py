"""Run a config from data to scores and their evaluation.

    stride-jax run --config=configs/mnist5k.py --workdir=runs/quickstart
    stride-jax run --config=configs/bible_gpt.py --workdir=runs/bible --until=operators

Each stage's product is kept in the workdir and reused by the next run. Asked to stop by SIGTERM, a
run saves and exits with code 75; the same command continues it. On several hosts the same command
runs on each with --multihost (stride-jax launch writes it).
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import logging

from stride_jax.cli.closing import table
from stride_jax.cli.doors import USAGE, Parser, at_least, one_line, read_settings
from stride_jax.run import summary
from stride_jax.run.launching.shell import quoted
from stride_jax.run.pipeline import STAGES, Run
from stride_jax.run.room import refuse_too_large
from stride_jax.run.settings import SETTINGS, RunSettings, check_workdir, refuse_foreign
from stride_jax.run.stages import PRODUCTS, through
from stride_jax.runtime.claim import only_run
from stride_jax.runtime.durable import StopRequest
from stride_jax.runtime.folders import can_write, local_folder
from stride_jax.runtime.metrics import MetricsWriter
from stride_jax.runtime.processes import Cluster, connect, leads, wait
from stride_jax.runtime.progress import bars
from stride_jax.runtime.screen import visible

_PROFILED = {
    "operators": "index",
    "measurements": "measurements",
    "recovery": "recovered",
    "bank": "bank",
}
"""Stages that a profile can be written of, and the properties of `Run` that work on them."""


def _parser() -> Parser:
    parser = Parser("run", __doc__, config=True)
    parser.flag("workdir", "Folder of the run's products.", required=True)
    parser.flag("until", "Last stage to run; all by default.", choices=STAGES)
    parser.switch("reuse", "Take a folder of other settings; stages that still fit are reused.")
    parser.switch("multihost", "Join the other processes of this job.")
    parser.flag("coordinator", "With --multihost: host:port of the first process.")
    parser.flag("num_processes", "With --multihost: of the whole job.", type=at_least(1))
    parser.flag("process_id", "With --multihost: this one's.", type=at_least(0))
    parser.flag(
        "profile", "Stage to write a profile of, into <workdir>/profile, if it has not run yet.",
        choices=_PROFILED,
    )  # fmt: skip
    return parser


def main(words: Sequence[str]) -> int:
    """Check everything, run the pipeline, print the table."""
    given, changes = _parser().read(words)
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    cluster = Cluster(given.coordinator, given.num_processes, given.process_id)
    if not given.multihost:
        if cluster != Cluster():
            raise ValueError("--coordinator, --num_processes and --process_id need --multihost")
        return _run(given, changes)
    connect(cluster)  # before settings are read: reading a model to start from starts JAX
    with leaving_others():
        return _run(given, changes)


def _run(given: argparse.Namespace, changes: dict[str, str]) -> int:
    """One process of a run."""
    _, settings = read_settings(given.config, changes)
    if (told := _finished(given, settings)) is not None:
        print(visible(table(told)))
        print(visible(f"nothing was written: this user can't write to {given.workdir}", kept=""))
        return 0
    workdir = local_folder(given.workdir)
    for part in (*PRODUCTS, "bank", "metrics"):
        if (workdir / part).exists():  # refused now, not when the stage has been worked on
            local_folder(workdir / part)
    stop = StopRequest().listen()
    with contextlib.ExitStack() as stack:
        if leads():
            stack.enter_context(only_run(workdir))
        check_workdir(workdir, settings, given.reuse)
        wait("workdir checked")
        report = None
        if leads():
            report = stack.enter_context(MetricsWriter(workdir / "metrics"))
        run = Run(settings, workdir, bars, stop, report)
        if given.profile:
            refuse_too_large(run, through(given.until))
            with jax.profiler.trace(str(workdir / "profile")):
                getattr(run, _PROFILED[given.profile])
        result = summary.write(run, until=given.until)
        if leads():
            show(run, result, given.until)
    return 0


def _finished(given: argparse.Namespace, settings: RunSettings) -> dict[str, Any] | None:
    """The summary of a run that is finished where nothing can be written; None to run it.

    Raises:
      ValueError: the folder is no place for a run, or holds another one or an unfinished one.
    """
    workdir = local_folder(given.workdir, writable=False)
    if can_write(workdir) or not (workdir / SETTINGS).exists():
        return None
    refuse_foreign(workdir, settings)
    told = summary.read(Run(settings, workdir), given.until)
    if told is None:
        raise ValueError(
            f"the run in {workdir} is not finished, and this user can't write to it: change its "
            "permissions, or copy it to another folder and give that one"
        )
    return told


@contextlib.contextmanager
def leaving_others() -> Iterator[None]:
    """End at once on any error: JAX's own way out waits minutes for processes that are stuck."""
    try:
        yield
    except BaseException as error:
        code: Any = 1
        if isinstance(error, SystemExit):
            code = error.code
        elif (line := one_line(error)) is not None:
            print(f"stride-jax run: {visible(line, kept='')}", file=sys.stderr)
            code = USAGE
        else:
            print(visible(traceback.format_exc()), end="", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def show(run: Run, result: dict[str, Any], until: str | None = None) -> None:
    """Print the table, and draw what can be drawn."""
    written = ["summary.json"]
    if until is None or STAGES.index(until) >= STAGES.index("attribution"):
        written.append("attribution.parquet")
        if run.settings.groups:
            written.append("groups.parquet")
        if run.query.inputs.ndim == 4 and run.model.objective.classes:  # images of one label
            from stride_jax.cli import figures

            written.append("proponents.png")
            figures.proponents(run, run.workdir / written[-1])
    print(visible(table(result)))
    print(visible(f"written to {run.workdir}: {', '.join(written)}", kept=""))
    if run.settings.is_text and len(written) > 1:
        print(visible(f"now: stride-jax ask --workdir={quoted(str(run.workdir))} --prompt=…"))
