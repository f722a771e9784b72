"""Rows about the answers themselves: their lists, their sums, copies that they must find."""

import dataclasses
import functools
import pathlib

import numpy as np

from benchmarks.house import Row
from benchmarks.pointing_figures import (
    PUBLISHED,
    Answers,
    Note,
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

# By budget: what is asked of summed scores, of the top 10 and of the top 50.
_Asked = dict[int, tuple[float | None, float | None, float | None]]
_LARGE: _Asked = {
    0: (0.88, 0.80, 0.69), 1000: (0.94, 0.99, 0.97), 5000: (0.98, None, None),
}  # fmt: skip
_TINY: _Asked = {
    0: (None, None, None), 1000: (0.76, None, None), 3000: (0.85, 0.88, None),
}  # fmt: skip
_NOW: _Asked = {0: (None, None, None)}


def fashion(workdir: pathlib.Path, note: Note) -> None:
    """50,000 images: what indices of three sizes keep of the direct scores."""
    run = open_run("fashion_mnist", workdir)

    def case(name: str, answers: Answers, asked: _Asked, true_QxN: np.ndarray) -> None:
        for budget, (sums, ten, fifty) in asked.items():
            scores = answers.scores(exactly(budget))
            place = f"FashionMNIST, {name}, {budget} exact"
            note([
                mean_row(f"{place}: subset sums", sums_agreement(scores, true_QxN), sums),
                mean_row(f"{place}: top 10 found", found(scores, true_QxN, 10), ten),
                mean_row(f"{place}: top 50 found", found(scores, true_QxN, 50), fifty),
            ])  # fmt: skip

    large = Answers(run, _HALF | {"index.kept": 7_000_000})
    true_QxN = large.direct()
    size = large.index.nbytes
    note([Row("FashionMNIST, K=1000, index of 16 MB: bytes", size, "lower", asked=16e6)])
    case("K=1000, index of 16 MB", large, _LARGE, true_QxN)
    tiny = Answers(run, {"index.design.num_subsets": 100, "index.kept": 0})
    operators = sum(own.a_KxRxO.nbytes for own in tiny.index.operators.values())
    note([
        Row("FashionMNIST, K=100: bytes of the operators", operators, "lower", asked=1.1e6),
        Row("FashionMNIST, K=100: bytes", tiny.index.nbytes, "lower"),
    ])  # fmt: skip
    case("K=100, nothing kept", tiny, _TINY, true_QxN)
    case("hash, K=1000, nothing kept", Answers(run, PUBLISHED), _NOW, true_QxN)


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
    """Whether a test item that leaked is found: one of its copies first, or among ten."""
    plain = open_run("fashion_mnist", workdir)
    data = dataclasses.replace(plain.settings.data, train=f"train[:{CORPUS}]")
    run = Leaked(dataclasses.replace(plain.settings, data=data), workdir / "copies", bars)
    group_N, fewer = leaked(len(run.train)), {"index.design.num_subsets": 300}
    cases = {
        "default settings": (fewer, {}, True),
        "default settings, no exact": (fewer, exactly(0), True),
        "nothing kept, no exact": (fewer | {"index.kept": 0}, exactly(0), True),
        "hash, nothing kept, no exact": (fewer | PUBLISHED, {}, True),
        "hash, nothing kept, no exact, no keys": (fewer | PUBLISHED, {}, False),
    }
    for name, (index, read, keyed) in cases.items():
        if not keyed:  # as published: every copy is an example of its own
            alone = dataclasses.replace(run.train, keys=run.train.ids)
            run.data = {**run.data[0], "train": alone}, run.data[1]
        scores = Answers(run, index).scores(read)
        asked = (0.95, 1.0) if name.startswith("default") else (None, None)
        place = f"copies, N=22,000, K=300, {name}"
        note([
            mean_row(f"{place}: hit@1", hits(scores, group_N, 1), asked[0]),
            mean_row(f"{place}: hit@10", hits(scores, group_N, 10), asked[1]),
        ])  # fmt: skip


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
