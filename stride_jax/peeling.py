"""Exact scores where they matter, and estimates of the rest: what is known is peeled off first.

Here by content; `unmixing` has it by hash, and `listing` where answers are too long to hold.

    known: what the index keeps, then the strongest candidates, scored exactly
    y ← y − M_S w_S, and the rest is estimated again from what is left

A round takes its share of the budget; what stays unlisted keeps its estimate (docs/method.md §8.6).

Letters of its own: Y rows of measurements, G of them a query; U kept examples; P places of a
query's shortlist.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse

from stride_jax import candidates as cands
from stride_jax.candidates import Candidates
from stride_jax.estimate import Estimate, Estimator, dense, shared_out
from stride_jax.exact import Columns
from stride_jax.scores import Scores
from stride_jax.settings import ExactSettings

KEPT = "kept"
"""The source of exact scores that the index holds itself."""

Score = Callable[[np.ndarray], "np.ndarray"]
"""Exact scores of these rows of the index for all rows of measurements, `[Y, U]`."""


class Peeled(NamedTuple):
    """Scores, and how they were come by.

    Attributes:
      scores: `[Q, N]` nats.
      exact_QxN: bits of the sources that named each exactly scored example, in compressed rows.
      sources: their names, from bit 0 on.
      explained_Q: share of the measurements' variance that exact scores explain.
      agreement_Q: correlation of estimates and exact scores on the last round's candidates and the
        control; nan where nothing was compared.
      error_Q: size of their difference relative to the exact scores; nan likewise.
    """

    scores: Scores
    exact_QxN: scipy.sparse.csr_array
    sources: tuple[str, ...]
    explained_Q: np.ndarray
    agreement_Q: np.ndarray
    error_Q: np.ndarray


@dataclasses.dataclass
class _State:
    """What is known so far.

    Attributes:
      known_YxN: exact scores, 0 where there are none; of partly kept examples the kept part.
      bits_QxN: sources of exactly scored examples.
    """

    known_YxN: np.ndarray
    bits_QxN: np.ndarray


def peel(
    own: Estimator,
    y_YxK: np.ndarray,
    num_queries: int,
    kept: Columns | None,
    score: Score | None,
    others: Sequence[Candidates],
    settings: ExactSettings,
) -> tuple[Peeled, Estimate]:
    """Scores of queries by content from their measurements and all that is known exactly.

    Args:
      own: the design of the index.
      y_YxK: measurements.
      num_queries: Q; Y is a multiple of it.
      kept: scores of what the index keeps; None for an index without curvature.
      score: gives exact scores; None without the training data.
      others: candidates besides those of the sketch.
      settings: budget, rounds, control, shrinking.

    Returns:
      The scores, and the last estimate.
    """
    count, groups = own.matrix_KxN.shape[1], len(y_YxK) // num_queries
    sources = (KEPT, cands.SKETCH, *(one.source for one in others))
    state = _State(
        np.zeros((len(y_YxK), count), np.float32), np.zeros((num_queries, count), np.uint8)
    )
    if kept is not None and len(kept.row_U):
        state.known_YxN[:, kept.row_U] = kept.w_YxU
        state.bits_QxN[:, kept.row_U[own.rest_N[kept.row_U] == 0]] |= 1
    made, rest_YxK = _again(own, y_YxK, state)
    agreement_Q, error_Q = (np.full(num_queries, np.nan) for _ in range(2))
    budget = 0 if score is None else settings.allowed(count)
    for turn in range(settings.rounds if budget else 0):
        assert score is not None, "a budget needs data"
        if (state.bits_QxN != 0).all():
            break  # all scores are exact
        share = budget * (turn + 1) // settings.rounds - budget * turn // settings.rounds
        rows_QxN = _chosen(own, made, state, others, share)
        control = control_rows(count, settings.control)
        union = np.unique(np.concatenate([np.flatnonzero(rows_QxN.any(axis=0)), control]))
        listed_QxN = rows_QxN if own.twin_N is None else rows_QxN[:, own.twin_N]
        w_YxU = score(union)
        unknown_YxU = np.repeat(state.bits_QxN[:, union] == 0, groups, axis=0)
        before_YxU = dense(own, made)[:, union] * unknown_YxU
        before_YxU += state.known_YxN[:, union]
        compared_QxU = rows_QxN[:, union] > 0
        compared_QxU[:, np.isin(union, control)] = True
        agreement_Q, error_Q = compare(before_YxU, w_YxU, compared_QxU, groups)
        _learn(own, state, rows_QxN, (union, w_YxU), groups)
        state.bits_QxN |= listed_QxN
        made, rest_YxK = _again(own, y_YxK, state)
    scores = _assembled(own, made, state, num_queries, settings.shrink)
    explained_Q = explained(y_YxK, rest_YxK, num_queries)
    bits = compressed(state.bits_QxN)
    return Peeled(scores, bits, sources, explained_Q, agreement_Q, error_Q), made


def compressed(bits_QxN: np.ndarray) -> scipy.sparse.csr_array:
    """Bits in compressed rows, in a third of the time that scipy takes for rows without a zero.

    >>> compressed(np.array([[0, 3], [1, 1]], np.uint8)).toarray().tolist()
    [[0, 3], [1, 1]]
    """
    place, count = np.flatnonzero(bits_QxN), bits_QxN.shape[1]
    starts = np.concatenate([[0], np.cumsum(np.count_nonzero(bits_QxN, axis=1))])
    kind = scipy.sparse.get_index_dtype(maxval=max(len(place), count))
    rows = (place % count).astype(kind), starts.astype(kind)
    return scipy.sparse.csr_array((bits_QxN.reshape(-1)[place], *rows), shape=bits_QxN.shape)


def _learn(
    own: Estimator,
    state: _State,
    rows_QxN: np.ndarray,
    scored: tuple[np.ndarray, np.ndarray],
    groups: int,
) -> None:
    """Take down the exact scores of each query's own candidates, and of their copies."""
    union, w_YxU = scored
    listed_YxU = np.repeat(rows_QxN[:, union] > 0, groups, axis=0)
    state.known_YxN[:, union] = np.where(listed_YxU, w_YxU, state.known_YxN[:, union])
    if own.twin_N is not None:
        copied = np.flatnonzero(own.twin_N != np.arange(len(own.twin_N)))
        first = own.twin_N[copied]
        listed_YxC = np.repeat(rows_QxN[:, first] > 0, groups, axis=0)
        known_YxC = np.where(listed_YxC, state.known_YxN[:, first], state.known_YxN[:, copied])
        state.known_YxN[:, copied] = known_YxC


