"""What share of a question's words each training text holds: what tells that a text is present.

    overlap(q, i) = Σ_{s ∈ A_q ∩ B_i} idf(s) / Σ_{s ∈ A_q} idf(s)
    idf(s) = log((1 + N) / (1 + n_s))

`A_q`, `B_i` are the sets of shingles, runs of consecutive tokens, of the question and the text; n_s
texts hold s. A text that goes on before or after, or that wraps the question up, counts in full.

Letter of its own: S distinct shingles of all questions.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

_ROWS = 4096
"""Training texts that are hashed at a time."""

# Odd numbers with bits all over, from the fractional parts of golden ratio and pi.
_MIX, _START = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x243F6A8885A308D3)


def overlaps(
    train: Sequence[np.ndarray], queries: Sequence[np.ndarray], shingle: int = 3
) -> scipy.sparse.csr_array:
    """Share of each question's shingles that each training text holds, weighted by rarity.

    Args:
      train: N texts as arrays of token ids, such as those of `sequences.token_lists`.
      queries: Q texts likewise.
      shingle: tokens of a shingle; a shorter text is one shingle.

    Returns:
      `[Q, N]` float32 in [0, 1], in compressed rows; 0 where nothing is shared.

    Raises:
      ValueError: a shingle of no token.

    >>> texts = [np.array([1, 2, 3, 4]), np.array([9, 9, 9]), np.array([0, 1, 2, 3, 9])]
    >>> overlaps(texts, [np.array([1, 2, 3, 4])]).toarray().astype(float).round(2).tolist()
    [[1.0, 0.0, 0.29]]
    """
    if shingle < 1:
        raise ValueError(f"shingle={shingle} must be at least 1")
    asked = [np.unique(_shingles(own, shingle)) for own in queries]
    words_S = np.unique(np.concatenate([*asked, np.zeros(0, np.uint64)]))
    theirs_NxS = scipy.sparse.csr_array(
        scipy.sparse.vstack(list(_holding(train, words_S, shingle)))
    )
    held_S = np.bincount(theirs_NxS.indices, minlength=len(words_S))
    idf_S = np.log((1 + len(train)) / (1 + held_S))
    own_QxS = _table([np.searchsorted(words_S, own) for own in asked], len(words_S))
    total_Q = np.maximum(own_QxS @ idf_S, 1e-30)
    weighted = own_QxS * idf_S / total_Q[:, None]
    return scipy.sparse.csr_array((weighted @ theirs_NxS.T).astype(np.float32))


def _holding(
    train: Sequence[np.ndarray], words_S: np.ndarray, shingle: int
) -> Iterator[scipy.sparse.csr_array]:
    """Which of the shingles each training text holds, some texts at a time."""
    for first in range(0, len(train), _ROWS):
        rows = []
        for text in train[first : first + _ROWS]:
            own = np.unique(_shingles(text, shingle))
            place = np.searchsorted(words_S, own)
            place = place[place < len(words_S)]
            rows.append(place[words_S[place] == own[: len(place)]])
        yield _table(rows, len(words_S))


def _table(rows: Sequence[np.ndarray], width: int) -> scipy.sparse.csr_array:
    """1 at the columns that each row names."""
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate([*rows, np.zeros(0, np.int64)])
    ones = np.ones(len(columns))
    return scipy.sparse.csr_array((ones, columns, ends), shape=(len(rows), width))


def _shingles(tokens: np.ndarray, length: int) -> np.ndarray:
    """Hashes of the shingles of a text, in order, uint64; of a shorter text, one of its whole.

    >>> a, b = _shingles(np.array([1, 2, 1, 2]), 2)[[0, 2]]
    >>> bool(a == b), len(_shingles(np.array([5]), 2)), len(_shingles(np.zeros(0, int), 2))
    (True, 1, 0)
    """
    own = np.asarray(tokens).astype(np.uint64)
    length = min(length, len(own))
    if not length:
        return np.zeros(0, np.uint64)
    hashes = np.full(len(own) - length + 1, _START + np.uint64(length))
    for place in range(length):
        hashes = (hashes ^ own[place : place + len(hashes)]) * _MIX
        hashes ^= hashes >> np.uint64(29)
    return hashes
