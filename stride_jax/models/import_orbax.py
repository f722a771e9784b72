"""Our own orbax checkpoints as the start of another run: a run's model, or an import's."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np

from stride_jax.models.build import ModelSettings
from stride_jax.models.importing import WeightsError, param_shapes
from stride_jax.runtime import checkpoint
from stride_jax.runtime.files import fingerprint
from stride_jax.runtime.settings import build


@dataclasses.dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint of ours whose shapes fit its settings; its arrays are not read yet.

    Attributes:
      settings: settings of the model, for `make_model`.
      num_classes: C, classes or size of the vocabulary.
      source: format and step, as JSON values.
      folder: folder of the checkpoint series.
      arrays: checksums of the stored arrays by path.
    """

    settings: ModelSettings
    num_classes: int
    source: dict[str, Any]
    folder: pathlib.Path
    arrays: dict[str, str]

    def load(self, sharding: Any = None, dtype: Any = np.float32) -> Any:
        """The parameters of the last model there, as in `importing.Opened.load`."""
        shapes = checkpoint.shapes(self.folder)
        position = len(shapes) - 1 if isinstance(shapes, list) else None
        shapes = shapes if position is None else shapes[position]
        places = sharding
        if sharding is None or isinstance(sharding, jax.sharding.Sharding):
            local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            places = jax.tree.map(lambda _: sharding or local, shapes)
        like = jax.tree.map(
            lambda v, where: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=where), shapes, places
        )
        params = checkpoint.restore_one(self.folder, like, position)
        if sharding is None:
            return jax.tree.map(lambda v: np.asarray(v, np.dtype(dtype)), params)
        return jax.tree.map(lambda v: v.astype(dtype), params)

    def digest(self) -> str:
        """Hash of the stored arrays' names and contents, 16 hexadecimal digits."""
        return fingerprint(self.arrays)


def open_orbax(folder: str | os.PathLike[str], **overrides: Any) -> OpenedCheckpoint:
    """Open the last checkpoint of a folder that a run or `Imported.save` wrote.

    Args:
      folder: folder of the checkpoint series.
      **overrides: settings of the language model to change, such as `dtype="bfloat16"`.

    Raises:
      WeightsError: it does not say which model it is of, or its shapes are another model's.
      CheckpointError: it can't be read.
    """
    folder = pathlib.Path(folder)
    config, arrays, step = checkpoint.read_config(folder)
    if missing := sorted({"model", "num_classes"} - set(config)):
        raise WeightsError(
            f"{folder} does not say its {' and '.join(missing)}: an earlier version wrote it; run "
            "its config again, or give the folder of the weights it was made from"
        )
    model = build(ModelSettings, config["model"], f"the model in {folder}")
    settings = dataclasses.replace(model, init_from="", origin=None)
    if overrides:
        own = dataclasses.replace(getattr(settings, settings.kind), **overrides)
        settings = dataclasses.replace(settings, **{settings.kind: own})
    opened = OpenedCheckpoint(
        settings, int(config["num_classes"]), {"format": "orbax", "step": step}, folder, arrays
    )
    if settings.kind in ("gpt", "llama"):
        stored = checkpoint.shapes(folder)
        _check(opened, stored[-1] if isinstance(stored, list) else stored)
    return opened


def _check(opened: OpenedCheckpoint, stored: Any) -> None:
    shapes = param_shapes(opened.settings, opened.num_classes)
    ours, theirs = (
        {jax.tree_util.keystr(path): tuple(v.shape) for path, v in _leaves(tree)}
        for tree in (shapes, stored)
    )
    if wrong := sorted(n for n in ours | theirs if ours.get(n) != theirs.get(n)):
        first = wrong[0]
        raise WeightsError(
            f"{opened.folder} holds {len(wrong)} arrays that its settings do not describe, first "
            f"{first}: {theirs.get(first, 'absent')} there, {ours.get(first, 'absent')} here"
        )


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda v: hasattr(v, "shape"))
