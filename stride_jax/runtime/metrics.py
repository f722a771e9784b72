"""Metrics of a run while it runs: JSON lines, and events for TensorBoard."""

import json
import os
import pathlib
import resource
from collections.abc import Mapping
from typing import Any

import jax


def memory_bytes() -> int:
    """Bytes in use on the first local device, or by this process where the device has no count."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_in_use" in stats:
        return int(stats["bytes_in_use"])
    return resident_bytes()


def resident_bytes() -> int:
    """Bytes of this process in RAM; their peak where the system has no such count."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
    return pages * os.sysconf("SC_PAGE_SIZE")


class MetricsWriter:
    """Writes `metrics.jsonl`, one line per report, and an event file into one folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from tensorboardX import SummaryWriter

        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lines = (self.folder / "metrics.jsonl").open("a", buffering=1)
        self._events = SummaryWriter(str(self.folder), flush_secs=10)

    def __call__(self, loop: str, step: int, values: Mapping[str, Any]) -> None:
        """Report numbers of a loop: `{loop}/{name}` at a step."""
        numbers = {name: float(value) for name, value in values.items()}
        self._lines.write(json.dumps({"loop": loop, "step": step, **numbers}) + "\n")
        for name, value in numbers.items():
            self._events.add_scalar(f"{loop}/{name}", value, step)

    def close(self) -> None:
        """Flush both files."""
        self._lines.close()
        self._events.close()
