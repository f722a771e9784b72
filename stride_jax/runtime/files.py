"""Atomic writes and fingerprints, which make a stage's product safe to reuse.

A product is written to a temporary name beside its target and renamed, so a kill leaves either
the old file or the new one. A fingerprint is a hash of everything that a product depends on, so a
product whose inputs have changed is never reused.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
import xxhash

from stride_jax.runtime import npz
from stride_jax.runtime.memory import is_about_memory

TEMPORARY = r"\..+\.[a-z0-9_]{8}\.part"
"""What the names of temporary files match."""


class UnreadableFileError(ValueError):
    """A file that can't be read for what it should be; names it, what is wrong, and the remedy."""


def plain(value: Any) -> Any:
    """Settings as JSON values: dataclasses and mappings become dicts, tuples lists.

    A field declared by `added` is left out at its default: products that are older than the field
    keep their hashes.

    >>> plain({"a": (1, 2.5), "b": None})
    {'a': [1, 2.5], 'b': None}
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: f for f in dataclasses.fields(value)}
        own = {name: getattr(value, name) for name in fields}
        return {n: plain(v) for n, v in own.items() if not _left_out(fields[n], v)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value


def without_nan(value: Any) -> Any:
    """JSON values, null in place of figures that could not be computed.

    >>> without_nan({"a": [1.0, float("nan")]})
    {'a': [1.0, None]}
    """
    if isinstance(value, dict):
        return {name: without_nan(v) for name, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def added(default: Any) -> Any:
    """A dataclass' field that came after products were written, none of which are invalidated."""
    return dataclasses.field(default=default, metadata={"added": True})


def _left_out(field: dataclasses.Field[Any], value: Any) -> bool:
    return bool(field.metadata.get("added")) and value == field.default


def fingerprint(*parts: Any) -> str:
    """Hash of settings and arrays: 16 hexadecimal digits, equal only for equal contents.

    Args:
      *parts: JSON-like values, frozen dataclasses, or numpy arrays (shape, dtype and bytes count).

    Returns:
      16 hexadecimal digits.

    >>> fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})
    True
    >>> fingerprint(np.zeros(2)) == fingerprint(np.zeros((2, 1)))
    False
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.shape}{part.dtype.str}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(json.dumps(plain(part), sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Hash of a file's bytes, 16 hexadecimal digits."""
    refuse_endless(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def content_digest(path: str | os.PathLike[str]) -> str:
    """Hash of a large file's bytes against damage, as fast as they are read: `xxh3:` and 16 digits.

    Names that depend on a file's content are made from `file_digest`, which nobody can forge.
    """
    with open(path, "rb") as file:
        return f"xxh3:{hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()}"


@contextlib.contextmanager
def disk_named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give errors of the file system that name no file, as those of a full disk do, this path."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def appended(path: str | os.PathLike[str]) -> IO[bytes]:
    """A file opened to be appended to, unbuffered; a link that stands there is not followed.

    Raises:
      UnreadableFileError: it is a link, or no file.
    """
    _refuse_link(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise UnreadableFileError(f"{path} is no regular file, which a run would write: remove it")
    return open(path, "ab", buffering=0, opener=_no_link)


def _refuse_link(path: str | os.PathLike[str]) -> None:
    if os.path.islink(path):
        raise UnreadableFileError(
            f"{os.fspath(path)} is a link to {os.readlink(path)}, which a run would write to: "
            "remove the link"
        )


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, renamed onto it when the block ends without an error."""
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    # mkstemp's own mode is 0600; a product should be as readable as any other file here.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)
    temporary = pathlib.Path(name)
    try:
        with disk_named(target):
            yield temporary
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file of text as a whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write settings or results as indented JSON, atomically; an object with its `digest`."""
    told = plain(value)
    if isinstance(told, dict):
        told = told | {"digest": fingerprint(told)}
    write_text(path, json.dumps(told, indent=1) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote, without the digest; what has none is read as it is.

    Raises:
      UnreadableFileError: the file is torn, no JSON, or not what was written; the message names it.
    """
    with reading(path, "JSON", "write it again, or copy it anew"):
        told = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        if isinstance(told, dict) and "digest" in told and told.pop("digest") != fingerprint(told):
            raise ValueError("it is not what was written: the digest of its content differs")
        return told


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: str, remedy: str) -> Iterator[None]:
    """Whatever goes wrong while a file is read, in one error that names it.

    Args:
      path: path of the file; anything but a regular file is refused, a device has no end.
      kind: what it should be.
      remedy: what to do about it.

    Raises:
      UnreadableFileError: in place of any error but that there is no such file.

    >>> with reading("/dev/null", "JSON", "give a file"):
    ...     pass
    Traceback (most recent call last):
    stride_jax.runtime.files.UnreadableFileError: /dev/null can't be read as JSON (it is no \
regular file): give a file
    """
    with naming(path, kind, remedy):
        refuse_endless(path)
        yield


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], kind: str, remedy: str) -> Iterator[None]:
    """As `reading`, of what comes from a folder.

    >>> with naming("runs/x", "settings", "make it again"):
    ...     {}["seconds"]
    Traceback (most recent call last):
    stride_jax.runtime.files.UnreadableFileError: runs/x can't be read as settings (it lacks \
'seconds'): make it again
    """
    try:
        yield
    except (FileNotFoundError, ImportError, UnreadableFileError):
        raise
    except Exception as error:  # what a library raises depends on the place of the damage
        missing = isinstance(error, KeyError)
        reason = f"it lacks {first_line(error)}" if missing else first_line(error)
        raise UnreadableFileError(f"{path} can't be read as {kind} ({reason}): {remedy}") from error


def refuse_endless(path: str | os.PathLike[str]) -> None:
    """Refuse devices, pipes and folders: reading them has no end, or never begins.

    Raises:
      ValueError: it is there, and no file.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no regular file")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none.

    >>> first_line(KeyError()), first_line(ValueError("a\\nb"))
    ('KeyError', 'a')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def write_arrays(path: str | os.PathLike[str], **arrays: Any) -> str:
    """Write named arrays as an uncompressed `.npz`, atomically; returns their digest."""
    with atomic_path(path) as temporary:
        return npz.write(temporary, {n: np.asarray(v) for n, v in arrays.items()})


def read_arrays(path: str | os.PathLike[str], digest: str | None = None) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote.

    Args:
      path: path of the file.
      digest: what `write_arrays` returned, to tell another whole file from this one; any file is
        read by default.

    Raises:
      UnreadableFileError: the file is torn, no `.npz`, unpacks to more than it holds, or is not
        what was written; the message names it.
      MemoryError: it is larger than the memory that is left; names it.
    """
    try:
        refuse_endless(path)
        if digest is not None and (stored := npz.stored_digest(path)) != digest:
            raise ValueError(f"it is another file: its digest is {stored}, not {digest}")
        return npz.read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and zipfile raise a different error for each kind of tear
        if is_about_memory(error):
            raise MemoryError(f"{path}: {first_line(error)}") from error
        raise UnreadableFileError(
            f"{path} can't be read as arrays ({first_line(error)})"
        ) from error
