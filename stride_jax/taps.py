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
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax.sharding import Mesh

from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.progress import Progress, silent

Params = Any
Activations = dict[str, jax.Array]
Forward = Callable[[Params, Any], tuple[jax.Array, Activations]]
Suffix = Callable[[Params, Any, Activations], jax.Array]
Shifted = Callable[[Params, Any, Activations], tuple[jax.Array, Activations]]
PullBack = Callable[[jax.Array], jax.Array]


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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observed:
    """What the frozen model said about a set of examples; cached once, since it never changes.

    Attributes:
      activations: `{tap: [N, T, D_tap]}`; a classifier has T = 1.
      logits_NxTxC: logits.
      labels_NxT: int32 true class or next token.
      weights_NxT: token weights omega in [0, 1]; a loss is their weighted sum.
    """

    activations: Activations
    logits_NxTxC: jax.Array
    labels_NxT: jax.Array
    weights_NxT: jax.Array

    def __len__(self) -> int:
        return self.labels_NxT.shape[0]


def observe(
    tapped: TappedModel,
    params: Params,
    inputs: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    batch_size: int = 512,
    mesh: Mesh | None = None,
    progress: Progress = silent,
) -> Observed:
    """Run the frozen model once over all examples and keep its activations and logits.

    Args:
      tapped: the model.
      params: its parameters.
      inputs: `[N, ...]`.
      labels: `[N]` for a classifier (logits `[N, C]`), `[N, T]` for tokens (logits `[N, T, C]`);
        −1 does not count, as if of weight 0.
      weights: like `labels`, float32; ones by default.
      batch_size: examples a step; rounded up to a multiple of the devices.
      mesh: examples are split over all its devices; this process's by default.
      progress: wraps the batches.

    Returns:
      `Observed`, float32, a classifier's arrays with T = 1 and activations flattened.

    Raises:
      ValueError: lengths that differ, labels outside the classes, or logits that are not finite.
    """
    mesh = meshes.local_mesh() if mesh is None else mesh
    params = meshes.everywhere(params, mesh)
    labels = np.asarray(labels)
    weights = np.ones(labels.shape, np.float32) if weights is None else np.asarray(weights)
    check_examples(tapped, params, inputs, labels, weights)
    devices = mesh.devices.size
    batch_size = -(-min(batch_size, len(inputs)) // devices) * devices
    placed = meshes.over_examples(mesh)
    parts = []
    for start in progress(range(0, len(inputs), batch_size), desc="forward"):
        rows = meshes.pad_rows(np.asarray(inputs[start : start + batch_size]), batch_size)
        seen = tapped(params, meshes.place(rows, placed))
        parts.append(jax.tree.map(lambda v: meshes.fetch(v).astype(np.float32), seen))
    logits, activations = jax.tree.map(lambda *xs: np.concatenate(xs)[: len(inputs)], *parts)
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=tuple(range(1, logits.ndim))).sum())
        raise ValueError(
            f"the model's logits are not finite for {bad} of {len(logits)} examples; compute them "
            "in float32 and check the checkpoint"
        )
    return _as_tokens(*jax.tree.map(jnp.asarray, (logits, activations, labels, weights)))


def see(
    tapped: TappedModel, params: Params, inputs: Any, labels: jax.Array, weights: jax.Array
) -> Observed:
    """What the frozen model says about a batch: the pure form of `observe`, for use within `jit`.

    Args:
      tapped, params: the model.
      inputs, labels, weights: as in `observe`; labels are not checked.
    """
    return _as_tokens(*tapped.forward(params, inputs), labels, weights)


def see_and_pull(
    tapped: TappedModel,
    params: Params,
    inputs: Any,
    labels: jax.Array,
    weights: jax.Array,
    tap: str,
) -> tuple[Observed, PullBack]:
    """`see`, and what takes gradients of the logits back to a tap.

    Args:
      tapped, params, inputs, labels, weights: as in `see`; the model has a `suffix` or `shifted`.
      tap: its name.

    Returns:
      What the model says, and `[N, T, C] -> [N, T, D]`: `Jᵀ v` of the layers after the tap, in the
      model's own dtype. With `shifted` its layers run once for both, else those after it run twice.
    """
    if tapped.shifted is not None:
        shift = jax.eval_shape(tapped.forward, params, inputs)[1][tap]
        run = lambda z: tapped.shifted(params, inputs, {tap: z})  # noqa: E731  # pyright: ignore[reportOptionalCall]
        logits, pull_back, activations = jax.vjp(
            run, jnp.zeros(shift.shape, shift.dtype), has_aux=True
        )
    else:
        logits, activations = tapped.forward(params, inputs)
        assert tapped.suffix is not None, "a residual site has a suffix"
        rest = functools.partial(tapped.suffix, params, inputs)
        _, pull_back = jax.vjp(lambda z: rest({tap: z}), activations[tap])
    observed = _as_tokens(logits, activations, labels, weights)

    def pulled(errors_NxTxC: jax.Array) -> jax.Array:
        z = pull_back(errors_NxTxC.reshape(logits.shape).astype(logits.dtype))[0]
        return z.reshape(observed.activations[tap].shape).astype(jnp.float32)

    return observed, pulled


def check_examples(
    tapped: TappedModel, params: Params, inputs: Any, labels: np.ndarray, weights: np.ndarray
) -> None:
    """Refuse examples that do not fit each other or the model, before anything runs.

    Raises:
      ValueError: lengths or shapes that don't fit, or labels outside the classes.
    """
    if not len(inputs) == len(labels) == len(weights) or len(inputs) == 0:
        raise ValueError(
            f"inputs, labels and weights need one row an example and at least one: got "
            f"{len(inputs)}, {len(labels)}, {len(weights)}"
        )
    shape = jax.eval_shape(tapped.forward, params, inputs[:1])[0].shape
    if len(shape) == labels.ndim or (1, *labels.shape[1:]) != shape[: labels.ndim]:
        raise ValueError(
            f"logits of shape {shape} for one example do not fit labels of shape {labels.shape}: a "
            "classifier gives [N, C] and [N], a language model [N, T, C] and [N, T]"
        )
    counted = labels[labels != -1]
    if counted.size and (counted.min() < 0 or counted.max() >= shape[-1]):
        raise ValueError(
            f"labels run from {counted.min()} to {counted.max()}, but the model has {shape[-1]} "
            "classes"
        )


def _as_tokens(
    logits: jax.Array, activations: Activations, labels: jax.Array, weights: jax.Array
) -> Observed:
    """Float32, a classifier with its token axis, T = 1, and labels of −1 of weight 0."""
    logits = logits.astype(jnp.float32)
    if labels.ndim == 1:
        logits, labels, weights = logits[:, None], labels[:, None], weights[:, None]
    activations = {
        name: a.reshape(*labels.shape, -1).astype(jnp.float32) for name, a in activations.items()
    }
    counted = labels != -1
    return Observed(
        activations,
        logits,
        jnp.where(counted, labels, 0).astype(jnp.int32),
        weights.astype(jnp.float32) * counted,
    )
