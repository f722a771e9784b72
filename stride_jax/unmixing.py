"""`peeling` by hash: the Lasso's answers are sparse, so nothing here is of Q x N numbers.

Known scores lie in a few cells of `[row, example]`. To choose what is scored exactly, all examples
are looked at for all queries once, a chunk of them at a time.

Letters of its own: Y rows of measurements, of queries or of their token groups; Z cells.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from stride_jax import candidates as cands
from stride_jax.candidates import Candidates
from stride_jax.design import gather_add
from stride_jax.estimate import Estimate, Estimator, unmixed
from stride_jax.exact import Columns
from stride_jax.peeling import KEPT, Peeled, Score, compare, control_rows, explained
from stride_jax.recovery.settings import power_of_two
from stride_jax.runtime.execution import Execution
from stride_jax.scores import extent
from stride_jax.settings import ExactSettings

# Strengths that are looked at together, and rows of measurements, at least.
_TOGETHER, _LEAST = 2**20, 8


class Cells(NamedTuple):
    """Some cells of an array of N columns, by row and column; cells left out are zero.

    Attributes:
      row_Z, column_Z: places, in ascending order.
      value_Z: what stands there.
    """

    row_Z: np.ndarray
    column_Z: np.ndarray
    value_Z: np.ndarray

    def compressed(self, shape: tuple[int, int]) -> scipy.sparse.csr_array:
        """The same as compressed rows."""
        ends = np.searchsorted(self.row_Z, np.arange(shape[0] + 1))
        return scipy.sparse.csr_array((self.value_Z, self.column_Z, ends), shape=shape)


def no_cells(kind: type) -> Cells:
    """An array of zeros."""
    none = np.zeros(0, np.int64)
    return Cells(none, none, np.zeros(0, kind))


def cells_of(rows: scipy.sparse.csr_array) -> Cells:
    """The stored cells of compressed rows."""
    row_Z = np.repeat(np.arange(len(rows.indptr) - 1), np.diff(rows.indptr))
    return ordered(row_Z, rows.indices, rows.data, extent(rows)[1])[0]


def ordered(
    row_Z: np.ndarray, column_Z: np.ndarray, value_Z: np.ndarray, columns: int
) -> tuple[Cells, np.ndarray]:
    """Cells in order, the first of those that repeat, and the cell that each one given went to."""
    keys = row_Z.astype(np.int64) * columns + column_Z
    keys, first, place = np.unique(keys, return_index=True, return_inverse=True)
    return Cells(keys // columns, keys % columns, value_Z[first]), place


def joined(new: Cells, old: Cells, columns: int) -> tuple[Cells, np.ndarray]:
    """Cells of both, the new ones where they meet, and where each of them all went."""
    row_Z, column_Z, value_Z = (np.concatenate(pair) for pair in zip(new, old, strict=True))
    return ordered(row_Z, column_Z, value_Z, columns)


class _Known(NamedTuple):
    """What is known so far.

    Attributes:
      scores: `[Y, N]` exact scores; of partly kept examples the kept part.
      bits: `[Q, N]` sources of exactly scored examples.
    """

    scores: Cells
    bits: Cells


def unmix(
    own: Estimator,
    y_YxK: np.ndarray,
    num_queries: int,
    kept: Columns | None,
    score: Score | None,
    others: Sequence[Candidates],
    settings: ExactSettings,
    execution: Execution = Execution(),
) -> tuple[Peeled, Estimate]:
    """Scores of queries by hash from their measurements and all that is known exactly.

    Args:
      own: the design of the index.
      y_YxK: measurements.
      num_queries: Q; Y is a multiple of it.
      kept: scores of what the index keeps; None for an index without curvature.
      score: gives exact scores; None without the training data.
      others: candidates besides those of the sketch.
      settings: budget, rounds, control, shrinking.
      execution: bars.

    Returns:
      Scores in compressed rows, and the last estimate.
    """
    count, groups = len(own.rest_N), len(y_YxK) // num_queries
    known = _kept(own, kept, num_queries, groups)
    rest_YxK = _left(own, y_YxK, known.scores)
    made = unmixed(own, rest_YxK, execution)
    agreement_Q, error_Q = (np.full(num_queries, np.nan) for _ in range(2))
    budget = 0 if score is None else settings.allowed(count)
    for turn in range(settings.rounds if budget else 0):
        assert score is not None, "a budget needs data"
        if len(known.bits.row_Z) == num_queries * count:
            break  # all scores are exact
        share = budget * (turn + 1) // settings.rounds - budget * turn // settings.rounds
        lists = _chosen(own, made, rest_YxK, known, others, share, num_queries)
        control = control_rows(count, settings.control)
        union = np.unique(np.concatenate([*(rows for rows, _ in lists), control]))
        w_YxU = score(union)
        agreement_Q, error_Q = _compared(made, known, (union, w_YxU), lists, control)
        known = _learnt(own, known, lists, (union, w_YxU))
        rest_YxK = _left(own, y_YxK, known.scores)
        # After the last round another Lasso would change little: it saw the listed examples too.
        if turn + 1 < settings.rounds:
            made = unmixed(own, rest_YxK, execution)
    scores = _assembled(made, known, num_queries, count, settings.shrink)
    sources = (KEPT, cands.SKETCH, *(one.source for one in others))
    explained_Q = explained(y_YxK, rest_YxK, num_queries)
    bits = known.bits.compressed((num_queries, count))
    return Peeled(scores, bits, sources, explained_Q, agreement_Q, error_Q), made


def _kept(own: Estimator, kept: Columns | None, queries: int, groups: int) -> _Known:
    """What the index knows itself."""
    if kept is None or not len(kept.row_U):
        return _Known(no_cells(np.float32), no_cells(np.uint8))
    rows, width = np.arange(queries * groups), len(kept.row_U)
    whole = kept.row_U[own.rest_N[kept.row_U] == 0]
    scores = Cells(np.repeat(rows, width), np.tile(kept.row_U, len(rows)), kept.w_YxU.reshape(-1))
    bits = Cells(
        np.repeat(np.arange(queries), len(whole)), np.tile(whole, queries),
        np.ones(queries * len(whole), np.uint8),
    )  # fmt: skip
    return _Known(scores, bits)


def _left(own: Estimator, y_YxK: np.ndarray, known: Cells) -> np.ndarray:
    """Measurements without what is known."""
    rows, num_subsets = y_YxK.shape
    place = known.row_Z[:, None] * num_subsets + own.subsets(known.column_Z)
    each = np.repeat(known.value_Z, place.shape[1])
    sums = np.bincount(place.reshape(-1), each, minlength=rows * num_subsets)
    return (y_YxK - sums.reshape(y_YxK.shape)).astype(np.float32)


List = tuple[np.ndarray, np.ndarray]
"""Rows of the index, ascending, and the bits of the sources that name them."""


def _chosen(
    own: Estimator,
    made: Estimate,
    rest_YxK: np.ndarray,
    known: _Known,
    others: Sequence[Candidates],
    share: int,
    num_queries: int,
) -> list[List]:
    """Each query's next candidates; not what is known already.

    An example's strength is the magnitude of its estimate; beyond the Lasso's support that of the
    one-step correction `Mᵀ (y − M w) / d`, which ranks examples that the penalty set to zero. One
    of all copies is scored for them all.
    """
    assert made.sparse_YxN is not None, "an estimate by hash is sparse"
    count, groups = len(own.rest_N), len(rest_YxK) // num_queries
    support = cells_of(made.sparse_YxN)
    miss_YxK = _left(own, rest_YxK, support)
    miss_YxK -= miss_YxK.mean(axis=1, keepdims=True)
    miss_YxK /= own.table_Gxd.shape[1]
    asked = _asked(own, known.bits, others)
    # Those of which more is known than the correction are looked at one by one.
    parts = [(support.row_Z // groups, support.column_Z), known.bits[:2], asked[:2]]
    row_Z, column_Z = (np.concatenate(own_Z) for own_Z in zip(*parts, strict=True))
    column_Z = column_Z if own.twin_N is None else own.twin_N[column_Z]
    single, _ = ordered(row_Z, column_Z, np.zeros(len(row_Z), np.float32), count)
    strong_Z = _strengths(own, miss_YxK, support, known.bits, single, groups)
    bits_Z = _at(asked, single.row_Z, single.column_Z, count)
    ends = np.searchsorted(single.row_Z, np.arange(num_queries + 1))
    most = share + int(np.diff(ends).max(initial=0))
    lists = []
    for q, (rows, strong) in enumerate(_strongest(own, miss_YxK, num_queries, most)):
        mine = slice(ends[q], ends[q + 1])
        other = ~np.isin(rows, single.column_Z[mine])
        rows = np.concatenate([single.column_Z[mine], rows[other]])
        strong = np.concatenate([strong_Z[mine], strong[other]])
        bits = np.concatenate([bits_Z[mine], np.zeros(other.sum(), np.uint8)])
        # What the user names comes first, the strongest of it if the budget can't hold it all.
        weight = strong + (bits != 0) * (1.0 + strong.max(initial=0.0))
        order = np.argsort(-weight, kind="stable")[:share]
        order = order[weight[order] > 0]
        order = order[np.argsort(rows[order])]
        lists.append((rows[order], np.where(bits[order] != 0, bits[order], np.uint8(2))))
    return lists


def _asked(own: Estimator, bits: Cells, others: Sequence[Candidates]) -> Cells:
    """Bits of the sources that name first copies, of which nothing is known."""
    count, none = len(own.rest_N), np.zeros(0, np.int64)
    parts = [(none, none, np.zeros(0, np.uint8))]
    for i, one in enumerate(others):
        query, place = np.nonzero(one.row_QxP >= 0)
        parts.append((query, one.row_QxP[query, place], np.full(len(query), 4 << i, np.uint8)))
    row_Z, column_Z, named_Z = (np.concatenate(own_Z) for own_Z in zip(*parts, strict=True))
    column_Z = column_Z if own.twin_N is None else own.twin_N[column_Z]
    fresh = _at(bits, row_Z, column_Z, count) == 0
    cells, place = ordered(row_Z[fresh], column_Z[fresh], named_Z[fresh], count)
    np.bitwise_or.at(cells.value_Z, place, named_Z[fresh])
    return cells


def _at(cells: Cells, row_Z: np.ndarray, column_Z: np.ndarray, columns: int) -> np.ndarray:
    """What stands in some places of an array, 0 in those that are no cells."""
    if not len(cells.row_Z):
        return np.zeros(len(row_Z), cells.value_Z.dtype)
    keys = cells.row_Z.astype(np.int64) * columns + cells.column_Z
    wanted = row_Z.astype(np.int64) * columns + column_Z
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, cells.value_Z[place], cells.value_Z.dtype.type(0))


def _strengths(
    own: Estimator,
    miss_YxK: np.ndarray,
    support: Cells,
    bits: Cells,
    single: Cells,
    groups: int,
) -> np.ndarray:
    """Strengths of some first copies, `[Z]`, those of all copies added up; 0 where known."""
    count = len(own.rest_N)
    copies, place = own.copies.of(single.column_Z)
    query = single.row_Z[place]
    unknown = _at(bits, query, copies, count) == 0
    copies, place, query = copies[unknown], place[unknown], query[unknown]
    subsets, strong = own.subsets(copies), np.zeros(len(copies), np.float32)
    # The support comes first: nothing is stronger than this.
    ahead_Y = np.abs(miss_YxK).max(axis=1) * subsets.shape[1]
    np.maximum.at(ahead_Y, support.row_Z, np.abs(support.value_Z) + ahead_Y[support.row_Z])
    for row in (query * groups + g for g in range(groups)):
        w = _at(support, row, copies, count)
        corrected = np.abs(miss_YxK[row[:, None], subsets].sum(axis=1))
        strong += np.where(w != 0, np.abs(w) + ahead_Y[row], corrected)
    return np.bincount(place, strong, minlength=len(single.row_Z))


def _strongest(
    own: Estimator, miss_YxK: np.ndarray, num_queries: int, most: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """First copies of the largest corrections, and these, for each query, in one look at all."""
    groups, count = len(miss_YxK) // num_queries, len(own.rest_N)
    times_N = None if own.twin_N is None else np.bincount(own.twin_N, minlength=count)
    # Groups of zeros up to a power of two add nothing, and the next question finds its program; a
    # question alone has room for the groups of most completions.
    wide = power_of_two(max(groups, _LEAST // num_queries))
    miss_QxGxK = miss_YxK.reshape(num_queries, groups, -1)
    miss_QxGxK = np.pad(miss_QxGxK, ((0, 0), (0, wide - groups), (0, 0)))
    miss_LxY = jnp.asarray(np.pad(miss_QxGxK.reshape(num_queries * wide, -1).T, ((0, 1), (0, 0))))
    size = min(max(1, _TOGETHER // miss_LxY.shape[1]), count)
    floor_Q = np.zeros(num_queries, np.float32)
    found, held = no_cells(np.float32), 0
    parts: list[Cells] = []
    for first in range(0, count, size):
        rows = np.arange(first, min(first + size, count))
        table_nxd = np.resize(own.subsets(rows), (size, own.table_Gxd.shape[1]))
        strong_nxQ = np.asarray(_corrections(miss_LxY, table_nxd, wide))[: len(rows)]
        if times_N is not None:
            strong_nxQ = strong_nxQ * times_N[rows, None].astype(np.float32)
        row, query = np.nonzero(strong_nxQ > floor_Q)
        parts.append(Cells(query, first + row, strong_nxQ[row, query]))
        held += len(row)
        if held > 4 * num_queries * most:
            found, floor_Q = _largest([found, *parts], num_queries, most)
            parts, held = [], 0
    found, _ = _largest([found, *parts], num_queries, most)
    ends = np.searchsorted(found.row_Z, np.arange(num_queries + 1))
    pieces = (slice(i, j) for i, j in itertools.pairwise(ends.tolist()))
    return [(found.column_Z[own_Z], found.value_Z[own_Z]) for own_Z in pieces]


@functools.partial(jax.jit, static_argnames="groups")
def _corrections(miss_LxY: jax.Array, table_nxd: jax.Array, groups: int) -> jax.Array:
    """Magnitudes of `Mᵀ r` for some examples, summed over the groups of a query, `[n, Q]`."""
    sums_nxY = jnp.abs(gather_add(miss_LxY, table_nxd.T.astype(jnp.int32)))
    return sums_nxY.reshape(len(table_nxd), -1, groups).sum(axis=2)


def _largest(parts: Sequence[Cells], queries: int, most: int) -> tuple[Cells, np.ndarray]:
    """The largest cells of each row, and what others must exceed to be among them."""
    row_Z, column_Z, value_Z = (np.concatenate(own_Z) for own_Z in zip(*parts, strict=True))
    order = np.lexsort((column_Z, -value_Z, row_Z))
    begin_Q = np.searchsorted(row_Z[order], np.arange(queries))
    rank_Z = np.arange(len(order)) - begin_Q[row_Z[order]]
    kept = order[rank_Z < most]
    floor_Q = np.zeros(queries, np.float32)
    last = order[rank_Z == most - 1]
    floor_Q[row_Z[last]] = value_Z[last]
    return Cells(row_Z[kept], column_Z[kept], value_Z[kept]), floor_Q


def _compared(
    made: Estimate,
    known: _Known,
    scored: tuple[np.ndarray, np.ndarray],
    lists: Sequence[List],
    control: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """How estimates agree with exact scores on each query's shortlist and the control."""
    assert made.sparse_YxN is not None, "an estimate by hash is sparse"
    (union, w_YxU), shape = scored, extent(made.sparse_YxN)
    groups = len(w_YxU) // len(lists)
    named_QxU = known.bits.compressed((len(lists), shape[1]))[:, union].toarray()
    before_YxU = made.sparse_YxN[:, union].toarray() * np.repeat(named_QxU == 0, groups, axis=0)
    before_YxU += known.scores.compressed(shape)[:, union].toarray()
    compared_QxU = np.tile(np.isin(union, control), (len(lists), 1))
    for compared_U, (rows, _) in zip(compared_QxU, lists, strict=True):
        compared_U[np.searchsorted(union, rows)] = True
    return compare(before_YxU, w_YxU, compared_QxU, groups)


