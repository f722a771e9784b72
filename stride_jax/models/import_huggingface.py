"""Hugging Face folders, `config.json` and `*.safetensors`, of Llama and Qwen2 into our `Llama`.

Needs the extra `torch` (for safetensors; torch itself is not used).
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stride_jax.models.build import ModelSettings
from stride_jax.models.importing import (
    Imported,
    Path,
    WeightsError,
    check_depth,
    fill,
    param_shapes,
    read_config,
)
from stride_jax.models.llama import LlamaSettings
from stride_jax.runtime.files import first_line, naming

_REMEDY = "give the file that came with these weights"

_LAYERS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_SIZES = {
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
}
_OTHERS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}


def read_huggingface(folder: str | os.PathLike[str], **overrides: Any) -> Imported:
    """Read a Llama or Qwen2 from a Hugging Face folder.

    Args:
      folder: folder with `config.json` and one or more `*.safetensors`.
      **overrides: `LlamaSettings` to change, such as `sequence_len=512` or `dtype="bfloat16"`.

    Returns:
      Settings, vocabulary size and parameters; `.save(path)` writes them with orbax.

    Raises:
      WeightsError: no such files, another architecture, or names and shapes that differ.
    """
    folder = pathlib.Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files or not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} lacks config.json or *.safetensors: give a folder with both")
    config = read_config(folder / "config.json", ["model_type", "vocab_size"])
    with naming(folder / "config.json", "sizes of a model", _REMEDY):
        llama = huggingface_settings(config, **overrides)
        settings = ModelSettings("llama", llama=llama)
    tensors = _load(files)
    check_depth(llama.depth, tensors)
    if llama.tied_head:
        head, table = (tensors.get(f"{_OTHERS[name]}.weight") for name in ("head", "embed"))
        if head is not None and table is not None and np.array_equal(head, table):
            del tensors["lm_head.weight"]  # some writers store it twice
    with naming(folder / "config.json", "sizes of a model", _REMEDY):
        shapes = param_shapes(settings, config["vocab_size"])
    params = fill(shapes, tensors, _their_name, "is config.json of these weights?")
    source = {"format": "huggingface", "model_type": config["model_type"]}
    return Imported(settings, config["vocab_size"], params, source)


def huggingface_settings(config: Mapping[str, Any], **overrides: Any) -> LlamaSettings:
    """Settings from `config.json`.

    Raises:
      WeightsError: features that our model lacks; names them.
    """
    kind = config.get("model_type")
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or rope
    refused = {
        "model_type": kind not in ("llama", "qwen2"),
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "attention_bias": bool(config.get("attention_bias")),  # Llama's has one on `out` too
        "rope_scaling": scaling.get("rope_type", scaling.get("type", "default")) != "default",
    }
    if bad := [f"{key}={config.get(key)!r}" for key, wrong in refused.items() if wrong]:
        raise WeightsError(
            f"config.json has {', '.join(bad)}: our model is a plain Llama or Qwen2 (SwiGLU, full "
            "attention, unscaled rotary positions)"
        )
    if missing := sorted(_SIZES - set(config)):
        raise WeightsError(f"config.json lacks {missing}: is it of these weights?")
    sizes = {
        "depth": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "hidden": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": config.get("head_dim") or 0,
        "sequence_len": config["max_position_embeddings"],
        "rope_theta": float(config.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        "norm_eps": config["rms_norm_eps"],
        "qkv_bias": kind == "qwen2",
        "tied_head": bool(config.get("tie_word_embeddings")),
    }
    return LlamaSettings(**{**sizes, **overrides})


def _their_name(path: Path) -> str:
    """Hugging Face's name of one of our arrays."""
    end = "bias" if path[-1] == "bias" else "weight"
    if path[0].startswith("block"):
        return f"model.layers.{path[0].removeprefix('block')}.{_LAYERS[path[1]]}.{end}"
    return f"{_OTHERS[path[0]]}.{end}"


def _load(files: list[pathlib.Path]) -> dict[str, np.ndarray]:
    """All files' arrays, float32."""
    try:
        import safetensors  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "reading Hugging Face weights needs safetensors: pip install 'stride-jax[torch]'"
        ) from error
    tensors = {}
    for path in files:
        try:
            with safetensors.safe_open(path, framework="flax") as file:  # numpy has no bfloat16
                for name in file.keys():  # noqa: SIM118
                    if not name.endswith("rotary_emb.inv_freq"):  # old files store this constant
                        tensors[name] = np.asarray(file.get_tensor(name), np.float32)
        except Exception as error:  # safetensors and JAX raise several kinds
            raise WeightsError(
                f"{path} can't be read as safetensors ({first_line(error)}): copy it anew"
            ) from error
    return tensors
