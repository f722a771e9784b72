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
"""

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from stride_jax.models.build import ModelSettings
from stride_jax.models.gpt import GPTSettings
from stride_jax.models.importing import (
    Imported,
    Path,
    WeightsError,
    check_depth,
    fill,
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
    """Read a nanochat checkpoint.

    Args:
      folder: folder with `model_<step>.pt` and `meta_<step>.json`.
      step: step of the checkpoint; the latest by default.
      **overrides: `GPTSettings` that differ from the table above, such as `softcap=20.0`.

    Returns:
      Settings, vocabulary size and parameters; `.save(path)` writes them with orbax.

    Raises:
      WeightsError: no such files, or names, sizes and shapes that differ; lists them.
    """
    folder = pathlib.Path(folder)
    steps = sorted(int(m[1]) for p in folder.glob("*.pt") if (m := _STEP.fullmatch(p.name)))
    step = steps[-1] if step is None and steps else step
    if step not in steps:
        raise WeightsError(f"no model_<step>.pt of step {step} in {folder}; there are {steps}")
    meta_path = folder / f"meta_{step:06d}.json"
    if not meta_path.is_file():
        raise WeightsError(f"{meta_path.name} is missing in {folder}: it holds the model's sizes")
    config = read_config(meta_path, ["model_config"])["model_config"]
    if not isinstance(config, dict):
        raise WeightsError(f"model_config in {meta_path} is no object: is it nanochat's?")
    tensors = _load(folder / f"model_{step:06d}.pt")
    with naming(meta_path, "sizes of a model", "give the file that came with these weights"):
        check_depth(config.get("n_layer"), tensors)
        settings = ModelSettings("gpt", gpt=nanochat_settings(config, tensors, **overrides))
        shapes = param_shapes(settings, config["vocab_size"])
    params = fill(
        shapes,
        tensors,
        _their_name,
        "where a feature or a size differs, give the setting to read_nanochat",
    )
    source = {"format": "nanochat", "step": step}
    return Imported(settings, config["vocab_size"], params, source)


_STEP = re.compile(r"model_(\d+)\.pt")


def nanochat_settings(
    config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], **overrides: Any
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
    if config["vocab_size"] % 64 and len(tensors.get("lm_head.weight", ())) == config["vocab_size"]:
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


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict as float32 arrays; `torch.compile`'s prefix removed."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "reading nanochat checkpoints needs torch: pip install 'stride-jax[torch]'"
        ) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("_orig_mod."): v.float().numpy() for name, v in state.items()}
    except Exception as error:  # torch raises many kinds, and advises to switch its safety off
        raise WeightsError(
            f"{path} can't be read as a dict of tensors ({type(error).__name__}): it is damaged, "
            "or holds something else than weights, which is never run; copy it anew"
        ) from error
