"""`peeling` for a corpus of which no query can see all: answers of a length that N does not change.

By content, the strongest estimates come from an inverted file (`inverted`), so that a query costs
in proportion to K, its budget and the length of its answer. An answer lists what is kept, what was
scored exactly and the strongest estimates; other scores are not zero, but not in it either.

Letters of its own: U examples that are kept or scored, P places of a shortlist, Z scores of an
answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse

from stride_jax import candidates as cands
from stride_jax.candidates import Candidates
from stride_jax.estimate import Copies, Estimate, Estimator
from stride_jax.exact import Columns
from stride_jax.inverted import Inverted, invert, strongest
from stride_jax.peeling import KEPT, Peeled, Score, compare, control_rows, explained
from stride_jax.settings import ExactSettings

_LEAST = 1000
"""Estimates that an answer lists at least."""


@dataclasses.dataclass(frozen=True)
class Files:
    """What finds the strongest of an index by content.

    Attributes:
      members: all examples that are not kept.
      size_N: sizes of the gradients that an exact score of each stands for: of copies the first
        stands for all of them.
      firsts: members of those sizes, which a shortlist names; the same file where nothing has
        copies.
      copies: what finds the copies of first copies.
    """

    members: Inverted
    size_N: np.ndarray
    firsts: Inverted
    copies: Copies


def filed(own: Estimator) -> Files:
    """Order the examples of an index by cluster and size, once for all queries."""
    num_subsets = own.matrix_KxN.shape[0]
    members = invert(own.cluster_N, own.rest_N, num_subsets)
    if own.twin_N is None:
        return Files(members, own.rest_N, members, own.copies)
    size_N = np.bincount(own.twin_N, own.rest_N, len(own.rest_N)).astype(np.float32)
    firsts = invert(own.cluster_N, size_N, num_subsets)
    return Files(members, size_N, firsts, own.copies)


class _Exact(NamedTuple):
    """What one query knows beyond what is kept.

    Attributes:
      row_U: rows of the index, ascending.
      bits_U: of the sources that named them.
      w_U: exact scores.
    """

    row_U: np.ndarray
    bits_U: np.ndarray
    w_U: np.ndarray


_NOTHING = _Exact(np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.float32))


def listed(
    own: Estimator,
    files: Files,
    y_QxK: np.ndarray,
    kept: Columns | None,
    score: Score | None,
    others: Sequence[Candidates],
    settings: ExactSettings,
) -> tuple[Peeled, Estimate]:
    """Scores of queries by content, as `peeling.peel` has them where they are listed.

    Args:
      own: the design of the index.
      files: from `filed`.
      y_QxK: measurements of whole queries.
      kept: scores of what the index keeps whole; None for an index that keeps nothing.
      score: gives exact scores; None without the training data.
      others: candidates besides those of the sketch.
      settings: budget, rounds, control.

    Returns:
      Scores in compressed rows, and the last estimate.
    """
    count, queries = own.matrix_KxN.shape[1], len(y_QxK)
    if kept is None:
        kept = Columns(np.zeros(0, np.int64), np.zeros((queries, 0), np.float32))
    left_QxK = y_QxK - (own.matrix_KxN[:, kept.row_U] @ kept.w_YxU.T).T
    size_QxK = np.repeat((own.matrix_KxN @ own.rest_N.astype(np.float64))[None], queries, axis=0)
    whole_QxK = size_QxK.copy()
    share_QxK = _shares(left_QxK, size_QxK, whole_QxK)
    budget = 0 if score is None or len(kept.row_U) == count else settings.allowed(count)
    agreement_Q = error_Q = np.full(queries, np.nan)
    exact = [_NOTHING] * queries
    for turn in range(settings.rounds if budget else 0):
        assert score is not None, "a budget needs data"
        share = budget * (turn + 1) // settings.rounds - budget * turn // settings.rounds
        shortlists = _shortlists(own, files, share_QxK, kept, exact, others, share)
        control = control_rows(count, settings.control)
        union = np.unique(np.concatenate([*(rows for rows, _ in shortlists), control]))
        scored = Columns(union, score(union))
        agreement_Q, error_Q = _compared(own, share_QxK, kept, exact, scored, shortlists, control)
        for q, ((rows, bits), w_U) in enumerate(zip(shortlists, scored.w_YxU, strict=True)):
            new = _with_copies(files, rows, bits, w_U[np.searchsorted(union, rows)])
            _take_off(own, kept, q, new, left_QxK, size_QxK)
            exact[q] = _merged(exact[q], new)
        share_QxK = _shares(left_QxK, size_QxK, whole_QxK)
    answers, named = _answers(files, share_QxK, kept, exact, max(_LEAST, budget))
    shape, sources = (queries, count), (KEPT, cands.SKETCH, *(one.source for one in others))
    explained_Q = explained(y_QxK, left_QxK, queries)
    peeled = Peeled(
        _rows(answers, shape), _rows(named, shape), sources, explained_Q, agreement_Q, error_Q
    )
    return peeled, Estimate(None, share_QxK, None, None)


def _shares(y_QxK: np.ndarray, size_QxK: np.ndarray, whole_QxK: np.ndarray) -> np.ndarray:
    """Score per size; 0 where of a whole cluster no member is left, up to rounding."""
    alive = size_QxK > 1e-9 * whole_QxK
    return np.divide(y_QxK, size_QxK, out=np.zeros_like(y_QxK), where=alive, casting="same_kind")


def _shortlists(
    own: Estimator,
    files: Files,
    share_QxK: np.ndarray,
    kept: Columns,
    exact: Sequence[_Exact],
    others: Sequence[Candidates],
    budget: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of each query's next shortlist, ascending, and the bits of the sources that named them.

    Nothing that is known already stands in it.
    """
    most = max((len(own.row_U) for own in exact), default=0)
    row_QxP, _ = strongest(files.firsts, share_QxK, budget + most)
    held, lists = set(kept.row_U.tolist()), []
    for q, mine in enumerate(row_QxP):
        scored = set(exact[q].row_U.tolist())
        known = held | scored
        asked: dict[int, int] = {}
        for i, one in enumerate(others):
            rows = one.row_QxP[q][one.row_QxP[q] >= 0]
            for row in (rows if own.twin_N is None else own.twin_N[rows]).tolist():
                if row not in known:
                    asked[row] = asked.get(row, 0) | 4 << i
        # What the user names comes first, the strongest of it if the budget can't hold it all.
        strength = {row: abs(share_QxK[q, own.cluster_N[row]]) * files.size_N[row] for row in asked}
        first = sorted(asked, key=lambda row: (-strength[row], row))[:budget]
        rest = [r for r in mine.tolist() if r >= 0 and r not in asked and r not in scored]
        rows = np.array([*first, *rest[: budget - len(first)]], np.int64)
        bits = np.array([asked.get(row, 2) for row in rows.tolist()], np.uint8)
        order = np.argsort(rows)
        lists.append((rows[order], bits[order]))
    return lists


