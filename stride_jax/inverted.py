"""The strongest examples of a query from the scores of clusters, without a look at all N.

By content, an example's estimate is `w_i = share_k ||g_i||`, k its cluster (`estimate`). Members of
a cluster lie in the order of their sizes, so those above a threshold are the first few of each
cluster, and bisection finds a threshold that about as many pass as were asked for.

Letters of its own: M members of all clusters, Y rows of shares, P places of an answer, L clusters
that may hold one of a row's strongest members.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Inverted:
    """Members of clusters, cluster by cluster, the largest first, of equal ones the lower row.

    Attributes:
      row_M: rows of the index.
      size_M: sizes of the gradients, above zero.
      start_K1: place of each cluster's first member, and M.
    """

    row_M: np.ndarray
    size_M: np.ndarray
    start_K1: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays: 8 per member and 8 per cluster."""
        return self.row_M.nbytes + self.size_M.nbytes + self.start_K1.nbytes


def invert(cluster_N: np.ndarray, size_N: np.ndarray, num_clusters: int) -> Inverted:
    """Order examples by cluster and size, once for all queries.

    Args:
      cluster_N: cluster of each example.
      size_N: size of each example's gradient; one of size zero is a member of no cluster.
      num_clusters: K.

    Raises:
      ValueError: arrays of two lengths, or a cluster that is none of the K.

    >>> invert(np.array([1, 0, 1, 1]), np.array([2.0, 1.0, 0.0, 3.0]), 2).row_M.tolist()
    [1, 3, 0]
    """
    if len(cluster_N) != len(size_N):
        raise ValueError(f"{len(cluster_N)} clusters of examples and {len(size_N)} sizes")
    row_M = np.flatnonzero(size_N > 0)
    if len(size_N) < 2**31:
        row_M = row_M.astype(np.int32)
    cluster_M, size_M = cluster_N[row_M], size_N[row_M].astype(np.float32)
    outside = (cluster_M < 0) | (cluster_M >= num_clusters)
    if outside.any():
        raise ValueError(f"cluster {cluster_M[outside][0]} is none of the {num_clusters}")
    order = np.lexsort((-size_M, cluster_M))
    start_K1 = np.searchsorted(cluster_M[order], np.arange(num_clusters + 1))
    return Inverted(row_M[order], size_M[order], start_K1)


def strongest(file: Inverted, share: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Members with the largest `|share_k| size_i` of each row of shares, strongest first.

    A row costs in proportion to K, and to P times a logarithm; members are compared without
    rounding, and of equal ones the lower row comes first.

    Args:
      file: the members.
      share: score per size of each cluster's members, `[Y, K]`, or `[K]` of a single query.
      count: P; fewer are given where fewer members have a share other than zero.

    Returns:
      Rows of the index, `[Y, P]`, −1 at places that are free; and the members' scores
      `share_k size_i`, float32, 0 there. Both `[P]` for a single query.

    >>> file = invert(np.array([0, 0, 1, 1]), np.array([4.0, 1.0, 3.0, 2.0]), 2)
    >>> rows, weights = strongest(file, np.array([1.0, -2.0]), 3)
    >>> rows.tolist(), weights.tolist()
    ([2, 0, 3], [-6.0, 4.0, -4.0])
    """
    if share.shape[-1] != len(file.start_K1) - 1:
        raise ValueError(f"{share.shape[-1]} shares for {len(file.start_K1) - 1} clusters")
    count = min(count, len(file.row_M))
    share_YxK = np.atleast_2d(share).astype(np.float32)
    row_YxP = np.full((len(share_YxK), count), -1, np.int64)
    weight_YxP = np.zeros((len(share_YxK), count), np.float32)
    for y, share_K in enumerate(share_YxK if count else ()):
        rows, weights = _strongest(file, share_K, count)
        row_YxP[y, : len(rows)], weight_YxP[y, : len(rows)] = rows, weights
    return (row_YxP, weight_YxP) if share.ndim == 2 else (row_YxP[0], weight_YxP[0])


def _strongest(file: Inverted, share_K: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of one row of shares."""
    # A product of two float32 is exact in float64.
    scale_K = np.abs(share_K).astype(np.float64)
    length_K = np.diff(file.start_K1)
    head_K = np.zeros(len(scale_K))
    filled = length_K > 0
    head_K[filled] = scale_K[filled] * file.size_M[file.start_K1[:-1][filled]]
    live = np.flatnonzero(head_K > 0)
    least = 0.0
    if len(live) > count:  # the count-th head and all above it are enough
        least = np.partition(head_K[live], -count)[-count]
        live = live[head_K[live] >= least]
    start_L, scale_L = file.start_K1[live], scale_K[live]
    most_L = np.minimum(length_K[live], count)
    passed_L = _passed(file, start_L, scale_L, most_L, count, least)
    place = np.repeat(start_L - np.cumsum(passed_L) + passed_L, passed_L)
    place += np.arange(len(place))
    rows, sizes = file.row_M[place], file.size_M[place]
    order = np.lexsort((rows, -np.repeat(scale_L, passed_L) * sizes))[:count]
    return rows[order], np.repeat(share_K[live], passed_L)[order] * sizes[order]


def _passed(
    file: Inverted,
    start_L: np.ndarray,
    scale_L: np.ndarray,
    most_L: np.ndarray,
    count: int,
    least: float,
) -> np.ndarray:
    """How many of each cluster's first members to look at, so that all of the strongest are there.

    Bisects the threshold between the floats that at least, and less than, `count` members reach,
    until not many more than `count` do. Their bits, read as integers, are in the same order.
    """
    low_L, high_L = np.zeros_like(most_L), most_L
    if not len(start_L):
        return high_L
    # Where clusters outnumber the members asked for, most have few of them.
    step = 0 if least > 0 else count
    if least > 0:
        passes = _bits(least)
        high_L = _reaching(file, start_L, scale_L, low_L, high_L, least, step)
    else:
        passes = _bits(np.min(scale_L * file.size_M[start_L + most_L - 1]))
    fails = _bits(np.max(scale_L * file.size_M[start_L])) + 1
    while fails - passes > 1 and high_L.sum() > 2 * count:
        middle = (passes + fails) // 2
        threshold = float(np.int64(middle).view(np.float64))
        middle_L = _reaching(file, start_L, scale_L, low_L, high_L, threshold, step)
        if middle_L.sum() >= count:
            passes, high_L = middle, middle_L
        else:
            fails, low_L = middle, middle_L
    return high_L


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def _reaching(
    file: Inverted,
    start_L: np.ndarray,
    scale_L: np.ndarray,
    low_L: np.ndarray,
    high_L: np.ndarray,
    threshold: float,
    step: int,
) -> np.ndarray:
    """How many members of each cluster reach a threshold; low at least, high at most.

    Bisects all clusters at once, in steps that double from a first one, 0 for the lowest member.
    """
    low_L, high_L = low_L.copy(), high_L.copy()
    live = np.flatnonzero(low_L < high_L)
    while len(live):
        low, high = low_L[live], high_L[live]
        middle = np.minimum((low + high) // 2, low + step)
        reaches = scale_L[live] * file.size_M[start_L[live] + middle] >= threshold
        low_L[live] = low = np.where(reaches, middle + 1, low)
        high_L[live] = high = np.where(reaches, high, middle)
        live, step = live[low < high], max(1, 2 * step)
    return low_L
