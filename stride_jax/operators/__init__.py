"""Steering operators: sites, basis, losses, joint training, closed form."""

from stride_jax.operators.basis import Basis, BasisSettings, example_features, fit_basis
from stride_jax.operators.closed_form import (
    ClosedFormSettings,
    closed_form,
    direct_scores,
    directions,
)
from stride_jax.operators.joint import train_jointly
from stride_jax.operators.joint_losses import JointSettings
from stride_jax.operators.moments import Curvature, Moments, add, eigenbases
from stride_jax.operators.outputs import draw_signs, fold, unfold
from stride_jax.operators.passes import accumulate
from stride_jax.operators.sensitivity import choose_tap, tap_energies
from stride_jax.operators.sites import FoldedSite, LogitSite, ResidualSite, Site, logit_errors
from stride_jax.operators.steering import Operators, shardings

__all__ = [
    "Basis",
    "BasisSettings",
    "ClosedFormSettings",
    "Curvature",
    "FoldedSite",
    "JointSettings",
    "LogitSite",
    "Moments",
    "Operators",
    "ResidualSite",
    "Site",
    "accumulate",
    "add",
    "choose_tap",
    "closed_form",
    "direct_scores",
    "directions",
    "draw_signs",
    "eigenbases",
    "example_features",
    "fit_basis",
    "fold",
    "logit_errors",
    "shardings",
    "tap_energies",
    "train_jointly",
    "unfold",
]
