"""Folders that programs read and write: on a file system, or refused."""

import os
import pathlib
import re

_LONGEST = 255
# Of Linux' 4,096 bytes, less the longest path below a run's folder and the names of its unfinished
# writes.
_LONGEST_PATH = 3584
# One slash: a path object has folded those of gs://bucket.
_REMOTE = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):(/|$)")


def local_folder(
    path: str | os.PathLike[str], name: str = "workdir", *, writable: bool = True
) -> pathlib.Path:
    """A folder to write to or to read, which may exist; nothing is created.

    Args:
      path: path of the folder.
      name: name of the setting, for messages.
      writable: whether this user must be able to write to it.

    Raises:
      ValueError: an address of a bucket or another place that is no file system, a file, something
        below a file, a name that file systems or orbax can't have, or a place that this user can't
        write to.

    >>> local_folder("gs://bucket/run")
    Traceback (most recent call last):
    ValueError: workdir='gs://bucket/run': these are local folders for now; mount the bucket \
(gcsfuse, s3fs, xpk storage attach) and give the folder
    """
    text = os.fspath(path)
    _refuse_address(text, name)
    folder = pathlib.Path(text)
    try:
        whole = folder.absolute()
    except FileNotFoundError:
        raise ValueError(
            f"{name}={text!r} is relative to the current folder, which was removed: change to "
            "another, or give the whole path"
        ) from None
    _refuse_name(text, whole, name)
    there = next((p for p in (folder, *whole.parents) if os.path.lexists(p)), folder)
    if not there.is_dir():
        where = "is" if there == folder else f"lies below {there}, which is"
        link = "a link that leads nowhere or in a circle" if there.is_symlink() else "a file"
        what = "a link to a file" if there.exists() and there.is_symlink() else link
        raise ValueError(f"{name}={text!r} {where} {what}: give a folder")
    if writable and not can_write(there):
        raise ValueError(f"{name}={text!r}: this user can't write to {there}: give another folder")
    return folder


def can_write(folder: pathlib.Path) -> bool:
    """Whether this user can make files in a folder.

    >>> can_write(pathlib.Path("/no/such/folder"))
    False
    """
    return os.access(folder, os.W_OK | os.X_OK)


def _refuse_address(text: str, name: str) -> None:
    """Names that are no path of this machine, whatever libraries make of them."""
    if not text:
        raise ValueError(f"{name}='' is empty: give a folder")
    if (address := _REMOTE.match(text)) and address["scheme"].lower() == "file":
        raise ValueError(f"{name}={text!r} is an address: give the path alone, without file:")
    if address:
        raise ValueError(
            f"{name}={text!r}: these are local folders for now; mount the bucket (gcsfuse, s3fs, "
            "xpk storage attach) and give the folder"
        )
    if str(pathlib.Path(text)).startswith("~"):  # a path object has folded ./~
        raise ValueError(
            f"{name}={text!r} begins with '~', which shells leave as it is here and libraries "
            "may not: write $HOME in its place, or the whole path"
        )


def _refuse_name(text: str, whole: pathlib.Path, name: str) -> None:
    """Names that file systems, or the libraries that write there, read otherwise than they are."""
    if bad := [c for c in "[]*?\\\0" if c in str(whole)]:
        raise ValueError(
            f"{name}={text!r} holds {bad[0]!r}{_inside(text, whole, bad[0])}, which orbax does not "
            "read as it is: give a name without"
        )
    if not _is_utf8(whole):
        raise ValueError(
            f"{name}={text!r} is not the same in UTF-8, which orbax writes: give a name in UTF-8, "
            "or set PYTHONUTF8=1 where it is one"
        )
    if long := [part for part in whole.parts if len(os.fsencode(part)) > _LONGEST]:
        raise ValueError(
            f"{name} has a part of {len(os.fsencode(long[0]))} bytes, {long[0][:20]!r}…: file "
            f"systems take {_LONGEST}; give a shorter one"
        )
    if (size := len(os.fsencode(whole))) > _LONGEST_PATH:
        raise ValueError(
            f"{name} has a path of {size} bytes, {text[:20]!r}…: with the names of products below "
            f"it, systems take {_LONGEST_PATH}; give a shorter one"
        )


def _inside(text: str, whole: pathlib.Path, character: str) -> str:
    return "" if character in text else f" in its whole path {str(whole)!r}"


def _is_utf8(whole: pathlib.Path) -> bool:
    """Whether Python's bytes of a path are those of libraries that take it for UTF-8."""
    try:
        return os.fsencode(whole) == str(whole).encode()
    except UnicodeEncodeError:
        return False
