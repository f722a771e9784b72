"""Models trained again with other weights of the training examples, and how far they moved.

Letters of its own: J weightings, E seeds, s steps.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.house import Row
from stride_jax.evaluation import unit_of_effects
from stride_jax.evaluation.retrain import chunks, model_keys
from stride_jax.examples import Examples
from stride_jax.models.train import (
    TrainSettings,
    initial_params,
    optimizer,
    order_batches,
)
from stride_jax.objectives import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.runtime.files import fingerprint, read_arrays, write_arrays


@functools.partial(jax.jit, static_argnames=("module", "training"))
def retrained(
    data: dict[str, jax.Array],
    weights_JxN: jax.Array,
    keys_J: jax.Array,
    module: Any,
    training: TrainSettings,
) -> jax.Array:
    """Logits of the queries under models trained on `Σ_i w_i loss_i`, `[J, Q, C]`.

    Sequences give their losses instead, `[J, Q]`. A batch is as large as without weights and its
    sum is divided by its size: a weight of 0 leaves an example out, 2 is one more copy, and neither
    changes the number of steps.
    """
    inputs, labels_N = data["inputs"], data["labels"]

    def one(weight_N: jax.Array, key: jax.Array) -> jax.Array:
        init_key, order_key = jax.random.split(key)
        params = initial_params(module, init_key, inputs)
        rows_sxB = order_batches(jnp.arange(len(weight_N)), order_key, training)
        tx = optimizer(training, len(rows_sxB))

        def loss(params: Any, rows_B: jax.Array) -> jax.Array:
            labels = labels_N[rows_B]
            each = cross_entropy(module.apply({"params": params}, inputs[rows_B])[0], labels)
            weight = weight_N[rows_B].reshape(-1, *(1,) * (each.ndim - 1))
            return (weight * each).sum() / (labels >= 0).sum()

        def step(state: Any, rows_B: jax.Array) -> tuple[Any, None]:
            params, moments = state
            updates, moments = tx.update(jax.grad(loss)(params, rows_B), moments, params)
            return (optax.apply_updates(params, updates), moments), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), rows_sxB)
        logits = module.apply({"params": params}, data["query"])[0]
        if labels_N.ndim == 1:
            return logits
        return cross_entropy(logits / data["temperature"], data["query_labels"]).sum(axis=1)

    return jax.vmap(one)(weights_JxN, keys_J)


def outputs_of(
    run: Run, weights_JxN: np.ndarray, query: Examples, seeds: int, at_once: int
) -> np.ndarray:
    """Mean outputs over seeds under each weighting: `outputs_by_seed`, `[J, ...]`."""
    return outputs_by_seed(run, weights_JxN, query, seeds, at_once).mean(axis=1)


def outputs_by_seed(
    run: Run, weights_JxN: np.ndarray, query: Examples, seeds: int, at_once: int
) -> np.ndarray:
    """Outputs of each seed's model under each weighting.

    The seeds are the same for every weighting, so that what chance does falls out of differences in
    part. Models are written in chunks, and a measurement that was killed resumes.

    Args:
      run: module, recipe, training set.
      weights_JxN: of the training examples.
      query: what they are asked about.
      seeds: E.
      at_once: models trained together.

    Returns:
      Logits `[J, E, Q, C]`; losses of sequences at the base model's temperature, `[J, E, Q]`.
    """
    train, training = run.train, run.settings.train
    data = {
        "inputs": train.inputs, "labels": train.labels, "query": query.inputs,
        "query_labels": query.labels, "temperature": np.float32(run.model.temperature),
    }  # fmt: skip
    key = fingerprint(
        repr(run.module), training, data["inputs"], data["labels"], data["query"], weights_JxN
    )
    data = {name: jnp.asarray(v) for name, v in data.items()}
    total = len(weights_JxN) * seeds
    weighting_B, seed_B = np.divmod(np.arange(total), seeds)
    keys = model_keys(16, np.zeros(total, int), seed_B)
    folder, parts, size = run.workdir / "weighted", [], min(at_once, total)
    pieces = chunks(total, size)
    for start, stop in run.progress(pieces, desc="weighted", total=len(pieces)):
        path = folder / f"{key}-{seeds}-{start}-{stop}.npz"
        if not path.exists():
            rows = np.minimum(np.arange(start, start + size), total - 1)
            own = retrained(
                data, jnp.asarray(weights_JxN[weighting_B[rows]], jnp.float32), keys[rows],
                module=run.module, training=training,
            )  # fmt: skip
            write_arrays(path, outputs=np.asarray(own)[: stop - start])
        parts.append(read_arrays(path)["outputs"])
    outputs = np.concatenate(parts).reshape(len(weights_JxN), seeds, *parts[0].shape[1:])
    return outputs.astype(np.float64)


def centred(logits: np.ndarray) -> np.ndarray:
    """Logits without their mean over the classes, which no probability depends on."""
    return logits - logits.mean(axis=-1, keepdims=True)


def agreement(name: str, real: np.ndarray, predicted: np.ndarray, asked: float) -> list[Row]:
    """Correlation and slope of real on predicted shifts, pooled over all but the first axis.

    Args:
      name: start of the rows' names.
      real, predicted: `[J, …]`, shifts under each weighting.
      asked: correlation asked for.
    """
    x, y = (v.reshape(len(v), -1).astype(np.float64) for v in (real, predicted))
    slope = unit_of_effects(x.T, y.T)
    value, interval = correlation(x, y)
    other, other_interval = correlation(x - x.mean(axis=0), y - y.mean(axis=0))
    return [
        Row(f"{name}: correlation", value, "higher", interval, asked),
        Row(f"{name}, means taken off: correlation", other, "higher", other_interval),
        Row(f"{name}: slope, at least 0.5", slope.slope, "higher", slope.ci95, 0.5),
        Row(f"{name}: slope, at most 2", slope.slope, "lower", slope.ci95, 2.0),
    ]


def reliability(shifts_JxExP: np.ndarray, splits: int = 20) -> float:
    """Squared correlation of the mean over E seeds with a mean over endlessly many.

    Halves of the seeds are correlated, over random cuts, and Spearman and Brown's formula gives the
    figure of the whole, `2 r / (1 + r)`. A perfect prediction reaches its square root.

    >>> reliability(np.tile(np.arange(6.0).reshape(3, 1, 2), (1, 4, 1)))
    1.0
    """
    rng, half = np.random.default_rng(0), shifts_JxExP.shape[1] // 2
    each = []
    for _ in range(splits):
        order = rng.permutation(shifts_JxExP.shape[1])
        one, other = (
            shifts_JxExP[:, own].mean(axis=1).ravel()
            for own in (order[:half], order[half : 2 * half])
        )
        each.append(np.corrcoef(one, other)[0, 1])
    r = float(np.mean(each))
    return round(2 * r / (1 + r), 12)


def ceiling(name: str, real_JxExP: np.ndarray, predicted: np.ndarray) -> list[Row]:
    """What noise of the retrained models leaves to be predicted, and the correlation without it.

    Args:
      name: start of the rows' names.
      real_JxExP: shifts under each weighting, of each seed.
      predicted: `[J, …]`.
    """
    own = reliability(real_JxExP)
    rows = [Row(f"{name}: reliability of the retrained shifts", own, "higher")]
    if own > 0:
        x = real_JxExP.mean(axis=1)
        value, interval = correlation(x, predicted.reshape(len(x), -1).astype(np.float64))
        low, high = (v / np.sqrt(own) for v in interval)
        corrected = f"{name}, corrected for noise of retraining: correlation"
        rows.append(Row(corrected, value / np.sqrt(own), "higher", (low, high)))
    return rows


def correlation(
    real_JxP: np.ndarray, predicted_JxP: np.ndarray, draws: int = 1000
) -> tuple[float, tuple[float, float]]:
    """Pooled correlation, and its bootstrap interval over the rows.

    >>> correlation(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 4.0], [6.0, 8.0]]))[0]
    1.0
    """
    # Sums by row, of which a resample of the rows adds some.
    x, y = real_JxP, predicted_JxP
    parts = (x, y, x * x, y * y, x * y)
    sums_Jx5 = np.stack([v.sum(axis=1) for v in parts], axis=1)

    def of(rows: np.ndarray) -> float:
        a, b, aa, bb, ab = sums_Jx5[rows].sum(axis=0) / (len(rows) * x.shape[1])
        return float((ab - a * b) / max(np.sqrt((aa - a * a) * (bb - b * b)), 1e-300))

    rng = np.random.default_rng(0)
    drawn = [of(rng.integers(0, len(x), len(x))) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return of(np.arange(len(x))), (float(low), float(high))
