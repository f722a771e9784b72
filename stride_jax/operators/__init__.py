"""Steering operators: sites, basis, losses, joint training, closed form."""

from stride_jax.operators.basis import (
    Basis,
    BasisSettings,
    basis_shapes,
    example_features,
    fit_basis,
)
from stride_jax.operators.closed_form import (
    ClosedFormSettings,
    closed_form,
    directions,
)
from stride_jax.operators.content import Content
from stride_jax.operators.fisher import Fisher, fisher_of
from stride_jax.operators.inner_sites import (
    LOGIT_SITE,
    WITH_LOGIT,
    LayerSite,
    ResidualSite,
    tap_of,
    with_logits,
)
from stride_jax.operators.joint import train_jointly
from stride_jax.operators.joint_losses import JointSettings
from stride_jax.operators.kept import Kept
from stride_jax.operators.moments import (
    Curvature,
    Moments,
    add,
    of_groups,
    with_groups,
)
from stride_jax.operators.outputs import draw_signs, fold, unfold
from stride_jax.operators.passes import Labels, Pass, Store, accumulate, rotated
from stride_jax.operators.questions import LOSS, Question, asked_of, named_question, question_of
from stride_jax.operators.sensitivity import choose_tap, tap_energies
from stride_jax.operators.sites import FoldedSite, LogitSite, Site
from stride_jax.operators.steering import Operators, shardings

__all__ = [
    "LOGIT_SITE",
    "LOSS",
    "WITH_LOGIT",
    "Basis",
    "BasisSettings",
    "ClosedFormSettings",
    "Content",
    "Curvature",
    "Fisher",
    "FoldedSite",
    "JointSettings",
    "Kept",
    "Labels",
    "LayerSite",
    "LogitSite",
    "Moments",
    "Operators",
    "Pass",
    "Question",
    "ResidualSite",
    "Site",
    "Store",
    "accumulate",
    "add",
    "asked_of",
    "basis_shapes",
    "choose_tap",
    "closed_form",
    "directions",
    "draw_signs",
    "example_features",
    "fisher_of",
    "fit_basis",
    "fold",
    "named_question",
    "of_groups",
    "question_of",
    "rotated",
    "shardings",
    "tap_energies",
    "tap_of",
    "train_jointly",
    "unfold",
    "with_groups",
    "with_logits",
]
