"""The contestants: every method with its grid of settings, behind one pair of functions.

`fit(model, train, settings) -> state`, then `score(state, model, train, query, settings)`. Each
method may try as many settings as the others, at most six, chosen on bank subsets that the final
figure does not use. Settings in one inner list share a fit.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stride_jax import stride, taps
from stride_jax.baselines import ekfac, gradients, less, logra, simple, text, trak
from stride_jax.baselines.model import Model
from stride_jax.data import Examples
from stride_jax.stride import StrideSettings


@dataclasses.dataclass(frozen=True)
class Method:
    """A contestant.

    Attributes:
      name: in the table.
      fit, score: see the module's docstring.
      grid: settings to choose from, in groups that share a fit.
      calibrates: whether the model's temperature changes its scores.
    """

    name: str
    fit: Callable[..., Any]
    score: Callable[..., np.ndarray]
    grid: Sequence[Sequence[Any]]
    calibrates: bool = True


@functools.lru_cache(maxsize=4)
def _tapped(model: Model, names: tuple[str, ...]) -> taps.TappedModel:
    # Kept, so that its jitted functions are compiled once.
    return taps.with_temperature(taps.from_model(model.module, names), model.temperature)


def fit_stride(
    model: Model, train: Examples, settings: tuple[tuple[str, ...], StrideSettings]
) -> stride.Index:
    """STRIDE's index of the training set."""
    tapped = _tapped(model, settings[0])
    return stride.fit(tapped, model.params, train.inputs, train.labels, settings[1], ids=train.ids)


def score_stride(
    state: stride.Index, model: Model, train: Examples, query: Examples, settings: Any
) -> np.ndarray:
    """STRIDE's scores of the queries, `[Q, N]`."""
    index = dataclasses.replace(state, settings=settings[1])
    return stride.attribute(
        _tapped(model, settings[0]), model.params, index, query.inputs, query.labels, ids=query.ids
    ).scores_QxN


def _stride_grid(names: tuple[str, ...], base: StrideSettings) -> list[list[Any]]:
    """Joint training: lambda at full scale and at a small one; one fit for all."""
    return [
        [
            (
                names,
                dataclasses.replace(
                    base,
                    fit="joint",
                    lasso=dataclasses.replace(base.lasso, lambda_fraction=fraction),
                    measure=dataclasses.replace(base.measure, scale=scale),
                ),
            )
            for fraction in (0.05, 0.1, 0.2)
            for scale in (1.0, 0.01)
        ]
    ]


def _closed_form_grid(names: tuple[str, ...], base: StrideSettings) -> list[list[Any]]:
    """The closed form: damping."""
    return [
        [
            (
                names,
                dataclasses.replace(
                    base,
                    fit="closed_form",
                    closed_form=dataclasses.replace(base.closed_form, damping=damping),
                ),
            )
        ]
        for damping in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    ]


def contestants(
    names: tuple[str, ...], stride_settings: StrideSettings, *, is_text: bool = False
) -> list[Method]:
    """Every method that fits the data, STRIDE first."""
    many = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    g, t, r, e = (
        gradients.GradientSettings,
        trak.TrakSettings,
        logra.LograSettings,
        less.LessSettings,
    )
    methods = [
        Method("stride-joint", fit_stride, score_stride, _stride_grid(names, stride_settings)),
        Method("stride", fit_stride, score_stride, _closed_form_grid(names, stride_settings)),
        Method(
            "random", simple.fit_random, simple.score_random, [[simple.RandomSettings()]], False
        ),
        Method(
            "feature-cosine",
            simple.fit_cosine,
            simple.score_cosine,
            [[simple.CosineSettings(tap)] for tap in names],
            False,
        ),
        Method("grad-dot", gradients.fit, gradients.score, [[g()]]),
        Method("grad-cos", gradients.fit, gradients.score, [[g(cosine=True)]]),
        Method(
            "tracin",
            gradients.fit,
            gradients.score,
            [[g(all_checkpoints=True)], [g(all_checkpoints=True, cosine=True)]],
        ),
        Method("trak", trak.fit, trak.score, [[t(damping=d) for d in many]]),
        Method(
            "logra",
            logra.fit,
            logra.score,
            [
                [r(rank=32, init=init, damping=d) for d in dampings]
                for init, dampings in (("pca", (1e-2, 1e-1, 1.0, 10.0)), ("random", (1e-1, 1.0)))
            ],
        ),
        Method("ekfac", ekfac.fit, ekfac.score, [[ekfac.EkfacSettings(damping=d) for d in many]]),
        Method("less", less.fit, less.score, [[e(epsilon=x)] for x in (1e-2, 1e-1, 1.0)]),
    ]
    if is_text:
        methods += [
            Method("tf-idf", text.fit_tfidf, text.score_tfidf, [[text.TfidfSettings()]], False),
            Method("bm25", text.fit_bm25, text.score_bm25, [[text.Bm25Settings()]], False),
        ]
    return methods
