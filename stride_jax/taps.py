"""Activation hooks: any model as `(params, inputs) -> (logits, {tap: activation})`.

The whole library is typed against this one form; `stride_jax.adapters` makes it of a model of each
framework, and `from_function` of any pure function. The `suffix` form is the rest of the network as
a function of a tapped activation, which residual-site steering needs (docs/method.md §3); the
`shifted` form, where there is one, gives a tap's gradients in the same forward pass.

A **tap** is a floating array with one row per example, and per token where the logits have tokens:
`[N, …]` beside logits `[N, C]`, `[N, T, …]` beside `[N, T, C]`. Whatever else a model hands out
(tokens, position tables, attention maps) is no tap and is left out.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stride_jax.inputs import shapes
from stride_jax.objectives import CROSS_ENTROPY, Objective, named_objective
from stride_jax.runtime.precision import as_now

Params = Any
Activations = dict[str, jax.Array]
Forward = Callable[[Params, Any], tuple[jax.Array, Activations]]
Suffix = Callable[[Params, Any, Activations], jax.Array]
Shifted = Callable[[Params, Any, Activations], tuple[jax.Array, Activations]]

INPUT = "input"
"""The tap of a model's inputs, in every adapter and in our own models."""

_RULE = "a tap is a floating array with a row per example, and per token where the logits have them"


@dataclasses.dataclass(frozen=True)
class TappedModel:
    """A frozen model with its taps.

    Attributes:
      forward: pure, jitted `(params, inputs) -> (logits, {tap: activation})`.
      suffix: pure, jitted `(params, inputs, {tap: activation}) -> logits`, with the given
        activations in place of the model's own; None where the model has no such form.
      shifted: pure, jitted; `forward` with `{tap: shift}` added to the activations; or None.
      objective: the loss that the model was trained with.
      dtype: what the model rounds all its parameters to before it uses them, such as `bfloat16`;
        None where it uses them as they are.
      layers: taps inside a layer's block, such as outputs before a nonlinearity; of a model that
        reads its inputs by such a layer, that first: operators may act there, and no basis reads
        them unless it names them.
      temperature: what the logits of training have been divided by (`with_temperature`).

    >>> tapped = from_function(lambda p, x: (x @ p, {"input": x}))
    >>> logits, activations = tapped(jnp.eye(2), jnp.ones((1, 2)))
    >>> logits.shape, sorted(activations)
    ((1, 2), ['input'])
    """

    forward: Forward
    suffix: Suffix | None = None
    shifted: Shifted | None = None
    objective: Objective = CROSS_ENTROPY
    dtype: str | None = None
    layers: tuple[str, ...] = ()
    temperature: float = 1.0

    def __call__(self, params: Params, inputs: Any) -> tuple[jax.Array, Activations]:
        return self.forward(params, inputs)


def from_function(
    function: Callable[[Params, Any], tuple[jax.Array, Mapping[str, Any]]],
    taps: Sequence[str] | None = None,
    suffix: Suffix | None = None,
    shifted: Callable[..., tuple[jax.Array, Mapping[str, Any]]] | None = None,
) -> TappedModel:
    """Tap any pure function that returns its logits and named activations.

    Args:
      function: `(params, inputs) -> (logits, {tap: activation})`; activations that are no taps,
        such as integer inputs, are left out.
      taps: which to keep; all by default.
      suffix: `(params, inputs, {tap: activation}) -> logits`, for residual-site operators and for
        choosing taps.
      shifted: `(params, inputs, {tap: shift}) -> (logits, {tap: activation})`, which makes them
        cheaper to fit.

    Raises:
      ValueError: `taps` that are no list of distinct names; when the model is first traced, an
        output that is not `(logits, activations)`, or a named tap that is not there.

    >>> tapped = from_function(lambda p, x: (p[x], {"input": x, "embedding": p[x]}))
    >>> sorted(tapped(jnp.eye(2), jnp.array([0, 1]))[1])
    ['embedding']
    """
    names = check_names(taps)

    def keeping(run: Callable[..., tuple[jax.Array, Mapping[str, Any]]]) -> Any:
        def tapped(*args: Any) -> tuple[jax.Array, Activations]:
            logits, activations = _checked(run(*args))
            return logits, _named(logits, activations, names)

        return jax.jit(tapped)

    def rest(*args: Any) -> jax.Array:
        assert suffix is not None, "a model with a suffix"
        return _with_outputs(suffix(*args))

    return TappedModel(
        keeping(function),
        None if suffix is None else jax.jit(rest),
        None if shifted is None else keeping(shifted),
    )


