"""One run at a time in a folder, and no litter of runs that were killed there."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import socket
import time
from collections.abc import Iterator

from stride_jax.runtime.files import TEMPORARY, appended, read_json

_NAME = ".running"
# Half-written files of ours, checkpoints of orbax, datasets of TFDS.
_LITTER = re.compile(rf"{TEMPORARY}|.*\.orbax-checkpoint-tmp.*|incomplete\..*", re.DOTALL)


class BusyError(ValueError):
    """A folder in which another run is at work."""


@contextlib.contextmanager
def only_run(folder: pathlib.Path) -> Iterator[None]:
    """Keep others out of a folder while the block runs, and remove what killed runs left in it.

    The kernel gives the lock back when a process ends, however it ends. Of several processes of one
    job the first one alone calls it.

    Args:
      folder: it is created.

    Raises:
      BusyError: another run is at work there; with its host, process and start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with appended(folder / _NAME) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(
                f"{folder} is in use by another run{_who(folder / _NAME)}: wait until it ends, or "
                "take another --workdir"
            ) from error
        file.truncate(0)
        began = time.strftime("%Y-%m-%d %H:%M:%S %z")
        who = {"host": socket.gethostname(), "process": os.getpid(), "began": began}
        file.write(json.dumps(who).encode())
        for path in litter(folder):
            # A link goes, and what it leads to stays.
            is_folder = path.is_dir() and not path.is_symlink()
            shutil.rmtree(path) if is_folder else path.unlink(missing_ok=True)
        yield
        file.truncate(0)


def _who(path: pathlib.Path) -> str:
    """Host, process and start of the run that wrote a lock; empty while it is being written."""
    try:
        known = read_json(path)
        return f" (process {known['process']} on {known['host']}, began {known['began']})"
    except (ValueError, KeyError, TypeError):
        return ""


def litter(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files and folders that writes left behind when they were killed, the outermost ones."""
    found: list[pathlib.Path] = []
    for home, folders, files in os.walk(folder):
        bad = [name for name in folders if _LITTER.fullmatch(name)]
        folders[:] = [name for name in folders if name not in bad]
        names = bad + [name for name in files if _LITTER.fullmatch(name)]
        found += [pathlib.Path(home) / name for name in names]
    return found
