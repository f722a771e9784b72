"""Run the commands in odd places: folders, rights, locales, environments, streams; and look.

    python -m benchmarks.odd_places --workdir=runs/odd
    python -m benchmarks.odd_places --workdir=runs/odd --only=refused,rights

Each place is tried with the real commands: it works, with the same bytes or answers as elsewhere,
or it is refused in one line that names what is wrong, exit code 2. What a user sees goes to
`docs/odd_places.md`, rows to `docs/results/disk.json`. Groups of places that are not tried anew are
those of the last time in this folder. Wants root for mounts, as it drops what root may do.
"""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import subprocess
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Sequence

from absl import logging

from benchmarks.drill.runs import DISK
from benchmarks.house import ROOT, Row, command, record
from benchmarks.odd_lists import GROUPS, Homes, Place
from stride_jax.cli.doors import USAGE, Parser
from stride_jax.cli.main import main as stride_jax
from stride_jax.runtime.files import plain, read_json, write_json
from stride_jax.runtime.screen import visible

TABLE = ROOT / "docs/odd_places.md"
_WIDTH = 110
# Cursor moves of progress bars that stand below one another.
_BAR = re.compile(r"^.*\r|\x1b\[A")
# Line ends, tabs, and joiners that scripts and emoji are spelled with.
_KEPT = "\n\t\u200c\u200d"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a command did in a place.

    Attributes:
      place: in words.
      command: its name.
      code: exit code.
      lines: number of lines that it printed.
      last: the last of them.
      trace: whether it was a traceback, or an error that Python ignored.
      named: whether a refusal names what is wrong, in one line; true where none was made.
      same: whether results are those of elsewhere; true for a refusal that was to be made.
      raw: whether control characters were printed as they are.
    """

    place: str
    command: str
    code: int
    lines: int
    last: str
    trace: bool
    named: bool
    same: bool
    raw: bool


def tried(place: Place, homes: Homes) -> Seen:
    """A command in a place."""
    with place.set_up():
        run = _inside if place.shell is None else _outside
        code, out, err = run(place, homes)
        said = [_BAR.sub("", line).strip() for line in f"{out}\n{err}".split("\n")]
        said = [line for line in said if line and "it/s]" not in line]
        worked = code in place.codes
        same = place.works is False if not worked else place.works is not False
        if worked and place.same is not None:
            same = place.same(out)
    last = said[-1] if said else ""
    trace = any(word in out + err for word in ("Traceback (most", "Exception ignored"))
    named = worked or (code == USAGE and place.named in last and len(said) == 1)
    shown = out + last
    raw = any(unicodedata.category(c) in ("Cc", "Cf") and c not in _KEPT for c in shown)
    if trace or not named or not same or raw:
        print(f"{place.what}: {place.words[0]}: code {code}, same {same}, {said[-3:]!a}")
    return Seen(place.what, place.words[0], code, len(said), homes.hidden(last), trace, named,
                same, raw)  # fmt: skip


def _inside(place: Place, homes: Homes) -> tuple[int, str, str]:
    """In this process, from the folder that relative names are in."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(homes.near),
    ):
        try:
            code = stride_jax(place.words)
        except Exception:
            traceback.print_exc()
            code = 1
    return code, out.getvalue(), err.getvalue()


def _outside(place: Place, homes: Homes) -> tuple[int, str, str]:
    """In a process of its own, which a line of shell starts."""
    words = [sys.executable, "-m", "stride_jax", *place.words]
    environment = os.environ | homes.environment
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", place.shell or "", "bash", *words], cwd=homes.near,
        env=environment, capture_output=True, check=False, timeout=200,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    out, err = (text.decode(place.encoding, "replace") for text in (done.stdout, done.stderr))
    return done.returncode, out, err


