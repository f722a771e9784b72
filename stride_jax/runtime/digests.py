"""Digests of content: what was written is what is read, or an error says that it is not.

A checksum of an array does not depend on how it is laid out over devices and processes, so an array
written by one may be checked by four. One flipped bit always changes it: every word is mixed by a
bijection before all of them are added up.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import fingerprint

_PLACE, _MIX = 0x9E3779B1, 0x85EBCA6B
_CHUNK = 1 << 20


def described(leaf: Any) -> str:
    """Shape, dtype and checksum of an array, as models' programs read it.

    >>> described(np.zeros(2, np.float32)) == described(jnp.zeros(2))
    True
    """
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if not hasattr(leaf, "dtype"):
        leaf = jnp.asarray(leaf)
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
    size = f"{tuple(leaf.shape)}{dtype}"
    if not leaf.size:
        return size
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        # Replicated arrays are whole on every process; others are summed where they lie.
        if not leaf.is_fully_replicated:
            return f"{size}{int(meshes.fetch(_spread_checksum(leaf)))}"
        leaf = leaf.addressable_data(0)
    return f"{size}{_checksum(np.asarray(leaf).astype(dtype, copy=False))}"


def by_path(tree: Any) -> dict[str, str]:
    """`described` of every leaf of a pytree, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): described(leaf) for path, leaf in leaves}


def parameters_fingerprint(params: Any) -> str:
    """Hash of a model's parameters, 16 hexadecimal digits: names, shapes, dtypes and bits.

    >>> one = parameters_fingerprint({"w": np.ones(3, np.float32)})
    >>> one == parameters_fingerprint({"w": jnp.ones(3, jnp.float32)})
    True
    >>> one == parameters_fingerprint({"w": np.ones(3, np.float32) * 2})
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)}".encode())
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
    total = 0
    for first in range(0, flat.size, _CHUNK):
        part = flat[first : first + _CHUNK]
        words = part.astype(np.uint32)
        if part.itemsize == 8:
            words = words * np.uint32(31) + (part >> np.uint64(32)).astype(np.uint32)
        place = np.arange(first, first + part.size, dtype=np.uint64).astype(np.uint32)
        mixed = (words ^ (place * np.uint32(_PLACE))) * np.uint32(_MIX)
        total += int((mixed ^ (mixed >> np.uint32(15))).sum(dtype=np.uint64))
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
