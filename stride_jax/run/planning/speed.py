"""A loop's speed: examples and tokens per second, and the share of the devices' peak."""

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
from stride_jax.runtime.flops import count_flops
from stride_jax.runtime.metrics import memory_bytes


@dataclasses.dataclass(frozen=True)
class Speed:
    """Examples, tokens and operations of a step of a loop.

    Attributes:
      examples: examples per position.
      tokens: tokens per example.
      flops: operations per example that the model needs.
    """

    examples: float
    tokens: int
    flops: float

    def numbers(self, steps_per_second: float) -> dict[str, float]:
        """Numbers per second on all devices, and the share of their peak where it is known."""
        examples = steps_per_second * self.examples
        numbers = {
            "examples_per_second": examples,
            "tokens_per_second": examples * self.tokens,
            "memory_bytes": float(memory_bytes()),
        }
        device = jax.devices()[0]
        if chip := chip_of(device.device_kind):
            numbers["mfu"] = examples * self.flops / (chip.flops * jax.device_count())
        return numbers


def model_speed(module: nn.Module, examples: Examples, batch_size: int | None) -> Speed:
    """The speed of one position: an example passed forward, or a batch in training.

    Args:
      module: the linen model.
      examples: examples that it reads.
      batch_size: examples per training step, forward and backward; None for one example per
        position, forward.
    """
    one = jnp.asarray(examples.inputs[:1])
    fresh = functools.partial(initial_params, module, inputs=one)
    params = jax.eval_shape(fresh, jax.random.key(0))
    forward = count_flops(module.apply, {"params": params}, one)
    tokens = math.prod(examples.token_shape[1:])
    return (
        Speed(1, tokens, forward) if batch_size is None else Speed(batch_size, tokens, 3 * forward)
    )


def with_speed(
    report: Callable[[str, int, Mapping[str, Any]], None], speed: Speed
) -> Callable[[str, int, Mapping[str, Any]], None]:
    """A report with the numbers of `Speed.numbers` too."""

    def extended(loop: str, position: int, numbers: Mapping[str, Any]) -> None:
        report(loop, position, {**numbers, **speed.numbers(float(numbers["per_second"]))})

    return extended
