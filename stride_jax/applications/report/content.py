"""What a report shows, as JSON values: queries, their examples, and what the answers are worth."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stride_jax.applications.inquiry import Inquiry, attribution
from stride_jax.applications.report.examples import Shown, shown
from stride_jax.applications.report.queries import Queries, of_questions, of_run
from stride_jax.applications.report.tokens import agreements
from stride_jax.attribution import Attribution, versions
from stride_jax.data.source import column_names
from stride_jax.ids import rows_of
from stride_jax.reading import VERDICTS
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import plain, read_json
from stride_jax.runtime.metrics import losses
from stride_jax.scores import extent, row_scores
from stride_jax.self_influence import self_influence
from stride_jax.unit import words

_BINS = 40
_POINTS = 300
"""Points of a curve."""

_RANKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Ranks at which the share of all influence is told."""


Entry = tuple[int, float, str]
"""A training row, its score, and where that came from."""


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """The size of a report.

    Attributes:
      top: proponents, and as many opponents, of each query.
      queries: most queries; evenly spaced ones where the run has more.
      tokens: proponents, and as many opponents, of which each token's share is told.
      suspects: examples on the page of suspected labels.
    """

    top: int = 10
    queries: int = 1000
    tokens: int = 3
    suspects: int = 50


def content(
    run: Run, others: Mapping[str, Attribution] = {}, settings: ReportSettings = ReportSettings()
) -> dict[str, Any]:
    """All that the page of a run shows.

    Args:
      run: a finished run.
      others: attributions of the same queries by other runs or methods, by the name to show.
      settings: how much of it.

    Raises:
      ValueError: another attribution has none of the run's queries, or examples that the run has
        not.
    """
    count = len(run.query)
    row_S = _spaced(count, settings.queries)
    methods = {"stride": run.attribution(), **others}
    return _content(run, methods, of_run(run, row_S), settings)


def questions(
    run: Run, inquiries: Sequence[Inquiry], settings: ReportSettings = ReportSettings()
) -> dict[str, Any]:
    """What the page shows of questions that were put to a run; the last of equal ones.

    Args:
      run: a run with its model and operators.
      inquiries: what was read of each; none for a page without queries.
      settings: how much of it.
    """
    own = list({str(one.ids[0]): one for one in inquiries}.values())
    methods = {"stride": attribution(run, own)} if own else {}
    return _content(run, methods, of_questions(run, own), dataclasses.replace(settings, suspects=0))


def _content(
    run: Run, methods: Mapping[str, Attribution], queries: Queries, settings: ReportSettings
) -> dict[str, Any]:
    lists = {name: _lists(run, own, queries.ids, settings.top, name) for name, own in
             methods.items()}  # fmt: skip
    suspects = _suspects(run, settings.suspects)
    wanted = [train for own in lists.values() for one in own for train, *_ in one]
    rows = np.unique([*wanted, *(row for row, *_ in suspects)]).astype(int)
    examples = shown(run, rows, queries)
    place = {int(row): i for i, row in enumerate(examples.rows)}
    own, strongest = methods.get("stride"), lists.get("stride", [])
    tokens = agreements(run, queries.asked, strongest, settings.tokens)
    at = {} if own is None else rows_of(own.query_ids, queries.ids)
    return {
        "about": _about(run, list(methods), settings),
        "examples": examples.columns | {"copies": _copies(run, examples)},
        "queries": [
            {"id": name, "row": int(queries.row_S[s])}
            | ({} if own is None else _worth(own, at[name]))
            | queries.told[s]
            | {"lists": [_placed(one[s], place) for one in lists.values()], "tokens": tokens[s]}
            for s, name in enumerate(queries.ids)
        ],
        "texts": examples.queries,
        "documents": examples.documents,
        "suspects": [[place[row], *rest] for row, *rest in suspects],
    }


def _lists(
    run: Run, own: Attribution, ids: Sequence[str], top: int, name: str
) -> list[list[Entry]]:
    """Each query's strongest examples by their rows in the run, largest score first.

    Raises:
      ValueError: no query in common, or examples that the run has not.
    """
    at = rows_of(own.query_ids, ids)
    if not at:
        raise ValueError(
            f"{name} has none of this run's queries: compare attributions of the same queries"
        )
    table = own.top(top)
    trains = [str(i) for i in table["train_id"]]
    known = rows_of(run.train.ids, sorted(set(trains)))
    if missing := [i for i in trains if i not in known]:
        raise ValueError(
            f"{name} names {missing[0]!r}, which is no training example of this run: compare runs "
            "of the same data"
        )
    sources = table["found_by"] if "found_by" in table else [""] * len(trains)
    by_query: dict[int, list[Entry]] = {}
    columns = (table["query_row"].tolist(), trains, table["score"].tolist(), list(sources))
    for query, train, score, source in zip(*columns, strict=True):
        by_query.setdefault(query, []).append((int(known[train]), float(score), str(source)))
    return [sorted(by_query.get(at.get(q, -1), []), key=lambda e: -e[1]) for q in ids]


def _placed(entries: list[Entry], place: Mapping[int, int]) -> list[list[Any]]:
    return [[place[row], brief(score), source] for row, score, source in entries]


