"""Foreign weights into our parameter trees, strictly: every array is used, none is missing."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.models.build import ModelSettings, make_model
from stride_jax.runtime import checkpoint
from stride_jax.runtime.files import UnreadableFileError, read_json

Path = tuple[str, ...]


class WeightsError(UnreadableFileError):
    """A foreign checkpoint that does not fit; names what differs and the remedy."""


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


def check_depth(depth: Any, tensors: Mapping[str, np.ndarray]) -> None:
    """Refuse sizes that these weights can't have, before a model of them is laid out.

    Raises:
      WeightsError: more layers than there are arrays, or no number of layers.
    """
    if type(depth) is not int or not 1 <= depth <= len(tensors):
        raise WeightsError(
            f"the config has {depth!r} layers, the weights {len(tensors)} arrays: is it the file "
            "that came with the weights?"
        )


def fill(
    shapes: Any, tensors: Mapping[str, np.ndarray], their_name: Callable[[Path], str], hint: str
) -> Any:
    """Our tree with their arrays.

    A dense kernel `[in, out]` is the transpose of a torch weight `[out, in]`; nothing else differs.

    Args:
      shapes: our tree, from `param_shapes`.
      tensors: their arrays by name.
      their_name: function from the path of one of our arrays to the name of theirs.
      hint: remedy for names that differ, for the message.

    Returns:
      The tree, float32.

    Raises:
      WeightsError: missing or unknown names, or other shapes; lists them all.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    paths = [tuple(entry.key for entry in path) for path, _ in leaves]
    names = [their_name(path) for path in paths]
    missing, unknown = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names))
    if missing or unknown:
        raise WeightsError(
            f"{len(missing)} arrays are missing from the checkpoint: {missing}; {len(unknown)} are "
            f"unknown to the model: {unknown}; {hint}"
        )
    arrays, wrong = [], []
    for path, name, (_, leaf) in zip(paths, names, leaves, strict=True):
        array = tensors[name].T if path[-1] == "kernel" else tensors[name]
        if array.shape != leaf.shape:
            wrong.append(f"{name} is {array.shape} there, {leaf.shape} here")
        arrays.append(np.ascontiguousarray(array, np.float32))
    if wrong:
        raise WeightsError(f"shapes differ: {'; '.join(wrong)}; {hint}")
    return jax.tree_util.tree_unflatten(tree, arrays)
