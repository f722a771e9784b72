"""The words of sequences: their token ids, without padding."""

import numpy as np

from stride_jax.examples import Examples
from stride_jax.ids import row_chunks
from stride_jax.inputs import described
from stride_jax.runtime.rows import Rows

_MOST = 1 << 27
"""Tokens of shards that are read into memory: some ten GB with an index of their words."""


def token_lists(examples: Examples, reader: str) -> list[np.ndarray]:
    """Token ids of each sequence, up to the last label that counts.

    What comes after that label can't change a loss, so it is padding. The label itself is the last
    token where labels are the following tokens, as a language model's are: the completion of a
    question may stand there alone.

    Args:
      examples: sequences, inputs and labels `[N, T]`.
      reader: what reads their tokens, for the message.

    Returns:
      N arrays of ids; an empty one where no label counts.

    Raises:
      ValueError: inputs that are no sequences of token ids, or more of shards than are held.

    >>> question = Examples([[5, 8, 9, 0]], [[-1, 9, 7, -1]])
    >>> token_lists(question, "bm25")[0].tolist()
    [5, 8, 9, 7]
    """
    inputs, labels, weights = examples.inputs, examples.labels, examples.weights
    array = isinstance(inputs, (np.ndarray, Rows))
    tokens = array and inputs.dtype.kind in "iu" and inputs.ndim == 2
    if not tokens or labels.shape != inputs.shape:
        raise ValueError(
            f"{reader} reads token ids [N, T] with labels [N, T], but inputs are "
            f"{described(inputs)} and labels {list(labels.shape)}: leave {reader} out for other "
            "data"
        )
    if isinstance(inputs, Rows) and inputs.size > _MOST:
        raise ValueError(
            f"{reader} would hold all {inputs.size:,} tokens of these shards in memory, and at "
            f"most {_MOST:,} are held: leave {reader} out"
        )
    columns = (inputs, labels) if weights is None else (inputs, labels, weights)
    return [
        tokens
        for _, parts in row_chunks(*columns)
        for tokens in _of_chunk(parts[0], parts[1], parts[2] if len(parts) > 2 else None)
    ]


def _of_chunk(inputs: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> list:
    counted_NxT = labels >= 0 if weights is None else (labels >= 0) & (weights > 0)
    length = inputs.shape[1]
    size_N = np.where(counted_NxT.any(axis=1), length - counted_NxT[:, ::-1].argmax(axis=1), 0)
    same_NxT = (labels[:, :-1] == inputs[:, 1:]) | ~counted_NxT[:, :-1]
    same_NxT |= np.arange(1, length) >= size_N[:, None]
    follows_N = same_NxT.all(axis=1) & (size_N > 0)
    return [
        np.append(row[:size], own[size - 1]) if follows else row[:size]
        for row, own, size, follows in zip(
            inputs, labels, size_N.tolist(), follows_N.tolist(), strict=True
        )
    ]
