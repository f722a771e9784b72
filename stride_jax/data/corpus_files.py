"""Large corpora wherever they lie: files listed, cut into parts, and read row by row.

A part is what one process tokenises at a time. Parts depend on the files alone, never on how many
processes share them, and none is read as a whole: row groups, lines and records are streamed.
"""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from stride_jax.runtime.files import first_line

_KINDS = ("parquet", "jsonl", "txt", "array_record")
# TFDS writes name-train.array_record-00000-of-00004.
_KIND = re.compile(rf"\.({'|'.join(_KINDS)})(-\d+-of-\d+)?$", re.IGNORECASE)
REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BUFFER = 1 << 20
_ROWS = 64


class CorpusError(ValueError):
    """Input that can't be used as a corpus; names the file and the remedy."""


class SourceFile(NamedTuple):
    """A file of a corpus.

    Attributes:
      name: path within the source, with slashes.
      path: where it is opened: a path of this machine, or an address.
      size: bytes.
    """

    name: str
    path: str
    size: int

    @property
    def kind(self) -> str:
        """One of `parquet`, `jsonl`, `txt`, `array_record`."""
        match = _KIND.search(self.name)
        assert match is not None, "files are listed by their kind"
        return match[1].lower()


class Part(NamedTuple):
    """A piece of a file.

    Attributes:
      file: its number in the list of files.
      first, stop: row groups, bytes or records, by the kind of file; all of a `txt`.
      size: about so many bytes, for progress.
    """

    file: int
    first: int
    stop: int
    size: int


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where documents are in rows.

    Attributes:
      text: column of the text.
      id: column of the id; it may be missing.
      separator: text between documents of a `txt` file; empty: a file is one document.
    """

    text: str = "text"
    id: str = "id"
    separator: str = ""


def list_files(source: str) -> list[SourceFile]:
    """The files of a source, a file or a folder with all below it, in the order of their names.

    Args:
      source: a path, or an address such as `gs://bucket/folder`, which fsspec opens.

    Raises:
      CorpusError: nothing there, nothing of a known kind, or no package for the address.
    """
    files = _remote_files(source) if REMOTE.match(source) else _local_files(source)
    chosen = sorted(file for file in files if _KIND.search(file.name))
    if not chosen:
        what = f"{len(files)} files, none" if files else "no file"
        raise CorpusError(
            f"--source={source} holds {what} ending in one of "
            f"{', '.join(f'.{kind}' for kind in _KINDS)}: give a file or folder of such"
        )
    if empty := [file.name for file in chosen if not file.size]:
        raise CorpusError(f"{source}: {empty[0]} is empty: remove it or put text into it")
    return chosen


def _local_files(source: str) -> list[SourceFile]:
    place = pathlib.Path(source)
    if place.is_file():
        return [SourceFile(place.name, str(place), place.stat().st_size)]
    if not place.is_dir():
        raise CorpusError(f"no file or folder {source}: check --source")
    files = (p for p in place.rglob("*") if p.is_file())
    return [SourceFile(p.relative_to(place).as_posix(), str(p), p.stat().st_size) for p in files]


def _remote_files(source: str) -> list[SourceFile]:
    system, root = _system(source)
    scheme, root = source.partition("://")[0], root.rstrip("/")
    try:
        known = system.find(root, detail=True)
    except OSError as error:
        raise CorpusError(f"{source} can't be listed ({error}): check its name and access") from (
            error
        )
    return [
        SourceFile(
            path.removeprefix(root).lstrip("/") or path.rpartition("/")[2],
            f"{scheme}://{path}",
            int(known[path]["size"]),
        )
        for path in known
    ]


def _system(address: str) -> tuple[Any, str]:
    """What opens an address, and the path there."""
    remedy = "install the package that opens it, or mount it (gcsfuse, s3fs) and give the folder"
    try:
        import fsspec
    except ImportError as error:
        raise CorpusError(f"{address} needs the package fsspec: {remedy}") from error
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise CorpusError(f"{address} can't be opened here ({error}): {remedy}") from error


def open_file(file: SourceFile) -> BinaryIO:
    if not REMOTE.match(file.path):
        return open(file.path, "rb")
    system, path = _system(file.path)
    return system.open(path, "rb")


# ── parts ────────────────────────────────────────────────────────────────────────────────────────


def cut_parts(files: list[SourceFile], size: int, columns: Columns) -> list[Part]:
    """Parts of about `size` bytes, in the order of the files.

    Raises:
      CorpusError: a file that is not what its name says, or that lacks the column of the text.
    """
    return [
        Part(number, *cut)
        for number, file in enumerate(files)
        for cut in _CUTS[file.kind](file, size, columns)
    ]


Cut = tuple[int, int, int]
"""First, stop and bytes of a part."""


def _row_groups(file: SourceFile, size: int, columns: Columns) -> Iterator[Cut]:
    with open_file(file) as raw, parquet_errors(file):
        own = parquet_file(raw)
        if columns.text not in own.schema_arrow.names:
            raise CorpusError(
                f"{file.path} has no column {columns.text!r}: give --text_column as one of "
                f"{', '.join(own.schema_arrow.names)}"
            )
        groups = [own.metadata.row_group(i).total_byte_size for i in range(own.num_row_groups)]
    first, total = 0, 0
    for i, bytes_ in enumerate(groups):
        if total and total + bytes_ > size:
            yield first, i, total
            first, total = i, 0
        total += bytes_
    yield first, len(groups), max(total, 1)


def _byte_ranges(file: SourceFile, size: int, columns: Columns) -> Iterator[Cut]:
    del columns
    for first in range(0, file.size, size):
        stop = min(first + size, file.size)
        yield first, stop, stop - first


def _whole(file: SourceFile, size: int, columns: Columns) -> Iterator[Cut]:
    del size, columns
    yield 0, file.size, file.size


def _records(file: SourceFile, size: int, columns: Columns) -> Iterator[Cut]:
    del columns
    reader = record_reader(file)
    try:
        count = reader.num_records()
    finally:
        reader.close()
    step = max(1, count * size // file.size)
    for first in range(0, count, step):
        stop = min(first + step, count)
        yield first, stop, file.size * (stop - first) // count


def parquet_file(raw: BinaryIO) -> Any:
    import pyarrow.parquet as pq

    # Pages as they are needed, not whole columns of a row group.
    return pq.ParquetFile(raw, buffer_size=_BUFFER, pre_buffer=False)


@contextlib.contextmanager
def parquet_errors(file: SourceFile) -> Iterator[None]:
    """Errors of pyarrow as ours, with the file's name."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{file.path} can't be read as Parquet ({first_line(error)}): write it again or remove "
            "it"
        ) from error


def record_reader(file: SourceFile) -> Any:
    if REMOTE.match(file.path):
        raise CorpusError(
            f"{file.path}: array_record is read from local files; mount the bucket (gcsfuse, "
            "s3fs) and give the folder"
        )
    try:
        from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise CorpusError(f"{file.path} needs the package array_record: install it") from error
    try:
        reader = array_record_module.ArrayRecordReader(file.path)
        if not reader.num_records():
            raise RuntimeError("it holds no record")
    except RuntimeError as error:
        raise unreadable_records(file, error) from error
    return reader


def unreadable_records(file: SourceFile, error: BaseException) -> CorpusError:
    return CorpusError(
        f"{file.path} can't be read as array_record ({first_line(error)}): write it again or "
        "remove it"
    )


_CUTS: dict[str, Callable[[SourceFile, int, Columns], Iterator[Cut]]] = {
    "parquet": _row_groups,
    "jsonl": _byte_ranges,
    "txt": _whole,
    "array_record": _records,
}
