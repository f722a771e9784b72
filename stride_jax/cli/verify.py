"""Check every file of a finished run against its digests, or two runs against each other.

    stride-jax verify --workdir=runs/quickstart
    stride-jax verify --workdir=runs/quickstart --redo
    stride-jax verify --workdir=runs/here --against=runs/there --tolerance=1e-5

The exit code is 2 where something is wrong. --redo renames bad products, so that the next
`stride-jax run` of the folder makes these stages again, and nothing else.
"""

from collections.abc import Sequence

from absl import logging

from stride_jax.check import Report
from stride_jax.cli.doors import USAGE, Parser
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import read_run_settings
from stride_jax.run.stages import PRODUCTS
from stride_jax.run.verify import compare, set_aside, verify
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.screen import json_text, visible


def _parser() -> Parser:
    parser = Parser("verify", __doc__)
    parser.flag("workdir", "Folder of the run.", required=True)
    parser.flag("against", "Folder of another run of the same config.", default="")
    parser.flag("tolerance", "Largest difference of two runs, over an array's largest value.",
                type=float, default=1e-5)  # fmt: skip
    parser.switch("redo", "Rename bad products, so that the next run makes them again.")
    parser.switch("json", "JSON in place of words.")
    return parser


def main(words: Sequence[str]) -> int:
    """Read everything, say what is wrong."""
    given, _ = _parser().read(words)
    logging.set_verbosity(logging.WARNING)
    if given.redo and given.against:
        raise ValueError("--redo and --against do not go together: which of the two would be bad?")
    run = _opened(given.workdir)
    if given.against:
        report = Report(tuple(compare(run, _opened(given.against), given.tolerance)))
    else:
        report = Report(tuple(verify(run)))
    print(json_text(report.to_dict(), indent=1) if given.json else visible(str(report)))
    bad = [one.name for one in report.findings if one.level == "error"]
    if given.redo:
        for stage in bad:
            paths = set_aside(run, stage) if stage in PRODUCTS else []
            for path in paths:
                print(visible(f"{stage}: set aside as {path}", kept=""))
            if not paths:
                print(visible(f"{stage}: nothing was renamed; see its remedy above"))
    return USAGE if bad else 0


def _opened(workdir: str) -> Run:
    folder = local_folder(workdir, writable=False)
    return Run(read_run_settings(folder), folder)
