"""Shared parts of the adapters: a framework passes each layer's output through one function.

An adapter is `run(params, inputs, layer) -> logits`, in which the framework calls
`layer(path, output) -> output` after every layer. It gives the three forms of a tapped model:
outputs of layers recorded (`forward`), replaced (`suffix`) and shifted (`shifted`).
"""

import collections
import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from stride_jax.taps import INPUT, Activations, Params, TappedModel, from_function

Hook = Callable[[Any, Any], Any]


class Layers:
    """Names each layer's call, and records its output, replaces it or adds to it.

    A layer called again is `path#2`, `path#3`, …, each call a tap of its own. An output inside an
    inner transformation (`vmap`, `scan`, `checkpoint`) has no value outside of it, so it is not
    recorded. A layer called `input` is no tap: that name is the inputs'.

    Attributes:
      outputs: `{tap: output}`.
      shapes: `{tap: shape}`, calls in inner transformations included.
    """

    def __init__(self, replace: Mapping[str, Any]) -> None:
        self.outputs: dict[str, jax.Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._replace = replace
        self._calls: collections.Counter[str] = collections.Counter()
        self._trace = jex.get_opaque_trace_state()

    def __call__(self, path: str, output: Any) -> Any:
        if path == INPUT:
            return output
        self._calls[path] += 1
        name = path if self._calls[path] == 1 else f"{path}#{self._calls[path]}"
        if not isinstance(output, jax.Array):
            return output
        self.shapes[name] = output.shape
        output = replaced(name, output, self._replace)
        if jex.get_opaque_trace_state() == self._trace:
            self.outputs[name] = output
        return output


Run = Callable[[Params, Any, Layers], jax.Array]


def tap_layers(
    run: Run, taps: Sequence[str] | None = None, *, per_example: bool = False
) -> TappedModel:
    """A tapped model from a function that runs a model with its layers intercepted.

    Args:
      run: `(params, inputs, layers) -> logits`.
      taps: names of the taps to return; all by default.
      per_example: whether `run` takes one example, and is mapped over them.
    """

    def forward(params: Params, inputs: Any) -> tuple[jax.Array, dict[str, Any]]:
        return _run(run, params, inputs, {})

    def suffix(params: Params, inputs: Any, replace: Activations) -> jax.Array:
        return _run(run, params, inputs, replace)[0]

    def shifted(params: Params, inputs: Any, shifts: Activations) -> tuple[jax.Array, Any]:
        return _run(run, params, inputs, adding(shifts))

    def mapped(form: Any, arguments: int) -> Any:
        return jax.vmap(form, in_axes=(None, *(0,) * arguments)) if per_example else form

    return from_function(mapped(forward, 1), taps, mapped(suffix, 2), mapped(shifted, 2))


def _run(
    run: Run, params: Params, inputs: Any, replace: Mapping[str, Any]
) -> tuple[jax.Array, dict[str, Any]]:
    layers = Layers(replace)
    own = {INPUT} if isinstance(inputs, jax.Array) and _floating(inputs) else set()
    inputs = replaced(INPUT, inputs, replace) if own else inputs
    logits = run(params, inputs, layers)
    if missing := set(replace) - set(layers.shapes) - own:
        raise ValueError(f"unknown tap {min(missing)!r}: no layer of that name was called")
    if not isinstance(logits, jax.Array):
        raise ValueError(
            f"the model returns a {type(logits).__name__}: this adapter needs logits alone, so "
            "wrap the model in one that returns them (or use from_model or from_function, which "
            "take (logits, {tap: activation}))"
        )
    if not layers.outputs and not own:
        raise ValueError(
            f"the model has nothing to tap: its inputs are no floating array, and of its layers "
            f"{sorted(layers.shapes)} none is called outside of vmap, scan, jit and checkpoint; "
            "put some in a module that is, such as a block that maps over tokens within itself"
        )
    return logits, {**layers.outputs, INPUT: inputs}


def _floating(value: jax.Array) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


def replaced(name: str, value: Any, replace: Mapping[str, Any]) -> Any:
    """The replacement of a value, or a function of the value; the value itself without one.

    Raises:
      ValueError: a replacement of another shape.
    """
    if name not in replace:
        return value
    new = replace[name]
    if callable(new):
        return new(value)
    if new.shape != value.shape:
        raise ValueError(
            f"the tap {name!r} has shape {value.shape} where it is called, not {new.shape}: if it "
            "runs inside vmap, scan or another transformation, tap a layer outside of it"
        )
    return new


def adding(shifts: Activations) -> dict[str, Any]:
    """Replacements that add shifts, in the activation's own dtype."""

    def plus(shift: jax.Array, value: jax.Array) -> jax.Array:
        return value + shift.astype(value.dtype)

    return {name: functools.partial(plus, shift) for name, shift in shifts.items()}


def check_call(
    call: Callable[..., Any], leading: int, given: Mapping[str, Any], adapter: str
) -> None:
    """Refuse keyword arguments that a model does not take, and models that need others.

    Args:
      call: the model's own call.
      leading: number of positional arguments that the adapter passes.
      given: keyword arguments of the user.
      adapter: name of the adapter, for the message.

    Raises:
      ValueError: the call and its arguments do not fit; the message has both.
    """
    signature = inspect.signature(call)
    try:
        signature.bind(*(None,) * leading, **given)
    except TypeError as error:
        raise ValueError(
            f"the model is called as call{signature}, which does not fit the arguments given: "
            f"{error}; give its arguments besides the inputs by name, {adapter}(model, name=value)"
        ) from None


# ── Frameworks without an interceptor of their own: a layer's class is swapped for a hooked one ──

_hook: contextvars.ContextVar[Hook] = contextvars.ContextVar("hook", default=lambda _, out: out)


@functools.cache
def _hooked(cls: type) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _hook.get()(self, cls.__call__(self, *args, **kwargs))

    own = {"__call__": call, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls)(cls.__name__, (cls,), own)


def swap_class(module: Any) -> None:
    """Let a module's `__call__` pass its output through the function of `hooking`."""
    # Frozen modules and those that watch their attributes have a __setattr__ of their own.
    object.__setattr__(module, "__class__", _hooked(type(module)))


@contextlib.contextmanager
def hooking(paths: Mapping[int, str], layers: Layers) -> Iterator[None]:
    """Within the context, swapped modules pass their outputs through `layers`.

    Args:
      paths: `{id(module): path}`.
      layers: recorder and replacer of outputs.
    """

    def hook(module: Any, output: Any) -> Any:
        path = paths.get(id(module))
        return output if path is None else layers(path, output)

    token = _hook.set(hook)
    try:
        yield
    finally:
        _hook.reset(token)
