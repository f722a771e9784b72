"""Rows that are read when they are asked for: an array's shape and indexing, without its memory."""

import abc
from collections.abc import Iterator
from typing import Any

import numpy as np


class Rows(abc.ABC):
    """N rows, read like an array's along the first axis; what indexing gives is an array.

    Attributes:
      shape, dtype: of all rows together.

    >>> class Squares(Rows):
    ...     shape, dtype = (1000,), np.dtype(int)
    ...     def read(self, rows):
    ...         return rows**2
    >>> Squares()[[3, -1]].tolist(), Squares()[2:4].tolist(), int(Squares()[5]), len(Squares())
    ([9, 998001], [4, 9], 25, 1000)
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """Some rows, by their numbers from 0."""

    @property
    def stand_in(self) -> np.ndarray:
        """A few rows that hold the largest value there is, for checks that would read them all."""
        return self[:1]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def itemsize(self) -> int:
        """Bytes of a value."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, none of which are held."""
        return self.size * self.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if isinstance(first, slice):
            rows = np.arange(*first.indices(len(self)))
        else:
            rows = np.asarray(first)
            rows = np.flatnonzero(rows) if rows.dtype == bool else rows
            rows = np.where(rows < 0, rows + len(self), rows)
            if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
                raise IndexError(f"row {first} of {len(self)}")
        values = self.read(rows.reshape(-1)).reshape((*rows.shape, *self.shape[1:]))
        return values[(slice(None),) * rows.ndim + rest] if rest else values

    def __iter__(self) -> Any:
        for first in range(0, len(self), 4096):
            yield from self[first : first + 4096]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return np.asarray(self[:], dtype)

    def tolist(self) -> list[Any]:
        """All rows as Python values."""
        return list(np.asarray(self).tolist())


class Taken(Rows):
    """Some of other rows, by their numbers.

    >>> Taken(np.array([5, 6, 7]), np.array([2, 0]))[:].tolist()
    [7, 5]
    """

    def __init__(self, source: Any, rows: np.ndarray) -> None:
        self._source, self._rows = source, rows
        self.shape, self.dtype = (len(rows), *source.shape[1:]), np.dtype(source.dtype)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._source[self._rows[rows]])


def chunks(rows: Any, size: int = 2**18) -> Iterator[tuple[int, np.ndarray]]:
    """All rows, a chunk at a time, with the number of its first one.

    >>> [(first, part.tolist()) for first, part in chunks(np.arange(3), 2)]
    [(0, [0, 1]), (2, [2])]
    """
    for first in range(0, len(rows), size):
        yield first, np.asarray(rows[first : first + size])
