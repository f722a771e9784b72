"""The heaviest tokens of a training set, kept as they are: a store of a fixed size.

Influence is concentrated where `||b_t|| ||e_t||` is large, whatever the query. Kept as features and
errors, these tokens' scores `b_tᵀ V_x e_t` are exact for every query, with no data at hand. (A
classifier's examples have one token each.)

Letters of its own: H places of the store, n examples of a device.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from stride_jax.operators.content import token_norms
from stride_jax.runtime import mesh as meshes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kept:
    """Tokens of the training set.

    Attributes:
      b_HxR: features, in the precision they are kept in.
      e_HxO: errors times weights.
      norm_H: `||b|| ||e||`, float32; 0 at places that are free.
      row_H: int32 row of each token's example in the index; −1 at places that are free.
      token_H: int32 place of the token in its example.
    """

    b_HxR: jax.Array
    e_HxO: jax.Array
    norm_H: jax.Array
    row_H: jax.Array
    token_H: jax.Array

    def __len__(self) -> int:
        return self.row_H.shape[0]


def capacity(size: int, rank: int, width: int, precision: str, num_tokens: int) -> int:
    """Tokens that a store of so many bytes holds, and no more than there are.

    >>> capacity(1000, 3, 2, "float16", 50), capacity(1000, 3, 2, "float16", 20)
    (45, 20)
    """
    each = (rank + width) * np.dtype(precision).itemsize + 12  # its norm, row and place
    return min(size // each, num_tokens)


def free(devices: int, places: int, rank: int, width: int, precision: str) -> Kept:
    """Empty stores of several devices, `[W H, …]`."""
    total = devices * places
    return Kept(
        jnp.zeros((total, rank), precision),
        jnp.zeros((total, width), precision),
        jnp.zeros(total, jnp.float32),
        jnp.full(total, -1, jnp.int32),
        jnp.zeros(total, jnp.int32),
    )


def of_batch(kept: Kept, b_nxTxR: jax.Array, e_nxTxO: jax.Array, row_n: jax.Array) -> Kept:
    """The heaviest tokens of a batch on one device, no more than a store has places.

    Args:
      kept: the store.
      b_nxTxR, e_nxTxO: features and weighted errors of the batch.
      row_n: rows of the examples; −1 for padding.
    """
    tokens = b_nxTxR.shape[1]
    norms = jnp.where(row_n[:, None] >= 0, token_norms(b_nxTxR, e_nxTxO), 0.0).reshape(-1)
    some, at = jax.lax.top_k(norms, min(len(kept), norms.shape[0]))
    return Kept(
        b_nxTxR.reshape(norms.shape[0], -1)[at].astype(kept.b_HxR.dtype),
        e_nxTxO.reshape(norms.shape[0], -1)[at].astype(kept.e_HxO.dtype),
        some,
        jnp.where(some > 0, row_n[at // tokens], -1),
        (at % tokens).astype(jnp.int32),
    )


def with_more(kept: Kept, new: Kept) -> Kept:
    """The heaviest of a store and of new tokens; free places stay behind."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), kept, new)
    _, at = jax.lax.top_k(both.norm_H, len(kept))
    return jax.tree.map(lambda v: v[at], both)


def heaviest(kept: Kept, places: int) -> Kept:
    """The heaviest tokens of all devices' stores on the host, by row and place.

    The order does not depend on the devices; of equally heavy tokens the first rows stay.
    """
    own = jax.tree.map(lambda v: np.asarray(meshes.fetch(v)), kept)
    order = np.lexsort((own.token_H, own.row_H, -own.norm_H))
    order = order[own.norm_H[order] > 0][:places]
    order = order[np.lexsort((own.token_H[order], own.row_H[order]))]
    return jax.tree.map(lambda v: jnp.asarray(v[order]), own)


def gathered(kept: Kept, places: int) -> Kept:
    """The heaviest of all devices as one store on the host, which any number of devices resume."""
    own = heaviest(kept, places)
    rest = free(1, places - len(own), own.b_HxR.shape[1], own.e_HxO.shape[1], own.b_HxR.dtype.name)
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), own, rest)


def spread(kept: Kept, devices: int) -> Kept:
    """A store of one device as those of several: the first one holds it all, `[W H, …]`."""
    width = kept.b_HxR.shape[1], kept.e_HxO.shape[1]
    rest = free(devices - 1, len(kept), *width, kept.b_HxR.dtype.name)
    return jax.tree.map(lambda x, y: np.concatenate([x, y]), kept, rest)


def joined(a: Kept, b: Kept, places: int) -> Kept:
    """The heaviest of two stores of disjoint examples."""
    return heaviest(jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b), places)
