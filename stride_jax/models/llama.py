"""Decoders in the form of Llama, Mistral, Qwen2 and Qwen3.

Weighted RMSNorm, rotary positions, SwiGLU, grouped-query attention; optionally biases of q, k and v
(Touvron et al., LLaMA, 2023; Yang et al., Qwen2, 2024), norms of q and k (Yang et al., Qwen3, 2025)
and a sliding window (Jiang et al., Mistral 7B, 2023). Letters as in `transformer`.
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
    RopeScaling,
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
class LlamaSettings:
    """Sizes and switches of a Llama, Mistral, Qwen2 or Qwen3.

    Attributes:
      depth: L, layers.
      width: D, width of the residual stream.
      hidden: hidden units of the MLP.
      num_heads: H, query heads.
      num_kv_heads: G, key and value heads; a divisor of H.
      head_dim: E, width of a head; 0 for D / H.
      sequence_len: longest sequence.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of RMSNorm.
      qkv_bias: whether q, k and v have biases, as in Qwen2.
      tied_head: whether the head is the token embedding.
      init_std: standard deviation of all initial weights.
      attention: `auto`, `einsum`, `xla` or `cudnn` (`attention.causal_attention`).
      remat: whether a block is computed again in the backward pass, to need less memory.
      dtype: dtype of the computation, `float32` or `bfloat16`; parameters are float32.
      qk_norm: whether the heads of q and k have weighted RMSNorms, as in Qwen3.
      window: tokens before its own that a token attends to; 0 for all.
      rope_scaling: stretch of the rotary frequencies, as in Llama 3.1; None for none.
    """

    depth: int = 4
    width: int = 128
    hidden: int = 384
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 0
    sequence_len: int = 64
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    tied_head: bool = False
    init_std: float = 0.02
    attention: str = "auto"
    remat: bool = False
    dtype: str = "float32"
    qk_norm: bool = added(False)
    window: int = added(0)
    rope_scaling: RopeScaling | None = added(None)

    def __post_init__(self) -> None:
        if not self.head_dim and self.width % max(self.num_heads, 1):
            raise ValueError(
                f"width={self.width} is no multiple of {self.num_heads=}: set head_dim too"
            )
        check_sizes(
            self.depth, self.width, self.num_heads, self.num_kv_heads, self.head_width, self.dtype
        )
        if self.hidden < 1:
            raise ValueError(f"hidden={self.hidden}: at least 1")
        if self.window < 0:
            raise ValueError(f"window={self.window}: a number of tokens, 0 for all")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r}: use one of {ATTENTIONS}")

    @property
    def head_width(self) -> int:
        """E, resolved where `head_dim` is 0."""
        return self.head_dim or self.width // self.num_heads


class Norm(nn.Module):
    """RMSNorm times a learned weight of each channel."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return rms_norm(x, self.eps) * jnp.expand_dims(scale_D.astype(x.dtype), range(x.ndim - 1))


class Block(nn.Module):
    """`x + attention(norm x)`, then `x + W_down(silu(W_gate norm x) W_up norm x)`; and its
    activations.

    Attributes:
      settings: of the model.
      recorder: makes the recorder of the activations.
    """

    settings: LlamaSettings
    recorder: Callable[[], Recorder]

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, x, dtype, record = self.settings, x_BxTxD, x_BxTxD.dtype, self.recorder()
        init = nn.initializers.normal(s.init_std)
        normed = Norm(s.norm_eps, name="attention_norm")(x)

        def heads(name: str, num: int) -> jax.Array:
            out = linear(num * s.head_width, name, init, dtype, s.qkv_bias)(normed)
            return out.reshape(*out.shape[:2], num, s.head_width)

        q, k = heads("query", s.num_heads), heads("key", s.num_kv_heads)
        if s.qk_norm:
            q, k = (Norm(s.norm_eps, name=f"{n}_norm")(v) for n, v in (("query", q), ("key", k)))
        q, k = (rotate(v, s.rope_theta, scaling=s.rope_scaling) for v in (q, k))
        out = causal_attention(q, k, heads("value", s.num_kv_heads), s.window or None, s.attention)
        x = x + linear(s.width, "out", init, dtype)(out)
        normed = record("norm", Norm(s.norm_eps, name="mlp_norm")(x))
        gate = record("gate", linear(s.hidden, "gate", init, dtype)(normed))
        up = record("up", linear(s.hidden, "up", init, dtype)(normed))
        mlp = record("mlp", nn.silu(gate) * up)
        return x + linear(s.width, "down", init, dtype)(mlp), record.activations


class Llama(nn.Module):
    """A decoder of these forms over int32 tokens `[B, T]`; logits `[B, T, C]` float32.

    Attention is causal, so padding on the right changes no earlier logits.

    Activations, `[B, T, D]`: `embedding`, `previous` (the previous token's, zeros for the first),
    `block0` … (the stream after each block), `final` (the final norm's output, the head's input);
    and of each block's MLP what its first layers read, `norm0` …, what they give, `gate0` …
    (before the nonlinearity) and `up0` …, and what the last reads, `mlp0` …, `[B, T, hidden]`.

    Attributes:
      num_classes: C.
      settings: sizes and switches.

    >>> model = Llama(50, LlamaSettings(depth=1, width=16, hidden=32, num_heads=2, num_kv_heads=1))
    >>> tokens = jnp.zeros((1, 8), jnp.int32)
    >>> out, tree = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
    >>> logits, activations = out
    >>> logits.shape, tree["params"]["block0"]["key"]["kernel"].shape
    ((1, 8, 50), (16, 8))
    >>> sorted(activations)
    ['block0', 'embedding', 'final', 'gate0', 'mlp0', 'norm0', 'previous', 'up0']
    """

    num_classes: int
    settings: LlamaSettings = LlamaSettings()

    @property
    def layers(self) -> tuple[str, ...]:
        """What first layers of MLPs read and give (`TappedModel.layers`)."""
        names = ("norm", "gate", "up")
        return tuple(f"{name}{i}" for i in range(self.settings.depth) for name in names)

    @nn.compact
    def __call__(
        self, x: jax.Array, replace: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        s, tokens_BxT, dtype = self.settings, x, jnp.dtype(self.settings.dtype)
        check_tokens(tokens_BxT, s.sequence_len)
        record = Recorder(replace)
        init = nn.initializers.normal(s.init_std)
        embed = nn.Embed(self.num_classes, s.width, name="embed", embedding_init=init, dtype=dtype)
        x = record("embedding", split_rows(embed(tokens_BxT)))
        record("previous", previous_tokens(x))
        make_block = nn.remat(Block) if s.remat else Block
        for i in range(s.depth):
            recorder = functools.partial(Recorder, replace, str(i))
            x, inside = make_block(s, recorder, name=f"block{i}")(x)
            record.activations |= inside
            x = record(f"block{i}", x)
        x = record("final", Norm(s.norm_eps, name="final_norm")(x))
        logits = (
            embed.attend(x) if s.tied_head else linear(self.num_classes, "head", init, dtype)(x)
        )
        return split_rows(logits).astype(jnp.float32), record.activations
