"""How a benchmark's command opens: a config with its changes, a folder, mistakes in one line."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging

from stride_jax.cli.doors import USAGE, Parser, one_line
from stride_jax.run import config_file
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, check_workdir, run_settings
from stride_jax.runtime.settings import build, parse

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
      flags: the benchmark's own.
      config: the config's values, its changes among them.
      settings: of the run in it.
      workdir: folder of the products.
    """

    flags: argparse.Namespace
    config: Mapping[str, Any]
    settings: RunSettings
    workdir: pathlib.Path

    def section(self, name: str, cls: type[T]) -> T:
        """The settings in a section of the benchmark's own."""
        return build(cls, self.config.get(name) or {}, f"config.{name}")


def listed(kind: type[T]) -> Callable[[str], tuple[T, ...]]:
    """A flag's type: values joined by commas."""
    return lambda text: parse(tuple[kind, ...], text)


def made_run(config: Mapping[str, Any], workdir: pathlib.Path) -> Run:
    """A run of a config that a benchmark makes itself, its stages still to be asked for."""
    settings = run_settings(config)
    check_workdir(workdir, settings)
    return Run(settings, workdir)


class Program(Parser):
    """The command line of a benchmark; its own flags are added as to a `Parser`.

    Args:
      name: of the module.
      about: what `--help` says first.
      sections: sections of the config that are the benchmark's own, and their settings.
      defaults: of `config` and `workdir`, where they need not be given.
    """

    def __init__(
        self,
        name: str,
        about: str | None,
        sections: Mapping[str, type[Any]] = {},
        **defaults: str,
    ) -> None:
        super().__init__(name, about, config=True)
        self.prog = f"python -m benchmarks.{name}"
        self.usage = f"{self.prog} --flag=value …"
        self.flag("workdir", "Folder of the products.", required=True)
        self.set_defaults(**defaults)
        for action in self._actions:
            if action.dest in defaults and action.help:
                action.help = action.help.replace("required", f"default: {defaults[action.dest]}")
        self._names = {
            key: [f.name for f in dataclasses.fields(cls)] for key, cls in sections.items()
        }

    def asked(self, words: Sequence[str]) -> Asked:
        """What the words of a command line ask for.

        Raises:
          ValueError: a mistake in them, or in the config; names the remedy.
        """
        given, changes = self.read(words)
        values = config_file.read_config(given.config)
        values = config_file.changed(values, changes, self._names)
        settings = run_settings(values, tuple(changes))
        return Asked(given, values, settings, pathlib.Path(given.workdir))

    def run(self, main: Callable[[Asked], None]) -> None:
        """Do what the process's command line asks for; a mistake in it ends with code 2."""
        logging.set_verbosity(logging.WARNING)  # orbax reports every step of every save
        try:
            main(self.asked(sys.argv[1:]))
        except Exception as error:
            if (line := one_line(error)) is None:
                raise
            print(f"{self.prog}: {line}", file=sys.stderr)
            sys.exit(USAGE)
