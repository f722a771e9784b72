"""Candidates, targets and tests of data selection, from the 61 tasks of Natural Instructions."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks import instructions

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class PoolSettings:
    """How many rows of a task there are for what.

    Attributes:
      candidates: largest number to choose from, of each task.
      targets: known examples of each task that is asked for.
      tests: held-out rows that answers are judged on.
      noise: share of the candidates whose completion is another row's of their task.
      tasks: tasks that are asked for; the first `tuning` of them are for choosing settings.
      tuning: see `tasks`.
      seed: random seed of all draws.
    """

    candidates: int = 160
    targets: int = 10
    tests: int = 40
    noise: float = 0.0
    tasks: int = 20
    tuning: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise={self.noise} is a share of the candidates, in [0, 1)")
        if not 0 < self.tuning < self.tasks:
            raise ValueError(f"tuning={self.tuning} must lie between 0 and tasks={self.tasks}")


def write(source: pathlib.Path, out: pathlib.Path, settings: PoolSettings) -> list[str]:
    """Write `candidates.jsonl`, `targets.jsonl` and `tests.jsonl`.

    Args:
      source: folder of `instructions.write`, whose `base.jsonl` the base model has read.
      out: folder of the files.
      settings: how many rows.

    Returns:
      The tasks that are asked for, those for choosing settings first.
    """
    instructions.write(source)
    rng = np.random.default_rng(settings.seed)
    read = {row["id"] for row in instructions.read_lines(source / "base.jsonl")}
    by_task = {
        name: [row for row in rows if row["id"] not in read]
        for name, rows in sorted(instructions.fitting(source / "tasks.jsonl").items())
    }
    least = settings.targets + settings.tests + settings.candidates // 2
    asked = [name for name, rows in by_task.items() if _is_asked(rows, least)]
    if len(asked) < settings.tasks:
        raise ValueError(
            f"tasks={settings.tasks}, but {len(asked)} have short answers and {least} rows that "
            "fit: ask for fewer tasks or rows"
        )
    chosen = [asked[i] for i in rng.permutation(len(asked))[: settings.tasks]]
    files: dict[str, list[Row]] = {name: [] for name in ("candidates", "targets", "tests")}
    sizes = (settings.targets, settings.tests, settings.candidates)
    for name, rows in by_task.items():
        mixed = [rows[i] for i in rng.permutation(len(rows))]
        ends = np.cumsum(sizes) if name in chosen else [0, 0, settings.candidates]
        files["targets"] += mixed[: ends[0]]
        files["tests"] += mixed[ends[0] : ends[1]]
        files["candidates"] += _spoiled(mixed[ends[1] : ends[2]], settings.noise, rng)
    for name, rows in files.items():
        instructions.write_lines(out / f"{name}.jsonl", rows)
    return chosen


def _is_asked(rows: Sequence[Row], least: int) -> bool:
    """Whether a task has rows enough, short answers, and more than one that is usual."""
    if len(rows) < least or not instructions.is_short(rows):
        return False
    [(_, commonest)] = Counter(row["completion"] for row in rows).most_common(1)
    return commonest <= 0.9 * len(rows)


def _spoiled(rows: Sequence[Row], share: float, rng: np.random.Generator) -> list[Row]:
    """Rows, a share of which has another's completion; `wrong` says which."""
    wrong = rng.permutation(len(rows))[: round(share * len(rows))]
    given = {
        int(i): rows[int(j)]["completion"] for i, j in zip(wrong, np.roll(wrong, 1), strict=True)
    }
    return [
        row | {"completion": given.get(i, row["completion"]), "wrong": str(int(i in given))}
        for i, row in enumerate(rows)
    ]
