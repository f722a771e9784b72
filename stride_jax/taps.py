"""Activation hooks: any model as `(params, inputs) -> (logits, {tap: activation})`.

The whole library is typed against this one form, so a model of any framework plugs in through a
constructor below or a few lines of its own. The `suffix` form is the rest of the network as a
function of a tapped activation, which residual-site steering needs; the `shifted` form, where there
is one, gives a tap's gradients in the same forward pass.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn
from flax import nnx

Params = Any
Activations = dict[str, jax.Array]
Forward = Callable[[Params, Any], tuple[jax.Array, Activations]]
Suffix = Callable[[Params, Any, Activations], jax.Array]
Shifted = Callable[[Params, Any, Activations], tuple[jax.Array, Activations]]


@dataclasses.dataclass(frozen=True)
class TappedModel:
    """A frozen model seen through its taps.

    Attributes:
      forward: pure, jitted `(params, inputs) -> (logits, {tap: activation})`.
      suffix: pure, jitted `(params, inputs, {tap: activation}) -> logits`, with the given
        activations in place of the model's own; None where the model has no such form.
      shifted: pure, jitted; `forward` with `{tap: shift}` added to the activations; or None.

    >>> tapped = from_function(lambda p, x: (x @ p, {"input": x}))
    >>> logits, activations = tapped(jnp.eye(2), jnp.ones((1, 2)))
    >>> logits.shape, sorted(activations)
    ((1, 2), ['input'])
    """

    forward: Forward
    suffix: Suffix | None = None
    shifted: Shifted | None = None

    def __call__(self, params: Params, inputs: Any) -> tuple[jax.Array, Activations]:
        return self.forward(params, inputs)


def select(activations: Mapping[str, Any], taps: Sequence[str] | None) -> Activations:
    """Keep the named taps, in that order; all of them for None.

    Raises:
      ValueError: an unknown tap; lists those there are.
    """
    if taps is None:
        return dict(activations)
    if unknown := [name for name in taps if name not in activations]:
        raise ValueError(f"unknown tap {unknown[0]!r}: this model has {sorted(activations)}")
    return {name: activations[name] for name in taps}


def from_function(
    function: Callable[[Params, Any], tuple[jax.Array, Mapping[str, Any]]],
    taps: Sequence[str] | None = None,
    suffix: Suffix | None = None,
    shifted: Callable[..., tuple[jax.Array, Mapping[str, Any]]] | None = None,
) -> TappedModel:
    """Tap any pure function that returns its logits and named activations.

    Args:
      function: `(params, inputs) -> (logits, {tap: activation})`.
      taps: which to keep; all by default.
      suffix: `(params, inputs, {tap: activation}) -> logits`, for residual-site operators.
      shifted: `(params, inputs, {tap: shift}) -> (logits, {tap: activation})`, which makes them
        cheaper to fit.
    """

    def keeping(made: Callable[..., tuple[jax.Array, Mapping[str, Any]]]) -> Any:
        def kept(*args: Any) -> tuple[jax.Array, Activations]:
            logits, activations = made(*args)
            return logits, select(activations, taps)

        return jax.jit(kept)

    return TappedModel(
        keeping(function),
        None if suffix is None else jax.jit(suffix),
        None if shifted is None else keeping(shifted),
    )


def from_model(module: nn.Module, taps: Sequence[str] | None = None) -> TappedModel:
    """Tap one of our linen models, which hand out every layer and let it be replaced."""

    def function(params: Params, inputs: Any) -> Any:
        return module.apply({"params": params}, inputs)

    def suffix(params: Params, inputs: Any, replace: Activations) -> jax.Array:
        logits, activations = module.apply({"params": params}, inputs, replace=replace)
        select(activations, list(replace))
        return logits

    def shifted(params: Params, inputs: Any, shifts: Activations) -> Any:
        return module.apply({"params": params}, inputs, replace=_adding(shifts))

    return from_function(function, taps, suffix, shifted)


def _adding(shifts: Activations) -> dict[str, Any]:
    """Replacements that add."""

    def plus(shift: jax.Array, value: jax.Array) -> jax.Array:
        return value + shift.astype(value.dtype)

    return {name: functools.partial(plus, shift) for name, shift in shifts.items()}


def from_linen(module: nn.Module, taps: Sequence[str] | None = None) -> TappedModel:
    """Tap any linen module that returns logits: the outputs of its submodules.

    Taps are submodule paths such as `Dense_0` or `block1/mlp`, read by `capture_intermediates`;
    the inputs are the tap `input`. A submodule called several times is tapped at its last call.
    """

    def function(params: Params, inputs: Any) -> tuple[jax.Array, Activations]:
        logits, state = module.apply({"params": params}, inputs, capture_intermediates=True)
        activations = {"input": inputs}
        for path, value in jax.tree_util.tree_leaves_with_path(
            state["intermediates"], is_leaf=lambda x: isinstance(x, tuple)
        ):
            names = [entry.key for entry in path[:-1]]
            if names and isinstance(value[-1], jax.Array):
                activations["/".join(names)] = value[-1]
        return logits, activations

    def intercepted(params: Params, inputs: Any, replace: Activations, run: Any) -> Any:
        """`run(params, inputs)` with layers' outputs replaced, or what a function makes of them."""
        found: set[str] = set()

        def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            path = "/".join(context.module.path)
            if context.method_name == "__call__" and path in replace:
                found.add(path)
                new = replace[path]
                return new(call(*args, **kwargs)) if callable(new) else new
            return call(*args, **kwargs)

        new = replace.get("input", inputs)
        with nn.intercept_methods(interceptor):
            out = run(params, new(inputs) if callable(new) else new)
        _all_replaced(replace, found)
        return out

    def suffix(params: Params, inputs: Any, replace: Activations) -> jax.Array:
        return intercepted(params, inputs, replace, lambda p, x: module.apply({"params": p}, x))

    def shifted(params: Params, inputs: Any, shifts: Activations) -> Any:
        return intercepted(params, inputs, _adding(shifts), function)

    return from_function(function, taps, suffix, shifted)


