"""Rows that methods choose for tasks: at each setting, by each model, with targets pooled.

Letters of its own: A tasks, R rows of a pool (tasks or targets), S chosen rows.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.contestants import contestants
from benchmarks.methods import Stride
from stride_jax.applications.fusion import fused
from stride_jax.applications.selection import Pool, SelectSettings, choose
from stride_jax.applications.targets import Targets, relative, task_scores
from stride_jax.baselines.encoder import EncoderSettings
from stride_jax.examples import Examples
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import fingerprint, read_arrays, write_arrays
from stride_jax.sequences import token_lists

OF_TEXTS = ("tf-idf", "bm25", "dsir", "encoder")
OPPONENTS = ("rds+", "grad-cos", "logra", "less", *OF_TEXTS)
OPPONENTS_TAPS = ("previous", "final")
"""What opponents by activations read, each alone."""
_SETTINGS = 2
"""Most settings of its own that a method which asks a GPT has here: by both GPTs, and with three
ways to pool its targets, they are twelve."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Rows that a method chose with one of its settings, for each task.

    Attributes:
      method: its name.
      setting: what it was chosen with.
      orders_A: all rows of each task, best first; of rows that act as one there is one.
      budget: S, rows that are chosen.
    """

    method: str
    setting: str
    orders_A: tuple[np.ndarray, ...]
    budget: int

    def rows(self, task: int) -> np.ndarray:
        """Chosen rows of a task, `[S]`, ascending."""
        return np.sort(self.orders_A[task][: self.budget])


def joined(parts: Sequence[Choice], task: int, count: int) -> np.ndarray:
    """Rows of a task that methods choose together by their ranks, `[S]`, ascending.

    Args:
      parts: what each method chose, at its own setting.
      task: which.
      count: N, rows there are.
    """
    scores = np.full((len(parts), count), -np.inf)
    for own_N, part in zip(scores, parts, strict=True):
        order = part.orders_A[task]
        own_N[order] = -np.arange(len(order))
    best = np.argsort(-fused(*scores), kind="stable")
    return np.sort(best[: parts[0].budget])


def choices(
    runs: Mapping[str, Run], targets: Targets, budget: int, encoder: str
) -> Iterator[Choice]:
    """What every method chooses, at each of its settings.

    Args:
      runs: on the same candidates, by the GPT that is asked; the last one stands for all where a
        method asks none.
      targets: of all tasks.
      budget: rows for a task.
      encoder: folder of the sentence encoder.
    """
    *_, last = runs
    for name, run in runs.items():
        for method, setting, scores in _scored(run, targets, encoder, asks_none=name == last):
            for pooled, own in scores.items():
                named = ", ".join(filter(None, (name, pooled, setting)))
                yield Choice(method, named, _orders(run, targets, own), budget)


def _orders(run: Run, targets: Targets, scores_RxN: np.ndarray) -> tuple[np.ndarray, ...]:
    """All rows in the order in which each task chooses them.

    A pool of one row a task is ranked; a row for each target lets them choose in turn.
    """
    every, orders = SelectSettings(len(run.train), pool="turns"), []
    for a in range(len(targets.tasks)):
        own = targets.task_Q == a if len(scores_RxN) == len(targets.task_Q) else [a]
        some_RxN = np.atleast_2d(scores_RxN[own])
        names = tuple(map(str, range(len(some_RxN))))
        nothing = np.full(len(run.train), "")
        pool = Pool(some_RxN, names, run.text.train.sizes_N, run.train.ids, nothing)
        orders.append(np.array([one.row for one in choose(pool, every).chosen]))
    return tuple(orders)


def _scored(
    run: Run, targets: Targets, encoder: str, *, asks_none: bool
) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """Scores of every method at each of its settings, by how targets are pooled; kept on disk."""
    ids = tuple(map(str, range(len(targets.task_Q))))
    own_QxN = task_scores(run, Targets(targets.examples, ids, np.arange(len(ids))), print)[0]
    pooled = _by_task(own_QxN, targets.task_Q)
    pooled["max"] = task_scores(run, targets, print, each=True)[0]
    yield "stride", "", pooled
    yield "stride", "relative", {name: relative(run, own) for name, own in pooled.items()}
    methods = contestants(
        OPPONENTS_TAPS, Stride(), is_text=True, only=OPPONENTS,
        encoder=EncoderSettings(encoder, str(run.text.folder / "tokenizer.json")),
    )  # fmt: skip
    both = run.model, run.train
    for method in methods:
        of_texts = method.name in OF_TEXTS
        if of_texts and not asks_none:
            continue
        for group in method.grid if of_texts else _coarse(method.grid):
            state = None
            for setting in group:
                name = fingerprint(run.products.key("model"), method.name, setting, "targets")
                path = run.workdir / "methods" / f"{name}.npz"
                # DSIR asks what a task is like, not each of its targets.
                joined = method.name == "dsir"
                if not path.exists():
                    print(method.name, setting, flush=True)
                    state = method.fit(*both, group[0]) if state is None else state
                    asked = _joined(targets) if joined else targets.examples
                    write_arrays(path, scores=method.score(state, *both, asked, setting))
                own = read_arrays(path)["scores"]
                yield (
                    method.name,
                    str(setting),
                    {"task": own} if joined else _by_task(own, targets.task_Q),
                )


def _coarse(grid: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Two settings of a method's grid: of its first group, which share a fit, or of its groups."""
    every = list(grid[0]) if len(grid[0]) > 1 else [group[0] for group in grid]
    if len(every) > _SETTINGS:
        places = np.linspace(0, len(every) - 1, 2 * _SETTINGS + 1)[1::2].round().astype(int)
        every = [every[i] for i in places]
    return [every] if len(grid[0]) > 1 else [[setting] for setting in every]


def _by_task(scores_QxN: np.ndarray, task_Q: np.ndarray) -> dict[str, np.ndarray]:
    """The targets of a task as one, their mean or each row at its best target; or all of them."""
    parts = [scores_QxN[task_Q == a] for a in range(int(task_Q.max()) + 1)]
    return {
        "mean": np.stack([own.mean(axis=0) for own in parts]),
        "max": np.stack([own.max(axis=0) for own in parts]),
        "turns": scores_QxN,
    }


def _joined(targets: Targets) -> Examples:
    """The targets of each task as one sequence without padding, which is behind it."""
    lists = [token_lists(targets.of(a), "dsir") for a in range(len(targets.tasks))]
    rows = [np.concatenate(own) for own in lists]
    length = max(map(len, rows))
    filled = lambda v, row: np.pad(row, (0, length - len(row)), constant_values=v)  # noqa: E731
    labels = np.stack([filled(-1, np.zeros_like(row)) for row in rows])
    return Examples(np.stack([filled(0, row) for row in rows]), labels, np.array(targets.tasks))
