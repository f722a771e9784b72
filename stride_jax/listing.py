"""`peeling` for a corpus of which no query can see all: answers of a length that N does not change.

By content, the strongest estimates come from an inverted file (`inverted`), so that a query costs
in proportion to K, its budget and the length of its answer. An answer lists what is kept, what was
scored exactly and the strongest estimates; other scores are not zero, but not in it either.

Letters of its own: U kept examples, P places of a shortlist, Z scores of an answer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse

from stride_jax import candidates as cands
from stride_jax.candidates import Candidates
from stride_jax.estimate import Estimate, Estimator
from stride_jax.exact import Columns
from stride_jax.inverted import Inverted, strongest
from stride_jax.peeling import KEPT, Peeled, Score, compare, control_rows, explained
from stride_jax.settings import ExactSettings

_LEAST = 1000
"""Estimates that an answer lists at least."""


class _Shortlists(NamedTuple):
    """What is scored exactly, one array per query.

    Attributes:
      rows: of the index, ascending.
      bits: of the sources that named each.
    """

    rows: list[np.ndarray]
    bits: list[np.ndarray]


def listed(
    own: Estimator,
    file: Inverted,
    y_QxK: np.ndarray,
    kept: Columns | None,
    score: Score | None,
    others: Sequence[Candidates],
    settings: ExactSettings,
) -> tuple[Peeled, Estimate]:
    """Scores of queries by content, as `peeling.peel` has them where they are listed.

    Args:
      own: the design of the index.
      file: its members that are not kept.
      y_QxK: measurements of whole queries.
      kept: scores of what the index keeps whole; None for an index that keeps nothing.
      score: gives exact scores; None without the training data.
      others: candidates besides those of the sketch.
      settings: budget, control. There is one round: by content, more gain nothing.

    Returns:
      Scores in compressed rows, and the last estimate.
    """
    count, queries = own.matrix_KxN.shape[1], len(y_QxK)
    if kept is None:
        kept = Columns(np.zeros(0, np.int64), np.zeros((queries, 0), np.float32))
    left_QxK = y_QxK - (own.matrix_KxN[:, kept.row_U] @ kept.w_YxU.T).T
    size_QxK = np.repeat((own.matrix_KxN @ own.rest_N)[None], queries, axis=0)
    share_QxK = _shares(left_QxK, size_QxK)
    budget = 0 if score is None else settings.allowed(count)
    chosen = _shortlists(own, file, share_QxK, others, budget)
    agreement_Q = error_Q = np.full(queries, np.nan)
    exact = [np.zeros(0, np.float32)] * queries
    if score is not None and budget:
        scored = _scored(chosen, score, control_rows(count, settings.control))
        exact = [w_U[at] for w_U, at in zip(scored.w_YxU, _places(scored, chosen), strict=True)]
        agreement_Q, error_Q = _compared(own, share_QxK, kept, scored, chosen, settings)
        for q, (rows, w) in enumerate(zip(chosen.rows, exact, strict=True)):
            np.subtract.at(left_QxK[q], own.cluster_N[rows], w)
            np.subtract.at(size_QxK[q], own.cluster_N[rows], own.rest_N[rows])
        share_QxK = _shares(left_QxK, size_QxK)
    shape = queries, count
    scores = _rows(_answers(file, share_QxK, kept, chosen, exact), shape)
    peeled = Peeled(
        scores, _rows(_named(kept, chosen), shape),
        (KEPT, cands.SKETCH, *(one.source for one in others)),
        explained(y_QxK, left_QxK, queries), agreement_Q, error_Q,
    )  # fmt: skip
    return peeled, Estimate(None, share_QxK, None, None)


def _scored(chosen: _Shortlists, score: Score, control: np.ndarray) -> Columns:
    """Exact scores of all shortlists and the control, for all queries."""
    union = np.unique(np.concatenate([*chosen.rows, control]))
    return Columns(union, score(union))


def _places(scored: Columns, chosen: _Shortlists) -> list[np.ndarray]:
    """Where each query's shortlist stands among what was scored."""
    return [np.searchsorted(scored.row_U, rows) for rows in chosen.rows]