def _learnt(
    own: Estimator, known: _Known, lists: Sequence[List], scored: tuple[np.ndarray, np.ndarray]
) -> _Known:
    """What is known with the exact scores of each query's own candidates, and of their copies."""
    (union, w_YxU), count = scored, len(own.rest_N)
    groups = len(w_YxU) // len(lists)
    bits, scores = [], []
    for q, (rows, named) in enumerate(lists):
        copies, place = own.copies.of(rows)
        bits.append(Cells(np.full(len(copies), q), copies, named[place]))
        at = np.searchsorted(union, rows)[place]
        scores += [
            Cells(np.full(len(copies), y), copies, w_YxU[y, at])
            for y in range(q * groups, (q + 1) * groups)
        ]
    new = Cells(*(np.concatenate(part) for part in zip(*bits, strict=True)))
    whole, place = joined(new, known.bits, count)
    np.bitwise_or.at(whole.value_Z, place, np.concatenate([new.value_Z, known.bits.value_Z]))
    new = Cells(*(np.concatenate(part) for part in zip(*scores, strict=True)))
    return _Known(joined(new, known.scores, count)[0], whole)


def _assembled(
    made: Estimate, known: _Known, num_queries: int, count: int, shrink: float
) -> scipy.sparse.csr_array:
    """Exact scores, estimates elsewhere; shrunk row by row, then added up by query."""
    assert made.sparse_YxN is not None, "an estimate by hash is sparse"
    rows = extent(made.sparse_YxN)[0]
    guess = cells_of(made.sparse_YxN)
    free = _at(known.bits, guess.row_Z // (rows // num_queries), guess.column_Z, count) == 0
    guess = Cells(*(part[free] for part in guess))
    shape = rows, count
    whole = scipy.sparse.csr_array(guess.compressed(shape) + known.scores.compressed(shape))
    if shrink:
        whole = shrunk(whole, shrink)
    row_Z = np.repeat(np.arange(rows), np.diff(whole.indptr)) // (rows // num_queries)
    places = (row_Z, whole.indices)
    scores = scipy.sparse.csr_array((whole.data, places), shape=(num_queries, count))
    scores.eliminate_zeros()
    return scores


def shrunk(whole: scipy.sparse.csr_array, quantile: float) -> scipy.sparse.csr_array:
    """Soft thresholding of each row by a quantile of its magnitudes, zeros and all.

    >>> rows = scipy.sparse.csr_array(np.array([[4.0, -3.0, 1.0, 0.5, 0.0]], np.float32))
    >>> shrunk(rows, 0.5).toarray().tolist()
    [[3.0, -2.0, 0.0, 0.0, 0.0]]
    """
    shape, data = extent(whole), whole.data.copy()
    for first, last in itertools.pairwise(np.asarray(whole.indptr).tolist()):
        # Cells that are left out come first.
        at = int(quantile * (shape[1] - 1)) - (shape[1] - (last - first))
        if at >= 0:
            level = np.partition(np.abs(data[first:last]), at)[at]
            data[first:last] -= np.clip(data[first:last], -level, level)
    return scipy.sparse.csr_array((data, whole.indices, whole.indptr), shape=shape)
