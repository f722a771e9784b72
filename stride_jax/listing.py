"""`peeling` for a corpus of which no query can see all: answers of a length that N does not change.

By content, the strongest estimates come from an inverted file (`inverted`), so that a query costs
in proportion to K, its budget and the length of its answer. An answer lists what is kept, what was
scored exactly and the strongest estimates; other scores are not zero, but not in it either.

Letters of its own: U kept examples, P places of a shortlist, Z scores of an answer.
"""

from collections.abc import Sequence

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
    empty = Columns(np.zeros(0, np.int64), np.zeros((queries, 0), np.float32))
    kept = empty if kept is None else kept
    sources = (KEPT, cands.SKETCH, *(one.source for one in others))
    left_QxK = y_QxK - (own.matrix_KxN[:, kept.row_U] @ kept.w_YxU.T).T
    size_QxK = np.repeat((own.matrix_KxN @ own.rest_N)[None], queries, axis=0)
    share_QxK = _shares(left_QxK, size_QxK)
    none = np.full(queries, np.nan)
    agreement_Q, error_Q, chosen = none, none, [np.zeros(0, np.int64)] * queries
    exact, bits = [np.zeros(0, np.float32)] * queries, [np.zeros(0, np.uint8)] * queries
    if score is not None and (budget := settings.allowed(count)):
        chosen, bits = _shortlists(own, file, share_QxK, others, budget)
        control = control_rows(count, settings.control)
        union = np.unique(np.concatenate([*chosen, control]))
        w_QxU = score(union)
        cluster_U = own.cluster_N[union]
        guess_QxU = share_QxK[:, cluster_U] * own.rest_N[union]
        at_kept = np.searchsorted(kept.row_U, union) if len(kept.row_U) else None
        if at_kept is not None:
            inside = np.isin(union, kept.row_U)
            guess_QxU[:, inside] = kept.w_YxU[:, at_kept[inside]]
        compared_QxU = np.tile(np.isin(union, control), (queries, 1))
        for q, rows in enumerate(chosen):
            at = np.searchsorted(union, rows)
            compared_QxU[q, at], exact[q] = True, w_QxU[q, at]
            np.subtract.at(left_QxK[q], cluster_U[at], w_QxU[q, at])
            np.subtract.at(size_QxK[q], cluster_U[at], own.rest_N[rows])
        agreement_Q, error_Q = compare(guess_QxU, w_QxU, compared_QxU, 1)
        share_QxK = _shares(left_QxK, size_QxK)
    length = max(_LEAST, max(map(len, chosen)))
    row_QxZ, w_QxZ = strongest(file, share_QxK, length + max(map(len, chosen)))
    parts = []
    for q, rows in enumerate(chosen):
        rest = (row_QxZ[q] >= 0) & ~np.isin(row_QxZ[q], rows)
        rest[np.flatnonzero(rest)[length:]] = False
        at = np.concatenate([kept.row_U, rows, row_QxZ[q][rest]])
        parts.append((at, np.concatenate([kept.w_YxU[q], exact[q], w_QxZ[q][rest]])))
    kept_bits = np.ones(len(kept.row_U), np.uint8)
    named = [
        (np.concatenate([kept.row_U, rows]), np.concatenate([kept_bits, own_bits]))
        for rows, own_bits in zip(chosen, bits, strict=True)
    ]
    shape = queries, count
    peeled = Peeled(
        _rows(parts, shape), _rows(named, shape), sources, explained(y_QxK, left_QxK, queries),
        agreement_Q, error_Q,
    )  # fmt: skip
    return peeled, Estimate(None, share_QxK, None, None)


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
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of each query's shortlist, ascending, and the bits of the sources that named them."""
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
    return lists, bits


def _rows(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """Compressed rows from the columns and values of each."""
    columns, values = (np.concatenate(own) for own in zip(*parts, strict=True))
    ends = np.concatenate([[0], np.cumsum([len(own) for own, _ in parts])])
    rows = scipy.sparse.csr_array((values, columns, ends), shape=shape)
    rows.sort_indices()
    return rows
