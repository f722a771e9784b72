"""Any equinox module that takes one example and returns its logits."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax

from stride_jax.adapters.layers import Layers, check_call, hooking, swap_class, tap_layers
from stride_jax.taps import Params, TappedModel


def from_equinox(
    model: Any, taps: Sequence[str] | None = None, *, state: Any = None, **call: Any
) -> tuple[TappedModel, Params]:
    """Tap an equinox module, mapped over examples: the outputs of its submodules.

    Taps are submodule paths such as `layers/0` or `blocks/1/mlp`, `norm#2` where a submodule is
    called a second time, and `input` for inputs that are floating. Submodules called inside another
    `vmap`, such as a layer mapped over tokens, are no taps, but the module around them is.

    Args:
      model: module that is called as `model(x)` for one example `x`, in inference mode.
      taps: names of the taps to return; all by default.
      state: the `equinox.nn.State` of a stateful model, called as `model(x, state)`.
      **call: further keyword arguments of the call.

    Returns:
      The tapped model, and the model's arrays to pass as `params`, or `(arrays, state)` with a
      state.

    Raises:
      ImportError: equinox is not installed.
      ValueError: arguments that the model does not take.

    Warns:
      UserWarning: submodules were in training mode and have been switched.
    """
    try:
        import equinox
    except ImportError as error:
        raise ImportError("from_equinox needs equinox: pip install equinox") from error

    check_call(model, 1 if state is None else 2, call, "from_equinox")
    if training := _in_training(model, equinox.Module):
        warnings.warn(
            f"{', '.join(training)} in training mode: switched to inference in the tapped copy; "
            "call equinox.nn.inference_mode(model) first to avoid this warning",
            stacklevel=2,
        )
    arrays, static = equinox.partition(equinox.nn.inference_mode(model), equinox.is_array)

    def run(params: Params, inputs: Any, layers: Layers) -> jax.Array:
        arrays, *states = (params,) if state is None else params
        whole = equinox.combine(arrays, static)
        paths: dict[int, str] = {}
        whole = _swapped(whole, (), paths, equinox.Module)
        with hooking(paths, layers):
            output = whole(inputs, *states, **call)
        return output if state is None else output[0]

    params = arrays if state is None else (arrays, state)
    return tap_layers(run, taps, per_example=True), params


def _swapped(node: Any, path: tuple[Any, ...], paths: dict[int, str], module: type) -> Any:
    """A copy whose submodules are hooked, with their ids and paths."""

    def child(below: tuple[Any, ...], value: Any) -> Any:
        inner = isinstance(value, module)
        return _swapped(value, (*path, *below), paths, module) if inner else value

    copy = jax.tree_util.tree_map_with_path(
        child, node, is_leaf=lambda value: value is not node and isinstance(value, module)
    )
    if path and callable(copy):
        paths[id(copy)] = _spelled(path)
        swap_class(copy)
    return copy


def _in_training(model: Any, module: type) -> list[str]:
    """`path (Class)` of the submodules in training mode."""
    names: list[str] = []

    def visit(path: tuple[Any, ...], node: Any) -> None:
        if getattr(node, "inference", None) is False and getattr(node, "p", None) != 0:
            names.append(f"{_spelled(path) or 'the model'} ({type(node).__name__})")
        inner = jax.tree_util.tree_leaves_with_path(
            node, is_leaf=lambda value: value is not node and isinstance(value, module)
        )
        for below, value in inner:
            if isinstance(value, module):
                visit((*path, *below), value)

    visit((), model)
    return names


def _spelled(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
