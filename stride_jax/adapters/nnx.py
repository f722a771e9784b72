"""Any flax.nnx module that returns logits."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from stride_jax.adapters.layers import Layers, check_call, hooking, swap_class, tap_layers
from stride_jax.taps import Params, TappedModel

if TYPE_CHECKING:
    from flax import nnx

_TRAINING = ("deterministic", "use_running_average")  # False in training, as nnx.Module.eval has it


def from_nnx(
    module: "nnx.Module", taps: Sequence[str] | None = None, **call: Any
) -> tuple[TappedModel, Params]:
    """Tap an nnx module that returns logits: the outputs of its submodules.

    Taps are submodule paths such as `linear` or `blocks/0`, `linear#2` where a submodule is called
    a second time, and `input` for inputs that are floating.

    Args:
      module: module of which a copy is tapped, in evaluation mode.
      taps: names of the taps to return; all by default.
      **call: keyword arguments of its `__call__`.

    Returns:
      The tapped model, and the module's state to pass as `params`: all but its random streams.

    Raises:
      ValueError: arguments that `__call__` does not take; when the model is first traced, a module
        that changes its state.

    Warns:
      UserWarning: submodules were in training mode and have been switched.

    >>> from flax import nnx
    >>> tapped, params = from_nnx(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    """
    from flax import nnx  # costs as much to import as linen, and few need both

    check_call(module, 1, call, "from_nnx")
    frozen = nnx.merge(*nnx.split(module))
    if training := _in_training(nnx.iter_modules(frozen)):
        warnings.warn(
            f"{', '.join(training)} in training mode: switched to evaluation in the tapped copy; "
            "call module.eval() first to avoid this warning",
            stacklevel=2,
        )
    frozen.eval()
    graph, random, state = nnx.split(frozen, nnx.RngState, ...)

    def run(params: Params, inputs: Any, layers: Layers) -> jax.Array:
        merged = nnx.merge(graph, random, params)
        # The module shares its variables with `params`, so it would change them there too.
        before = {path: v.get_value() for path, v in nnx.to_flat_state(params)}
        # The modules stay alive in `merged`, so their ids stay unique.
        parts = [(path, part) for path, part in nnx.iter_modules(merged) if path and callable(part)]
        paths = {id(part): "/".join(map(str, path)) for path, part in parts}
        for _, part in parts:
            swap_class(part)
        with hooking(paths, layers):
            logits = merged(inputs, **call)  # pyright: ignore[reportCallIssue]
        _refuse_changed(before, nnx.to_flat_state(nnx.state(merged)))
        return logits

    return tap_layers(run, taps), state


def _refuse_changed(before: dict[Any, Any], after: Any) -> None:
    for path, variable in after:
        if path in before and variable.get_value() is not before[path]:
            raise ValueError(
                f"the module changes its state {'/'.join(map(str, path))!r} when it is called: a "
                "frozen model keeps it; give the argument its call has for evaluation, "
                "from_nnx(module, name=value)"
            )


def _in_training(modules: Any) -> list[str]:
    """`path (Class)` of the submodules in training mode."""
    return [
        f"{'/'.join(map(str, path)) or 'the module'} ({type(part).__name__})"
        for path, part in modules
        if any(getattr(part, name, None) is False for name in _TRAINING)
        and getattr(part, "rate", None) != 0
    ]
