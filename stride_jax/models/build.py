"""From settings to a model."""

import dataclasses

from flax import linen as nn

from stride_jax.models.gpt import GPT, GPTSettings
from stride_jax.models.llama import Llama, LlamaSettings
from stride_jax.models.mlp import MLP
from stride_jax.models.resnet import ResNet9
from stride_jax.runtime.files import added

KINDS = ("mlp", "resnet9", "gpt", "llama")


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a model starts from, read off its folder; not to be given by hand.

    Attributes:
      format: `huggingface`, `nanochat` or `orbax`.
      digest: hash of the weights' contents.
      num_classes: C, size of the vocabulary or number of classes.
      tokenizer: hash of the tokenizer.json that came with it; empty without one.
    """

    format: str
    digest: str
    num_classes: int
    tokenizer: str = ""


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The architecture of a model, or the weights that it starts from.

    Attributes:
      kind: `mlp`, `resnet9`, `gpt` or `llama`.
      widths: units of each hidden layer of the MLP.
      width: channels of the ResNet's stem.
      gpt: sizes and switches of the GPT.
      llama: sizes and switches of the Llama, Mistral, Qwen2 or Qwen3.
      init_from: folder of a pre-trained model, which says all of the above: Hugging Face's,
        nanochat's, or a run's workdir or model folder; empty for a model trained from its seed.
      origin: what was found there; filled in by the run.
    """

    kind: str = "mlp"
    widths: tuple[int, ...] = (128, 64)
    width: int = 16
    gpt: GPTSettings = GPTSettings()
    llama: LlamaSettings = LlamaSettings()
    init_from: str = added("")
    origin: Origin | None = added(None)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"model kind={self.kind!r}: use one of {KINDS}")


def make_model(settings: ModelSettings, num_classes: int) -> nn.Module:
    """The linen module of the settings; a language model's classes are its vocabulary."""
    if settings.kind == "mlp":
        return MLP(num_classes, settings.widths)
    if settings.kind == "gpt":
        return GPT(num_classes, settings.gpt)
    if settings.kind == "llama":
        return Llama(num_classes, settings.llama)
    return ResNet9(num_classes, settings.width)
