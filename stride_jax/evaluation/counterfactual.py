"""Counterfactual removal: does the model forget a query without its strongest proponents?"""

import dataclasses
from typing import Any

import numpy as np

from stride_jax.evaluation.retrain import device_data, model_keys, retrain
from stride_jax.evaluation.statistics import bootstrap_mean, ranking
from stride_jax.examples import Examples
from stride_jax.models.train import TrainSettings
from stride_jax.runtime.files import fingerprint
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class CounterfactualSettings:
    """How many examples are removed, and how often a model is retrained.

    Attributes:
      top_k: numbers of examples to remove (the paper's by default); those below N are used.
      num_seeds: models a removal, the same seeds for every removal.
      num_controls: random removals of each size, each shared by all queries.
      models_at_once: models trained together under `vmap`.
      seed: of initial parameters, orders, random removals and ties.
    """

    top_k: tuple[int, ...] = (50, 100, 500, 1000, 2000)
    num_seeds: int = 2
    num_controls: int = 10
    models_at_once: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.top_k or min(self.top_k) < 1 or len(set(self.top_k)) < len(self.top_k):
            raise ValueError(f"top_k={self.top_k}: use distinct numbers from 1")
        if min(self.num_seeds, self.num_controls, self.models_at_once) < 1:
            raise ValueError(
                f"num_seeds={self.num_seeds}, num_controls={self.num_controls}, "
                f"models_at_once={self.models_at_once}: all must be at least 1"
            )


@dataclasses.dataclass(frozen=True)
class CounterfactualResult:
    """What removing examples did.

    Attributes:
      top_k: examples removed, K sizes.
      drop_K: drop of the true class's probability, mean over queries and seeds; positive: the
        removed examples helped.
      drop_ci95: bootstrap interval over queries of each.
      drop_KxQ: one drop a size and query, mean over seeds.
    """

    top_k: tuple[int, ...]
    drop_K: tuple[float, ...]
    drop_ci95: tuple[tuple[float, float], ...]
    drop_KxQ: np.ndarray


@dataclasses.dataclass(frozen=True)
class CounterfactualReference:
    """What every method is compared with; it is computed once.

    Attributes:
      full_Q: probability of the true class under models of all training examples, mean over seeds.
      random: the drop after random removals.
      key: hash of all it depends on.
    """

    full_Q: np.ndarray
    random: CounterfactualResult
    key: str


def _sizes(num_train: int, settings: CounterfactualSettings) -> tuple[int, ...]:
    if sizes := tuple(k for k in settings.top_k if k < num_train):
        return sizes
    raise ValueError(f"top_k={settings.top_k}: none is below num_train={num_train}")


def _key(
    module: Any,
    train: Examples,
    query: Examples,
    training: TrainSettings,
    settings: CounterfactualSettings,
) -> str:
    data = (train.inputs, train.labels, query.inputs, query.labels)
    matters = dataclasses.replace(settings, models_at_once=1)
    return fingerprint(repr(module), training, matters, *data)


def _probabilities(
    module: Any,
    train: Examples,
    query: Examples,
    training: TrainSettings,
    settings: CounterfactualSettings,
    members_JxS: np.ndarray,
    progress: Progress,
) -> np.ndarray:
    """True class's probability on every query without each removal, mean over seeds, `[J, Q]`."""
    seeds = settings.num_seeds
    seed_J = np.tile(np.arange(seeds), len(members_JxS))
    chunks = retrain(
        module,
        training,
        device_data(train, query),
        np.repeat(members_JxS, seeds, axis=0),
        model_keys(settings.seed, np.zeros_like(seed_J), seed_J),
        models_at_once=settings.models_at_once,
        progress=progress,
        desc=f"{len(train) - members_JxS.shape[1]} removed",
    )
    losses = np.concatenate([out.losses_BxQ for out in chunks]).astype(np.float64)
    if not np.isfinite(losses).all():
        raise ValueError("retrained models diverged: lower the learning rate of the recipe")
    return np.exp(-losses).reshape(-1, seeds, len(query)).mean(axis=1)


def _without(removed_JxR: np.ndarray, num_train: int) -> np.ndarray:
    """The rows that remain, `[J, N − R]` int32."""
    rows = np.arange(num_train, dtype=np.int32)
    return np.stack([np.setdiff1d(rows, removed) for removed in removed_JxR])


def _result(sizes: tuple[int, ...], drop_KxQ: np.ndarray) -> CounterfactualResult:
    means, intervals = zip(*map(bootstrap_mean, drop_KxQ), strict=True)
    return CounterfactualResult(sizes, means, intervals, drop_KxQ)


def counterfactual_reference(
    module: Any,
    train: Examples,
    query: Examples,
    training: TrainSettings,
    settings: CounterfactualSettings,
    progress: Progress = silent,
) -> CounterfactualReference:
    """Models of the whole training set and of it without random examples.

    Args:
      module: linen model whose call returns `(logits, activations)`.
      train: training examples.
      query: the chosen queries.
      training: the recipe.
      settings: sizes, seeds and controls.
      progress: wraps the chunks of models.

    Returns:
      The reference, for `counterfactual_removal` of any method.
    """
    num_train, sizes = len(train), _sizes(len(train), settings)
    args = (module, train, query, training, settings)
    full_Q = _probabilities(*args, np.arange(num_train, dtype=np.int32)[None], progress)[0]
    rng = np.random.default_rng(settings.seed)
    drops = []
    for k in sizes:
        removed = np.stack([rng.permutation(num_train)[:k] for _ in range(settings.num_controls)])
        left = _probabilities(*args, _without(removed, num_train), progress)
        drops.append(full_Q - left.mean(axis=0))
    return CounterfactualReference(full_Q, _result(sizes, np.stack(drops)), _key(*args))


def counterfactual_removal(
    module: Any,
    train: Examples,
    query: Examples,
    scores_QxN: np.ndarray,
    training: TrainSettings,
    settings: CounterfactualSettings,
    reference: CounterfactualReference | None = None,
    progress: Progress = silent,
) -> CounterfactualResult:
    """Drop of the true class's probability when a query's top k proponents are removed.

    For query q and size k: `p_q(all) − p_q(all but the k highest scores of q)`, each the mean over
    the same seeds of models trained by the same recipe; one program is compiled a size.

    Args:
      module: linen model whose call returns `(logits, activations)`.
      train: training examples.
      query: the chosen queries; K x Q x seeds models are trained.
      scores_QxN: `[query, train]`, positive = proponent; ties are broken at random.
      training: the recipe.
      settings: sizes and seeds.
      reference: what `counterfactual_reference` returned for the same arguments; made here if None.
      progress: wraps the chunks of models.

    Raises:
      ValueError: scores of another shape, or a reference made from something else.
    """
    if scores_QxN.shape != (len(query), len(train)):
        raise ValueError(
            f"scores of shape {scores_QxN.shape} do not fit {len(query)} queries and {len(train)} "
            "training examples; the layout is [query, train]"
        )
    args = (module, train, query, training, settings)
    if reference is None:
        reference = counterfactual_reference(*args, progress)
    elif reference.key != _key(*args):
        raise ValueError("the reference was made with another model, recipe, data or settings")
    order_QxN = ranking(scores_QxN, settings.seed)
    drops = []
    for k in reference.random.top_k:
        left_QxQ = _probabilities(*args, _without(order_QxN[:, :k], len(train)), progress)
        drops.append(reference.full_Q - np.diagonal(left_QxQ))
    return _result(reference.random.top_k, np.stack(drops))
