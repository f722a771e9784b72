"""What recovery returns: each query's support, never N numbers per query unless asked.

Letter: Z examples of the largest support, or of one.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg


@dataclasses.dataclass(frozen=True)
class Recovery:
    """Influences and how well they are certified, per query.

    Attributes:
      id_QxZ: rows of the training examples with an influence, strongest first, padded with N.
      w_QxZ: their float32 influences, in nats; positive = proponent; 0 where padded.
      num_train: N.
      lambda_Q: penalty used; 0 for a query without signal.
      iterations_Q: proximal-gradient steps on working sets.
      passes_Q: passes over all N columns.
      relative_gap_Q: certified duality gap over `½ ||y||²` (centred y); 0 is optimal.
      kkt_Q: largest violation of the optimality conditions, in units of lambda.
    """

    id_QxZ: np.ndarray
    w_QxZ: np.ndarray
    num_train: int
    lambda_Q: np.ndarray
    iterations_Q: np.ndarray
    passes_Q: np.ndarray
    relative_gap_Q: np.ndarray
    kkt_Q: np.ndarray

    def __len__(self) -> int:
        return len(self.w_QxZ)

    @property
    def support_Q(self) -> np.ndarray:
        """Non-zero influences of each query."""
        return (self.w_QxZ != 0).sum(axis=1)

    @property
    def sparse(self) -> scipy.sparse.csr_array:
        """`[Q, N]` influences in compressed rows.

        >>> recovery = Recovery(
        ...     np.array([[2, 0]]), np.array([[1.5, -1.0]]), 3, *(np.zeros(1) for _ in range(5))
        ... )
        >>> recovery.sparse[:, [0, 2]].sum().item()  # the sum over a subset of examples
        0.5
        """
        active = self.w_QxZ != 0
        ends = np.concatenate([[0], np.cumsum(active.sum(axis=1))])
        parts = (self.w_QxZ[active], self.id_QxZ[active], ends)
        return scipy.sparse.csr_array(parts, shape=(len(self), int(self.num_train)))

    @property
    def scores_QxN(self) -> np.ndarray:
        """`[Q, N]` float32 influences, zeros and all: for an N that affords it."""
        return self.sparse.toarray()


def joined(parts: Sequence[Recovery]) -> Recovery:
    """Recoveries of several sets of queries as one, in order."""
    size = max(part.id_QxZ.shape[1] for part in parts)
    n = parts[0].num_train

    def stacked(name: str, fill: int) -> np.ndarray:
        rows = [getattr(part, name) for part in parts]
        pads = [((0, 0), (0, size - v.shape[1])) for v in rows]
        return np.concatenate(
            [np.pad(v, pad, constant_values=fill) for v, pad in zip(rows, pads, strict=True)]
        )

    names = ("lambda_Q", "iterations_Q", "passes_Q", "relative_gap_Q", "kkt_Q")
    flat = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Recovery(stacked("id_QxZ", n), stacked("w_QxZ", 0), n, **flat)


def least_squares(rows_Zxd: np.ndarray, y_K: np.ndarray, intercept: bool) -> np.ndarray:
    """Influences of a support without the Lasso's shrinkage: `argmin ||y − b − M_Z w||²`, `[Z]`.

    Args:
      rows_Zxd: subsets of the support's examples, K for padding.
      y_K: measurements.
      intercept: whether b is fitted, else 0.

    >>> least_squares(np.array([[0, 1], [1, 2]]), np.array([2.0, 1.0, -1.0]), False).round(6)
    array([ 2., -1.])
    """
    size, degree = rows_Zxd.shape
    ends = np.arange(0, rows_Zxd.size + 1, degree)
    whole = scipy.sparse.csc_array(
        (np.ones(rows_Zxd.size), rows_Zxd.reshape(-1), ends), shape=(len(y_K) + 1, size)
    )[:-1]
    if intercept:
        whole = scipy.sparse.hstack([whole, np.ones((len(y_K), 1))])
    return scipy.sparse.linalg.lsmr(whole, y_K, atol=1e-9, btol=1e-9)[0][:size]


def packed(
    ids: list[np.ndarray], values: list[np.ndarray], num_train: int
) -> tuple[np.ndarray, np.ndarray]:
    """Supports of different sizes as two padded arrays, each row strongest first."""
    size = max(1, max((len(i) for i in ids), default=1))
    id_QxZ = np.full((len(ids), size), num_train, np.int32)
    w_QxZ = np.zeros((len(ids), size), np.float32)
    for row, (i, w) in enumerate(zip(ids, values, strict=True)):
        order = np.argsort(-np.abs(w), kind="stable")
        id_QxZ[row, : len(i)], w_QxZ[row, : len(i)] = i[order], w[order]
    return id_QxZ, w_QxZ
