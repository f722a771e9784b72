"""From a config's sections to frozen settings dataclasses, every value checked by its field's type.

Files are read strictly: "9" is no integer, 10.0 is none either, `nan` is no float. Only the text of
a command line is parsed, and only where `build` is told which names it came from.
"""

import ast
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")

_WORDS = {"true": True, "false": False}


def build(
    cls: type[T],
    values: Mapping[str, Any],
    where: str = "config",
    *,
    default: T | None = None,
    from_text: bool | Collection[str] = False,
) -> T:
    """Turn a mapping into a settings dataclass, section by section.

    A section that names some of its fields has the others from what its parent has there by
    default, whatever the section's own class would say.

    Args:
      cls: a dataclass; fields that are dataclasses take nested mappings.
      values: field values; those not named keep their defaults.
      where: path of the section, for messages.
      default: what fields not named are taken from; the class's defaults for None.
      from_text: dotted names below `cls` whose values are a command line's text, such as
        `index.design.degree`, to be parsed where they are strings (`parse`); True for all of them.

    Raises:
      ValueError: an unknown key (names the nearest, and all there are), a missing one, a value of
        the wrong type, or one that the section refuses.

    >>> from stride_jax.design import Design
    >>> build(Design, {"num_subsets": 100})
    Design(num_subsets=100, degree=10, seed=0, kind='auto')
    >>> build(Design, {"degree": "5"}, default=Design(seed=3), from_text=["degree"])
    Design(num_subsets=1000, degree=5, seed=3, kind='auto')
    """
    if not isinstance(values, Mapping):
        raise ValueError(_no_section(cls, values, where))
    hints = _hints(cls)
    for name in values:
        if name not in hints:
            raise ValueError(_unknown(cls, name, where))
    built = {}
    for name, value in values.items():
        at, section = f"{where}.{name}", _section(hints[name])
        if section is not None and isinstance(value, Mapping):
            built[name] = build(
                section, value, at, default=_default(cls, name, default),
                from_text=_below(name, from_text),
            )  # fmt: skip
        elif isinstance(value, str) and (from_text is True or name in (from_text or ())):
            built[name] = parse(hints[name], value, at)
        else:
            built[name] = _checked(hints[name], value, at)
    try:
        if default is not None:
            return dataclasses.replace(default, **built)  # pyright: ignore[reportArgumentType]
        if missing := [name for name in _required(cls) if name not in built]:
            raise ValueError(f"{missing[0]!r} is not set and has no default")
        return cls(**built)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def parse(kind: Any, text: str, where: str = "value") -> Any:
    """A value of a field's type from the text of a command line.

    Tuples are written `a,b` or as Python writes them; None, where it is allowed, as `None`.

    Args:
      kind: the field's type: bool, int, float, str, a tuple of such, or one of them or None.
      text: what was typed.
      where: its name, for messages.

    Raises:
      ValueError: text that does not say a value of this type.

    >>> parse(tuple[int, ...], "50,500"), parse(float | None, "None"), parse(bool, "true")
    ((50, 500), None, True)
    """
    arms = _arms(kind)
    if types.NoneType in arms and text.strip().lower() == "none":
        return None
    wanted = [arm for arm in arms if arm is not types.NoneType]
    if str in wanted:
        return text
    for arm in wanted:
        try:
            return _checked(arm, _literal(arm, text, where), where)
        except (ValueError, SyntaxError):
            continue
    if (section := _section(kind)) is not None:
        raise ValueError(_no_section(section, text, where))
    raise ValueError(f"{where}={text!r} must be of type {_name(kind)}")


