"""Any function transformed by dm-haiku that returns logits."""

import inspect
from collections.abc import Sequence
from typing import Any

import jax

from stride_jax.adapters.layers import Layers, check_call, tap_layers
from stride_jax.taps import Params, TappedModel


def from_haiku(transformed: Any, taps: Sequence[str] | None = None, **call: Any) -> TappedModel:
    """Tap a haiku function that returns logits: the outputs of its modules.

    Taps are module names such as `linear` or `mlp/~/linear_0`, `linear#2` where a module is called
    a second time, and `input` for inputs that are floating.

    Args:
      transformed: result of `hk.transform` or `hk.transform_with_state`, with or without
        `hk.without_apply_rng`.
      taps: names of the taps to return; all by default.
      **call: further keyword arguments of the function, such as `is_training=False`.

    Returns:
      A tapped model whose `params` are what `transformed.init` returns: the parameters, or
      `(params, state)`.

    Raises:
      ImportError: haiku is not installed.
      ValueError: arguments that the function does not take; when the model is first traced, a
        function that draws random numbers or changes its state.
    """
    try:
        import haiku
    except ImportError as error:
        raise ImportError("from_haiku needs dm-haiku: pip install dm-haiku") from error

    stateful = isinstance(transformed, haiku.TransformedWithState)
    num_trees = 2 if stateful else 1  # params, and the state
    leading = list(inspect.signature(transformed.apply).parameters)[num_trees : num_trees + 1]
    no_random = (None,) if leading == ["rng"] else ()
    check_call(transformed.apply, num_trees + len(no_random) + 1, call, "from_haiku")

    def run(params: Params, inputs: Any, layers: Layers) -> jax.Array:
        def intercept(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = method(*args, **kwargs)
            named = context.method_name == "__call__"
            return layers(context.module.module_name, output) if named else output

        if stateful and not (isinstance(params, tuple | list) and len(params) == 2):
            raise ValueError(
                "params of a function with state are the pair (params, state), as "
                f"transformed.init returns it: got a {type(params).__name__}"
            )
        given = params if stateful else (params,)
        try:
            with haiku.intercept_methods(intercept):
                output = transformed.apply(*given, *no_random, inputs, **call)
        except ValueError as error:
            if "PRNG" not in str(error):
                raise
            raise ValueError(
                "the function draws random numbers, and a frozen model draws none; give the "
                "argument it has for inference, such as from_haiku(transformed, is_training=False)"
            ) from error
        if not stateful:
            return output
        logits, after = output
        _refuse_changed(params[1], after)
        return logits

    return tap_layers(run, taps)


def _refuse_changed(before: Any, after: Any) -> None:
    old = dict(jax.tree_util.tree_leaves_with_path(before))
    for path, value in jax.tree_util.tree_leaves_with_path(after):
        if old.get(path) is not value:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"the function changes its state {name!r}: it is in training mode; give the "
                "argument it has for inference, such as from_haiku(transformed, is_training=False)"
            )
