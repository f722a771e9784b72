"""Memory that this process may have, and errors that say there is none left."""

import os
import pathlib
import resource
from typing import NamedTuple

# How XLA and C++ say that memory is gone; Python, numpy and Arrow have an error of it.
_SAID = ("RESOURCE_EXHAUSTED", "ut of memory", "bad_alloc", "Cannot allocate memory")
# What is exhausted as well, and no memory: a disk, its quota, numbers of files.
_OTHERS = ("No space left", "quota", "open files")


def is_about_memory(error: BaseException) -> bool:
    """Whether an error says that memory is gone.

    >>> is_about_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."))
    True
    >>> is_about_memory(ValueError("RESOURCE_EXHAUSTED: write: No space left on device"))
    False
    """
    text = str(error)
    said = any(word in text for word in _SAID) and not any(word in text for word in _OTHERS)
    return isinstance(error, MemoryError) or said


class Limit(NamedTuple):
    """A limit of memory.

    Attributes:
      name: what has it, in words.
      whole: its bytes.
      left: bytes of it that this process may still take; others' are taken for gone by then.
    """

    name: str
    whole: int
    left: int


def memory_bytes() -> int | None:
    """Memory this process may have: of the machine, its cgroup and its own limits; None if unknown.

    >>> memory_bytes() is None or memory_bytes() > 2**20
    True
    """
    return min((one.whole for one in limits()), default=None)


def limits(proc: str = "/proc", cgroups: str = "/sys/fs/cgroup") -> list[Limit]:
    """Every limit of this process's memory that is known.

    Args:
      proc, cgroups: where the system tells of processes, and of their groups.
    """
    own, swap = _kib(f"{proc}/self/status"), _kib(f"{proc}/meminfo").get("SwapTotal", 0)
    resident, found = own.get("VmRSS", 0), []
    if hasattr(os, "sysconf"):
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found.append(Limit("this machine's memory", whole, whole + swap - resident))
    for whole in _group_limits(pathlib.Path(proc), pathlib.Path(cgroups)):
        found.append(Limit("this cgroup's memory", whole, whole + swap - resident))
    whole = resource.getrlimit(resource.RLIMIT_AS)[0]
    if whole != resource.RLIM_INFINITY:
        left = whole - own.get("VmSize", 0)
        found.append(Limit("this process's address space (ulimit -v)", whole, left))
    return found


def _kib(path: str) -> dict[str, int]:
    """Bytes by name from a file of lines such as `VmRSS:  1024 kB`; none where there is no file."""
    try:
        lines = pathlib.Path(path).read_text().splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {w[0].rstrip(":"): 1024 * int(w[1]) for w in words if w[-1:] == ["kB"]}


def _group_limits(proc: pathlib.Path, cgroups: pathlib.Path) -> list[int]:
    """Limits of the process's cgroup and of those around it, of either version."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    files = {cgroups / "memory.max", cgroups / "memory/memory.limit_in_bytes"}
    for _, controllers, path in (line.split(":", 2) for line in lines):
        inside = pathlib.PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            if not controllers:
                files.add(cgroups / group / "memory.max")
            elif "memory" in controllers.split(","):
                files.add(cgroups / "memory" / group / "memory.limit_in_bytes")
    found = []
    for file in files:
        try:
            found.append(int(file.read_text()))
        except (OSError, ValueError):  # absent, or `max`
            continue
    return found
