"""Parquet tables with a note in their metadata, and a digest of both.

Pyarrow is loaded where a table is read or written.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xxhash

from stride_jax.runtime.files import (
    UnreadableFileError,
    atomic_path,
    fingerprint,
    first_line,
    plain,
    refuse_endless,
)
from stride_jax.runtime.machine import refuse_unpacked
from stride_jax.runtime.memory import is_about_memory

_KEY = b"stride_jax"
_XXH3 = "xxh3:"


def write_table(
    path: str | os.PathLike[str], columns: Mapping[str, np.ndarray], note: Mapping[str, Any]
) -> None:
    """Write columns of one length as Parquet, atomically.

    Args:
      path: path of the file.
      columns: arrays by name, in order.
      note: JSON values or settings, stored in the schema's metadata under `stride_jax`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, told = pa.table(dict(columns)), plain(note)
    meta = {_KEY: json.dumps({"digest": _digest(table, told), "note": told}).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(meta), temporary, write_page_checksum=True)


def read_table(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Columns and note of a Parquet file; None for the note if `write_table` did not write it.

    Raises:
      UnreadableFileError: not Parquet, torn, or not what was written; names the file.

    Warns:
      UserWarning: an earlier version wrote it, without a digest.
    """
    try:
        table, nested = bounded_table(path)
        if nested:
            raise ValueError(f"its column {nested[0]!r} holds lists or structures")
        note = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
        if isinstance(note, dict):
            note = _opened(path, table, note)
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        if is_about_memory(error):
            raise MemoryError(f"{path}: {first_line(error)}") from error
        raise UnreadableFileError(
            f"{path} can't be read as Parquet ({first_line(error)}): it is torn, or a file of "
            "another kind"
        ) from error
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return columns, note


def bounded_table(path: str | os.PathLike[str]) -> tuple[Any, list[str]]:
    """A Parquet file as a pyarrow table, unless it would take memory out of proportion.

    A value that is stored once may stand in any number of rows, so texts are read as numbers of a
    dictionary, and written out when their size is known.

    Returns:
      The table, and the names of columns of lists and structures. These are left out: how much they
      hold, no count of rows says.

    Raises:
      ValueError: no regular file, or too large; and what pyarrow raises of a torn one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_endless(path)
    size = os.path.getsize(path)
    with pq.ParquetFile(path) as file:
        # Not `group.column(j)`: it ends the process where a torn footer lacks the column.
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        fields = list(file.schema_arrow)
    nested = [field.name for field in fields if pa.types.is_nested(field.type)]
    flat = [field.name for field in fields if field.name not in nested]
    texts = [field.name for field in fields if _is_text(field.type)]
    rows = sum(max(group.num_rows, 0) for group in groups)
    packed = sum(max(group.total_byte_size, 0) for group in groups)
    refuse_unpacked(8 * rows * len(flat) + packed, size, f"its {rows} rows")
    with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=texts) as file:
        table = file.read(columns=flat)
    for name in texts:
        table = _written_out(table, name, size)
    return table, nested


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _written_out(table: Any, name: str, size: int) -> Any:
    """A table with a column of texts in place of their numbers in a dictionary."""
    import pyarrow.compute as pc

    needed, place = 0, table.column_names.index(name)
    for chunk in table.column(place).chunks:
        lengths = pc.binary_length(chunk.dictionary).to_numpy()  # pyright: ignore[reportAttributeAccessIssue]
        counts = np.bincount(chunk.indices.drop_null().to_numpy(), minlength=len(lengths))
        needed += int(lengths.astype(np.int64) @ counts)
    refuse_unpacked(needed, size, f"its column {name!r}")
    column = table.column(place)
    return table.set_column(place, name, column.cast(column.type.value_type))


def _opened(path: str | os.PathLike[str], table: Any, envelope: dict[str, Any]) -> Any:
    """The note of a table that is what was written."""
    if not envelope.keys() & {"digest", "note"}:
        if "versions" not in envelope:
            return envelope  # a note of somebody else's
        warnings.warn(
            f"{path} was written by an earlier version, without a digest: damage to it can't be "
            "told",
            stacklevel=4,
        )
        return envelope
    whole = envelope.keys() == {"digest", "note"}
    made = _digest if str(envelope.get("digest")).startswith(_XXH3) else _older_digest
    if not whole or made(table, envelope["note"]) != envelope["digest"]:
        raise ValueError("it is not what was written: the digest of its content differs")
    return envelope["note"]


def _digest(table: Any, note: Any) -> str:
    """Hash of names, types and values of the columns, however they are chunked, and of the note."""
    whole = xxhash.xxh3_64(json.dumps(note, sort_keys=True).encode())
    for name in table.column_names:
        column = table[name]
        whole.update(f"\0{name}\0{column.type}\0{column.null_count}\0".encode())
        for part in _strings(column) if _of_strings(column) else _values(column):
            whole.update(part.data)
    return _XXH3 + whole.hexdigest()


def _of_strings(column: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _strings(column: Any) -> Iterator[np.ndarray]:
    """Lengths of all strings, then their bytes as they lie in Arrow's memory."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in column.chunks:
        lengths = pc.fill_null(pc.binary_length(chunk), -1)  # pyright: ignore[reportAttributeAccessIssue]
        yield lengths.to_numpy().astype(np.int64, copy=False)
    kind = np.int64 if pa.types.is_large_string(column.type) else np.int32
    for chunk in column.chunks:
        _, ends, data = chunk.buffers()
        if data is not None and len(chunk):
            first, last = np.frombuffer(ends, kind)[[chunk.offset, chunk.offset + len(chunk)]]
            yield np.frombuffer(data, np.uint8)[first:last]


def _values(column: Any) -> Iterator[np.ndarray]:
    """Numbers; those of a column that lacks some as a whole, as NumPy has no word for nothing."""
    for part in [column] if column.null_count else column.chunks:
        values = np.ascontiguousarray(part.to_numpy(zero_copy_only=False))
        if values.dtype.hasobject:
            raise ValueError(f"a column of {column.type}: only numbers and strings are stored")
        yield values.view(np.uint8)


def _older_digest(table: Any, note: Any) -> str:
    """What earlier versions stored for `_digest`: as strict, and slow."""
    import pyarrow.compute as pc

    parts: list[Any] = [note]
    for name in table.column_names:
        column = table[name]
        parts += [name, str(column.type), column.null_count]
        if _of_strings(column):
            parts.append(pc.binary_length(column).to_numpy())  # pyright: ignore[reportAttributeAccessIssue]
            parts.append(np.frombuffer("".join(column.to_pylist()).encode(), np.uint8))
        else:
            parts.append(column.to_numpy())
    return fingerprint(*parts)
