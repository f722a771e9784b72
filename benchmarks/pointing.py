"""Whether answers point: LDS, removal, lists, copies, the unit, exactness, cost, each as rows.

    python -m benchmarks.pointing mnist --workdir=runs/pointing
    python -m benchmarks.pointing unit --workdir=runs/pointing --configs=mnist5k,breast_cancer
    python -m benchmarks.pointing cost --workdir=runs/pointing --rounds=6

Rows go to `docs/results/pointing.json`. A run's model and bank are made in the workdir's folder of
the config's name (runs/pointing/mnist5k), or reused. `cost` wants the machine for itself; `fashion`
and `copies` want `make data`. "Exact" in a row's name counts examples scored exactly per query.
"""

import pathlib
from collections.abc import Callable, Sequence

from absl import logging

from benchmarks.house import ROOT, Row, command, record
from benchmarks.pointing_boards import bible, mnist
from benchmarks.pointing_cost import cost
from benchmarks.pointing_effects import UNITS, removal, unit
from benchmarks.pointing_figures import Note
from benchmarks.pointing_lists import copies, exactness, fashion
from benchmarks.program import listed
from stride_jax.cli.doors import Parser, at_least

POINTING = ROOT / "docs/results/pointing.json"

SOME: dict[str, Callable[[pathlib.Path, Note, str], None]] = {"mnist": mnist, "fashion": fashion}
WHAT: dict[str, Callable[[pathlib.Path, Note], None]] = {
    "removal": removal,
    "bible": bible,
    "copies": copies,
    "exactness": exactness,
}


def main(words: Sequence[str]) -> int:
    """Measure, print each row, and write it down."""
    parser = Parser("pointing", __doc__)
    parser.prog = "python -m benchmarks.pointing"
    choices = (*SOME, *WHAT, "unit", "cost")
    parser.usage = f"{parser.prog} {'|'.join(choices)} --flag=value …"
    parser.add_argument("what", choices=choices)
    parser.flag("workdir", "Folder of the runs.", required=True)
    parser.flag("out", "Results file.", default=str(POINTING))
    parser.flag("only", "mnist, fashion: text in the names of the cases wanted.", default="")
    parser.flag("configs", "unit: configs.", type=listed(str), default=tuple(UNITS))
    parser.flag("rounds", "cost: timed rounds.", type=at_least(1), default=6)
    given, _ = parser.read(words)
    if unknown := set(given.configs) - set(UNITS):
        raise ValueError(f"--configs has {min(unknown)!r}: use some of {', '.join(UNITS)}")
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    workdir = pathlib.Path(given.workdir)

    def note(rows: list[Row]) -> None:
        for row in rows:
            asked = "" if row.asked is None else f" (asked: {row.asked:g})"
            print(f"{row.name}: {row.value:.4g}{asked}", flush=True)
        record(rows, path=pathlib.Path(given.out))

    if given.what == "unit":
        unit(workdir, note, given.configs)
    elif given.what in SOME:
        SOME[given.what](workdir, note, given.only)
    elif given.what == "cost":
        cost(workdir, note, given.rounds)
    else:
        WHAT[given.what](workdir, note)
    return 0


if __name__ == "__main__":
    command(main, "pointing")
