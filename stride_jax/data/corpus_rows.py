"""Rows of a corpus' files, read one after the other: documents, or what is wrong with them."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from stride_jax.data.corpus_files import (
    Columns,
    CorpusError,
    Part,
    SourceFile,
    open_file,
    parquet_errors,
    parquet_file,
    record_reader,
    unreadable_records,
)

_BUFFER = 1 << 20
_ROWS = 64


class Row(NamedTuple):
    """A row of a file: a document, or what is wrong with it.

    Attributes:
      place: number of the row; in `jsonl` and `txt` files its first byte.
      text: the document; empty for a bad row.
      id: its own id; empty without one.
      fault: why it is no document; empty for a good row.
    """

    place: int
    text: str
    id: str
    fault: str = ""


def read_rows(file: SourceFile, part: Part, columns: Columns) -> Iterator[Row]:
    """The rows of a part, one after the other.

    Raises:
      CorpusError: the file can't be read.
    """
    return _READERS[file.kind](file, part, columns)


def _parquet_rows(file: SourceFile, part: Part, columns: Columns) -> Iterator[Row]:
    with open_file(file) as raw, parquet_errors(file):
        own = parquet_file(raw)
        named = [c for c in (columns.text, columns.id) if c in own.schema_arrow.names]
        place = sum(own.metadata.row_group(i).num_rows for i in range(part.first))
        groups = list(range(part.first, part.stop))
        for batch in own.iter_batches(_ROWS, row_groups=groups, columns=list(dict.fromkeys(named))):
            texts = _values(batch.column(columns.text))
            ids = _values(batch.column(columns.id)) if columns.id in named else [None] * len(texts)
            for text, identity in zip(texts, ids, strict=True):
                yield _row(place, text, identity)
                place += 1


def _values(column: Any) -> list[Any]:
    """Python values of a column; bytes where a string is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return bytes(scalar.as_buffer())


def _json_rows(file: SourceFile, part: Part, columns: Columns) -> Iterator[Row]:
    with open_file(file) as raw:
        # A line belongs to the part that holds its first byte.
        if part.first:
            raw.seek(part.first - 1)
            raw.readline()
        place = raw.tell()
        while place < part.stop and (line := raw.readline()):
            if line.strip():
                yield _json_row(place, line.removeprefix(b"\xef\xbb\xbf"), columns)
            place += len(line)


def _json_row(place: int, line: bytes, columns: Columns) -> Row:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return Row(place, "", "", "not UTF-8")
    except (ValueError, RecursionError):
        return Row(place, "", "", "not JSON")
    if not isinstance(value, dict):
        return Row(place, "", "", "no JSON object")
    if columns.text not in value:
        return Row(place, "", "", f"no {columns.text!r}")
    return _row(place, value[columns.text], value.get(columns.id))


def _text_rows(file: SourceFile, part: Part, columns: Columns) -> Iterator[Row]:
    del part
    mark = columns.separator.encode()
    with open_file(file) as raw:
        for place, piece in _pieces(raw, mark):
            if piece.strip():
                yield _row(place, piece.removeprefix(b"\xef\xbb\xbf"), None)


def _pieces(raw: BinaryIO, mark: bytes) -> Iterator[tuple[int, bytes]]:
    """What lies between marks, with the place of its first byte; all of a file without a mark."""
    if not mark:
        yield 0, raw.read()
        return
    place, held = 0, b""
    while chunk := raw.read(_BUFFER):
        *whole, held = (held + chunk).split(mark)
        for piece in whole:
            yield place, piece
            place += len(piece) + len(mark)
    yield place, held


def _record_rows(file: SourceFile, part: Part, columns: Columns) -> Iterator[Row]:
    reader, decode = record_reader(file), _features(os.path.dirname(file.path))
    try:
        for first in range(part.first, part.stop, _ROWS):
            rows = list(range(first, min(first + _ROWS, part.stop)))
            for place, record in zip(rows, reader.read(rows), strict=True):
                yield _record_row(place, record, columns, decode)
    except (RuntimeError, IndexError) as error:
        raise unreadable_records(file, error) from error
    finally:
        reader.close()


def _record_row(
    place: int, record: bytes, columns: Columns, decode: Callable[[bytes], Any] | None
) -> Row:
    """A record is an example of TFDS, a JSON object, or text itself."""
    if decode is not None:
        value = decode(record)
        if columns.text not in value:
            return Row(place, "", "", f"no {columns.text!r}")
        return _row(place, value[columns.text], value.get(columns.id))
    if record[:1] == b"{":
        return _json_row(place, record, columns)
    return _row(place, record, None)


@functools.lru_cache(maxsize=1)
def _features(folder: str) -> Callable[[bytes], Any] | None:
    """What decodes the examples of a TFDS dataset; None for other folders."""
    if not os.path.exists(os.path.join(folder, "features.json")):
        return None
    try:
        from tensorflow_datasets.core import features
    except ImportError as error:
        raise CorpusError(
            f"{folder} is a dataset of TFDS: pip install tensorflow-datasets to read it"
        ) from error
    own: Any = features.FeaturesDict.from_config(folder)
    return own.deserialize_example_np


def _row(place: int, text: Any, identity: Any) -> Row:
    try:
        if isinstance(text, bytes):
            text = text.decode()
        elif isinstance(text, str):
            text.encode()  # JSON can spell halves of a character
    except UnicodeError:
        return Row(place, "", "", "not UTF-8")
    if not isinstance(text, str):
        return Row(place, "", "", "no text" if text is None else "not text")
    if not text.strip():
        return Row(place, "", "", "no text")
    if isinstance(identity, bytes):
        identity = identity.decode(errors="replace")
    name = "" if identity is None else str(identity)
    return Row(place, text, name.encode(errors="replace").decode())


_READERS: dict[str, Callable[[SourceFile, Part, Columns], Iterator[Row]]] = {
    "parquet": _parquet_rows,
    "jsonl": _json_rows,
    "txt": _text_rows,
    "array_record": _record_rows,
}
