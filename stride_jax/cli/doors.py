"""What all commands share: flags, `--config.key=value`, and errors in one line.

A command's parser knows its own flags alone. A mistake in what was typed, in a config or in a
folder is a ValueError whose message names the remedy; `main` prints it as one line, exit code 2.
"""

import argparse
import dataclasses
import difflib
import dis
import errno
import importlib.metadata
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stride_jax.runtime.files import first_line
from stride_jax.runtime.memory import is_about_memory

USAGE = 2
"""Exit code of a command that was given something it can't work with."""

PAGES = (".html", ".htm")
"""What names of pages end in."""

# What a file system says, and what to do about it.
_DISK = {
    errno.ENOSPC: "make room and run the same command again; what was written before stays",
    errno.EDQUOT: "make room and run the same command again; what was written before stays",
    errno.EROFS: "give a folder that can be written to",
    errno.EACCES: "change its permissions, or give another folder",
    errno.EPERM: "change its permissions, or give another folder",
    errno.ENOTDIR: "a file stands where a folder is needed: give another name",
    errno.EISDIR: "a folder stands where a file is needed: give another name",
    errno.EEXIST: "something else has this name: give another one",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle: mend them, or give another name",
    errno.ENOENT: "check its name, and that the links in it lead somewhere",
}

# Modules whose `raise` statements have messages for the user; a benchmark runs as __main__.
_OURS = ("stride_jax", "benchmarks", "__main__")
_CHANGE = re.compile(r"--?config\.(?P<key>[^=]*)(?P<equals>=(?P<value>.*))?", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Flags of one command.

    Args:
      command: its name.
      about: what `--help` says first.
      config: whether it takes `--config` and `--config.key=value`.
    """

    def __init__(self, command: str, about: str | None, config: bool = False) -> None:
        super().__init__(
            prog=f"stride-jax {command}",
            usage=f"stride-jax {command} --flag=value …",
            description=about,
            formatter_class=_formatter,
            allow_abbrev=False,
        )
        self._required: list[str] = []
        self._takes_changes = config
        if config:
            self.flag("config", "Config file, with :argument if it takes one.", required=True)
            self.epilog = (
                "--config.KEY=VALUE sets one setting, also one that the config does not mention, "
                "such as\n--config.index.design.num_subsets=300 or --config.bank=None."
            )

    def flag(self, name: str, about: str, *, required: bool = False, **details: Any) -> None:
        """Add `--name=value`; `details` are those of `add_argument`."""
        if required:
            self._required.append(name)
        shown = "required" if required else _default(details.get("default"))
        help_ = f"{about} ({shown})" if shown else about
        if "choices" not in details:
            details.setdefault("metavar", "VALUE")
        self.add_argument(f"--{name}", help=help_.replace("%", "%%"), **details)

    def switch(self, name: str, about: str) -> None:
        """Add `--name`, which is off by default."""
        self.add_argument(f"--{name}", help=about, action="store_true")

    def read(self, words: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
        """The flags of a command line, and its changes of the config: `{dotted name: text}`.

        Raises:
          ValueError: an unknown flag, a missing one, an argument too many, or a wrong value.
        """
        rest, changes = _split(words) if self._takes_changes else (list(words), {})
        given, unknown = self.parse_known_args(rest)
        if unknown:
            raise ValueError(self._unknown(unknown[0]))
        for name in self._required:
            if not getattr(given, name):
                raise ValueError(f"--{name} is missing: give it, or see --help")
        return given, changes

    def _unknown(self, word: str) -> str:
        if not word.startswith("--"):
            return f"unexpected argument {word!r}: flags are written --flag=value, see --help"
        name = word.partition("=")[0]
        close = difflib.get_close_matches(name, self._option_string_actions, n=1)
        nearest = f"did you mean {close[0]}? " if close else ""
        return f"unknown flag {name}: {nearest}See --help"

    def print_help(self, file: Any = None) -> None:
        """In place of argparse's own, which is silent where the output can't be written."""
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> Any:
        """In place of argparse's own way out, which prints the usage first."""
        raise ValueError(f"{message}; see --help")


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=100)


def _default(value: Any) -> str:
    return "" if value in (None, "") else f"default: {value}"


