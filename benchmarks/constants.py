"""Whether the closed form's constants hold on a board that had no part in choosing them.

    python -m benchmarks.constants --workdir=runs/leaderboard

Direct scores on every board of classes, for each doubt and each weight decay (`N gamma / E||b||²`,
operators.fisher.DECAY), on both halves of the bank. A doubt is one number for all boards, or a
multiple of what a board's calibration split says (`models.fit_doubt`). Each board is left out in
turn: a choice is that of the best mean LDS on the other boards' first halves, and judged on its
second half, against the whole grid's best of its own first half. Rows go to
`docs/results/boards.json`. Models and banks are those of the leaderboards, made where there are
none.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from benchmarks.house import BOARDS, Row, command, record
from benchmarks.leaderboard import LeaderboardSettings, on_bank_of
from benchmarks.methods import Stride, changed, fit_direct, score_direct
from benchmarks.program import listed
from stride_jax import evaluation
from stride_jax.cli.doors import Parser
from stride_jax.index import Index
from stride_jax.operators.closed_form import DOUBT
from stride_jax.operators.fisher import DECAY
from stride_jax.run import config_file
from stride_jax.run.base_model import doubt_of
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, run_settings
from stride_jax.runtime.progress import bars

_OF_CLASSES = ("parkinsons", "breast_cancer", "mnist5k", "digits_resnet", "spam", "letters")
DOUBTS = (0.0, 0.001, 0.005, 0.02)
RULES = (0.3, 1.0, 3.0)
DECAYS = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
_DEFAULT = DOUBTS.index(DOUBT), DECAYS.index(DECAY)
_BY_RULE = len(DOUBTS) + RULES.index(1.0), DECAYS.index(DECAY)
_ASKED = 0.01


def board_settings(board: str) -> RunSettings:
    """A board's run, with the bank of its contest.

    Raises:
      ValueError: no such config, or one of no contest of classes.
    """
    values = config_file.read_config(f"configs/{board}.py")
    settings = run_settings(values)
    if "leaderboard" not in values or settings.is_text:
        raise ValueError(f"--boards has {board!r}, no board of classes: use some of {_OF_CLASSES}")
    contest = LeaderboardSettings(num_subsets=values["leaderboard"]["num_subsets"])
    return on_bank_of(contest, settings)


def with_decay(index: Index, decay: float) -> Index:
    """An index of the default damping, read at another weight decay."""
    ((site, own),) = index.fisher.items()
    assert own.power is not None, "every board sums an exact or a coupled Fisher"
    scaled = dataclasses.replace(own, power=own.power * decay / DECAY)
    return dataclasses.replace(index, fisher={site: scaled})


def figures(run: Run) -> np.ndarray:
    """LDS of direct scores on both halves, `[half, doubt, decay]`; rules follow numbers."""
    halves = run.bank.halves()
    by_rule = doubt_of(run.model, run.model.params, run.data[0], run.mesh)
    doubts = (*DOUBTS, *(factor * by_rule for factor in RULES))
    out = np.empty((2, len(doubts), len(DECAYS)))
    base = changed(Stride.of(run.settings), {"index.closed_form.damping": None})
    for i, doubt in enumerate(doubts):
        settings = changed(base, {"index.closed_form.doubt": doubt})
        index = fit_direct(run.model, run.train, settings)
        for j, decay in enumerate(DECAYS):
            read = with_decay(index, decay)
            scores = score_direct(read, run.model, run.train, run.query, settings)
            out[:, i, j] = [evaluation.lds(scores, half).lds for half in halves]
    return out


def left_out(
    all_BxHxIxJ: np.ndarray, some: slice = slice(None)
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each board: the choice of the other boards among some doubts, and its own best of all.

    >>> two = np.zeros((2, 2, 1, 3))
    >>> two[0, 0, 0], two[1, 0, 0] = [0.1, 0.3, 0.2], [0.1, 0.2, 0.4]
    >>> left_out(two)
    [((0, 2), (0, 1)), ((0, 1), (0, 2))]
    """
    out = []
    for b in range(len(all_BxHxIxJ)):
        others = np.delete(all_BxHxIxJ[:, 0, some], b, axis=0).mean(axis=0)
        best = [np.unravel_index(v.argmax(), v.shape) for v in (others, all_BxHxIxJ[b, 0])]
        (i, j), own = ((int(i), int(j)) for i, j in best)
        out.append(((i + (some.start or 0), j), own))
    return out


