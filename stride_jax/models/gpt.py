"""nanochat's GPT: the model whose pre-training the paper attributes.

A decoder with rotary positions, QK-norm, squared ReLU, RMSNorm without parameters, no biases and
an untied head (github.com/karpathy/nanochat, `nanochat/gpt.py`; value embeddings after Zhou et al.,
Value Residual Learning, 2024). Letters as in `transformer`; L layers, C the vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from stride_jax.models.attention import ATTENTIONS, causal_attention
from stride_jax.models.recording import Recorder
from stride_jax.models.transformer import (
    check_sizes,
    check_tokens,
    linear,
    previous_tokens,
    rms_norm,
    rotate,
)
from stride_jax.runtime.files import added
from stride_jax.runtime.mesh import split_rows


@dataclasses.dataclass(frozen=True)
class GPTSettings:
    """Sizes and switches of a GPT. The switches default to nanochat of March 2026 and after.

    Attributes:
      depth: L, layers.
      width: D, width of the residual stream.
      num_heads: H, query heads; each has width D / H.
      num_kv_heads: G, key and value heads; a divisor of H.
      sequence_len: longest sequence.
      window_pattern: `L` (attends to everything before) or `S` (to a short window) for each layer,
        repeated; the last layer is always `L`.
      short_window: tokens before its own that an `S` layer attends to; 0 for a quarter of
        `sequence_len`.
      rope_theta: base of the rotary frequencies.
      qk_norm: whether queries and keys are normalised by RMSNorm.
      qk_scale: factor of both after their norm.
      value_embeddings: whether every second layer, the last included, adds a gated embedding of
        the token itself to its values.
      value_gate_channels: number of first channels of the stream that the gate reads.
      value_gate_scale: factor of the gate's sigmoid.
      residual_scalars: whether a layer's input is `a_l x + b_l x0`, x0 the embedding.
      smear: whether x0 has a gated share of the previous token's embedding too.
      smear_channels: number of first channels of the embedding that this gate reads.
      backout: whether a share of the stream after layer L // 2 is subtracted before the final norm.
      softcap: bound s of the logits `s tanh(o / s)`, in float32; 0 for none.
      vocab_multiple: number whose multiple the embeddings and the head are padded to.
      embedding_std: standard deviation of the initial token embedding.
      mlp_init: initial scale of the MLP's first matrix, relative to that of q, k and v.
      residual_init: initial a_l of the first and the last layer, a straight line between them.
      x0_init: initial b_l, likewise.
      attention: `auto`, `einsum`, `xla` or `cudnn` (`attention.causal_attention`).
      remat: whether a block is computed again in the backward pass, to need less memory.
      dtype: dtype of the computation, `float32` or `bfloat16`; parameters are float32.
      rope_rounded: whether the rotary tables are rounded to bfloat16, as nanochat's are.
    """

    depth: int = 4
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4
    sequence_len: int = 64
    window_pattern: str = "L"
    short_window: int = 0
    rope_theta: float = 100_000.0
    qk_norm: bool = True
    qk_scale: float = 1.2
    value_embeddings: bool = True
    value_gate_channels: int = 12
    value_gate_scale: float = 3.0
    residual_scalars: bool = True
    smear: bool = True
    smear_channels: int = 24
    backout: bool = True
    softcap: float = 15.0
    vocab_multiple: int = 64
    embedding_std: float = 0.8
    mlp_init: float = 0.4
    residual_init: tuple[float, float] = (1.15, 1.05)
    x0_init: tuple[float, float] = (0.2, 0.05)
    attention: str = "auto"
    remat: bool = False
    dtype: str = "float32"
    rope_rounded: bool = added(False)

    def __post_init__(self) -> None:
        if self.width % max(self.num_heads, 1):
            raise ValueError(f"width={self.width} must be a multiple of {self.num_heads=}")
        check_sizes(
            self.depth, self.width, self.num_heads, self.num_kv_heads, self.head_dim, self.dtype
        )
        if not self.window_pattern or set(self.window_pattern) - set("SL"):
            raise ValueError(
                f"window_pattern={self.window_pattern!r}: use letters S and L, such as 'SSSL'"
            )
        for name, used in (("value_gate", self.value_embeddings), ("smear", self.smear)):
            channels = getattr(self, f"{name}_channels")
            if used and not 1 <= channels <= self.width:
                raise ValueError(f"{name}_channels={channels} must be in 1 … width={self.width}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r}: use one of {ATTENTIONS}")

    @property
    def head_dim(self) -> int:
        """E, width of a head."""
        return self.width // self.num_heads

    def window(self, layer: int) -> int | None:
        """Tokens before its own that a layer attends to; None for all."""
        long = self.window_pattern[layer % len(self.window_pattern)] == "L"
        if long or layer == self.depth - 1:
            return None
        return self.short_window or max(self.sequence_len // 4, 1)

    def has_values(self, layer: int) -> bool:
        """Whether a layer has value embeddings."""
        return self.value_embeddings and layer % 2 == (self.depth - 1) % 2


def _uniform(width: int, scale: float = 1.0) -> nn.initializers.Initializer:
    """Uniform with standard deviation `scale / sqrt(width)`: no outliers."""
    bound = scale * (3 / width) ** 0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _gate_init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32):
    """Small and positive: gates start slightly above their middle."""
    return jax.random.uniform(key, shape, dtype, 0.0, 0.02)


class Attention(nn.Module):
    """Causal attention of one layer, with value embeddings where there are any."""

    settings: GPTSettings
    layer: int

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, values_BxTxGE: jax.Array | None) -> jax.Array:
        s, dtype = self.settings, x_BxTxD.dtype

        def heads(name: str, num: int) -> jax.Array:
            out = linear(num * s.head_dim, name, _uniform(s.width), dtype)(x_BxTxD)
            return out.reshape(*out.shape[:2], num, s.head_dim)

        q, k = heads("query", s.num_heads), heads("key", s.num_kv_heads)
        v = heads("value", s.num_kv_heads)
        if values_BxTxGE is not None:
            first = x_BxTxD[..., : s.value_gate_channels]
            gate = nn.sigmoid(linear(s.num_kv_heads, "value_gate", _gate_init, dtype)(first))
            v += s.value_gate_scale * gate[..., None] * values_BxTxGE.reshape(v.shape)
        q, k = (
            rotate(each, s.rope_theta, clockwise=True, rounded=s.rope_rounded) for each in (q, k)
        )
        if s.qk_norm:
            q, k = rms_norm(q) * s.qk_scale, rms_norm(k) * s.qk_scale
        out = causal_attention(q, k, v, s.window(self.layer), s.attention)
        return linear(s.width, "out", nn.initializers.zeros, dtype)(out)


class Block(nn.Module):
    """`x + attention(norm x)`, then `x + W_2 relu(W_1 norm x)²`; and its activations.

    Attributes:
      settings: of the model.
      layer: which block.
      recorder: makes the recorder of the activations.
    """

    settings: GPTSettings
    layer: int
    recorder: Callable[[], Recorder]

    @nn.compact
    def __call__(
        self, x_BxTxD: jax.Array, values_BxTxGE: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, x, record = self.settings, x_BxTxD, self.recorder()
        x = x + Attention(s, self.layer, name="attention")(rms_norm(x), values_BxTxGE)
        normed = record("norm", rms_norm(x))
        up = linear(4 * s.width, "up", _uniform(s.width, s.mlp_init), x.dtype)(normed)
        mlp = record("mlp", nn.relu(record("up", up)) ** 2)
        x = x + linear(s.width, "down", nn.initializers.zeros, x.dtype)(mlp)
        return x, record.activations


class GPT(nn.Module):
    """A GPT over int32 tokens `[B, T]`; logits `[B, T, C]` float32.

    Attention is causal, so padding on the right changes no earlier logits.

    Activations, `[B, T, D]`: `embedding` (after its norm), `previous` (the previous token's, zeros
    for the first), `block0` … (the stream after each block), `final` (the head's input); and
    of each block's MLP what its layers read and the first gives: `norm0` …; `up0` …, before the
    nonlinearity, and `mlp0` …, after it, `[B, T, 4 D]`.

    Attributes:
      num_classes: C.
      settings: sizes and switches.

    >>> model = GPT(100, GPTSettings(depth=2, width=32, num_heads=2, num_kv_heads=1))
    >>> tokens = jnp.zeros((1, 8), jnp.int32)
    >>> out, tree = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
    >>> logits, activations = out
    >>> logits.shape, activations["block1"].shape, tree["params"]["head"]["kernel"].shape
    ((1, 8, 100), (1, 8, 32), (32, 128))
    """

    num_classes: int
    settings: GPTSettings = GPTSettings()

    @property
    def layers(self) -> tuple[str, ...]:
        """What first layers of MLPs read and give (`TappedModel.layers`)."""
        return tuple(f"{name}{i}" for i in range(self.settings.depth) for name in ("norm", "up"))

    @nn.compact
    def __call__(
        self, x: jax.Array, replace: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, tokens_BxT, dtype = self.settings, x, jnp.dtype(self.settings.dtype)
        check_tokens(tokens_BxT, s.sequence_len)
        record = Recorder(replace)
        padded = -(-self.num_classes // s.vocab_multiple) * s.vocab_multiple

        def embed(features: int, name: str, init: nn.initializers.Initializer) -> jax.Array:
            table = nn.Embed(padded, features, name=name, embedding_init=init, dtype=dtype)
            return split_rows(table(tokens_BxT))

        x = rms_norm(embed(s.width, "embed", nn.initializers.normal(s.embedding_std)))
        x = record("embedding", x)
        previous = record("previous", previous_tokens(x))
        if s.smear:
            share = self.param("smear_lambda", nn.initializers.zeros, (1,)).astype(dtype)[0]
            gate = linear(1, "smear_gate", _gate_init, dtype)(x[..., : s.smear_channels])
            x = x + share * nn.sigmoid(gate) * previous
        x0 = middle = x
        keep_L = again_L = None
        if s.residual_scalars:
            keep_L = self.param("resid_lambdas", lambda _: jnp.linspace(*s.residual_init, s.depth))
            again_L = self.param("x0_lambdas", lambda _: jnp.linspace(*s.x0_init, s.depth))
        make_block = nn.remat(Block) if s.remat else Block
        for i in range(s.depth):
            if keep_L is not None and again_L is not None:
                x = keep_L[i].astype(dtype) * x + again_L[i].astype(dtype) * x0
            values = None
            if s.has_values(i):
                kv_width = s.num_kv_heads * s.head_dim
                values = embed(kv_width, f"value_embed{i}", _uniform(s.width))
            recorder = functools.partial(Recorder, replace, str(i))
            x, inside = make_block(s, i, recorder, name=f"block{i}")(x, values)
            record.activations |= inside
            x = record(f"block{i}", x)
            middle = x if i == s.depth // 2 else middle
        if s.backout:
            share = self.param("backout_lambda", nn.initializers.constant(0.2), (1,))
            x = x - share.astype(dtype)[0] * middle
        x = record("final", rms_norm(x))
        logits = split_rows(linear(padded, "head", nn.initializers.normal(0.001), dtype)(x))
        return _cap(logits[..., : self.num_classes], s.softcap), record.activations


def _cap(logits: jax.Array, softcap: float) -> jax.Array:
    """`softcap tanh(o / softcap)` in float32."""
    logits = logits.astype(jnp.float32)
    return softcap * jnp.tanh(logits / softcap) if softcap else logits
