"""Rows about the LDS: on MNIST-5k, and on a small language model against EK-FAC."""

import pathlib

import jax
import numpy as np

from benchmarks.contestants import contestants
from benchmarks.house import Row
from benchmarks.leaderboard import contest
from benchmarks.methods import Stride
from benchmarks.pointing_figures import (
    PUBLISHED,
    Answers,
    Case,
    Note,
    exactly,
    lds_row,
    open_run,
)
from stride_jax import evaluation
from stride_jax.run.pipeline import Run

HALF = {"index.precision": "float16"}
FEWER = {"index.design.num_subsets": 300}
SMALL = HALF | FEWER | {"index.basis.rank": 240, "index.kept": 480_000}
"""An index that stays below 5 MB: K = 300, half precision, 933 of 4,500 examples kept."""

MNIST = (
    Case(HALF | {"index.kept": 240_000}, {
        "K=1000, kept 240 kB, 300 exact": (exactly(300), 0.552),
        "K=1000, kept 240 kB, no exact": (exactly(0), None),
    }),
    Case(HALF | {"index.kept": 490_000}, {
        "K=1000, kept 490 kB, no exact": (exactly(0), 0.548),
    }),
    Case(SMALL, {
        "K=300, index of 5 MB, no exact": (exactly(0), 0.535),
        "K=300, index of 5 MB, 300 exact": (exactly(300), 0.54),
        "K=300, index of 5 MB, 1000 exact": (exactly(1000), 0.55),
    }),
    Case(HALF | FEWER | {"index.kept": 0}, {
        "K=300, nothing kept, no exact": (exactly(0), None),
        "K=300, nothing kept, 300 exact": (exactly(300), None),
        "K=300, nothing kept, 1000 exact": (exactly(1000), None),
    }),
    Case(PUBLISHED, {
        "hash, K=1000, nothing kept, no exact": (exactly(0), None),
        "hash, K=1000, nothing kept, 300 exact": (exactly(300), None),
        "hash, K=1000, nothing kept, 300 exact in 3 rounds": (exactly(300, rounds=3), None),
        "hash, K=1000, nothing kept, 1000 exact": (exactly(1000), None),
        "hash, K=1000, nothing kept, 1000 exact in 3 rounds": (exactly(1000, rounds=3), None),
    }),
    Case(PUBLISHED | FEWER, {
        "hash, K=300, nothing kept, no exact": (exactly(0), None),
        "hash, K=300, nothing kept, 300 exact": (exactly(300), None),
        "hash, K=300, nothing kept, 1000 exact": (exactly(1000), None),
    }),
)  # fmt: skip


def mnist(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """LDS of several indices of MNIST-5k, and of direct scores.

    Args:
      workdir: folder of the runs.
      note: writes rows down.
      only: text that a case's names hold; all cases for none.
    """
    run = open_run("mnist5k", workdir)
    if not only:
        answers = Answers(run)
        rows = {
            "default settings": answers.scores(),
            "default settings, no exact": answers.scores(exactly(0)),
            "direct": answers.direct(),
        }
        note([lds_row(f"MNIST-5k LDS, {name}", own, run.bank) for name, own in rows.items()])
    for case in MNIST:
        if not any(only in name for name in case.reads):
            continue
        answers = Answers(run, case.index)
        note([
            lds_row(f"MNIST-5k LDS, {name}", answers.scores(read), run.bank, asked)
            for name, (read, asked) in case.reads.items()
        ])  # fmt: skip
        if case.index is SMALL:
            size = answers.index.nbytes
            note([Row("MNIST-5k, K=300, index of 5 MB: bytes", size, "lower", asked=5e6)])


# ── a small language model ───────────────────────────────────────────────────────────────────────

SHRINKS = (0.0, 0.95, 0.98, 0.99, 0.995)
_GROUPS = {"index.design.kind": "hash", "index.kept": 0}
_WHOLE = {"read.measure.group": 0}
BIBLE = {
    "whole sequences": (_GROUPS, _WHOLE, 0.47),
    "token groups": (_GROUPS, {}, 0.55),
    "K=300, token groups": (_GROUPS | FEWER, {}, 0.50),
}
"""Changes of the index and of how it is read, and the LDS asked for with 500 exact scores."""


def chosen_shrink(
    answers: Answers, read: dict[str, object], budget: int, half: evaluation.Bank
) -> tuple[float, np.ndarray]:
    """The shrinkage of the best LDS on a half of the bank, and its scores."""
    best: tuple[float, float, np.ndarray] | None = None
    for shrink in SHRINKS:
        scores = answers.scores(read | exactly(budget, shrink=shrink))
        figure = evaluation.lds(scores, half).lds
        print(f"shrink {shrink}: {figure:.4f} on the half that tunes", flush=True)
        if best is None or figure > best[0]:
            best = figure, shrink, scores
    assert best is not None, "there are shrinkages"
    return best[1:]


def bible(workdir: pathlib.Path, note: Note) -> None:
    """LDS of bible_gpt on the scoring half, shrinkage chosen on the other; and against EK-FAC."""
    run = open_run("bible_gpt", workdir)
    tuning, scoring = run.bank.halves()
    groups = None
    answers, made = None, None
    for name, (index, read, asked) in BIBLE.items():
        if answers is None or made != index:
            answers, made = Answers(run, index), index
        plain = answers.scores(read | exactly(0, shrink=0.0))
        note([lds_row(f"bible_gpt LDS, {name}, no exact", plain, scoring)])
        shrink, scores = chosen_shrink(answers, read, 500, tuning)
        note([
            lds_row(f"bible_gpt LDS, {name}, 500 exact", scores, scoring, asked),
            Row(f"bible_gpt, {name}, 500 exact: shrink chosen", shrink, "higher"),
        ])  # fmt: skip
        groups = scores if name == "token groups" else groups
    assert groups is not None, "token groups are among the cases"
    note(_against_ekfac(run, groups, (tuning, scoring)))


def _against_ekfac(
    run: Run, scores_QxN: np.ndarray, halves: tuple[evaluation.Bank, evaluation.Bank]
) -> list[Row]:
    """EK-FAC, tuned on one half, and how far the scores are above it on the other."""
    names = jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1]
    base = Stride.of(run.settings)
    (method,) = contestants(sorted(names), base, is_text=True, only=("ekfac",))
    outcome = contest(method, run, halves, run.workdir / "methods", uncalibrated_too=False)
    theirs = evaluation.lds(outcome.scores_QxN, halves[1])
    ours = evaluation.lds(scores_QxN, halves[1])
    difference, interval = evaluation.lds_difference(ours, theirs)
    return [
        Row("bible_gpt LDS, EK-FAC", theirs.lds, "higher", theirs.ci95),
        Row("bible_gpt LDS, token groups minus EK-FAC", difference, "higher", interval, 0.03),
    ]
