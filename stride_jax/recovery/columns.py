"""The columns of M, and one pass over all of them.

A pass finds, for every query at once, which of the N columns correlate most with its residual.
`Mᵀ r` is a gather-and-add of d rows of `[K, Q]`, contiguous over queries; it is computed in chunks
that stay in cache and is reduced at once to one maximum per group of examples, so that no array of
N x Q numbers is ever made. On a TPU, which gathers a row at a time, a chunk of M is written out as
zeros and ones and the product taken on the matrix unit, faster by estimate (docs/lab.md).

Letters: P rows of the padded table, G groups of examples, L = K + 1 entries of a residual with a
zero for padding.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.design import Design, gather_add
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.mesh import local_mesh
from stride_jax.runtime.programs import shape
from stride_jax.runtime.rows import Rows, chunks

# Columns in flight in a pass: `[512, 64]` float32 fills a quarter of a core's L2 cache.
_IN_FLIGHT = 512
# The same of a product on the matrix unit: `[4096, 1000]` bfloat16 lies in a TPU's vector memory.
_WRITTEN_OUT = 4096


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LassoState:
    """A design, ready for passes over its columns.

    Rows `j G + i` for j = 0, 1, … make up group i: members of a group lie far apart, so that
    neighbours in the corpus, often alike, fall into different groups.

    Attributes:
      table_Pxd: the d subsets of every example, padded to P rows with K.
      penalty_P: penalty weights of the examples; None where all are one.
      num_train: N.
      num_subsets: K.
      group: examples in a group.
      mesh: devices of this process.
      sharded: whether the columns are split over the devices; else every device has them all and
        the queries are split.
      memory: bytes that a pass may take on a device, the table aside.
      one_hot: whether M is written out in chunks, for the matrix unit.
    """

    table_Pxd: jax.Array
    penalty_P: jax.Array | None
    num_train: int = dataclasses.field(metadata={"static": True})
    num_subsets: int = dataclasses.field(metadata={"static": True})
    group: int = dataclasses.field(metadata={"static": True})
    mesh: Mesh = dataclasses.field(metadata={"static": True})
    sharded: bool = dataclasses.field(metadata={"static": True})
    memory: int = dataclasses.field(metadata={"static": True})
    one_hot: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def in_flight(self) -> int:
        """Columns that a pass computes together, at least."""
        return _WRITTEN_OUT if self.one_hot else _IN_FLIGHT

    @functools.cached_property
    def parts(self) -> dict[bytes, "LassoState"]:
        """Designs of some of the subsets that were prepared already, by their mask."""
        return {}

    @property
    def groups(self) -> int:
        """G, groups on one device."""
        parts = self.mesh.size if self.sharded else 1
        return self.table_Pxd.shape[0] // (parts * self.group)

    @property
    def over_columns(self) -> P:
        """How the table is laid out over the mesh."""
        return P(self.mesh.axis_names) if self.sharded else P()

    @property
    def over_queries(self) -> P:
        """How arrays with a row per query are laid out over the mesh."""
        return P(self.mesh.axis_names)


def state_shapes(
    table_shape: tuple[int, int],
    num_subsets: int,
    *,
    weighted: bool,
    execution: Execution = Execution(),
    shard_columns: bool = False,
    one_hot: bool | None = None,
) -> LassoState:
    """A state of abstract arrays: what `init` fills, and what a plan compiles for.

    Args:
      table_shape: N and d.
      num_subsets: K.
      weighted: whether examples have penalty weights.
      execution, shard_columns, one_hot: as in `init`.
    """
    num_train, degree = table_shape
    mesh = _own_mesh(execution)
    parts = mesh.size if shard_columns else 1
    written_out = mesh.devices.flat[0].platform == "tpu" if one_hot is None else one_hot
    # A long group spares the search for the largest maxima, and costs more when one is opened.
    group = max(1, round(math.sqrt(num_train / parts / 400)))
    in_flight = _WRITTEN_OUT if written_out else _IN_FLIGHT
    block = max(1, in_flight // group) * group
    padded = math.ceil(num_train / (parts * block)) * parts * block
    where = NamedSharding(mesh, P(mesh.axis_names) if shard_columns else P())
    return LassoState(
        shape((padded, degree), np.int16 if num_subsets < 2**15 else np.int32, where),
        shape((padded,), np.float32, where) if weighted else None,
        num_train, num_subsets, group, mesh, shard_columns, execution.memory, written_out,
    )  # fmt: skip


def _own_mesh(execution: Execution) -> Mesh:
    """The mesh of the execution, or this process's part: processes do not recover together."""
    mesh = execution.mesh
    if mesh is None or any(d.process_index != jax.process_index() for d in mesh.devices.flat):
        return local_mesh()
    return mesh


