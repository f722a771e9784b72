"""Causal attention: dense, in blocks of a window, or by the kernel of an accelerator.

Letters: B sequences, T tokens, H query heads, G key/value heads, E width of a head, r = H / G query
heads of one key head, n blocks of w tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from stride_jax.runtime.precision import as_now

ATTENTIONS = ("auto", "einsum", "xla", "cudnn")

_TILE = 128
"""Tokens and channels that the TPU's kernel takes at a time: it wants multiples of both."""

_BLOCK = 512
"""Largest block of queries or keys in the TPU's kernel."""


def causal_attention(
    q_BxTxHxE: jax.Array,
    k_BxTxGxE: jax.Array,
    v_BxTxGxE: jax.Array,
    window: int | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """`softmax(q kᵀ / sqrt(E)) v` over the tokens `t − window … t`; softmax in float32.

    Args:
      q_BxTxHxE: queries.
      k_BxTxGxE: keys; `H / G` neighbouring query heads share one.
      v_BxTxGxE: values.
      window: tokens before its own that a token attends to; None for all.
      implementation: `auto` is splash attention on a TPU, cuDNN's flash attention in bfloat16 on an
        NVIDIA GPU, and elsewhere, or for sizes that these do not take, `einsum`, in blocks where
        the window is at most half of the sequence. `einsum` holds all `[B, H, T, T]` scores, and
        has forward-mode derivatives, which kernels lack; `xla` and `cudnn` are those of
        `jax.nn.dot_product_attention`.

    Returns:
      `[B, T, H * E]`.
    """
    batch, length, heads, size = q_BxTxHxE.shape
    if implementation == "auto":
        out = _chosen(q_BxTxHxE, k_BxTxGxE, v_BxTxGxE, window)
    elif implementation == "einsum":
        out = _dense(q_BxTxHxE, k_BxTxGxE, v_BxTxGxE, window)
    else:
        out = _library(q_BxTxHxE, k_BxTxGxE, v_BxTxGxE, window, implementation)
    return out.reshape(batch, length, heads * size)


def _chosen(q: jax.Array, k: jax.Array, v: jax.Array, window: int | None) -> jax.Array:
    """The implementation of the platform that the program is lowered for."""
    length, size = q.shape[1], q.shape[3]
    blocks = window is not None and length >= 2 * max(window, 1)
    plain = functools.partial(_blocks if blocks else _dense, window=window)
    kernels = {}
    if length % _TILE == 0 and size % _TILE == 0:
        kernels["tpu"] = functools.partial(splash, window=window)
    # Traced on a machine without a GPU, JAX's call of cuDNN fails.
    if q.dtype == jnp.bfloat16 and size % 8 == 0 and jax.default_backend() == "gpu":
        kernels["cuda"] = functools.partial(_library, window=window, implementation="cudnn")
    if not kernels:
        return plain(q, k, v)
    return jax.lax.platform_dependent(q, k, v, default=plain, **kernels)


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, window: int | None) -> jax.Array:
    """All scores at once."""
    batch, length, heads, size = q.shape
    groups = k.shape[2]
    q = q.reshape(batch, length, groups, heads // groups, size)
    scores = jnp.einsum("btgre,bsge->bgrts", q, k, preferred_element_type=jnp.float32)
    token = jnp.arange(length)
    back_TxT = token[:, None] - token[None]
    attended_TxT = (back_TxT >= 0) & (back_TxT <= (length if window is None else window))
    scores = jnp.where(attended_TxT[None, None, None], scores * size**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bgrts,bsge->btgre", weights, v)
    return out.reshape(batch, length, heads, size)


def _blocks(q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> jax.Array:
    """Blocks of w = `window` queries, each with its own keys and the block's before."""
    batch, length, heads, size = q.shape
    groups, w = k.shape[2], max(window, 1)
    n = -(-length // w)
    # Keys after the last token are in no query's past.
    q, k, v = (jnp.pad(x, ((0, 0), (0, n * w - length), (0, 0), (0, 0))) for x in (q, k, v))
    q = q.reshape(batch, n, w, groups, heads // groups, size)

    def with_last(x: jax.Array) -> jax.Array:
        x = x.reshape(batch, n, w, groups, size)
        before = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0), (0, 0)))[:, :-1]
        return jnp.concatenate([before, x], axis=2)

    scores = jnp.einsum("bntgre,bnsge->bngrts", q, with_last(k), preferred_element_type=jnp.float32)
    token, key = jnp.arange(w), jnp.arange(2 * w) - w  # both count from the block's first token
    back_wxs = token[:, None] - key[None]
    real_nxs = jnp.arange(n)[:, None] * w + key[None] >= 0
    attended = ((back_wxs >= 0) & (back_wxs <= window))[None] & real_nxs[:, None]
    scores = jnp.where(attended[None, :, None, None], scores * size**-0.5, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bngrts,bnsge->bntgre", weights, with_last(v))
    return out.reshape(batch, n * w, heads, size)[:, :length]


def _library(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int | None, implementation: str
) -> jax.Array:
    return jax.nn.dot_product_attention(  # pyright: ignore[reportCallIssue]
        q, k, v, is_causal=True, implementation=implementation,  # pyright: ignore[reportArgumentType]
        local_window_size=None if window is None else (window, 0),
    )  # fmt: skip


def splash(
    q_BxTxHxE: jax.Array,
    k_BxTxGxE: jax.Array,
    v_BxTxGxE: jax.Array,
    window: int | None,
    interpret: bool = False,
) -> jax.Array:
    """JAX's kernel for TPUs, which skips blocks outside the window, `[B, T, H, E]`.

    The compiler can't divide a kernel among devices: under `jax.sharding.use_abstract_mesh`, as the
    library's programs are traced, each device takes its share of the sequences.

    Args:
      q_BxTxHxE, k_BxTxGxE, v_BxTxGxE: as in `causal_attention`, T a multiple of 128.
      window: as there.
      interpret: whether the kernel is emulated, for tests on a CPU.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # The kernel's products of bfloat16 know no other precision.
    precision = "default" if q_BxTxHxE.dtype == jnp.bfloat16 else as_now()
    attend = lambda q, k, v: _splash(q, k, v, window, precision, interpret)  # noqa: E731
    axes = tuple(
        name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    )  # fmt: skip
    if not axes:
        return attend(q_BxTxHxE, k_BxTxGxE, v_BxTxGxE)
    divides = len(q_BxTxHxE) % functools.reduce(lambda a, b: a * mesh.shape[b], axes, 1) == 0
    rows = P(axes) if divides else P()
    return jax.shard_map(
        attend, in_specs=(rows,) * 3, out_specs=rows, axis_names=set(axes), check_vma=False
    )(q_BxTxHxE, k_BxTxGxE, v_BxTxGxE)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _splash(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int | None, precision: str, interpret: bool
) -> jax.Array:
    with jax.default_matmul_precision(precision):
        return _kernel(q, k, v, window, interpret)


def _splash_forward(q: Any, k: Any, v: Any, window: Any, precision: str, interpret: bool) -> Any:
    with jax.default_matmul_precision(precision):
        return jax.vjp(functools.partial(_kernel, window=window, interpret=interpret), q, k, v)


def _splash_backward(window: Any, precision: str, interpret: bool, pull_back: Any, g: Any) -> Any:
    # Traced only now, inside of whatever precision its caller has.
    del window, interpret
    with jax.default_matmul_precision(precision):
        return pull_back(g)


_splash.defvjp(_splash_forward, _splash_backward)


def _kernel(
    q: jax.Array, k: jax.Array, v: jax.Array, window: int | None, interpret: bool
) -> jax.Array:
    # Its import takes a second, and only models of such sizes need it.
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    length, heads, size = q.shape[1:]
    side = next(n for n in (_BLOCK, _BLOCK // 2, _TILE) if length % n == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: Any = {f"block_{name}": side for name in names}
    shape = (length, length)
    mask = kernels.CausalMask(shape)
    if window is not None:
        mask = kernels.LocalMask(shape, (window, 0), offset=0)
    attend: Any = kernels.make_splash_mha_single_device(
        kernels.MultiHeadMask([mask] * heads), block_sizes=kernels.BlockSizes(**sizes),
        interpret=interpret,
    )  # fmt: skip
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.vmap(attend)(q * size**-0.5, k, v), 1, 2)
