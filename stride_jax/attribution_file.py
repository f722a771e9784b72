"""The file of an attribution: Parquet, a row for each score, and the rest as a note beside them."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import scipy.sparse

from stride_jax.runtime.files import UnreadableFileError, reading
from stride_jax.runtime.tables import read_table, write_table
from stride_jax.unit import Unit, words

T = TypeVar("T")

# Of the file; raised when its columns or its note change.
_FORMAT = 1
# Letters of all ids and keys up to which a file lists them: Parquet's readers refuse long notes.
_LISTED = 2**24
_REMEDY = "give the path of a file that it wrote"


def write(
    path: str | os.PathLike[str],
    attribution: Any,
    columns: Mapping[str, np.ndarray],
    top_k: int | None,
    all_ids: bool | None,
) -> None:
    """Write an attribution, atomically.

    Args:
      path: of the file.
      attribution: an `Attribution`, of which the note tells.
      columns: one value for each score that is stored.
      top_k: how many proponents and opponents of a query those are; None where they are all.
      all_ids: whether to list the ids of all training examples; None where they are short.
    """
    own = attribution
    if all_ids is None:
        all_ids = _letters(own.train_ids) + _letters(own.train_keys) <= _LISTED
    note = {
        "format": _FORMAT,
        "settings": own.settings,
        "versions": own.versions,
        "top_k": top_k,
        "query_ids": own.query_ids.tolist(),
        "num_train": len(own.train_ids),
        "train_ids": own.train_ids.tolist() if all_ids else None,
        "query_labels": _listed(own.query_labels),
        "train_labels": _listed(own.train_labels) if all_ids else None,
        "train_keys": _listed(own.train_keys) if all_ids else None,
        "diagnostics": {n: (v.dtype.str, v.tolist()) for n, v in own.diagnostics.items()},
        "sources": list(own.sources),
        "sign": "positive = proponent",
        "unit": None if own.unit is None else [own.unit.slope, *own.unit.ci95],
        "scores": words(own.unit),
    }
    write_table(path, columns, note)


def read(path: str | os.PathLike[str], made: Callable[..., T]) -> T:
    """Read an attribution back; `made` makes it of its fields.

    Raises:
      UnreadableFileError: not Parquet, not written by `write`, or of another format.
    """
    table, note = _table_and_note(path)
    with reading(path, "an attribution", _REMEDY):
        query_ids, stored_ids = np.array(note["query_ids"], str), table["train_id"].astype(str)
        if note["train_ids"] is None:
            train_ids, at = np.unique(stored_ids, return_index=True)
            labels = table["train_label"][at] if "train_label" in table else None
        else:
            train_ids, labels = np.array(note["train_ids"], str), note.get("train_labels")
        pairs = _positions(query_ids, table["query_id"]), _positions(train_ids, stored_ids)
        shape = (len(query_ids), len(train_ids))
        diagnostics = note.get("diagnostics", {}).items()
        sources = tuple(note.get("sources", ()))
        return made(
            query_ids,
            train_ids,
            scipy.sparse.csr_array((table["score"], pairs), shape=shape),
            note["settings"],
            note["versions"],
            query_labels=note.get("query_labels"),
            train_labels=labels,
            diagnostics={name: np.array(v, dtype) for name, (dtype, v) in diagnostics},
            exact=_exact(table, sources, pairs, shape),
            sources=sources,
            train_keys=note.get("train_keys"),
            unit=_unit(note.get("unit")),
        )


def _table_and_note(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    table, note = read_table(path)
    needed = {"query_ids", "train_ids", "settings", "versions"}
    if not isinstance(note, dict) or not needed <= set(note):
        raise UnreadableFileError(
            f"{path} holds no attribution: Attribution.save did not write it; {_REMEDY}"
        )
    if (number := note.get("format", _FORMAT)) != _FORMAT:
        raise UnreadableFileError(
            f"{path} has format {number}, where this library reads {_FORMAT}: read it with the "
            f"stride-jax that wrote it, {note['versions'].get('stride-jax')}"
        )
    return table, note


def _exact(
    table: Mapping[str, np.ndarray], sources: tuple[str, ...], pairs: Any, shape: tuple[int, int]
) -> scipy.sparse.csr_array | None:
    """Bits of the sources of the scores that a file holds; None in one that does not say."""
    if "found_by" not in table:
        return None
    place = {name: 1 << i for i, name in enumerate(sources)}
    bits = {
        said: sum(place.get(name, 0) for name in said.split("+"))
        for said in np.unique(table["found_by"].astype(str)).tolist()
    }
    data = np.array([bits[said] for said in table["found_by"].astype(str).tolist()], np.uint8)
    bits_QxN = scipy.sparse.csr_array((data, pairs), shape=shape)
    bits_QxN.eliminate_zeros()
    return bits_QxN


def _unit(stored: list[float] | None) -> Unit | None:
    return None if stored is None else Unit(stored[0], (stored[1], stored[2]))


def _positions(ids: np.ndarray, wanted: np.ndarray) -> list[int]:
    place = {name: i for i, name in enumerate(ids.tolist())}
    return [place[name] for name in wanted.tolist()]


def _listed(column: np.ndarray | None) -> list | None:
    return None if column is None else column.tolist()


def _letters(names: Any) -> int:
    """Letters that names have at most."""
    return 0 if names is None else len(names) * names.dtype.itemsize // 4
