"""Any flax.linen module that returns logits."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import errors
from flax import linen as nn

from stride_jax.adapters.layers import Layers, check_call, tap_layers
from stride_jax.taps import Params, TappedModel


def from_linen(module: nn.Module, taps: Sequence[str] | None = None, **call: Any) -> TappedModel:
    """Tap any linen module that returns logits: the outputs of its submodules.

    Taps are submodule paths such as `Dense_0` or `block1/mlp`, `Dense_0#2` where a submodule is
    called a second time, and `input` for inputs that are floating.

    Args:
      module: module that is applied in inference, without random numbers or updates.
      taps: names of the taps to return; all by default.
      **call: keyword arguments of its `__call__`, such as `train=False`.

    Returns:
      A tapped model whose `params` are all of the module's collections, `{"params": …,
      "batch_stats": …}`, or, where it has no other, the tree of its parameters alone.

    Raises:
      ValueError: arguments that `__call__` does not take; when the model is first traced, a missing
        collection, or a module in training mode.

    >>> tapped = from_linen(nn.Dense(3))
    >>> tapped = from_linen(nn.BatchNorm(), use_running_average=True)
    """
    check_call(module.__call__, 1, call, "from_linen")  # pyright: ignore[reportAttributeAccessIssue]

    def run(params: Params, inputs: Any, layers: Layers) -> jax.Array:
        def intercept(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = method(*args, **kwargs)
            path = "/".join(context.module.path)
            return layers(path, output) if path and context.method_name == "__call__" else output

        try:
            with nn.intercept_methods(intercept):
                logits, state = module.apply(
                    _collections(params), inputs, capture_intermediates=True, **call
                )
        except (errors.FlaxError, ValueError) as error:
            raise _explained(error, params) or error from None
        # Flax carries outputs out of remat, which an interceptor cannot.
        for name, value in _captured(state["intermediates"]):
            if layers.shapes.get(name) == getattr(value, "shape", None):
                layers.outputs[name] = value
        return logits

    return tap_layers(run, taps)


def _collections(params: Params) -> dict[str, Any]:
    """All collections, from all of them or from the parameters alone."""
    if isinstance(params, Mapping) and "params" in params:
        # Values sown by the call of `init` are no part of the model.
        return {name: tree for name, tree in params.items() if name != "intermediates"}
    return {"params": params}


def _captured(intermediates: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Any]:
    """`(tap, output)` of every call of a submodule."""
    for key, value in intermediates.items():
        if isinstance(value, Mapping):
            yield from _captured(value, (*path, key))
        elif key == "__call__" and path:
            for call, output in enumerate(value, start=1):
                name = "/".join(path)
                yield (name if call == 1 else f"{name}#{call}"), output


def _explained(error: Exception, params: Params) -> ValueError | None:
    """An error that names the remedy for a frozen model; None for other errors."""
    first = str(error).split(" (https://")[0].rstrip(".")
    given = sorted(_collections(params))
    match error:
        case errors.ScopeCollectionNotFound():
            return ValueError(
                f"{first}: params hold {given} alone; give every collection that module.init "
                'returned, as params={"params": …, "batch_stats": …}'
            )
        case errors.ModifyScopeVariableError():
            return ValueError(
                f"{first}: the module is in training mode; give the argument that its call has for "
                "inference, such as from_linen(module, train=False)"
            )
        case errors.InvalidRngError():
            return ValueError(
                f"{first}: a frozen model draws no random numbers; give the argument that its call "
                "has for inference, such as from_linen(module, deterministic=True)"
            )
        case _:
            return None
