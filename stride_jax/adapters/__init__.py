"""Models of each framework as `taps.TappedModel`: one file per framework, over one protocol.

Equinox and haiku are imported when their adapter is called.
"""

from stride_jax.adapters.equinox import from_equinox
from stride_jax.adapters.haiku import from_haiku
from stride_jax.adapters.linen import from_linen
from stride_jax.adapters.nnx import from_nnx
from stride_jax.adapters.ours import from_model

__all__ = ["from_equinox", "from_haiku", "from_linen", "from_model", "from_nnx"]
