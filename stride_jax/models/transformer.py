"""Parts of our decoder-only transformers: norm, rotary positions, dense layers.

Letters: B sequences, T tokens, D width, H heads, E width of a head.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike


def rms_norm(x: jax.Array, eps: float = 2.0**-23) -> jax.Array:
    """`x / sqrt(mean(x²) + eps)` over the last axis, in float32, without parameters.

    Args:
      x: `[..., D]`.
      eps: number added to the mean square; float32's machine epsilon by default, as in torch.

    >>> [f"{v:.1f}" for v in rms_norm(jnp.array([1.0, 7.0]))]  # sqrt((1 + 49) / 2) = 5
    ['0.2', '1.4']
    """
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).mean(axis=-1, keepdims=True) + eps)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched for long contexts, as in Llama 3.1 (`rope_type` llama3).

    A frequency that turns at least `high` times within the original context stays, one that turns
    at most `low` times is divided by `factor`, and those between lie on a straight line.

    Attributes:
      factor: divisor of the slowest frequencies.
      low, high: turns within `context`, `low < high`.
      context: tokens of the context before it was stretched.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 < self.low < self.high or self.context < 1:
            raise ValueError(f"{self}: give factor >= 1, 0 < low < high and context >= 1")

    def __call__(self, speed_e: jax.Array) -> jax.Array:
        """Scaled frequencies, radians per token.

        >>> [f"{v:.3f}" for v in RopeScaling(8.0, 1.0, 4.0, 100)(jnp.array([1.0, 0.01]))]
        ['1.000', '0.001']
        """
        turns_e = self.context * speed_e / (2 * math.pi)
        kept_e = jnp.clip((turns_e - self.low) / (self.high - self.low), 0.0, 1.0)
        return speed_e * (kept_e + (1 - kept_e) / self.factor)


def rotate(
    x_BxTxHxE: jax.Array,
    theta: float,
    clockwise: bool = False,
    scaling: RopeScaling | None = None,
    rounded: bool = False,
) -> jax.Array:
    """Rotary positions: turn the pair `(x_e, x_{e+E/2})` of token t by the angle `t theta^(−2e/E)`.

    A query's product with a key then depends on their distance alone (Su et al., RoFormer, 2021).
    Both directions are equally good, but weights trained with one do not fit the other:
    Llama and Qwen2 turn anticlockwise, nanochat clockwise.

    Args:
      x_BxTxHxE: queries or keys, E even.
      theta: base of the frequencies.
      clockwise: direction of the turn.
      scaling: stretch of the frequencies; None for none.
      rounded: whether sines and cosines are rounded to bfloat16 first.

    >>> x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2).repeat(2, axis=1)
    >>> [f"{v:.2f}" for v in rotate(x, 1e4)[0, 1, 0]]  # cos 1, sin 1
    ['0.54', '0.84']
    >>> [f"{v:.2f}" for v in rotate(x, 1e4, clockwise=True)[0, 1, 0]]
    ['0.54', '-0.84']
    """
    length, half = x_BxTxHxE.shape[1], x_BxTxHxE.shape[3] // 2
    speed = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    speed = speed if scaling is None else scaling(speed)
    angle = (jnp.arange(length, dtype=jnp.float32)[:, None] * speed[None])[None, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if rounded:  # `reduce_precision`: XLA may drop a conversion there and back
        cos, sin = (
            jax.lax.reduce_precision(v, exponent_bits=8, mantissa_bits=7) for v in (cos, sin)
        )
    cos, sin = cos.astype(x_BxTxHxE.dtype), sin.astype(x_BxTxHxE.dtype)
    sin = -sin if clockwise else sin
    left, right = jnp.split(x_BxTxHxE, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)


def previous_tokens(x_BxTxD: jax.Array) -> jax.Array:
    """Each token's predecessor, `x_{t−1}`; zeros for the first."""
    return jnp.pad(x_BxTxD, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def _by_rows(x: jax.Array, kernel: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    """The dense layer's product over rows `[B T, D]`: XLA's CPU gradients are then twice as fast.

    (With B and T apart, the kernel's gradient first copies the output's gradient transposed.)
    """
    out = jnp.dot(x.reshape(-1, x.shape[-1]), kernel, precision=kwargs.get("precision"))
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def linear(
    features: int,
    name: str,
    init: nn.initializers.Initializer,
    dtype: DTypeLike,
    bias: bool = False,
) -> nn.Dense:
    """A dense layer with float32 parameters that computes in `dtype`."""
    return nn.Dense(
        features, use_bias=bias, name=name, kernel_init=init, dtype=dtype, dot_general=_by_rows
    )


def check_tokens(tokens_BxT: jax.Array, sequence_len: int) -> None:
    """Raise unless these are integer tokens `[B, T]` of at most `sequence_len`."""
    shape = tokens_BxT.shape
    if len(shape) != 2 or not jnp.issubdtype(tokens_BxT.dtype, jnp.integer):
        raise ValueError(
            f"a language model reads integer tokens [B, T], not {tokens_BxT.dtype}{list(shape)}"
        )
    if shape[1] > sequence_len:
        raise ValueError(
            f"{shape[1]} tokens, but the model's context is sequence_len={sequence_len}: keep the "
            "last tokens, or split the text"
        )


_DEEPEST = 10_000  # a model is laid out layer by layer before any memory is asked for


def check_sizes(
    depth: int, width: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: str
) -> None:
    """Raise unless the sizes of a transformer fit together; the message has the remedy."""
    if not 1 <= depth <= _DEEPEST or width < 1:
        raise ValueError(f"depth={depth}, width={width}: both at least 1, depth to {_DEEPEST}")
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads={num_heads} must be a positive multiple of num_kv_heads={num_kv_heads}"
        )
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"a head's width is {head_dim}: rotary positions need an even one")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype={dtype!r}: use 'float32' or 'bfloat16'")
