"""Models that return `(logits, activations)`, their training and calibration."""

from stride_jax.models.build import ModelSettings, make_model
from stride_jax.models.calibrate import fit_temperature
from stride_jax.models.gpt import GPT, GPTSettings
from stride_jax.models.mlp import MLP
from stride_jax.models.resnet import ResNet9
from stride_jax.models.train import TrainSettings, fit, initial_params, trajectory

__all__ = [
    "GPT",
    "MLP",
    "GPTSettings",
    "ModelSettings",
    "ResNet9",
    "TrainSettings",
    "fit",
    "fit_temperature",
    "initial_params",
    "make_model",
    "trajectory",
]
