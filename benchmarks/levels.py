"""Clusters on two levels: an example is compared with about 2 √K centroids, not with all K.

Coarse centroids, about √K of them, come first; each coarse cluster has fine ones of its own, as
many as its share of the sample deserves. An example joins the nearest fine centroid of its nearest
coarse one, which is not always the nearest of all (docs/method.md §2.3).

Letters of its own: Z numbers of a direction, M examples of the sample, J coarse centroids.
"""

import dataclasses

import numpy as np

from stride_jax.operators.content import spherical_means

# Examples compared with the coarse centroids at a time.
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class Levels:
    """Centroids of K clusters on two levels.

    Attributes:
      coarse_JxZ: coarse centroids.
      centroids_KxZ: fine centroids, those of one coarse cluster in a row.
      start_J1: place of each coarse cluster's first fine centroid, and K.
    """

    coarse_JxZ: np.ndarray
    centroids_KxZ: np.ndarray
    start_J1: np.ndarray


def fit_levels(z_MxZ: np.ndarray, weight_M: np.ndarray, num_clusters: int, seed: int) -> Levels:
    """Centroids of both levels from the directions of a sample.

    Args:
      z_MxZ: unit vectors.
      weight_M: their weights, such as squared sizes.
      num_clusters: K.
      seed: of the first centroids.

    >>> z = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], np.float32)
    >>> levels = fit_levels(z, np.ones(4), 4, seed=0)
    >>> levels.centroids_KxZ.shape, levels.start_J1.tolist()
    ((4, 2), [0, 2, 4])
    """
    num_coarse = max(1, min(round(num_clusters**0.5), len(z_MxZ)))
    coarse_JxZ = spherical_means(z_MxZ, weight_M, num_coarse, seed)
    own_M = nearest(coarse_JxZ, z_MxZ)
    order = np.argsort(own_M, kind="stable")
    ends_J = np.cumsum(np.bincount(own_M, minlength=num_coarse))
    counts_J = dealt(np.bincount(own_M, minlength=num_coarse), num_clusters)
    fine = []
    for j, members in enumerate(np.split(order, ends_J[:-1])):
        if len(members):
            fine.append(spherical_means(z_MxZ[members], weight_M[members], counts_J[j], seed + j))
        else:
            fine.append(np.repeat(coarse_JxZ[j : j + 1], counts_J[j], axis=0))
    return Levels(coarse_JxZ, np.concatenate(fine), np.append(0, np.cumsum(counts_J)))


def assign_levels(levels: Levels, z_BxZ: np.ndarray) -> np.ndarray:
    """The cluster of each direction, `[B]` int32; of equally near ones the first.

    >>> z = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], np.float32)
    >>> levels = fit_levels(z, np.ones(4), 4, seed=0)
    >>> np.abs(levels.centroids_KxZ[assign_levels(levels, z)] - z).max()
    np.float32(0.0)
    """
    out_B = np.empty(len(z_BxZ), np.int32)
    for first in range(0, len(z_BxZ), _CHUNK):
        z = z_BxZ[first : first + _CHUNK]
        own = nearest(levels.coarse_JxZ, z)
        order = np.argsort(own, kind="stable")
        ends_J = np.cumsum(np.bincount(own, minlength=len(levels.coarse_JxZ)))
        for j, rows in enumerate(np.split(order, ends_J[:-1])):
            start, stop = levels.start_J1[j : j + 2]
            if len(rows):
                out_B[first + rows] = start + nearest(levels.centroids_KxZ[start:stop], z[rows])
    return out_B


def nearest(centroids_KxZ: np.ndarray, z_BxZ: np.ndarray) -> np.ndarray:
    """The nearest centroid of each direction, `[B]`, as `content.nearest` on the host."""
    squares_K = (centroids_KxZ**2).sum(axis=1)
    return np.argmin(squares_K - 2 * (z_BxZ @ centroids_KxZ.T), axis=1)


def dealt(weight_J: np.ndarray, total: int) -> np.ndarray:
    """A total dealt out by weight in whole numbers, at least one each, `[J]`.

    >>> dealt(np.array([6.0, 3.0, 0.0]), 6).tolist()
    [3, 2, 1]
    """
    exact_J = weight_J / weight_J.sum() * (total - len(weight_J))
    counts_J = exact_J.astype(np.int64)
    left = total - len(weight_J) - counts_J.sum()
    counts_J[np.argsort(counts_J - exact_J, kind="stable")[:left]] += 1
    return counts_J + 1
