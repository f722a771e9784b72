"""Opponents: one file a method, one pair of functions.

`fit(model, train, settings)` gives a state, `score(state, model, train, query, settings)` the
scores, `[query, train]`.
"""

from typing import Any

from stride_jax.attribution import Attribution
from stride_jax.baselines.model import Model
from stride_jax.data import Examples
from stride_jax.runtime.files import plain

__all__ = ["attribute"]


def attribute(
    method: Any, model: Model, train: Examples, query: Examples, settings: Any
) -> Attribution:
    """Scores of a baseline with ids and settings, as STRIDE gives them.

    Args:
      method: a module with `fit` and `score`, such as `baselines.ekfac`.
      model: base model, its checkpoints and temperature.
      train, query: examples.
      settings: the method's own.

    Returns:
      `[query, train]`, positive = proponent.
    """
    scores = method.score(method.fit(model, train, settings), model, train, query, settings)
    made_by = {"method": method.__name__.rsplit(".", 1)[-1], **plain(settings)}
    return Attribution(query.ids, train.ids, scores, made_by)
