"""What is asked of the code itself: its structure and its imports, as rows of a results file.

    python -m benchmarks.house structure
    python -m benchmarks.house imports
    git worktree add /tmp/old 53ea232
    python -m benchmarks.house structure --tree=/tmp/old --before

Every row of `docs/results/house.json` is written by the command that measured it; other benchmarks
add theirs with `record`.
"""

import ast
import dataclasses
import fcntl
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from stride_jax.cli.doors import USAGE, Parser, at_least, one_line
from stride_jax.runtime.files import read_json, write_json
from stride_jax.runtime.machine import device_name

ROOT = pathlib.Path(__file__).parents[1]
HOUSE = ROOT / "docs/results/house.json"
APPLICATIONS = ROOT / "docs/results/applications.json"
BOARDS = ROOT / "docs/results/boards.json"
_ROOMS = ("stride_jax", "experiments")
_MANY_PARAMETERS = 8


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
      name: what was measured; a row replaces the one of its name.
      value: the figure; None where it could not be computed.
      better: which direction is better.
      interval: bounds of 95 % confidence, where there are any.
      asked: the figure asked for, where one is.
    """

    name: str
    value: float | None
    better: Literal["higher", "lower"]
    interval: tuple[float, float] | None = None
    asked: float | None = None

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better={self.better!r} of {self.name!r} must be higher or lower")


def record(
    rows: Sequence[Row],
    *,
    tree: pathlib.Path = ROOT,
    path: pathlib.Path = HOUSE,
    command: str | None = None,
    commit: str | None = None,
) -> None:
    """Write rows into the results file, each in the place of the one of its name.

    Args:
      rows: figures.
      tree: checkout that was measured; its commit is written down.
      path: results file; made where there is none.
      command: what measured them; this process's own command by default.
      commit: what was measured; the checkout's by default.
    """
    source = {
        "command": this_command() if command is None else command,
        "commit": commit or commit_of(tree),
        "device": device_name(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # others may read, change and write at the same time
        all_rows = {row["name"]: row for row in (read_json(path) if path.exists() else [])}
        all_rows |= {row.name: {**dataclasses.asdict(row), **source} for row in rows}
        write_json(path, list(all_rows.values()))
    finally:
        os.close(folder)


def this_command() -> str:
    """The command line of this process; paths in the checkout are from its root."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = [word.replace(f"{ROOT}{os.sep}", "") for word in sys.argv[1:]]
    if spec is None:
        return shlex.join([pathlib.Path(sys.argv[0]).name, *words])
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *words])


def commit_of(tree: pathlib.Path) -> str:
    """The commit of a checkout; with `+` where files that git knows differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=tree, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    results = f":!{HOUSE.relative_to(ROOT).parent}"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", results)
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


# ── structure ────────────────────────────────────────────────────────────────────────────────────


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of a `def`, keyword-only ones and stars included, `self` and `cls` not.

    >>> num_parameters(ast.parse("def f(self, a, *b, c=1, **d): pass").body[0])
    4
    """
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args)]
    own = len(names) - (names[:1] in (["self"], ["cls"]))
    return own + len(given.kwonlyargs) + (given.vararg is not None) + (given.kwarg is not None)


def functions(tree: pathlib.Path) -> Iterator[tuple[str, int]]:
    """All functions of a checkout, nested ones and methods too: `file:line name`, parameters."""
    for file in python_files(tree):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                place = f"{file.relative_to(tree)}:{node.lineno} {node.name}"
                yield place, num_parameters(node)


def python_files(tree: pathlib.Path) -> list[pathlib.Path]:
    """The files of the package and of the entry points."""
    files = [file for room in _ROOMS for file in sorted((tree / room).rglob("*.py"))]
    if not files:
        raise ValueError(f"--tree={tree} holds no {' and no '.join(_ROOMS)}: give a checkout")
    return files


_LEAVES = """
import dataclasses, typing
try:
    from stride_jax.run.settings import RunSettings
except ModuleNotFoundError:
    from stride_jax.run_settings import RunSettings
def leaves(cls):
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kinds = (hints[field.name], *typing.get_args(hints[field.name]))
        section = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        yield from leaves(section) if section else [field.name]
print(len(list(leaves(RunSettings))))
"""


def settings_leaves(tree: pathlib.Path) -> int:
    """Settings of a run that are no sections, all sections taken once for each place."""
    return int(_python(tree, _LEAVES))


def structure(tree: pathlib.Path) -> list[Row]:
    """Rows about files, functions and settings of a checkout."""
    lines = [len(file.read_text().splitlines()) for file in python_files(tree)]
    wide = [count for _, count in functions(tree) if count >= _MANY_PARAMETERS]
    return [
        Row("files", len(lines), "lower"),
        Row("median lines of a file", statistics.median(lines), "lower"),
        Row("longest file, lines", max(lines), "lower"),
        Row(f"functions with {_MANY_PARAMETERS} or more parameters", len(wide), "lower"),
        Row("settings leaves", settings_leaves(tree), "lower"),
    ]


