"""The device mesh, and the sharding of each kind of array over it.

Two axes: examples and queries are split over all devices, the K subsets over `subset`. On one
device both have size one and every sharding is trivial; with several processes, each one gives
and gets the rows of its own devices. So there is one code path.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from stride_jax.runtime.rows import Rows

DATA, SUBSET = "data", "subset"


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """The arrangement of the devices of all processes.

    Attributes:
      data: devices along the axis of examples; −1 for all that are left.
      subset: devices along the axis of subsets; 0 for as many as divide K.
      parameters: layout of the base model: `replicated`; or `sharded`, which splits each array over
        all devices along its longest axis that they divide. Loops over examples then read a copy
        on each device, in the model's own dtype, if it takes at most half of `Execution.memory`.
    """

    data: int = -1
    subset: int = 0
    parameters: str = "replicated"

    def __post_init__(self) -> None:
        if self.parameters not in ("replicated", "sharded"):
            raise ValueError(f"parameters={self.parameters!r}: use 'replicated' or 'sharded'")


def make_mesh(data: int = 1, subset: int = -1, devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh `(data, subset)` over the devices of all processes; −1 for all that are left.

    Args:
      data: devices along the axis of examples and queries.
      subset: devices along the axis of subsets.
      devices: others than those of all processes.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.

    >>> mesh = make_mesh()
    >>> mesh.axis_names
    ('data', 'subset')
    """
    devices = jax.devices() if devices is None else devices
    count, shape = len(devices), [data, subset]
    if shape.count(-1) > 1:
        raise ValueError(f"mesh data={data}, subset={subset}: only one axis may be -1")
    if -1 in shape:
        known = -math.prod(shape)
        shape[shape.index(-1)] = count // known if known > 0 else 0
    if math.prod(shape) != count:
        raise ValueError(
            f"mesh data={data}, subset={subset} does not use all {count} devices; "
            "choose sizes whose product is that number, or -1 for one of them"
        )
    return arranged((shape[0], shape[1]), devices)


def arranged(shape: tuple[int, int], devices: Sequence[Any]) -> Mesh:
    """Mesh `(data, subset)` of this shape over the first of these devices."""
    # Not `jax.make_mesh`, which splits axes of no torus but v5e's: 8 x 8 of 4 x 4 x 4 is refused.
    grid = mesh_utils.create_device_mesh(
        shape, devices[: math.prod(shape)], allow_split_physical_axes=True
    )
    # Auto axes: under Explicit ones (the default since jax 0.9) jaxopt's vmapped loops raise.
    return Mesh(grid, (DATA, SUBSET), axis_types=(AxisType.Auto,) * 2)


def mesh_for(
    num_subsets: int, settings: MeshSettings = MeshSettings(), devices: Sequence[Any] | None = None
) -> Mesh:
    """The mesh of the settings for K subsets; by default as many devices along `subset` as fit.

    Args:
      num_subsets: K.
      settings: arrangement.
      devices: all of these; by default those of all processes.
    """
    own = jax.devices() if devices is None else devices
    subset = settings.subset or math.gcd(num_subsets, len(own))
    mesh = make_mesh(settings.data, subset, own)
    check_divisible("num_subsets", num_subsets, mesh, SUBSET)
    return mesh


def local_mesh() -> Mesh:
    """The devices of this process alone, for work that is divided among processes."""
    return arranged((1, len(jax.local_devices())), jax.local_devices())


def single_mesh() -> Mesh:
    """One device of this process, for small work whose rounding must not depend on the mesh."""
    return arranged((1, 1), jax.local_devices())


def traced_over(mesh: Mesh) -> Any:
    """Context in which a model is traced whose batch lies over all devices of the mesh.

    A kernel of an accelerator, which the compiler can't divide, asks for it (`models.attention`).
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def over_subsets(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the K subsets."""
    return NamedSharding(mesh, P(SUBSET))


