"""One part of a corpus, tokenised into files: whole and recorded, or absent.

    00012.train.tokens      the tokens of its documents in a row, a mark before each
    00012.train.ids         8 bytes per sequence: a hash of its content
    00012.held.tokens, .ids of the held-out documents, where there are any
    00012.documents.parquet where each document comes from, and where it lies
    00012.json              counts and digests of these; written last

Sequence i holds tokens `[i T, i T + T)` and is asked for those of `[i T + 1, i T + T]`, so a file
of n sequences has n T + 1 tokens: labels are inputs shifted by one, and are stored nowhere.

Letters of its own: L tokens of a stream.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from stride_jax.data.corpus_files import Columns, Part, SourceFile
from stride_jax.data.corpus_rows import Row, read_rows
from stride_jax.data.tokens import Tokenizer
from stride_jax.ids import content_digests
from stride_jax.runtime.files import file_digest, read_json, write_json

TRAIN, HELD = "train", "held"
STREAMS = (TRAIN, HELD)

# Characters that are encoded together: encodings take far more memory than their ids.
_BATCH = 1 << 19
_DOCUMENTS = 4096
_NAMED = 5

Report = Callable[[int, int], None]
"""Told of characters read and tokens written since it was last called."""


@dataclasses.dataclass(frozen=True)
class PartSettings:
    """What shapes a part's files.

    Attributes:
      columns: where documents are.
      length: T, tokens per sequence.
      predict_bos: whether the mark of the next document counts as a label.
      held_out: share of the documents that are held out, by a hash of their text.
    """

    columns: Columns
    length: int
    predict_bos: bool
    held_out: float


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integers of 16 or 32 bits, little-endian, that hold every token.

    >>> token_dtype(65_536), token_dtype(65_537)
    (dtype('uint16'), dtype('uint32'))
    """
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def part_name(number: int) -> str:
    """The name that a part's files share."""
    return f"{number:05d}"


def record_of(folder: pathlib.Path, number: int) -> pathlib.Path:
    """The file that is written when a part is complete."""
    return folder / f"{part_name(number)}.json"


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is held out: copies of it are too, in whichever file.

    >>> [is_held_out("In the beginning", share) for share in (0.0, 1.0)]
    [False, True]
    """
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64


@dataclasses.dataclass(frozen=True)
class Work:
    """A part to be tokenised.

    Attributes:
      folder: where its files go.
      number: of the part.
      file, part: what is read.
      tokenizer: of the text.
      settings: what shapes its files.
    """

    folder: pathlib.Path
    number: int
    file: SourceFile
    part: Part
    tokenizer: Tokenizer
    settings: PartSettings

    @property
    def name(self) -> str:
        """The name that its files share."""
        return part_name(self.number)

    @property
    def record(self) -> pathlib.Path:
        """The file that is written when it is complete."""
        return record_of(self.folder, self.number)


def write_part(work: Work, report: Report, wait: bool = True) -> bool:
    """Tokenise a part, unless it is done or another process is at it.

    Args:
      work: the part.
      report: told of progress.
      wait: whether to wait for another process at the same part.

    Returns:
      Whether the part is complete.
    """
    with _claimed(work.folder / f".{work.name}.lock", wait) as claimed:
        if not work.record.exists() and claimed:
            _write(work, report)
    return work.record.exists()


@contextlib.contextmanager
def _claimed(path: pathlib.Path, wait: bool) -> Iterator[bool]:
    """Keep other processes off a part; the kernel gives the lock back however a process ends."""
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # a file system without locks: processes of one job have parts of their own
        yield True
        path.unlink(missing_ok=True)


def _write(work: Work, report: Report) -> None:
    file, tokenizer, settings = work.file, work.tokenizer, work.settings
    faults: collections.Counter[str] = collections.Counter()
    named: list[str] = []

    def good(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            if row.fault:
                faults[row.fault] += 1
                if len(named) < _NAMED:
                    named.append(f"{file.name}#{row.place}: {row.fault}")
            else:
                yield row

    with contextlib.ExitStack() as stack:
        streams = {
            role: stack.enter_context(
                _Stream(work.folder / f"{work.name}.{role}", tokenizer, settings)
            )
            for role in (STREAMS if settings.held_out else (TRAIN,))
        }
        table = stack.enter_context(
            _Table(work.folder / f"{work.name}.documents.parquet", file.name)
        )
        for rows, total in _batches(good(read_rows(file, work.part, settings.columns))):
            encoded = tokenizer.core.encode_batch_fast(
                [row.text for row in rows], add_special_tokens=False
            )
            tokens = 0
            for row, encoding in zip(rows, encoded, strict=True):
                role = HELD if is_held_out(row.text, settings.held_out) else TRAIN
                stream, ids = streams[role], np.array(encoding.ids, stream_dtype(tokenizer))
                table.add(row, role, stream.size, len(ids) + 1, settings.length)
                stream.add(ids)
                tokens += len(ids) + 1
            report(total, tokens)
    record = {
        "file": file.name,
        "range": [work.part.first, work.part.stop],
        "documents": table.count,
        "streams": {role: own.record() for role, own in streams.items()},
        "table": file_digest(work.folder / f"{work.name}.documents.parquet"),
        "faults": dict(sorted(faults.items())),
        "named": named,
    }
    write_json(work.record, record)


def stream_dtype(tokenizer: Tokenizer) -> np.dtype:
    """What a tokenizer's tokens are stored as."""
    return token_dtype(tokenizer.vocab_size)


