"""What a question costs: a warm answer, a first call, and what a question of a new length compiles.

    python -m benchmarks.asking

A GPT on the King James Bible (2,048 sequences of 64 tokens, one epoch) is asked eight questions of
different lengths. First calls are processes of their own: one that keeps its programs, one that
finds them, whose answers are compared byte by byte, and one without. Rows go to
`docs/results/pod.json`.
"""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

import jax

from benchmarks.corpus import POD
from benchmarks.house import ROOT, Row, command, record
from stride_jax.applications.answer import ask
from stride_jax.cli.doors import Parser
from stride_jax.run.opened import open_run

CONFIG = "configs/bible_gpt.py"
SMALL = ("text.max_train=2048", "train.epochs=1", "bank=None", "unit=None")

QUESTIONS = (
    ("And God said,", " Let there be light"),
    ("And it came to pass that the king", " went up to Jerusalem"),
    ("In", " the beginning God created the heaven and the earth, and the earth was without form"),
    ("Thou shalt not", " kill"),
    ("And Moses went up unto God, and the LORD called unto him out of the", " mountain, saying"),
    ("Blessed", " are the meek: for they shall inherit the earth."),
    ("He", " was"),
    ("And the LORD spake unto Moses, saying, Speak unto the children of", " Israel, and say unto"),
)
"""Prompts and completions; the first warms the process up."""

_COMPILED = "/jax/core/compile/backend_compile_duration"


def make_run(workdir: pathlib.Path) -> None:
    """The run that is asked, up to its operators."""
    changes = [f"--config.{change}" for change in SMALL]
    command = [sys.executable, "-m", "stride_jax", "run", f"--config={CONFIG}"]
    subprocess.run(
        [*command, f"--workdir={workdir}", "--until=operators", *changes], cwd=ROOT, check=True
    )


def first_call(workdir: pathlib.Path, **environment: str) -> tuple[float, float, bytes]:
    """CPU seconds, seconds and the answer of a process that is asked one question."""
    prompt, completion = QUESTIONS[0]
    command = [
        sys.executable, "-m", "stride_jax", "ask", f"--workdir={workdir}", f"--prompt={prompt}",
        f"--completion={completion}", "--json",
    ]  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, **environment}
    )
    assert process.stdout is not None, "it is a pipe"
    answer = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"ask failed: status {status}")
    return used.ru_utime + used.ru_stime, time.monotonic() - began, answer


def warm_answers(workdir: pathlib.Path) -> tuple[list[float], list[int]]:
    """Seconds of each question but the first, and the programs that it compiled or loaded."""
    compiled = 0

    def listen(event: str, duration_secs: float, **_: object) -> None:
        nonlocal compiled
        del duration_secs
        compiled += event == _COMPILED

    jax.monitoring.register_event_duration_secs_listener(listen)
    run, seconds, programs = open_run(workdir), [], []
    for prompt, completion in QUESTIONS:
        before, began = compiled, time.monotonic()
        ask(run, prompt, completion)
        seconds.append(time.monotonic() - began)
        programs.append(compiled - before)
        print(f"{prompt!r}: {seconds[-1]:.2f} s, {programs[-1]} programs", flush=True)
    return seconds[1:], programs[1:]


def warm_rows(workdir: pathlib.Path) -> list[Row]:
    """What questions of other lengths cost a process that answered one."""
    warm, programs = warm_answers(workdir)
    return [
        Row("ask: seconds of a warm answer, longest of seven", max(warm), "lower", asked=3.0),
        Row("ask: most programs compiled for a question of another length", float(max(programs)),
            "lower", asked=0.0),
    ]  # fmt: skip


def kept_rows(workdir: pathlib.Path, kept: pathlib.Path) -> list[Row]:
    """What a first call costs that finds its programs, and one that writes them."""
    cold, _, written = first_call(workdir, XDG_CACHE_HOME=str(kept))
    again, seconds, loaded = first_call(workdir, XDG_CACHE_HOME=str(kept))
    return [
        Row("ask: CPU seconds of a first call that keeps its programs", cold, "lower", asked=20.0),
        Row("ask: CPU seconds of a first call, programs kept", again, "lower", asked=20.0),
        Row("ask: seconds of a first call, programs kept", seconds, "lower"),
        Row("ask: whether kept programs change any byte of an answer", float(written != loaded),
            "lower", asked=0.0),
    ]  # fmt: skip


def plain_rows(workdir: pathlib.Path) -> list[Row]:
    """What a first call costs that keeps nothing."""
    without, _, _ = first_call(workdir, JAX_ENABLE_COMPILATION_CACHE="false")
    return [Row("ask: CPU seconds of a first call, nothing kept", without, "lower", asked=20.0)]


def main(words: Sequence[str]) -> int:
    """Make the run, ask, write rows as they come."""
    parser = Parser("asking", __doc__)
    parser.flag("workdir", "Folder of the run and of kept programs.", default="runs/asking")
    given, _ = parser.read(words)
    home = (ROOT / given.workdir).resolve()
    workdir, kept = home / "run", home / f"kept-{time.time_ns()}"
    make_run(workdir)
    parts = (lambda: kept_rows(workdir, kept), lambda: warm_rows(workdir),
             lambda: plain_rows(workdir))  # fmt: skip
    for part in parts:
        rows = part()
        for row in rows:
            print(f"{row.name}: {row.value:.3g}", flush=True)
        record(rows, path=POD)
    return 0


if __name__ == "__main__":
    command(main, "benchmarks.asking")
