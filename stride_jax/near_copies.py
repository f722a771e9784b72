"""Keys that make near copies of texts act as one, as exact copies do.

Two texts are near copies where the Jaccard index of their sets of shingles, `|A ∩ B| / |A ∪ B|`,
is at least a threshold; keys are the connected components. MinHash signatures, cut into bands,
nominate pairs (locality-sensitive hashing, package datasketch), and the index itself decides, so no
pair is joined by chance.

References:
  A. Broder, On the resemblance and containment of documents, 1997.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stride_jax.ids import as_ids
from stride_jax.runtime.settings import check_types

_MISSED = 0.01
"""Chance, at most, that bands miss a pair whose index is the threshold; others are likelier."""


@dataclasses.dataclass(frozen=True)
class NearCopySettings:
    """What counts as a near copy.

    Attributes:
      threshold: least Jaccard index of two near copies.
      shingle: consecutive tokens, or words, of a shingle.
      num_hashes: length of a signature.
    """

    threshold: float = 0.8
    shingle: int = 5
    num_hashes: int = 128

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.1 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} must lie in [0.1, 1]")
        if self.shingle < 1 or self.num_hashes < 16:
            raise ValueError(
                f"shingle={self.shingle}, num_hashes={self.num_hashes}: give at least 1 and 16"
            )


def near_copy_keys(
    texts: Sequence[Any] | np.ndarray,
    settings: NearCopySettings = NearCopySettings(),
    *,
    ids: Any = None,
) -> np.ndarray:
    """Keys for `fit(…, keys=…)` under which near copies and exact copies act as one.

    About .3 ms per text of 64 tokens, and a few kB. A group of M near copies, none of which has the
    shingles of another, costs M² / 2 look-ups; nothing of size N² is held.

    Args:
      texts: N strings, read as words, or sequences of token ids: lists, or `[N, T]`. Padding
        counts, so leave it out (`sequences.token_lists`).
      settings: threshold and shingles.
      ids: `[N]` names; numbers of rows by default.

    Returns:
      `[N]` strings: for each text the id of the first of its component.

    Raises:
      ValueError: a text that is neither a string nor integers, or ids of another number.
      ModuleNotFoundError: datasketch is not installed.

    >>> rest = [7, 4, 9, 2, 6, 5, 3, 8]
    >>> texts = [[1, *rest], [2, 2, 2], [0, *rest], [2, 2, 2]]
    >>> near_copy_keys(texts, NearCopySettings(threshold=0.5, shingle=2)).tolist()
    ['0', '1', '0', '1']
    """
    names = as_ids("ids", np.arange(len(texts)) if ids is None else ids)
    if len(names) != len(texts):
        raise ValueError(f"{len(names)} ids for {len(texts)} texts: give one for each")
    shingles = [_shingles(text, settings.shingle, i) for i, text in enumerate(texts)]
    first: dict[bytes, int] = {}
    parent = [first.setdefault(own.tobytes(), i) for i, own in enumerate(shingles)]
    for i, j in _nominated(shingles, list(first.values()), settings):
        a, b = sorted((_root(parent, i), _root(parent, j)))
        if a != b and jaccard(shingles[i], shingles[j]) >= settings.threshold:
            parent[b] = a
    return names[np.array([_root(parent, i) for i in range(len(parent))], np.int64)]


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """`|A ∩ B| / |A ∪ B|` of two sets, each ascending and without repeats."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def _shingles(text: Any, length: int, row: int) -> np.ndarray:
    """Hashes of the distinct shingles of a text, ascending uint64; of a short text, its whole."""
    if isinstance(text, str):
        words = text.split()
        count = max(1, len(words) - length + 1)
        parts = (" ".join(words[i : i + length]).encode() for i in range(count))
    else:
        tokens = np.asarray(text)
        if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "iu"):
            raise ValueError(
                f"text {row} is {tokens.dtype}{list(tokens.shape)}: give a string, or a row of "
                "token ids"
            )
        tokens = tokens.astype(np.int64)
        count = max(1, len(tokens) - length + 1)
        parts = (tokens[i : i + length].tobytes() for i in range(count))
    digests = b"".join(hashlib.blake2b(part, digest_size=8).digest() for part in parts)
    return np.unique(np.frombuffer(digests, "<u8"))


def _nominated(
    shingles: Sequence[np.ndarray], rows: Sequence[int], settings: NearCopySettings
) -> Iterator[tuple[int, int]]:
    """Pairs of rows that share a band of their signatures, each once."""
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "near copies are found by the package datasketch: pip install 'stride-jax[text]'",
            name="datasketch",
        ) from error
    bands = _bands(settings.threshold, settings.num_hashes)
    table = MinHashLSH(num_perm=settings.num_hashes, params=bands)
    sets = (shingles[i].tolist() for i in rows)
    signatures = MinHash.generator(sets, num_perm=settings.num_hashes, seed=1, hashfunc=_short)
    for i, signature in zip(rows, signatures, strict=True):
        for j in sorted(table.query(signature)):  # pyright: ignore[reportArgumentType]
            yield i, j
        table.insert(i, signature, check_duplication=False)


def _short(shingle: int) -> int:
    """A shingle's hash in the 32 bits that signatures start from."""
    return shingle & 0xFFFFFFFF


def _bands(threshold: float, num_hashes: int) -> tuple[int, int]:
    """Number of bands and hashes of each: the longest that miss few pairs.

    `(1 − t^r)^b <= _MISSED`, the chance that no band of r hashes agrees.

    >>> _bands(0.8, 128)
    (21, 6)
    """
    fit = [
        rows
        for rows in range(1, num_hashes // 2 + 1)
        if (1 - threshold**rows) ** (num_hashes // rows) <= _MISSED
    ]
    rows = max(fit, default=1)
    return num_hashes // rows, rows


def _root(parent: list[int], i: int) -> int:
    """The first text of a component; paths are halved on the way."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