def _batches(rows: Iterable[Row]) -> Iterator[tuple[list[Row], int]]:
    """Documents that are encoded together, and their characters."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += len(row.text)
        if size >= _BATCH:
            yield batch, size
            batch, size = [], 0
    if batch:
        yield batch, size


class _Temporary:
    """A file that takes its name when it is whole; what a kill leaves is written over."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.part")
        self._digest = hashlib.blake2b(digest_size=8)
        self._file = open(self._temporary, "wb")  # noqa: SIM115

    def write(self, content: bytes) -> None:
        self._digest.update(content)
        self._file.write(content)

    def close(self) -> None:
        self._named(self._file.close)

    def publish(self) -> None:
        self._named(lambda: os.replace(self._temporary, self._path))

    def _named(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            # A full disk says so without a name.
            raise OSError(error.errno, error.strerror, error.filename or str(self._path)) from error

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()


class _Stream:
    """Tokens of documents in a row, written as they come, and a hash of each sequence."""

    def __init__(self, path: pathlib.Path, tokenizer: Tokenizer, settings: PartSettings) -> None:
        self._bos, self._settings = tokenizer.bos_id, settings
        self._dtype = stream_dtype(tokenizer)
        self._tokens = _Temporary(path.with_name(f"{path.name}.tokens"))
        self._ids = _Temporary(path.with_name(f"{path.name}.ids"))
        self._waiting: list[np.ndarray] = []
        self._held = 0
        self._sequences = 0
        self.size = 0

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._tokens.close()
            self._ids.close()
        if kind is None:
            self._tokens.publish()
            self._ids.publish()

    def add(self, ids: np.ndarray) -> None:
        """A document: a mark and its tokens."""
        self._waiting += [np.array([self._bos], self._dtype), ids]
        self._held += len(ids) + 1
        self.size += len(ids) + 1
        if self._held > max(_BATCH // 4, self._settings.length):
            self._cut((self._held - 1) // self._settings.length)

    def _cut(self, count: int) -> None:
        """Write the first sequences of what waits; the last label is the next one's first input."""
        whole = np.concatenate(self._waiting)
        size = count * self._settings.length
        self._sequence_ids(whole[: size + 1], size)
        self._tokens.write(whole[:size].tobytes())
        self._waiting, self._held = [whole[size:]], len(whole) - size

    def _finish(self) -> None:
        length = self._settings.length
        count = max(0, self._held - 1) // length
        if count:
            self._cut(count)
        if self._held > 1:  # the last sequence, padded
            tail = np.full(length + 1, self._bos, self._dtype)
            tail[: self._held] = np.concatenate(self._waiting)
            self._sequence_ids(tail, self._held - 1)
            self._tokens.write(tail.tobytes())
        elif self._sequences:  # the label of the last one
            self._tokens.write(np.concatenate(self._waiting).tobytes())

    def _sequence_ids(self, tokens: np.ndarray, labels: int) -> None:
        """Hashes of sequences whose first `labels` labels are known, as text in memory has them."""
        length = self._settings.length
        inputs_nxT, labels_nxT = (
            v.reshape(-1, length).astype(np.int32) for v in (tokens[:-1], tokens[1:])
        )
        known_nxT = (np.arange(inputs_nxT.size) < labels).reshape(inputs_nxT.shape)
        weights_nxT = known_nxT & (self._settings.predict_bos | (labels_nxT != self._bos))
        columns = inputs_nxT, labels_nxT, weights_nxT.astype(np.float32)
        self._ids.write(b"".join(own.digest() for own in content_digests(*columns)))
        self._sequences += len(inputs_nxT)

    def record(self) -> dict[str, Any]:
        return {
            "tokens": self.size,
            "sequences": self._sequences,
            "digest": self._tokens.digest,
            "ids": self._ids.digest,
        }


class _Table:
    """Where documents come from and where they lie, written in groups of rows."""

    def __init__(self, path: pathlib.Path, file: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        fields = {
            "id": pa.string(), "file": pa.string(), "place": pa.int64(), "stream": pa.string(),
            "sequence": pa.int64(), "offset": pa.int64(), "tokens": pa.int64(),
        }  # fmt: skip
        self._schema = pa.schema(list(fields.items()))
        self._path, self._file = path, file
        self._temporary = path.with_name(f".{path.name}.part")
        self._writer = pq.ParquetWriter(self._temporary, self._schema)
        self._rows: list[tuple[Any, ...]] = []
        self.count = 0

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            os.replace(self._temporary, self._path)

    def add(self, row: Row, role: str, start: int, tokens: int, length: int) -> None:
        """A document of so many tokens, its mark included, from `start` of its stream on."""
        name = row.id or f"{self._file}#{row.place}"
        sequence, offset = divmod(start, length)
        self._rows.append((name, self._file, row.place, role, sequence, offset, tokens))
        self.count += 1
        if len(self._rows) >= _DOCUMENTS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = zip(*self._rows, strict=True) if self._rows else [()] * len(self._schema)
        arrays = [
            pa.array(list(column), field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


class Record(NamedTuple):
    """What a complete part says of itself."""

    documents: int
    streams: dict[str, dict[str, Any]]
    table: str
    faults: dict[str, int]
    named: list[str]


def read_record(folder: pathlib.Path, number: int) -> Record:
    """The record of a complete part.

    Raises:
      UnreadableFileError: it is torn; names it.
    """
    values = read_json(record_of(folder, number))
    return Record(*(values[name] for name in Record._fields))
