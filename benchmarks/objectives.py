"""Operators, groups and labels as tools of their own: each figure a row.

    python -m benchmarks.objectives steer --workdir=runs/objectives
    python -m benchmarks.objectives groups --workdir=runs/objectives --only=mnist5k
    python -m benchmarks.objectives books --workdir=runs/objectives
    python -m benchmarks.objectives questions --workdir=runs/pointing
    python -m benchmarks.objectives mislabels --workdir=runs/objectives
    python -m benchmarks.objectives regression --workdir=runs/objectives
    python -m benchmarks.objectives multilabel --workdir=runs/objectives

Rows go to `docs/results/objectives.json`. A run's model is made in the workdir's folder of the
config's name (runs/objectives/mnist5k), or reused; so are the models trained for comparison.
"""

import pathlib
from collections.abc import Callable, Sequence

from absl import logging

from benchmarks.house import ROOT, Row, command, record
from benchmarks.objectives_books import without_books
from benchmarks.objectives_labels import mislabels
from benchmarks.objectives_questions import questions
from benchmarks.objectives_regression import multilabel, regression
from benchmarks.objectives_steer import steering, without_groups
from benchmarks.pointing_figures import Note
from stride_jax.cli.doors import Parser

OBJECTIVES = ROOT / "docs/results/objectives.json"

WHAT: dict[str, Callable[[pathlib.Path, Note, str], None]] = {
    "steer": steering,
    "groups": without_groups,
    "books": without_books,
    "questions": questions,
    "mislabels": mislabels,
    "regression": regression,
    "multilabel": multilabel,
}
"""Subcommands: `(workdir, note, only)`; `only` is text in the names of the cases wanted."""


def main(words: Sequence[str]) -> int:
    """Measure, print each row, and write it down."""
    parser = Parser("objectives", __doc__)
    parser.prog = "python -m benchmarks.objectives"
    parser.usage = f"{parser.prog} {'|'.join(WHAT)} --flag=value …"
    parser.add_argument("what", choices=tuple(WHAT))
    parser.flag("workdir", "Folder of the runs.", required=True)
    parser.flag("out", "Results file.", default=str(OBJECTIVES))
    parser.flag("only", "Text in the names of the cases wanted; all for none.", default="")
    given, _ = parser.read(words)
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save

    def note(rows: list[Row]) -> None:
        for row in rows:
            value = "none" if row.value is None else f"{row.value:.4g}"
            bounds = "" if row.interval is None else " [{:.3g}, {:.3g}]".format(*row.interval)
            asked = "" if row.asked is None else f" (asked: {row.asked:g})"
            print(f"{row.name}: {value}{bounds}{asked}", flush=True)
        record(rows, path=pathlib.Path(given.out))

    WHAT[given.what](pathlib.Path(given.workdir), note, given.only)
    return 0


if __name__ == "__main__":
    command(main, "objectives")
