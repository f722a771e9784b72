"""What a run's base model says of examples, as many at a time as memory has room for."""

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from stride_jax.examples import Examples
from stride_jax.run.pipeline import Run


def outputs(run: Run, examples: Examples) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Rows, their logits or numbers, and their losses: `[n, …]` and `[n]` or `[n, T]`, nats.

    Args:
      run: with its base model.
      examples: of its kind.
    """
    model, labels = run.model, examples.labels
    # Logits of some at a time; those of a long vocabulary fill the memory.
    each = 16 * max(1, run.data[1]) * math.prod(labels.shape[1:])
    size = max(1, run.settings.execution.memory // each)
    for first in range(0, len(labels), size):
        some = slice(first, min(first + size, len(labels)))
        inputs = jnp.asarray(examples.inputs[some])
        logits = np.asarray(run.tapped(model.params, inputs)[0])
        yield some, logits, np.asarray(model.losses(model.params, inputs, labels[some]))
