"""A small residual network in the form of ResNet-9."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from stride_jax.models.recording import Recorder


def _patches3x3(x: jax.Array) -> jax.Array:
    """Every pixel's 3x3 neighbourhood, zero-padded: `[B, height, width, 9 channels]`.

    A convolution is a dense layer on these. Under `vmap` over models a dense layer is a batched
    matrix product, where `nn.Conv` becomes a grouped convolution, many times slower.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=-1
    )


class ResNet9(nn.Module):
    """ResNet-9: four convolution stages, residual blocks after the second and the fourth.

    GroupNorm in place of BatchNorm, so that a prediction depends on one example alone: attribution
    asks what a single example does, and a batch statistic has no answer.

    Activations: `input`, `stem`, `stage0`, `residual0`, `stage1`, `stage2`, `residual1`
    (`[B, height, width, channels]`) and `pooled` (`[B, 8 * width]`).

    Attributes:
      num_classes: C.
      width: channels of the stem; stages have 2, 4 and 8 times as many.
    """

    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(
        self, x: jax.Array, replace: Mapping[str, jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        record = Recorder(replace)

        def convolve(x: jax.Array, channels: int, name: str) -> jax.Array:
            x = nn.Dense(channels, use_bias=False, name=f"{name}_conv")(_patches3x3(x))
            x = nn.GroupNorm(num_groups=min(8, channels), name=f"{name}_norm")(x)
            return nn.relu(x)

        def stage(x: jax.Array, channels: int, name: str) -> jax.Array:
            # Small images (8x8) have one pixel before the last stage, which is then not pooled.
            x = convolve(x, channels, name)
            return nn.max_pool(x, (2, 2), (2, 2)) if min(x.shape[1:3]) > 1 else x

        def residual(x: jax.Array, name: str) -> jax.Array:
            channels = x.shape[-1]
            return x + convolve(convolve(x, channels, f"{name}a"), channels, f"{name}b")

        w = self.width
        x = record("input", x)
        x = record("stem", convolve(x, w, "stem"))
        x = record("stage0", stage(x, 2 * w, "stage0"))
        x = record("residual0", residual(x, "residual0"))
        x = record("stage1", stage(x, 4 * w, "stage1"))
        x = record("stage2", stage(x, 8 * w, "stage2"))
        x = record("residual1", residual(x, "residual1"))
        x = record("pooled", x.max(axis=(1, 2)))
        return nn.Dense(self.num_classes, name="head")(x), record.activations
