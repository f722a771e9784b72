"""Named arrays in an uncompressed zip file, with a digest of their names, types, shapes and bytes.

Zip's own checksums cover the bytes of each member, but not the name that they go by, and zlib takes
several times as long for them as the reading does. XXH3 runs at the speed of the memory, on parts
that are still in a core's cache; a thread beside the reading made it slower. It is kept as the zip
file's comment, so every reader of `.npz` files reads these as any other.
"""

import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, BinaryIO

import numpy as np
import xxhash

from stride_jax.runtime.memory import limits

_KIND = "xxh3:"
_LOCAL_HEADER = 30
_CHUNK = 1 << 20  # bytes


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash of arrays in their order, as `write` stores it.

    Args:
      arrays: by name.

    Returns:
      `xxh3:` and 16 hexadecimal digits.

    >>> one = digest({"a": np.zeros(2), "b": np.ones(2)})
    >>> one == digest({"a": np.zeros(2), "b": np.ones(2)})
    True
    >>> one == digest({"b": np.zeros(2), "a": np.ones(2)})
    False
    """
    whole = xxhash.xxh3_64()
    for name, array in arrays.items():
        transposed = array.flags.f_contiguous and not array.flags.c_contiguous
        whole.update(_header(name, array.dtype, array.shape, transposed))
        whole.update(_flat_bytes(array.T if transposed else array).data)
    return _KIND + whole.hexdigest()


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> str:
    """Write named arrays; returns their digest.

    Args:
      path: path of the file.
      arrays: by name, none of Python objects.
    """
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    own = digest(arrays)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = own.encode()
    return own


def stored_digest(path: str | os.PathLike[str]) -> str | None:
    """The digest that a file names, of which nothing is checked; None in older files."""
    with zipfile.ZipFile(path) as file:
        return _named(file)


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read what `write` wrote; files without a digest are checked by zip's own checksums.

    Raises:
      Exception: of many kinds, for a file that is torn, damaged, or unpacks to more than it holds.
    """
    with open(path, "rb") as raw, zipfile.ZipFile(raw) as file:
        size = os.fstat(raw.fileno()).st_size
        _refuse_packed(file, size)
        if (written := _named(file)) is None:
            for member in file.infolist():
                with file.open(member) as own:
                    _refuse_claim(own, member)  # numpy takes memory for what headers claim
            with np.load(path, allow_pickle=False) as older:
                return {name: _sized(older[name], size) for name in older.files}
        whole, arrays = xxhash.xxh3_64(), {}
        for member in file.infolist():
            name = member.filename.removesuffix(".npy")
            arrays[name] = _sized(_read_member(raw, member, name, whole), size)
        if (own := _KIND + whole.hexdigest()) != written:
            raise ValueError(
                f"it is not what was written: the digest of its content is {own}, not {written}"
            )
        return arrays


def _read_member(
    raw: BinaryIO, member: zipfile.ZipInfo, name: str, whole: xxhash.xxh3_64
) -> np.ndarray:
    """One array; its header and bytes go into the hash, too."""
    raw.seek(member.header_offset)
    lengths = struct.unpack("<2H", raw.read(_LOCAL_HEADER)[-4:])  # of the name and of the extras
    raw.seek(member.header_offset + _LOCAL_HEADER + sum(lengths))
    version = np.lib.format.read_magic(raw)
    if version == (1, 0):
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(raw)
    else:
        shape, transposed, dtype = np.lib.format.read_array_header_2_0(raw)
    if dtype.hasobject:
        raise ValueError(f"{name!r} holds Python objects, which need allow_pickle: none are read")
    if (needed := math.prod(shape) * dtype.itemsize) > member.file_size:
        raise ValueError(f"{name!r} claims {needed} bytes, and holds {member.file_size}")
    array = np.empty(shape[::-1] if transposed else shape, dtype)
    whole.update(_header(name, dtype, shape, transposed))
    data = _flat_bytes(array)
    for first in range(0, data.size, _CHUNK):
        part = data[first : first + _CHUNK]
        if raw.readinto(part) != part.size:  # pyright: ignore[reportAttributeAccessIssue]
            raise ValueError(f"it ends within {name!r}")
        whole.update(part.data)
    return array.T if transposed else array


def _refuse_claim(own: IO[bytes], member: zipfile.ZipInfo) -> None:
    """A header that says there is more than its member holds, without a digest to tell."""
    read = np.lib.format.read_array_header_2_0
    if np.lib.format.read_magic(own) == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, _, dtype = read(own)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename!r} claims more than the {member.file_size} bytes there")


def _sized(array: np.ndarray, size: int) -> np.ndarray:
    """An array, unless it has more entries than its file has bytes: entries of no size."""
    if array.size > size:
        raise ValueError(f"it holds {array.size} entries of {array.itemsize} bytes")
    return array


def _header(name: str, dtype: np.dtype, shape: tuple[int, ...], transposed: bool) -> bytes:
    """What says how bytes are read; a type that NumPy's files lack counts as what they hold."""
    stored = np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype))
    return f"{name}\0{stored.str}{tuple(map(int, shape))}{transposed}\0".encode()


def _flat_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array in C order, as a view of it where they lie so."""
    if not array.nbytes:
        return np.empty(0, np.uint8)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _named(file: zipfile.ZipFile) -> str | None:
    comment = file.comment.decode("ascii", "replace")
    return comment if comment.startswith(_KIND) else None


def _refuse_packed(file: zipfile.ZipFile, size: int) -> None:
    """A small file of another's could unpack to more than the memory; ours are not compressed."""
    packed = [own for own in file.infolist() if own.compress_type != zipfile.ZIP_STORED]
    whole = sum(own.file_size for own in file.infolist())
    if packed or whole > size:
        raise ValueError(
            f"it would unpack to {whole} bytes from {size}; arrays are stored uncompressed"
        )
    room = min((limit.left for limit in limits()), default=whole)
    if whole > room:
        raise MemoryError(
            f"it holds {whole} bytes of arrays, and this process may take {max(room, 0)} more"
        )
