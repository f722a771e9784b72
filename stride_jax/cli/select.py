"""Choose the training rows that help some target examples most, and export them.

    stride-jax select --workdir=runs/tuned --targets=dev.jsonl --by=task --examples=1000 \\
        --out=chosen.jsonl

The run is one of fine-tuning (`docs/fine_tuning.md`) that has its operators. Targets are prompts
with completions, or chats; without --targets the run's own queries. Rows are written as they were
given, each with its `rank`, its `score` and `task_chosen_for`; a name that ends in .parquet gives
Parquet. What was chosen from where stands in a JSON file beside it. Stopped, the same command goes
on with the next task.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from stride_jax.applications.fusion import fused
from stride_jax.applications.selection import (
    POOLS,
    Pool,
    Selection,
    SelectSettings,
    choose,
    table,
)
from stride_jax.applications.selection_page import page
from stride_jax.applications.targets import likeness, relative, targets_of, task_scores
from stride_jax.cli.doors import PAGES, Parser, at_least, out_file
from stride_jax.data.dialogues import as_row, read_dialogues
from stride_jax.run.opened import open_run
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import atomic_path, write_json, write_text
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.screen import visible


def _parser() -> Parser:
    own = SelectSettings()
    parser = Parser("select", __doc__)
    parser.flag("workdir", "Folder of a run of fine-tuning.", required=True)
    parser.flag("out", "File of the chosen rows, .jsonl or .parquet.", required=True)
    parser.flag("html", "File of a page that shows the choice, task by task.")
    parser.flag("targets", "File of the target examples; the run's queries without it.", default="")
    parser.flag("by", "Column of the targets that names their task.", default="")
    parser.flag("examples", "Number of rows; 0 for no bound.", type=at_least(0),
                default=own.examples)  # fmt: skip
    parser.flag("tokens", "Tokens of all rows; 0 for no bound.", type=at_least(0),
                default=own.tokens)  # fmt: skip
    parser.flag("pool", "What a row is worth to several tasks.", choices=POOLS, default=own.pool)
    parser.flag("source", "Column of the rows that names their source.", default="")
    parser.flag("cap", "Largest share of the rows that a source may have.", type=float,
                default=own.cap)  # fmt: skip
    parser.switch("relative", "Divide scores by the root of a row's self-influence: none is chosen "
                  "for its size.")  # fmt: skip
    parser.switch("each", "Take a row by the target that it does most for, in place of their mean.")
    parser.switch("words", "Rank rows by their scores and by the likeness of their words (TF-IDF) "
                  "together.")  # fmt: skip
    parser.switch("copies", "Rows that act as one may all be chosen.")
    return parser


def pool_of(run: Run, scores_AxN: np.ndarray, tasks: tuple[str, ...], source: str) -> Pool:
    """A run's training rows as what there is to choose from."""
    text, train = run.text.train, run.train
    sources_N = text.origins(source) if source else np.full(len(train), "")
    keys_N = train.ids if train.keys is None else train.keys
    return Pool(scores_AxN, tasks, text.sizes_N, keys_N, sources_N)


def rows_of(run: Run, selection: Selection) -> list[dict[str, Any]]:
    """The chosen rows as they were given, each with its rank, score and task.

    Raises:
      ValueError: the file of the rows is not there any more, or another one.
    """
    tuning = run.settings.tuning
    assert tuning is not None, "only runs of fine-tuning are chosen from"
    given = {one.source.id: one for one in read_dialogues(tuning.path, tuning.columns)}
    names = run.text.train.origins("document").tolist()
    rows = []
    for rank, one in enumerate(selection.chosen, start=1):
        if (name := names[one.row]) not in given:
            raise ValueError(
                f"{tuning.path} has no row {name!r} any more: put back the file that the run in "
                f"{run.workdir} was made with"
            )
        row = as_row(given[name], tuning.columns)
        rows.append(row | {"rank": rank, "score": one.score, "task_chosen_for": one.task})
    return rows


def write_rows(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines, or as Parquet by the name's ending."""
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), temporary)
            return
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        temporary.write_text("".join(lines), encoding="utf-8")


def main(words: Sequence[str]) -> int:
    """Score, choose, export, say what was chosen from where."""
    given, _ = _parser().read(words)
    logging.set_verbosity(logging.WARNING)
    settings = SelectSettings(given.examples, given.tokens, given.pool, given.cap, given.copies)
    out = out_file(given.out, "out", (".jsonl", ".parquet"))
    html = None if given.html is None else out_file(given.html, "html", PAGES)
    if settings.cap < 1 and not given.source:
        raise ValueError(f"--cap={given.cap} bounds sources: name their column by --source")
    run = open_run(local_folder(given.workdir))
    if run.settings.tuning is None:
        raise ValueError(
            f"the run in {given.workdir} is not of fine-tuning, so it has no rows to choose from: "
            "make one from a file of prompts and completions (docs/fine_tuning.md)"
        )
    targets = targets_of(run, given.targets, given.by)
    say = lambda line: print(visible(line), flush=True)  # noqa: E731
    scores_AxN, verdicts = task_scores(run, targets, say, each=given.each)
    if given.relative:
        scores_AxN = relative(run, scores_AxN)
    pool = pool_of(run, scores_AxN, targets.tasks, given.source)
    if given.words:
        alike_AxN = likeness(run, targets, each=given.each)
        pool = pool._replace(ranks_AxN=fused(scores_AxN, alike_AxN))
    selection = choose(pool, settings)
    write_rows(out, rows_of(run, selection))
    told = table(selection, pool) | {
        "relative": given.relative, "each": given.each, "words": given.words,
        "verdicts": dict(zip(targets.tasks, verdicts, strict=True)),
    }  # fmt: skip
    write_json(out.with_suffix(".report.json"), told)
    if html is not None:
        write_text(html, page(run, targets, pool, selection, told))
    print(visible(_said(told, len(pool.keys_N), out), kept="\n"))
    return 0


def _said(told: dict[str, Any], count: int, out: pathlib.Path) -> str:
    """The report in a few lines."""
    lines = [f"{told['examples']} of {count} rows, {told['tokens']} tokens, written to {out}"]
    for name in ("sources", "tasks"):
        if len(told[name]) > 1:
            parts = [f"{own['name'] or '(none)'} {own['examples']}" for own in told[name][:8]]
            lines.append(f"{name}: {', '.join(parts)}")
    if told["passed_over"]:
        parts = [f"{count} {reason}" for reason, count in told["passed_over"].items()]
        lines.append(f"better rows left out: {', '.join(parts)}")
    if told["unhelpful"]:
        lines.append(f"{told['unhelpful']} of them have no positive score: fewer rows help")
    doubts = [task for task, verdict in told["verdicts"].items() if verdict != "found"]
    if doubts:
        lines.append(f"not surely found for {', '.join(doubts[:5])}: raise read.exact.budget")
    return "\n".join(lines)
