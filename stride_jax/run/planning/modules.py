"""Work of a compiled program on one device, from the text of its HLO module.

XLA's own cost analysis counts a loop's body once and calls of LAPACK not at all; the text has the
turns of each loop, and the shapes of each call.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable

_WIDTHS = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip

_ARITHMETIC = {
    "add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "sign", "power",
    "exponential", "exponential-minus-one", "log", "log-plus-one", "tanh", "logistic", "erf",
    "sqrt", "rsqrt", "cbrt", "sine", "cosine", "tan", "atan2", "floor", "ceil", "remainder",
    "round-nearest-even", "round-nearest-afz", "clamp",
}  # fmt: skip
_COLLECTIVES = {
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
}  # fmt: skip
# Names for existing values, or calls of computations that are counted themselves.
_UNMOVED = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call",
    "conditional", "after-all", "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")
_BRANCHES = re.compile(
    r"branch_computations=\{[^}]*\}|true_computation=%[\w.\-]+, false_computation=%[\w.\-]+"
)
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# A collective of groups of one device.
_ALONE = re.compile(r"replica_groups=(?:\{(?:\{\d+\},?)+\}|\[\d+,1\]|mesh\[[^\]]*\] \{\})")


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one device in one call.

    Attributes:
      flops: floating-point operations; a multiply-add is two, a loop of unknown length one turn.
      traffic: bytes read and written by fused groups of operations, as if nothing were cached.
      sent: bytes that the device receives by each kind of collective.
    """

    flops: float = 0.0
    traffic: float = 0.0
    sent: dict[str, int] = dataclasses.field(default_factory=dict)

    def __add__(self, other: "Work") -> "Work":
        kinds = self.sent.keys() | other.sent.keys()
        sent = {kind: self.sent.get(kind, 0) + other.sent.get(kind, 0) for kind in sorted(kinds)}
        return Work(self.flops + other.flops, self.traffic + other.traffic, sent)

    def times(self, turns: int) -> "Work":
        """Work of a loop with this many turns."""
        return Work(
            self.flops * turns, self.traffic * turns, {k: v * turns for k, v in self.sent.items()}
        )


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """A line of a module; `given` stands in the brackets, `rest` after them."""

    name: str
    type: str
    opcode: str
    given: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return _NAME.findall(self.given)

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return [
            (dtype, tuple(int(n) for n in dims.split(",") if n))
            for dtype, dims in _SHAPE.findall(self.type)
        ]

    @property
    def size(self) -> int:
        return sum(math.prod(dims) for _, dims in self.shapes)

    @property
    def nbytes(self) -> int:
        return sum(math.prod(dims) * _WIDTHS.get(dtype, 0) for dtype, dims in self.shapes)


_Computation = dict[str, _Instruction]


def work_of(hlo: str) -> Work:
    """Work of a compiled module's entry computation.

    Args:
      hlo: `compiled.as_text()`.

    >>> import jax, jax.numpy as jnp
    >>> square = lambda a: jax.lax.fori_loop(0, 5, lambda i, b: a @ b, a)
    >>> work_of(jax.jit(square).lower(jnp.ones((30, 30))).compile().as_text()).flops // 1000
    270.0
    """
    computations, entry = _parse(hlo)

    @functools.cache
    def total(name: str) -> Work:
        own = computations[name]
        return functools.reduce(
            Work.__add__, (_instruction(i, own, computations, total) for i in own.values()), Work()
        )

    return total(entry)


def _parse(hlo: str) -> tuple[dict[str, _Computation], str]:
    computations: dict[str, _Computation] = {}
    current, entry = "", ""
    for line in hlo.splitlines():
        text = line.strip()
        if text.endswith("{") and (head := re.match(r"(ENTRY )?%([\w.\-]+) ", text)):
            current = head.group(2)
            computations[current] = {}
            entry = current if head.group(1) else entry
        elif " = " in text and current and text.startswith(("%", "ROOT %")):
            instruction = _line(text)
            computations[current][instruction.name] = instruction
    return computations, entry


def _line(text: str) -> _Instruction:
    left, _, right = text.partition(" = ")
    end = _closing(right) + 1 if right.startswith("(") else right.index(" ")
    kind, right = right[:end], right[end:].strip()
    opcode, _, _ = right.partition("(")
    right = right[len(opcode) :]
    end = _closing(right)
    name = left.removeprefix("ROOT ").removeprefix("%")
    return _Instruction(name, kind, opcode, right[1:end], right[end + 1 :], left.startswith("ROOT"))


