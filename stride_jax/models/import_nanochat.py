"""nanochat checkpoints, `model_<step>.pt` and `meta_<step>.json`, into our GPT.

The format of the checkpoints published for STRIDE. Needs the extra `torch`. The metadata hold the
sizes; the names and shapes of the weights show a model's features; constants that they do not show
are those of the version of nanochat that has these features (its public history):

| version: first commit | rotary base | scale of q, k | of gates | short window |
|---|---|---|---|---|
| before residual scalars and value embeddings (October 2025) | 10,000 | 1 | | none |
| value embeddings, gates of 32 channels (e85db6b, 16 January 2026) | 10,000 | 1 | 2 | a half |
| gates of 12 channels (6ed7d1d, 9 March 2026) | 100,000 | 1.15 | 3 | a third |
| smear and backout (a825e63, 14 March 2026) | 100,000 | 1.2 | 3 | a quarter |

The softcap was 20 from 2 to 9 March 2026 (aba30cb) and 15 otherwise: give `softcap=20.0` for those.
Rotary tables were rounded to bfloat16 by every version until 1076f97 (4 March 2026), and since then
to the dtype of the computation, bfloat16 on the GPUs it is meant for: they are rounded here too;
give `rope_rounded=False` for a model that was trained in float32.
"""

import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from stride_jax.models.build import ModelSettings
from stride_jax.models.gpt import GPTSettings
from stride_jax.models.importing import (
    Imported,
    Opened,
    Path,
    Tensor,
    WeightsError,
    check,
    check_depth,
    param_shapes,
    read_config,
)
from stride_jax.runtime.files import naming

_SIZES = {
    "sequence_len": "sequence_len",
    "n_layer": "depth",
    "n_embd": "width",
    "n_head": "num_heads",
    "n_kv_head": "num_kv_heads",
}
_LAYERS = {
    "attention/query": "attn.c_q.weight",
    "attention/key": "attn.c_k.weight",
    "attention/value": "attn.c_v.weight",
    "attention/out": "attn.c_proj.weight",
    "attention/value_gate": "attn.ve_gate.weight",
    "up": "mlp.c_fc.weight",
    "down": "mlp.c_proj.weight",
}
_OTHERS = {
    "embed": "transformer.wte.weight",
    "head": "lm_head.weight",
    "smear_gate": "smear_gate.weight",
}


def read_nanochat(
    folder: str | os.PathLike[str], step: int | None = None, **overrides: Any
) -> Imported:
    """Read a nanochat checkpoint; arguments and errors as in `open_nanochat`.

    Returns:
      Settings, vocabulary size and parameters; `.save(path)` writes them with orbax.
    """
    return open_nanochat(folder, step, **overrides).imported()


def open_nanochat(
    folder: str | os.PathLike[str], step: int | None = None, **overrides: Any
) -> Opened:
    """Open a nanochat checkpoint.

    Args:
      folder: folder with `model_<step>.pt` and `meta_<step>.json`.
      step: step of the checkpoint; the latest by default.
      **overrides: `GPTSettings` that differ from the table above, such as `softcap=20.0`.

    Raises:
      WeightsError: no such files, or names, sizes and shapes that differ; lists them.

    Warns:
      UserWarning: the version is one of those whose softcap the weights do not show.
    """
    folder = pathlib.Path(folder)
    steps = sorted(int(m[1]) for p in folder.glob("*.pt") if (m := _STEP.fullmatch(p.name)))
    step = steps[-1] if step is None and steps else step
    if step not in steps:
        raise WeightsError(f"no model_<step>.pt of step {step} in {folder}; there are {steps}")
    meta_path, path = folder / f"meta_{step:06d}.json", folder / f"model_{step:06d}.pt"
    if not meta_path.is_file():
        raise WeightsError(f"{meta_path.name} is missing in {folder}: it holds the model's sizes")
    config = read_config(meta_path, ["model_config"])["model_config"]
    if not isinstance(config, dict):
        raise WeightsError(f"model_config in {meta_path} is no object: is it nanochat's?")
    tensors = _load(path)
    with naming(meta_path, "sizes of a model", "give the file that came with these weights"):
        check_depth(config.get("n_layer"), tensors)
        gpt = nanochat_settings(config, tensors, **overrides)
        settings = ModelSettings("gpt", gpt=gpt)
        shapes = param_shapes(settings, config["vocab_size"])
    if gpt.value_embeddings and gpt.value_gate_channels >= 32 and "softcap" not in overrides:
        warnings.warn(
            f"{path}: softcap=15 is assumed, but models trained from 2 to 9 March 2026 have 20, "
            "which weights do not show: give the softcap",
            stacklevel=2,
        )
    check(shapes, tensors, _their_name, "where a feature or a size differs, give the setting")
    return Opened(
        settings, config["vocab_size"], {"format": "nanochat", "step": step},
        {own.name: own for own in (path, meta_path)}, tensors, _their_name,
    )  # fmt: skip