def _split(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Changes of the config apart from the other words.

    >>> _split(["--workdir=x", "--config.top_k=5", "--config.data.name", "digits8x8"])
    (['--workdir=x'], {'top_k': '5', 'data.name': 'digits8x8'})
    """
    rest, changes, waiting = [], {}, list(words)
    while waiting:
        word = waiting.pop(0)
        match = _CHANGE.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        value = match["value"]
        if match["equals"] is None:
            if not waiting or waiting[0].startswith("--"):
                raise ValueError(f"{word} has no value: write {word}=VALUE")
            value = waiting.pop(0)
        changes[match["key"]] = value
    return rest, changes


def at_least(least: int) -> Callable[[str], int]:
    """A flag's type: an integer that is not below `least`."""

    def integer(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return int(text)

    return integer


def out_file(given: str, flag: str, endings: Sequence[str]) -> pathlib.Path:
    """A file to be written, before the work that fills it.

    Args:
      given: its path.
      flag: name of the flag.
      endings: what its name may end in.

    Raises:
      ValueError: another ending, or a folder that is not there.
    """
    out = pathlib.Path(given)
    if out.suffix not in endings:
        raise ValueError(f"--{flag}={given}: give a name that ends in {' or '.join(endings)}")
    if not out.parent.is_dir():
        raise ValueError(f"--{flag}={given}: there is no folder {out.parent}: make it first")
    if out.is_dir():
        raise ValueError(f"--{flag}={given} is a folder: give another name")
    return out


def one_line(error: BaseException, extras: Sequence[str] = ()) -> str | None:
    """What to print of an error that the user can do something about; None for a bug.

    Args:
      error: what a command raised.
      extras: extras of the package that the command needs.
    """
    if isinstance(error, ModuleNotFoundError):
        missing = [extra for extra in (*extras, "run", "text", "torch") if lacking(extra)]
        return missing_package(str(error.name or error), missing[0]) if missing else None
    if isinstance(error, (ValueError, RuntimeError)) and _on_purpose(error):
        return " ".join(str(error).splitlines())
    if isinstance(error, OSError) and error.errno in _DISK and error.filename is not None:
        return f"{error.filename}: {error.strerror}: {_DISK[error.errno]}"
    if is_about_memory(error):
        return (
            f"out of memory ({first_line(error)}): lower execution.memory in the config, ask about "
            "less at once, or give the process more memory"
        )
    return None


def _on_purpose(error: BaseException) -> bool:
    """Whether a `raise` statement of ours raised it, not an operation that failed."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return False
    module = str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    instruction = last.tb_frame.f_code.co_code[last.tb_lasti]
    return module in _OURS and instruction == dis.opmap["RAISE_VARARGS"]


def missing_package(name: str, extra: str) -> str:
    """The line for a package that is not installed."""
    return f'{name} is not installed: pip install "stride-jax[{extra}]"'


def lacking(extra: str) -> list[str]:
    """Packages of an extra that are not installed; none where this package's metadata is absent."""
    try:
        wanted = importlib.metadata.requires("stride-jax") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [
        name
        for requirement in wanted
        if re.search(rf"extra == ['\"]{extra}['\"]", requirement)
        and not _installed(name := re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    ]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def read_settings(
    word: str, changes: Mapping[str, str], adopt: bool = True
) -> tuple[dict[str, Any], Any]:
    """A config and its settings, changed by the command line.

    Args:
      word: path of the config file, with `:argument` if it takes one.
      changes: texts by dotted name.
      adopt: whether settings are completed by the weights that they start from.

    Returns:
      The config's values, for sections of other programs, and the `RunSettings`.

    Raises:
      ValueError: a mistake in the file, an unknown name, or a value that does not fit.
    """
    # Imported here: one_line and Parser serve `stride-jax --help` too.
    from stride_jax.run import config_file
    from stride_jax.run.planning import Extent
    from stride_jax.run.settings import run_settings

    others = {"plan": [field.name for field in dataclasses.fields(Extent)]}
    values = config_file.changed(config_file.read_config(word), changes, others)
    return values, run_settings(values, tuple(changes), adopt)
