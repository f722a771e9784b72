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

from stride_jax.index import Index
from stride_jax.recovery import Diagnostics, LassoState, Recovery, init, recover
from stride_jax.runtime.execution import Execution
from stride_jax.settings import ReadSettings


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An index's design, ready for any measurements.

    Attributes:
      matrix_KxN: M.
      rest_N: sizes of the gradients of what is not kept; 0 for an example that is kept whole.
      state: of the Lasso, over keys; None where content decides.
      shares_GxN: share of each example in its key's column; None where each stands alone.
      twin_N: row of each example's first copy, whose exact score is its own too; None likewise.
      settings: how measurements are read.
    """

    matrix_KxN: Any
    rest_N: np.ndarray
    state: LassoState | None
    shares_GxN: Any
    twin_N: np.ndarray | None
    settings: ReadSettings

    @functools.cached_property
    def cluster_N(self) -> np.ndarray:
        """The subset of each example, by content."""
        return self.matrix_KxN.tocsc().indices


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimated scores of all examples, made dense for some rows at a time.

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
        _, first_G, group_N = np.unique(index.keys, return_index=True, return_inverse=True)
        # A key's gradient is a sum, whose size its members' sizes bound.
        residual_G = np.bincount(group_N, residual_G)
        subsets_Gxd = subsets_Gxd[first_G]
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


def key_shares(keys: np.ndarray, size_N: np.ndarray) -> Any:
    """How members of a key share out its column, by size, `[G, N]` in compressed rows.

    >>> key_shares(np.array(["a", "b", "a"]), np.array([1.0, 2.0, 3.0])).toarray().tolist()
    [[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]
    """
    _, group_N = np.unique(keys, return_inverse=True)
    size_N = np.where(np.bincount(group_N, size_N)[group_N] > 0, size_N, 1.0)
    share_N = size_N / np.bincount(group_N, size_N)[group_N]
    parts = (share_N.astype(np.float32), (group_N, np.arange(len(keys))))
    return scipy.sparse.csr_array(parts, shape=(int(group_N.max()) + 1, len(keys)))


def twins(index: Index) -> np.ndarray:
    """The row of each example's first copy, `[N]`: of one key, its errors and gradient of one size.

    Copies of one content are so, and their scores are equal; examples of one source are not.
    """
    assert index.keys is not None, "copies have a key in common"
    _, group_N = np.unique(index.keys, return_inverse=True)
    sizes = [np.round(np.log(np.maximum(v, 1e-30)), 4) for v in (index.residual_N, index.norm_N)]
    cluster_N = np.zeros(len(group_N)) if index.cluster_N is None else index.cluster_N
    alike_Nx4 = np.stack([group_N, cluster_N, *sizes], axis=1)
    _, first, place_N = np.unique(alike_Nx4, axis=0, return_index=True, return_inverse=True)
    return first[place_N.reshape(-1)]


def estimator(
    index: Index, settings: ReadSettings, execution: Execution = Execution()
) -> Estimator:
    """Prepare an index for `estimate`, once."""
    by_hash, rest_N = index.cluster_N is None, rest_sizes(index)
    return Estimator(
        membership_matrix(index.subsets_Nxd, index.settings.design.num_subsets),
        rest_N,
        lasso_state(index, settings, execution) if by_hash else None,
        key_shares(index.keys, rest_N) if by_hash and index.keys is not None else None,
        None if index.keys is None else twins(index),
        settings,
    )


def estimate(
    own: Estimator, y_YxK: np.ndarray, unknown_YxN: np.ndarray | None, execution: Execution
) -> Estimate:
    """Estimate scores from measurements of what is not known.

    Args:
      own: the design.
      y_YxK: measurements, without the sums of known scores.
      unknown_YxN: 1 for the examples whose score is to be estimated; None for all that are not kept
        whole.
      execution: bars.
    """
    if not own.rest_N.any():
        # All is kept: what is left of the measurements is rounding.
        return Estimate(scipy.sparse.csr_array((len(y_YxK), len(own.rest_N))), None, None, None)
    if own.state is not None:
        lasso, selection = own.settings.lasso, own.settings.selection
        recovery, diagnostics = recover(
            own.state, y_YxK, lasso, selection, progress=execution.progress
        )
        sparse = recovery.sparse
        if own.shares_GxN is not None:
            sparse = scipy.sparse.csr_array(sparse @ own.shares_GxN)
        return Estimate(sparse, None, recovery, diagnostics)
    if unknown_YxN is None:
        size_YxK = (own.matrix_KxN @ own.rest_N)[None]
    else:
        size_YxK = (own.matrix_KxN @ (unknown_YxN * own.rest_N).T).T
    share_YxK = np.divide(y_YxK, size_YxK, out=np.zeros_like(y_YxK), where=size_YxK > 0)
    return Estimate(None, share_YxK, None, None)


def dense(own: Estimator, made: Estimate, rows: slice) -> np.ndarray:
    """Estimated scores of some rows, `[rows, N]` float32."""
    if made.sparse_YxN is not None:
        return made.sparse_YxN[rows].toarray()
    assert made.share_YxK is not None, "an estimate is by hash or by content"
    return (made.share_YxK[rows][:, own.cluster_N] * own.rest_N).astype(np.float32)


def strength(own: Estimator, made: Estimate, y_YxK: np.ndarray, rows: slice) -> np.ndarray:
    """How strong each example is thought to be, `[rows, N]`, to choose those that are looked at.

    Magnitudes of the estimate; beyond the Lasso's support of its one-step correction
    `w + Mᵀ (y − M w) / d`, which ranks examples that the penalty set to zero.
    """
    w_YxN = dense(own, made, rows)
    if own.state is None:
        return np.abs(w_YxN)
    degree = own.state.table_Pxd.shape[1]
    miss_YxK = y_YxK[rows] - (own.matrix_KxN @ w_YxN.T).T
    miss_YxK -= miss_YxK.mean(axis=1, keepdims=True)
    corrected = np.abs(w_YxN + (own.matrix_KxN.T @ miss_YxK.T).T / degree)
    # The support first.
    ahead = corrected.max(axis=1, keepdims=True, initial=0.0)
    return np.where(w_YxN != 0, np.abs(w_YxN) + ahead, corrected).astype(np.float32)
