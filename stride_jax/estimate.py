"""From measurements to every example's estimated score, by hash or by content.

By hash, the K sums of subsets are unmixed by the Lasso: few examples matter to a query. Those of
one key are one column, whose sum they share out by the sizes of their gradients. By content, a
cluster's sum is shared out among its members likewise: they point the same way, so
`w_i = y_k ||g_i|| / Σ_{j in A_k} ||g_j||`. Either leaves out what is known already.

Letters of its own: Y rows of measurements, of queries or of their token groups.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import scipy.sparse

from stride_jax.ids import grouped
from stride_jax.index import Index
from stride_jax.recovery import Diagnostics, LassoState, Recovery, init, recover
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.rows import Taken
from stride_jax.settings import ReadSettings


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An index's design, ready for any measurements.

    Attributes:
      matrix_KxN: M by content; None by hash, where the Lasso's state holds it.
      rest_N: sizes of the gradients of what is not kept; 0 for an example that is kept whole.
      state: of the Lasso, over keys; None where content decides.
      shares_GxN: share of each example in its key's column; None where each stands alone.
      twin_N: row of each example's first copy, whose exact score is its own too; None likewise.
      settings: how measurements are read.
      column_N: column of each example in the Lasso's state; None where each has its own.
    """

    matrix_KxN: Any
    rest_N: np.ndarray
    state: LassoState | None
    shares_GxN: Any
    twin_N: np.ndarray | None
    settings: ReadSettings
    column_N: np.ndarray | None = None

    @functools.cached_property
    def table_Gxd(self) -> np.ndarray:
        """The subsets of the Lasso's columns, on the host."""
        assert self.state is not None, "subsets by hash are those of the Lasso"
        return np.asarray(self.state.table_Pxd)[: self.state.num_train]

    def subsets(self, rows: np.ndarray) -> np.ndarray:
        """The subsets that some examples joined by hash, `[rows, d]`."""
        return self.table_Gxd[rows if self.column_N is None else self.column_N[rows]]

    @functools.cached_property
    def copies(self) -> "Copies":
        """What finds the copies of first copies."""
        return Copies(self.twin_N)

    @functools.cached_property
    def cluster_N(self) -> np.ndarray:
        """The subset of each example, by content."""
        return self.matrix_KxN.tocsc().indices


class Copies:
    """Examples by their first copies.

    Args:
      twin_N: row of each example's first copy; None where each stands alone.
    """

    def __init__(self, twin_N: np.ndarray | None) -> None:
        self._copy_N = self._first_N = None
        if twin_N is not None:
            self._copy_N = np.argsort(twin_N, kind="stable")
            self._first_N = twin_N[self._copy_N]

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All copies of first copies, ascending, and which of the rows each is a copy of.

        >>> [v.tolist() for v in Copies(np.array([0, 1, 0])).of(np.array([0, 1]))]
        [[0, 1, 2], [0, 1, 0]]
        """
        if self._copy_N is None or self._first_N is None:
            return rows, np.arange(len(rows))
        begin, end = (np.searchsorted(self._first_N, rows, side) for side in ("left", "right"))
        parts = [self._copy_N[i:j] for i, j in zip(begin, end, strict=True)]
        copies, place = (
            np.concatenate([rows[:0], *parts]),
            np.repeat(np.arange(len(rows)), end - begin),
        )
        order = np.argsort(copies)
        return copies[order], place[order]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated scores of all examples.

    Attributes:
      sparse_YxN: influences of the Lasso; None by content.
      share_YxK: score per size of each cluster's members; None by hash.
      recovery, diagnostics: of the Lasso; None by content.
    """

    sparse_YxN: scipy.sparse.csr_array | None
    share_YxK: np.ndarray | None
    recovery: Recovery | None
    diagnostics: Diagnostics | None


def penalty_weights(residual_N: np.ndarray, prior: float) -> np.ndarray | None:
    """Penalty weights of the Lasso, `||e_i||^-p` over their mean, `[N]`; None without a prior.

    >>> penalty_weights(np.array([1.0, 16.0]), 0.25).tolist()
    [1.3333333333333333, 0.6666666666666666]
    """
    if prior == 0:
        return None
    weights_N = np.maximum(residual_N, 1e-6) ** -prior
    return weights_N / weights_N.mean()


def lasso_state(
    index: Index, settings: ReadSettings, execution: Execution = Execution()
) -> LassoState:
    """The index' design with its penalty weights, a column a key, ready for any measurements."""
    residual_G, subsets_Gxd = index.residual_N, index.subsets_Nxd
    if index.keys is not None:
        first_G, group_N = grouped(index.keys)
        # A key's gradient is a sum, whose size its members' sizes bound.
        residual_G = np.bincount(group_N, residual_G)
        subsets_Gxd = Taken(subsets_Gxd, first_G)
    weights_G = penalty_weights(residual_G, settings.prior)
    return init(index.settings.design, subsets_Gxd, penalty_N=weights_G, execution=execution)


def membership_matrix(subsets_Nxd: np.ndarray, num_subsets: int) -> Any:
    """M in compressed rows, `[K, N]` float32."""
    n, degree = subsets_Nxd.shape
    ends = np.arange(0, n * degree + 1, degree)
    ones = np.ones(n * degree, np.float32)
    return scipy.sparse.csr_array(
        scipy.sparse.csc_array((ones, subsets_Nxd.reshape(-1), ends), shape=(num_subsets, n))
    )


