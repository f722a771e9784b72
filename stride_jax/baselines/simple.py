"""Baselines that need no gradients: chance, and similarity of features."""

import numpy as np

from stride_jax.taps import Observed


def random_scores(num_queries: int, num_train: int, seed: int = 0) -> np.ndarray:
    """Chance: independent normal scores, `[Q, N]` float32."""
    return np.random.default_rng(seed).standard_normal((num_queries, num_train), np.float32)


def feature_cosine(train: Observed, query: Observed, tap: str) -> np.ndarray:
    """Cosine similarity of an activation, mean over tokens (RDS; FeatSim in the paper).

    `w_i = <h_x, h_i> / (||h_x|| ||h_i||)`, no sign: a similar example of another class counts as a
    proponent too.

    Args:
      train, query: the frozen model on both sets.
      tap: which activation; the last hidden layer by custom.

    Returns:
      `[Q, N]` float32 in [-1, 1].
    """

    def unit(observed: Observed) -> np.ndarray:
        h = np.asarray(observed.activations[tap]).mean(axis=1)
        return h / np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)

    return unit(query) @ unit(train).T
