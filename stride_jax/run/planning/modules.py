"""Work of a compiled program on one device, from the text of its HLO module.

XLA's own cost analysis counts a loop's body once and calls of LAPACK not at all; the text has the
turns of each loop, the shapes of each call, and on TPUs the compiler's estimate of cycles.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable

from stride_jax.run.planning.hlo import Computation, Instruction, Known, Module, parse
from stride_jax.run.planning.instructions import (
    bytes_of,
    flops_of,
    fused_bytes,
    halves,
    kernel_flops,
)
from stride_jax.run.planning.loops import started, turns

_COLLECTIVES = {
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
}  # fmt: skip
_NAME = re.compile(r"%([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{[^}]*\}|true_computation=%[\w.\-]+, false_computation=%[\w.\-]+"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# A collective of groups of one device.
_ALONE = re.compile(r"replica_groups=(?:\{(?:\{\d+\},?)+\}|\[\d+,1\]|mesh\[[^\]]*\] \{\})")


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one device in one call.

    Attributes:
      flops: floating-point operations; a multiply-add is two, a loop of unknown length one turn.
      traffic: bytes read and written by fused groups of operations, as if nothing were cached.
      cycles: that the compiler for TPUs expects of all but collectives; 0 by other compilers.
      sent: bytes that the device receives by each kind of collective.
      calls: number of collectives of each kind.
      gather: bytes of the largest array that an all-gather makes.
      halved: matrix products that read numbers of 16 bits.
      kernels: operations of kernels written by hand, which are in `flops` but not in `cycles`.
    """

    flops: float = 0.0
    traffic: float = 0.0
    cycles: float = 0.0
    sent: dict[str, int] = dataclasses.field(default_factory=dict)
    calls: dict[str, int] = dataclasses.field(default_factory=dict)
    gather: int = 0
    halved: int = 0
    kernels: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.flops + other.flops,
            self.traffic + other.traffic,
            self.cycles + other.cycles,
            _added(self.sent, other.sent),
            _added(self.calls, other.calls),
            max(self.gather, other.gather),
            self.halved + other.halved,
            self.kernels + other.kernels,
        )

    def times(self, turns: int) -> "Work":
        """Work of a loop with this many turns."""
        return dataclasses.replace(
            self,
            flops=self.flops * turns,
            traffic=self.traffic * turns,
            cycles=self.cycles * turns,
            kernels=self.kernels * turns,
            sent={kind: count * turns for kind, count in self.sent.items()},
            calls={kind: count * turns for kind, count in self.calls.items()},
        )


def _added(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    return {kind: a.get(kind, 0) + b.get(kind, 0) for kind in sorted(a.keys() | b.keys())}


def work_of(hlo: str) -> Work:
    """Work of a compiled module's entry computation.

    Args:
      hlo: `compiled.as_text()`.

    >>> import jax, jax.numpy as jnp
    >>> square = lambda a: jax.lax.fori_loop(0, 5, lambda i, b: a @ b, a)
    >>> work_of(jax.jit(square).lower(jnp.ones((30, 30))).compile().as_text()).flops // 1000
    270.0
    """
    module = parse(hlo)

    @functools.cache
    def total(name: str, known: tuple[tuple[int, int], ...] = ()) -> Work:
        own = module.computations[name]
        return _joined(_instruction(i, own, module, total, dict(known)) for i in own.values())

    return total(module.entry)


def _joined(parts: Iterable[Work]) -> Work:
    return functools.reduce(Work.__add__, parts, Work())


def _instruction(
    i: Instruction,
    own: Computation,
    module: Module,
    total: Callable[..., Work],
    known: Known,
) -> Work:
    """Work of one instruction and of what it calls."""
    if i.opcode == "while":
        count, fixed = turns(i, started(own, i, known, module), module)
        return _joined(total(name, tuple(fixed.items())) for name in i.called).times(count or 1)
    if i.opcode in ("call", "async-start"):
        return _joined(map(total, i.called))
    if i.opcode == "conditional":
        branches = _BRANCHES.search(i.rest)
        names = _NAME.findall(branches.group()) if branches else []
        return max(map(total, names), key=lambda work: work.flops)
    cycles = _CYCLES.search(i.rest)
    spent = float(cycles.group(1)) if cycles else 0.0
    if i.opcode == "fusion":
        name = i.called[0]
        inside = total(name)
        moved = fused_bytes(i, module.computations[name])
        return dataclasses.replace(inside, traffic=moved, cycles=spent or inside.cycles)
    made = dataclasses.replace(_collective(i, own), cycles=spent)
    return dataclasses.replace(
        made,
        flops=flops_of(i, own),
        traffic=bytes_of(i, own),
        halved=int(halves(i, own)),
        kernels=kernel_flops(i, own),
    )


def _collective(i: Instruction, own: Computation) -> Work:
    """What a collective sends; one that runs beside others is counted where it is done."""
    kind = i.opcode.removesuffix("-done")
    began = own.get(i.operands[0], i) if kind != i.opcode and i.operands else i
    if kind not in _COLLECTIVES or _ALONE.search(began.rest):
        return Work()
    largest = i.largest if kind == "all-gather" else 0
    return Work(sent={kind: i.nbytes}, calls={kind: 1}, gather=largest)
