"""A compiled module's text, parsed into computations and their instructions."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_WIDTHS = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_HEAD = re.compile(r"(ENTRY )?%([\w.\-]+) \(")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")

Known = Mapping[int, int]
"""Whole numbers among the elements of a computation's tuple, by their place."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a module; `given` stands in the brackets, `rest` after them."""

    name: str
    type: str
    opcode: str
    given: str
    rest: str
    root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        return _NAME.findall(self.given)

    @functools.cached_property
    def called(self) -> list[str]:
        """Computations that it calls; a loop's condition first or last, as the text has it."""
        return _CALLED.findall(self.rest)

    @functools.cached_property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        return [
            (dtype, tuple(int(n) for n in dims.split(",") if n))
            for dtype, dims in _SHAPE.findall(self.type)
        ]

    @property
    def size(self) -> int:
        return sum(math.prod(dims) for _, dims in self.shapes)

    @functools.cached_property
    def _parts(self) -> list[int]:
        """Bytes of each array in the result."""
        return [math.ceil(math.prod(n) * _WIDTHS.get(kind, 0)) for kind, n in self.shapes]

    @property
    def nbytes(self) -> int:
        return sum(self._parts)

    @property
    def largest(self) -> int:
        """Bytes of the largest array in the result."""
        return max(self._parts, default=0)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A module's computations by name, and the name of the first one that runs."""

    computations: dict[str, Computation]
    entry: str

    def root(self, name: str) -> Instruction:
        """The result of a computation."""
        return next(line for line in self.computations[name].values() if line.root)


def parse(hlo: str) -> Module:
    """A module from its text.

    Args:
      hlo: `compiled.as_text()`.
    """
    computations: dict[str, Computation] = {}
    current, entry, lines = "", "", []
    for line in hlo.splitlines():
        text = line.strip()
        if text.endswith("{") and (head := _HEAD.match(text)):
            current, lines = head.group(2), []
            entry = current if head.group(1) else entry
        elif text == "}" and current:
            own = [_line(one) for one in lines]
            computations[current] = {instruction.name: instruction for instruction in own}
            current = ""
        elif current and " = " in text and text.startswith(("%", "ROOT %")):
            lines.append(text)
        elif current and lines:  # attributes of a kernel go on in lines of their own
            lines[-1] += text
    return Module(computations, entry)


def _line(text: str) -> Instruction:
    left, _, right = text.partition(" = ")
    end = _closing(right) + 1 if right.startswith("(") else right.index(" ")
    kind, right = right[:end], right[end:].strip()
    opcode, _, _ = right.partition("(")
    right = right[len(opcode) :]
    end = _closing(right)
    name = left.removeprefix("ROOT ").removeprefix("%")
    return Instruction(name, kind, opcode, right[1:end], right[end + 1 :], left.startswith("ROOT"))


_BRACKETS = re.compile(r"[()]")


def _closing(text: str) -> int:
    """Index of the bracket that closes the one at the start of the text."""
    depth = 0
    for match in _BRACKETS.finditer(text):
        depth += 1 if match.group() == "(" else -1
        if not depth:
            return match.start()
    raise ValueError(f"a bracket is not closed: {text[:60]!r}")
