"""Splits as memory-mapped files, of which each process reads only the rows that it works on."""

import os
import pathlib
import shutil

import numpy as np

from stride_jax.examples import Examples
from stride_jax.runtime.files import (
    UnreadableFileError,
    content_digest,
    read_json,
    reading,
    write_json,
)

_COLUMNS = ("inputs", "labels", "ids", "keys")


def write_splits(
    folder: str | os.PathLike[str], splits: dict[str, Examples], num_classes: int
) -> None:
    """Write splits for `map_splits`, whole or not at all, unless they are written already."""
    home = pathlib.Path(folder)
    if home.exists():
        return
    fresh = home.with_name(f".{home.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    digests = {}
    for role, examples in splits.items():
        for column in _COLUMNS:
            if (value := getattr(examples, column)) is not None:
                file = fresh / f"{role}-{column}.npy"
                np.save(file, value, allow_pickle=False)
                digests[file.name] = content_digest(file)
    contents = {"num_classes": num_classes, "roles": list(splits), "files": digests}
    write_json(fresh / "splits.json", contents)
    fresh.rename(home)


def map_splits(
    folder: str | os.PathLike[str], *, check: bool = True
) -> tuple[dict[str, Examples], int]:
    """The splits of a folder and their number of classes; inputs and labels stay on disk.

    Args:
      folder: what `write_splits` wrote.
      check: whether every file is compared with its digest first, which reads all of them once.
        One process of a job does so before the others open them: they share the files, and each
        needs only its own rows. What a disk damages later, or sends wrong to one process alone, is
        not found.

    Raises:
      UnreadableFileError: a file is missing, torn, or not what was written; names it and the
        remedy.
    """
    home = pathlib.Path(folder)
    remedy = f"remove {home} to have it written again"
    try:
        contents = read_json(home / "splits.json")
    except (UnreadableFileError, FileNotFoundError) as error:
        raise UnreadableFileError(f"{error}; {remedy}") from error
    with reading(home / "splits.json", "splits", remedy):
        num_classes, roles = int(contents["num_classes"]), [str(r) for r in contents["roles"]]
        digests = {str(name): digest for name, digest in contents.get("files", {}).items()}
        if odd := [name for name in (*roles, *digests) if not _is_name(name)]:
            raise ValueError(f"a split is named {odd[0]!r}")
    for name, digest in digests.items() if check else ():
        file = home / name
        if not file.exists() or content_digest(file) != digest:
            raise UnreadableFileError(
                f"{file} is missing, or not what was written: its digest differs; {remedy}"
            )

    def column(role: str, name: str) -> np.ndarray:
        mode, file = None if name in ("ids", "keys") else "r", home / f"{role}-{name}.npy"
        with reading(file, "an array", remedy):
            array = np.load(file, mmap_mode=mode, allow_pickle=False)
            if not isinstance(array, np.ndarray) or array.size > os.path.getsize(file):
                raise ValueError("it holds no array of a size that it could have")
            return array

    def examples(role: str) -> Examples:
        keys = column(role, "keys") if (home / f"{role}-keys.npy").exists() else None
        inputs, labels, ids = (column(role, name) for name in ("inputs", "labels", "ids"))
        with reading(home / "splits.json", "splits", remedy):
            return Examples.trusted(inputs, labels, ids, None, keys)

    return {role: examples(role) for role in roles}, num_classes


def _is_name(name: str) -> bool:
    """Whether a name of a file leads nowhere else."""
    return pathlib.PurePath(name).name == name and "\0" not in name
