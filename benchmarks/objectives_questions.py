"""Rows about what is asked: margins of sure and of saturated models, contrasts, sets, tokens."""

import dataclasses
import pathlib

import numpy as np

from benchmarks.house import Row
from benchmarks.methods import Stride, changed
from benchmarks.pointing_figures import Note, lds_row, open_run
from stride_jax import attribute, evaluation, fit, from_model, with_temperature
from stride_jax.run.pipeline import Run
from stride_jax.taps import TappedModel

CONFIGS = ("mnist5k", "breast_cancer")


def questions(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """LDS of margins and of losses, a saturated classifier, and how questions add up.

    Args:
      workdir: folder of the runs.
      note: writes rows down.
      only: text in the names of the configs wanted; all for none.
    """
    for config in CONFIGS:
        if only in config:
            run = open_run(config, workdir)
            note(_by_question(config, run))
            note(_saturated(config, run))
            note(_sums(config, run))
    if only in "bible_gpt":
        note(_tokens(open_run("bible_gpt", workdir)))


def _asked(run: Run, index, tapped: TappedModel | None = None, rows=slice(None), **what):
    """Scores of the queries."""
    query, tapped = run.query.take(rows), run.tapped if tapped is None else tapped
    return attribute(
        tapped, run.model.params, index, query.inputs, what.pop("labels", query.labels),
        what.pop("read", run.settings.read), ids=query.ids, train=run.train, **what,
    ).scores_QxN  # fmt: skip


def _index(run: Run, tapped: TappedModel | None = None, **changes):
    settings = changed(Stride.of(run.settings), changes).index
    train = run.train
    return fit(
        run.tapped if tapped is None else tapped, run.model.params, train.inputs, train.labels,
        settings, ids=train.ids,
    )  # fmt: skip


def _by_question(config: str, run: Run) -> list[Row]:
    """LDS of what is asked against the same quantity of the retrained models."""
    index, rows = _index(run), []
    scores = {name: _asked(run, index, question=name) for name in ("loss", "margin")}
    made = {
        (asked, target): evaluation.lds(own, run.bank, target=target)
        for asked, own in scores.items()
        for target in ("loss", "margin")
    }
    for (asked, target), own in made.items():
        name = f"{config} LDS, {asked} asked, retrained models' {target}"
        rows.append(Row(name, own.lds, "higher", own.ci95))
    of = made["margin", "margin"], made["loss", "margin"]
    value, interval = evaluation.lds_difference(*of)
    name = f"{config}, LDS of margins: margin asked minus loss asked"
    return [*rows, Row(name, value, "higher", interval, 0.0)]


def _saturated(config: str, run: Run) -> list[Row]:
    """The same model, its logits multiplied until every probability is 0 or 1 in float32."""
    plain = from_model(run.module)
    sure = with_temperature(plain, run.model.temperature / 300)
    index, rows = _index(run, sure), []
    logits = np.asarray(sure(run.model.params, run.query.inputs)[0], np.float64)
    others = np.where(np.eye(logits.shape[1], dtype=bool)[run.query.labels], -np.inf, logits)
    own = logits[np.arange(len(logits)), run.query.labels] - others.max(axis=1)
    rows.append(
        Row(f"{config}, saturated: share of queries with p = 1", float((own > 17).mean()), "higher")
    )
    for asked in ("loss", "margin"):
        scores = _asked(run, index, sure, question=asked)
        speaks_Q = np.isfinite(scores).all(axis=1) & (np.abs(scores).max(axis=1) > 0)
        name = f"{config}, saturated, {asked} asked"
        share = float(speaks_Q.mean())
        asked_share = 1.0 if asked == "margin" else None
        rows += [
            Row(f"{name}: share of queries that answer", share, "higher", asked=asked_share),
            lds_row(f"{name}: LDS of margins", scores, _margins(run.bank)),
        ]
    return rows


def _margins(bank: evaluation.Bank) -> evaluation.Bank:
    """The bank with margins in the place of minus losses."""
    return dataclasses.replace(bank, losses_MxExQ=-bank.margins_MxExQ)


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def _sums(config: str, run: Run) -> list[Row]:
    """Contrasts turned round, and a set of queries against its members, everything exact."""
    index, few = _index(run), slice(20)
    everything = {"read.exact.budget": len(run.train), "read.exact.rounds": 1}
    read = changed(Stride.of(run.settings), everything).read
    a = run.query.labels[few]
    b = (a + 1) % (int(run.train.labels.max()) + 1)
    there, back = (
        _asked(run, index, rows=few, read=read, labels=one, against=other)
        for one, other in ((a, b), (b, a))
    )
    alone = _asked(run, index, rows=few, read=read)
    together = _asked(run, index, rows=few, read=read, together="mean")
    return [
        Row(f"{config}: contrast(a, b) + contrast(b, a), relative", _relative(there, -back),
            "lower", asked=1e-6),
        Row(f"{config}: a set of 20 queries against their mean, relative",
            _relative(together[0], alone.mean(axis=0)), "lower", asked=1e-5),
    ]  # fmt: skip


def _tokens(run: Run) -> list[Row]:
    """Chosen tokens by weights against the others' labels masked; every token by its parts."""
    index, few = _index(run), slice(10)
    whole = {"read.exact.budget": len(run.train), "read.exact.shrink": 0.0}
    read = changed(Stride.of(run.settings), whole).read
    query = run.query.take(few)
    first = np.arange(query.labels.shape[1]) < 20
    weights = np.broadcast_to(first, query.labels.shape).astype(np.float32)
    parts = [_asked(run, index, rows=few, read=read, weights=w) for w in (weights, 1 - weights)]
    masked = _asked(run, index, rows=few, read=read, labels=np.where(first, query.labels, -1))
    all_of_it = _asked(run, index, rows=few, read=read)
    return [
        Row("bible_gpt: chosen tokens against the masked loss, relative",
            _relative(parts[0], masked), "lower", asked=1e-5),
        Row("bible_gpt: chosen tokens and the others against all, relative",
            _relative(parts[0] + parts[1], all_of_it), "lower", asked=1e-5),
    ]  # fmt: skip