def _closing(text: str) -> int:
    """Index of the bracket that closes the one at the start of the text."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return i
    raise ValueError(f"a bracket is not closed: {text[:60]!r}")


def _instruction(
    i: _Instruction,
    own: _Computation,
    computations: dict[str, _Computation],
    total: Callable[[str], Work],
) -> Work:
    """Work of one instruction and of what it calls."""
    if i.opcode == "while":
        turns = _TURNS.search(i.rest)
        inner = functools.reduce(Work.__add__, map(total, _CALLED.findall(i.rest)))
        return inner.times(int(turns.group(1)) if turns else 1)
    if i.opcode == "call":
        return functools.reduce(Work.__add__, map(total, _CALLED.findall(i.rest)))
    if i.opcode == "conditional":
        branches = _BRANCHES.search(i.rest)
        names = _NAME.findall(branches.group()) if branches else []
        return max(map(total, names), key=lambda work: work.flops)
    if i.opcode == "fusion":
        inside = computations[_CALLED.findall(i.rest)[0]]
        flops = total(_CALLED.findall(i.rest)[0]).flops
        return Work(flops, _fused_bytes(i, inside))
    kind = i.opcode.removesuffix("-start")
    sent = {kind: i.nbytes} if kind in _COLLECTIVES and not _ALONE.search(i.rest) else {}
    return Work(_flops(i, own), _bytes(i, own), sent)


def _floating(i: _Instruction) -> bool:
    return bool(i.shapes) and i.shapes[0][0] in ("f16", "bf16", "f32", "f64", "c64")


def _flops(i: _Instruction, own: _Computation) -> float:
    if i.opcode in _ARITHMETIC:
        return float(i.size) if _floating(i) else 0.0
    if not i.operands or i.operands[0] not in own:
        return 0.0
    first = own[i.operands[0]]
    if i.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([0-9,]*)\}", i.rest)
        axes = [int(n) for n in dims.group(1).split(",")] if dims and dims.group(1) else []
        return 2.0 * i.size * math.prod(first.shapes[0][1][axis] for axis in axes)
    if i.opcode == "convolution":
        kernel, labels = own[i.operands[1]], re.search(r"dim_labels=\w+_(\w+)->", i.rest)
        out = kernel.shapes[0][1][labels.group(1).index("o")] if labels else 1
        return 2.0 * i.size * kernel.size / out
    if i.opcode == "reduce":
        return float(first.size) if _floating(i) else 0.0
    if i.opcode == "reduce-window" and (size := re.search(r"window=\{size=([0-9x]+)", i.rest)):
        return float(i.size * math.prod(map(int, size.group(1).split("x")))) if _floating(i) else 0
    return _library(i, first) if i.opcode == "custom-call" else 0.0


def _library(i: _Instruction, first: _Instruction) -> float:
    """Calls of LAPACK and of matrix products outside XLA."""
    target = re.search(r'custom_call_target="([^"]*)"', i.rest)
    name, side = (target.group(1) if target else ""), first.shapes[0][1][-1:]
    if "potrf" in name or "Cholesky" in name:
        return first.size * side[0] / 3
    if "trsm" in name:
        return float(i.size * side[0])
    if "syevd" in name or "Eigh" in name:
        return 9.0 * first.size * side[0]
    return 2.0 * i.size * side[0] if "matmul" in name else 0.0


def _bytes(i: _Instruction, own: _Computation) -> float:
    """Bytes that an operation of its own reads and writes."""
    if i.opcode in _UNMOVED or i.opcode.endswith("-done"):
        return 0.0
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * i.nbytes
    if i.opcode in ("dynamic-update-slice", "scatter"):
        return 2.0 * own[i.operands[-1 if i.opcode == "scatter" else 1]].nbytes
    return float(i.nbytes + sum(own[name].nbytes for name in i.operands if name in own))


def _fused_bytes(i: _Instruction, inside: _Computation) -> float:
    """Bytes that a fused group reads of its operands, and writes."""
    users: dict[str, list[_Instruction]] = {}
    for line in inside.values():
        for name in dict.fromkeys(line.operands):
            users.setdefault(name, []).append(line)

    def read(name: str) -> float:
        """Bytes that are needed of a value; a slice needs no more than itself."""
        needed = 0.0
        for user in users.get(name, []):
            if user.opcode == "bitcast":
                needed += read(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                needed += user.nbytes
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return inside[name].nbytes
        return min(needed, inside[name].nbytes)

    root = next(line for line in inside.values() if line.root)
    while root.opcode == "bitcast":
        root = inside[root.operands[0]]
    in_place = root.opcode == "dynamic-update-slice"
    written = inside[root.operands[1]].nbytes if in_place else i.nbytes
    return written + sum(read(p.name) for p in inside.values() if p.opcode == "parameter")
