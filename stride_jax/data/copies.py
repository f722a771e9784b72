"""Sequences of the same content, among any number of them, in little memory.

Every sequence has a hash of its content. The id of a copy is the hash of its content and of how
many equal ones come before it (`ids.content_ids`), so only copies need a table: all others are
named by their hash.
"""

from collections.abc import Sequence

import numpy as np

from stride_jax.data.token_files import Stream

# Hashes that are compared at a time, and sequences that are hashed at a time.
_AT_ONCE, _CHUNK = 1 << 20, 256


def find_copies(streams: Sequence[Stream]) -> dict[str, np.ndarray]:
    """The sequences that repeat an earlier one.

    Args:
      streams: whose sequences are numbered one stream after the other.

    Returns:
      `row`, numbers of the copies, ascending; `hash`, what names each, uint64.
    """
    slices = max(1, -(-sum(map(len, streams)) // _AT_ONCE))
    pairs = [_repeated(*_slice(streams, i, slices)) for i in range(slices)]
    row, before = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    order = np.argsort(row)
    return {"row": row[order], "hash": _hashes(streams, row[order], before[order])}


def _slice(streams: Sequence[Stream], i: int, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of one slice, into which all equal ones fall, and their rows."""
    hashes, rows, first = [np.zeros(0, "<u8")], [np.zeros(0, np.int64)], 0
    for own in streams:
        for part, count in enumerate(own.sequences):
            if count:
                values = np.fromfile(own.path(part, "ids"), "<u8")
                at = np.flatnonzero(values % np.uint64(slices) == i)
                hashes.append(values[at])
                rows.append(first + at)
            first += count
    return np.concatenate(hashes), np.concatenate(rows)


def _repeated(hash_S: np.ndarray, row_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose hash an earlier row has, and how many have it before each.

    >>> _repeated(np.array([7, 5, 7, 7]), np.array([0, 1, 2, 3]))
    (array([2, 3]), array([1, 2]))
    """
    order = np.argsort(hash_S, kind="stable")
    new_S = np.append(True, np.diff(hash_S[order]) != 0)[: len(order)]
    place_S = np.arange(len(order))
    before_S = place_S - np.maximum.accumulate(np.where(new_S, place_S, 0))
    return row_S[order][before_S > 0], before_S[before_S > 0]


def _hashes(streams: Sequence[Stream], rows: np.ndarray, before: np.ndarray) -> np.ndarray:
    ends = np.cumsum([0, *map(len, streams)])
    parts = [b""]
    for number, own in enumerate(streams):
        here = np.flatnonzero((rows >= ends[number]) & (rows < ends[number + 1]))
        for first in range(0, len(here), _CHUNK):
            at = here[first : first + _CHUNK]
            contents = own.content(rows[at] - ends[number])
            for content, count in zip(contents, before[at].tolist(), strict=True):
                content.update(f"copy {count}".encode())
                parts.append(content.digest())
    return np.frombuffer(b"".join(parts), "<u8")
