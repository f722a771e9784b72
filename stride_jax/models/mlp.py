"""A multi-layer perceptron."""

from collections.abc import Mapping, Sequence

import jax
from flax import linen as nn

from stride_jax.models.recording import Recorder


class MLP(nn.Module):
    """Dense layers with ReLU; inputs are flattened.

    Activations: `input`, `hidden0`, `hidden1`, … (after the ReLU).

    Attributes:
      num_classes: C.
      widths: units of each hidden layer.
    """

    num_classes: int
    widths: Sequence[int] = (128, 64)

    @nn.compact
    def __call__(
        self, x: jax.Array, replace: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        record = Recorder(replace)
        x = record("input", x.reshape(x.shape[0], -1))
        for i, width in enumerate(self.widths):
            x = record(f"hidden{i}", nn.relu(nn.Dense(width, name=f"dense{i}")(x)))
        return nn.Dense(self.num_classes, name="head")(x), record.activations