def init(
    design: Design,
    subsets_Nxd: jax.Array | np.ndarray | Rows,
    *,
    penalty_N: np.ndarray | None = None,
    execution: Execution = Execution(),
    shard_columns: bool = False,
    one_hot: bool | None = None,
) -> LassoState:
    """Prepare a design for `solve`, once.

    Args:
      design: K.
      subsets_Nxd: `[N, d]` membership of the training examples, read in chunks; entries of K are
        padding.
      penalty_N: positive weight of each example's penalty, `lambda_i = lambda penalty_i`.
      execution: its mesh, this process's devices by default, and its memory.
      shard_columns: split the N columns over the devices, for an N that one of them can't hold,
        instead of copying them to each.
      one_hot: multiply chunks of M, written out, instead of gathering; by default on a TPU.

    Returns:
      The state: `N d` integers of 2 bytes where K < 32,768.

    Raises:
      ValueError: entries outside 0 … K, or penalty weights that are not positive and finite.

    >>> from stride_jax.design import membership
    >>> design = Design(num_subsets=20, degree=3)
    >>> init(design, membership(design, [str(i) for i in range(50)])).num_train
    50
    """
    k, shape_Nxd = design.num_subsets, np.shape(subsets_Nxd)
    refused = ValueError(
        f"membership of shape {shape_Nxd} does not fit K={k}: entries must lie in 0 … {k - 1}"
    )
    if len(shape_Nxd) != 2 or 0 in shape_Nxd:
        raise refused
    n = shape_Nxd[0]
    if penalty_N is not None:
        penalty_N = np.asarray(penalty_N, np.float32)
        if penalty_N.shape != (n,) or not (penalty_N > 0).all() or np.isinf(penalty_N).any():
            raise ValueError(
                f"penalty weights of shape {penalty_N.shape}, least {penalty_N.min()}: they must "
                f"be {n} positive finite numbers"
            )
    shapes = state_shapes(
        (n, shape_Nxd[1]), k, weighted=penalty_N is not None, execution=execution,
        shard_columns=shard_columns, one_hot=one_hot,
    )  # fmt: skip
    like = shapes.table_Pxd
    table_Pxd = np.full(like.shape, k, like.dtype)
    for first, part in chunks(
        subsets_Nxd if isinstance(subsets_Nxd, Rows) else np.asarray(subsets_Nxd)
    ):
        if part.min() < 0 or part.max() > k:
            raise refused
        table_Pxd[first : first + len(part)] = part
    penalty_P = None
    if penalty_N is not None:
        penalty_P = np.ones(len(table_Pxd), np.float32)
        penalty_P[:n] = penalty_N
        penalty_P = jax.device_put(penalty_P, like.sharding)
    return dataclasses.replace(
        shapes, table_Pxd=jax.device_put(table_Pxd, like.sharding), penalty_P=penalty_P
    )


def init_rows(
    rows_KxS: np.ndarray, num_train: int, *, execution: Execution = Execution()
) -> LassoState:
    """Prepare any binary M, given by the members of each row, for `solve`.

    Args:
      rows_KxS: training rows of each subset, all of one size, distinct within a row.
      num_train: N.
      execution: as in `init`.
    """
    k, size = rows_KxS.shape
    flat = rows_KxS.reshape(-1)
    order = np.argsort(flat, kind="stable")
    degrees = np.bincount(flat, minlength=num_train)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    subsets = np.full((num_train, max(1, int(degrees.max()))), k, np.int32)
    subsets[flat[order], place] = order // size
    return init(Design(k, 1), subsets, execution=execution)


