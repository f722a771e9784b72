"""Crafted files, names and texts, given to the real readers and commands in processes of their own.

    python -m benchmarks.hostile --workdir=runs/hostile
    python -m benchmarks.hostile --workdir=runs/hostile --only=Parquet

Each input must end unexecuted, in bounded memory, with an error that names it, printing nothing
that a terminal obeys, and leaving what lies outside of its folder as it was. Texts of every kind of
escape sequence go through a small run and its commands. Rows go to `docs/results/disk.json`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator

from benchmarks import hostile_inputs, hostile_texts
from benchmarks.escapes import KINDS, raw
from benchmarks.hostile_inputs import Read
from benchmarks.house import ROOT, Row, record
from benchmarks.program import Asked, Program
from stride_jax.cli.doors import USAGE, one_line
from stride_jax.runtime.progress import bars

DISK = ROOT / "docs/results/disk.json"
_LIMIT = 8 * 2**30  # address space besides what is mapped at the start
_GROWTH = 400  # MiB of resident memory that reading may take: JAX's own programs take a half
_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How an input ended.

    Attributes:
      end: `refused`, `read`, or what went wrong in words.
      growth: MiB of resident memory, the peak over the start.
      said: what was printed.
      executed, outside: whether a payload ran; whether anything outside of the folder changed.
    """

    end: str
    growth: float
    said: str
    executed: bool
    outside: bool


def apart(read: Read, log: pathlib.Path) -> tuple[str, float]:
    """What reading ends in, and the MiB that it took, in a child with limits.

    Args:
      read: it is called in the child.
      log: file for what the child prints.
    """
    ends, told = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside JAX's threads: none is started here
        child = os.fork()
    if child == 0:
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        signal.alarm(_SECONDS)
        result = _ended(read)
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(told, json.dumps(result).encode())
        os._exit(0)
    os.close(told)
    with open(ends, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if content:
        return tuple(json.loads(content))
    died = os.waitstatus_to_exitcode(status)
    return (f"unbounded: {_SECONDS} s" if died == -signal.SIGALRM else f"died: {died}"), 0.0


def _ended(read: Read) -> tuple[str, float]:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    warnings.simplefilter("ignore")
    try:
        code = read()
        end = "refused" if code == USAGE and type(code) is int else "read"
    except BaseException as error:
        line = None
        with contextlib.suppress(Exception):
            line = one_line(error)
        end = "refused" if line else f"without a name: {type(error).__name__}: {error}"[:300]
        sys.stderr.write(f"{line}\n" if line else traceback.format_exc())
    took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began
    return end, took / 1024


def tried(name: str, home: pathlib.Path) -> Outcome:
    """Make an input in a fresh folder, read it, see what it did."""
    place = home / "tried"
    shutil.rmtree(place, ignore_errors=True)
    folder, outside = place / "input", place / "outside"
    for path in (folder, outside):
        path.mkdir(parents=True)
    (outside / "precious").write_text("precious")
    if name in hostile_inputs.FOLDERS:
        shutil.copytree(home / "text", folder / "run")
    if name in hostile_inputs.CHECKPOINTS:
        shutil.copytree(home / "model", folder / "model")
    before = _content(outside)
    maker = hostile_inputs.INPUTS[name]
    if name in hostile_inputs.CHECKPOINTS:
        # Tensorstore refuses to be forked: what it writes is written in the child too.
        end, growth = apart(lambda: maker(folder)(), place / "log")
    else:
        end, growth = apart(maker(folder), place / "log")
    said = (place / "log").read_bytes().decode("utf-8", "surrogateescape")
    executed = hostile_inputs.marker(folder).exists()
    stray = {p.name for p in place.iterdir()} - {"input", "outside", "log", "executed"}
    return Outcome(end, growth, said, executed, _content(outside) != before or bool(stray))


def _content(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def faults(seen: Outcome) -> Iterator[str]:
    """What is wrong with how an input ended, in words that start with the row's."""
    if seen.executed:
        yield "executed"
    if seen.growth > _GROWTH or seen.end.startswith("unbounded"):
        yield f"memory without bound ({seen.growth:.0f} MiB; {seen.end})"
    if seen.end.startswith(("without a name", "died")) or "Traceback" in seen.said:
        yield f"without a name ({seen.end}; {seen.said[-600:]})"
    if characters := raw(seen.said.replace("\r", "") if "died" in seen.end else seen.said):
        yield f"raw sequences on the screen ({sorted(characters)})"
    if seen.outside:
        yield "changed outside of the folder"


_ROWS = (
    "executed", "memory without bound", "without a name", "raw sequences on the screen",
    "changed outside of the folder",
)  # fmt: skip


def main(asked: Asked) -> None:
    """All inputs, then all texts."""
    home = asked.workdir.resolve()
    home.mkdir(parents=True, exist_ok=True)
    hostile_texts.finished(home)
    names = [name for name in hostile_inputs.INPUTS if asked.flags.only in name]
    counts, ends = dict.fromkeys(_ROWS, 0), {"refused": 0, "read": 0}
    skipped = 0
    for name in bars(names, desc="inputs"):
        seen = tried(name, home)
        absent = "is not installed" in seen.said or "needs torch" in seen.said
        skipped += absent
        if seen.end in ends and not absent:
            ends[seen.end] += 1
        wrong = [] if absent else list(faults(seen))
        for row in _ROWS:
            counts[row] += any(one.startswith(row) for one in wrong)
        shown = "; ".join(wrong) or f"{seen.end}, {seen.growth:.0f} MiB"
        last = (seen.said.strip().splitlines() or [""])[-1]
        if asked.flags.all or wrong:
            print(f"{name}: {shown} | {last[:240]!r}", flush=True)
    if not asked.flags.only:
        outputs = hostile_texts.outputs(home)
        for command, said in outputs.items():
            if characters := raw(said):
                counts["raw sequences on the screen"] += 1
                print(f"{command}: raw {sorted(characters)}", flush=True)
            if "Traceback" in said and "bug" not in command:
                counts["without a name"] += 1
                print(f"{command}: {said[-600:]!r}", flush=True)
        rows = [
            Row("hostile: inputs tried", len(names) - skipped, "higher"),
            Row("hostile: inputs skipped, their package is not installed", skipped, "lower"),
            Row("hostile: inputs refused by name", ends["refused"], "higher"),
            Row("hostile: inputs read as harmless data", ends["read"], "lower"),
            *(Row(f"hostile: {name}", count, "lower", asked=0.0) for name, count in counts.items()),
            Row("hostile: escape kinds tried", len(KINDS), "higher", asked=30.0),
            Row("hostile: outputs scanned", len(outputs), "higher"),
        ]
        record(rows, path=DISK)
    print(f"{len(names)} inputs, {ends}, {skipped} skipped, {counts}")


if __name__ == "__main__":
    program = Program("hostile", __doc__, config="configs/bible_gpt.py:runlocal",
                      workdir="runs/hostile")  # fmt: skip
    program.flag("only", "Inputs whose names hold this; nothing is recorded.", default="")
    program.switch("all", "Print how each input ended.")
    program.run(main)
