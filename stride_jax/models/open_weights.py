"""Pre-trained weights in any format that is read, told by what lies in their folder."""

import os
import pathlib
import re
from typing import Any

from stride_jax.models.import_huggingface import open_huggingface
from stride_jax.models.import_nanochat import open_nanochat
from stride_jax.models.import_orbax import OpenedCheckpoint, open_orbax
from stride_jax.models.importing import Opened, WeightsError

_EXECUTION = ("attention", "remat", "dtype")
FREE = {
    "orbax": _EXECUTION,
    "huggingface": (*_EXECUTION, "sequence_len"),
    "nanochat": (
        *_EXECUTION, "softcap", "rope_theta", "rope_rounded", "qk_norm", "qk_scale",
        "value_gate_scale", "short_window",
    ),
}  # fmt: skip
"""Settings that weights do not decide, by format: how the model runs, and what is not stored."""

_PICKLED = re.compile(r".+\.(bin|pth|pt|safetensors)")


def weights_format(folder: str | os.PathLike[str]) -> str:
    """The format of a folder of weights: `orbax`, `nanochat` or `huggingface`.

    Raises:
      WeightsError: no folder, or nothing in it that is known.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise WeightsError(
            f"{folder} is no folder: models are read from local folders; download one first, such "
            "as by `hf download <name> --local-dir <folder>`"
        )
    names = [path.name for path in folder.iterdir()]
    if any(name.isdigit() and (folder / name / "params").is_dir() for name in names):
        return "orbax"
    if any(re.fullmatch(r"(model|meta)_\d+\.(pt|json)", name) for name in names):
        return "nanochat"
    if "config.json" in names or any(_PICKLED.fullmatch(name) for name in names):
        return "huggingface"
    raise WeightsError(
        f"{folder} holds no weights that are read: give a Hugging Face folder (config.json and "
        "*.safetensors), a nanochat checkpoint (model_<step>.pt and meta_<step>.json), or a run's "
        "workdir or model folder"
    )


def open_weights(folder: str | os.PathLike[str], **overrides: Any) -> Opened | OpenedCheckpoint:
    """Open weights of any format: names and shapes are checked, arrays not yet read.

    Args:
      folder: folder of the weights.
      **overrides: settings of `FREE` to change.

    Raises:
      WeightsError: nothing there that is read, or weights that don't fit; see each format.
    """
    return _OPEN[weights_format(folder)](folder, **overrides)


_OPEN = {"orbax": open_orbax, "huggingface": open_huggingface, "nanochat": open_nanochat}
