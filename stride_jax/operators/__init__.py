"""Steering operators: basis, the pytree and how it shifts, losses, joint training, closed form."""

from stride_jax.operators.basis import Basis, BasisSettings, fit_basis
from stride_jax.operators.closed_form import (
    ClosedFormSettings,
    closed_form,
    direct_scores,
    directions,
    doubted,
    residual_sizes,
)
from stride_jax.operators.curvature import Moments, accumulate, add, eigenbases
from stride_jax.operators.joint import JointSettings, train_jointly
from stride_jax.operators.outputs import add_to_sketch, empty_sketch, output_basis
from stride_jax.operators.sensitivity import choose_tap, tap_energies
from stride_jax.operators.steering import (
    Context,
    Operators,
    Site,
    context,
    example_features,
    logit_site,
    residual_site,
)

__all__ = [
    "Basis",
    "BasisSettings",
    "ClosedFormSettings",
    "Context",
    "JointSettings",
    "Moments",
    "Operators",
    "Site",
    "accumulate",
    "add",
    "add_to_sketch",
    "choose_tap",
    "closed_form",
    "context",
    "direct_scores",
    "directions",
    "doubted",
    "eigenbases",
    "empty_sketch",
    "example_features",
    "fit_basis",
    "logit_site",
    "output_basis",
    "residual_site",
    "residual_sizes",
    "tap_energies",
    "train_jointly",
]