_STEP = re.compile(r"model_(\d+)\.pt")


def nanochat_settings(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], **overrides: Any
) -> GPTSettings:
    """Settings from the metadata's `model_config` and the weights' names and shapes.

    Raises:
      WeightsError: unknown or missing keys.
    """
    known = {*_SIZES, "vocab_size"}
    missing, unknown = known - set(config), set(config) - known - {"window_pattern"}
    if missing or unknown:
        raise WeightsError(
            f"model_config lacks {sorted(missing)} and has unknown keys {sorted(unknown)}: "
            "is it nanochat's?"
        )
    sizes = {ours: config[theirs] for theirs, ours in _SIZES.items()}
    gates = [w.shape[1] for name, w in tensors.items() if name.endswith("attn.ve_gate.weight")]
    smear_gate = tensors.get("smear_gate.weight")
    features: dict[str, Any] = {
        "rope_rounded": True,
        "window_pattern": config.get("window_pattern", "L").upper(),
        "value_embeddings": bool(gates),
        "residual_scalars": "resid_lambdas" in tensors,
        "smear": smear_gate is not None,
        "backout": "backout_lambda" in tensors,
    }
    if gates:
        features["value_gate_channels"] = gates[0]
    if smear_gate is not None:
        features["smear_channels"] = smear_gate.shape[1]
    head = tensors.get("lm_head.weight")
    if config["vocab_size"] % 64 and head is not None and head.shape[0] == config["vocab_size"]:
        features["vocab_multiple"] = 1  # before December 2025
    constants = _constants(smear_gate is not None, gates, config["sequence_len"])
    return GPTSettings(**{**sizes, **features, **constants, **overrides})


def _constants(smear: bool, gates: list[int], length: int) -> dict[str, Any]:
    """The constants in the table's row for these features."""
    if not smear and (not gates or gates[0] >= 32):
        scales = {"rope_theta": 10_000.0, "qk_scale": 1.0, "value_gate_scale": 2.0}
        return {**scales, "short_window": max(length // 2, 1)}
    tile = 128  # windows were rounded up to the attention kernel's tile
    window = -(-length // (4 if smear else 3))
    scales = {"rope_theta": 100_000.0, "qk_scale": 1.2 if smear else 1.15, "value_gate_scale": 3.0}
    return {**scales, "short_window": -(-window // tile) * tile}


def _their_name(path: Path) -> str:
    """nanochat's name of one of our arrays."""
    top, inner = path[0], "/".join(path[1:-1])
    if top.startswith("block"):
        return f"transformer.h.{top.removeprefix('block')}.{_LAYERS[inner]}"
    if top.startswith("value_embed"):
        return f"value_embeds.{top.removeprefix('value_embed')}.weight"
    return _OTHERS.get(top, top)


class _TorchTensor:
    """A tensor of torch, mapped from its file, as float32 numpy arrays."""

    def __init__(self, tensor: Any) -> None:
        self._tensor, self.shape = tensor, tuple(tensor.shape)

    def __getitem__(self, at: Any) -> np.ndarray:
        return self._tensor[at].float().numpy()


def _load(path: pathlib.Path) -> dict[str, Tensor]:
    """The state dict, mapped from its file; `torch.compile`'s prefix removed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "reading nanochat checkpoints needs torch: pip install 'stride-jax[torch]'"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return {name.removeprefix("_orig_mod."): _TorchTensor(v) for name, v in state.items()}
    except Exception as error:  # torch raises many kinds, and advises to switch its safety off
        raise WeightsError(
            f"{path} can't be read as a dict of tensors ({type(error).__name__}): it is damaged, "
            "or holds something else than weights, which is never run; copy it anew"
        ) from error
