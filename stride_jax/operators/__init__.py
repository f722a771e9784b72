"""Steering operators: basis, the pytree and how it shifts, losses, joint training, closed form."""

from stride_jax.operators.basis import Basis, BasisSettings, fit_basis
from stride_jax.operators.closed_form import (
    ClosedFormSettings,
    as_training,
    closed_form,
    direct_scores,
    directions,
)
from stride_jax.operators.curvature import View, accumulate
from stride_jax.operators.gradients import logit_errors, squared_errors
from stride_jax.operators.joint import JointSettings, train_jointly
from stride_jax.operators.moments import Moments, add, eigenbases
from stride_jax.operators.outputs import draw_signs, fold, unfold
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
    "View",
    "accumulate",
    "add",
    "as_training",
    "choose_tap",
    "closed_form",
    "context",
    "direct_scores",
    "directions",
    "draw_signs",
    "eigenbases",
    "example_features",
    "fit_basis",
    "fold",
    "logit_errors",
    "logit_site",
    "residual_site",
    "squared_errors",
    "tap_energies",
    "train_jointly",
    "unfold",
]
