"""From settings to a model."""

import dataclasses

from flax import linen as nn

from stride_jax.models.mlp import MLP
from stride_jax.models.resnet import ResNet9


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Which model.

    Attributes:
      kind: `mlp` or `resnet9`.
      widths: hidden units of the MLP.
      width: channels of the ResNet's stem.
    """

    kind: str = "mlp"
    widths: tuple[int, ...] = (128, 64)
    width: int = 16

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "resnet9"):
            raise ValueError(f"model kind={self.kind!r}: use 'mlp' or 'resnet9'")


def make_model(settings: ModelSettings, num_classes: int) -> nn.Module:
    """The linen module of the settings."""
    if settings.kind == "mlp":
        return MLP(num_classes, settings.widths)
    return ResNet9(num_classes, settings.width)