def markdown(groups: dict[str, list[Seen]]) -> str:
    """A table for each group of places: what a user sees."""
    lines = [
        "# Odd places: what a user sees", "",
        "Written by `python -m benchmarks.odd_places`. A command that works prints its results and",
        "leaves the bytes, or gives the answers, that it does elsewhere; `…` is a folder.", "",
    ]  # fmt: skip
    for group, seen in groups.items():
        about = (GROUPS[group].__doc__ or "").rstrip(".")
        lines += [f"## {about}", "", "| place | command | code | lines | last line |"]
        lines.append("|---|---|---:|---:|---|")
        commands: dict[tuple[str, int, int, str], list[str]] = {}
        for one in seen:
            said = one.last.removeprefix(f"stride-jax {one.command}: ")
            key = (_shown(one.place), one.code, one.lines, _shown(said))
            commands.setdefault(key, []).append(one.command)
        for (place, code, count, last), names in commands.items():
            shown = f"`{last.replace('`', chr(39))}`" if last else ""
            lines.append(f"| {place} | {', '.join(names)} | {code} | {count} | {shown} |")
        lines.append("")
    return "\n".join(lines)


def _shown(text: str) -> str:
    """Text in a cell: without what steers a terminal or ends the cell, and not too long."""
    short = text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
    return visible(short, kept="").replace("|", "\\|")


def rows(seen: Sequence[Seen]) -> list[Row]:
    """Counts of what was tried and of what went wrong."""
    refused = sum(one.code == USAGE for one in seen)
    return [
        Row("odd places: tried", len(seen), "higher"),
        Row("odd places: refused in one line", refused, "higher"),
        Row("odd places: tracebacks", sum(one.trace for one in seen), "lower", asked=0.0),
        Row("odd places: refused without the name", sum(not one.named for one in seen), "lower",
            asked=0.0),
        Row("odd places: results that differ", sum(not one.same for one in seen), "lower",
            asked=0.0),
        Row("odd places: control characters shown", sum(one.raw for one in seen), "lower",
            asked=0.0),
    ]  # fmt: skip


@contextlib.contextmanager
def prepared(home: pathlib.Path) -> Iterator[Homes]:
    """Finished runs to compare with, made once; what places leave is removed."""
    homes = Homes(home)
    home.mkdir(parents=True, exist_ok=True)
    homes.clear()
    homes.near.mkdir()
    if not homes.answer.exists():
        homes.write_texts()
        for words in (homes.run_words(homes.table), homes.text_words(homes.text)):
            code, _, err = _outside(Place("reference", words, shell='"$@"'), homes)
            if code:
                raise ValueError(f"the runs to compare with failed: {err.splitlines()[-1]}")
        answer = _outside(homes.ask(homes.text), homes)[1]
        homes.answer.write_text(answer, encoding="utf-8")
    try:
        yield homes
    finally:
        homes.clear()


def main(words: Sequence[str]) -> int:
    """Try the places, write the table and the rows."""
    parser = Parser("odd_places", __doc__)
    parser.prog = "python -m benchmarks.odd_places"
    parser.usage = f"{parser.prog} --flag=value …"
    parser.flag("workdir", "Folder of the runs.", required=True)
    parser.flag("only", "Groups to try anew, of " + ",".join(GROUPS), default=",".join(GROUPS))
    given, _ = parser.read(words)
    logging.set_verbosity(logging.WARNING)
    home, only = pathlib.Path(given.workdir).absolute(), given.only.split(",")
    if unknown := set(only) - {*GROUPS}:
        raise ValueError(f"--only={given.only}: no group {unknown.pop()!r} of {', '.join(GROUPS)}")
    groups: dict[str, list[Seen]] = {}
    os.environ.update(Homes(home).environment)
    with prepared(home) as homes:
        for group in only:
            seen = [tried(place, homes) for place in GROUPS[group](homes)]
            write_json(home / f"seen-{group}.json", [plain(one) for one in seen])
    for group in GROUPS:
        file = home / f"seen-{group}.json"
        if file.exists():
            groups[group] = [Seen(**one) for one in read_json(file)]
    found = rows([one for seen in groups.values() for one in seen])
    record(found, path=DISK)  # before the table, which git knows, is another
    TABLE.write_text(markdown(groups), encoding="utf-8")
    for row in found:
        print(f"{row.name}: {row.value}")
    return 0


if __name__ == "__main__":
    command(main, "odd_places")
