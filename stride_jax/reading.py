"""From an index to measurements, and from measurements to scores (docs/method.md §6 – 8)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import scipy.sparse

from stride_jax.asking import Asked, keeps_all
from stride_jax.candidates import SKETCH, Candidates
from stride_jax.estimate import Estimate, Estimator
from stride_jax.exact import Directions, kept_scores, positions, scored
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel
from stride_jax.index import Index
from stride_jax.listing import filed, listed
from stride_jax.peeling import KEPT, Peeled, peel
from stride_jax.recovery import Diagnostics
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime import processes
from stride_jax.runtime.execution import Execution
from stride_jax.scores import Scores, stacked
from stride_jax.unmixing import unmix

VERDICTS = ("found", "partly found", "not found: raise K or the budget, or use clusters")
"""What a certificate says of an answer."""


class Reading(NamedTuple):
    """Scores of queries, with what they are worth.

    Attributes:
      scores: `[Q, N]` nats.
      exact_QxN: bits of the sources that named each exactly scored example, in compressed rows.
      sources: names of the sources, from bit 0 on.
      diagnostics: `{name: [Q]}`.
    """

    scores: Scores
    exact_QxN: scipy.sparse.csr_array
    sources: tuple[str, ...]
    diagnostics: dict[str, np.ndarray]


def highest(own: Reading) -> Reading:
    """Each example's highest score over all queries, as one answer; it has no certificate.

    Args:
      own: of several queries.
    """
    scores, exact = own.scores, own.exact_QxN
    if isinstance(scores, np.ndarray):
        top = scores.max(axis=0, keepdims=True)
    else:
        top = scipy.sparse.csr_array(scores.max(axis=0).reshape(1, -1))
    named_N = np.zeros(own.scores.shape[1], np.uint8)  # pyright: ignore[reportOptionalSubscript]
    np.bitwise_or.at(named_N, exact.indices, exact.data)
    return Reading(top, scipy.sparse.csr_array(named_N[None]), own.sources, {})


class Corpus(NamedTuple):
    """The training data at hand.

    Attributes:
      frozen: the model.
      examples: training examples; those of the index among them.
    """

    frozen: FrozenModel
    examples: Examples


def read(
    own: Estimator,
    index: Index,
    asked: Asked,
    corpus: Corpus | None = None,
    others: Sequence[Candidates] = (),
    execution: Execution = Execution(),
) -> Reading:
    """Scores of queries: exact where the index keeps or the corpus gives them, else estimated.

    Queries are read in blocks that fit the memory; no answer depends on its block. By content,
    where all scores would take more than a quarter of the memory, answers list the strongest.

    Args:
      own: the design, from `estimate.estimator`.
      index: what is kept, and bases.
      asked: measurements, and how directions are had.
      corpus: the training data; None without.
      others: candidates besides those of the sketch.
      execution: memory, bars.
    """
    settings, count = own.settings.exact, len(index.train_ids)
    groups = len(asked.y_YxK) // asked.num_queries
    place = None if corpus is None else positions(index, corpus.examples)
    # From shapes alone: operators may lie on other processes, which read other queries.
    outer = [math.prod(one.a_KxRxO.shape[1:]) for one in index.operators.values()]
    width = sum(outer) if asked.aim else 1
    size, files = execution.memory // 4 // (4 * groups * width), None
    if own.state is not None:
        # By hash, exact scores of all shortlists for all rows are the largest array.
        share = settings.allowed(count) // settings.rounds + settings.control + 1
        size = min(size, math.isqrt(execution.memory // 4 // (4 * groups * share)))
    elif _is_long(own, index, asked, execution):
        # No array over all examples and queries: blocks hold directions and shortlists alone.
        files = filed(own)
    else:
        # About eight arrays of a block's rows over all examples are alive at once.
        size = min(4 * size, execution.memory // 2 // (8 * 4 * groups * count))
    size = max(1, size)
    parts: list[tuple[Peeled, Estimate]] = []
    for first in range(0, asked.num_queries, size):
        block = np.arange(first, min(first + size, asked.num_queries))
        y_YxK = asked.rows(block)
        v = None if asked.aim is None else asked.aim(block)
        kept = kept_scores(index, v, execution.memory) if v is not None and index.kept else None
        score = None
        if corpus is not None and v is not None and settings.allowed(count):
            assert place is not None, "a corpus has places"
            score = _scorer(corpus, index, v, place, execution)
        named = [one.of(block) for one in others]
        if files is not None:
            parts.append(listed(own, files, y_YxK, kept, score, named, settings))
            continue
        if own.state is not None:
            parts.append(unmix(own, y_YxK, len(block), kept, score, named, settings, execution))
            continue
        parts.append(peel(own, y_YxK, len(block), kept, score, named, settings))
    whole = joined([_reading(*part) for part in parts])
    return whole if index.factor == 1 else whole._replace(scores=whole.scores * index.factor)


def read_exactly(
    index: Index, asked: Asked, corpus: Corpus | None, execution: Execution = Execution()
) -> Reading:
    """Scores of queries where all are exact: from what the index keeps, or from one forward pass.

    Args:
      index: that keeps every example, or whose training data are at hand.
      asked: directions of whole queries.
      corpus: the training data; None where the index keeps all.
      execution: memory, bars.
    """
    assert asked.aim is not None, "exact scores have directions"
    queries, count = asked.num_queries, len(index.train_ids)
    width = sum(math.prod(one.a_KxRxO.shape[1:]) for one in index.operators.values())
    size = max(1, execution.memory // 4 // (4 * width))
    scores, whole = np.empty((queries, count), np.float32), keeps_all(index)
    for first in range(0, queries, size):
        block = np.arange(first, min(first + size, queries))
        v = asked.aim(block)
        if whole:
            columns = kept_scores(index, v, execution.memory)
            scores[block[:, None], columns.row_U] = columns.w_YxU
        else:
            assert corpus is not None, "what is not kept is scored from the training data"
            place_N = positions(index, corpus.examples)
            scores[block] = _scorer(corpus, index, v, place_N, execution)(np.arange(count))
    # The index' own, or those of a shortlist as long as the training set.
    named = np.full(queries * count, 1 if whole else 2, np.uint8)
    ends = np.arange(queries + 1) * count
    exact = scipy.sparse.csr_array(
        (named, np.tile(np.arange(count, dtype=np.int32), queries), ends), shape=scores.shape
    )
    nothing_Q = np.full(queries, np.nan)  # was estimated, so there is nothing to compare
    explained_Q = np.asarray(scores.any(axis=1), np.float64)
    own = Peeled(scores, exact, (KEPT, SKETCH), explained_Q, nothing_Q, nothing_Q)
    made = _reading(own, Estimate(None, None, None, None))
    return made if index.factor == 1 else made._replace(scores=scores * index.factor)


def _is_long(own: Estimator, index: Index, asked: Asked, execution: Execution) -> bool:
    """Whether answers over all examples would be too long to hold, and can be listed instead."""
    whole = all((own.rest_N[np.asarray(kept.row_H)] == 0).all() for kept in index.kept.values())
    one_row_each = len(asked.y_YxK) == asked.num_queries and not own.settings.exact.shrink
    queries = asked.total or asked.num_queries
    too_long = 4 * queries * len(index.train_ids) > execution.memory // 4
    return whole and one_row_each and too_long


def _scorer(
    corpus: Corpus, index: Index, v: Directions, place_N: np.ndarray, execution: Execution
):  # fmt: skip
    """What gives exact scores of rows of the index."""

    def score(rows: np.ndarray) -> np.ndarray:
        own = place_N[rows]
        order = np.argsort(own)
        out = np.empty((len(next(iter(v.values()))), len(rows)), np.float32)
        done = 0
        for some, w_YxU in scored(corpus.frozen, index, v, corpus.examples, own[order], execution):
            out[:, order[done : done + len(some)]] = w_YxU
            done += len(some)
        return out

    return score


def _reading(peeled: Peeled, made: Estimate) -> Reading:
    """What was made of a block of queries, with what it is worth."""
    own = {} if made.diagnostics is None else named_diagnostics(made.diagnostics)
    diagnostics = diagnostics_by_query(own, len(peeled.explained_Q)) | certificate(peeled)
    return Reading(peeled.scores, peeled.exact_QxN, peeled.sources, diagnostics)


def joined(parts: Sequence[Reading]) -> Reading:
    """Readings of several sets of queries as one, in order.

    Diagnostics that only some of them have are nan for the queries of the others.
    """
    exact = scipy.sparse.csr_array(scipy.sparse.vstack([one.exact_QxN for one in parts], "csr"))
    missing = [np.full(len(one.exact_QxN.indptr) - 1, np.nan) for one in parts]
    diagnostics = {
        name: np.concatenate(
            [one.diagnostics.get(name, no) for one, no in zip(parts, missing, strict=True)]
        )
        for name in dict.fromkeys(name for one in parts for name in one.diagnostics)
    }
    scores = stacked([one.scores for one in parts])
    return Reading(scores, exact, parts[0].sources, diagnostics)


def certificate(peeled: Peeled) -> dict[str, np.ndarray]:
    """What exact scores say of each query's answer, without any retraining.

    `agreement` and `relative_error` compare the sketch with exact scores on the shortlist and a
    random control; `explained` is the share of the measurements' variance that exact scores
    explain. A `verdict` of 0 means found: estimates can be trusted for the rest (agreement of .9)
    or hardly any rest is left (.9 of the variance explained); 1, one of them at .5: partly; 2, not.
    """
    best_Q = np.fmax(np.nan_to_num(peeled.agreement_Q, nan=-1.0), peeled.explained_Q)
    verdict_Q = np.where(best_Q >= 0.9, 0, np.where(best_Q >= 0.5, 1, 2))
    certificate = {"explained": peeled.explained_Q, "exact": np.diff(peeled.exact_QxN.indptr)}
    if not np.isnan(peeled.agreement_Q).all():
        certificate |= {"agreement": peeled.agreement_Q, "relative_error": peeled.error_Q}
    return certificate | {"verdict": verdict_Q}


def on_this_process(frozen: FrozenModel, index: Index) -> tuple[FrozenModel, Index]:
    """Model and index on this process's own devices, where processes read different queries.

    The K matrices stay where they are: measurements were made with them before.
    """
    if processes.count() == 1:
        return frozen, index
    operators = {
        name: dataclasses.replace(own, basis=jax.tree.map(meshes.fetch, own.basis))
        for name, own in index.operators.items()
    }
    stored = jax.tree.map(meshes.fetch, {"fisher": index.fisher, "kept": index.kept})
    local = dataclasses.replace(index, operators=operators, **stored)
    return dataclasses.replace(frozen, params=jax.tree.map(meshes.fetch, frozen.params)), local


def named_diagnostics(diagnostics: Diagnostics) -> dict[str, np.ndarray]:
    """Diagnostics by name, without those that the rule of lambda did not measure."""
    fields = {f.name: getattr(diagnostics, f.name) for f in dataclasses.fields(diagnostics)}
    return {name.removesuffix("_Q"): v for name, v in fields.items() if v is not None}


def diagnostics_by_query(
    named: Mapping[str, np.ndarray], num_queries: int
) -> dict[str, np.ndarray]:
    """Diagnostics of queries, `[Q]`: the mean over a query's token groups, of gaps the largest."""
    rows = {name: np.asarray(v, np.float64).reshape(num_queries, -1) for name, v in named.items()}
    return {
        name: v.max(axis=1) if name == "relative_gap" else v.mean(axis=1)
        for name, v in rows.items()
    }