def _again(own: Estimator, y_YxK: np.ndarray, state: _State) -> tuple[Estimate, np.ndarray]:
    """The estimate of what is not known, and the measurements that are left for it."""
    rest_YxK = _left(own, y_YxK, state)
    unknown_YxN = np.repeat(state.bits_QxN == 0, len(y_YxK) // len(state.bits_QxN), axis=0)
    return shared_out(own, rest_YxK, unknown_YxN), rest_YxK


def _left(own: Estimator, y_YxK: np.ndarray, state: _State) -> np.ndarray:
    """Measurements without what is known."""
    return np.asarray(y_YxK - (own.matrix_KxN @ state.known_YxN.T).T)


def _chosen(
    own: Estimator,
    made: Estimate,
    state: _State,
    others: Sequence[Candidates],
    share: int,
) -> np.ndarray:
    """Sources of each query's next candidates, as bits, `[Q, N]`; not what is known already."""
    queries, count = state.bits_QxN.shape
    strong_QxN = np.abs(dense(own, made)).reshape(queries, -1, count).sum(axis=1)
    strong_QxN[state.bits_QxN != 0] = 0.0
    if own.twin_N is not None:  # one of all copies is scored for them all
        summed_QxN = np.zeros_like(strong_QxN)
        np.add.at(summed_QxN.T, own.twin_N, strong_QxN.T)
        strong_QxN = summed_QxN
    bits_QxN = np.zeros((queries, count), np.uint8)
    for i, one in enumerate(others):
        query, place = np.nonzero(one.row_QxP >= 0)
        rows = one.row_QxP[query, place]
        first = rows if own.twin_N is None else own.twin_N[rows]
        np.bitwise_or.at(bits_QxN, (query, first), np.uint8(4 << i))
    bits_QxN[state.bits_QxN != 0] = 0
    # What the user names comes first, the strongest of it if the budget can't hold it all.
    asked_QxN = bits_QxN != 0
    weight_QxN = strong_QxN + asked_QxN * (1.0 + strong_QxN.max(axis=1, keepdims=True))
    top = cands.strongest(weight_QxN, share)
    query, place = np.nonzero(top >= 0)
    chosen_QxN = np.zeros_like(bits_QxN)
    at = query, top[query, place]
    chosen_QxN[at] = np.where(bits_QxN[at] != 0, bits_QxN[at], np.uint8(2))
    return chosen_QxN


def control_rows(num_train: int, count: int) -> np.ndarray:
    """Rows drawn at random, the same for all queries."""
    rows = np.random.default_rng(0).choice(num_train, min(count, num_train), replace=False)
    return np.sort(rows)


def compare(
    before_YxU: np.ndarray, w_YxU: np.ndarray, compared_QxU: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of estimated and exact scores, and the relative size of their difference."""
    queries = len(compared_QxU)
    agreement_Q, error_Q = np.full(queries, np.nan), np.full(queries, np.nan)
    sums = [v.reshape(queries, groups, -1).sum(axis=1) for v in (before_YxU, w_YxU)]
    for q, at in enumerate(compared_QxU):
        if not at.any():
            continue  # neither a candidate nor a control
        guess, true = (v[q, at].astype(np.float64) for v in sums)
        size = np.linalg.norm(true)
        if size > 0:
            error_Q[q] = np.linalg.norm(guess - true) / size
        if guess.std() > 0 and true.std() > 0:
            agreement_Q[q] = np.corrcoef(guess, true)[0, 1]
    return agreement_Q, error_Q


def explained(y_YxK: np.ndarray, rest_YxK: np.ndarray, num_queries: int) -> np.ndarray:
    """Share of the measurements' variance over subsets that known scores explain, `[Q]`.

    It is 0 for a query that measures nothing.
    """

    def spread(v_YxK: np.ndarray) -> np.ndarray:
        v_YxK = v_YxK.astype(np.float64)
        squares_Y = ((v_YxK - v_YxK.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
        return squares_Y.reshape(num_queries, -1).sum(axis=1)

    left_Q, whole_Q = spread(rest_YxK), spread(y_YxK)
    return np.divide(whole_Q - left_Q, whole_Q, out=np.zeros(num_queries), where=whole_Q > 0)


def _assembled(
    own: Estimator, made: Estimate, state: _State, num_queries: int, shrink: float
) -> Scores:
    """Exact scores, estimates elsewhere; shrunk row by row, then added up by query."""
    exact_QxN = state.bits_QxN != 0
    w_YxN = state.known_YxN + dense(own, made) * ~np.repeat(
        exact_QxN, len(state.known_YxN) // num_queries, axis=0
    )
    if shrink:
        w_YxN = shrunk(w_YxN, shrink)
    return w_YxN.reshape(num_queries, -1, w_YxN.shape[1]).sum(axis=1)


def shrunk(w_YxN: np.ndarray, quantile: float) -> np.ndarray:
    """Soft thresholding of each row by a quantile of its magnitudes.

    >>> shrunk(np.array([[4.0, -3.0, 1.0, 0.5, 0.0]], np.float32), 0.5).tolist()
    [[3.0, -2.0, 0.0, 0.0, 0.0]]
    """
    level_Y = np.empty(len(w_YxN), w_YxN.dtype)
    at = int(quantile * (w_YxN.shape[1] - 1))
    for row, own in enumerate(w_YxN):  # row by row, which stays in the processor's cache
        level_Y[row] = np.partition(np.abs(own), at)[at]
    # w less what lies within the level: sign(w) max(|w| − level, 0).
    return w_YxN - np.clip(w_YxN, -level_Y[:, None], level_Y[:, None])
