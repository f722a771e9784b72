"""Tokenised splits on disk, complete or absent.

text-<fingerprint>/  tokenizer.json  sources.json  train.npz  …  settings.json (written last)
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from stride_jax.data.documents import Source
from stride_jax.data.packing import Spans
from stride_jax.data.text_examples import TextExamples
from stride_jax.data.tokens import Tokenizer, load_tokenizer
from stride_jax.runtime.files import (
    UnreadableFileError,
    atomic_path,
    file_digest,
    read_arrays,
    read_json,
    reading,
    write_arrays,
    write_json,
)

# To be raised when tokenising, packing or these files change: older folders are then not read.
FORMAT = 2

_REMEDY = "delete its folder to have it written again"
_PLAIN = ("tokenizer.json", "sources.json")  # files without checksums of their own
_ARRAYS = ("inputs_NxT", "labels_NxT", "weights_NxT", "ids")
_SPANS = tuple(field.name for field in dataclasses.fields(Spans))


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether everything was written to a folder."""
    return (pathlib.Path(folder) / "settings.json").exists()


def write(
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer,
    splits: Mapping[str, TextExamples],
    settings: Any,
) -> None:
    """Write splits of one corpus; a folder that a kill left incomplete is written anew."""
    place = pathlib.Path(folder)
    tokenizer.save(place / "tokenizer.json")
    sources = next(iter(splits.values())).sources
    with atomic_path(place / "sources.json") as temporary:
        # One source per line: as indented JSON, a Bible's sources would take 100,000 lines.
        # Metadata that JSON lacks, such as a Parquet column of dates, is stored as text.
        rows = (dataclasses.asdict(source) for source in sources)
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
        temporary.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    digests = {name: file_digest(place / name) for name in _PLAIN}
    for role, split in splits.items():
        arrays = {name: getattr(split, name) for name in _ARRAYS}
        spans = dict(zip(_SPANS, split.spans.columns(), strict=True))
        name = f"{role}.npz"
        digests[name] = write_arrays(place / name, **arrays, **spans)
    write_json(place / "settings.json", {"settings": settings, "files": digests})


def read(folder: str | os.PathLike[str], roles: Iterable[str]) -> dict[str, Any]:
    """Read what `write` wrote: each role's `TextExamples`, and `tokenizer`.

    Raises:
      UnreadableFileError: a file is torn; the message names it and the remedy.
    """
    place = pathlib.Path(folder)
    written = read_json(place / "settings.json")
    with reading(place / "settings.json", "settings of texts", _REMEDY):
        digests = dict(written["files"])
        plain = {name: digests[name] for name in _PLAIN}
    for name, digest in plain.items():
        with reading(place / name, "what was written", _REMEDY):
            if file_digest(place / name) != digest:
                raise ValueError("it is not what was written: its digest differs")
    with reading(place / "sources.json", "sources", _REMEDY):
        rows = json.loads((place / "sources.json").read_text(encoding="utf-8"))
        sources = tuple(Source(**{**row, "labels": tuple(row["labels"])}) for row in rows)
    contents: dict[str, Any] = {"tokenizer": load_tokenizer(place / "tokenizer.json")}
    for role in roles:
        path = place / f"{role}.npz"
        try:
            arrays = read_arrays(path, digests.get(path.name))  # earlier versions named none
        except UnreadableFileError as error:
            raise UnreadableFileError(f"{error}; {_REMEDY}") from error
        with reading(path, "sequences", _REMEDY):
            spans = Spans(*(arrays[name] for name in _SPANS))
            columns = (arrays[name] for name in _ARRAYS)
            contents[role] = TextExamples(*columns, spans=spans, sources=sources)
    return contents
