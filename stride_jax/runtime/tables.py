"""Parquet tables with a note in their metadata; pyarrow is loaded where one is read or written."""

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from stride_jax.runtime.files import UnreadableFileError, atomic_path, plain

_KEY = b"stride_jax"


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

    meta = {_KEY: json.dumps(plain(note)).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(dict(columns)).replace_schema_metadata(meta), temporary)


def read_table(
    path: str | os.PathLike[str],
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None]:
    """Columns and note of a Parquet file; None for the note if `write_table` did not write it.

    Raises:
      UnreadableFileError: not Parquet, or torn; names the file.
    """
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        note = json.loads((table.schema.metadata or {}).get(_KEY, b"null"))
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow raises many kinds
        raise UnreadableFileError(
            f"{path} can't be read as Parquet ({error}): it is torn, or a file of another kind"
        ) from error
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return columns, note
