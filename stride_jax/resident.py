"""Parameters of the frozen model as a long loop reads them: rounded once, a copy on each device."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stride_jax.observed import Source
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.programs import shapes_everywhere, shapes_like
from stride_jax.taps import Params


def resident(source: Source, mesh: Mesh, memory: int) -> Source:
    """The source with its parameters as a long loop reads them: on each device as a whole.

    They are rounded to the dtype to which the model would round them each time. Where they would
    take more than half of the memory, those that are laid out over the mesh stay so.

    Args:
      source: its parameters, or their shapes.
      mesh: devices.
      memory: bytes on a device (`Execution.memory`).
    """

    def rounded(params: Params) -> Params:
        return jax.tree.map(lambda v: jnp.asarray(v, _rounded(v, source.dtype)), params)

    whole = meshes.replicated(mesh)
    leaves = jax.tree.leaves(source.params)
    abstract = any(isinstance(v, jax.ShapeDtypeStruct) for v in leaves)
    if abstract:
        params = shapes_everywhere(source.params, whole)
    else:
        params = meshes.everywhere(source.params, mesh)
    new = jax.eval_shape(rounded, params)
    nbytes = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(new))
    where = jax.tree.map(lambda v: whole if nbytes <= memory // 2 else v.sharding, params)
    new = shapes_like(new, where)
    if abstract:
        return source._replace(params=new)
    same = jax.tree.map(lambda v, n: (v.dtype, v.sharding) == (n.dtype, n.sharding), params, new)
    if not all(jax.tree.leaves(same)):
        params = jax.jit(rounded, out_shardings=where)(params)
    return source._replace(params=params)


def _rounded(v: Any, dtype: str | None) -> Any:
    """The dtype of a parameter once it is rounded; that of integers and narrower ones is theirs."""
    own = jnp.result_type(v)
    if dtype is None or not jnp.issubdtype(own, jnp.floating):
        return own
    return jnp.dtype(dtype) if own.itemsize > jnp.dtype(dtype).itemsize else own
