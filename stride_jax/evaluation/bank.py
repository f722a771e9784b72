"""The bank: models really retrained on random subsets, the ground truth of every figure.

Many models train at once under `vmap`; a shard of them is written as soon as it is done, so a
killed run loses one shard at most. The folder is named by a hash of everything that matters.
"""

import dataclasses
import functools
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.data.examples import Examples
from stride_jax.models.train import TrainSettings, cross_entropy, fit, initial_params
from stride_jax.runtime.files import (
    UnreadableFileError,
    fingerprint,
    read_arrays,
    write_arrays,
    write_json,
)
from stride_jax.runtime.progress import Progress, silent


@dataclasses.dataclass(frozen=True)
class BankSettings:
    """Which subsets are retrained on, and how often.

    Attributes:
      num_subsets: m.
      alpha: share of the training set in a subset.
      num_seeds: models a subset, each with its own initial parameters and order.
      models_at_once: models trained together under `vmap`, and written together.
      seed: of subsets, initial parameters and orders.
    """

    num_subsets: int = 100
    alpha: float = 0.5
    num_seeds: int = 2
    models_at_once: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha={self.alpha} must lie strictly between 0 and 1")
        if min(self.num_subsets, self.num_seeds, self.models_at_once) < 1:
            raise ValueError(
                f"num_subsets={self.num_subsets}, num_seeds={self.num_seeds}, "
                f"models_at_once={self.models_at_once}: all must be at least 1"
            )


@dataclasses.dataclass(frozen=True)
class Bank:
    """Losses of retrained models.

    Attributes:
      members_MxS: training rows of each subset.
      losses_MxExQ: cross-entropy in nats of query Q under the model of subset M and seed E.
      settings: what made it, as JSON values.
      seconds: time spent training.
    """

    members_MxS: np.ndarray
    losses_MxExQ: np.ndarray
    settings: BankSettings
    seconds: float

    @property
    def target_QxM(self) -> np.ndarray:
        """What a score should predict: minus the loss, mean over seeds, `[Q, M]`."""
        return -self.losses_MxExQ.mean(axis=1).T


def draw_subsets(num_train: int, settings: BankSettings) -> np.ndarray:
    """m random subsets of `round(alpha N)` rows each, `[M, S]` int32, sorted within a row.

    Subset j depends on (seed, j) alone, so a larger bank extends a smaller one.

    Raises:
      ValueError: alpha leaves a subset empty or whole.
    """
    size = round(settings.alpha * num_train)
    if not 0 < size < num_train:
        raise ValueError(
            f"alpha={settings.alpha} of num_train={num_train} examples gives subsets of {size}; "
            "a subset must be neither empty nor the whole set"
        )
    return np.stack(
        [
            np.sort(np.random.default_rng([settings.seed, j]).permutation(num_train)[:size])
            for j in range(settings.num_subsets)
        ]
    ).astype(np.int32)


def bank_key(
    module: Any, train: Examples, query: Examples, training: TrainSettings, settings: BankSettings
) -> str:
    """Hash of everything the losses depend on; how many models train at once does not matter."""
    matters = dataclasses.replace(settings, models_at_once=1)
    return fingerprint(
        repr(module), training, matters, train.inputs, train.labels, query.inputs, query.labels
    )


def model_keys(bank_seed: int, subset_B: np.ndarray, seed_B: np.ndarray) -> jax.Array:
    """Key of each model: a function of (bank seed, subset, seed) alone."""
    root = jax.random.key(bank_seed)
    fold = jax.vmap(lambda j, e: jax.random.fold_in(jax.random.fold_in(root, j), e))
    return fold(jnp.asarray(subset_B, jnp.uint32), jnp.asarray(seed_B, jnp.uint32))


@functools.partial(jax.jit, static_argnames=("module", "training"))
def _train_and_score(
    module: Any,
    training: TrainSettings,
    data: dict[str, jax.Array],
    members_BxS: jax.Array,
    keys_B: jax.Array,
) -> jax.Array:
    def one(members_S: jax.Array, key: jax.Array) -> jax.Array:
        init_key, order_key = jax.random.split(key)
        params = initial_params(module, init_key, data["inputs"])
        forward = lambda p, x: module.apply({"params": p}, x)[0]  # noqa: E731
        params = fit(
            forward, params, data["inputs"], data["labels"], members_S, order_key, training
        )
        return cross_entropy(forward(params, data["query_inputs"]), data["query_labels"])

    return jax.vmap(one)(members_BxS, keys_B)


def build_bank(
    module: Any,
    train: Examples,
    query: Examples,
    training: TrainSettings,
    settings: BankSettings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = silent,
    clock: Any = None,
) -> Bank:
    """Retrain on every subset and seed, or read what is already there.

    Args:
      module: linen model whose call returns `(logits, activations)`.
      train, query: examples.
      training: the base model's own recipe.
      settings: subsets and seeds.
      folder: banks live in `folder/<bank_key>`, one shard of models a file.
      progress: wraps the shards.
      clock: `time.monotonic` or the like; None records no time.

    Returns:
      The bank. A run that was killed and resumed gives the same bytes as one that was not, if
      `models_at_once` is the same (XLA may round differently for another batch of models).
    """
    members_MxS = draw_subsets(len(train), settings)
    home = pathlib.Path(folder) / bank_key(module, train, query, training, settings)
    total = settings.num_subsets * settings.num_seeds
    size = min(settings.models_at_once, total)
    data = {
        "inputs": jnp.asarray(train.inputs),
        "labels": jnp.asarray(train.labels),
        "query_inputs": jnp.asarray(query.inputs),
        "query_labels": jnp.asarray(query.labels),
    }
    losses, seconds = np.empty((total, len(query)), np.float32), 0.0
    for start in progress(range(0, total, size), desc="bank", total=math.ceil(total / size)):
        stop = min(start + size, total)
        path = home / f"models-{start:05d}-{stop:05d}.npz"
        shard = _read_shard(path, stop - start, len(query))
        if shard is None:
            began = clock() if clock else 0.0
            # Every shard has one shape: the last one repeats its last model.
            model = np.minimum(np.arange(start, start + size), total - 1)
            subset, seed = model // settings.num_seeds, model % settings.num_seeds
            out = _train_and_score(
                module,
                training,
                data,
                jnp.asarray(members_MxS[subset]),
                model_keys(settings.seed, subset, seed),
            )
            block = np.asarray(out)[: stop - start]
            shard = {"losses": block, "seconds": np.array((clock() if clock else 0.0) - began)}
            write_arrays(path, **shard)
        losses[start:stop] = shard["losses"]
        seconds += float(shard["seconds"])
    if not np.isfinite(losses).all():
        raise ValueError("retrained models diverged: lower the learning rate of the recipe")
    write_json(home / "settings.json", {"bank": settings, "training": training})
    shape = (settings.num_subsets, settings.num_seeds, len(query))
    return Bank(members_MxS, losses.reshape(shape), settings, seconds)


def _read_shard(path: pathlib.Path, models: int, queries: int) -> dict[str, np.ndarray] | None:
    """A finished shard, or None; one that can't be read is set aside and made again."""
    try:
        shard = read_arrays(path)
        if shard["losses"].shape == (models, queries):
            return shard
    except FileNotFoundError:
        return None
    except (UnreadableFileError, KeyError):
        pass
    path.rename(path.with_suffix(".corrupt"))
    return None
