"""STRIDE in JAX: which training examples made a model behave like this on this query.

Read the rooms in the order of the data flow: `examples`, `objectives`, `design`, `taps`, `frozen`,
`operators`, `measure`, `recovery`, `attribution`, `index`; `stride` joins them, `evaluation` checks
them against retraining. docs/method.md has the mathematics.

Everything named here is public; the rest may change without notice.

Shape suffixes of names, one letter an axis: N training examples, K subsets, d subsets an example
belongs to, Q queries, B a batch, S members of a subset (padded), T tokens (1 for a classifier),
D width of an activation, R features, C classes or vocabulary, O outputs of an operator.
"""

from stride_jax.adapters import from_equinox, from_haiku, from_linen, from_model, from_nnx
from stride_jax.appending import append
from stride_jax.attribution import Attribution, ensemble
from stride_jax.check import Report, check
from stride_jax.design import Design
from stride_jax.examples import Examples
from stride_jax.frozen import FrozenModel, freeze
from stride_jax.ids import content_ids
from stride_jax.index import Index
from stride_jax.measure import MeasureSettings
from stride_jax.objectives import Objective, objective_of, squared_error
from stride_jax.operators import (
    BasisSettings,
    ClosedFormSettings,
    JointSettings,
    Question,
    question_of,
)
from stride_jax.recovery import LassoSettings, SelectionSettings
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.files import UnreadableFileError
from stride_jax.runtime.progress import bars
from stride_jax.self_influence import SelfInfluence, self_influence
from stride_jax.settings import ExactSettings, IndexSettings, ReadSettings
from stride_jax.steer import load_operators, operators_pytree, save_operators, steer
from stride_jax.stride import attribute, attribute_groups, direct, fit
from stride_jax.taps import TappedModel, from_function, with_objective, with_temperature
from stride_jax.unit import Unit
from stride_jax.version import __version__

__all__ = [
    "Attribution",
    "BasisSettings",
    "ClosedFormSettings",
    "Design",
    "ExactSettings",
    "Examples",
    "Execution",
    "FrozenModel",
    "Index",
    "IndexSettings",
    "JointSettings",
    "LassoSettings",
    "MeasureSettings",
    "Objective",
    "Question",
    "ReadSettings",
    "Report",
    "SelectionSettings",
    "SelfInfluence",
    "TappedModel",
    "Unit",
    "UnreadableFileError",
    "__version__",
    "append",
    "attribute",
    "attribute_groups",
    "bars",
    "check",
    "content_ids",
    "direct",
    "ensemble",
    "fit",
    "freeze",
    "from_equinox",
    "from_function",
    "from_haiku",
    "from_linen",
    "from_model",
    "from_nnx",
    "load_operators",
    "objective_of",
    "operators_pytree",
    "question_of",
    "save_operators",
    "self_influence",
    "squared_error",
    "steer",
    "with_objective",
    "with_temperature",
]
