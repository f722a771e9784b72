"""What a loop's speed means: examples and tokens a second, and the share of the peak it reaches."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from stride_jax.planning.chips import chip_of
from stride_jax.runtime.metrics import memory_bytes


@dataclasses.dataclass(frozen=True)
class Speed:
    """What a step of a loop is worth.

    Attributes:
      examples: of one position.
      tokens: of one example.
      flops: of one example, as the model needs them.
    """

    examples: float
    tokens: int
    flops: float

    def numbers(self, steps_per_second: float) -> dict[str, float]:
        """Per second, on all devices; the share of their peak where the device is known."""
        examples = steps_per_second * self.examples
        found = {
            "examples_per_second": examples,
            "tokens_per_second": examples * self.tokens,
            "memory_bytes": float(memory_bytes()),
        }
        device = jax.devices()[0]
        if chip := chip_of(device.device_kind):
            found["mfu"] = examples * self.flops / (chip.flops * jax.device_count())
        return found


def with_speed(
    report: Callable[[str, int, Mapping[str, Any]], None], speed: Speed
) -> Callable[[str, int, Mapping[str, Any]], None]:
    """A report that says more: see `Speed.numbers`."""

    def told(loop: str, position: int, numbers: Mapping[str, Any]) -> None:
        report(loop, position, {**numbers, **speed.numbers(float(numbers["per_second"]))})

    return told
