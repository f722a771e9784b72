"""Cholesky factor of an exact Fisher, its rows divided among devices.

The Fisher comes as one block per pair of outputs, `F_{cc'}`, `[R, R]`. It is factorised by block
columns of a few outputs each, one after the other:

    L_{jj} L_{jj}ᵀ = F_{jj} − Σ_{k<j} L_{jk} L_{jk}ᵀ
    L_{ij} = (F_{ij} − Σ_{k<j} L_{ik} L_{jk}ᵀ) L_{jj}^{-ᵀ}

Each device computes its own rows of every block, and a finished column is gathered on all devices:
the n³ / 3 operations, n = O R, are divided by their number, but for the small `L_{jj}`, and n² / 2
numbers travel.

Letters of its own: P pairs of outputs, h rows of a block on one device, i blocks below a column's
first one, r columns of a block column.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stride_jax.operators.moments import pairs

# Every block column adds to compile time; fewer have larger `L_{jj}`, which all devices repeat.
_COLUMNS = 10


def cholesky(fisher_PxRxR: jax.Array, ridge: jax.Array, width: int, mesh: Mesh | None) -> jax.Array:
    """Lower factor of `F + ridge I`.

    Args:
      fisher_PxRxR: blocks of the output pairs `c <= c'`, in the order of `moments.pairs`.
      ridge: number added to the diagonal.
      width: O.
      mesh: mesh of the surrounding `jax.shard_map`; None outside of one.

    Returns:
      `[O R, O R]`, rows and columns ordered (output, feature), the same on every device.

    >>> blocks = jnp.array([[[4.0]], [[2.0]], [[5.0]]])  # of [[4, 2], [2, 5]]
    >>> cholesky(blocks, jnp.array(0.0), 2, None).tolist()
    [[2.0, 0.0], [1.0, 2.0]]
    """
    rank = fisher_PxRxR.shape[1]
    devices = 1 if mesh is None else mesh.size
    height = -(-rank // devices)
    first = 0 if mesh is None else jax.lax.axis_index(mesh.axis_names) * height
    padded = jnp.pad(fisher_PxRxR, ((0, 0), (0, devices * height - rank), (0, 0)))
    own_PxhxR = jax.lax.dynamic_slice_in_dim(padded, first, height, axis=1)

    def gathered(v_ixhxr: jax.Array) -> jax.Array:
        if mesh is not None:
            v_ixhxr = jax.lax.all_gather(v_ixhxr, mesh.axis_names, axis=1, tiled=True)
        return v_ixhxr[:, :rank]

    step = width if devices == 1 else -(-width // _COLUMNS)
    place_OxO = _places(width)
    diagonal_hxR = ridge * (first + jnp.arange(height)[:, None] == jnp.arange(rank)[None])
    # What lies below each column's first block: this device's rows, and all rows.
    mine: list[jax.Array] = []
    whole: list[jax.Array] = []
    columns: list[jax.Array] = []
    for j in range(0, width, step):
        outputs = min(step, width - j)
        column = own_PxhxR[place_OxO[j:, j : j + outputs]]  # [i, c, h, R]
        column = column.at[np.arange(outputs), np.arange(outputs)].add(diagonal_hxR)
        column = jnp.moveaxis(column, 1, 2).reshape(width - j, height, -1)
        if j:
            left = jnp.concatenate([v[j - width :] for v in mine], axis=2)
            rows = jnp.concatenate([v[j - width :][:outputs] for v in whole], axis=2)
            column -= jnp.einsum("ihk,rk->ihr", left, rows.reshape(-1, rows.shape[2]))
        head = gathered(column[:outputs]).reshape(column.shape[2], -1)
        head = jnp.linalg.cholesky(head, symmetrize_input=False)
        flat = column[outputs:].reshape(-1, column.shape[2])
        below = jax.scipy.linalg.solve_triangular(head, flat.T, lower=True).T
        mine.append(below.reshape(-1, height, column.shape[2]))
        whole.append(gathered(mine[-1]))
        done = jnp.concatenate([head, whole[-1].reshape(-1, column.shape[2])])
        columns.append(jnp.pad(done, ((j * rank, 0), (0, 0))))
    return jnp.concatenate(columns, axis=1)


def _places(width: int) -> np.ndarray:
    """Index of the pair that is block (c, c') of the matrix, `[O, O]`; blocks are symmetric."""
    first, second = pairs(width)
    place_OxO = np.zeros((width, width), np.int32)
    place_OxO[first, second] = place_OxO[second, first] = np.arange(len(first))
    return place_OxO