# ── imports ──────────────────────────────────────────────────────────────────────────────────────

_OURS = "from stride_jax import *"  # what is named there, should it ever be imported lazily
_FLOOR = "import jax, flax.linen, optax, jaxopt"
_TIMED = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
began = time.perf_counter()
{statement}
print(json.dumps([time.perf_counter() - began, len(sys.modules)]))
"""


def imports(tree: pathlib.Path, repeats: int) -> list[Row]:
    """Rows about importing the package, against what it stands on; both in fresh interpreters.

    Each repetition measures both, one after the other; the figures are medians.
    """
    measure = {
        statement: lambda statement=statement: json.loads(
            _python(tree, _TIMED.format(statement=statement))
        )
        for statement in (_OURS, _FLOOR)
    }
    for once in measure.values():
        once()  # fills the caches of byte code and of the disk
    runs = [{name: once() for name, once in measure.items()} for _ in range(repeats)]
    ours = [run[_OURS][0] for run in runs]
    floor = [run[_FLOOR][0] for run in runs]
    ratios = [a / b for a, b in zip(ours, floor, strict=True)]

    def median(name: str, values: list[float], asked: float | None = None) -> Row:
        return Row(name, statistics.median(values), "lower", median_interval(values), asked)

    return [
        median("import stride_jax, seconds", ours),
        median(f"{_FLOOR}, seconds", floor),
        median(f"import stride_jax over {_FLOOR}", ratios, asked=1.2),
        Row("modules loaded by import stride_jax", runs[0][_OURS][1], "lower"),
        Row(f"modules loaded by {_FLOOR}", runs[0][_FLOOR][1], "lower"),
    ]


def median_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Order statistics between which the median lies with 95 %; None for fewer than 6 values.

    >>> median_interval([5, 1, 9, 3, 7, 2, 8, 4, 6])
    (2, 8)
    """
    n, ranked = len(values), sorted(values)
    outside, k = 0.0, 0  # P(at most k - 1 of n values lie below the median)
    while (outside := outside + _binomial(n, k)) <= 0.025:
        k += 1
    return None if k == 0 else (ranked[k - 1], ranked[n - k])


def _binomial(n: int, k: int) -> float:
    value = 0.5**n
    for i in range(k):
        value *= (n - i) / (i + 1)
    return value


def _python(tree: pathlib.Path, code: str) -> str:
    """What code prints in a fresh interpreter that imports from a checkout."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"--tree={tree}: {(done.stderr.splitlines() or ['no output'])[-1]}")
    return done.stdout


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def main(words: Sequence[str]) -> int:
    """Measure a checkout, print the rows, write them down."""
    parser = Parser("house", __doc__)
    parser.prog = "python -m benchmarks.house"
    parser.usage = f"{parser.prog} structure|imports --flag=value …"
    parser.add_argument("what", choices=("structure", "imports"))
    parser.flag("tree", "Checkout to measure.", default=str(ROOT))
    parser.flag("out", "Results file.", default=str(HOUSE))
    parser.flag("repeats", "imports: pairs of fresh interpreters.", type=at_least(1), default=9)
    parser.switch("before", "The checkout is an old one: names of rows end in 'before'.")
    parser.switch("list", "structure: name the functions with many parameters too.")
    given, _ = parser.read(words)
    tree = pathlib.Path(given.tree).resolve()
    python_files(tree)
    measured: dict[str, Callable[[], list[Row]]] = {
        "structure": lambda: structure(tree),
        "imports": lambda: imports(tree, given.repeats),
    }
    rows = measured[given.what]()
    if given.before:
        rows = [dataclasses.replace(row, name=f"{row.name} before", asked=None) for row in rows]
    if given.list:
        for place, count in functions(tree):
            if count >= _MANY_PARAMETERS:
                print(f"{place}: {count} parameters")
    record(rows, tree=tree, path=pathlib.Path(given.out))
    for row in rows:
        print(f"{row.name}: {_shown(row)}")
    return 0


def _shown(row: Row) -> str:
    value: Any = row.value
    bounds = f" [{row.interval[0]:.3g}, {row.interval[1]:.3g}]" if row.interval else ""
    asked = "" if row.asked is None else f" (asked: {row.asked:g})"
    return f"{value:.4g}{bounds}{asked}"


def command(main: Callable[[Sequence[str]], int | None], name: str) -> None:
    """Do what the process's command line asks for; a mistake in it ends with code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except ValueError as error:
        if (line := one_line(error)) is None:
            raise
        print(f"{name}: {line}", file=sys.stderr)
        sys.exit(USAGE)


if __name__ == "__main__":
    command(main, "house")
