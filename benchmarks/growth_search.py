"""Sums of clusters and an inverted file over vectors, as an index by content answers.

An operator is the sum of a cluster's gradients, a query's influence is `v · g`. The sums share out
a score per size, the inverted file names the P strongest, and those are scored exactly by their
vectors. Clusters are on one level, as the product's, or on two (`levels`).

Letters of its own: Z numbers of a gradient, P examples scored exactly per query, W places of the
answer.
"""

import dataclasses
import time

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from benchmarks.growth_data import SEED, chunks
from benchmarks.levels import Levels, assign_levels, fit_levels, nearest
from stride_jax.inverted import Inverted, invert, strongest
from stride_jax.operators.content import spherical_means

TOP = (10, 50)
"""Lengths of the true top that answers are asked for; the longest is an answer's."""

SAMPLE = 1 << 18
"""Examples that centroids are fitted on, ours and the opponents'."""

Clusters = Levels | np.ndarray
"""Centroids on two levels, or on one."""


def fit_clusters(g_NxZ: np.ndarray, num_clusters: int, two_levels: bool) -> Clusters:
    """Centroids from the first 262,144 examples."""
    sample = np.asarray(g_NxZ[:SAMPLE])
    size_M = np.linalg.norm(sample, axis=1)
    fit = fit_levels if two_levels else spherical_means
    return fit(sample / size_M[:, None], size_M.astype(np.float64) ** 2, num_clusters, SEED)


def assign(clusters: Clusters, z_BxZ: np.ndarray) -> np.ndarray:
    """The cluster of each direction."""
    if isinstance(clusters, Levels):
        return assign_levels(clusters, z_BxZ)
    parts = [nearest(clusters, z_BxZ[i : i + 4096]) for i in range(0, len(z_BxZ), 4096)]
    return np.concatenate(parts).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Ours:
    """Sums of clusters and the inverted file.

    Attributes:
      g_NxZ: gradients, of which P are read per query.
      clusters: centroids.
      sums_KxZ: sums of the clusters' gradients, the operators.
      size_K: sums of the sizes of their members' gradients.
      file: members by cluster and size, the only numbers per example.
      error: squared distance of gradients from their centroid's direction, over their squares.
      build_seconds: assignment, sums and order, without the fit of centroids.
    """

    g_NxZ: np.ndarray
    clusters: Clusters
    sums_KxZ: np.ndarray
    size_K: np.ndarray
    file: Inverted
    error: float
    build_seconds: float

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the index without the numbers per example."""
        if isinstance(self.clusters, Levels):
            own = [getattr(self.clusters, f.name).nbytes for f in dataclasses.fields(Levels)]
        else:
            own = [self.clusters.nbytes]
        return sum(own) + self.sums_KxZ.nbytes + self.size_K.nbytes + self.file.start_K1.nbytes

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        """Rows of the largest influences among the strongest P, `[W]`."""
        share_K = self.sums_KxZ @ v_Z / self.size_K
        rows, _ = strongest(self.file, np.maximum(share_K, 0), count)
        rows = np.sort(rows[rows >= 0])
        return rows[best(self.g_NxZ[rows] @ v_Z)]


@threadpool_limits.wrap(limits=1)  # threads of small products wait for each other on busy cores
def build(g_NxZ: np.ndarray, clusters: Clusters) -> Ours:
    """Sums and inverted file of all gradients, chunk by chunk."""
    began = time.perf_counter()
    fine = clusters.centroids_KxZ if isinstance(clusters, Levels) else clusters
    centre_KxZ = fine / np.maximum(np.linalg.norm(fine, axis=1, keepdims=True), 1e-30)
    sums_KxZ = np.zeros(fine.shape)
    own_N, size_N = np.empty(len(g_NxZ), np.int32), np.empty(len(g_NxZ), np.float32)
    missed = squares = 0.0
    for first, g_BxZ in chunks(g_NxZ):
        size_B = np.linalg.norm(g_BxZ, axis=1)
        z_BxZ = g_BxZ / size_B[:, None]
        own_B = assign(clusters, z_BxZ)
        ones = scipy.sparse.csr_array(
            (np.ones(len(own_B)), (own_B, np.arange(len(own_B)))), (len(fine), len(own_B))
        )
        sums_KxZ += ones @ g_BxZ
        missed += (size_B**2 * ((z_BxZ - centre_KxZ[own_B]) ** 2).sum(axis=1)).sum()
        squares += (size_B**2).sum()
        own_N[first : first + len(own_B)], size_N[first : first + len(own_B)] = own_B, size_B
    size_K = np.maximum(np.bincount(own_N, size_N, len(fine)), 1e-30).astype(np.float32)
    file = invert(own_N, size_N, len(fine))
    seconds = time.perf_counter() - began
    sums_KxZ = sums_KxZ.astype(np.float32)
    return Ours(g_NxZ, clusters, sums_KxZ, size_K, file, float(missed / squares), seconds)


def best(w: np.ndarray) -> np.ndarray:
    """Places of the largest values, falling, the width of the answer at most."""
    width = min(max(TOP), len(w))
    if width == 0:
        return np.zeros(0, np.int64)
    top = np.argpartition(-w, width - 1)[:width]
    return top[np.argsort(-w[top], kind="stable")]


def scan(g_NxZ: np.ndarray, v_Z: np.ndarray) -> np.ndarray:
    """Rows of the largest of all N influences, `[W]`."""
    w_N = np.empty(len(g_NxZ), np.float32)
    for first, g_BxZ in chunks(g_NxZ):
        np.matmul(g_BxZ, v_Z, out=w_N[first : first + len(g_BxZ)])
    return best(w_N)
