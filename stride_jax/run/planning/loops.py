"""How often a compiled loop runs.

Compilers for CPUs write it beside the loop; the one for TPUs does not, so that it is counted: from
the loop's start on, its condition and its counters are computed until it ends.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from stride_jax.run.planning.hlo import Computation, Instruction, Known, Module

_WRITTEN = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r"index=(\d+)")
_DIRECTION = re.compile(r"direction=(\w+)")
_MOST_TURNS = 1 << 20

_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "LT": lambda a, b: a < b, "LE": lambda a, b: a <= b, "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b, "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b,
}  # fmt: skip
_COMPUTED: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b,
    "maximum": max, "minimum": min, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
}  # fmt: skip
_SAME = ("copy", "bitcast", "convert", "copy-start", "copy-done", "reshape", "broadcast")

_Given = Callable[[Instruction], Any]
"""The number that a parameter, or an element of one, stands for; None where it is not known."""


def started(own: Computation, loop: Instruction, known: Known, module: Module) -> Known:
    """Whole numbers that a loop starts with, by their place in its tuple.

    Args:
      own: the computation that the loop stands in.
      loop: its `while`.
      known: whole numbers in the tuple that this computation is given.
      module: all computations.
    """
    start = own.get(loop.operands[0])
    if start is None or start.opcode != "tuple":
        return {}
    values = (_number(module, own, name, _elements(own, known)) for name in start.operands)
    return {place: value for place, value in enumerate(values) if value is not None}


def turns(loop: Instruction, start: Known, module: Module) -> tuple[int | None, Known]:
    """How often a loop's body runs, and the numbers of its start that stay as they are.

    Args:
      loop: its `while`.
      start: whole numbers that it starts with.
      module: all computations.

    Returns:
      Turns, None where they depend on what is computed; and whole numbers by their place.
    """
    written = _WRITTEN.search(loop.rest)
    condition, body = (_after(loop, word) for word in ("condition", "body"))
    own, last = module.computations[body], module.root(body)
    if last.opcode != "tuple":
        return (int(written.group(1)) if written else None), {}

    def after(state: Known, places: Iterable[int]) -> dict[int, Any]:
        given = _elements(own, state)
        return {n: _number(module, own, last.operands[n], given) for n in places}

    fixed = {n: value for n, value in start.items() if _is_passed_on(own, last.operands[n], n)}
    if written:
        return int(written.group(1)), fixed
    test, state = module.computations[condition], dict(start)
    moving = [n for n in start if n not in fixed]
    for count in range(_MOST_TURNS):
        goes_on = _number(module, test, module.root(condition).name, _elements(test, state))
        if not goes_on:
            return (None if goes_on is None else count), fixed
        state |= after(state, moving)
    return None, fixed


def _number(module: Module, own: Computation, name: str, given: _Given) -> Any:
    """The whole number, or truth, that an instruction gives; None where the text does not say."""
    i = own.get(name)
    if i is None:
        return None
    if i.opcode == "constant":
        text = i.given.strip()
        return int(text) if re.fullmatch(r"-?\d+", text) else {"true": 1, "false": 0}.get(text)
    if i.opcode in ("parameter", "get-tuple-element"):
        return given(i)
    if i.opcode in _SAME:
        return _number(module, own, i.operands[0], given)
    if i.opcode == "fusion":
        values = [_number(module, own, one, given) for one in i.operands]
        inner = module.computations[i.called[0]]
        place = lambda line: values[int(line.given)] if line.opcode == "parameter" else None  # noqa: E731
        return _number(module, inner, module.root(i.called[0]).name, place)
    values = [_number(module, own, one, given) for one in i.operands]
    if len(values) != 2 or None in values:
        return None
    if i.opcode == "compare" and (direction := _DIRECTION.search(i.rest)):
        return _COMPARED[direction.group(1)](*values)
    return _COMPUTED[i.opcode](*values) if i.opcode in _COMPUTED else None


def _elements(own: Computation, known: Known) -> _Given:
    """Numbers in the tuple that a computation is given."""

    def given(i: Instruction) -> Any:
        source = own.get(i.operands[0]) if i.opcode == "get-tuple-element" else None
        return known.get(_place(i)) if source is not None and source.opcode == "parameter" else None

    return given


def _is_passed_on(own: Computation, name: str, place: int) -> bool:
    """Whether a loop's body hands an element of its tuple on as it is."""
    line = own.get(name)
    while line is not None and line.opcode in _SAME:
        line = own.get(line.operands[0])
    return line is not None and line.opcode == "get-tuple-element" and _place(line) == place


def _place(i: Instruction) -> int:
    """The place in its tuple of what a `get-tuple-element` takes."""
    place = _INDEX.search(i.rest)
    return int(place.group(1)) if place else 0


def _after(loop: Instruction, word: str) -> str:
    name = re.search(rf"\b{word}=%([\w.\-]+)", loop.rest)
    assert name is not None, f"a loop without its {word}"
    return name.group(1)
