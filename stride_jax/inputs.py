"""A model's inputs: one array, or a tree of arrays that share their first axis.

Tokens with their mask, images with metadata, several arrays: a dict or a tuple of arrays, or any
other pytree. Everything that slices inputs does so with `take_rows` or `read_rows`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.ids import is_real, row_chunks

Inputs = Any
"""`[N, ...]`, or a pytree of such arrays."""


def as_inputs(value: Any) -> Inputs:
    """Inputs as NumPy arrays, memory-mapped as before.

    A dict or a tuple of arrays stays a tree; a list, or a tuple of nothing but numbers, is rows of
    one array.

    Raises:
      ValueError: a leaf that is no array of numbers, by its path; a tree without any.

    >>> as_inputs([[1, 2], [3, 4]]).shape
    (2, 2)
    >>> as_inputs({"tokens": [[5, 0]], "mask": [[True, False]]})["mask"].shape
    (1, 2)
    """
    if not is_tree(value):
        return as_array("inputs", value)
    try:
        paths = jax.tree_util.tree_leaves_with_path(value, is_leaf=_is_list)
    except ValueError as error:  # keys that can't be sorted
        raise ValueError(f"inputs can't be read as a tree ({error}): name them alike") from error
    if not paths:
        raise ValueError(
            f"inputs of {type(value).__name__} hold no array: give at least one, [N, ...]"
        )
    leaves = [as_array(_spelled(path), leaf) for path, leaf in paths]
    return jax.tree.unflatten(jax.tree.structure(value, is_leaf=_is_list), leaves)


def is_tree(value: Any) -> bool:
    """Whether inputs are several arrays.

    >>> is_tree({"x": [1, 2]}), is_tree((np.ones(2), np.ones(2))), is_tree(((1, 2), (3, 4)))
    (True, True, False)
    """
    if value is None or _is_list(value) or jax.tree_util.all_leaves([value]):
        return False
    if type(value) is not tuple:
        return True
    return any(getattr(v, "ndim", 0) > 0 or is_tree(v) for v in value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def named_leaves(inputs: Inputs) -> dict[str, np.ndarray]:
    """Each array by its path.

    >>> list(named_leaves({"mask": np.ones(2), "tokens": (np.ones(2),)}))
    ["inputs['mask']", "inputs['tokens'][0]"]
    """
    return {_spelled(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(inputs)}


def _spelled(path: tuple[Any, ...]) -> str:
    return f"inputs{jax.tree_util.keystr(path)}"


def columns(inputs: Inputs) -> list[np.ndarray]:
    """What names examples by content (`ids.content_ids`): the array, or each leaf after its path.

    >>> [v.tolist() for v in columns({"x": np.ones(2)})]
    [["inputs['x']", "inputs['x']"], [1.0, 1.0]]
    """
    if isinstance(inputs, np.ndarray):
        return [inputs]
    # By name, so that the order of a dict does not count.
    leaves = sorted(named_leaves(inputs).items())
    return [v for name, leaf in leaves for v in (np.broadcast_to(np.str_(name), len(leaf)), leaf)]


def take_rows(inputs: Inputs, rows: Any) -> Inputs:
    """Some rows of every array: a slice, indices or a mask; a slice of a mapped file stays one."""
    return jax.tree.map(lambda v: v[rows], inputs)


def read_rows(inputs: Inputs, rows: Any) -> Inputs:
    """`take_rows`, read into memory: a batch."""
    return jax.tree.map(lambda v: np.asarray(v[rows]), inputs)


def on_device(inputs: Any) -> Inputs:
    """Inputs of any form as JAX arrays, or tracers; nothing is checked."""
    if not is_tree(inputs):
        return jnp.asarray(inputs)
    return jax.tree.map(jnp.asarray, inputs, is_leaf=_is_list)


def shapes(inputs: Inputs, rows: int) -> Inputs:
    """Abstract inputs of so many examples."""
    return jax.tree.map(lambda v: jax.ShapeDtypeStruct((rows, *v.shape[1:]), v.dtype), inputs)


def described(inputs: Inputs) -> str:
    """Dtypes and shapes.

    >>> described(np.ones((3, 2))), described({"x": np.ones(3, bool)})
    ('float64[3, 2]', "{'x': bool[3]}")
    """
    return str(jax.tree.map(lambda v: _Shown(f"{v.dtype}{list(v.shape)}"), inputs))


class _Shown(str):
    """Text that containers show without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def as_array(name: str, value: Any) -> np.ndarray:
    """Real numbers as NumPy, memory-mapped as before.

    Raises:
      ValueError: anything else, by its name.
    """
    if type(value) in (np.ndarray, np.memmap):
        array = value
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(
                f"{name} are ragged ({error}): pad every row to one length, with labels of −1 "
                "where nothing counts"
            ) from error
    if array.ndim == 0 and array.dtype.kind != "O":
        raise ValueError(
            f"{name} are a single {array.dtype}: the first axis counts examples, so give one "
            "example as [example]"
        )
    if array.dtype.kind in "US":
        raise ValueError(
            f"{name} are strings, of dtype {array.dtype}: give numbers; for text, the ids of its "
            "tokens"
        )
    if not is_real(array.dtype):
        raise ValueError(
            f"{name} of {type(value).__name__} with dtype {array.dtype} are no array of real "
            "numbers: stack them into one of shape [N, ...]"
        )
    return array


def refuse_not_finite(inputs: Inputs) -> None:
    """Refuse numbers that are not finite, chunk by chunk.

    Raises:
      ValueError: with the leaf and the row.
    """
    for name, leaf in named_leaves(inputs).items():
        if not jnp.issubdtype(leaf.dtype, np.floating):
            continue
        for first, (part,) in row_chunks(leaf):
            bad = ~np.isfinite(part)
            if bad.any():
                at = first_of(bad)
                raise ValueError(
                    f"{name} are not finite in row {first + at[0]}, which holds {part[at]}: drop "
                    "such examples or fix their values"
                )


def first_of(bad: np.ndarray) -> tuple[int, ...]:
    """Indices of the first true element."""
    return tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
