"""Counterfactual removal: does the model forget a query without its strongest proponents?

Letters of its own: J removals, Z sizes of removals, G examples removed.
"""

import dataclasses

import numpy as np

from stride_jax.evaluation.retrain import Retraining, model_keys, retrain
from stride_jax.evaluation.statistics import bootstrap_mean, ranking
from stride_jax.objectives import named_objective
from stride_jax.runtime.files import fingerprint
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class CounterfactualSettings:
    """The numbers of examples to remove, and of models to retrain.

    Attributes:
      top_k: numbers of examples to remove (the paper's by default); those below N are used.
      num_seeds: models per removal, the same seeds for every removal.
      num_controls: random removals of each size, each shared by all queries.
      models_at_once: models trained together under `vmap`.
      seed: random seed of initial parameters, orders, random removals and ties.
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
    """The effect of removing examples.

    Attributes:
      top_k: numbers of examples removed, Z sizes.
      drop_Z: drop of the true class's probability, mean over queries and seeds; positive: the
        removed examples helped. Of a loss without classes it is the rise of the loss, in nats.
      drop_ci95: bootstrap interval over queries for each size.
      drop_ZxQ: drop per size and query, mean over seeds.
    """

    top_k: tuple[int, ...]
    drop_Z: tuple[float, ...]
    drop_ci95: tuple[tuple[float, float], ...]
    drop_ZxQ: np.ndarray


@dataclasses.dataclass(frozen=True)
class CounterfactualReference:
    """What every method is compared with, computed once.

    Attributes:
      full_Q: probability of the true class under models of all training examples, mean over seeds;
        minus the loss where there are no classes.
      random: effect of random removals.
      key: hash of everything that it depends on.
    """

    full_Q: np.ndarray
    random: CounterfactualResult
    key: str


def _sizes(num_train: int, settings: CounterfactualSettings) -> tuple[int, ...]:
    if sizes := tuple(k for k in settings.top_k if k < num_train):
        return sizes
    raise ValueError(f"top_k={settings.top_k}: none is below num_train={num_train}")


def _key(setup: Retraining, settings: CounterfactualSettings) -> str:
    data = (setup.train.inputs, setup.train.labels, setup.query.inputs, setup.query.labels)
    matters = dataclasses.replace(settings, models_at_once=1)
    return fingerprint(repr(setup.module), setup.training, matters, *data)


def _goodness(
    setup: Retraining,
    settings: CounterfactualSettings,
    members_JxS: np.ndarray,
    progress: Progress,
) -> np.ndarray:
    """True class's probability on every query after each removal, mean over seeds, `[J, Q]`.

    Of a loss without classes it is minus the loss.
    """
    seeds = settings.num_seeds
    seed_J = np.tile(np.arange(seeds), len(members_JxS))
    chunks = retrain(
        setup,
        np.repeat(members_JxS, seeds, axis=0),
        model_keys(settings.seed, np.zeros_like(seed_J), seed_J),
        models_at_once=settings.models_at_once,
        progress=progress,
        desc=f"{len(setup.train) - members_JxS.shape[1]} removed",
    )
    losses = np.concatenate([out.losses_BxQ for out in chunks]).astype(np.float64)
    if not np.isfinite(losses).all():
        raise ValueError(
            "retrained models diverged: lower the recipe's learning_rate="
            f"{setup.training.learning_rate}"
        )
    classes = named_objective(setup.training.objective).classes
    good = np.exp(-losses) if classes else -losses
    return good.reshape(-1, seeds, len(setup.query)).mean(axis=1)


def _without(removed_JxG: np.ndarray, num_train: int) -> np.ndarray:
    """The rows that remain, `[J, N − G]` int32."""
    rows = np.arange(num_train, dtype=np.int32)
    return np.stack([np.setdiff1d(rows, removed) for removed in removed_JxG])


def _result(sizes: tuple[int, ...], drop_ZxQ: np.ndarray) -> CounterfactualResult:
    means, intervals = zip(*map(bootstrap_mean, drop_ZxQ), strict=True)
    return CounterfactualResult(sizes, means, intervals, drop_ZxQ)


def counterfactual_reference(
    setup: Retraining, settings: CounterfactualSettings, progress: Progress = silent
) -> CounterfactualReference:
    """Models of the whole training set, and of it without random examples.

    Args:
      setup: model, training examples, chosen queries and recipe.
      settings: sizes, seeds and controls.
      progress: wraps the chunks of models.

    Returns:
      The reference, for `counterfactual_removal` of any method.
    """
    num_train, sizes = len(setup.train), _sizes(len(setup.train), settings)
    full_Q = _goodness(setup, settings, np.arange(num_train, dtype=np.int32)[None], progress)[0]
    rng = np.random.default_rng(settings.seed)
    drops = []
    for k in sizes:
        removed = np.stack([rng.permutation(num_train)[:k] for _ in range(settings.num_controls)])
        p_JxQ = _goodness(setup, settings, _without(removed, num_train), progress)
        drops.append(full_Q - p_JxQ.mean(axis=0))
    return CounterfactualReference(full_Q, _result(sizes, np.stack(drops)), _key(setup, settings))


def counterfactual_removal(
    setup: Retraining,
    scores_QxN: np.ndarray,
    settings: CounterfactualSettings,
    reference: CounterfactualReference | None = None,
    progress: Progress = silent,
) -> CounterfactualResult:
    """Drop of the true class's probability when a query's top k proponents are removed.

    For query q and size k: `p_q(all) − p_q(all but the k highest scores of q)`, each the mean over
    the same seeds of models trained by the same recipe; one program is compiled per size.
    Of a loss without classes it is the rise of the loss.

    Args:
      setup: model, training examples, chosen queries and recipe; Z x Q x seeds models are trained.
      scores_QxN: `[query, train]`, positive = proponent; ties are broken at random.
      settings: sizes and seeds.
      reference: result of `counterfactual_reference` for the same arguments; computed if None.
      progress: wraps the chunks of models.

    Raises:
      ValueError: scores of another shape, or a reference of other arguments.
    """
    num_train, num_queries = len(setup.train), len(setup.query)
    if scores_QxN.shape != (num_queries, num_train):
        raise ValueError(
            f"scores of shape {scores_QxN.shape} do not fit {num_queries} queries and {num_train} "
            "training examples; the layout is [query, train]"
        )
    if reference is None:
        reference = counterfactual_reference(setup, settings, progress)
    elif reference.key != _key(setup, settings):
        raise ValueError(
            "the reference was made with another model, recipe, data or settings: call "
            "counterfactual_reference with these"
        )
    order_QxN = ranking(scores_QxN, settings.seed)
    drops = []
    for k in reference.random.top_k:
        members_QxS = _without(order_QxN[:, :k], num_train)
        p_QxQ = _goodness(setup, settings, members_QxS, progress)
        drops.append(reference.full_Q - np.diagonal(p_QxQ))
    return _result(reference.random.top_k, np.stack(drops))
