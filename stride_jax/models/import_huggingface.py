"""Hugging Face folders, `config.json` and `*.safetensors`, of Llama's kin into our `Llama`.

Needs safetensors (the extra `text`). Pickled weights are never read.
"""

import os
import pathlib
import re
from typing import Any

import numpy as np

from stride_jax.models.build import ModelSettings
from stride_jax.models.huggingface_config import huggingface_settings
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
from stride_jax.runtime.files import first_line, naming

_REMEDY = "give the file that came with these weights"

_LAYERS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_OTHERS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_huggingface(folder: str | os.PathLike[str], **overrides: Any) -> Imported:
    """Read a model from a Hugging Face folder; arguments and errors as in `open_huggingface`.

    Returns:
      Settings, vocabulary size and parameters; `.save(path)` writes them with orbax.
    """
    return open_huggingface(folder, **overrides).imported()


def open_huggingface(folder: str | os.PathLike[str], **overrides: Any) -> Opened:
    """Open a Llama, Mistral, Qwen2 or Qwen3 in a Hugging Face folder.

    Args:
      folder: folder with `config.json` and one or more `*.safetensors`.
      **overrides: `LlamaSettings` to change, such as `sequence_len=512` or `dtype="bfloat16"`.

    Raises:
      WeightsError: no such files, a missing shard, another architecture, or names and shapes that
        differ; nothing is loaded before that.
    """
    folder = pathlib.Path(folder)
    files = _weight_files(folder)
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder} lacks config.json: give a folder with it beside the weights")
    config = read_config(folder / "config.json", ["model_type", "vocab_size"])
    place = folder / "config.json"
    with naming(place, "sizes of a model", _REMEDY):  # refused before files are opened
        settled = huggingface_settings(config, **overrides)
    tensors = _open(files)
    check_depth(settled.depth, tensors)
    if config.get("tie_word_embeddings") is None:
        overrides.setdefault("tied_head", "lm_head.weight" not in tensors)
        settled = huggingface_settings(config, **overrides)
    if settled.tied_head:
        head, table = (tensors.get(f"{_OTHERS[name]}.weight") for name in ("head", "embed"))
        if head is not None and table is not None and np.array_equal(head[:], table[:]):
            del tensors["lm_head.weight"]  # some writers store it twice
    settings = ModelSettings("llama", llama=settled)
    with naming(place, "sizes of a model", _REMEDY):
        shapes = param_shapes(settings, config["vocab_size"])
    check(shapes, tensors, _their_name, "is config.json of these weights?")
    source = {"format": "huggingface", "model_type": config["model_type"]}
    used = {path.name: path for path in (folder / "config.json", *files)}
    return Opened(settings, config["vocab_size"], source, used, tensors, _their_name)


def _their_name(path: Path) -> str:
    """Hugging Face's name of one of our arrays."""
    end = "bias" if path[-1] == "bias" else "weight"
    if path[0].startswith("block"):
        return f"model.layers.{path[0].removeprefix('block')}.{_LAYERS[path[1]]}.{end}"
    return f"{_OTHERS[path[0]]}.{end}"


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a folder: those of its index, else the one, else all.

    Raises:
      WeightsError: none, a shard that is missing, or pickled weights alone.
    """
    there = sorted(folder.glob("*.safetensors"))
    if (folder / _INDEX).is_file():
        place = read_config(folder / _INDEX, ["weight_map"])["weight_map"]
        wanted = sorted({str(name) for name in place.values()})
    elif (folder / "model.safetensors").is_file():
        wanted = ["model.safetensors"]  # others may hold the same in another form
    else:
        wanted = _all_shards([path.name for path in there])
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}: copy the missing weights too")
    if wanted:
        return [folder / name for name in wanted]
    if pickled := sorted(p.name for end in ("bin", "pth", "pt") for p in folder.glob(f"*.{end}")):
        raise WeightsError(
            f"{folder} has its weights pickled ({', '.join(pickled)}), and a pickle can run any "
            "code, so it is never read: where you trust it, write them as safetensors with "
            "transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    raise WeightsError(f"{folder} lacks config.json or *.safetensors: give a folder with both")


def _all_shards(names: list[str]) -> list[str]:
    """The names, and those of shards that their own numbers promise."""
    wanted = set(names)
    for name in names:
        if found := _SHARD.fullmatch(name):
            stem, digits, total = found[1], len(found[2]), found[3]
            numbers = range(1, int(total) + 1)
            wanted |= {f"{stem}-{i:0{digits}d}-of-{total}.safetensors" for i in numbers}
    return sorted(wanted)


class _Slices:
    """A tensor in a safetensors file, of which only the parts that are asked for are read."""

    def __init__(self, file: Any, name: str) -> None:
        self._slice = file.get_slice(name)
        self.shape = tuple(self._slice.get_shape())

    def __getitem__(self, at: Any) -> np.ndarray:
        return self._slice[at]


def _open(files: list[pathlib.Path]) -> dict[str, Tensor]:
    """The tensors of all files by name; their arrays are not read."""
    try:
        import safetensors  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "reading Hugging Face weights needs safetensors: pip install 'stride-jax[text]'"
        ) from error
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            file = safetensors.safe_open(path, framework="numpy")
            names = [n for n in file.keys() if not n.endswith("rotary_emb.inv_freq")]  # noqa: SIM118
            kinds = {name: file.get_slice(name).get_dtype() for name in names}
            own = {name: _Slices(file, name) for name in names}
        except Exception as error:  # safetensors raises several kinds
            raise WeightsError(
                f"{path} can't be read as safetensors ({first_line(error)}): copy it anew"
            ) from error
        if bad := sorted(f"{name}: {kind}" for name, kind in kinds.items() if kind not in _FLOATS):
            raise WeightsError(
                f"{path} holds arrays that are no plain floats ({', '.join(bad[:3])}): quantised "
                "weights are not read; give the folder of the model before it was quantised"
            )
        if twice := sorted(own.keys() & tensors.keys()):
            raise WeightsError(f"{path} holds {twice[0]}, which another file has too: remove one")
        tensors |= own
    return tensors
