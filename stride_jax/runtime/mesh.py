"""The device mesh and where each kind of array lives on it.

Two axes: examples and queries are split over `data`, the K subsets over `subset`. On one device
both have size one and every sharding is trivial, so there is one code path.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, SUBSET = "data", "subset"


def make_mesh(data: int = 1, subset: int = -1) -> Mesh:
    """Mesh `(data, subset)` over this process's devices; -1 fills an axis.

    Args:
      data: devices along the axis of examples and queries.
      subset: devices along the axis of subsets.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.

    >>> mesh = make_mesh()
    >>> mesh.axis_names
    ('data', 'subset')
    """
    count = len(jax.devices())
    shape = [data, subset]
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
    # Auto axes: under Explicit ones (the default since jax 0.9) jaxopt's vmapped loops raise.
    return jax.make_mesh(tuple(shape), (DATA, SUBSET), axis_types=(AxisType.Auto,) * 2)


def over_subsets(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is the K subsets."""
    return NamedSharding(mesh, P(SUBSET))


def over_examples(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first axis is examples or queries: over all devices."""
    return NamedSharding(mesh, P((DATA, SUBSET)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def check_divisible(name: str, size: int, mesh: Mesh, axis: str) -> None:
    """Refuse a size that the mesh axis can't split evenly.

    Raises:
      ValueError: naming the size, the axis and a size that would do.
    """
    devices = mesh.shape[axis]
    if size % devices:
        raise ValueError(
            f"{name}={size} can't be split over the {devices} devices of mesh axis '{axis}'; "
            f"use {math.ceil(size / devices) * devices} or a mesh with fewer devices on that axis"
        )


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Pad the first axis to `rows` by repeating the last row, so that every batch has one shape."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
