"""STRIDE in JAX: which training examples made a model behave like this on this query.

Read the rooms in the order of the data flow: `design`, `taps`, `operators`, `measure`, `recovery`,
`attribution`; `stride` joins them, `evaluation` checks them against retraining.

Shape suffixes of names, one letter an axis: N training examples, K subsets, d subsets an example
belongs to, Q queries, B a batch, S members of a subset (padded), T tokens (1 for a classifier),
D width of an activation, R features, C classes or vocabulary, O outputs of an operator.
"""

from stride_jax.attribution import Attribution, ensemble
from stride_jax.design import Design
from stride_jax.index import Index, StrideSettings
from stride_jax.stride import append, attribute, direct, fit
from stride_jax.taps import TappedModel, from_function, from_linen, from_model, from_nnx
from stride_jax.version import __version__

__all__ = [
    "Attribution",
    "Design",
    "Index",
    "StrideSettings",
    "TappedModel",
    "__version__",
    "append",
    "attribute",
    "direct",
    "ensemble",
    "fit",
    "from_function",
    "from_linen",
    "from_model",
    "from_nnx",
]
