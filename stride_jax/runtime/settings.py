"""From a config's sections to frozen settings dataclasses."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Turn a mapping into a settings dataclass, section by section.

    Args:
      cls: a dataclass; fields that are dataclasses take nested mappings.
      values: field values; those not named keep their defaults.
      where: path of the section, for messages.

    Raises:
      ValueError: an unknown key (lists those there are), or a value of the wrong type.

    >>> from stride_jax.design import Design
    >>> build(Design, {"num_subsets": 100})
    Design(num_subsets=100, degree=10, seed=0)
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(f"{where} has no setting {unknown[0]!r}; it has {names}")
    built = {}
    for name, value in values.items():
        kind = _needed(hints[name])
        if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
            built[name] = build(kind, value, f"{where}.{name}")  # pyright: ignore[reportArgumentType]
        elif dataclasses.is_dataclass(kind) and value is not None and not isinstance(value, kind):  # pyright: ignore[reportArgumentType]
            raise ValueError(
                f"{where}.{name} is a section of settings and takes a mapping, not "
                f"{type(value).__name__}; of a ConfigDict give to_dict()"
            )
        else:
            built[name] = _coerce(kind, value, f"{where}.{name}")
    return cls(**built)


def _needed(kind: Any) -> Any:
    """The type itself of one that may be None."""
    others = [part for part in typing.get_args(kind) if part is not types.NoneType]
    is_optional = len(others) == 1 < len(typing.get_args(kind))
    return others[0] if is_optional else kind


def _coerce(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (int, float, str, bool) and type(value) is not kind:
        raise ValueError(f"{where}={value!r} must be of type {kind.__name__}")
    return value