def brief(value: float) -> float | None:
    """A number with four digits; null where it is none.

    >>> brief(0.123456), brief(float("nan"))
    (0.1235, None)
    """
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _worth(own: Attribution, row: int) -> dict[str, Any]:
    """What a query's answer is worth, and the shape of its scores."""
    values = row_scores(own.scores, row)[1].astype(np.float64)
    diagnostics = {n: float(v[row]) for n, v in own.diagnostics.items()}
    verdict = diagnostics.pop("verdict", None)
    return {
        "verdict": "" if verdict is None else VERDICTS[int(verdict)],
        "worth": {n: brief(v) for n, v in diagnostics.items()},
        "histogram": histogram(values),
        "shares": shares(values, extent(own.scores)[1]),
    }


def histogram(values: np.ndarray) -> list[Any]:
    """Smallest and largest score, and how many fall into each of the equal bins between them.

    >>> low, high, counts = histogram(np.array([-1.0, 0.0, 1.0]))
    >>> low, high, sum(counts)
    (-1.0, 1.0, 3)
    """
    if not len(values) or values.min() == values.max():
        return [0.0, 0.0, []]
    counts, _ = np.histogram(values, _BINS)
    return [brief(values.min()), brief(values.max()), counts.tolist()]


def shares(values: np.ndarray, count: int) -> list[list[float]]:
    """`[m, share of the sum of magnitudes that the m largest have]`.

    >>> shares(np.array([3.0, -1.0]), 2)
    [[1, 0.75], [2, 1.0]]
    """
    strongest = np.sort(np.abs(values))[::-1].cumsum()
    if not len(strongest) or strongest[-1] == 0:
        return []
    ranks = [m for m in _RANKS if m < len(strongest)] + [min(count, len(strongest))]
    return [[m, round(float(strongest[m - 1] / strongest[-1]), 4)] for m in ranks]


def _copies(run: Run, examples: Shown) -> list[int]:
    """How many training examples act as one with each that is shown, itself among them."""
    sizes_N = _sizes(run)
    return [1] * len(examples.rows) if sizes_N is None else sizes_N[examples.rows].tolist()


@functools.lru_cache(maxsize=1)
def _sizes(run: Run) -> np.ndarray | None:
    """Held, as every question to a server needs it: examples of each one's key, `[N]`."""
    if run.train.keys is None:
        return None
    keys = np.asarray(run.train.keys)
    _, place, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    return sizes[place]


def _suspects(run: Run, count: int) -> list[list[Any]]:
    """`[row, self-influence, loss, predicted class]` of a classifier's suspected labels."""
    classes = run.model.objective.classes and run.query.labels.ndim == 1
    if not count or not classes or not run.index.fisher:
        return []
    table = self_influence(run.tapped, run.model.params, run.index, run.train).suspects(
        min(count, len(run.train))
    )
    rows = rows_of(run.train.ids, [str(i) for i in table["id"]])
    columns = (table["id"], table["self_influence"], table["loss"], table["predicted"])
    return [
        [int(rows[str(name)]), brief(own), brief(loss), int(predicted)]
        for name, own, loss, predicted in zip(*columns, strict=True)
    ]


def _about(run: Run, methods: list[str], settings: ReportSettings) -> dict[str, Any]:
    """What the answers are worth, and where they come from."""
    told = run.workdir / "summary.json"
    summary = read_json(told) if told.exists() else {}
    kept = ("lds", "lds_ci95", "perfect_predictor", "too_small", "methods", "accuracy",
            "held_out_loss", "explained_variance", "temperature", "recovery", "seconds", "device",
            "date", "command", "settings")  # fmt: skip
    labels, unit = run.query.labels, run.measured_unit
    return plain({
        "methods": methods or ["stride"],
        "kind": kind_of(run),
        "columns": column_names(run.settings.data) if kind_of(run) == "table" else None,
        "classes": bool(run.model.objective.classes and labels.ndim == 1),
        "objective": run.model.objective.name,
        "scores": words(unit),
        "unit": "nats" if unit is not None and unit.is_known else "",
        "fine": list(VERDICTS[:1]),
        "train": len(run.train),
        "queries": len(run.query),
        "top": settings.top,
        "versions": versions(),
        "curves": _curves(run),
        "summary": {name: summary[name] for name in kept if summary.get(name) is not None},
    })  # fmt: skip


def _curves(run: Run) -> dict[str, list[list[Any]]]:
    """Losses of the run's trainings by step, evenly spaced ones of many."""
    told = {loop: own for loop, own in losses(run.workdir / "metrics").items() if len(own) > 1}
    return {
        loop: [[own[i][0], brief(own[i][1])] for i in _spaced(len(own), _POINTS).tolist()]
        for loop, own in told.items()
    }


def _spaced(count: int, most: int) -> np.ndarray:
    """Evenly spaced places, both ends among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def kind_of(run: Run) -> str:
    """`text`, `image` or `table`: how its examples are drawn."""
    if run.settings.is_text:
        return "text"
    return "image" if run.query.inputs.ndim == 4 else "table"