def check_types(settings: Any) -> None:
    """Check every field of a settings dataclass by its type; for use in `__post_init__`.

    Values that mean the same are made the same: an integer for a float, a list for a tuple and a
    numpy scalar become what the field's type says, so that equal settings have equal hashes.

    Raises:
      ValueError: a value of another type; names class, field and value.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Rates:
    ...     rate: float = 0.1
    ...
    ...     def __post_init__(self) -> None:
    ...         check_types(self)
    >>> Rates(1)
    Rates(rate=1.0)
    >>> Rates("fast")
    Traceback (most recent call last):
    ValueError: Rates.rate='fast' must be of type float
    """
    cls = type(settings)
    for name, kind in _hints(cls).items():
        value = getattr(settings, name)
        checked = _checked(kind, value, f"{cls.__name__}.{name}")
        if checked is not value:
            object.__setattr__(settings, name, checked)  # the class is frozen


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _arms(kind: Any) -> tuple[Any, ...]:
    """The members of a union; the type itself of another."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def _section(kind: Any) -> Any:
    """The settings dataclass that a field takes, None for plain fields."""
    return next((arm for arm in _arms(kind) if dataclasses.is_dataclass(arm)), None)


def _required(cls: type[Any]) -> list[str]:
    nothing = dataclasses.MISSING
    fields = dataclasses.fields(cls)
    return [f.name for f in fields if f.default is nothing and f.default_factory is nothing]


def _default(cls: type[Any], name: str, default: Any) -> Any:
    """What the parent has in a field by default; None where it has nothing."""
    if default is not None:
        return getattr(default, name)
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _below(name: str, from_text: bool | Collection[str]) -> bool | list[str]:
    """The part of the dotted names that lies in a section."""
    if isinstance(from_text, bool):
        return from_text
    return [key.removeprefix(f"{name}.") for key in from_text if key.startswith(f"{name}.")]


def _unknown(cls: type[Any], name: str, where: str) -> str:
    names = list(_hints(cls))
    close = [place for place in _places(cls) if place.rpartition(".")[2] == name]
    close += difflib.get_close_matches(str(name), names, n=1)
    nearest = f"did you mean {close[0]!r}? " if close else ""
    return f"{where} has no setting {name!r}: {nearest}It has {', '.join(names)}"


def _places(cls: type[Any], above: str = "") -> Iterator[str]:
    """Dotted names of all settings in sections below a class."""
    for name, kind in _hints(cls).items():
        if above:
            yield f"{above}{name}"
        if (section := _section(kind)) is not None:
            yield from _places(section, f"{above}{name}.")


def _no_section(cls: Any, value: Any, where: str) -> str:
    given = repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
    remedy = "; of a ConfigDict give to_dict()" if hasattr(value, "to_dict") else ""
    wanted = f"give it a mapping or {cls.__name__}"
    return f"{where} is a section of settings: {wanted}, not {given}{remedy}"


def _checked(kind: Any, value: Any, where: str) -> Any:
    """The value, made of the field's type where it means the same.

    Raises:
      ValueError: it does not.
    """
    if isinstance(value, np.generic):
        value = value.item()
    arms = _arms(kind)
    if value is None and types.NoneType in arms:
        return None
    refused = None
    for arm in arms:
        if arm is types.NoneType:
            continue
        try:
            return _checked_arm(arm, value, where)
        except ValueError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _checked_arm(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) is tuple:
        return _checked_tuple(kind, value, where)
    if kind is float and type(value) is int:
        value = float(value)
    if kind in (int, float, str, bool):
        if type(value) is not kind:
            raise ValueError(f"{where}={value!r} must be of type {kind.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}={value!r} must be a finite number")
        return value
    if dataclasses.is_dataclass(kind) and not isinstance(value, kind):  # pyright: ignore[reportArgumentType]
        raise ValueError(_no_section(kind, value, where))
    # Protocols and callables can't be asked; what they are given for shows soon enough.
    is_plain = isinstance(kind, type) and not getattr(kind, "_is_protocol", False)
    if is_plain and kind is not Any and not isinstance(value, kind):
        raise ValueError(f"{where}={value!r} must be of type {_name(kind)}")
    return value


def _checked_tuple(kind: Any, value: Any, where: str) -> tuple[Any, ...]:
    """Each element by its type; lists, as JSON has them, become tuples."""
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"{where}={value!r}: give a tuple such as {(value,)!r}")
    inner = typing.get_args(kind)
    if len(inner) == 2 and inner[1] is ...:
        inner = (inner[0],) * len(value)
    elif inner and len(inner) != len(value):
        raise ValueError(f"{where}={value!r} has {len(value)} entries instead of {len(inner)}")
    inner = inner or (Any,) * len(value)
    entries = [
        _checked(one, v, f"{where}[{i}]")
        for i, (one, v) in enumerate(zip(inner, value, strict=True))
    ]
    same = isinstance(value, tuple) and all(a is b for a, b in zip(entries, value, strict=True))
    return value if same else tuple(entries)  # pyright: ignore[reportReturnType]


def _literal(kind: Any, text: str, where: str) -> Any:
    """What a text says, by Python's own rules; words of a tuple need no quotes."""
    text = text.strip()
    if kind is bool:
        return _WORDS.get(text.lower(), text)
    if kind is float:
        return float(text)
    if typing.get_origin(kind) is not tuple:
        return ast.literal_eval(text)
    if text.startswith(("(", "[")):
        return ast.literal_eval(text)
    inner = typing.get_args(kind)[:1] or (str,)
    words = [word for word in text.split(",") if word.strip()]
    return tuple(parse(inner[0], word.strip(), where) for word in words)


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
