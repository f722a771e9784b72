"""Recording of our models' activations, and their replacement.

Every model's `__call__(x, replace={})` returns `(logits, activations)`. Each layer passes its
output through `recorder(name, value)`, which records it under a readable name. Where `replace` has
that name, it puts the replacement, or a function of the value, in its place. `jit` removes what
nothing reads, so recording all layers costs nothing, and replacing one removes the layers before
it.
"""

from collections.abc import Callable, Mapping

import jax

Replacement = jax.Array | Callable[[jax.Array], jax.Array]


class Recorder:
    """Records activations by name and `end`; replaces those in `replace`.

    A block under `nn.remat` makes one of its own, whose activations it hands out with its output,
    for nothing else may leave it.

    >>> record = Recorder({"a": 5, "c": lambda value: value + 1})
    >>> record("a", 1), record("b", 2), record("c", 3), record.activations
    (5, 2, 4, {'a': 5, 'b': 2, 'c': 4})
    """

    def __init__(self, replace: Mapping[str, Replacement] | None = None, end: str = "") -> None:
        self.replace = dict(replace or {})
        self.end = end
        self.activations: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        name += self.end
        new = self.replace.get(name, value)
        self.activations[name] = value = new(value) if callable(new) else new
        return value