def group_maxima(state: LassoState, r_LxQ: jax.Array, signed: bool) -> jax.Array:
    """One pass over all columns of a device: the largest correlation in each group of examples.

    Args:
      state: with the columns of this device.
      r_LxQ: `[K + 1, Q]` residuals, the last row zero.
      signed: `max m_iᵀ r` rather than `max |m_iᵀ r|`, for influences that are not negative.

    Returns:
      `[G, Q]` maxima of `m_iᵀ r / penalty_i`.
    """
    group, degree = state.group, state.table_Pxd.shape[1]
    groups = state.table_Pxd.shape[0] // group
    width = max(1, state.in_flight // group)
    product = one_hot_product if state.one_hot else gather_add
    table = state.table_Pxd.reshape(group, groups, degree)

    def correlate(c: jax.Array) -> jax.Array:
        some = jax.lax.dynamic_slice_in_dim(table, c * width, width, axis=1)
        sums = product(r_LxQ, jnp.moveaxis(some.astype(jnp.int32), -1, 0))
        if state.penalty_P is not None:
            weights = state.penalty_P.reshape(group, groups)
            some = jax.lax.dynamic_slice_in_dim(weights, c * width, width, axis=1)
            sums = sums / some[:, :, None]
        return sums

    def reduce(sums: jax.Array) -> jax.Array:
        return (sums if signed else jnp.abs(sums)).max(axis=0)

    def step(last: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
        # The maximum of the chunk before: fused with its own gather, XLA would run the loop over
        # members innermost and lose the vector units (five times slower).
        return correlate(c), reduce(last)

    rest = jnp.arange(1, groups // width, dtype=jnp.int32)
    last, maxima = jax.lax.scan(step, correlate(jnp.int32(0)), rest)
    return jnp.concatenate([maxima.reshape(-1, r_LxQ.shape[1]), reduce(last)])


def one_hot_product(r_LxQ: jax.Array, index_dx: jax.Array) -> jax.Array:
    """`design.gather_add` of distinct rows, on the matrix unit.

    Zeros and ones are bfloat16 numbers, and a float32 is the sum of three of them, which lie beside
    each other: few queries leave room. So all products are exact.
    """
    length, queries = r_LxQ.shape
    entries = jnp.arange(length, dtype=index_dx.dtype)
    entries = jnp.expand_dims(entries, range(index_dx.ndim - 1))
    joins = index_dx[0][..., None] == entries
    for j in range(1, index_dx.shape[0]):
        joins = joins | (index_dx[j][..., None] == entries)
    parts, rest = [], r_LxQ
    for _ in range(3):
        # A conversion there and back may be left out: rounding by bits may not.
        parts.append(jax.lax.reduce_precision(rest, 8, 7))
        rest = rest - parts[-1]
    r_Lx3Q = jnp.concatenate(parts, axis=1).astype(jnp.bfloat16)
    sums = jnp.einsum(
        "...l,lq->...q", joins.astype(jnp.bfloat16), r_Lx3Q, preferred_element_type=jnp.float32
    )
    return sums.reshape(*sums.shape[:-1], 3, queries).sum(axis=-2)


def pass_bytes(state: LassoState, queries: int) -> int:
    """Memory of a pass for this many queries on one device, the table aside."""
    in_flight = 2 * max(state.in_flight, state.group)
    # Of a chunk written out two bytes a number, and three parts of each sum.
    written = 2 * in_flight * (state.num_subsets + 1) if state.one_hot else 0
    sums = (4 if state.one_hot else 1) * in_flight + 2 * state.groups
    return written + 4 * queries * (sums + 4 * (state.num_subsets + 1))
