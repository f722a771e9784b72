"""This machine: its name and what its rounding depends on, to be written beside results."""

import os
import pathlib
import platform

import jax

from stride_jax.runtime.memory import memory_bytes


def device_name() -> str:
    """Kind and number of the devices, or model and cores of a CPU.

    >>> bool(device_name())
    True
    """
    device, count = jax.devices()[0], jax.device_count()
    if device.platform != "cpu":
        return f"{device.device_kind} x {count}"
    return f"{_cpu_model()}, {os.cpu_count()} cores" + (f" as {count} devices" if count > 1 else "")


def _cpu_model() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


_SMALL, _PACKED = 2**28, 200


def refuse_unpacked(needed: int, stored: int, what: str) -> None:
    """Refuse data that would take memory out of proportion, before any is taken.

    Numbers that somebody measured do not shrink to a two-hundredth; what does stands for itself
    many times over.

    Args:
      needed: bytes in memory.
      stored: bytes on disk.
      what: a name for the message, such as `its 5 rows`.

    Raises:
      ValueError: more than half of this machine's memory, or more than 256 MiB and 200 times what
        is stored.

    >>> refuse_unpacked(2**30, 1000, "its 5 rows")
    Traceback (most recent call last):
    ValueError: its 5 rows would take 1.0 GiB, unpacked from 1000 bytes: nothing real packs so well
    """
    if needed > max(_SMALL, _PACKED * stored):
        raise ValueError(
            f"{what} would take {needed / 2**30:.1f} GiB, unpacked from {stored} bytes: nothing "
            "real packs so well"
        )
    memory = memory_bytes()
    if memory is not None and needed > memory // 2:
        raise ValueError(
            f"{what} would take over {needed / 2**30:.1f} GiB, half of this machine's "
            f"{memory / 2**30:.1f}: read it on a larger one"
        )


def rounding() -> dict[str, str | int]:
    """What decides in which order this machine adds numbers up: the last digits depend on it."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "threads": threads or 1,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