def _compared(
    own: Estimator,
    share_QxK: np.ndarray,
    kept: Columns,
    scored: Columns,
    chosen: _Shortlists,
    settings: ExactSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """How estimates agree with exact scores on each query's shortlist and the control."""
    union, w_QxU = scored
    guess_QxU = share_QxK[:, own.cluster_N[union]] * own.rest_N[union]
    inside = np.isin(union, kept.row_U)
    guess_QxU[:, inside] = kept.w_YxU[:, np.searchsorted(kept.row_U, union[inside])]
    control = control_rows(own.matrix_KxN.shape[1], settings.control)
    compared_QxU = np.tile(np.isin(union, control), (len(w_QxU), 1))
    for compared_U, at in zip(compared_QxU, _places(scored, chosen), strict=True):
        compared_U[at] = True
    return compare(guess_QxU, w_QxU, compared_QxU, 1)


def _answers(
    file: Inverted,
    share_QxK: np.ndarray,
    kept: Columns,
    chosen: _Shortlists,
    exact: Sequence[np.ndarray],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and scores of each query's answer: kept, exact, and the strongest estimates."""
    longest = max(map(len, chosen.rows))
    length = max(_LEAST, longest)
    row_QxZ, w_QxZ = strongest(file, share_QxK, length + longest)
    answers = []
    for q, rows in enumerate(chosen.rows):
        rest = np.flatnonzero((row_QxZ[q] >= 0) & ~np.isin(row_QxZ[q], rows))[:length]
        at = np.concatenate([kept.row_U, rows, row_QxZ[q][rest]])
        answers.append((at, np.concatenate([kept.w_YxU[q], exact[q], w_QxZ[q][rest]])))
    return answers


def _named(kept: Columns, chosen: _Shortlists) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and sources of each query's exact scores."""
    of_kept = np.ones(len(kept.row_U), np.uint8)
    return [
        (np.concatenate([kept.row_U, rows]), np.concatenate([of_kept, bits]))
        for rows, bits in zip(*chosen, strict=True)
    ]


def _shares(y_QxK: np.ndarray, size_QxK: np.ndarray) -> np.ndarray:
    """Score per size; 0 where a cluster has no member left, up to rounding."""
    alive = size_QxK > 1e-6 * np.maximum(size_QxK.max(axis=1, keepdims=True, initial=0.0), 1e-30)
    return np.divide(y_QxK, size_QxK, out=np.zeros_like(y_QxK), where=alive)


def _shortlists(
    own: Estimator,
    file: Inverted,
    share_QxK: np.ndarray,
    others: Sequence[Candidates],
    budget: int,
) -> _Shortlists:
    """Each query's strongest and those that other sources name, as many as the budget holds."""
    row_QxP, _ = strongest(file, share_QxK, budget)
    lists, bits = [], []
    for q, mine in enumerate(row_QxP):
        asked: dict[int, int] = {}
        for i, one in enumerate(others):
            for row in one.row_QxP[q][one.row_QxP[q] >= 0].tolist():
                if own.rest_N[row] > 0:  # what is kept is known
                    asked[row] = asked.get(row, 0) | 4 << i
        # What the user names comes first, the strongest of it if the budget can't hold it all.
        strength = {row: abs(share_QxK[q, own.cluster_N[row]]) * own.rest_N[row] for row in asked}
        first = sorted(asked, key=lambda row: (-strength[row], row))[:budget]
        rest = [row for row in mine.tolist() if row >= 0 and row not in asked]
        rows = np.array([*first, *rest[: budget - len(first)]], np.int64)
        named = np.array([asked.get(row, 2) for row in rows.tolist()], np.uint8)
        order = np.argsort(rows)
        lists.append(rows[order])
        bits.append(named[order])
    return _Shortlists(lists, bits)


def _rows(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """Compressed rows from the columns and values of each."""
    columns, values = (np.concatenate(own) for own in zip(*parts, strict=True))
    ends = np.concatenate([[0], np.cumsum([len(own) for own, _ in parts])])
    rows = scipy.sparse.csr_array((values, columns, ends), shape=shape)
    rows.sort_indices()
    return rows
