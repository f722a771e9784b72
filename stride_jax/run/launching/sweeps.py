"""Several jobs from one: the variants that a config file's `sweep(add)` adds."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stride_jax.run.config_file import changed, load_module, read_config
from stride_jax.run.launching.settings import ELSEWHERE, LaunchSettings
from stride_jax.run.settings import run_settings


def expand(settings: LaunchSettings) -> list[LaunchSettings]:
    """The settings of a job for each variant of the config file's `sweep(add)`.

    `sweep` calls `add(**{"index.design.num_subsets": 300, ...})` once per variant, as in
    big_vision. Each job has its own folder in `workdir`, named by what it changes, and a number
    after its name.

    Raises:
      ValueError: the file has no `sweep`, it adds nothing or one thing twice, or a variant is no
        config that a run accepts.
    """
    path = settings.config.partition(":")[0]
    module = load_module(path)
    if not hasattr(module, "sweep"):
        raise ValueError(f"{path} has no sweep(add): write one, or leave --sweep out")
    added: list[dict[str, Any]] = []
    module.sweep(lambda **changes: added.append(changes))
    if not added:
        raise ValueError(f"sweep(add) of {path} never calls add: add at least one variant")
    overrides = dict(settings.overrides)
    values = changed(read_config(settings.config), overrides)
    for changes in added:
        _check_variant(changes, values, overrides, settings)
    names = _short(sorted({key for changes in added for key in changes}))
    folders = [_folder(changes, names) for changes in added]
    twice = [name for name, times in collections.Counter(folders).items() if times > 1]
    if twice:
        raise ValueError(f"sweep(add) of {path} adds {twice[0]!r} twice: they share a folder")
    return [
        dataclasses.replace(
            settings,
            overrides=tuple((overrides | changes).items()),
            workdir=f"{settings.workdir.rstrip('/')}/{folder}",
            code=settings.parcels,
            name=f"{settings.job_name}-{i}",
        )
        for i, (changes, folder) in enumerate(zip(added, folders, strict=True))
    ]


def _check_variant(
    changes: Mapping[str, Any],
    values: Mapping[str, Any],
    overrides: Mapping[str, Any],
    settings: LaunchSettings,
) -> None:
    path = settings.config.partition(":")[0]
    for key, value in changes.items():
        if isinstance(value, Mapping):
            raise ValueError(
                f"sweep(add) of {path} names {key!r}, a section: name its settings one by one"
            )
    try:
        own, here = changed(values, changes), settings.target not in ELSEWHERE
        run_settings(own, tuple(overrides), adopt=here)
    except ValueError as error:
        raise ValueError(f"sweep(add) of {path}: {error}") from error


def _short(keys: Sequence[str]) -> dict[str, str]:
    """The last parts of dotted names, as many as tell them apart.

    >>> _short(["index.design.seed", "train.seed", "bank.alpha"])
    {'index.design.seed': 'design.seed', 'train.seed': 'train.seed', 'bank.alpha': 'alpha'}
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
