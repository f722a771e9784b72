"""Second moments of gradients in Adafactor's form, and gradients in the coordinates they make.

An optimiser that divides by the root of the second moment, as Adam does, moves as plain descent
does in coordinates scaled by its fourth root. Of a matrix, Adafactor (Shazeer and Stern, 2018)
keeps `V_ij ≈ r_i c_j / Σ r`, r and c sums over rows and columns of `E[G²]`: the scale then is a
factor of a layer's inputs and one of its errors, and no gradient has to be formed to apply it.

Letters as in `baselines.model`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from stride_jax.baselines.model import Layers, Model, batches
from stride_jax.data import Examples

Scale = dict[str, tuple[jax.Array, jax.Array]]
"""`{layer: (factor of inputs [I], factor of errors [J])}`."""


def scaled(layers: Layers, scale: Scale | None) -> Layers:
    """Layers' inputs and errors times their factors. Traceable."""
    if scale is None:
        return layers
    return {
        n: (a * scale[n][0][None, None], d * scale[n][1][None, None])
        for n, (a, d) in layers.items()
    }


@functools.partial(jax.jit, static_argnames="model")
def _add_squares(
    total: Scale, model: Model, params: Any, x: jax.Array, y: jax.Array, mask: jax.Array
) -> Scale:
    out = {}
    for name, (a, d) in model.layer_pass(params, x, y).items():
        squares = jnp.einsum("bti,bto->bio", a, d) ** 2 * mask[:, None, None]
        out[name] = (
            total[name][0] + squares.sum(axis=(0, 2)),
            total[name][1] + squares.sum(axis=(0, 1)),
        )
    return out


def second_moments(model: Model, at: Sequence[Any], train: Examples, batch_size: int) -> Scale:
    """Sums of rows and columns of `E[G²]`, `{layer: (r_I, c_J)}`, at some checkpoints alike."""
    parts = batches(train.inputs, train.labels, batch_size)
    shapes = jax.eval_shape(model.layer_pass, at[0], *parts[0][1:3])
    total: Scale = {
        n: (jnp.zeros(a.shape[-1]), jnp.zeros(d.shape[-1])) for n, (a, d) in shapes.items()
    }
    for params in at:
        for _, x, y, mask in parts:
            total = _add_squares(total, model, params, x, y, mask)
    return jax.tree.map(lambda v: v / (len(at) * len(train)), total)


def inverse_power(moments: Scale, power: float, epsilon: float = 1e-3) -> Scale:
    """`V^{-power}` as a factor of inputs and one of errors.

    Args:
      moments: of `second_moments`.
      power: 1/2 to divide by the root of the second moment.
      epsilon: added to r and c, relative to their means, so that a dead unit is not blown up.
    """
    out = {}
    for name, (rows, columns) in moments.items():
        rows = rows + epsilon * rows.mean()
        columns = columns + epsilon * columns.mean()
        out[name] = (rows**-power * rows.sum() ** power, columns**-power)
    return out
