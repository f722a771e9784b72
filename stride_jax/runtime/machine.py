"""This machine: its name and what its rounding depends on, to be written beside results."""

import os
import pathlib
import platform

import jax


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
