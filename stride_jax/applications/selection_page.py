"""A selection as a page: tasks in place of queries, beside them the rows chosen for each."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stride_jax.applications.report.content import brief
from stride_jax.applications.report.page import page as drawn
from stride_jax.applications.report.texts import columns
from stride_jax.applications.selection import Pool, Selection
from stride_jax.applications.targets import Targets
from stride_jax.run.pipeline import Run

_TARGETS = 5
"""Targets of a task whose text is shown."""


def page(
    run: Run, targets: Targets, pool: Pool, selection: Selection, told: Mapping[str, Any]
) -> str:
    """A selection as a page of HTML.

    Args:
      run: of the candidates.
      targets: what rows were chosen for.
      pool: the candidates with their scores.
      selection: the choice.
      told: the command's report.
    """
    title = f"{told['examples']} of {len(pool.keys_N)} rows chosen"
    return drawn(content(run, targets, pool, selection, told), title)


def content(
    run: Run, targets: Targets, pool: Pool, selection: Selection, told: Mapping[str, Any]
) -> dict[str, Any]:
    """What the page shows: of each task the rows that were chosen for it, best first."""
    text, tokenizer = run.text.train, run.corpus.tokenizer
    rows = np.array(sorted({one.row for one in selection.chosen}), int)
    place = {int(row): i for i, row in enumerate(rows)}
    sizes = dict(zip(*np.unique(pool.keys_N, return_counts=True), strict=True))
    queries, asked = [], []
    for number, task in enumerate(targets.tasks):
        own = [one for one in selection.chosen if one.task == task]
        entries = [[place[one.row], brief(one.score), str(pool.sources_N[one.row])] for one in own]
        count = int((targets.task_Q == number).sum())
        verdict = str(told["verdicts"][task])
        queries.append({
            "id": task, "row": number, "verdict": verdict, "loss": None,
            "worth": {"rows chosen for it": len(own), "its targets": count},
            "histogram": [0.0, 0.0, []], "shares": [], "tokens": {},
            "lists": [sorted(entries, key=lambda entry: -(entry[1] or 0.0))],
        })  # fmt: skip
        asked.append(_said(run, targets, number))
    return {
        "about": _about(run, told),
        "queries": queries,
        "texts": columns(asked, [[] for _ in asked]),
        "examples": {
            "id": [str(run.train.ids[row]) for row in rows],
            "row": rows.tolist(),
            "copies": [int(sizes[pool.keys_N[row]]) for row in rows],
            **columns(
                [text.take(rows[[i]]).texts(tokenizer)[0] for i in range(len(rows))],
                [text.references(int(row)) for row in rows],
            ),
        },
        "suspects": [],
    }


def _said(run: Run, targets: Targets, task: int) -> str:
    """The first targets of a task, a paragraph each."""
    own, shown = targets.of(task), []
    for inputs, labels in zip(own.inputs[:_TARGETS], own.labels[:_TARGETS], strict=True):
        size = len(labels) - int((labels[::-1] >= 0).argmax())
        said = run.corpus.tokenizer.decode([*inputs[1:size], labels[size - 1]])
        shown.append(said.strip())
    rest = len(own) - len(shown)
    return "\n\n".join([*shown, *([f"… and {rest} more"] if rest else [])])


def _about(run: Run, told: Mapping[str, Any]) -> dict[str, Any]:
    notes = [
        ["rows chosen", told["examples"]], ["tokens", told["tokens"]],
        ["of them without a positive score", told["unhelpful"]],
        *([f"better rows left out: {reason}", n] for reason, n in told["passed_over"].items()),
        *([f"from {one['name'] or '(no source)'}", f"{one['examples']} of {one['of']}"]
          for one in told["sources"]),
    ]  # fmt: skip
    return {
        "kind": "text", "methods": ["select"], "classes": False, "objective": "", "unit": "",
        "scores": "by how much the mean loss of the task's targets would rise without the row"
                  + (", relative to the root of its self-influence" if told["relative"] else ""),
        "train": len(run.train), "queries": len(told["tasks"]), "top": 0, "versions": {},
        "summary": {"settings": {n: told[n] for n in ("relative", "each", "words")}},
        "fine": ["found"],
        "words": {"queries": "tasks", "doubt": "tasks in doubt", "help": "Chosen: they help",
                  "hurt": "Chosen although they do not help", "worth": "What was chosen",
                  "answer": "Of this task"},
        "notes": {"figures": notes, "warnings": []},
    }  # fmt: skip
