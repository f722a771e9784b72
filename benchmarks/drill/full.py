"""Fill a run's disk just before a write, of kinds from every stage; make room, and run it again.

The workdir is on a tmpfs of its own, which takes root to mount. A run on a full disk has to end
with one line that names the trouble and a path, to lose nothing, and to end in the same bytes once
there is room.
"""

import collections
import contextlib
import pathlib
import random
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from benchmarks.drill.kills import undisturbed
from benchmarks.drill.runs import CHANGES, DISK, commands, compared, left_behind, products, start
from benchmarks.drill.struck import drawn, place, struck
from benchmarks.house import Row, record
from benchmarks.program import Asked
from stride_jax.cli.doors import USAGE
from stride_jax.run.config_file import changed
from stride_jax.run.settings import run_settings
from stride_jax.runtime.files import write_json
from stride_jax.runtime.progress import bars


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: str = "256m") -> Iterator[None]:
    """A file system of its own in a folder while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{folder}: no tmpfs can be mounted there ({done.stderr.strip()}): "
                         "run it as root")  # fmt: skip
    try:
        yield
    finally:
        # Lazily: this process has read products there, and their files may still be open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def lines_of(log: pathlib.Path) -> list[str]:
    """What a process said, without its bars, which start their lines anew."""
    said = re.split(r"[\r\n]", log.read_text(encoding="utf-8", errors="replace"))
    return [line for line in said if line.strip() and "it/s" not in line and "s/it" not in line
            and "%|" not in line]  # fmt: skip


def trial(config: str, disk: pathlib.Path, name: str, write: str) -> dict[str, Any]:
    """A run whose disk is full from its first write of a kind on, and the same run with room."""
    home, workdir = disk.parent, disk / "run"
    log, noted = home / f"{name}.log", home / f"{name}.writes"
    for path in (log, noted):
        path.unlink(missing_ok=True)
    words = [struck(commands(config, workdir, 1)[0], noted, "fill", write, 0)]
    (code,) = [p.wait() for p in start(words, home, name)]
    said, before = lines_of(log), _products(workdir)
    (disk / "filler").unlink()
    lost = [name for name, size in before.items() if not size]
    (again,) = [p.wait() for p in start(commands(config, workdir, 1), home, "again")]
    return {
        "write": write,
        "code": code,
        "said": said[-3:],
        "one_line": code == USAGE and not any("Traceback" in line for line in said),
        "path": bool(said) and str(workdir) in said[-1],
        "lost": lost + [name for name in before if not (workdir / name).exists()],
        "finished": not again,
    }


def _products(workdir: pathlib.Path) -> dict[str, int]:
    """Sizes of the finished products of a run."""
    stages = ("bank", "measurements", "recovery", "unit")
    return {
        str(path.relative_to(workdir)): path.stat().st_size
        for stage in stages
        for path in workdir.glob(f"{stage}/**/*.npz")
    }


def main(asked: Asked) -> None:
    """A trial for each kind of write; `full.json`, and rows."""
    config, home = asked.flags.config, asked.workdir
    home.mkdir(parents=True, exist_ok=True)
    settings = run_settings(changed(asked.config, CHANGES))
    _, (all_writes,) = undisturbed(config, home, 1)
    wanted, rows = products(home / "whole-1", settings), []
    # Removing takes no room.
    taking = [write for write in all_writes if write.split()[0] in ("open", "os.mkdir")]
    kinds = drawn(taking, asked.flags.writes, random.Random(asked.flags.seed))
    for i, write in enumerate(bars(kinds, desc="full disks")):
        disk = home / "disk"
        with small_disk(disk):
            row = trial(config, disk, f"full-{i:02d}", write)
            if row["finished"]:
                row |= compared(products(disk / "run", settings), wanted)
                row["left_behind"] = left_behind(disk / "run", home / "whole-1")
            rows.append(row)
            write_json(home / "full.json", rows)
    _record(rows)


def _record(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        print(f"{row['write']}: code {row['code']}, {' / '.join(row['said'][-1:])[:160]}")
    failed = [row for row in rows if row["code"]]  # some writes fail quietly, such as metrics
    stages = collections.Counter(place(r["write"]) for r in failed)
    told = sum(row["one_line"] and row["path"] for row in failed)
    kept = [not row["lost"] for row in rows]
    same = [all(row.get("same_bytes", {"": False}).values()) for row in rows]
    clean = [not row.get("left_behind", ["unfinished"]) for row in rows]
    record(
        [
            Row("full disk: places where a run ended", len(stages), "higher", asked=8.0),
            Row("full disk: kinds of write", len(rows), "higher"),
            Row("full disk: share told in one line with the path", told / max(len(failed), 1),
                "higher", asked=1.0),
            Row("full disk: share that lost nothing", sum(kept) / len(rows), "higher", asked=1.0),
            Row("full disk: share that ended in the same bytes once there was room",
                sum(same) / len(rows), "higher", asked=1.0),
            Row("full disk: share without litter", sum(clean) / len(rows), "higher", asked=1.0),
        ],
        path=DISK,
    )  # fmt: skip
