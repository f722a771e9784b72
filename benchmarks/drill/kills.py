"""Kill runs and continue them; compare what they made with what undisturbed runs did.

Every trial starts a run afresh in one process or two and kills one of them: with SIGKILL or SIGTERM
at a random moment, or with SIGKILL just before a write, of kinds drawn from every stage. The
others are stopped then, as every launcher does, and the run is started again until it ends by
itself. Nothing is cleaned in between.
"""

import collections
import pathlib
import random
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.drill.runs import (
    CHANGES,
    DISK,
    commands,
    compared,
    left_behind,
    products,
    start,
    wait,
)
from benchmarks.drill.struck import NOTHING, drawn, place, struck, writes
from benchmarks.house import Row, record
from benchmarks.program import Asked
from stride_jax.run.config_file import changed
from stride_jax.run.settings import run_settings
from stride_jax.runtime.durable import EXIT_CODE
from stride_jax.runtime.files import write_json
from stride_jax.runtime.progress import bars

Found = dict[str, Any]


def stage_of(workdir: pathlib.Path) -> str:
    """Where a run stands, by what it has written."""
    if not (workdir / "settings.json").exists():
        return "start"
    partial = sorted(path.parent.name for path in workdir.glob("*/*.partial"))
    if partial:
        return partial[-1]
    for stage in ("model", "operators", "measurements", "recovery"):
        if not list(workdir.glob(f"{stage}/*")):
            return stage
    return "summary" if len(list(workdir.glob("bank/*/models-*.npz"))) >= 12 else "bank"


def undisturbed(config: str, home: pathlib.Path, processes: int) -> tuple[float, list[list[str]]]:
    """A run that nobody disturbs, in `<home>/whole-<processes>`.

    Returns:
      Its seconds, and the writes of each process.
    """
    workdir = home / f"whole-{processes}"
    shutil.rmtree(workdir, ignore_errors=True)
    logs = [home / f"{workdir.name}.{i}.writes" for i in range(processes)]
    words = commands(config, workdir, processes)
    for i, log in enumerate(logs):
        log.unlink(missing_ok=True)
        words[i] = struck(words[i], log, NOTHING, "", 0)
    began = time.monotonic()
    if any(wait(start(words, home, workdir.name))):
        raise SystemExit(f"the run that nobody disturbs failed: see {home / workdir.name}.log")
    return time.monotonic() - began, [writes(log) for log in logs]


def by_moment(
    config: str, workdir: pathlib.Path, rng: random.Random, longest: float
) -> tuple[Found, list[int]]:
    """Start a run and hit one of its processes: what was done, and the exit codes.

    One that ended before it was hit does not count: it starts afresh, to be hit earlier.
    """
    processes, number = rng.choice([1, 1, 2]), rng.choice([signal.SIGKILL, signal.SIGTERM])
    victim, moment = rng.randrange(processes), rng.uniform(0.15, 1.0) * longest * processes**0.5
    while True:
        shutil.rmtree(workdir, ignore_errors=True)
        running = start(commands(config, workdir, processes), workdir.parent, workdir.name)
        time.sleep(moment)
        if running[victim].poll() is None:
            running[victim].send_signal(number)
            break
        wait(running)
        moment *= 0.8
    what = {"by": number.name, "processes": processes, "victim": victim, "at": f"{moment:.1f} s"}
    return {**what, "stage": stage_of(workdir)}, wait(running)


def by_write(
    config: str, workdir: pathlib.Path, which: tuple[int, int, str, int]
) -> tuple[Found, list[int]]:
    """Start a run one of whose processes is killed just before a write."""
    processes, victim, write, turn = which
    shutil.rmtree(workdir, ignore_errors=True)
    words, log = commands(config, workdir, processes), workdir.with_suffix(".writes")
    words[victim] = struck(words[victim], log, "kill", write, turn)
    codes = wait(start(words, workdir.parent, workdir.name))
    what = {"by": "SIGKILL", "processes": processes, "victim": victim, "at": write}
    return {**what, "stage": place(write)}, codes


