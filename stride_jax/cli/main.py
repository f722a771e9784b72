"""`stride-jax`: one command line; each command is imported when it is asked for."""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from stride_jax.cli import streams
from stride_jax.cli.doors import USAGE, lacking, missing_package, one_line
from stride_jax.runtime.compiled import keep_programs
from stride_jax.runtime.screen import excepthook, marked, visible
from stride_jax.version import __version__


@dataclasses.dataclass(frozen=True)
class Command:
    """One command: a module of its name in this package, with `main(words) -> exit code`.

    Attributes:
      about: one line for `--help`.
      extras: extras of the package that it needs.
      imports: whether it reads a config, which may import from the folder it is used in.
      compiles: whether it runs programs that are kept, compiled, for the next process.
    """

    about: str
    extras: tuple[str, ...]
    imports: bool = True
    compiles: bool = True


COMMANDS = {
    "prepare": Command(
        "Tokenise a corpus of any size into a folder that runs read.",
        ("text",),
        imports=False,
        compiles=False,
    ),
    "run": Command("Run a config from data to scores and their evaluation.", ("run",)),
    # Its programs are of devices that are not there, and read, not run.
    "plan": Command("What a config will cost on a mesh, before anything runs.", (), compiles=False),
    "launch": Command(
        "Run a config on several processes, or hand it to a cluster.", (), compiles=False
    ),
    "ask": Command(
        "Ask a language model's run which texts made it say so.", ("run", "text"), imports=False
    ),
    "select": Command(
        "Choose the training rows that help some targets most.", ("run", "text"), imports=False
    ),
    "audit": Command(
        "Which problems of a benchmark leaked into the training data, and were learnt.",
        ("run", "text"),
        imports=False,
    ),
    "report": Command(
        "Write a run's answers as one page to open, search and share.", ("run",), imports=False
    ),
    "serve": Command(
        "Open a run in a browser, with a box for new questions.", ("run", "serve"), imports=False
    ),
    "verify": Command(
        "Whether a run's files are what was written, or two runs agree.",
        ("run",),
        imports=False,
        compiles=False,
    ),
    "check": Command("Whether a config's model is safe to attribute, in words.", ("run",)),
}


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
      words: the command and its flags; the process's own by default.

    Returns:
      The exit code: 0; 2 for a mistake in what was given, after one line; a command's own.
    """
    words = sys.argv[1:] if words is None else list(words)
    streams.mend()
    name = words[0] if words else ""
    known = name in COMMANDS
    try:
        try:
            return _command(name, words[1:])
        finally:
            sys.stdout.flush()  # while an error of it can still be told
    except KeyboardInterrupt:
        print(visible(f"stride-jax {name}: interrupted"), file=sys.stderr)
        return 130
    except Exception as error:
        lost = streams.lost_output(error) if isinstance(error, OSError) else None
        if lost == "":
            return streams.BROKEN_PIPE
        line = lost or one_line(error, COMMANDS[name].extras if known else ())
        if line is None:
            raise
        return _refuse(f"stride-jax {name}" if known else "stride-jax", line)


def _command(name: str, words: Sequence[str]) -> int:
    """Help, or a command; its exit code."""
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        raise ValueError(_no_command(name))
    for extra in COMMANDS[name].extras:
        if missing := lacking(extra):
            raise ValueError(missing_package(missing[0], extra))
    try:
        here = os.getcwd()
    except FileNotFoundError:
        raise ValueError(
            "the current folder was removed: change to another, and run the same command"
        ) from None
    # A config may import from the folder it is used in, as under `python -m`. Other commands read
    # what is not trusted, and may be started in its folder.
    if COMMANDS[name].imports and here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    sys.excepthook = excepthook
    with marked():
        if COMMANDS[name].compiles and (fault := keep_programs()) is not None:
            print(visible(f"stride-jax: programs are compiled anew: {fault}"), file=sys.stderr)
        return importlib.import_module(f"stride_jax.cli.{name}").main(words) or 0


def _refuse(who: str, line: str) -> int:
    print(f"{who}: {visible(line, kept='')}", file=sys.stderr)
    return USAGE


def _no_command(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    said = f"no command {name!r}" if name else "no command given"
    nearest = f"did you mean {close[0]}? " if close else ""
    return f"{said}; {nearest}commands are {', '.join(COMMANDS)}; see stride-jax --help"


def _help() -> str:
    rows = [f"  {name:<8} {command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: stride-jax COMMAND --flag=value …",
            "",
            "Which training examples made a model behave like this: runs of STRIDE.",
            "",
            *rows,
            "",
            "stride-jax COMMAND --help says what a command does and what its flags are.",
        ]
    )
