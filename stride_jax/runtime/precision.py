"""Precision of products of matrices: ours are exact to float32, a model's stay as it has them.

On a TPU, and on a GPU with TF32, a product of float32 matrices rounds its factors to bfloat16
(or 10 bits) unless told otherwise: sums over a corpus would then add up products good to .4 %.
"""

from typing import Any

import jax

precise = jax.default_matmul_precision("highest")
"""Decorator, or context, in which products are traced that keep all bits of their factors."""


def as_now() -> str:
    """The precision that products have now, as the user has set it, by name.

    A name stays with a product's derivatives, wherever these are traced; None would not.
    """
    config: Any = jax.config
    return config.jax_default_matmul_precision or "default"
