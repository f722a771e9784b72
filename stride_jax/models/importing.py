"""Foreign weights into our parameter trees, strictly: every array is used, none is missing.

Opening a checkpoint reads names and shapes; arrays are read one by one when they are asked for, and
of each array a device gets its own part.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.models.build import ModelSettings, make_model
from stride_jax.runtime import checkpoint
from stride_jax.runtime.files import UnreadableFileError, file_digest, fingerprint, read_json

Path = tuple[str, ...]


class WeightsError(UnreadableFileError):
    """A foreign checkpoint that does not fit; names what differs and the remedy."""


class Tensor(Protocol):
    """An array of another's that is read in parts, such as a numpy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...

    def __getitem__(self, at: Any, /) -> Any:
        """The part at these slices, without a step."""
        ...


@dataclasses.dataclass(frozen=True)
class Opened:
    """A foreign checkpoint whose names and shapes fit; its arrays are not read yet.

    Attributes:
      settings: settings of the model, for `make_model`.
      num_classes: C, size of its vocabulary.
      source: format and step, as JSON values.
      files: the files that hold it, by the name that is part of its digest.
      tensors: its arrays by name.
      their_name: function from the path of one of our arrays to the name of theirs.
    """

    settings: ModelSettings
    num_classes: int
    source: dict[str, Any]
    files: Mapping[str, pathlib.Path]
    tensors: Mapping[str, Tensor]
    their_name: Callable[[Path], str]

    def load(self, sharding: Any = None, dtype: Any = np.float32) -> Any:
        """The parameters, array by array.

        Args:
          sharding: one for all arrays, or a tree of them: each device reads its own part of each
            array; None for numpy arrays.
          dtype: type that arrays are converted to on their way.
        """
        shapes = param_shapes(self.settings, self.num_classes)
        return _filled(shapes, self.tensors, self.their_name, sharding, np.dtype(dtype))

    def digest(self) -> str:
        """Hash of the files' contents, wherever they lie; 16 hexadecimal digits."""
        return fingerprint({name: file_digest(path) for name, path in self.files.items()})

    def imported(self) -> "Imported":
        """The model with its parameters on the host."""
        return Imported(self.settings, self.num_classes, self.load(), self.source)


@dataclasses.dataclass(frozen=True)
class Imported:
    """A model read from a foreign checkpoint.

    Attributes:
      settings: settings of the model, for `make_model`.
      num_classes: C, size of its vocabulary.
      params: float32 parameter tree.
      source: format and step that were read, as JSON values.
    """

    settings: ModelSettings
    num_classes: int
    params: Any
    source: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an orbax checkpoint, with settings, vocabulary size and source as its config."""
        config = {
            "model": self.settings,
            "num_classes": self.num_classes,
            "source": self.source,
        }
        checkpoint.save(path, self.params, config, step=int(self.source.get("step", 0)))


def read_config(path: pathlib.Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """The object in a JSON file that comes with weights.

    Raises:
      UnreadableFileError: no JSON, no object, or without one of the keys.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds no object: is it the file that came with the weights?")
    if missing := sorted(set(keys) - set(config)):
        raise WeightsError(f"{path} lacks {missing}: is it the file that came with the weights?")
    return config


def param_shapes(settings: ModelSettings, num_classes: int) -> Any:
    """The tree of `jax.ShapeDtypeStruct`s of a language model's parameters; computes nothing.

    >>> shapes = param_shapes(ModelSettings("gpt"), 100)
    >>> shapes["embed"]["embedding"].shape  # padded to a multiple of 64
    (128, 128)
    """
    module = make_model(settings, num_classes)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]  # pyright: ignore[reportIndexIssue]


def check_depth(depth: Any, tensors: Mapping[str, Tensor]) -> None:
    """Refuse sizes that these weights can't have, before a model of them is laid out.

    Raises:
      WeightsError: more layers than there are arrays, or no number of layers.
    """
    if type(depth) is not int or not 1 <= depth <= len(tensors):
        raise WeightsError(
            f"the config has {depth!r} layers, the weights {len(tensors)} arrays: is it the file "
            "that came with the weights?"
        )


def check(
    shapes: Any, tensors: Mapping[str, Tensor], their_name: Callable[[Path], str], hint: str
) -> None:
    """Refuse weights that do not fit our tree, by names and shapes alone.

    A dense kernel `[in, out]` is the transpose of a torch weight `[out, in]`; nothing else differs.

    Args:
      shapes: our tree, from `param_shapes`.
      tensors: their arrays by name.
      their_name: function from the path of one of our arrays to the name of theirs.
      hint: remedy for names that differ, for the message.

    Raises:
      WeightsError: missing or unknown names, or other shapes; lists them all.
    """
    ours = {their_name(path): (path, leaf) for path, leaf in _leaves(shapes)}
    missing, unknown = sorted(set(ours) - set(tensors)), sorted(set(tensors) - set(ours))
    if missing or unknown:
        raise WeightsError(
            f"{len(missing)} arrays are missing from the checkpoint: {missing}; {len(unknown)} are "
            f"unknown to the model: {unknown}; {hint}"
        )
    wrong = []
    for name, (path, leaf) in ours.items():
        shape = tuple(tensors[name].shape)[:: -1 if path[-1] == "kernel" else 1]
        if shape != leaf.shape:
            wrong.append(f"{name} is {shape} there, {leaf.shape} here")
    if wrong:
        raise WeightsError(f"shapes differ: {'; '.join(wrong)}; {hint}")


def fill(
    shapes: Any, tensors: Mapping[str, Tensor], their_name: Callable[[Path], str], hint: str
) -> Any:
    """Our tree with their arrays on the host, float32, once `check` has passed them."""
    check(shapes, tensors, their_name, hint)
    return _filled(shapes, tensors, their_name, None, np.dtype(np.float32))


def _leaves(shapes: Any) -> list[tuple[Path, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return [(tuple(entry.key for entry in path), leaf) for path, leaf in leaves]


def _filled(
    shapes: Any,
    tensors: Mapping[str, Tensor],
    their_name: Callable[[Path], str],
    sharding: Any,
    dtype: np.dtype[Any],
) -> Any:
    """A tree read array by array; on devices, each reads its own part."""
    named = _leaves(shapes)
    places = [None] * len(named)
    if sharding is not None:
        alone = isinstance(sharding, jax.sharding.Sharding)
        places = [sharding] * len(named) if alone else jax.tree.leaves(sharding)
    arrays = []
    for (path, leaf), where in zip(named, places, strict=True):
        read = functools.partial(_part, tensors[their_name(path)], path[-1] == "kernel", dtype)
        arrays.append(
            read((slice(None),) * len(leaf.shape))
            if where is None
            else jax.make_array_from_callback(leaf.shape, where, read)
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), arrays)


def _part(
    tensor: Tensor, turned: bool, dtype: np.dtype[Any], at: tuple[slice, ...] | None
) -> np.ndarray:
    """A part of one of our arrays; a dense kernel `[in, out]` is a torch weight's transpose."""
    shape = tuple(tensor.shape)[::-1] if turned else tuple(tensor.shape)
    full = (slice(None),) * len(shape) if at is None else at
    own = tuple(slice(*each.indices(n)[:2]) for each, n in zip(full, shape, strict=True))
    part = np.asarray(tensor[own[::-1]]).T if turned else np.asarray(tensor[own])
    return np.ascontiguousarray(part, dtype)
