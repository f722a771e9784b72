"""Costs of one program: its operations by its jaxpr, and a device's work once it is compiled."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from stride_jax.run.planning.modules import work_of
from stride_jax.runtime.programs import Program

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


def _size(v: Any) -> int:
    return math.prod(v.aval.shape)


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Costs of a stage's program, and its number of calls.

    Attributes:
      name: name of the stage.
      calls: number of calls of the program, each on every device.
      flops: operations of one call on all its devices together, from its jaxpr.
      device_flops: operations of one call on one device, as compiled, with those that several
        devices repeat.
      argument_bytes: bytes of arguments on a device.
      output_bytes: bytes of outputs on a device, without those aliased to donated arguments.
      temporary_bytes: peak of temporary bytes on a device.
      traffic_bytes: bytes read and written by one call on one device.
      communicated: bytes that a device receives per call, by collective.
    """

    name: str
    calls: int
    flops: float
    device_flops: float
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    traffic_bytes: float
    communicated: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """Bytes that the stage takes on a device."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes


def cost(name: str, program: Program) -> StageCost:
    """Compile a stage's program and read its costs.

    Args:
      name: name of the stage.
      program: step, abstract arguments with shardings, and number of calls.
    """
    compiled = program.step.lower(*program.args, **program.statics).compile()  # pyright: ignore[reportFunctionMemberAccess]
    memory, work = compiled.memory_analysis(), work_of(compiled.as_text())
    aliased = getattr(memory, "alias_size_in_bytes", 0)
    return StageCost(
        name,
        program.calls,
        count_flops(program.step, *program.args, **program.statics),
        work.flops,
        _held(program.args),
        int(memory.output_size_in_bytes - aliased),
        int(memory.temp_size_in_bytes),
        work.traffic,
        work.sent,
    )


def _held(args: Any) -> int:
    """Bytes of arguments on a device, including those that the program does not read."""

    def own(v: jax.ShapeDtypeStruct) -> int:
        shape = v.shape if v.sharding is None else v.sharding.shard_shape(v.shape)
        return math.prod(shape) * v.dtype.itemsize

    leaves = jax.tree.leaves(args)
    return sum(own(v) for v in leaves if isinstance(v, jax.ShapeDtypeStruct))


def gib(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"
