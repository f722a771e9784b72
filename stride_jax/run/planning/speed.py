"""What a loop's speed means: examples and tokens a second, and the share of the peak it reaches."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from stride_jax.data import Examples
from stride_jax.models import initial_params
from stride_jax.run.planning.chips import chip_of
from stride_jax.run.planning.costs import count_flops
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


def model_speed(module: nn.Module, examples: Examples, batch_size: int | None) -> Speed:
    """What a step is worth: an example passed forward, or a batch in training.

    Args:
      module: the linen model.
      examples: what it reads.
      batch_size: of a training step, forward and backward; None for a position an example.
    """
    one = jnp.asarray(examples.inputs[:1])
    fresh = functools.partial(initial_params, module, inputs=one)
    params = jax.eval_shape(fresh, jax.random.key(0))
    forward = count_flops(module.apply, {"params": params}, one)
    tokens = math.prod(examples.labels.shape[1:])
    return (
        Speed(1, tokens, forward) if batch_size is None else Speed(batch_size, tokens, 3 * forward)
    )


def with_speed(
    report: Callable[[str, int, Mapping[str, Any]], None], speed: Speed
) -> Callable[[str, int, Mapping[str, Any]], None]:
    """A report that says more: see `Speed.numbers`."""

    def told(loop: str, position: int, numbers: Mapping[str, Any]) -> None:
        report(loop, position, {**numbers, **speed.numbers(float(numbers["per_second"]))})

    return told
