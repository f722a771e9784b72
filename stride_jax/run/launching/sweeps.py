"""Several jobs of one: the variants that a config file's `sweep(add)` adds."""

import collections
import dataclasses
import difflib
import importlib.util
import re
import types
from collections.abc import Sequence
from typing import Any

from stride_jax.run.launching.settings import LaunchSettings


def expand(settings: LaunchSettings) -> list[LaunchSettings]:
    """The settings of a job for each variant of the config file's `sweep(add)`.

    `sweep` calls `add(**{"stride.design.num_subsets": 300, ...})` once a variant, as in big_vision.
    Each job has its own folder in `workdir`, named by what it changes, and a number after its name.

    Raises:
      ValueError: the file has no `sweep`, it adds nothing or one thing twice, or names a setting
        that the config does not have or gives it a value of another kind.
    """
    path, _, argument = settings.config.partition(":")
    module = _load(path)
    if not hasattr(module, "sweep"):
        raise ValueError(f"{path} has no sweep(add): write one, or leave --sweep out")
    added: list[dict[str, Any]] = []
    module.sweep(lambda **changes: added.append(changes))
    if not added:
        raise ValueError(f"sweep(add) of {path} never calls add: add at least one variant")
    known = _flat(module.get_config(*([argument] if argument else [])).to_dict())
    for changes in added:
        for key, value in changes.items():
            _check_change(key, value, known, path)
    names = _short(sorted({key for changes in added for key in changes}))
    folders = [_folder(changes, names) for changes in added]
    twice = [name for name, times in collections.Counter(folders).items() if times > 1]
    if twice:
        raise ValueError(f"sweep(add) of {path} adds {twice[0]!r} twice: they share a folder")
    return [
        dataclasses.replace(
            settings,
            overrides=tuple((dict(settings.overrides) | changes).items()),
            workdir=f"{settings.workdir.rstrip('/')}/{folder}",
            name=f"{settings.job_name}-{i}",
        )
        for i, (changes, folder) in enumerate(zip(added, folders, strict=True))
    ]


def _load(path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("swept_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config={path!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _flat(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Dotted names of all settings; without flax, which would bring JAX to a login node.

    >>> _flat({"bank": {"alpha": 0.5}, "top_k": 100})
    {'bank.alpha': 0.5, 'top_k': 100}
    """
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: value}
    return flat


def _check_change(key: str, value: Any, known: dict[str, Any], path: str) -> None:
    if key not in known:
        close = difflib.get_close_matches(key, known, n=3) or sorted(known)
        raise ValueError(f"sweep(add) of {path} names {key!r}: did you mean {', '.join(close)}?")
    kind = type(known[key])
    fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
    if known[key] is not None and not fits and not (kind is float and type(value) is int):
        raise ValueError(
            f"sweep(add) of {path} sets {key}={value!r}: the config has {known[key]!r} there, "
            f"give a value of type {kind.__name__}"
        )


def _short(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of dotted names, as many as tell them apart.

    >>> _short(["stride.design.seed", "train.seed", "bank.alpha"])
    {'stride.design.seed': 'design.seed', 'train.seed': 'train.seed', 'bank.alpha': 'alpha'}
    """
    short = {}
    for key in keys:
        parts, length = key.split("."), 1
        others = [other.split(".") for other in keys if other != key]
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        short[key] = ".".join(parts[-length:])
    return short


def _folder(changes: dict[str, Any], names: dict[str, str]) -> str:
    shown = ",".join(f"{names[key]}={value}" for key, value in changes.items())
    return re.sub(r"[^\w.=,+-]+", "_", shown, flags=re.ASCII) or "as-is"
