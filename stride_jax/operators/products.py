"""Products of features and errors, summed by subset over the devices.

A row of devices along the mesh axis `subset` holds the sums of all subsets, and each device has
some of its examples. The row shares what is smaller: each example's product `g_i = Σ_t b_{i,t}
e_{i,t}ᵀ`, R O numbers, or the T (R + O) of its features and errors.

Letters of its own: W devices along the mesh axis `data`, n examples of a device or of a row, o
outputs taken at a time, G named groups.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from stride_jax.design import gather_add
from stride_jax.runtime import mesh as meshes

_Add = Callable[[jax.Array, Any], Any]


class Joined(NamedTuple):
    """Who adds to what.

    Attributes:
      members: `[W, S, K]` as in `Batch`; or `[B]`, the one subset of each example.
      num_subsets: K.
      group_B: as in `Batch`.
      num_groups: G.
    """

    members: jax.Array
    num_subsets: int
    group_B: jax.Array | None
    num_groups: int


# Columns of a product of a matrix with itself are computed in parts, of multiples of so many.
_PARTS, _PART = 4, 128


def squared(x_nxD: jax.Array) -> jax.Array:
    """`xᵀ x`, little of it computed twice, `[D, D]`: half the seconds on a CPU at D = 1,024.

    >>> squared(jnp.array([[1.0, 2.0], [0.0, 1.0]])).tolist()
    [[1.0, 2.0], [2.0, 5.0]]
    """
    depth, columns = x_nxD.shape[1], []
    width = _PART * -(-depth // (_PART * _PARTS))
    for first in range(0, depth, width):
        last = min(first + width, depth)
        own = x_nxD[:, :last].T @ x_nxD[:, first:last]
        columns.append(jnp.pad(own, ((0, depth - last), (0, 0))))
    upper = jnp.triu(jnp.concatenate(columns, axis=1))
    return upper + jnp.triu(upper, 1).T


def sum_products(
    b_BxTxR: jax.Array, e_BxTxO: jax.Array, joined: Joined, width: int, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """`Σ_{i in A_k} g_i`, `[K, R, O]`; and `||g_i||`, `[B]`; and the sums by group, `[G, R, O]`.

    Args:
      b_BxTxR, e_BxTxO: features and weighted errors.
      joined: subsets and groups.
      width: outputs whose products are held at a time, where a row of devices shares features and
        errors; 0 where it shares the products.
      mesh: devices.
    """
    own = joined.num_subsets // mesh.shape[meshes.SUBSET]

    def add(g_nxRo: jax.Array, members: jax.Array) -> jax.Array:
        """Sums by subset of a row's products, which one of zeros for padding follows."""
        if members.ndim == 3:
            return gather_add(g_nxRo, members[0])
        first = jax.lax.axis_index(meshes.SUBSET) * own
        # Those of other devices fall outside and are dropped.
        place_n = jnp.where(members >= first, members - first, own)
        return jax.ops.segment_sum(g_nxRo[:-1], place_n, own)

    def by_group(g_nxRo: jax.Array, group_n: jax.Array | None) -> jax.Array | None:
        if group_n is None:
            return None
        # Those of no group come after the last one, and are dropped.
        place_n = jnp.where(group_n >= 0, group_n, joined.num_groups)
        return jax.ops.segment_sum(g_nxRo, place_n, joined.num_groups)

    row, everywhere = P(meshes.DATA), meshes.over_examples(mesh).spec
    rows = row if width else everywhere
    local = functools.partial(_shared_tokens if width else _shared_products, add, by_group, width)
    table = P(meshes.DATA, None, meshes.SUBSET) if joined.members.ndim == 3 else row
    # Norms and the groups' sums are the same along `subset`, which the checker can't know.
    summed = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, rows, table, rows),
        out_specs=(P(meshes.SUBSET), rows, P()), check_vma=False,
    )  # fmt: skip
    return summed(b_BxTxR, e_BxTxO, joined.members, joined.group_B)


def _shared_products(
    add: _Add,
    by_group: _Add,
    width: int,
    b_nxTxR: jax.Array,
    e_nxTxO: jax.Array,
    members: jax.Array,
    group_n: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Each device makes the products of its own examples, `[n, R, O]`, and its row shares them."""
    del width
    n, rank, outputs = len(b_nxTxR), b_nxTxR.shape[2], e_nxTxO.shape[2]
    g_nxRO = jnp.einsum("ntr,nto->nro", b_nxTxR, e_nxTxO).reshape(n, -1)
    row_nxRO = jax.lax.all_gather(g_nxRO, meshes.SUBSET, tiled=True)
    total = jax.lax.psum(add(jnp.pad(row_nxRO, ((0, 1), (0, 0))), members), meshes.DATA)
    named = jax.lax.psum(by_group(g_nxRO, group_n), (meshes.DATA, meshes.SUBSET))
    total, named = (jax.tree.map(lambda v: v.reshape(-1, rank, outputs), v) for v in (total, named))
    return total, jnp.sqrt((g_nxRO**2).sum(axis=1)), named


def _shared_tokens(
    add: _Add,
    by_group: _Add,
    width: int,
    b_nxTxR: jax.Array,
    e_nxTxO: jax.Array,
    members: jax.Array,
    group_n: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Each device of a row makes the products of all its examples, `width` outputs at a time."""
    (n, tokens, rank), outputs = b_nxTxR.shape, e_nxTxO.shape[2]
    blocks = -(-outputs // width)
    b_nxTxR = jnp.pad(b_nxTxR, ((0, 1), (0, 0), (0, 0)))
    padded = jnp.pad(e_nxTxO, ((0, 1), (0, 0), (0, blocks * width - outputs)))

    def block(e_nxTxo: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        g_nxRo = jnp.einsum("ntr,nto->nro", b_nxTxR, e_nxTxo).reshape(n + 1, -1)
        own_nxRo = g_nxRo[:-1]
        return add(g_nxRo, members), (own_nxRo**2).sum(axis=1), by_group(own_nxRo, group_n)

    def whole(sums: jax.Array) -> jax.Array:
        """Blocks of outputs joined, `[…, R, O]`."""
        sums = sums.reshape(blocks, -1, rank, width)
        return jnp.moveaxis(sums, 0, 2).reshape(*sums.shape[1:3], blocks * width)[..., :outputs]

    split = jnp.moveaxis(padded.reshape(n + 1, tokens, blocks, width), 2, 0)
    sums, squares_n, named = jax.lax.map(block, split)
    total, named = jax.lax.psum(jax.tree.map(whole, (sums, named)), meshes.DATA)
    return total, jnp.sqrt(squares_n.sum(axis=0)), named
