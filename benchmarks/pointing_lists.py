"""Rows about the answers themselves: their lists, their sums, copies that they must find."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from benchmarks.house import Row
from benchmarks.pointing_figures import (
    PUBLISHED,
    Answers,
    Note,
    by_key,
    exactly,
    found,
    hits,
    mean_row,
    open_run,
    sums_agreement,
)
from stride_jax.data import Examples
from stride_jax.run.pipeline import Run
from stride_jax.runtime.progress import bars

_HALF = {"index.precision": "float16"}

# By budget and rounds: what is asked of summed scores, of the top 10 and of the top 50.
_Asked = dict[tuple[int, int], tuple[float | None, float | None, float | None]]
_LARGE: _Asked = {
    (0, 1): (0.88, 0.80, 0.69),
    (1000, 1): (0.94, 0.99, 0.97),
    (1000, 3): (0.94, 0.99, 0.97),
    (5000, 1): (0.98, None, None),
}
_TINY: _Asked = {
    (0, 1): (None, None, None),
    (1000, 1): (0.76, None, None),
    (1000, 3): (0.76, None, None),
    (3000, 1): (0.85, 0.88, None),
    (3000, 3): (0.85, 0.88, None),
}
_NOW: _Asked = {(0, 1): (None, None, None)}


def fashion(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """50,000 images: what indices of three sizes keep of the direct scores.

    Args:
      workdir: folder of the runs.
      note: writes rows down.
      only: text in the names of the indices wanted; all for none.
    """
    run = open_run("fashion_mnist", workdir)
    cases: dict[str, tuple[dict[str, Any], _Asked]] = {
        "K=1000, index of 16 MB": (_HALF | {"index.kept": 7_000_000}, _LARGE),
        "K=100, nothing kept": ({"index.design.num_subsets": 100, "index.kept": 0}, _TINY),
        "hash, K=1000, nothing kept": (PUBLISHED, _NOW),
    }
    true_QxN = Answers(run, cases["K=100, nothing kept"][0]).direct()  # in full precision
    for name, (changes, asked) in cases.items():
        if only not in name:
            continue
        answers = Answers(run, changes)
        note(_sizes(name, answers))
        for (budget, rounds), (sums, ten, fifty) in asked.items():
            scores = answers.scores(exactly(budget, rounds=rounds))
            place = f"FashionMNIST, {name}, {budget} exact" + " in 3 rounds" * (rounds == 3)
            note([
                mean_row(f"{place}: subset sums", sums_agreement(scores, true_QxN), sums),
                mean_row(f"{place}: top 10 found", found(scores, true_QxN, 10), ten),
                mean_row(f"{place}: top 50 found", found(scores, true_QxN, 50), fifty),
            ])  # fmt: skip


def _sizes(name: str, answers: Answers) -> list[Row]:
    """Bytes of an index, and of its operators alone where that is what is asked."""
    asked = 16e6 if name.endswith("16 MB") else None
    place = f"FashionMNIST, {name.removesuffix(', nothing kept')}"
    rows = [Row(f"{place}: bytes", answers.index.nbytes, "lower", asked=asked)]
    if name.startswith("K=100,"):
        operators = sum(own.a_KxRxO.nbytes for own in answers.index.operators.values())
        rows.append(Row(f"{place}: bytes of the operators", operators, "lower", asked=1.1e6))
    return rows


# ── copies ───────────────────────────────────────────────────────────────────────────────────────

ORIGINALS, COPIES, CORPUS = 45, 100, 22_000


class Leaked(Run):
    """A run whose training set holds 100 copies of each of its 45 queries."""

    @functools.cached_property
    def data(self) -> tuple[dict[str, Examples], int]:
        """The splits of the config; copies stand in place of training examples drawn at random."""
        splits, classes = self._load_data()
        train, query = splits["train"], splits["query"].take(slice(ORIGINALS))
        inputs, labels, group_N = train.inputs.copy(), train.labels.copy(), leaked(len(train))
        at = group_N >= 0
        inputs[at], labels[at] = query.inputs[group_N[at]], query.labels[group_N[at]]
        return splits | {"train": Examples(inputs, labels), "query": query}, classes


def leaked(num_train: int) -> np.ndarray:
    """Number of the query that each training example is a copy of, `[N]`; −1 for the others."""
    group_N = np.full(num_train, -1)
    rows = np.random.default_rng(0).permutation(num_train)[: ORIGINALS * COPIES]
    group_N[rows] = np.arange(len(rows)) % ORIGINALS
    return group_N


def copies(workdir: pathlib.Path, note: Note) -> None:
    """Whether a test item that leaked is found: its copies first among all groups, or in ten.

    A group is all that is of one content; its score is the sum of its members'.
    """
    plain = open_run("fashion_mnist", workdir)
    data = dataclasses.replace(plain.settings.data, train=f"train[:{CORPUS}]")
    run = Leaked(dataclasses.replace(plain.settings, data=data), workdir / "copies", bars)
    fewer, place = {"index.design.num_subsets": 300}, "copies, N=22,000, K=300"

    def rows(name: str, scores_QxN: np.ndarray, asked: tuple[float | None, float | None]) -> None:
        group_N, keys = leaked(len(run.train)), run.train.keys
        assert keys is not None, "there are copies"
        sums_QxG, first_G = by_key(scores_QxN, keys)
        own_G = group_N[first_G]
        note([
            mean_row(f"{place}, {name}: hit@1", hits(sums_QxG, own_G, 1), asked[0]),
            mean_row(f"{place}, {name}: hit@10", hits(sums_QxG, own_G, 10), asked[1]),
            mean_row(f"{place}, {name}: hit@10 of single copies", hits(scores_QxN, group_N, 10)),
        ])  # fmt: skip

    answers = Answers(run, fewer)
    rows("default settings", answers.scores(), (0.95, 1.0))
    rows("default settings, no exact", answers.scores(exactly(0)), (0.95, 1.0))
    rows("1000 exact in 3 rounds", answers.scores(exactly(1000, rounds=3)), (0.95, 1.0))
    rows("direct", answers.direct(), (None, None))
    by_hash = Answers(run, fewer | PUBLISHED)
    rows("hash, nothing kept, no exact", by_hash.scores(), (0.95, 1.0))
    rows("hash, nothing kept, 300 exact", by_hash.scores(exactly(300)), (0.95, 1.0))
    others = {
        "nothing kept, no exact": ({"index.kept": 0}, None),
        # As published: every copy is an example of its own.
        "hash, nothing kept, no exact, no keys": (PUBLISHED, run.train.ids),
    }
    for name, (index, keys) in others.items():
        rows(name, Answers(run, fewer | index, keys).scores(exactly(0)), (None, None))


# ── exactness ────────────────────────────────────────────────────────────────────────────────────


def exactness(workdir: pathlib.Path, note: Note) -> None:
    """How far exact scores of all examples are from direct ones, relative to a query's largest."""
    run = open_run("mnist5k", workdir)
    for kind in ("clusters", "hash"):
        for kept in (0, run.settings.index.kept):
            answers = Answers(run, {"index.design.kind": kind, "index.kept": kept})
            true_QxN = answers.direct()
            misses_QxN = np.abs(answers.scores(exactly(len(run.train))) - true_QxN)
            worst = float((misses_QxN.max(axis=1) / np.abs(true_QxN).max(axis=1)).max())
            stored = f"{len(answers.index.kept.get('logit', ()))} kept"
            name = f"MNIST-5k, exact scores of all against direct, {kind}, {stored}"
            note([Row(name, worst, "lower", asked=1e-5)])
