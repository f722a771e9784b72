"""A multi-layer perceptron."""

from collections.abc import Mapping, Sequence

import jax
from flax import linen as nn

from stride_jax.models.recording import Recorder


class MLP(nn.Module):
    """Dense layers with ReLU; inputs are flattened.

    Activations: `input`, `dense0`, `dense1`, … (before the ReLU), `hidden0`, `hidden1`, … (after).

    Attributes:
      num_classes: C.
      widths: units of each hidden layer.
    """

    num_classes: int
    widths: Sequence[int] = (128, 64)

    @property
    def layers(self) -> tuple[str, ...]:
        """Outputs before the ReLU (`TappedModel.layers`)."""
        return tuple(f"dense{i}" for i in range(len(self.widths)))

    @nn.compact
    def __call__(
        self, x: jax.Array, replace: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        record = Recorder(replace)
        x = record("input", x.reshape(x.shape[0], -1))
        for i, width in enumerate(self.widths):
            x = record(f"dense{i}", nn.Dense(width, name=f"dense{i}")(x))
            x = record(f"hidden{i}", nn.relu(x))
        return nn.Dense(self.num_classes, name="head")(x), record.activations
