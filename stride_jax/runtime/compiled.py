"""Compiled programs on disk, so that the next process loads what this one compiled.

    <$XDG_CACHE_HOME or ~/.cache>/stride_jax/compiled/<hash of jaxlib and this CPU>

`JAX_COMPILATION_CACHE_DIR` names another folder, and `JAX_ENABLE_COMPILATION_CACHE=false` turns it
off. A program of a CPU holds instructions of that kind of CPU, so each kind has its own folder.
JAX writes every program under a name that its content decides, and compiles what it cannot read:
two processes may share the folder.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import re
import stat
from typing import Any

from stride_jax.runtime.folders import can_write

_BOUND = 2**30
_DEVICES = re.compile(r"xla_force_host_platform_device_count=(\d+)")


def keep_programs(bound: int = _BOUND) -> str | None:
    """Have JAX read and write compiled programs in this user's folder; once, before any is needed.

    Args:
      bound: bytes the folder may hold when a process starts; the oldest files go.

    Returns:
      What is wrong with the folder, where nothing can be kept; None else.
    """
    import jax

    config: Any = jax.config
    if not config.jax_enable_compilation_cache or config.jax_compilation_cache_dir:
        return None  # the user's own choice
    if _fake_devices(config.jax_num_cpu_devices):
        return None  # writing their programs crashes JAX now and then
    try:
        folder = folder_of_programs(bound)
    except OSError as error:
        return f"{error.filename or 'the folder'} can't be used ({error.strerror or error})"
    except (ValueError, RuntimeError) as error:  # not one's own, or no home
        return str(error)
    config.update("jax_compilation_cache_dir", str(folder))
    # A question needs some hundred small programs besides the large ones.
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return None


def folder_of_programs(bound: int = _BOUND) -> pathlib.Path:
    """This user's folder for this machine's programs, made and cut to its bound.

    Raises:
      OSError: it can't be made or read.
      ValueError: others can write to it, or this user can't.
    """
    folder = _home() / "stride_jax" / "compiled" / _machine()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = folder.stat()
    foreign = own.st_uid != getattr(os, "getuid", lambda: own.st_uid)()
    if foreign or own.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(
            f"others can write to {folder}, and what lies there is run: chmod go-w it, or remove it"
        )
    if not can_write(folder):
        raise ValueError(f"this user can't write to {folder}")
    _shorten(folder, bound)
    return folder


def _home() -> pathlib.Path:
    given = os.environ.get("XDG_CACHE_HOME", "")
    # The standard has paths that are relative ignored.
    return pathlib.Path(given) if os.path.isabs(given) else pathlib.Path.home() / ".cache"


def _machine() -> str:
    """Name of a folder for programs of this jaxlib that run on this kind of CPU."""
    parts = [importlib.metadata.version("jaxlib"), platform.machine()]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        for name in ("model name", "flags", "Features"):
            parts += [line for line in lines if line.startswith(name)][:1]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _fake_devices(configured: int) -> bool:
    """Whether this process makes several devices of one CPU."""
    flag = _DEVICES.search(os.environ.get("XLA_FLAGS", ""))
    return configured > 1 or (flag is not None and int(flag[1]) > 1)


def _shorten(folder: pathlib.Path, bound: int) -> None:
    """Remove the oldest files of a folder until it holds no more than `bound` bytes."""
    files = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process removed it
            own = path.stat()
            files.append((own.st_mtime, own.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= bound:
            return
        path.unlink(missing_ok=True)
        total -= size
