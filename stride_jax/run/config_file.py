"""A user's config file: read, and changed by a command line.

A config is a Python file with `get_config()`, which returns a `ConfigDict` or a dict, or a JSON
file such as the `settings.json` of a run. Every mistake in it is a ValueError that names file and
line.
"""

import ast
import copy
import importlib.util
import inspect
import json
import pathlib
import traceback
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any

from stride_jax.run.settings import OTHER_SECTIONS


def read_config(word: str) -> dict[str, Any]:
    """The values of a config.

    Args:
      word: path of the file; what follows a colon is the argument of its `get_config`.

    Raises:
      ValueError: no such file, an error in it, or no mapping; names the file and its line.
    """
    path, _, argument = word.partition(":")
    if not pathlib.Path(path).is_file():
        raise ValueError(
            f"config={path!r} is not a file (in {pathlib.Path.cwd()}): give the path of a "
            "Python file that defines get_config()"
        )
    if path.endswith(".json"):
        values = _guarded(path, lambda: json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    else:
        values = _called(load_module(path), path, argument)
    if hasattr(values, "to_dict"):
        values = _guarded(path, values.to_dict)
    if not isinstance(values, Mapping):
        raise ValueError(
            f"{path}: the config is of type {type(values).__name__}: return a ConfigDict or a dict"
        )
    # A config may be a run's settings, changed by hand.
    return {name: value for name, value in values.items() if name != "digest"}


def load_module(path: str) -> types.ModuleType:
    """A config file as a module.

    Raises:
      ValueError: it is not Python, or has an error; names file and line.
    """
    spec = importlib.util.spec_from_file_location("stride_jax_config", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"config={path!r} is not a Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    _guarded(path, lambda: loader.exec_module(module))
    return module


def _called(module: types.ModuleType, path: str, argument: str) -> Any:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{path} does not define get_config(): write one that returns the config")
    words = [argument] if argument else []
    try:
        inspect.signature(get_config).bind(*words)
    except TypeError as error:
        given = f"the argument {argument!r}" if argument else "no argument"
        raise ValueError(f"{path}: get_config() can't be called with {given}: {error}") from error
    return _guarded(path, lambda: get_config(*words))


def _guarded(path: str, call: Callable[[], Any]) -> Any:
    """The result of a user's code; its errors become one line with file and line."""
    try:
        return call()
    except SyntaxError as error:
        raise ValueError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        place, kind = pathlib.Path(path).resolve(), type(error).__name__
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if pathlib.Path(frame.filename).resolve() == place
        ]
        where = f"{path}, line {lines[-1]}" if lines else path
        reason = str(error) if type(error) is ValueError else f"{kind}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name == "ml_collections":
            reason += ': return a plain dict, or pip install "stride-jax[run]"'
        raise ValueError(f"{where}: {reason}") from error


def changed(
    values: Mapping[str, Any],
    changes: Mapping[str, Any],
    other_sections: Mapping[str, Collection[str]] = {},
) -> dict[str, Any]:
    """A config with other values at dotted names; missing sections are added.

    Args:
      values: the config.
      changes: `{"index.design.degree": "5"}`; texts for other programs' sections are read as
        Python writes values, the others are left as they are.
      other_sections: names that other programs' sections may have besides those in the file.

    Raises:
      ValueError: a name below something that is no section, or a new one in a section that belongs
        to another program.

    >>> changed({"bank": None, "top_k": 5}, {"bank.alpha": 0.5})
    {'bank': {'alpha': 0.5}, 'top_k': 5}
    """
    result = copy.deepcopy(dict(values))
    for key, value in changes.items():
        *above, name = key.split(".")
        if not all((*above, name)):
            raise ValueError(f"config.{key} is no name of a setting: give names joined by dots")
        if key.partition(".")[0] in OTHER_SECTIONS:
            value = _literal(value)
            _check_other(result, key, other_sections)
        section = result
        for part in above:
            inner = section.get(part)
            if inner is not None and not isinstance(inner, Mapping):
                raise ValueError(f"config.{key}: {part}={inner!r} is no section of settings")
            section[part] = dict(inner or {})
            section = section[part]
        section[name] = value
    return result


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
    except (SyntaxError, ValueError):
        return value


def _check_other(
    values: Mapping[str, Any], key: str, other_sections: Mapping[str, Collection[str]]
) -> None:
    section, _, name = key.partition(".")
    names = {*(values.get(section) or {}), *other_sections.get(section, ())}
    if name not in names:
        raise ValueError(
            f"config.{section} has no setting {name!r}: it has {', '.join(sorted(names)) or 'none'}"
        )
