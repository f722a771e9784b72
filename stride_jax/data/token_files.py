"""Sequences in the files of a prepared corpus, of which a process reads only the rows it asks for.

Rows are read from the files, not mapped: mapped pages count as a process' own memory, and a corpus
may be larger than the addresses it is allowed.
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from stride_jax.data.corpus_parts import part_name
from stride_jax.ids import content_digests
from stride_jax.runtime.files import UnreadableFileError

# Files that stay open.
_OPEN = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """One stream of a prepared corpus: its parts one after the other.

    Attributes:
      folder: of the parts' files.
      role: name of the stream.
      sequences, tokens: of each part.
      length: T.
      dtype: of a stored token.
      vocab_size, bos_id: of the tokenizer.
      predict_bos: whether the mark of the next document counts as a label.
    """

    folder: pathlib.Path
    role: str
    sequences: tuple[int, ...]
    tokens: tuple[int, ...]
    length: int
    dtype: np.dtype
    vocab_size: int
    bos_id: int
    predict_bos: bool

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum((0, *self.sequences))

    @functools.cached_property
    def _files(self) -> "_Files":
        return _Files()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def path(self, part: int, kind: str) -> pathlib.Path:
        """A file of a part: `tokens` or `ids`."""
        return self.folder / f"{part_name(part)}.{self.role}.{kind}"

    def places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The part of each row, and its number there."""
        part = np.searchsorted(self._ends, rows, side="right") - 1
        return part, rows - self._ends[part]

    def is_full(self) -> np.ndarray:
        """Which sequences are not padded, `[N]`: all but the last of some parts."""
        full = np.ones(len(self), bool)
        for end, sequences, tokens in zip(self._ends[1:], self.sequences, self.tokens, strict=True):
            if sequences and tokens < sequences * self.length:
                full[end - 1] = False
        return full

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """Inputs that are not padding, which come first."""
        part, row = self.places(rows)
        return np.minimum(np.asarray(self.tokens)[part] - row * self.length, self.length)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of sequences and the one after each, `[n, T + 1]` int32.

        Raises:
          UnreadableFileError: a file is missing, too short, or holds tokens that the tokenizer does
            not have; names it.
        """
        values = self._read(rows, "tokens", self.length, self.length + 1, self.dtype)
        bad = values >= self.vocab_size
        if bad.any():
            part = self.places(np.asarray(rows))[0][np.argmax(bad.any(axis=1))]
            raise UnreadableFileError(
                f"{self.path(part, 'tokens')} holds the token {values[bad][0]}, but the tokenizer "
                f"has {self.vocab_size}: prepare the corpus again"
            )
        return values.astype(np.int32)

    def hashes(self, rows: np.ndarray) -> np.ndarray:
        """The stored hash of each sequence's content, `[n]` uint64."""
        return self._read(rows, "ids", 1, 1, np.dtype("<u8"))[:, 0]

    def _read(
        self, rows: np.ndarray, kind: str, step: int, width: int, dtype: np.dtype
    ) -> np.ndarray:
        rows = np.asarray(rows)
        part_n, row_n = self.places(rows)
        out = np.empty((len(rows), width), dtype)
        runs = np.flatnonzero(
            np.append(True, (np.diff(rows) != 1) | (np.diff(part_n) != 0))[: len(rows)]
        )
        for first, stop in zip(runs, np.append(runs[1:], len(rows)), strict=True):
            path, count = self.path(int(part_n[first]), kind), int(stop - first)
            size = ((count - 1) * step + width) * dtype.itemsize
            content = self._files.read(path, int(row_n[first]) * step * dtype.itemsize, size)
            flat = np.frombuffer(content, dtype)
            out[first:stop] = np.lib.stride_tricks.sliding_window_view(flat, width)[::step]
        return out

    def labels(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Labels of sequences as `read` gives them, `[n, T]`; −1 where none counts."""
        labels_nxT = tokens[:, 1:]
        if self.predict_bos:
            part, row = self.places(np.asarray(rows))
            known = np.asarray(self.tokens)[part] - row * self.length - 1
            counts_nxT = np.arange(self.length) < known[:, None]
        else:
            # No text encodes to the mark, with which sequences are padded too.
            counts_nxT = labels_nxT != self.bos_id
        return np.where(counts_nxT, labels_nxT, -1)

    def content(self, rows: np.ndarray) -> list:
        """Hash objects of sequences' content, as text in memory is named by."""
        tokens = self.read(rows)
        return sequence_digests(tokens[:, :-1], tokens[:, 1:], self.labels(tokens, rows) >= 0)


def sequence_digests(
    inputs_nxT: np.ndarray, labels_nxT: np.ndarray, counts_nxT: np.ndarray
) -> list:
    """Hash objects of sequences' content: tokens, following tokens, and which of these count."""
    return list(content_digests(inputs_nxT, labels_nxT, counts_nxT.astype(np.float32)))


class _Files:
    """Descriptors of the files read last."""

    def __init__(self) -> None:
        self._open: collections.OrderedDict[pathlib.Path, int] = collections.OrderedDict()

    def read(self, path: pathlib.Path, start: int, size: int) -> bytes:
        if path not in self._open:
            if len(self._open) >= _OPEN:
                os.close(self._open.popitem(last=False)[1])
            try:
                self._open[path] = os.open(path, os.O_RDONLY)
            except FileNotFoundError as error:
                raise UnreadableFileError(
                    f"{path} is missing: run the same stride-jax prepare again"
                ) from error
        self._open.move_to_end(path)
        parts, read = [], 0
        while read < size:
            content = os.pread(self._open[path], size - read, start + read)
            if not content:
                raise UnreadableFileError(
                    f"{path} is shorter than was written: it ends before byte {start + size}; "
                    f"remove {part_record(path)} and prepare again"
                )
            parts.append(content)
            read += len(content)
        return b"".join(parts)

    def __del__(self) -> None:
        for handle in self._open.values():
            os.close(handle)


def part_record(path: pathlib.Path) -> pathlib.Path:
    """The record of the part that a file belongs to; without it, the part is tokenised again."""
    return path.with_name(f"{path.name.partition('.')[0]}.json")


def streams_of(
    folder: pathlib.Path,
    roles: Sequence[str],
    parts: Sequence[dict],
    length: int,
    dtype: str,
    vocab_size: int,
    bos_id: int,
    predict_bos: bool,
) -> dict[str, Stream]:
    """Streams by role, from the records of the parts."""
    return {
        role: Stream(
            folder,
            role,
            tuple(int(own[role]["sequences"]) for own in parts),
            tuple(int(own[role]["tokens"]) for own in parts),
            length, np.dtype(dtype), vocab_size, bos_id, predict_bos,
        )
        for role in roles
    }  # fmt: skip
