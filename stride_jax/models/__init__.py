"""Models that return `(logits, activations)`, their training and calibration."""

from stride_jax.models.build import ModelSettings, Origin, make_model
from stride_jax.models.calibrate import (
    Calibration,
    calibrate,
    fit_doubt,
    fit_sigmoid_temperature,
    fit_temperature,
    fit_variance,
)
from stride_jax.models.gpt import GPT, GPTSettings
from stride_jax.models.import_huggingface import open_huggingface, read_huggingface
from stride_jax.models.import_nanochat import open_nanochat, read_nanochat
from stride_jax.models.import_orbax import OpenedCheckpoint, open_orbax
from stride_jax.models.importing import Imported, Opened, WeightsError, param_shapes
from stride_jax.models.llama import Llama, LlamaSettings
from stride_jax.models.mlp import MLP
from stride_jax.models.open_weights import FREE, open_weights, weights_format
from stride_jax.models.pretrain import devices_for, pretrain
from stride_jax.models.resnet import ResNet9
from stride_jax.models.train import TrainSettings, fit, initial_params
from stride_jax.models.transformer import RopeScaling

__all__ = [
    "FREE",
    "GPT",
    "MLP",
    "Calibration",
    "GPTSettings",
    "Imported",
    "Llama",
    "LlamaSettings",
    "ModelSettings",
    "Opened",
    "OpenedCheckpoint",
    "Origin",
    "ResNet9",
    "RopeScaling",
    "TrainSettings",
    "WeightsError",
    "calibrate",
    "devices_for",
    "fit",
    "fit_doubt",
    "fit_sigmoid_temperature",
    "fit_temperature",
    "fit_variance",
    "initial_params",
    "make_model",
    "open_huggingface",
    "open_nanochat",
    "open_orbax",
    "open_weights",
    "param_shapes",
    "pretrain",
    "read_huggingface",
    "read_nanochat",
    "weights_format",
]
