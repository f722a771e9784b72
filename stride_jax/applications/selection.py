"""Which training rows to keep for some tasks: ranked by what they do for them, and bounded.

Letter of its own: A tasks.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

POOLS = ("max", "mean", "turns")


@dataclasses.dataclass(frozen=True)
class SelectSettings:
    """How many rows are chosen, and which.

    Attributes:
      examples: largest number of rows; 0 for as many as the tokens allow.
      tokens: largest number of tokens of all of them; 0 for as many as the examples allow.
      pool: what a row is worth to several tasks: `max`, its score for the task that it helps most
        (as LESS has it); `mean`; or `turns`, in which tasks choose in turn, each its best one left.
      cap: largest share of the rows that one source may have, in (0, 1].
      copies: whether more than one of the rows that act as one (equal keys) may be chosen.
    """

    examples: int = 1000
    tokens: int = 0
    pool: str = "max"
    cap: float = 1.0
    copies: bool = False

    def __post_init__(self) -> None:
        if min(self.examples, self.tokens) < 0 or not (self.examples or self.tokens):
            raise ValueError(
                f"examples={self.examples}, tokens={self.tokens}: give one of them, at least 1"
            )
        if self.pool not in POOLS:
            raise ValueError(f"pool={self.pool!r} must be one of {', '.join(POOLS)}")
        if not 0 < self.cap <= 1:
            raise ValueError(f"cap={self.cap} is the share of a source, in (0, 1]")
        if self.cap < 1 and not self.examples:
            raise ValueError("cap is a share of the examples: give their number too")


class Pool(NamedTuple):
    """What there is to choose from.

    Attributes:
      scores_AxN: score of each row for each task, nats; positive = its tasks' losses fall by it.
      tasks: names of the tasks.
      sizes_N: tokens of each row.
      keys_N: key of each row; rows of one key act as one.
      sources_N: source of each row, strings; "" where none is known.
      ranks_AxN: what rows are ranked by in place of their scores, the larger the better, as
        `fusion.fused` joins several methods; None for the scores.
    """

    scores_AxN: np.ndarray
    tasks: tuple[str, ...]
    sizes_N: np.ndarray
    keys_N: np.ndarray
    sources_N: np.ndarray
    ranks_AxN: np.ndarray | None = None


class Chosen(NamedTuple):
    """One row that was chosen.

    Attributes:
      row: its number.
      score: what it is worth, by the pool's rule and scores, whatever rows are ranked by.
      task: the task that it was chosen for: the one that it helps most, or whose turn it was.
    """

    row: int
    score: float
    task: str


@dataclasses.dataclass(frozen=True)
class Selection:
    """Rows that were chosen, strongest first (of `turns`, in the order of the turns).

    Attributes:
      chosen: the rows.
      tokens: of all of them.
      passed_over: how many better rows were left out, by reason: `copy`, `source`, `size`.
      unhelpful: how many of the chosen have no positive score: fewer rows help than are asked for.
    """

    chosen: tuple[Chosen, ...]
    tokens: int
    passed_over: dict[str, int]
    unhelpful: int


def choose(pool: Pool, settings: SelectSettings) -> Selection:
    """Take rows in order of their worth while the budget lasts.

    Args:
      pool: rows, and their scores.
      settings: budget and bounds.

    Raises:
      ValueError: nothing to choose from.

    >>> rows = np.array(["a", "b", "c"])
    >>> pool = Pool(np.array([[1.0, 3.0, 2.0]]), ("t",), np.ones(3, int), rows, rows)
    >>> [one.row for one in choose(pool, SelectSettings(examples=2)).chosen]
    [1, 2]
    """
    if not pool.scores_AxN.size:
        raise ValueError("no rows to choose from, or no task to choose for")
    most = settings.examples or len(pool.sizes_N)
    of_source = max(1, int(settings.cap * most))
    chosen: list[Chosen] = []
    taken: set[int] = set()
    keys: set[str] = set()
    sources: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    tokens = 0
    for one in _ordered(pool, settings.pool):
        if len(chosen) == most or (settings.tokens and tokens == settings.tokens):
            break
        if one.row in taken:
            continue
        size, key = int(pool.sizes_N[one.row]), str(pool.keys_N[one.row])
        source = str(pool.sources_N[one.row])
        taken.add(one.row)
        if not settings.copies and key in keys:
            passed["copy"] += 1
        elif sources[source] >= of_source and settings.cap < 1:
            passed["source"] += 1
        elif settings.tokens and tokens + size > settings.tokens:
            passed["size"] += 1
        else:
            chosen.append(one)
            keys.add(key)
            sources[source] += 1
            tokens += size
    unhelpful = sum(one.score <= 0 for one in chosen)
    return Selection(tuple(chosen), tokens, dict(passed), unhelpful)


def _ordered(pool: Pool, rule: str) -> Iterator[Chosen]:
    """Rows in the order in which they are offered; of `turns` some come several times."""
    scores_AxN, tasks = pool.scores_AxN, pool.tasks
    ranks_AxN = scores_AxN if pool.ranks_AxN is None else pool.ranks_AxN
    if rule == "turns":
        orders = [np.argsort(-own_N, kind="stable").tolist() for own_N in ranks_AxN]
        yield from _turns(orders, scores_AxN, tasks)
        return
    best_N = ranks_AxN.argmax(axis=0)
    if rule == "max":
        worth_N, score_N = ranks_AxN.max(axis=0), scores_AxN[best_N, np.arange(len(best_N))]
    else:
        worth_N, score_N = ranks_AxN.mean(axis=0), scores_AxN.mean(axis=0)
    for row in np.argsort(-worth_N, kind="stable").tolist():
        yield Chosen(row, float(score_N[row]), tasks[best_N[row]])


def _turns(
    orders: Sequence[list[int]], scores_AxN: np.ndarray, tasks: Sequence[str]
) -> Iterator[Chosen]:
    """Tasks offer their best row in turn, each the next that no task has offered before."""
    offered: set[int] = set()
    rest = [iter(order) for order in orders]
    for a in itertools.cycle(range(len(orders))):
        if len(offered) == scores_AxN.shape[1]:
            return
        row = next((i for i in rest[a] if i not in offered), None)
        if row is not None:
            offered.add(row)
            yield Chosen(row, float(scores_AxN[a, row]), tasks[a])


def table(selection: Selection, pool: Pool) -> dict[str, object]:
    """What was chosen from where, as JSON values.

    Returns:
      `examples`, `tokens`, `unhelpful`, `passed_over`; and `sources` and `tasks`, rows of `name`,
      `examples`, `tokens` and, of sources, `of`, how many there were to choose from.
    """
    there = Counter(pool.sources_N.tolist())
    parts = {}
    for name, label in (
        ("sources", lambda one: str(pool.sources_N[one.row])),
        ("tasks", lambda one: one.task),
    ):
        counts: Counter[str] = Counter()
        sizes: Counter[str] = Counter()
        for one in selection.chosen:
            counts[label(one)] += 1
            sizes[label(one)] += int(pool.sizes_N[one.row])
        parts[name] = [
            {"name": own, "examples": count, "tokens": sizes[own]}
            | ({"of": there[own]} if name == "sources" else {})
            for own, count in counts.most_common()
        ]
    return {
        "examples": len(selection.chosen),
        "tokens": selection.tokens,
        "unhelpful": selection.unhelpful,
        "passed_over": selection.passed_over,
        **parts,
    }
