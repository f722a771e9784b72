"""Digests of content: what was written is what is read, or an error says that it is not.

An array that a process holds as a whole has the XXH3 hash of its bytes. One that lies in parts on
several processes has a checksum which depends on no layout, so that each sums its own part: every
word is mixed with its place by a bijection before all are added up. One flipped bit always changes
it. An array written by four may be checked by one, and the other way round.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash

from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import fingerprint

_PLACE, _MIX = 0x9E3779B1, 0x85EBCA6B
_CHUNK = 1 << 16  # words that stay in a core's own cache
_XXH3 = "xxh3:"


def hashed(leaf: Any) -> str:
    """Shape, dtype and hash of an array, gathered where other processes hold parts of it.

    >>> hashed(np.zeros(2, np.float32)) == hashed(jnp.zeros(2))
    True
    """
    leaf, dtype, size = _as_read(leaf)
    if not leaf.size:
        return size
    whole = meshes.fetch(leaf).astype(dtype, copy=False)
    flat = np.ascontiguousarray(whole).reshape(-1).view(np.uint8)
    return f"{size}{_XXH3}{xxhash.xxh3_64_hexdigest(flat.data)}"


def described(leaf: Any) -> str:
    """Shape, dtype and checksum of an array, as models' programs read it.

    >>> described(np.zeros(2, np.float32)) == described(jnp.zeros(2))
    True
    """
    leaf, dtype, size = _as_read(leaf)
    if not leaf.size:
        return size
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        # Replicated arrays are whole on every process; others are summed where they lie.
        if not leaf.is_fully_replicated:
            return f"{size}{int(meshes.fetch(_spread_checksum(leaf)))}"
        leaf = leaf.addressable_data(0)
    return f"{size}{_checksum(np.asarray(leaf).astype(dtype, copy=False))}"


def _as_read(leaf: Any) -> tuple[Any, Any, str]:
    """A leaf as an array, its dtype in models' programs, and shape and dtype in words."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not hasattr(leaf, "dtype"):
        leaf = jnp.asarray(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    return leaf, dtype, f"{tuple(leaf.shape)}{dtype}"


def by_path(tree: Any) -> dict[str, str]:
    """Digests of a pytree's leaves, by their paths: hashes, checksums of those in parts."""

    def one(leaf: Any) -> str:
        parts = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return described(leaf) if parts and not leaf.is_fully_replicated else hashed(leaf)

    return {path: one(leaf) for path, leaf in _leaves(tree).items()}


def differing(tree: Any, written: Mapping[str, str]) -> list[str]:
    """Paths of leaves that are not what `by_path` was told of, wherever they lie now; sorted.

    Args:
      tree: what was read.
      written: what `by_path` said of what was written.

    >>> differing({"a": np.ones(2), "b": np.ones(3)}, by_path({"a": np.ones(2), "c": 1}))
    ["['b']", "['c']"]
    """
    leaves = _leaves(tree)
    other = [path for path in written if path not in leaves]
    for path, leaf in leaves.items():  # in one order on all processes, which work together
        own = hashed if _XXH3 in written.get(path, "") else described
        if path not in written or own(leaf) != written[path]:
            other.append(path)
    return sorted(other)


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def parameters_fingerprint(params: Any) -> str:
    """Hash of a model's parameters, 16 hexadecimal digits: names, shapes, dtypes and bits.

    >>> one = parameters_fingerprint({"w": np.ones(3, np.float32)})
    >>> one == parameters_fingerprint({"w": jnp.ones(3, jnp.float32)})
    True
    >>> one == parameters_fingerprint({"w": np.ones(3, np.float32) * 2})
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in _leaves(params).items():
        digest.update(path.encode())
        digest.update(described(leaf).encode())
    return digest.hexdigest()


def sealed(value: Any) -> dict[str, Any]:
    """JSON values in an envelope with their digest.

    >>> opened(sealed({"a": 1}))
    {'a': 1}
    """
    return {"digest": fingerprint(value), "content": value}


def opened(envelope: Any) -> Any:
    """What `sealed` closed.

    Raises:
      ValueError: it is not what was put in.

    >>> opened({"digest": fingerprint(1), "content": 2})
    Traceback (most recent call last):
    ValueError: its content is not what was written: the digest differs
    """
    whole = isinstance(envelope, dict) and envelope.keys() == {"digest", "content"}
    if not whole or fingerprint(envelope["content"]) != envelope["digest"]:
        raise ValueError("its content is not what was written: the digest differs")
    return envelope["content"]


def is_sealed(value: Any) -> bool:
    """Whether JSON values are an envelope, whole or damaged; older files hold none.

    >>> is_sealed({"digest": "0", "conteot": 2}), is_sealed({"position": 3})
    (True, False)
    """
    return isinstance(value, dict) and bool(value.keys() & {"digest", "content"})


def _checksum(array: np.ndarray) -> int:
    """A sum of all bits by place, modulo 2^32."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat = flat.astype(np.uint8) if flat.dtype == bool else flat.view(f"uint{8 * flat.itemsize}")
    most, total = min(_CHUNK, flat.size), 0
    steps = np.arange(most, dtype=np.uint32) * np.uint32(_PLACE)
    mixed, buffer = np.empty_like(steps), np.empty_like(steps)
    for first in range(0, flat.size, _CHUNK):
        words = flat[first : first + _CHUNK]
        if words.itemsize == 8:
            high = (words >> np.uint64(32)).astype(np.uint32)
            words = words.astype(np.uint32) * np.uint32(31) + high
        # In place: new memory would take longer than the sum.
        own, shifted = mixed[: words.size], buffer[: words.size]
        np.add(steps[: words.size], np.uint32(first * _PLACE % 2**32), out=own)
        np.bitwise_xor(own, words.astype(np.uint32, copy=False), out=own)
        np.multiply(own, np.uint32(_MIX), out=own)
        np.right_shift(own, np.uint32(15), out=shifted)
        np.bitwise_xor(own, shifted, out=own)
        total += int(own.sum(dtype=np.uint32))
    return total % 2**32


@jax.jit
def _spread_checksum(leaf: jax.Array) -> jax.Array:
    """`_checksum` of an array that no process holds as a whole."""
    if leaf.dtype == bool:
        leaf = leaf.astype(jnp.uint8)
    if not jnp.issubdtype(leaf.dtype, jnp.unsignedinteger):
        leaf = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
    words = leaf.reshape(-1).astype(jnp.uint32)
    if leaf.dtype.itemsize == 8:
        words = words * jnp.uint32(31) + (leaf.reshape(-1) >> 32).astype(jnp.uint32)
    place = jax.lax.iota(jnp.uint32, words.shape[0])
    mixed = (words ^ (place * jnp.uint32(_PLACE))) * jnp.uint32(_MIX)
    return (mixed ^ (mixed >> 15)).sum(dtype=jnp.uint32)
