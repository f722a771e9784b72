"""Wrong labels, planted: who finds them, and at what cost in forward passes.

Letter of its own: E seeds.
"""

import dataclasses
import functools
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from benchmarks.house import Row
from benchmarks.methods import changed
from benchmarks.pointing_figures import Note, open_run
from stride_jax import Design, Examples, IndexSettings, models, self_influence, stride
from stride_jax.adapters import from_model
from stride_jax.baselines import ekfac
from stride_jax.baselines.model import Model, batches
from stride_jax.objectives import cross_entropy
from stride_jax.run.pipeline import Run
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.taps import TappedModel

CONFIGS = ("mnist5k", "digits_resnet")
SHARE = 0.05
"""Of the labels that are wrong."""

SEEDS = 5
"""Sets of wrong labels, each with a model of its own; the first one tunes."""

DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
"""EK-FAC's, of which the first seed chooses; ours stays at its default."""

LARGER = (16, 32, 1024)
"""Width of a ResNet-9, pixels, and examples: where a forward pass is more than a few products."""


def mislabels(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """Wrong labels among a training set's: AUC of four methods, and our cost."""
    for config in CONFIGS:
        if only in config:
            run = open_run(config, workdir)
            note(_quality(config, run))
            note([_own_cost(config, run, form) for form in ("auto", "eigen")])
    if only in "larger":
        note([_larger_cost()])


# ── quality ──────────────────────────────────────────────────────────────────────────────────────


def _quality(config: str, run: Run) -> list[Row]:
    """AUC over seeds, and paired differences."""
    found = [_scores(run, seed) for seed in range(SEEDS)]
    best = max(DAMPINGS, key=lambda d: auc(found[0][0][f"EK-FAC {d}"], found[0][1]))
    names = {
        "self-influence": "self-influence",
        "gradient": "gradient",
        "EK-FAC": f"EK-FAC {best}",
        "loss": "loss",
    }
    aucs = {
        name: np.array([auc(scores[own], wrong_N) for scores, wrong_N in found[1:]])
        for name, own in names.items()
    }
    start = f"mislabels, {config}, {SHARE:.0%} wrong: AUC of"
    rows = [_over_seeds(f"{start} {name}", own) for name, own in aucs.items()]
    for other in ("gradient", "EK-FAC", "loss"):
        gain = aucs["self-influence"] - aucs[other]
        asked = None if other == "loss" else 0.0
        rows.append(_over_seeds(f"{start} self-influence less that of {other}", gain, asked))
    return rows


def _over_seeds(name: str, values_E: np.ndarray, asked: float | None = None) -> Row:
    """A mean over seeds with Student's interval."""
    mean = float(values_E.mean())
    half = float(scipy.stats.sem(values_E) * scipy.stats.t.ppf(0.975, len(values_E) - 1))
    return Row(name, mean, "higher", (mean - half, mean + half), asked)


def auc(scores_N: np.ndarray, wrong_N: np.ndarray) -> float:
    """Share of pairs (wrong, right label) in which the wrong one has the larger score.

    >>> auc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
    1.0
    """
    rank_N = scipy.stats.rankdata(scores_N)
    wrong, right = int(wrong_N.sum()), int((~wrong_N).sum())
    return float((rank_N[wrong_N].sum() - wrong * (wrong + 1) / 2) / (wrong * right))


def planted(examples: Examples, classes: int, seed: int) -> tuple[Examples, np.ndarray]:
    """The examples with wrong labels for some, drawn among the other classes, and which, `[N]`."""
    rng, count = np.random.default_rng(seed), len(examples)
    rows = rng.permutation(count)[: round(SHARE * count)]
    labels = examples.labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, classes, len(rows))) % classes
    wrong_N = np.isin(np.arange(count), rows)
    return Examples(examples.inputs, labels, examples.ids), wrong_N


