"""Batches of training examples: their order, one epoch at a time, and their reading, a piece ahead.

Letter of its own: s steps.
"""

import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from stride_jax.models.train import Batch, TrainSettings, num_batches
from stride_jax.runtime import mesh as meshes

# Steps per piece: so many, or as many as have this many bytes of examples.
_PIECE, PIECE_BYTES = 50, 1 << 24


class Order:
    """Rows of each step's batch, as `train.order_batches` has them on a device.

    A pure function of the key and the number of the step, so a training that was stopped is resumed
    from that number: no state of a reader, such as grain's, is kept beside it. Two epochs are held,
    4 bytes per example and epoch.

    Args:
      members_S: rows to train on.
      key: key of the order.
      settings: epochs and size of a batch.

    >>> order = Order(np.arange(5), jax.random.key(0), TrainSettings(epochs=4, batch_size=2))
    >>> order.num_steps, sorted(order.rows(0, 5).ravel().tolist())
    (10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    """

    def __init__(self, members_S: np.ndarray, key: jax.Array, settings: TrainSettings) -> None:
        self.members_S = np.asarray(members_S)
        self.num_steps, self.batch = num_batches(len(self.members_S), settings)
        self._keys = jax.random.split(key, settings.epochs)
        self._epochs: dict[int, np.ndarray] = {}

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Rows of the batches of steps `first … stop − 1`, `[s, B]`."""
        begin, end, size = first * self.batch, stop * self.batch, len(self.members_S)
        parts = [
            self._epoch(e)[max(begin - e * size, 0) : end - e * size]
            for e in range(begin // size, -(-end // size))
        ]
        return np.concatenate(parts).reshape(-1, self.batch)

    def _epoch(self, e: int) -> np.ndarray:
        if e not in self._epochs:
            self._epochs = {n: own for n, own in self._epochs.items() if n == e - 1}
            order_S = jax.random.permutation(self._keys[e], jnp.arange(len(self.members_S)))
            self._epochs[e] = self.members_S[np.asarray(order_S)]
        return self._epochs[e]


def steps_per_piece(data: tuple[Any, Any], order: Order) -> int:
    """Steps whose batches are on the devices together, and that one call of the program takes."""
    row = sum(int(np.prod(v.shape[1:])) * v.dtype.itemsize for v in data)
    return max(1, min(_PIECE, order.num_steps, PIECE_BYTES // max(order.batch * row, 1)))


def pieces_of(begin: int, num_steps: int, ends: Sequence[int], most: int) -> list[tuple[int, int]]:
    """First step of each piece and the one after it, where some pieces must end.

    >>> pieces_of(2, 10, [5, 10], 4)
    [(2, 4), (4, 5), (5, 8), (8, 10)]
    """
    stops = sorted({*range(most, num_steps, most), *ends})
    return list(itertools.pairwise([begin, *(stop for stop in stops if stop > begin)]))


def read_ahead(
    data: tuple[Any, Any],
    order: Order,
    pieces: Sequence[tuple[int, int]],
    size: int,
    sharding: NamedSharding,
) -> Iterator[tuple[int, Batch]]:
    """Steps of each piece and its batches on the devices, `[s, B, …]`; the next is read meanwhile.

    Args:
      data: inputs and labels of all examples, of which a process reads its devices' rows.
      order: rows of each batch.
      pieces: from `pieces_of`.
      size: s, the same for all pieces, so that one program is compiled.
      sharding: of the batches.
    """

    def read(first: int, stop: int) -> tuple[int, Batch]:
        rows_sxB = meshes.pad_rows(order.rows(first, stop), max(size, stop - first))
        return stop - first, meshes.place(data, sharding, rows_sxB)

    with concurrent.futures.ThreadPoolExecutor(1, "batches") as reader:
        coming = [reader.submit(read, *piece) for piece in pieces[:1]]
        for later in range(1, len(pieces) + 1):
            own = coming.pop().result()
            coming += [reader.submit(read, *piece) for piece in pieces[later : later + 1]]
            yield own
