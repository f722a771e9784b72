"""A stage's compiled step as a value: the run calls it, the plan reads its costs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted step, its arguments, and its number of calls.

    Attributes:
      step: function from `jax.jit`.
      args: arguments of the step, pytrees of `jax.ShapeDtypeStruct`s with shardings.
      statics: static arguments of the step by name.
      calls: number of calls in the whole stage.
      batch: rows per call; 0 where one call takes them all.
    """

    step: Callable[..., Any]
    args: tuple[Any, ...]
    statics: dict[str, Any]
    calls: int
    batch: int = 0

    def __call__(self, *args: Any) -> Any:
        """The step on real arguments."""
        return self.step(*args, **self.statics)


def shape(size: tuple[int, ...], dtype: Any = jnp.float32, sharding: Any = None) -> Any:
    """An abstract array."""
    kind = jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)  # keys are arrays too
    return jax.ShapeDtypeStruct(size, kind, sharding=sharding)


def shapes_like(tree: Any, sharding: Any = None) -> Any:
    """Abstract arrays of a pytree's shapes and dtypes.

    Args:
      tree: arrays or `jax.ShapeDtypeStruct`s.
      sharding: one for all, or a tree of them; None for the arrays' own.
    """

    def one(v: Any, where: Any = None) -> Any:
        where = getattr(v, "sharding", None) if where is None else where
        return shape(np.shape(v), _dtype(v), where)

    if sharding is None or isinstance(sharding, jax.sharding.Sharding):
        return jax.tree.map(lambda v: one(v, sharding), tree)
    return jax.tree.map(one, tree, sharding)


def shapes_everywhere(tree: Any, whole: jax.sharding.NamedSharding) -> Any:
    """Abstract arrays on every device, except for those laid out over the mesh already."""

    def one(v: Any) -> Any:
        own = getattr(v, "sharding", None)
        laid_out = isinstance(own, jax.sharding.NamedSharding) and own.mesh == whole.mesh
        return shape(np.shape(v), _dtype(v), own if laid_out else whole)

    return jax.tree.map(one, tree)


def _dtype(v: Any) -> Any:
    """Of an array, or of a number that stands among a model's parameters."""
    return v.dtype if hasattr(v, "dtype") else jax.dtypes.result_type(v)
