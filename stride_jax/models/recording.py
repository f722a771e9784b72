"""How our models hand out their activations, and let one be replaced.

Every model's `__call__(x, replace={})` returns `(logits, activations)`. Each layer passes its
output through `recorder(name, value)`, which notes it under a readable name or, where `replace`
has that name, puts the replacement in its place. `jit` removes what nobody reads, so recording all
layers costs nothing, and replacing one removes the layers before it.
"""

from collections.abc import Mapping

import jax


class Recorder:
    """Notes activations by name; replaces those asked for.

    >>> record = Recorder({"a": 5})
    >>> record("a", 1), record("b", 2), record.activations
    (5, 2, {'a': 5, 'b': 2})
    """

    def __init__(self, replace: Mapping[str, jax.Array] | None = None) -> None:
        self.replace = dict(replace or {})
        self.activations: dict[str, jax.Array] = {}

    def __call__(self, name: str, value: jax.Array) -> jax.Array:
        value = self.replace.get(name, value)
        self.activations[name] = value
        return value