def rows(boards: Sequence[str], all_BxHxIxJ: np.ndarray) -> list[Row]:
    """LDS at the defaults and by the rule, and what the choices of the other boards lose."""
    numbers, rules = slice(0, len(DOUBTS)), slice(len(DOUBTS), None)
    choices = zip(left_out(all_BxHxIxJ, numbers), left_out(all_BxHxIxJ, rules), strict=True)
    out = []
    for board, own, ((number, best), (rule, _)) in zip(boards, all_BxHxIxJ, choices, strict=True):
        top, factor = own[1][best], RULES[rule[0] - len(DOUBTS)]
        out += [
            Row(f"{board}: direct LDS at the defaults", float(own[1][_DEFAULT]), "higher"),
            Row(f"{board}: direct LDS, doubt by the rule", float(own[1][_BY_RULE]), "higher"),
            Row(f"{board}: direct LDS at the grid's best of its tuning half", float(top), "higher"),
            Row(f"{board}: doubt that the other boards choose", DOUBTS[number[0]], "lower"),
            Row(f"{board}: weight decay that the other boards choose", DECAYS[number[1]], "lower"),
            Row(f"{board}: lost by the other boards' choice, LDS",
                float(top - own[1][number]), "lower", asked=_ASKED),
            Row(f"{board}: multiple of the rule's doubt that the other boards choose",
                factor, "lower"),
            Row(f"{board}: lost by the other boards' choice of a rule, LDS",
                float(top - own[1][rule]), "lower", asked=_ASKED),
        ]  # fmt: skip
    return out


def table(boards: Sequence[str], all_BxHxIxJ: np.ndarray) -> str:
    """Tuning halves in Markdown: by weight decay at the default doubt, by doubt at that decay."""
    doubt, decay = _DEFAULT
    doubts = [*(f"doubt {v:g}" for v in DOUBTS), *(f"{v:g} x rule" for v in RULES)]
    heads = [*(f"decay {v:g}" for v in DECAYS), *doubts]
    lines = ["| board | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for board, own in zip(boards, all_BxHxIxJ, strict=True):
        figures = [*own[0, doubt], *own[0, :, decay]]
        lines.append(f"| {board} | " + " | ".join(f"{v:.3f}" for v in figures) + " |")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Measure every board, print the tables, write the rows down."""
    parser = Parser("constants", __doc__)
    parser.prog = "python -m benchmarks.constants"
    parser.flag("workdir", "Folder of the boards' runs.", required=True)
    parser.flag("boards", "Configs of the boards.", type=listed(str), default=_OF_CLASSES)
    parser.flag("out", "Results file.", default=str(BOARDS))
    given, _ = parser.read(words)
    if len(given.boards) < 3:
        raise ValueError(f"--boards={given.boards} leaves fewer than two to choose on: give three")
    logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
    workdir = pathlib.Path(given.workdir)
    runs = {board: Run(board_settings(board), workdir / board, bars) for board in given.boards}
    both = np.stack([figures(run) for run in bars(runs.values(), desc="boards")])
    print(table(given.boards, both))
    measured = rows(given.boards, both)
    for row in measured:
        asked = "" if row.asked is None else f" (asked: {row.asked:g})"
        print(f"{row.name}: {row.value:.4g}{asked}")
    record(measured, path=pathlib.Path(given.out))
    return 0


if __name__ == "__main__":
    command(main, "constants")
