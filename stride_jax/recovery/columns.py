"""The columns of M, and one pass over all of them.

A pass finds, for every query at once, which of the N columns correlate most with its residual.
`Mᵀ r` is a gather-and-add of d rows of `[K, Q]`, contiguous over queries; it is computed in chunks
that stay in cache and is reduced at once to one maximum per group of examples, so that no array of
N x Q numbers is ever made.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.design import Design, gather_add
from stride_jax.runtime.mesh import local_mesh

# Columns in flight in a pass: `[512, 64]` float32 fills a quarter of a core's L2 cache.
_IN_FLIGHT = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LassoState:
    """A design, ready for passes over its columns.

    Rows `j G + i` for j = 0, 1, … make up group i: members of a group lie far apart, so that
    neighbours in the corpus, often alike, fall into different groups.

    Attributes:
      table_PxD: the d subsets of every example, padded to P rows with K.
      penalty_P: penalty weights of the examples; None where all are one.
      num_train: N.
      num_subsets: K.
      group: examples in a group.
      mesh: devices.
      sharded: whether the columns are split over the devices; else every device has them all and
        the queries are split.
    """

    table_PxD: jax.Array
    penalty_P: jax.Array | None
    num_train: int = dataclasses.field(metadata={"static": True})
    num_subsets: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    mesh: Mesh = dataclasses.field(metadata={"static": True})
    sharded: bool = dataclasses.field(metadata={"static": True})

    @property
    def groups(self) -> int:
        """G, groups on one device."""
        parts = self.mesh.size if self.sharded else 1
        return self.table_PxD.shape[0] // (parts * self.group)

    @property
    def over_columns(self) -> P:
        """How the table is laid out over the mesh."""
        return P(self.mesh.axis_names) if self.sharded else P()


def init(
    design: Design,
    subsets_Nxd: jax.Array | np.ndarray,
    *,
    penalty_N: np.ndarray | None = None,
    mesh: Mesh | None = None,
    shard_columns: bool = False,
) -> LassoState:
    """Prepare a design for `solve`, once.

    Args:
      design: K.
      subsets_Nxd: `[N, d]` membership of the training examples; entries of K are padding.
      penalty_N: positive weight of each example's penalty, `lambda_i = lambda penalty_i`.
      mesh: devices; all of this process by default.
      shard_columns: split the N columns over the devices, for an N that one of them can't hold,
        instead of copying them to each.

    Returns:
      The state: `N d` integers of 2 bytes where K < 32,768.

    Raises:
      ValueError: entries outside 0 … K, or penalty weights that are not positive and finite.

    >>> from stride_jax.design import membership
    >>> design = Design(num_subsets=20, degree=3)
    >>> init(design, membership(design, [str(i) for i in range(50)])).num_train
    50
    """
    table = np.asarray(subsets_Nxd)
    k, n = design.num_subsets, len(table)
    if n == 0 or table.min() < 0 or table.max() > k:
        raise ValueError(
            f"membership of shape {table.shape} does not fit K={k}: entries must lie in 0 … {k - 1}"
        )
    if penalty_N is not None:
        penalty_N = np.asarray(penalty_N, np.float32)
        if penalty_N.shape != (n,) or not (penalty_N > 0).all() or np.isinf(penalty_N).any():
            raise ValueError(
                f"penalty weights of shape {penalty_N.shape}, least {penalty_N.min()}: they must "
                f"be {n} positive finite numbers"
            )
    if mesh is None:
        mesh = local_mesh()
    padded, group, dtype = layout(n, k, mesh.size if shard_columns else 1)
    table_PxD = np.full((padded, table.shape[1]), k, dtype)
    table_PxD[:n] = table
    place = NamedSharding(mesh, P(mesh.axis_names) if shard_columns else P())
    weights = None
    if penalty_N is not None:
        weights = np.ones(padded, np.float32)
        weights[:n] = penalty_N
        weights = jax.device_put(weights, place)
    return LassoState(jax.device_put(table_PxD, place), weights, n, k, group, mesh, shard_columns)


def layout(num_train: int, num_subsets: int, parts: int = 1) -> tuple[int, int, type]:
    """P rows of the table split into so many parts, examples in a group, and the table's dtype."""
    # A long group spares the search for the largest maxima, and costs more when one is opened.
    group = max(1, round(math.sqrt(num_train / parts / 400)))
    block = max(1, _IN_FLIGHT // group) * group
    padded = math.ceil(num_train / (parts * block)) * parts * block
    return padded, group, np.int16 if num_subsets < 2**15 else np.int32


def init_rows(rows_KxS: np.ndarray, num_train: int, *, mesh: Mesh | None = None) -> LassoState:
    """Prepare any binary M, given by the members of each row, for `solve`.

    Args:
      rows_KxS: training rows of each subset, all of one size, distinct within a row.
      num_train: N.
      mesh: as in `init`.
    """
    k, size = rows_KxS.shape
    flat = rows_KxS.reshape(-1)
    order = np.argsort(flat, kind="stable")
    degrees = np.bincount(flat, minlength=num_train)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    subsets = np.full((num_train, max(1, int(degrees.max()))), k, np.int32)
    subsets[flat[order], place] = order // size
    return init(Design(k, 1), subsets, mesh=mesh)


def group_maxima(
    table_PxD: jax.Array,
    penalty_P: jax.Array | None,
    r_LxQ: jax.Array,
    group: int,
    signed: bool,
) -> jax.Array:
    """One pass over all columns: the largest correlation in each group of examples.

    Args:
      table_PxD: columns of this device.
      penalty_P: their penalty weights, or None.
      r_LxQ: `[K + 1, Q]` residuals, the last row zero.
      group: examples in a group.
      signed: `max m_iᵀ r` rather than `max |m_iᵀ r|`, for non-negative influences.

    Returns:
      `[G, Q]` maxima of `m_iᵀ r / penalty_i`.
    """
    groups, degree = table_PxD.shape[0] // group, table_PxD.shape[1]
    width = max(1, _IN_FLIGHT // group)
    table = table_PxD.reshape(group, groups, degree)

    def correlate(c: jax.Array) -> jax.Array:
        some = jax.lax.dynamic_slice_in_dim(table, c * width, width, axis=1)
        found = gather_add(r_LxQ, jnp.moveaxis(some.astype(jnp.int32), -1, 0))
        if penalty_P is not None:
            weights = penalty_P.reshape(group, groups)
            some = jax.lax.dynamic_slice_in_dim(weights, c * width, width, axis=1)
            found = found / some[:, :, None]
        return found

    def reduce(found: jax.Array) -> jax.Array:
        return (found if signed else jnp.abs(found)).max(axis=0)

    def step(last: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The maximum of the chunk before: fused with its own gather, XLA would run the loop over
        # members innermost and lose the vector units (five times slower).
        return correlate(c), reduce(last)

    last, most = jax.lax.scan(step, correlate(jnp.int32(0)), jnp.arange(1, groups // width))
    return jnp.concatenate([most.reshape(-1, r_LxQ.shape[1]), reduce(last)])


def pass_bytes(state: LassoState, queries: int) -> int:
    """Memory of a pass for this many queries on one device, the table aside."""
    in_flight = 2 * max(_IN_FLIGHT, state.group)
    return 4 * queries * (in_flight + 2 * state.groups + 4 * (state.num_subsets + 1))
