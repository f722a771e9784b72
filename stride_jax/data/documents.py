"""Documents: text with an id and named passages, and readers of the user's own files."""

import collections
import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stride_jax.runtime.files import reading, refuse_endless
from stride_jax.runtime.tables import bounded_table

SUFFIXES = (".txt", ".jsonl", ".parquet")


@dataclasses.dataclass(frozen=True)
class Source:
    """The origin of a text, which an answer shows beside it.

    Attributes:
      id: name of the document, such as `kjv Genesis 1`; parts of a document share it.
      key: name shared by all documents that say the same, such as `Genesis 1` in any translation.
      labels: names of the passages, such as verse numbers; `("",)` for a document in one piece.
      metadata: any other JSON values.
    """

    id: str
    key: str
    labels: tuple[str, ...] = ("",)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and its passages.

    Attributes:
      source: names of the document and its passages.
      text: the whole text.
      starts: index of the first character of each of the source's passages; the first is 0, and a
        passage ends where the next one starts.
    """

    source: Source
    text: str
    starts: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        ascending = list(self.starts) == sorted(set(self.starts)) and self.starts[:1] == (0,)
        if not ascending or len(self.starts) != len(self.source.labels):
            raise ValueError(
                f"document {self.source.id!r} needs one ascending start, from 0, for each of its "
                f"{len(self.source.labels)} passages, not {self.starts}"
            )


def joined(source: Source, passages: Sequence[str], separator: str = " ") -> Document:
    """One document of several passages; a separator belongs to the passage after it.

    >>> joined(Source("a", "a", ("1", "2")), ["In the", "beginning"]).starts
    (0, 6)
    """
    ends = np.cumsum([len(passage) for passage in passages])
    starts = [0, *(ends[:-1] + len(separator) * np.arange(len(passages) - 1)).tolist()]
    return Document(source, separator.join(passages), tuple(starts))


def files_of(
    path: str | os.PathLike[str], suffixes: Sequence[str] = SUFFIXES
) -> list[pathlib.Path]:
    """The files of some kinds at a path: the file itself, or all of a folder, sorted by name.

    Raises:
      ValueError: no such file or folder, or no file of a readable kind.
    """
    place = pathlib.Path(path)
    if place.is_dir():
        files = sorted(p for p in place.rglob("*") if p.suffix.lower() in suffixes)
        if not files:
            raise ValueError(f"folder {place} holds no file ending in one of {list(suffixes)}")
        return files
    if not place.exists():
        raise ValueError(
            f"no file or folder {place}: give a file ending in one of {list(suffixes)}"
        )
    if place.suffix.lower() not in suffixes:
        raise ValueError(f"{place} must end in one of {list(suffixes)}, not {place.suffix!r}")
    return [place]


def read_documents(
    path: str | os.PathLike[str],
    *,
    text_column: str = "text",
    id_column: str = "id",
    separator: str = "",
) -> list[Document]:
    """Read the user's own documents.

    A `.txt` file is one document, or several where `separator` occurs in it. A `.jsonl` line or a
    Parquet row is one document; its other columns become metadata. A document without an id is
    named by its file, within the folder, and by its number in a file of several.

    Args:
      path: file, or folder whose files are all read.
      text_column: column of the text.
      id_column: column of the id; it may be missing.
      separator: text between documents of a `.txt` file, such as three newlines; empty: none.

    Raises:
      ValueError: no such file, an empty or unreadable file or text, a missing column (lists the
        others), a line that isn't JSON, or an id that occurs twice.
    """
    documents = []
    for file in files_of(path):
        rows = list(_rows(file, separator, text_column))
        if not any(str(row[text_column] or "").strip() for _, row in rows):
            raise ValueError(f"{file} holds no text: remove it or put text into it")
        inside = file.name if file == pathlib.Path(path) else file.relative_to(path).as_posix()
        for number, (where, row) in enumerate(rows):
            name = inside if len(rows) == 1 else f"{inside}#{number}"
            documents.append(_document(row, where, name, text_column, id_column))
    counts = collections.Counter(document.source.id for document in documents)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"{len(repeated)} document ids occur more than once in {path}, such as "
            f"{repeated[0]!r}: ids must be unique, so change them or name another id column"
        )
    return documents


def _document(row: dict[str, Any], where: str, name: str, text: str, identity: str) -> Document:
    content = row.pop(text)
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{where}: column {text!r} must hold text, not {content!r}")
    try:
        (name + content + json.dumps(row, ensure_ascii=False, default=str)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} holds {error.object[error.start : error.end]!r}, half of a character that "
            "UTF-8 can't write: mend the text, or the file's name"
        ) from error
    own_id = row.pop(identity, None)
    source_id = name if own_id is None else str(own_id)
    return Document(Source(source_id, source_id, metadata=row), content)


def _rows(file: pathlib.Path, separator: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each document, for messages, and its columns."""
    refuse_endless(file)
    kind = file.suffix.lower()
    if kind == ".txt":
        whole = _whole(file)
        pieces = whole.split(separator) if separator else [whole]
        for number, piece in enumerate(p for p in pieces if p.strip()):
            yield f"{file} document {number}", {text: piece}
        return
    for where, row in json_rows(file) if kind == ".jsonl" else _parquet_rows(file, text):
        _need(text, row, where)
        yield where, row


def _whole(file: pathlib.Path) -> str:
    _refuse_empty(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}): convert it to UTF-8") from error


def _refuse_empty(file: pathlib.Path) -> None:
    if file.stat().st_size == 0:
        raise ValueError(f"{file} is empty: remove it or put text into it")


def json_rows(file: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the columns of each line of a `.jsonl` file.

    Raises:
      ValueError: an empty file, one that is not UTF-8, or a line that is no JSON object.
    """
    # Not splitlines: JSON strings may hold other line separators, such as U+2028.
    for number, line in enumerate(_whole(file).split("\n"), start=1):
        if line.strip():
            where = f"{file} line {number}"
            yield where, _json_row(line, where)


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}); each line must be one object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where} must be an object such as {{'name': …}}, not {line[:40]!r}")
    return row


def _parquet_rows(file: pathlib.Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    _refuse_empty(file)
    with reading(file, "Parquet", "write it again or remove it"):
        table, nested = bounded_table(file)
    if nested:
        warnings.warn(
            f"{file}: columns of lists and structures are not read: {', '.join(nested)}; write "
            "them as text to have them as metadata",
            stacklevel=2,
        )
    _need(text, table.column_names, str(file))
    for number, row in enumerate(table.to_pylist()):
        yield f"{file} row {number}", row


def _need(column: str, columns: Iterable[str], where: str) -> None:
    if column not in columns:
        raise ValueError(f"{where} has no column {column!r}; name one of {sorted(columns)}")
