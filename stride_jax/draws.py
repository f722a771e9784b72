"""Random signs that an example's own content draws: the same in any batch, on any device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

_BITS = 32


def signs_of(inputs: Any, labels_NxT: jax.Array, count: int) -> jax.Array:
    """Signs −1 and 1 for each of `count` outputs of every token, `[N, T, count]` float32.

    A token after an example's last changes none of the others' signs if it is 0. Traceable.

    Args:
      inputs: `[N, …]`, or a tree of such.
      labels_NxT: classes, or numbers `[N, T, M]`.
      count: outputs of a token.

    >>> signs = signs_of(jnp.arange(6).reshape(2, 3), jnp.zeros((2, 3), jnp.int32), 40)
    >>> signs.shape, sorted(set(signs.ravel().tolist()))
    ((2, 3, 40), [-1.0, 1.0])
    >>> wide = signs_of(jnp.array([[3, 4, 5, 0]]), jnp.zeros((1, 4), jnp.int32), 40)
    >>> bool((wide[0, :3] == signs[1]).all())
    True
    """
    tokens, words = labels_NxT.shape[1], -(-count // _BITS)
    keys_N = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(
        sum(_hash(leaf) * jnp.uint32(place + 1)
            for place, leaf in enumerate(jax.tree.leaves((inputs, labels_NxT))))
    )  # fmt: skip
    bits_NxTxW = jax.vmap(lambda key: jax.random.bits(key, (tokens, words)))(keys_N)
    place = jnp.arange(_BITS, dtype=jnp.uint32).reshape(1, 1, 1, -1)
    ones = (bits_NxTxW[..., None] >> place) & jnp.uint32(1)
    return 2.0 * ones.reshape(*ones.shape[:2], -1)[..., :count].astype(jnp.float32) - 1.0


def _hash(leaf: jax.Array) -> jax.Array:
    """A number of each row, `[N]` uint32; zeros at its end do not change it."""
    rows = leaf.reshape(leaf.shape[0], -1)
    if jnp.issubdtype(rows.dtype, jnp.floating):
        rows = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
    place = jnp.arange(rows.shape[1], dtype=jnp.uint32)
    # An odd factor for every place; far apart, so that neighbours do not cancel.
    factors = (place * jnp.uint32(2654435761) ^ (place >> 7)) * jnp.uint32(2246822519)
    factors = factors * jnp.uint32(2) + jnp.uint32(1)
    return (rows.astype(jnp.uint32) * factors[None]).sum(axis=1, dtype=jnp.uint32)
