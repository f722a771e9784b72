"""Models that return `(logits, activations)`, their training and calibration."""

from stride_jax.models.build import ModelSettings, make_model
from stride_jax.models.calibrate import (
    Calibration,
    calibrate,
    fit_sigmoid_temperature,
    fit_temperature,
    fit_variance,
)
from stride_jax.models.gpt import GPT, GPTSettings
from stride_jax.models.import_huggingface import read_huggingface
from stride_jax.models.import_nanochat import read_nanochat
from stride_jax.models.importing import Imported, WeightsError, param_shapes
from stride_jax.models.llama import Llama, LlamaSettings
from stride_jax.models.mlp import MLP
from stride_jax.models.pretrain import pretrain
from stride_jax.models.resnet import ResNet9
from stride_jax.models.train import TrainSettings, fit, initial_params

__all__ = [
    "GPT",
    "MLP",
    "Calibration",
    "GPTSettings",
    "Imported",
    "Llama",
    "LlamaSettings",
    "ModelSettings",
    "ResNet9",
    "TrainSettings",
    "WeightsError",
    "calibrate",
    "fit",
    "fit_sigmoid_temperature",
    "fit_temperature",
    "fit_variance",
    "initial_params",
    "make_model",
    "param_shapes",
    "pretrain",
    "read_huggingface",
    "read_nanochat",
]