def rest_sizes(index: Index) -> np.ndarray:
    """Sizes of the gradients of what is not kept, `[N]` float32.

    A token's share is subtracted as if tokens' gradients stood at right angles.
    """
    if not index.kept:
        return index.norm_N
    squares_N = index.norm_N.astype(np.float64) ** 2
    rest_N = squares_N.copy()
    kept = next(iter(index.kept.values()))
    np.subtract.at(rest_N, np.asarray(kept.row_H), np.asarray(kept.norm_H, np.float64) ** 2)
    # Whole where rounding alone is left, and kept at every site.
    whole_N = rest_N <= 1e-4 * squares_N
    for other in index.kept.values():
        held_N = np.zeros(len(rest_N), bool)
        held_N[np.asarray(other.row_H)] = True
        whole_N &= held_N
    return np.where(whole_N, 0.0, np.sqrt(np.maximum(rest_N, 1e-4 * squares_N))).astype(np.float32)


def key_shares(group_N: np.ndarray, size_N: np.ndarray) -> Any:
    """How members of a key share out its column, by size, `[G, N]` in compressed rows.

    >>> key_shares(np.array([0, 1, 0]), np.array([1.0, 2.0, 3.0])).toarray().tolist()
    [[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]
    """
    size_N = np.where(np.bincount(group_N, size_N)[group_N] > 0, size_N, 1.0)
    share_N = size_N / np.bincount(group_N, size_N)[group_N]
    parts = (share_N.astype(np.float32), (group_N, np.arange(len(group_N))))
    return scipy.sparse.csr_array(parts, shape=(int(group_N.max()) + 1, len(group_N)))


def twins(index: Index, group_N: np.ndarray) -> np.ndarray:
    """The row of each example's first copy, `[N]`: of one key, its errors and gradient of one size.

    Copies of one content are so, and their scores are equal; examples of one source are not.

    Args:
      index: with keys.
      group_N: number of each example's key.
    """
    twin_N = np.arange(len(group_N))
    # Few share a key with another.
    rows = np.flatnonzero(np.bincount(group_N)[group_N] > 1)
    if not len(rows):
        return twin_N
    own = index.residual_N[rows], index.norm_N[rows]
    sizes = [np.round(np.log(np.maximum(v, 1e-30)), 4) for v in own]
    cluster = np.zeros(len(rows)) if index.cluster_N is None else index.cluster_N[rows]
    alike = np.stack([group_N[rows], cluster, *sizes], axis=1)
    _, first, place = np.unique(alike, axis=0, return_index=True, return_inverse=True)
    twin_N[rows] = rows[first[place.reshape(-1)]]
    return twin_N


def estimator(
    index: Index, settings: ReadSettings, execution: Execution = Execution()
) -> Estimator:
    """Prepare an index for estimates, once."""
    rest_N, twin_N, group_N = rest_sizes(index), None, None
    if index.keys is not None:
        _, group_N = grouped(index.keys)
        twin_N = twins(index, group_N)
    if index.cluster_N is not None:
        matrix = membership_matrix(index.cluster_N[:, None], index.settings.design.num_subsets)
        return Estimator(matrix, rest_N, None, None, twin_N, settings)
    shares = None if group_N is None else key_shares(group_N, rest_N)
    state = lasso_state(index, settings, execution)
    return Estimator(None, rest_N, state, shares, twin_N, settings, group_N)


def unmixed(own: Estimator, y_YxK: np.ndarray, execution: Execution) -> Estimate:
    """Estimate scores by hash from measurements of what is not known.

    Args:
      own: the design.
      y_YxK: measurements, without the sums of known scores.
      execution: bars.
    """
    assert own.state is not None, "a design by hash has a Lasso"
    if not own.rest_N.any():
        # All is kept: what is left of the measurements is rounding.
        return Estimate(scipy.sparse.csr_array((len(y_YxK), len(own.rest_N))), None, None, None)
    lasso, selection = own.settings.lasso, own.settings.selection
    recovery, diagnostics = recover(own.state, y_YxK, lasso, selection, progress=execution.progress)
    sparse = recovery.sparse
    if own.shares_GxN is not None:
        sparse = scipy.sparse.csr_array(sparse @ own.shares_GxN)
    return Estimate(sparse, None, recovery, diagnostics)


def shared_out(own: Estimator, y_YxK: np.ndarray, unknown_YxN: np.ndarray) -> Estimate:
    """Estimate scores by content from measurements of what is not known.

    Args:
      own: the design.
      y_YxK: measurements, without the sums of known scores.
      unknown_YxN: 1 for the examples whose score is to be estimated.
    """
    size_YxK = (own.matrix_KxN @ (unknown_YxN * own.rest_N).T).T
    share_YxK = np.divide(y_YxK, size_YxK, out=np.zeros_like(y_YxK), where=size_YxK > 0)
    return Estimate(None, share_YxK, None, None)


def dense(own: Estimator, made: Estimate) -> np.ndarray:
    """Estimated scores by content, `[Y, N]` float32."""
    assert made.share_YxK is not None, "an estimate by content has shares"
    return (made.share_YxK[:, own.cluster_N] * own.rest_N).astype(np.float32)
