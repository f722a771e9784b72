"""What a corpus' own files say of a document besides its text, read when an answer shows it.

A prepared folder holds no copy of it; where the files have gone, nothing is said.
"""

import functools
import json
import pathlib
from typing import Any

import numpy as np

from stride_jax.data.corpus_files import (
    CorpusError,
    SourceFile,
    open_file,
    parquet_errors,
    parquet_file,
)
from stride_jax.runtime.files import read_json

_LONGEST = 1000
"""Characters of a value that is shown."""


def metadata(folder: pathlib.Path, file: str, place: int) -> dict[str, Any]:
    """The columns of a document besides its text and id; empty where there are none.

    Args:
      folder: of the prepared corpus.
      file: name of its file in the source.
      place: of its row there, as in the table of documents.
    """
    job = _job(folder)
    own = job[1].get(file)
    if own is None:
        return {}
    try:
        if own.kind == "parquet":
            return _shown(_parquet_row(own, place, job[0]))
        if own.kind == "jsonl":
            return _shown(_json_row(own, place, job[0]))
    except (CorpusError, OSError, ValueError):  # moved, or written anew since
        return {}
    return {}


@functools.lru_cache(maxsize=4)
def _job(folder: pathlib.Path) -> tuple[tuple[str, str], dict[str, SourceFile]]:
    """Columns that are not metadata, and the files of a job by name."""
    job = read_json(folder / "job.json")
    own = job["settings"]
    files = [SourceFile(*row) for row in job["files"]]
    return (own["text_column"], own["id_column"]), {file.name: file for file in files}


def _parquet_row(file: SourceFile, place: int, left_out: tuple[str, str]) -> dict[str, Any]:
    with open_file(file) as raw, parquet_errors(file):
        own = parquet_file(raw)
        schema = own.schema_arrow
        names = [
            field.name for field in schema if field.name not in left_out and not _nested(field.type)
        ]
        sizes = [own.metadata.row_group(i).num_rows for i in range(own.num_row_groups)]
        ends = np.cumsum(sizes)
        if not names or place >= ends[-1]:
            return {}
        group = int(np.searchsorted(ends, place, side="right"))
        table = own.read_row_group(group, columns=names)
        return table.slice(place - int(ends[group]) + sizes[group], 1).to_pylist()[0]


def _nested(kind: Any) -> bool:
    return kind.num_fields > 0


def _json_row(file: SourceFile, place: int, left_out: tuple[str, str]) -> dict[str, Any]:
    with open_file(file) as raw:
        raw.seek(place)
        value = json.loads(raw.readline().decode("utf-8-sig"))
    return {n: v for n, v in value.items() if n not in left_out and not isinstance(v, dict | list)}


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON has; long text is cut."""
    plain = {n: v if isinstance(v, bool | int | float) else str(v) for n, v in values.items()
             if v is not None}  # fmt: skip
    return {n: v[:_LONGEST] if isinstance(v, str) else v for n, v in plain.items()}
