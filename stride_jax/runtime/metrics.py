"""Metrics of a run while it runs: JSON lines, and events for TensorBoard."""

import contextlib
import json
import os
import pathlib
import resource
import time
from collections.abc import Mapping
from typing import Any

import jax

from stride_jax.runtime.files import appended, disk_named


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
    """Writes `metrics.jsonl`, one line per report, and an event file into one folder.

    Nothing is written behind the run's back, so a full disk is told where it is met.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self.folder = pathlib.Path(folder)
        with disk_named(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lines = appended(self.folder / "metrics.jsonl")
            self._events = EventsWriter(str(self.folder / "events"))

    def __call__(self, loop: str, step: int, values: Mapping[str, Any]) -> None:
        """Report numbers of a loop: `{loop}/{name}` at a step."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        numbers = {name: float(value) for name, value in values.items()}
        with disk_named(self.folder):
            self._lines.write(json.dumps({"loop": loop, "step": step, **numbers}).encode() + b"\n")
            for name, value in numbers.items():
                summary = scalar(f"{loop}/{name}", value)
                self._events.write_event(Event(summary=summary, step=step, wall_time=time.time()))
            self._events.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Flush both files; after an error of the run, that one is told rather than theirs."""
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Flush both files."""
        with disk_named(self.folder), contextlib.closing(self._lines):
            self._events.close()


def losses(folder: str | os.PathLike[str]) -> dict[str, list[tuple[int, float]]]:
    """What a `MetricsWriter` was told of each loop's loss, `(step, loss)` in order of the steps.

    Args:
      folder: its folder; nothing is known of one that is not there.
    """
    path = pathlib.Path(folder) / "metrics.jsonl"
    found: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):  # a line that a kill tore
            told = json.loads(line)
            if "loss" in told:
                own = found.setdefault(told["loop"], [])
                # After a kill, or in a new training, steps come again: later ones are past.
                while own and own[-1][0] >= told["step"]:
                    own.pop()
                own.append((told["step"], told["loss"]))
    return found
