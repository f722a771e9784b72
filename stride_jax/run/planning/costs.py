"""Costs of one program: its operations, and a device's work once it is compiled."""

import dataclasses

from stride_jax.run.planning.modules import work_of
from stride_jax.runtime.flops import bytes_held, count_flops
from stride_jax.runtime.programs import Program


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
        bytes_held(program.args),
        int(memory.output_size_in_bytes - aliased),
        int(memory.temp_size_in_bytes),
        work.traffic,
        work.sent,
    )


def gib(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count / 1024:.1f} KiB"
