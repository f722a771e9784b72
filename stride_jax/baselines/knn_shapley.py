"""Nearest neighbours' Shapley values: Jia et al., Efficient Task-Specific Data Valuation, 2019."""

import dataclasses

import numpy as np

from stride_jax.baselines.model import Model
from stride_jax.baselines.simple import features
from stride_jax.data import Examples


@dataclasses.dataclass(frozen=True)
class KnnShapleySettings:
    """The classifier whose utility is shared out.

    Attributes:
      tap: activation in which distances are taken; empty for the last one.
      neighbours: that vote.
      batch_size: examples per pass.
    """

    tap: str = ""
    neighbours: int = 10
    batch_size: int = 512


def fit(model: Model, train: Examples, settings: KnnShapleySettings) -> np.ndarray:
    """Activations of the training set, `[N, D]`.

    Raises:
      ValueError: labels that are not one class an example.
    """
    if np.ndim(train.labels) != 1 or not model.objective.classes:
        raise ValueError(
            f"neighbours vote for one class an example, and labels are {train.labels.dtype}"
            f"{list(np.shape(train.labels))}: use another baseline"
        )
    return features(model, train, settings.tap, batch_size=settings.batch_size)


def score(
    state: np.ndarray,
    model: Model,
    train: Examples,
    query: Examples,
    settings: KnnShapleySettings,
) -> np.ndarray:
    """Shapley values of the share of a query's nearest neighbours that have its class.

    Examples by distance, nearest first, k neighbours vote, `m_i = [y_i = y_x]`:
    `w_N = m_N / max(N, k)`, `w_i = w_{i+1} + (m_i − m_{i+1}) / k · min(k, i) / i`.

    Returns:
      `[Q, N]` float32.
    """
    k, count = settings.neighbours, len(train)
    own = features(model, query, settings.tap, batch_size=settings.batch_size)
    distance = (state**2).sum(axis=1)[None] - 2 * own @ state.T
    order = np.argsort(distance, axis=1, kind="stable")
    match = (np.asarray(train.labels)[order] == np.asarray(query.labels)[:, None]).astype(float)
    place = np.arange(1, count)
    step = (match[:, :-1] - match[:, 1:]) / k * np.minimum(k, place) / place
    last = match[:, -1:] / max(count, k)
    sorted_scores = np.concatenate([step, last], axis=1)[:, ::-1].cumsum(axis=1)[:, ::-1]
    out = np.empty((len(query), count), np.float32)
    np.put_along_axis(out, order, sorted_scores.astype(np.float32), axis=1)
    return out
