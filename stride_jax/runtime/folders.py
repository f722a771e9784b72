"""Folders that programs write to: on a file system, or refused."""

import os
import pathlib
import re

_LONGEST = 255
# One slash: a path object has folded those of gs://bucket.
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_folder(path: str | os.PathLike[str], name: str = "workdir") -> pathlib.Path:
    """A folder to write to, which may exist; nothing is created.

    Args:
      path: path of the folder.
      name: name of the setting, for messages.

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
    if _REMOTE.match(text):
        raise ValueError(
            f"{name}={text!r}: these are local folders for now; mount the bucket (gcsfuse, s3fs, "
            "xpk storage attach) and give the folder"
        )
    if not text:
        raise ValueError(f"{name}='' is empty: give a folder")
    if bad := [c for c in "[]*?\\" if c in text]:
        raise ValueError(
            f"{name}={text!r} holds {bad[0]!r}, which orbax does not read as it is: give a name "
            "without"
        )
    folder = pathlib.Path(text)
    if long := [part for part in folder.parts if len(os.fsencode(part)) > _LONGEST]:
        raise ValueError(
            f"{name} has a part of {len(os.fsencode(long[0]))} bytes, {long[0][:20]!r}…: file "
            f"systems take {_LONGEST}; give a shorter one"
        )
    there = next((p for p in (folder, *folder.absolute().parents) if os.path.lexists(p)), folder)
    if not there.is_dir():
        where = "is" if there == folder else f"lies below {there}, which is"
        raise ValueError(f"{name}={text!r} {where} a file: give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name}={text!r}: this user can't write to {there}: give another folder")
    return folder
