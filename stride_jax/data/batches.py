"""Batches for training: shuffled by a seed, resumable, shared out among processes (grain)."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from stride_jax.data.text_examples import TextExamples

if TYPE_CHECKING:
    import grain


@dataclasses.dataclass(frozen=True)
class BatchSettings:
    """How sequences are dealt out.

    Attributes:
      batch_size: sequences in a batch of all processes together.
      epochs: passes over the data, each in an order of its own.
      seed: of the orders.
      shuffle: False keeps the order of the data.
    """

    batch_size: int = 16
    epochs: int = 1
    seed: int = 0
    shuffle: bool = True


def num_batches(count: int, settings: BatchSettings) -> int:
    """Batches in all epochs, the same for every process; the last one may be padded.

    >>> num_batches(10, BatchSettings(batch_size=4, epochs=2))
    5
    """
    return -(-count * settings.epochs // settings.batch_size)


def batches(
    examples: TextExamples,
    settings: BatchSettings,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> "grain.IterDataset":
    """One process's part of every batch.

    The batches of all processes together are those of a single one: process p takes rows p, p +
    process_count, … of each batch. So every process makes the same number of steps, on rows of its
    own, and another number of processes trains on the same batches.

    Nothing is dropped: a batch may run from one epoch into the next, so every sequence comes once
    an epoch. Only the very last batch may lack rows; it is filled up with copies of its first row
    whose weights are 0 and whose `row` is -1, so that every batch has one shape.

    Args:
      examples: one split.
      settings: batch size, epochs, order.
      process_index, process_count: this process, such as `jax.process_index()`.

    Returns:
      A grain dataset of `{"inputs", "labels": [B, T] int32, "weights": [B, T] float32, "row": [B]
      int64}` with `B = batch_size / process_count`. Its iterators have `get_state` and `set_state`:
      a set state goes on with the batch after the one last returned.

    Raises:
      ValueError: there are no sequences, or the batch does not divide among the processes.
    """
    import grain

    if not len(examples) or settings.batch_size < 1 or settings.epochs < 1:
        raise ValueError(
            f"batch_size={settings.batch_size} and epochs={settings.epochs} must be at least 1, "
            f"with some sequences to take: there are {len(examples)}"
        )
    if settings.batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"batch_size={settings.batch_size} must be a multiple of process_count="
            f"{process_count}, and process_index={process_index} below it"
        )
    rows: Any = grain.MapDataset.range(len(examples))
    if settings.shuffle:
        rows = rows.seed(settings.seed).shuffle()
    # Repeated before it is cut into batches, so that an epoch's uneven end is not lost.
    rows = rows.repeat(settings.epochs).batch(settings.batch_size)
    own = slice(process_index, None, process_count)
    part = rows.map(functools.partial(_part, examples, own, settings.batch_size))
    # Rows are copied from memory: more threads than one would only wait for each other.
    return part.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))


def _part(
    examples: TextExamples, own: slice, batch_size: int, rows_G: np.ndarray
) -> dict[str, np.ndarray]:
    """This process's rows of one batch of all processes."""
    missing = batch_size - len(rows_G)
    rows_B = np.append(rows_G, np.full(missing, rows_G[0]))[own]
    real_B = np.append(np.ones(len(rows_G), bool), np.zeros(missing, bool))[own]
    return {
        "inputs": examples.inputs_NxT[rows_B],
        "labels": examples.labels_NxT[rows_B],
        "weights": examples.weights_NxT[rows_B] * real_B[:, None],
        "row": np.where(real_B, rows_B, -1),
    }