def _scores(run: Run, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Every method's scores of one model trained on wrong labels; and which are wrong."""
    (splits, classes), settings = run.data, run.settings
    train, wrong_N = planted(splits["train"], classes, seed)
    # Labels of a user's held-out examples are as wrong as those of the others.
    held_out, _ = planted(splits["calibration"], classes, 1000 + seed)
    training = dataclasses.replace(settings.train, seed=seed)
    params = models.pretrain(run.module, train.inputs, train.labels, training)[0][-1]
    logits = np.asarray(from_model(run.module)(params, held_out.inputs)[0])
    model = Model(run.module, (params,), (1.0,), models.fit_temperature(logits, held_out.labels))
    tapped = model.tapped
    index = stride.fit(tapped, params, train.inputs, train.labels, settings.index, ids=train.ids)
    ours = self_influence(tapped, params, index, train)
    scores = {"self-influence": ours.scores_N, "loss": ours.loss_N}
    scores["gradient"] = _by_batches(functools.partial(_gradient, tapped, params), train)
    state = ekfac.fit(model, train, ekfac.EkfacSettings())
    for damping in DAMPINGS:
        own = functools.partial(_ekfac, model, state, damping)
        scores[f"EK-FAC {damping}"] = _by_batches(own, train)
    return scores, wrong_N


def _by_batches(one: Callable[..., jax.Array], train: Examples, size: int = 128) -> np.ndarray:
    run = jax.jit(one)
    parts = [np.asarray(run(x, y)) for _, x, y, _ in batches(train.inputs, train.labels, size)]
    return np.concatenate(parts)[: len(train)]


def _gradient(tapped: TappedModel, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """`||∇ loss_i||²` in all parameters, `[B]`."""

    def one(x: jax.Array, y: jax.Array) -> Any:
        own = jax.grad(lambda p: cross_entropy(tapped(p, x[None])[0][0], y))(params)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(own))

    return jax.vmap(one)(x, y)


def _ekfac(model: Model, state: Any, damping: float, x: jax.Array, y: jax.Array) -> jax.Array:
    """`Σ_layers <G_i, (F + lambda I)^{-1} G_i>` as in `baselines.ekfac`, `[B]`."""
    total: Any = 0.0
    for name, (a, d) in model.layer_pass(model.params, x, y, cross_entropy).items():
        left, right = state["bases"][name]
        values = state["eigenvalues"][name]
        values = values + damping * values.mean()
        g = jnp.einsum("bti,bto->bio", a @ left, d @ right)
        total += (g**2 / values[None]).sum(axis=(1, 2))
    return total


# ── cost ─────────────────────────────────────────────────────────────────────────────────────────


def _own_cost(config: str, run: Run, form: str) -> Row:
    settings = changed(run.settings.index, {"closed_form.fisher": form})
    said = "default curvature" if form == "auto" else f"curvature {form}"
    return _cost(f"self-influence, {config}, {said}", run.tapped, run.model.params, run.train,
                 settings)  # fmt: skip


def _larger_cost() -> Row:
    """Of a network that is not trained, as its weights change no cost."""
    width, pixels, count = LARGER
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, pixels, pixels, 3)).astype(np.float32)
    module = models.make_model(models.ModelSettings("resnet9", width=width), 10)
    params = models.initial_params(module, jax.random.key(0), jnp.asarray(x[:1]))
    name = f"self-influence, ResNet-9 of width {width} on {pixels} x {pixels} pixels"
    settings = IndexSettings(design=Design(num_subsets=50), taps=("pooled",))
    train = Examples(x, rng.integers(0, 10, count))
    return _cost(f"{name}, default curvature", from_model(module), params, train, settings)


def _cost(
    name: str, tapped: TappedModel, params: Any, train: Examples, settings: IndexSettings
) -> Row:
    """Seconds of a whole call over those of a forward pass in the same batches, compiled before."""
    index = stride.fit(tapped, params, train.inputs, train.labels, settings, ids=train.ids)
    execution = Execution(meshes.local_mesh())

    def forward() -> None:
        where = meshes.over_examples(meshes.local_mesh())
        for first in range(0, len(train), execution.batch_size):
            x = meshes.place(train.inputs[first : first + execution.batch_size], where)
            meshes.fetch(tapped(params, x)[0])

    def ours() -> None:
        self_influence(tapped, params, index, train, execution=execution)

    seconds: dict[Any, list[float]] = {forward: [], ours: []}
    for turn in range(8):
        for work, own in seconds.items():
            began = time.perf_counter()
            work()
            if turn:  # the first one compiles
                own.append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(seconds[ours], seconds[forward], strict=True)]
    ends = min(ratios), max(ratios)
    return Row(f"{name}: forward passes", statistics.median(ratios), "lower", ends, 1.5)