def from_nnx(module: nnx.Module, taps: Sequence[str] | None = None) -> tuple[TappedModel, Params]:
    """Tap an nnx module that returns logits; also returns its state, to pass as `params`.

    Taps are submodule paths such as `linear` or `blocks/0`, read by `nnx.capture`; the inputs are
    the tap `input`.
    """
    graph, state = nnx.split(module)

    def function(params: Params, inputs: Any) -> tuple[jax.Array, Activations]:
        merged = nnx.merge(graph, params)
        run = nnx.capture(merged, nnx.Intermediate, method_outputs=nnx.Intermediate)
        logits, captured = run(inputs)
        activations = {"input": inputs}
        for path, value in nnx.to_flat_state(captured):
            if path[-1] == "__call__" and len(path) > 1:
                activations["/".join(map(str, path[:-1]))] = value.get_value()[-1]
        return logits, activations

    def suffix(params: Params, inputs: Any, replace: Activations) -> jax.Array:
        merged = nnx.merge(graph, params)
        found = set()
        for path, parent in list(nnx.iter_modules(merged)):
            for name in replace:
                *above, last = name.split("/")
                here = tuple(map(str, path)) == tuple(above) and name != "input"
                if here and _put(parent, last, replace[name]):
                    found.add(name)
        _all_replaced(replace, found)
        return merged(replace.get("input", inputs))  # pyright: ignore[reportCallIssue]

    return from_function(function, taps, suffix), state


class _Constant(nnx.Module):
    """Stands in for a submodule whose output is given."""

    def __init__(self, value: jax.Array) -> None:
        self.value = nnx.data(value)

    def __call__(self, *_: Any, **__: Any) -> jax.Array:
        return self.value


def _put(parent: nnx.Module, name: str, value: jax.Array) -> bool:
    """Replace a submodule by a constant; False where there is none of that name."""
    if isinstance(parent, nnx.List):
        there = name.isdigit() and int(name) < len(parent)
        if there:
            parent[int(name)] = _Constant(value)
    else:
        there = isinstance(getattr(parent, name, None), nnx.Module)
        if there:
            setattr(parent, name, _Constant(value))
    return there


def _all_replaced(replace: Mapping[str, Any], found: set[str]) -> None:
    if missing := set(replace) - found - {"input"}:
        raise ValueError(f"unknown tap {min(missing)!r}: no submodule of that name was called")


@functools.lru_cache(maxsize=64)
def only(tapped: TappedModel, taps: tuple[str, ...]) -> TappedModel:
    """The same model with some of its taps; `jit` drops what the others alone needed.

    Kept, so that asking again costs no compilation.
    """
    return from_function(tapped.forward, taps, tapped.suffix, tapped.shifted)


def with_temperature(tapped: TappedModel, temperature: float) -> TappedModel:
    """The same model with its logits divided by a temperature (`models.calibrate`)."""

    def cooled(made: Callable[..., tuple[jax.Array, Activations]]) -> Any:
        def divided(*args: Any) -> tuple[jax.Array, Activations]:
            logits, activations = made(*args)
            return logits / temperature, activations

        return jax.jit(divided)

    inner = tapped.suffix

    def suffix(params: Params, inputs: Any, replace: Activations) -> jax.Array:
        assert inner is not None
        return inner(params, inputs, replace) / temperature

    return TappedModel(
        cooled(tapped.forward),
        None if inner is None else jax.jit(suffix),
        None if tapped.shifted is None else cooled(tapped.shifted),
    )
