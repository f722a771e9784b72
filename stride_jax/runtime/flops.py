"""Operations and bytes of a program that was not compiled, from its jaxpr and its arguments."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_FREE = {
    "broadcast_in_dim", "reshape", "transpose", "slice", "dynamic_slice", "dynamic_update_slice",
    "concatenate", "pad", "squeeze", "expand_dims", "convert_element_type", "gather", "scatter",
    "iota", "copy", "rev", "split", "stop_gradient", "sharding_constraint", "bitcast_convert_type",
    "random_wrap", "random_unwrap", "random_bits", "threefry2x32", "random_fold_in", "random_seed",
    "shift_right_logical", "shift_left", "or", "xor", "and", "not", "eq", "ne", "lt", "le", "gt",
    "ge", "select_n", "argmax", "argmin", "sort", "top_k", "axis_index", "psum", "all_gather",
    "all_to_all", "psum_invariant", "pvary", "device_put", "copy_p",
}  # fmt: skip


def count_flops(program: Callable[..., Any], *args: Any, **statics: Any) -> float:
    """Floating-point operations of one call, on all devices together.

    A multiply-add counts as two; loops of unknown length count as one turn.

    Args:
      program: pure function.
      *args: arrays or `jax.ShapeDtypeStruct`s.
      **statics: static arguments.

    >>> count_flops(lambda a, b: a @ b, jnp.zeros((3, 4)), jnp.zeros((4, 5)))
    120.0
    """
    closed = jax.make_jaxpr(lambda *a: program(*a, **statics))(*args)
    return float(_jaxpr(closed.jaxpr))


def _jaxpr(jaxpr: Any) -> float:
    return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        return 2.0 * depth * _size(eqn.outvars[0])
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        out_features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * _size(eqn.outvars[0]) * math.prod(kernel) / out_features
    if name == "cholesky":
        n = eqn.invars[0].aval.shape[-1]
        return _size(eqn.invars[0]) * n / 3
    if name == "triangular_solve":
        return float(_size(eqn.invars[0]) ** 0.5 * _size(eqn.invars[1]))
    if name == "eigh":
        return 9.0 * _size(eqn.invars[0]) * eqn.invars[0].aval.shape[-1]
    inner = sum(_jaxpr(getattr(v, "jaxpr", v)) for v in _jaxprs(params))
    if inner:
        if name == "scan":
            return inner * params["length"]
        return inner * (params["mesh"].size if name == "shard_map" else 1)
    if name in _FREE or any(True for _ in _jaxprs(params)):
        return 0.0
    if name.startswith(("reduce_", "cum", "arg")):
        return float(_size(eqn.invars[0]))
    floats = [v for v in eqn.outvars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    return float(sum(map(_size, floats)))


def _jaxprs(params: dict[str, Any]) -> Any:
    for value in params.values():
        for v in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(v, "eqns") or hasattr(getattr(v, "jaxpr", None), "eqns"):
                yield v


def largest_product(program: Callable[..., Any], *args: Any) -> int:
    """Bytes of the largest matrix product or convolution that a program makes.

    Args:
      program: pure function.
      *args: arrays or `jax.ShapeDtypeStruct`s.

    >>> largest_product(lambda a, b: ((a @ b) @ b.T).sum(), jnp.zeros((3, 4)), jnp.zeros((4, 5)))
    60
    """
    return _largest(jax.make_jaxpr(program)(*args).jaxpr)


def _largest(jaxpr: Any) -> int:
    most = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            most = max(most, _size(eqn.outvars[0]) * eqn.outvars[0].aval.dtype.itemsize)
        most = max([most, *(_largest(getattr(v, "jaxpr", v)) for v in _jaxprs(eqn.params))])
    return most


def _size(v: Any) -> int:
    return math.prod(v.aval.shape)


def bytes_held(args: Any) -> int:
    """Bytes of arguments on a device, including those that the program does not read."""

    def own(v: jax.ShapeDtypeStruct) -> int:
        shape = v.shape if v.sharding is None else v.sharding.shard_shape(v.shape)
        return math.prod(shape) * v.dtype.itemsize

    leaves = jax.tree.leaves(args)
    return sum(own(v) for v in leaves if isinstance(v, jax.ShapeDtypeStruct))