def check_names(taps: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of taps as a tuple; None for None.

    Raises:
      ValueError: a single string, no name at all, something that is no name, or a name twice.

    >>> check_names(["input", "hidden0"])
    ('input', 'hidden0')
    """
    if taps is None:
        return None
    if isinstance(taps, str):
        raise ValueError(f"taps={taps!r} is one string: give a list of names, taps=({taps!r},)")
    names = tuple(taps)
    if not names:
        raise ValueError("taps is empty: leave it out (None) to keep every tap")
    for name in names:
        if not isinstance(name, str) or not name:
            raise ValueError(f"taps={names!r} holds {name!r}: a tap is named by a string")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"taps={names!r} names {twice[0]!r} {names.count(twice[0])} times: once")
    return names


def select(activations: Mapping[str, Any], taps: Sequence[str] | None) -> Activations:
    """Keep the named taps, in that order; all of them for None.

    Raises:
      ValueError: an unknown tap; lists those there are.
    """
    if taps is None:
        return dict(activations)
    if unknown := [name for name in taps if name not in activations]:
        raise ValueError(
            f"unknown tap {unknown[0]!r}: this model has {sorted(activations)} ({_RULE})"
        )
    return {name: activations[name] for name in taps}


def tap_names(tapped: TappedModel, params: Params, inputs: Any) -> tuple[str, ...]:
    """The taps that a model has at every batch size, sorted. Nothing is computed.

    Batches of two sizes are traced, so that an array whose leading axis equals the number of
    examples by chance, such as a table of positions, is not taken for a tap.

    Args:
      tapped, params: the model.
      inputs: `[N, ...]`, or a tree of such; only shapes and dtypes are read.

    >>> table = lambda p, x: (x @ p, {"input": x, "table": jnp.ones((2, 5))})
    >>> tap_names(from_function(table), jnp.eye(2), jnp.ones((2, 2)))
    ('input',)
    """

    def names(rows: int) -> set[str]:
        logits, activations = jax.eval_shape(tapped.forward, params, shapes(inputs, rows))
        return {name for name, value in activations.items() if _is_tap(value, logits)}

    return tuple(sorted(names(2) & names(3)))


def only(tapped: TappedModel, taps: tuple[str, ...]) -> TappedModel:
    """The same model with some of its taps; `jit` drops what the others alone needed.

    Its products have the precision that is set now, wherever it is called from. Held, so that
    asking again costs no compilation.
    """
    return _only(tapped, taps, as_now())


@functools.lru_cache(maxsize=64)
def _only(tapped: TappedModel, taps: tuple[str, ...], precision: str) -> TappedModel:
    own: Any = jax.default_matmul_precision(precision)
    suffix = None if tapped.suffix is None else own(tapped.suffix)
    shifted = None if tapped.shifted is None else own(tapped.shifted)
    held = from_function(own(tapped.forward), taps, suffix, shifted)
    return _like(held, tapped)


def with_objective(tapped: TappedModel, objective: str | Objective) -> TappedModel:
    """The same model, said to have been trained with another loss than cross-entropy.

    Args:
      tapped: the model.
      objective: `squared_error`, `sigmoid` (several labels, each there or not), `poisson`, or one
        of `objectives` or of one's own (`objective_of`).

    Raises:
      ValueError: no objective has that name.

    >>> line = from_function(lambda w, x: (x @ w, {"input": x}))
    >>> with_objective(line, "squared_error").objective.name
    'squared_error'
    """
    return dataclasses.replace(tapped, objective=named_objective(objective))


def with_temperature(tapped: TappedModel, temperature: float) -> TappedModel:
    """The same model with its logits divided by a temperature (`models.calibrate`).

    Held, so that asking again costs no compilation.
    """
    return _cooled(tapped, float(temperature))


@functools.lru_cache(maxsize=64)
def _cooled(tapped: TappedModel, temperature: float) -> TappedModel:
    def cooled(run: Callable[..., tuple[jax.Array, Activations]]) -> Any:
        def divided(*args: Any) -> tuple[jax.Array, Activations]:
            logits, activations = run(*args)
            return logits / temperature, activations

        return jax.jit(divided)

    inner = tapped.suffix

    def suffix(params: Params, inputs: Any, replace: Activations) -> jax.Array:
        assert inner is not None
        return inner(params, inputs, replace) / temperature

    made = TappedModel(
        cooled(tapped.forward),
        None if inner is None else jax.jit(suffix),
        None if tapped.shifted is None else cooled(tapped.shifted),
    )
    return dataclasses.replace(_like(made, tapped), temperature=tapped.temperature * temperature)


def _like(made: TappedModel, tapped: TappedModel) -> TappedModel:
    """A model made of another, with what that one is said to be."""
    return dataclasses.replace(
        made,
        objective=tapped.objective,
        dtype=tapped.dtype,
        layers=tapped.layers,
        temperature=tapped.temperature,
    )


def _named(
    logits: jax.Array, activations: Mapping[str, Any], names: tuple[str, ...] | None
) -> Activations:
    """Those activations that are taps, or the named ones of them."""
    taps = {name: value for name, value in activations.items() if _is_tap(value, logits)}
    for name in names or ():
        if name in activations and name not in taps:
            raise ValueError(
                f"{name!r} is {_described(activations[name])}, beside logits of shape "
                f"{logits.shape}, and cannot be tapped ({_RULE}); this model has {sorted(taps)}"
            )
    return select(taps, names)


def _is_tap(value: Any, logits: jax.Array) -> bool:
    rows = logits.shape[:-1]
    return (
        hasattr(value, "dtype")
        and jnp.issubdtype(value.dtype, jnp.floating)
        and value.shape[: len(rows)] == rows
    )


def _described(value: Any) -> str:
    if isinstance(value, jax.Array):
        return f"{value.dtype} of shape {value.shape}"
    return f"a {type(value).__name__}"


def _checked(output: Any) -> tuple[jax.Array, Mapping[str, Any]]:
    """`(logits, activations)`, or a clear word where a model returns something else."""
    pair = isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping)
    if not pair:
        raise ValueError(
            f"the model returns {_described(output)}, not (logits, {{tap: activation}}): return "
            "both, or use the adapter of its framework (from_linen, from_nnx, from_equinox, "
            "from_haiku), which takes modules that return logits alone"
        )
    logits, activations = output
    if not isinstance(logits, jax.Array) or logits.ndim < 1:
        raise ValueError(f"the model's logits are {_described(logits)}: an array [N, …, C]")
    return _with_outputs(logits), activations


def _with_outputs(logits: jax.Array) -> jax.Array:
    """A single number per example as one output, `[N, 1]`."""
    return logits[:, None] if logits.ndim == 1 else logits
