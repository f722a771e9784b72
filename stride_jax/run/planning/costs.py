"""Costs of one program: its operations, and a device's work once it is compiled."""

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from stride_jax.run.planning.modules import work_of
from stride_jax.runtime.flops import bytes_held, count_flops
from stride_jax.runtime.programs import Program


class Stage(NamedTuple):
    """A stage to be planned.

    Attributes:
      name: its name.
      program: what it compiles; None for what only holds memory.
      host_bytes: bytes that a process holds for it, its devices left out.
      held: abstract arrays with shardings, where there is no program.
      mesh: in whose scope the program is traced, where it does not say so itself.
    """

    name: str
    program: Program | None
    host_bytes: float = 0.0
    held: Any = ()
    mesh: Mesh | None = None


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Costs of a stage's program, and its number of calls.

    Attributes:
      name: name of the stage.
      calls: number of calls of the program, each on every device.
      flops: operations of one call on all its devices together, from its jaxpr.
      device_flops: operations of one call on one device, as compiled, with those that several
        devices repeat.
      argument_bytes: bytes of arguments on a device, padded as its layouts ask for.
      output_bytes: bytes of outputs on a device, without those aliased to donated arguments.
      temporary_bytes: peak of temporary bytes on a device.
      traffic_bytes: bytes read and written by one call on one device.
      communicated: bytes that a device receives per call, by collective.
      collectives: collectives per call, by kind.
      largest_gather: bytes of the largest array that an all-gather makes.
      cycles: of one call, as the compiler for TPUs estimates them, collectives left out; a loop
        whose length depends on the data counts as one turn. 0 by other compilers.
      kernel_flops: operations of kernels written by hand, which that estimate leaves out.
      halved_products: matrix products that read numbers of 16 bits.
      code_bytes: bytes of the program itself on a device.
      rows: examples or queries of one call; 0 where one call takes them all.
      devices: that share a call.
      host_bytes: bytes that a process holds for the stage, its devices left out.
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
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    largest_gather: int = 0
    cycles: float = 0.0
    kernel_flops: float = 0.0
    halved_products: int = 0
    code_bytes: int = 0
    rows: int = 0
    devices: int = 1
    host_bytes: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """Bytes that the stage takes on a device."""
        return self.argument_bytes + self.output_bytes + self.temporary_bytes + self.code_bytes

    @property
    def rows_each(self) -> float:
        """Rows that a device works through per call; 1 where one call takes them all."""
        return self.rows / self.devices if self.rows else 1.0


def cost(stage: Stage) -> StageCost:
    """Compile a stage's program and read its costs."""
    return cost_of(stage, lowered(stage))


def lowered(stage: Stage) -> Any:
    """A stage's program before it is compiled, from `jax.jit`'s `lower`; None without one."""
    if (own := stage.program) is None:
        return None
    with contextlib.nullcontext() if stage.mesh is None else jax.set_mesh(stage.mesh):
        return own.step.lower(*own.args, **own.statics)  # pyright: ignore[reportFunctionMemberAccess]


def cost_of(stage: Stage, program: Any) -> StageCost:
    """Costs of a stage.

    Args:
      stage: it.
      program: from `lowered`.
    """
    if stage.program is None:
        held = bytes_held(stage.held)
        return StageCost(stage.name, 1, 0, 0, held, 0, 0, 0, {}, host_bytes=stage.host_bytes)
    own, compiled = stage.program, program.compile()
    memory, work = compiled.memory_analysis(), work_of(compiled.as_text())
    return StageCost(
        name=stage.name,
        calls=own.calls,
        flops=_flops(stage),
        device_flops=work.flops,
        argument_bytes=max(bytes_held(own.args), int(memory.argument_size_in_bytes)),
        output_bytes=int(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temporary_bytes=int(memory.temp_size_in_bytes),
        traffic_bytes=work.traffic,
        communicated=work.sent,
        collectives=work.calls,
        largest_gather=work.gather,
        cycles=work.cycles,
        kernel_flops=work.kernels,
        halved_products=work.halved,
        code_bytes=int(memory.generated_code_size_in_bytes),
        rows=own.batch,
        devices=_devices(own.args),
        host_bytes=stage.host_bytes,
    )


def _flops(stage: Stage) -> float:
    own = stage.program
    assert own is not None, "a stage with a program"
    with contextlib.nullcontext() if stage.mesh is None else jax.set_mesh(stage.mesh):
        return count_flops(own.step, *own.args, **own.statics)


def _devices(args: Any) -> int:
    """Devices that a program's arguments are laid out over."""
    shardings = (getattr(v, "sharding", None) for v in jax.tree.leaves(args))
    return max((len(one.device_set) for one in shardings if one is not None), default=1)


def gib(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"
