"""Say which problems of a benchmark leaked into a run's training data, and which were learnt.

    stride-jax audit --workdir=runs/tuned --benchmark=test.jsonl --clean=new.jsonl --out=audit.html

The benchmark has prompts with their answers as completions, or chats, as data of fine-tuning do
(docs/fine_tuning.md); so has --clean, problems like these that can't have leaked: what is seen of
them says how often a clean problem is flagged. Without it the run's own held-out rows are taken.
A name that ends in .json gives JSON; .html a page, and JSON beside it. Stopped, the same command
goes on where it was.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from stride_jax.applications.audit import AuditSettings, judge, null_of
from stride_jax.applications.audit_page import page
from stride_jax.applications.audit_report import report
from stride_jax.applications.replicas import gather, read_problems
from stride_jax.cli.doors import Parser, at_least, out_file
from stride_jax.data.text_examples import TextExamples
from stride_jax.run.opened import open_run
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import write_json, write_text
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.progress import bars
from stride_jax.runtime.screen import visible

_SHOWN = 10
"""Problems that are named on the screen."""


def _parser() -> Parser:
    own = AuditSettings()
    parser = Parser("audit", __doc__)
    parser.flag("workdir", "Folder of a run of text or fine-tuning.", required=True)
    parser.flag("benchmark", "File of the problems and their answers.", required=True)
    parser.flag("out", "File of the report, .html or .json.", required=True)
    parser.flag("clean", "File of problems that can't have leaked.", default="")
    parser.flag("rate", "Share of clean problems that may be flagged.", type=float,
                default=own.rate)  # fmt: skip
    parser.flag("control", "Training rows that are asked as if they were problems.",
                type=at_least(0), default=own.control)  # fmt: skip
    parser.flag("shingle", "Consecutive tokens that are compared as one word.", type=at_least(1),
                default=own.shingle)  # fmt: skip
    return parser


def main(words: Sequence[str]) -> int:
    """Read, gather evidence, judge, report."""
    given, _ = _parser().read(words)
    logging.set_verbosity(logging.WARNING)
    settings = AuditSettings(given.rate, given.shingle, given.control)
    out = out_file(given.out, "out", (".html", ".json"))
    run = open_run(local_folder(given.workdir))
    run.progress = bars
    problems = read_problems(run, given.benchmark)
    clean = _clean(run, given.clean, problems)
    if len(clean) < settings.least_clean:
        raise ValueError(
            f"--clean has {len(clean)} problems, which can't tell a rate of {settings.rate}: give "
            f"at least {settings.least_clean}, or --rate={1 / (len(clean) + 1):.3f} or more"
        )
    said = f"{len(problems)} problems against {len(run.train)} training rows"
    print(visible(said), flush=True)
    evidence, known = (gather(run, own.examples, settings.shingle) for own in (problems, clean))
    null, control = null_of(known, settings), []
    if settings.control:
        rng, count = np.random.default_rng(0), min(settings.control, len(run.train))
        rows = np.sort(rng.choice(len(run.train), count, replace=False))
        own = gather(run, run.text.train.take(rows).examples, settings.shingle)
        control = judge(own, null, settings)
    told = report(
        run, problems, evidence, judge(evidence, null, settings), null, control, settings
    )  # fmt: skip
    if not given.clean:
        told["warnings"].append(
            "clean problems are the run's own held-out rows: the rate of false alarms holds if "
            "the benchmark is like these; give problems like it by --clean"
        )
    write_json(out.with_suffix(".json"), told)
    if out.suffix == ".html":
        write_text(out, page(told))
    print(visible(_said(told, out), kept="\n"))
    return 0


def _clean(run: Run, path: str, problems: TextExamples) -> TextExamples:
    """Problems that are known to be clean.

    Raises:
      ValueError: one of them is a problem of the benchmark.
    """
    if not path:
        return run.text.query
    clean, asked = read_problems(run, path), {row.tobytes() for row in problems.inputs_NxT}
    if both := [i for i, row in enumerate(clean.inputs_NxT) if row.tobytes() in asked]:
        name = clean.origins_of(both[0])[0]["id"]
        raise ValueError(
            f"{len(both)} problems of --clean={path} are problems of the benchmark, such as "
            f"{name!r}: leave them out of one of the two"
        )
    return clean


def _said(told: dict[str, Any], out: pathlib.Path) -> str:
    """The report in a few lines."""
    whole = told["benchmark"]
    lines = [
        f"{whole['flagged']} of {whole['problems']} problems flagged (by chance at most "
        f"{whole['expected_false_alarms']:.1f}): {whole['learnt']} learnt, {whole['present']} "
        "merely present",
        whole["verdict"],
    ]
    for own in told["problems"][:_SHOWN]:
        if own["verdict"] != "clean":
            copies = sum(one["copies"] for one in own["replicas"])
            lines.append(
                f"  {own['verdict']:<8} {own['id'][:50]}: p {own['p']:.3f}, words "
                f"{100 * own['overlap']:.0f} %, effect {own['times']:.0f} x typical, {copies} rows "
                "shown"
            )
    lines += [f"warning: {warning}" for warning in told["warnings"]]
    return "\n".join([*lines, f"written to {out}"])
