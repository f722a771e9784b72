"""Our own linen models, which return `(logits, activations)` and can replace activations."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from stride_jax.adapters.layers import adding
from stride_jax.taps import Activations, Params, TappedModel, from_function, select


def from_model(module: nn.Module, taps: Sequence[str] | None = None) -> TappedModel:
    """Tap one of our linen models, which return every layer and can replace it.

    Args:
      module: module whose call is `(x, replace={}) -> (logits, {tap: activation})`, as in
        `models.recording`.
      taps: names of the taps to return; all by default.

    >>> from stride_jax.models import MLP
    >>> tapped = from_model(MLP(3, (4,)), taps=("hidden0",))
    """

    def function(params: Params, inputs: Any) -> Any:
        return module.apply({"params": params}, inputs)

    def suffix(params: Params, inputs: Any, replace: Activations) -> jax.Array:
        logits, activations = module.apply({"params": params}, inputs, replace=replace)
        select(activations, list(replace))
        return logits

    def shifted(params: Params, inputs: Any, shifts: Activations) -> Any:
        return module.apply({"params": params}, inputs, replace=adding(shifts))

    tapped = from_function(function, taps, suffix, shifted)
    settings = getattr(module, "settings", None)
    return dataclasses.replace(tapped, dtype=getattr(settings, "dtype", None))
