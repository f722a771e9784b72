"""Names of examples: distinct strings, by default hashes of what the examples contain."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from stride_jax.runtime.rows import Rows, chunks

# Bytes of an array that are read together.
_CHUNK = 2**22
# Integers up to here are float64 numbers.
_EXACT = 2**53


def as_ids(name: str, ids: Any) -> Any:
    """Names as an array of distinct strings; those that are read as they are asked for stay so.

    Raises:
      ValueError: names that repeat, or an array of another shape than `[N]`.

    >>> as_ids("ids", [3, 1]).tolist()
    ['3', '1']
    """
    if isinstance(ids, Rows):
        return ids
    array = np.asarray(ids)
    if array.dtype.kind == "O":
        array = np.array([str(i) for i in array.reshape(-1)]).reshape(array.shape)
    array = array.astype(str, copy=False)
    if array.ndim != 1:
        raise ValueError(f"{name} of shape {array.shape}: give one name per example, [N]")
    counts = Counter(array.tolist())
    if extra := len(array) - len(counts):
        first = next(i for i, count in counts.items() if count > 1)
        raise ValueError(
            f"{extra} of {len(array)} {name} repeat another, first {first!r}: give each example a "
            "name of its own, or none, for names by content"
        )
    return array


def as_keys(keys: Any, ids: np.ndarray) -> np.ndarray | None:
    """Keys as an array of strings; None where each is of one example alone.

    Raises:
      ValueError: keys of another length than N.

    >>> as_keys([7, 7, 8], np.array(["a", "b", "c"])).tolist()
    ['7', '7', '8']
    """
    array = np.array([str(key) for key in np.asarray(keys).reshape(-1).tolist()])
    if array.shape != ids.shape or np.ndim(keys) != 1:
        raise ValueError(
            f"keys of shape {np.shape(keys)} for {len(ids)} examples: give one key for each"
        )
    return None if len(set(array.tolist())) == len(array) else array


def compact(names: np.ndarray | Rows) -> np.ndarray:
    """Names as they take least memory: those that are read as they are asked for, in bytes.

    >>> compact(np.array(["a", "b"])).dtype
    dtype('<U1')
    """
    if not isinstance(names, Rows):
        return names
    return np.concatenate([np.char.encode(part) for _, part in chunks(names)])


def grouped(keys: np.ndarray | Rows) -> tuple[np.ndarray, np.ndarray]:
    """The first row of every key, in the order of the keys, and the number of each row's key.

    >>> [v.tolist() for v in grouped(np.array(["b", "a", "b"]))]
    [[1, 0], [1, 0, 1]]
    """
    _, first_G, group_N = np.unique(compact(keys), return_index=True, return_inverse=True)
    return first_G, group_N


def rows_of(names: np.ndarray | Rows, wanted: Sequence[str]) -> dict[str, int]:
    """The rows of some names among all of them; names that are not there are left out.

    >>> rows_of(np.array(["a", "b", "c"]), ["c", "x"])
    {'c': 2}
    """
    found: dict[str, int] = {}
    if not len(wanted):
        return found
    asked = np.array(sorted(set(wanted)), str)
    for first, part in chunks(names):
        rows = np.flatnonzero(np.isin(part, asked))
        found |= {str(part[row]): first + int(row) for row in rows}
    return found


def same_ids(a: np.ndarray | Rows, b: np.ndarray | Rows) -> bool:
    """Whether names are the same, in the same order."""
    if a is b:
        return True
    if len(a) != len(b):
        return False
    return all(np.array_equal(part, b[at : at + len(part)]) for at, part in chunks(a))


def content_ids(*columns: Sequence | np.ndarray) -> np.ndarray:
    """Name every example by a hash of its content.

    Values and shapes count, not dtypes or memory layouts: integers and floats of equal value give
    one id. The id does not depend on the example's place, so an index survives reordering and
    appending. The r-th copy of a content (r > 0) gets the hash of (content, r): copies are
    interchangeable, so the set of ids is the same in any order.

    Args:
      *columns: arrays or sequences of length N whose rows together make an example's content:
        real numbers or strings.

    Returns:
      `[N]` array of 16-digit hexadecimal strings, all distinct.

    Raises:
      ValueError: the columns differ in length, or hold something else.

    Warns:
      UserWarning: with the number of duplicates, if there are any.

    >>> content_ids(np.array([[1, 2], [3, 4]]), np.array([0, 1])).tolist()
    ['0d2eed0be47abe90', 'b752a4a0cd62a128']
    >>> content_ids([[1.0, 2.0], [3.0, 4.0]], [False, True]).tolist()
    ['0d2eed0be47abe90', 'b752a4a0cd62a128']
    """
    digests = content_digests(*columns)
    copies: Counter[bytes] = Counter()
    ids = []
    for digest in digests:
        key = digest.digest()
        if before := copies[key]:
            digest.update(f"copy {before}".encode())
        copies[key] += 1
        ids.append(digest.hexdigest())
    if duplicates := len(ids) - len(copies):
        warnings.warn(
            f"{duplicates} of {len(ids)} examples repeat another's content; each copy has an id of "
            "its own, and all copies of one content act as one: what they share is their sum",
            stacklevel=2,
        )
    return np.array(ids, dtype="U16")


def copy_keys(ids: np.ndarray, *columns: Sequence | np.ndarray) -> np.ndarray | None:
    """The id of the first example of the same content, for each; None where none repeats.

    Args:
      ids: names of the examples.
      *columns: as in `content_ids`.

    >>> copy_keys(np.array(["a", "b", "c"]), [1, 2, 1]).tolist()
    ['a', 'b', 'a']
    """
    first: dict[bytes, int] = {}
    rows = [first.setdefault(d.digest(), i) for i, d in enumerate(content_digests(*columns))]
    return None if len(first) == len(rows) else ids[np.array(rows)]


def content_digests(*columns: Sequence | np.ndarray) -> Iterator[Any]:
    """A hash object of each row's content.

    Raises:
      ValueError: the columns differ in length, or hold something that is no number or string.
    """
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise ValueError(f"columns of one example table differ in length: {sorted(lengths)}")
    encoded = (_encoded_rows(_column(column)) for column in columns)
    for parts in zip(*encoded, strict=True):
        yield hashlib.blake2b(b"".join(parts), digest_size=8)


def _column(column: Any) -> np.ndarray | list[np.ndarray]:
    """One array, or one per row where rows differ in shape or are strings of any length."""
    strings = isinstance(column, (list, tuple)) and any(isinstance(c, (str, bytes)) for c in column)
    if not strings:
        try:
            array = np.asarray(column)
        except ValueError:  # ragged
            array = np.array(None)
        if array.dtype.kind != "O":
            return array
    plain = (row.tolist() if isinstance(row, np.ndarray) else row for row in column)
    return [np.asarray(row) for row in plain]


def _encoded_rows(column: np.ndarray | list[np.ndarray]) -> Iterator[bytes]:
    """Bytes that two rows share if and only if their shapes and values are equal."""
    if isinstance(column, list):
        for row in column:
            yield from _encoded(row[None])
    else:
        for _, (part,) in row_chunks(column):
            yield from _encoded(part)


def _encoded(part: np.ndarray) -> Iterator[bytes]:
    shape = part.shape[1:]
    if part.dtype.kind in "US":
        for row in part.reshape(len(part), -1).tolist():
            cells = [cell if isinstance(cell, bytes) else cell.encode() for cell in row]
            yield b"".join([f"s{shape}".encode(), *(b"%d:%b" % (len(c), c) for c in cells)])
        return
    if not is_real(part.dtype):
        raise ValueError(
            f"values of dtype {part.dtype} can't be hashed: give real numbers or strings"
        )
    # −0.0 + 0.0 is 0.0, and all NaNs become one.
    values = np.ascontiguousarray(part, "<f8").reshape(len(part), -1) + 0.0
    values[np.isnan(values)] = np.nan
    head, width, flat = f"n{shape}".encode(), values.shape[1] * 8, values.tobytes()
    wide = np.zeros(len(part), bool)
    if part.dtype.kind in "iu" and part.dtype.itemsize == 8:
        rows = part.reshape(len(part), -1)
        wide = np.asarray(((rows > _EXACT) | (rows < -_EXACT)).any(axis=1))
    for i in range(len(part)):
        row = head + flat[i * width : (i + 1) * width]
        yield row + _remainder(part[i], values[i]) if wide[i] else row


def _remainder(integers: np.ndarray, rounded: np.ndarray) -> bytes:
    """What float64 loses of large integers; nothing where it loses nothing."""
    pairs = zip(integers.reshape(-1).tolist(), rounded.tolist(), strict=True)
    lost = [whole - int(near) for whole, near in pairs]
    return f"r{lost}".encode() if any(lost) else b""


def row_chunks(*arrays: np.ndarray | Rows) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Rows of arrays of one length, as many as fit a chunk, with the first row's number."""
    each = max(1, *(v[:1].nbytes for v in arrays))
    step = max(1, _CHUNK // each)
    for first in range(0, len(arrays[0]), step):
        yield first, tuple(np.asarray(v[first : first + step]) for v in arrays)


def is_real(dtype: np.dtype) -> bool:
    """Whether an array holds real numbers."""
    # NumPy alone does not know bfloat16 for a number.
    return any(jnp.issubdtype(dtype, kind) for kind in (np.integer, np.floating, np.bool_))
