"""Where a long loop saves its state, as a value: nowhere by default, in checkpoints for a run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class Keep(Protocol):
    """Where a loop's state is saved."""

    def resume(self, loop: str, state: Any) -> tuple[int, Any]:
        """Position and state to resume from; 0 and the given state where nothing was saved."""
        ...

    def step(
        self,
        loop: str,
        position: int,
        state: Callable[[], Any],
        metrics: Mapping[str, Any] = {},
        *,
        background: bool = False,
    ) -> None:
        """Save the state after a step if it is time to, or on a request to stop.

        Args:
          loop: name of the loop.
          position: examples or steps done, from which the loop would be resumed.
          state: function that returns the state to save.
          metrics: numbers of the step, on the device or not.
          background: whether the loop goes on while the state is written; it calls `settle` when it
            ends.
        """
        ...

    def settle(self) -> None:
        """Return once everything that was saved is written."""
        ...


class _Nowhere:
    def resume(self, loop: str, state: Any) -> tuple[int, Any]:
        del loop
        return 0, state

    def step(
        self,
        loop: str,
        position: int,
        state: Callable[[], Any],
        metrics: Mapping[str, Any] = {},
        *,
        background: bool = False,
    ) -> None:
        """Save nothing."""
        del loop, position, state, metrics, background

    def settle(self) -> None:
        """Nothing is written."""


nowhere: Keep = _Nowhere()
"""Saves nothing: the library's default."""


@dataclasses.dataclass(frozen=True)
class KeepSettings:
    """When the state of a long loop is written.

    Attributes:
      seconds: seconds between two checkpoints of a loop, by the clock of the first process.
      report_seconds: seconds between two reports of its numbers, which wait for the device.
    """

    seconds: float = 300.0
    report_seconds: float = 2.0

    def __post_init__(self) -> None:
        if min(self.seconds, self.report_seconds) < 0:
            raise ValueError(
                f"seconds={self.seconds} between checkpoints, report_seconds={self.report_seconds} "
                "between reports: neither can be negative"
            )