def chosen_writes(
    whole: dict[int, list[list[str]]], count: int, rng: random.Random
) -> Iterator[tuple[int, int, str, int]]:
    """Kinds of write of jobs of one process and of two, half of each, and when they are struck."""
    for processes, own in whole.items():
        together = [write for all_writes in own for write in all_writes]
        for write in drawn(together, count // len(whole), rng):
            victim = rng.choice([i for i, all_writes in enumerate(own) if write in all_writes])
            yield processes, victim, write, rng.randrange(own[victim].count(write))


def continued(config: str, workdir: pathlib.Path, row: Found, codes: list[int]) -> Found:
    """Start a run that was hit again until it ends by itself."""
    runs, ended = 0, [1]
    while any(ended) and runs < 3:
        again = commands(config, workdir, row["processes"])
        runs, ended = runs + 1, wait(start(again, workdir.parent, workdir.name))
    return {**row, "codes": codes, "runs_after": runs, "finished": not any(ended)}


def main(asked: Asked) -> None:
    """Run every trial, write `kills.json`, print a table."""
    config, home, rng = asked.flags.config, asked.workdir, random.Random(asked.flags.seed)
    home.mkdir(parents=True, exist_ok=True)
    settings, wanted, longest = run_settings(changed(asked.config, CHANGES)), {}, 0.0
    whole: dict[int, list[list[str]]] = {}
    for processes in (2, 1, 1):  # the last one, with all programs compiled, says how long it takes
        longest, whole[processes] = undisturbed(config, home, processes)
        wanted[processes] = products(home / f"whole-{processes}", settings)
    chosen, rows = list(chosen_writes(whole, asked.flags.writes, rng)), []
    for i in bars(range(asked.flags.kills + len(chosen)), desc="kills"):
        workdir = home / f"trial-{i:03d}"
        if i < asked.flags.kills:
            row, codes = by_moment(config, workdir, rng, longest)
        else:
            row, codes = by_write(config, workdir, chosen[i - asked.flags.kills])
        row = {"trial": i, **continued(config, workdir, row, codes)}
        if row["finished"]:
            row |= compared(products(workdir, settings), wanted[row["processes"]])
            row["left_behind"] = left_behind(workdir, home / f"whole-{row['processes']}")
        rows.append(row)
        write_json(home / "kills.json", rows)
        shutil.rmtree(workdir)
    _table(rows)
    moments, written = rows[: asked.flags.kills], rows[asked.flags.kills :]
    record([*_figures("at a random moment", moments, 30.0),
            *_figures("before a kind of write", written, None)], path=DISK)  # fmt: skip


def _figures(name: str, rows: list[Found], asked: float | None) -> list[Row]:
    """Rows for the results; a share of one is a share of those that were killed."""
    if not rows:
        return []
    hit = [row for row in rows if any(row["codes"])]
    same = [all(row.get("same_bytes", {"": False}).values()) for row in hit]
    clean = [not row.get("left_behind", ["unfinished"]) for row in hit]
    share = 1 / max(len(hit), 1)
    return [
        Row(f"kills {name}", len(hit), "higher", asked=asked),
        Row(f"kills {name}: share that ended in the same bytes", sum(same) * share, "higher",
            asked=1.0),
        Row(f"kills {name}: share without litter", sum(clean) * share, "higher", asked=1.0),
        Row(f"kills {name}: in jobs of two processes", sum(r["processes"] > 1 for r in hit),
            "higher"),
    ]  # fmt: skip


def _table(rows: list[Found]) -> None:
    print("| stage | kills | SIGKILL | two processes | same bytes | no litter | difference |")
    print("|---|---|---|---|---|---|---|")
    for stage, n in collections.Counter(row["stage"] for row in rows).most_common():
        own = [row for row in rows if row["stage"] == stage]
        print(
            f"| {stage} | {n} | {sum(r['by'] == 'SIGKILL' for r in own)} | "
            f"{sum(r['processes'] > 1 for r in own)} | "
            f"{sum(all(r.get('same_bytes', {'': False}).values()) for r in own)} | "
            f"{sum(not r.get('left_behind', ['unfinished']) for r in own)} | "
            f"{max(r.get('largest_difference', 0.0) for r in own):.1e} |"
        )
    print(f"preempted with code {EXIT_CODE}: {sum(EXIT_CODE in row['codes'] for row in rows)}")
