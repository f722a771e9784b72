"""Steered logits against those of models that were really trained with other weights.

The model is steered as it was trained, at no temperature: the weighted loss is that of its own
logits, and so are the errors that the operators sum.

Letters of its own: J weightings, G groups.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.house import Row
from benchmarks.objectives_models import (
    agreement,
    ceiling,
    centred,
    correlation,
    outputs_by_seed,
)
from benchmarks.pointing_figures import Note, open_run
from stride_jax import stride
from stride_jax.adapters import from_model
from stride_jax.design import Design
from stride_jax.index import Index
from stride_jax.models import ModelSettings, TrainSettings
from stride_jax.run.pipeline import Run
from stride_jax.steer import steer
from stride_jax.taps import TappedModel


class Case(NamedTuple):
    """A model that is steered and trained again.

    Attributes:
      config: its data, model and recipe.
      changes: of the config's settings.
      seeds: models trained with each weighting.
      at_once: models trained together.
    """

    config: str
    changes: dict[str, Any]
    seeds: int
    at_once: int

    def open(self, workdir: pathlib.Path) -> Run:
        """Its run."""
        return open_run(self.config, workdir, **self.changes)


LINEAR = {
    "model": ModelSettings("mlp", widths=()),
    "train": TrainSettings(epochs=100, batch_size=64, learning_rate=0.05),
}
"""A softmax regression; most of these digits are separable, so that its weights grow for ever."""

RIDGE = LINEAR | {"train": TrainSettings(epochs=50, learning_rate=0.05, weight_decay=0.01)}
"""The same with an optimum, about which the first order is one of."""

DECAYED = {"train": TrainSettings(epochs=50, batch_size=250, learning_rate=0.05, weight_decay=0.03)}
"""Decay so strong that a network's seeds end at almost one function; it costs accuracy (.90)."""

CASES = {
    "digits, softmax regression": Case("digits_resnet", LINEAR, 2, 20),
    "mnist5k, softmax regression": Case("mnist5k", LINEAR, 2, 20),
    "digits, softmax regression with weight decay": Case("digits_resnet", RIDGE, 2, 20),
    "mnist5k, softmax regression with weight decay": Case("mnist5k", RIDGE, 2, 20),
    "mnist5k, MLP": Case("mnist5k", {}, 8, 20),
    "mnist5k, MLP with strong weight decay": Case("mnist5k", DECAYED, 4, 21),
    "digits, ResNet-9": Case("digits_resnet", {}, 4, 12),
}

SUBSETS = Design(num_subsets=20, degree=1, kind="hash")
"""Twenty random subsets of about 5 % of the examples each."""


def steering(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """The weight of a random subset doubled: shifts of the queries' logits."""
    for title, case in _chosen(only):
        run = case.open(workdir)
        tapped, params = from_model(run.module), run.model.params
        index = _fit(run, tapped, design=SUBSETS, kept=0)
        member_JxN = np.zeros((SUBSETS.num_subsets, len(run.train)), bool)
        np.put_along_axis(member_JxN.T, np.asarray(index.subsets_Nxd), True, axis=1)
        real = _moved(run, member_JxN, 2.0, case)  # [J, E, Q, C]
        x = jnp.asarray(run.query.inputs)
        one = lambda k: steer(tapped, params, index, x, subset=k)  # noqa: B023, E731
        steered = jax.lax.map(one, jnp.arange(SUBSETS.num_subsets))
        predicted = centred(np.asarray(steered - tapped(params, x)[0]))
        name = f"steer, {title}, weight of a random 5 % doubled"
        note(agreement(name, real.mean(axis=1), predicted, 0.85))
        note(ceiling(name, real.reshape(*real.shape[:2], -1), predicted))


def without_groups(workdir: pathlib.Path, note: Note, only: str = "") -> None:
    """Twenty groups of 5 %, each left out: shifts of the queries' logits, and of their losses."""
    for title, case in _chosen(only):
        run = case.open(workdir)
        for kind, names in (("styles", styles(run.train.inputs, run.train.labels)),
                            ("random", shuffled(len(run.train)))):  # fmt: skip
            tapped, params = from_model(run.module), run.model.params
            index = _fit(run, tapped, groups=names)
            assert index.groups is not None, "they were named"
            member_GxN = index.groups.names[:, None] == names[None]
            real = _moved(run, member_GxN, 0.0, case).mean(axis=1)
            x = jnp.asarray(run.query.inputs)
            plain = tapped(params, x)[0]
            predicted = np.stack([
                centred(np.asarray(steer(tapped, params, index, x, without=name) - plain))
                for name in index.groups.names.tolist()
            ])  # fmt: skip
            name = f"groups, {title}, without one of 20 ({kind})"
            note(agreement(name, real, predicted, 0.8))
            query = run.query
            found = stride.attribute_groups(
                tapped, params, index, query.inputs, query.labels, ids=query.ids
            )
            before = np.asarray(plain, np.float64)
            rise_GxQ = _loss(before + real, query.labels) - _loss(before, query.labels)
            value, interval = correlation(rise_GxQ, found.scores_QxN.T.astype(np.float64))
            note([Row(f"{name}: correlation of losses", value, "higher", interval)])


def styles(inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Groups that differ in content: each class cut in two halves along its main direction."""
    names = np.empty(len(labels), "U8")
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        x = inputs[own].reshape(len(own), -1).astype(np.float64)
        x = x - x.mean(axis=0)
        along = x @ np.linalg.svd(x, full_matrices=False)[2][0]
        order = own[np.argsort(along)]
        names[order[: len(own) // 2]] = f"{label}a"
        names[order[len(own) // 2 :]] = f"{label}b"
    return names


def shuffled(count: int, groups: int = 20) -> np.ndarray:
    """Groups at random, of equal size."""
    return np.array([f"g{i}" for i in np.random.default_rng(0).permutation(count) % groups])


def _loss(logits: np.ndarray, labels_Q: np.ndarray) -> np.ndarray:
    own = logits[..., np.arange(len(labels_Q)), labels_Q]
    return np.logaddexp.reduce(logits, axis=-1) - own


def _chosen(only: str) -> list[tuple[str, Case]]:
    return [(title, case) for title, case in CASES.items() if only in title]


def _fit(run: Run, tapped: TappedModel, *, groups: Any = None, **changes: Any) -> Index:
    settings = dataclasses.replace(run.settings.index, **changes)
    train = run.train
    return stride.fit(
        tapped, run.model.params, train.inputs, train.labels, settings, ids=train.ids,
        groups=groups,
    )  # fmt: skip


def _moved(run: Run, member_JxN: np.ndarray, weight: float, case: Case) -> np.ndarray:
    """Centred shifts of each seed's logits where members have another weight, `[J, E, Q, C]`."""
    everyone = np.ones((1, member_JxN.shape[1]))
    others = np.where(member_JxN, weight, 1.0)
    logits = [
        outputs_by_seed(run, weights, run.query, case.seeds, case.at_once)
        for weights in (everyone, others)
    ]
    return centred(logits[1] - logits[0])
