"""Our own linen models, which return `(logits, activations)` and can replace activations."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from stride_jax.adapters.layers import adding
from stride_jax.taps import Activations, Params, TappedModel, check_names, from_function, select


def from_model(module: nn.Module, taps: Sequence[str] | None = None) -> TappedModel:
    """Tap one of our linen models, which return every layer and can replace it.

    Args:
      module: module whose call is `(x, replace={}) -> (logits, {tap: activation})`, as in
        `models.recording`.
      taps: names of the taps to return; all by default.

    Equal modules give the same tapped model, so that what is compiled for one serves the other.

    >>> from stride_jax.models import MLP
    >>> tapped = from_model(MLP(3, (4,)), taps=("hidden0",))
    >>> tapped is from_model(MLP(3, (4,)), taps=["hidden0"])
    True
    """
    names = check_names(taps)
    try:
        return _held(module, names)
    except TypeError:  # a module with settings that have no hash, such as a list
        return _held.__wrapped__(module, names)


@functools.lru_cache(maxsize=64)
def _held(module: nn.Module, taps: tuple[str, ...] | None) -> TappedModel:
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
    layers = tuple(n for n in getattr(module, "layers", ()) if taps is None or n in taps)
    return dataclasses.replace(tapped, dtype=getattr(settings, "dtype", None), layers=layers)