def _compared(
    own: Estimator,
    share_QxK: np.ndarray,
    kept: Columns,
    exact: Sequence[_Exact],
    scored: Columns,
    shortlists: Sequence[tuple[np.ndarray, np.ndarray]],
    control: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How estimates agree with exact scores on each query's shortlist and the control."""
    union, w_QxU = scored
    guess_QxU = share_QxK[:, own.cluster_N[union]] * own.rest_N[union]
    inside = np.isin(union, kept.row_U)
    guess_QxU[:, inside] = kept.w_YxU[:, np.searchsorted(kept.row_U, union[inside])]
    for guess_U, known in zip(guess_QxU, exact, strict=True):
        place = np.flatnonzero(np.isin(union, known.row_U))
        guess_U[place] = known.w_U[np.searchsorted(known.row_U, union[place])]
    compared_QxU = np.tile(np.isin(union, control), (len(w_QxU), 1))
    for compared_U, (rows, _) in zip(compared_QxU, shortlists, strict=True):
        compared_U[np.searchsorted(union, rows)] = True
    return compare(guess_QxU, w_QxU, compared_QxU, 1)


def _with_copies(files: Files, rows: np.ndarray, bits: np.ndarray, w: np.ndarray) -> _Exact:
    """A shortlist's exact scores, which are those of all copies."""
    row_U, place_U = files.copies.of(rows)
    return _Exact(row_U, bits[place_U], w[place_U])


def _merged(old: _Exact, new: _Exact) -> _Exact:
    """What was known, and what a round adds to it."""
    parts = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
    order = np.argsort(parts[0])
    return _Exact(*(own[order] for own in parts))


def _take_off(
    own: Estimator,
    kept: Columns,
    query: int,
    known: _Exact,
    left_QxK: np.ndarray,
    size_QxK: np.ndarray,
) -> None:
    """Take a query's exact scores off its measurements, and their sizes off the clusters'."""
    new_U, cluster_U = known.w_U.copy(), own.cluster_N[known.row_U]
    twice = np.isin(known.row_U, kept.row_U)  # a kept one that was scored with its copies
    new_U[twice] -= kept.w_YxU[query, np.searchsorted(kept.row_U, known.row_U[twice])]
    np.subtract.at(left_QxK[query], cluster_U, new_U)
    np.subtract.at(size_QxK[query], cluster_U, own.rest_N[known.row_U].astype(np.float64))


Row = tuple[np.ndarray, np.ndarray]
"""Columns of a compressed row, and what stands there."""


def _answers(
    files: Files, share_QxK: np.ndarray, kept: Columns, exact: Sequence[_Exact], length: int
) -> tuple[list[Row], list[Row]]:
    """Each query's answer: kept, exact, and the strongest estimates; and sources of the exact."""
    most = max((len(known.row_U) for known in exact), default=0)
    row_QxZ, w_QxZ = strongest(files.members, share_QxK, length + most)
    answers, named = [], []
    for q, known in enumerate(exact):
        only = ~np.isin(kept.row_U, known.row_U)
        rest = np.flatnonzero((row_QxZ[q] >= 0) & ~np.isin(row_QxZ[q], known.row_U))[:length]
        at = np.concatenate([kept.row_U[only], known.row_U])
        w = np.concatenate([kept.w_YxU[q, only], known.w_U, w_QxZ[q][rest]])
        answers.append((np.concatenate([at, row_QxZ[q][rest]]), w))
        bits_U = known.bits_U | np.isin(known.row_U, kept.row_U)
        named.append((at, np.concatenate([np.ones(only.sum(), np.uint8), bits_U])))
    return answers, named


def _rows(parts: Sequence[Row], shape: tuple[int, int]) -> scipy.sparse.csr_array:
    """Compressed rows from the columns and values of each."""
    columns, values = (np.concatenate(own) for own in zip(*parts, strict=True))
    ends = np.concatenate([[0], np.cumsum([len(own) for own, _ in parts])])
    rows = scipy.sparse.csr_array((values, columns, ends), shape=shape)
    rows.sort_indices()
    return rows
