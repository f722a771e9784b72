"""The `config.json` of Llama's kin, read strictly: what would change results is refused by name."""

from collections.abc import Mapping
from typing import Any

from stride_jax.models.importing import WeightsError
from stride_jax.models.llama import LlamaSettings
from stride_jax.models.transformer import RopeScaling

KINDS = ("llama", "mistral", "qwen2", "qwen3")

_SIZES = {
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
}
_READ = _SIZES | {
    "model_type",
    "vocab_size",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "attention_bias",
    "mlp_bias",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
}
# What says how a model was made, stored or is to be served.
_HARMLESS = {
    "_model_name_or_path",
    "_name_or_path",
    "_attn_implementation_autoset",
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "max_window_layers",
    "pad_token_id",
    "pretraining_tp",
    "return_dict",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
}
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_ROPE = {*_LLAMA3, "rope_type", "type", "rope_theta"}
_MISTRAL_WINDOW = 4096  # transformers' own default


def huggingface_settings(config: Mapping[str, Any], **overrides: Any) -> LlamaSettings:
    """Settings from `config.json`.

    Args:
      config: the file's object.
      **overrides: `LlamaSettings` to change.

    Raises:
      WeightsError: features that our model lacks, or keys that it does not know; names them.

    >>> sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96,
    ...          "num_attention_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-6}
    >>> huggingface_settings({"model_type": "qwen2", "vocab_size": 99, **sizes}).qkv_bias
    True
    >>> huggingface_settings({"model_type": "llama", "vocab_size": 99, "num_experts": 8, **sizes})
    Traceback (most recent call last):
    stride_jax.models.importing.WeightsError: config.json has num_experts=8: our models are plain \
llama, mistral, qwen2 and qwen3; remove a key from a copy of the file where it changes no result
    """
    kind = config.get("model_type")
    rope = _rope(config)
    kind_of_rope = rope.get("rope_type", rope.get("type", "default"))
    window = _window(config)
    layers = set(config.get("layer_types") or ())
    refused = {
        "model_type": kind not in KINDS,
        "hidden_act": config.get("hidden_act", "silu") != "silu",
        "use_sliding_window": bool(config.get("use_sliding_window")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "attention_bias": bool(config.get("attention_bias")),  # it is on `out` too
        "sliding_window": kind == "llama" and bool(config.get("sliding_window")),
        "layer_types": not layers <= {"sliding_attention" if window else "full_attention"},
    }
    bad = [name for name, wrong in refused.items() if wrong]
    bad += [name for name in sorted(set(config) - _READ - _HARMLESS) if config[name]]
    told = [f"{name}={config.get(name)!r}" for name in bad]
    if kind_of_rope not in ("default", "llama3") or set(rope) - _ROPE:
        name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
        told.append(f"{name}={config[name]!r}")
    if told:
        raise WeightsError(
            f"config.json has {', '.join(told)}: our models are plain {', '.join(KINDS[:-1])} and "
            f"{KINDS[-1]}; remove a key from a copy of the file where it changes no result"
        )
    if missing := sorted(_SIZES - set(config)):
        raise WeightsError(f"config.json lacks {missing}: is it of these weights?")
    longest = config["max_position_embeddings"]
    if overrides.get("sequence_len", 0) > longest:
        raise WeightsError(
            f"sequence_len={overrides['sequence_len']} exceeds the model's context, "
            f"max_position_embeddings={longest}: give at most that"
        )
    sizes = {
        "depth": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "hidden": config["intermediate_size"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": config.get("head_dim") or (128 if kind == "qwen3" else 0),
        "sequence_len": longest,
        "rope_theta": float(config.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        "norm_eps": config["rms_norm_eps"],
        "qkv_bias": kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "window": window - 1 if window else 0,  # theirs counts the token itself
        "rope_scaling": _scaling(rope) if kind_of_rope == "llama3" else None,
        "tied_head": bool(config.get("tie_word_embeddings")),
    }
    try:
        return LlamaSettings(**{**sizes, **overrides})
    except (TypeError, ValueError) as error:
        raise WeightsError(f"config.json: {error}; is it of these weights?") from error


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of rotary positions besides their base, in old files and in new ones."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return rope if isinstance(rope, Mapping) else {"rope_type": rope}


def _window(config: Mapping[str, Any]) -> int:
    """Tokens that a token of a Mistral attends to, itself included; 0 for all."""
    if config.get("model_type") != "mistral":
        return 0
    return config.get("sliding_window", _MISTRAL_WINDOW) or 0


def _scaling(rope: Mapping[str, Any]) -> RopeScaling:
    if missing := [name for name in _LLAMA3 if name not in rope]:
        raise WeightsError(f"config.json's llama3 rotary positions lack {missing}: copy it anew")
    factor, low, high, context = (rope[name] for name in _LLAMA3)
    return RopeScaling(float(factor), float(low), float(high), int(context))