def over_examples(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is examples or queries: over all devices."""
    return NamedSharding(mesh, P((DATA, SUBSET)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds as a whole."""
    return NamedSharding(mesh, P())


def sharded_parameters(params: Any, mesh: Mesh, tables_by_width: bool = False) -> Any:
    """Shardings of a model's parameters: the longest axis that the devices divide, if any does.

    An optimiser's moments have names and shapes of their parameters, so they lie where these do.

    Args:
      params: arrays or shapes.
      mesh: devices.
      tables_by_width: whether tables of embeddings are split along their last axis, where the
        devices divide it: a device then looks up its share of every token's row, and what moves is
        what was looked up. Split by rows, each would need all tokens of all devices.
    """

    def rule(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        fitting = [i for i, size in enumerate(leaf.shape) if size and size % mesh.size == 0]
        longest = max(fitting, key=lambda i: leaf.shape[i], default=None)
        is_table = tables_by_width and path and getattr(path[-1], "key", None) == "embedding"
        if is_table and leaf.ndim - 1 in fitting:
            longest = leaf.ndim - 1
        axes = [mesh.axis_names if i == longest else None for i in range(leaf.ndim)]
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(rule, params)


def split_rows(x: jax.Array) -> jax.Array:
    """A batch of activations, split over all devices of the mesh that is in scope; traced.

    Without it, parameters that are split draw activations after them, and each device gets those of
    the whole batch. As it is where no mesh is in scope, where its axes are `shard_map`'s, or where
    the devices do not divide the batch.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or set(mesh.axis_types) != {AxisType.Auto} or x.shape[0] % mesh.size:
        return x
    return jax.lax.with_sharding_constraint(x, P(mesh.axis_names))


def parameters_layout(params: Any, parameters: str, mesh: Mesh) -> Any:
    """Shardings of a model's parameters or moments by `MeshSettings.parameters`."""
    if parameters == "sharded":
        return sharded_parameters(params, mesh)
    return jax.tree.map(lambda _: replicated(mesh), params)


def place(tree: Any, sharding: Any, rows: np.ndarray | None = None) -> Any:
    """Arrays that every process holds, or some of their rows, laid out over devices.

    Args:
      tree: arrays; of memory-mapped ones, and of `Rows`, a process reads only the rows of its own
        devices.
      sharding: one for all arrays, or a tree of them.
      rows: indices along the first axis, in an array of any shape, which takes the place of that
        axis; all by default.
    """
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def one(v: Any, where: NamedSharding) -> jax.Array:
        if jax.process_count() == 1:
            own = v if rows is None else v[rows]
            return jax.device_put(np.asarray(own) if isinstance(own, Rows) else own, where)
        if isinstance(v, jax.Array) and not v.is_fully_addressable:
            return jax.device_put(v, where)
        v = v if isinstance(v, (np.ndarray, Rows)) else np.asarray(v)
        shape = v.shape if rows is None else (*rows.shape, *v.shape[1:])
        dtype = jax.dtypes.canonicalize_dtype(v.dtype)

        def read(at: Any) -> np.ndarray:
            if rows is None:
                return np.asarray(v[at], dtype)
            own = rows[at[: rows.ndim]]
            return np.asarray(v[own][(slice(None),) * rows.ndim + at[rows.ndim :]], dtype)

        return jax.make_array_from_callback(shape, where, read)

    return jax.tree.map(one, tree, sharding)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays are laid out over; None if they are not."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            return leaf.sharding.mesh  # pyright: ignore[reportReturnType]
    return None


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """Arrays on every device of the mesh, except for those laid out over it already."""
    whole = replicated(mesh)

    def one(v: Any) -> jax.Array:
        return v if mesh_of(v) == mesh else place(v, whole)

    return jax.tree.map(one, tree)


def fetch(array: Any) -> np.ndarray:
    """A device array on the host of every process, gathered where other processes hold parts."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def cut(v: jax.Array, devices: int, parts: int) -> jax.Array:
    """A batch in parts with as many rows of each device, so that no row moves: `[parts, n, …]`."""
    own = v.reshape(devices, parts, -1, *v.shape[1:])
    return jnp.swapaxes(own, 0, 1).reshape(parts, -1, *v.shape[1:])


def joined(v: jax.Array, devices: int) -> jax.Array:
    """The batch that `cut` cut."""
    own = v.reshape(v.shape[0], devices, -1, *v.shape[2:])
    return jnp.swapaxes(own, 0, 1).reshape(-1, *v.shape[2:])


def check_divisible(name: str, size: int, mesh: Mesh, axis: str) -> None:
    """Refuse a size that the mesh axis can't split evenly.

    Raises:
      ValueError: the message has the size, the axis and a size that fits.
    """
    devices = mesh.shape[axis]
    if size % devices:
        raise ValueError(
            f"{name}={size} can't be split over the {devices} devices of mesh axis '{axis}'; "
            f"use {math.ceil(size / devices) * devices} or a mesh with fewer devices on that axis"
        )


def even(count: int, most: int) -> int:
    """Rows per batch, at most `most`, that leave the last batch about as full as the others.

    >>> even(4500, 2048)
    1500
    """
    batches = max(1, -(-count // most))
    return max(1, -(-count // batches))


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Pad the first axis to `rows` by repeating the last row, so that every batch has one shape."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
