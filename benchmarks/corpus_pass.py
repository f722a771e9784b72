"""Runs over a prepared corpus that are killed in the pass, and continued to the same operators."""

import hashlib
import pathlib
import random
import shutil
import signal
import subprocess
import time
from typing import Any

import numpy as np

from benchmarks.drill.runs import commands, start, wait
from benchmarks.house import Row
from stride_jax import index as indices
from stride_jax.run import config_file
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, run_settings

_CONFIG = "configs/own_text.py:runlocal"

# Small steps and a checkpoint after each: a kill may fall anywhere in the pass.
_STEPS = {
    "shards.max_train": 6000,
    "execution.keep.seconds": 0.0,
    "execution.batch_size": 64,
    "execution.memory": 2_000_000,
}


def pass_kills(tokens: pathlib.Path, home: pathlib.Path, trials: int) -> list[Row]:
    """Kill runs at random moments of the pass, by SIGKILL or SIGTERM, in one process and in two.

    All begin with the same base model. A run that ended before it was hit does not count.

    Args:
      tokens: the prepared corpus.
      home: folder for the runs.
      trials: kills.
    """
    changes = {**_STEPS, "shards.folder": str(tokens)}
    values = config_file.read_config(_CONFIG)
    settings = run_settings(config_file.changed(values, {k: str(v) for k, v in changes.items()}),
                            tuple(changes))  # fmt: skip
    base, rng = home / "base", random.Random(0)
    _until(base, home, 1, changes, "model")
    whole, seconds = {}, {}
    for processes in (2, 1):
        workdir = home / f"whole-{processes}"
        shutil.copytree(base, workdir)
        running = _start(workdir, home, processes, changes)
        began = _in_pass(running, workdir)
        if any(wait(running)):
            raise SystemExit(f"the run that nobody disturbs failed: see {home / workdir.name}.log")
        seconds[processes] = time.monotonic() - began
        whole[processes] = _operators(settings, workdir)
    other = hits = signals = saved = 0
    while hits < trials:
        processes = 1 + hits % 2
        workdir, victim = home / f"hit-{hits}", rng.randrange(processes)
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(base, workdir)
        running = _start(workdir, home, processes, changes)
        _in_pass(running, workdir)
        time.sleep(rng.uniform(0.0, 0.8) * seconds[processes])
        if running[victim].poll() is not None or not _partial(workdir):
            wait(running)
            continue
        running[victim].send_signal(number)
        wait(running)
        hits += 1
        signals += number == signal.SIGTERM
        saved += any(path.name.isdigit() for path in workdir.glob("operators/*.partial/*/*"))
        if any(wait(_start(workdir, home, processes, changes))):
            raise SystemExit(f"a run that was hit did not end: see {home / workdir.name}.log")
        other += _operators(settings, workdir) != whole[processes]
        print(f"{hits} kills, {signals} of them SIGTERM; {saved} resumed from a checkpoint, "
              f"{other} to other bytes", flush=True)  # fmt: skip
        shutil.rmtree(workdir)
    return [
        Row(f"pass over shards: kills of {hits} resumed to other operators", other, "lower",
            asked=0.0),
        Row(f"pass over shards: kills of {hits} resumed from a checkpoint", saved, "higher"),
    ]  # fmt: skip


def _start(
    workdir: pathlib.Path,
    home: pathlib.Path,
    processes: int,
    changes: dict[str, Any],
    until: str = "operators",
) -> list[subprocess.Popen[bytes]]:
    words = commands(_CONFIG, workdir, processes, changes)
    return start([[*own, f"--until={until}"] for own in words], home, workdir.name)


def _until(
    workdir: pathlib.Path, home: pathlib.Path, processes: int, changes: dict[str, Any], until: str
) -> None:
    if any(wait(_start(workdir, home, processes, changes, until))):
        raise SystemExit(f"the base model was not trained: see {home / workdir.name}.log")


def _partial(workdir: pathlib.Path) -> bool:
    return any(workdir.glob("operators/*.partial"))


def _in_pass(running: list[subprocess.Popen[bytes]], workdir: pathlib.Path) -> float:
    """The moment at which the pass has saved its first state."""
    while not _partial(workdir):
        if any(process.poll() is not None for process in running):
            wait(running)
            raise SystemExit(f"a run ended without a pass: see {workdir}.log")
        time.sleep(0.02)
    return time.monotonic()


def _operators(settings: RunSettings, workdir: pathlib.Path) -> str:
    """Hash of all that the pass makes."""
    digest = hashlib.blake2b(digest_size=8)
    for name, array in sorted(indices.to_arrays(Run(settings, workdir).index).items()):
        digest.update(name.encode() + np.asarray(array).tobytes())
    return digest.hexdigest()
