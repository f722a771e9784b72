"""What `growth` compares with: inverted files of the vectors themselves, probed cluster by cluster.

Letters of its own: Z numbers of a gradient, P examples compared per query, W places of the answer.
"""

import importlib.util
from typing import Any, Protocol

import numpy as np
from sklearn.cluster import MiniBatchKMeans

from benchmarks.growth_data import SEED, WIDTH, chunks
from benchmarks.growth_search import SAMPLE, TOP, best


class Probing(Protocol):
    """An inverted file of vectors, of which the clusters nearest to a query are read whole."""

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        """Rows of the largest inner products among about `count` vectors, `[W]`."""
        ...

    def evaluated(self, v_QxZ: np.ndarray, count: int) -> float:
        """Mean number of vectors that questions of `count` compare."""
        ...


class Faiss:
    """faiss-cpu's `IndexIVFFlat`: vectors join the nearest centroid, which `centroid · v` ranks.

    Its default for inner products, which joins by the inner product with unit centroids too, finds
    far less: .07 of the top ten where this finds .997 (N = 300,000, K = 8000, P = 1000).
    """

    name = "faiss IndexIVFFlat"

    def __init__(self, g_NxZ: np.ndarray, num_clusters: int, v_QxZ: np.ndarray) -> None:
        import faiss  # pyright: ignore[reportMissingImports]

        by_distance, self.ranked = faiss.IndexFlatL2(WIDTH), faiss.IndexFlatIP(WIDTH)
        metric = faiss.METRIC_INNER_PRODUCT
        self.index: Any = faiss.IndexIVFFlat(by_distance, WIDTH, num_clusters, metric)
        self.index.cp.spherical = False
        self.index.train(np.ascontiguousarray(g_NxZ[:SAMPLE]))
        for _, g_BxZ in chunks(g_NxZ):
            self.index.add(np.ascontiguousarray(g_BxZ))
        faiss.omp_set_num_threads(1)  # for questions, as for ours
        lists = self.index.invlists
        self.length_K = np.array([lists.list_size(k) for k in range(num_clusters)])
        self.ranked.add(by_distance.reconstruct_n(0, num_clusters))
        _, order_QxK = self.ranked.search(v_QxZ, num_clusters)
        self.seen_QxK = np.cumsum(self.length_K[order_QxK], axis=1)

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        most = 1 + int((self.seen_QxK[:, :-1] < count).sum(axis=1).max())  # for any query
        near, own = self.ranked.search(v_Z[None], most)
        probes = 1 + int((np.cumsum(self.length_K[own[0, :-1]]) < count).sum())
        self.index.nprobe = probes
        chosen = np.ascontiguousarray(own[:, :probes]), np.ascontiguousarray(near[:, :probes])
        return self.index.search_preassigned(v_Z[None], max(TOP), *chosen)[1][0]

    def evaluated(self, v_QxZ: np.ndarray, count: int) -> float:
        last_Q = (self.seen_QxK[:, :-1] < count).sum(axis=1)
        return float(self.seen_QxK[np.arange(len(last_Q)), last_Q].mean())


class Sklearn:
    """scikit-learn's k-means; clusters by `centroid · v` until P members are seen."""

    name = "scikit-learn k-means"

    def __init__(self, g_NxZ: np.ndarray, num_clusters: int, v_QxZ: np.ndarray) -> None:
        model: Any = MiniBatchKMeans(num_clusters, random_state=SEED, batch_size=16_384)
        model.fit(np.asarray(g_NxZ[:SAMPLE]))
        own_N = np.concatenate([model.predict(g_BxZ) for _, g_BxZ in chunks(g_NxZ)])
        self.g_NxZ, self.centre_KxZ = g_NxZ, model.cluster_centers_.astype(np.float32)
        self.row_N = np.argsort(own_N, kind="stable")
        self.start_K1 = np.append(0, np.cumsum(np.bincount(own_N, minlength=num_clusters)))

    def _rows(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        order_K = np.argsort(-(self.centre_KxZ @ v_Z), kind="stable")
        seen_K = np.cumsum(np.diff(self.start_K1)[order_K])
        probed = order_K[: 1 + int(np.searchsorted(seen_K[:-1], count))]
        return np.concatenate([self.row_N[self.start_K1[k] : self.start_K1[k + 1]] for k in probed])

    def ask(self, v_Z: np.ndarray, count: int) -> np.ndarray:
        rows = np.sort(self._rows(v_Z, count))
        return rows[best(self.g_NxZ[rows] @ v_Z)]

    def evaluated(self, v_QxZ: np.ndarray, count: int) -> float:
        return float(np.mean([len(self._rows(v_Z, count)) for v_Z in v_QxZ]))


def opponent() -> type[Faiss] | type[Sklearn]:
    """faiss-cpu's inverted file where it is installed, else scikit-learn's clusters."""
    return Sklearn if importlib.util.find_spec("faiss") is None else Faiss
