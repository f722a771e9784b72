"""A run that notes its writes, and is struck at one of them: killed, or its disk filled.

    python -m benchmarks.drill.struck LOG ACTION WRITE TURN run --config=… --workdir=…

Python's audit events tell of every file that is opened for writing, made, renamed or removed, just
before it happens, whichever library does it. A write is an event and a path without its numbers.
"""

import collections
import itertools
import os
import pathlib
import random
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.drill.runs import kind_of
from stride_jax.cli.main import main

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# Position of the path in the arguments of each event.
_EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0}

NOTHING = "nothing"


def struck(
    words: Sequence[str], log: pathlib.Path, action: str, write: str, turn: int
) -> list[str]:
    """The words of a process, of which it is struck at its n-th write of a kind.

    Args:
      words: python -m stride_jax run …
      log: file for its writes.
      action: `kill`, `fill` or `nothing`.
      write: as in `writes`.
      turn: n, from 0.
    """
    head = words.index("stride_jax")
    own = ["benchmarks.drill.struck", str(log), action, write, str(turn)]
    return [*words[:head], *own, *words[head + 1 :]]


def writes(log: pathlib.Path) -> list[str]:
    """The writes of a process in order, such as `open bank/*/.models-*.npz.part`."""
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def place(write: str) -> str:
    """The stage's folder that a write is below, or the file's own name.

    >>> place("open bank/*/.models-*.npz.part")
    'bank'
    """
    return write.partition(" ")[2].partition("/")[0]


def drawn(all_writes: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """So many kinds of write, from every place in turn."""
    kinds = list(dict.fromkeys(all_writes))
    rng.shuffle(kinds)
    turns: dict[str, list[str]] = collections.defaultdict(list)
    for write in kinds:
        turns[place(write)].append(write)
    several = itertools.zip_longest(*turns.values())
    return [write for row in several for write in row if write is not None][:count]


def listen(workdir: pathlib.Path, log: pathlib.Path, strike: Callable[[str], None]) -> None:
    """Note each write below a folder and call `strike` with it before it happens."""
    home, busy = str(workdir.absolute()), []
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def heard(event: str, args: tuple[Any, ...]) -> None:
        where = _EVENTS.get(event)
        if where is None or busy or (event == "open" and not _writes(*args)):
            return
        path = args[where]
        if isinstance(path, int):
            return
        path = os.path.abspath(os.fsdecode(path))
        if not path.startswith(home + os.sep) or path.endswith(".running"):
            return
        busy.append(path)  # what follows writes too
        write = f"{event} {kind_of(path[len(home) + 1 :])}"
        os.write(file, f"{write}\n".encode())
        strike(write)
        busy.clear()

    sys.addaudithook(heard)


def _writes(path: Any, mode: Any, flags: int) -> bool:
    del path, mode
    return bool(flags & _WRITING)


def fill(folder: pathlib.Path) -> None:
    """Take all room of the file system that a folder is on, with a file beside the folder."""
    with open(folder.parent / "filler", "wb") as file:
        left = os.statvfs(folder.parent)
        os.posix_fallocate(file.fileno(), 0, max(left.f_bavail * left.f_frsize, 1))


def _program(log: str, action: str, write: str, turn: str, *words: str) -> int:
    workdir = pathlib.Path(next(w for w in words if w.startswith("--workdir="))[10:])
    seen = [0]

    def strike(found: str) -> None:
        if found != write or action == NOTHING:
            return
        seen[0] += 1
        if seen[0] != int(turn) + 1:
            return
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        fill(workdir)

    listen(workdir, pathlib.Path(log), strike)
    sys.argv = ["stride_jax", *words]
    return main(words)


if __name__ == "__main__":
    sys.exit(_program(*sys.argv[1:]))
