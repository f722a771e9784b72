"""Checks of attributions: retrained models, LDS, removal, retrieval, and their uncertainty."""

from stride_jax.evaluation.bank import Bank, BankSettings, Origin, draw_subsets, merge
from stride_jax.evaluation.bank_files import (
    IncompleteBankError,
    bank_key,
    bank_origin,
    fill_bank,
    read_bank,
)
from stride_jax.evaluation.counterfactual import (
    CounterfactualReference,
    CounterfactualResult,
    CounterfactualSettings,
    counterfactual_reference,
    counterfactual_removal,
)
from stride_jax.evaluation.lds import (
    Ceiling,
    Lds,
    ceiling,
    lds,
    lds_difference,
)
from stride_jax.evaluation.retrain import Retraining, Start
from stride_jax.evaluation.retrieval import mean_reciprocal_rank, mislabel_auc, recall_at_k
from stride_jax.evaluation.statistics import (
    PerQuery,
    bootstrap_difference,
    bootstrap_mean,
    ranking,
)
from stride_jax.evaluation.unit import (
    UnitSettings,
    measure_unit,
    unit_of_bank,
    unit_of_effects,
)
from stride_jax.unit import Unit

__all__ = [
    "Bank",
    "BankSettings",
    "Ceiling",
    "CounterfactualReference",
    "CounterfactualResult",
    "CounterfactualSettings",
    "IncompleteBankError",
    "Lds",
    "Origin",
    "PerQuery",
    "Retraining",
    "Start",
    "Unit",
    "UnitSettings",
    "bank_key",
    "bank_origin",
    "bootstrap_difference",
    "bootstrap_mean",
    "ceiling",
    "counterfactual_reference",
    "counterfactual_removal",
    "draw_subsets",
    "fill_bank",
    "lds",
    "lds_difference",
    "mean_reciprocal_rank",
    "measure_unit",
    "merge",
    "mislabel_auc",
    "ranking",
    "read_bank",
    "recall_at_k",
    "unit_of_bank",
    "unit_of_effects",
]
