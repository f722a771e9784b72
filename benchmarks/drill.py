"""Kill a run at random moments, continue it, and compare its products with an undisturbed run's.

    python -m benchmarks.drill --workdir=runs/drill --kills=30

Every trial starts `experiments.run` afresh in one process or two, kills one of them with SIGKILL or
SIGTERM at a random moment (the others are stopped then, as every launcher does), and starts it
again until it ends by itself. Nothing is cleaned in between.
"""

import collections
import hashlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.program import Asked, Program
from stride_jax.cli.doors import at_least
from stride_jax.run.config_file import changed
from stride_jax.run.launching.jobs import local_commands
from stride_jax.run.launching.settings import LaunchSettings
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import run_settings
from stride_jax.runtime.durable import EXIT_CODE
from stride_jax.runtime.files import write_json
from stride_jax.runtime.progress import bars
from stride_jax.scores import as_dense

# Small steps and a checkpoint after each: a kill may fall anywhere.
_CHANGES = {
    "execution.keep.seconds": 0.0,
    "execution.batch_size": 64,
    "execution.memory": 2_000_000,
    "bank.num_subsets": 12,
    "bank.models_at_once": 2,
}


def start(config: str, workdir: pathlib.Path, processes: int) -> list[subprocess.Popen[bytes]]:
    """All processes of a run of this config, in small steps."""
    settings = LaunchSettings(
        config, str(workdir), overrides=tuple(_CHANGES.items()), processes=processes,
        python=sys.executable,
    )  # fmt: skip
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = (workdir.parent / f"{workdir.name}.log").open("ab")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    # Another compilation would be most of a trial.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(workdir.parent / "compiled")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return [
        subprocess.Popen(words, env=environment, stdout=log, stderr=log)
        for words in local_commands(settings, port)
    ]


def wait(running: Sequence[subprocess.Popen[bytes]], patience: float = 60.0) -> list[int]:
    """Exit codes; once one process failed the others are asked to stop, then killed."""
    while any(p.poll() is None for p in running):
        if any(p.poll() not in (None, 0) for p in running):
            for p in running:
                p.terminate()
            deadline = time.monotonic() + patience
            while any(p.poll() is None for p in running) and time.monotonic() < deadline:
                time.sleep(0.05)
            for p in running:
                p.kill()
        time.sleep(0.05)
    return [p.wait() for p in running]


def stage_of(workdir: pathlib.Path) -> str:
    """Where a run stands, by what it has written."""
    if not (workdir / "settings.json").exists():
        return "start"
    partial = sorted(path.parent.name for path in workdir.glob("*/*.partial"))
    if partial:
        return partial[-1]
    if not list(workdir.glob("model/*")):
        return "model"
    for stage in ("operators", "measurements", "recovery"):
        if not list(workdir.glob(f"{stage}/*")):
            return stage
    return "summary" if len(list(workdir.glob("bank/*/models-*.npz"))) >= 12 else "bank"


def products(workdir: pathlib.Path, settings: Any) -> dict[str, Any]:
    """What a finished run made, as digests and arrays."""
    run = Run(settings, workdir)
    operators = run.index.operators["logit"]
    losses = [np.load(p)["losses"] for p in sorted(workdir.glob("bank/*/models-*.npz"))]
    arrays = {
        "operators": np.asarray(operators.a_KxRxO),
        "measurements": run.measurements,
        "scores": as_dense(run.influences),
        "bank": np.concatenate(losses),
    }
    return {
        n: (hashlib.blake2b(a.tobytes(), digest_size=8).hexdigest(), a) for n, a in arrays.items()
    }


def struck(
    config: str, workdir: pathlib.Path, rng: random.Random, longest: float
) -> tuple[dict[str, Any], list[int]]:
    """Start a run and hit one of its processes: what was done, and the exit codes.

    One that ended before it was hit does not count: it starts afresh, to be hit earlier.
    """
    processes, number = rng.choice([1, 1, 2]), rng.choice([signal.SIGKILL, signal.SIGTERM])
    victim, moment = rng.randrange(processes), rng.uniform(0.15, 1.0) * longest * processes**0.5
    while True:
        shutil.rmtree(workdir, ignore_errors=True)
        running = start(config, workdir, processes)
        time.sleep(moment)
        if running[victim].poll() is None:
            running[victim].send_signal(number)
            break
        wait(running)
        moment *= 0.8
    what = {"processes": processes, "victim": victim, "signal": number.name}
    return {**what, "seconds": round(moment, 1), "stage": stage_of(workdir)}, wait(running)


def trial(config: str, workdir: pathlib.Path, rng: random.Random, longest: float) -> dict[str, Any]:
    """Start, kill, and start again until the run ends by itself."""
    row, codes = struck(config, workdir, rng, longest)
    runs, ended = 0, [1]
    while any(ended) and runs < 3:
        runs, ended = runs + 1, wait(start(config, workdir, row["processes"]))
    return {**row, "codes": codes, "runs_after": runs, "finished": not any(ended)}


def main(asked: Asked) -> None:
    """Run every trial, write `drill.json`, print a table."""
    config, home = asked.flags.config, asked.workdir
    home.mkdir(parents=True, exist_ok=True)
    settings, wanted = run_settings(changed(asked.config, _CHANGES)), {}
    longest = 0.0
    for processes in (2, 1, 1):  # the last one, with all programs compiled, says how long it takes
        whole = home / f"whole-{processes}"
        shutil.rmtree(whole, ignore_errors=True)
        began = time.monotonic()
        if any(wait(start(config, whole, processes))):
            raise SystemExit(f"the run that nobody kills failed: see {whole}.log")
        longest = time.monotonic() - began
        wanted[processes] = products(whole, settings)
    rng, rows = random.Random(asked.flags.seed), []
    for i in bars(range(asked.flags.kills), desc="drill"):
        workdir = home / f"trial-{i:02d}"
        row = {"trial": i, **trial(config, workdir, rng, longest)}
        own, reference = products(workdir, settings), wanted[row["processes"]]
        row["same_bytes"] = {n: own[n][0] == reference[n][0] for n in own}
        row["largest_difference"] = max(
            float(np.abs(own[n][1] - reference[n][1]).max() / np.abs(reference[n][1]).max())
            for n in own
        )
        row["left_behind"] = [p.name for p in workdir.glob("*/*.partial")]
        rows.append(row)
        write_json(home / "drill.json", rows)
        shutil.rmtree(workdir)
    print("| stage | kills | SIGKILL | two processes | same bytes | largest difference |")
    print("|---|---|---|---|---|---|")
    for stage, n in collections.Counter(row["stage"] for row in rows).most_common():
        own = [row for row in rows if row["stage"] == stage]
        print(
            f"| {stage} | {n} | {sum(r['signal'] == 'SIGKILL' for r in own)} | "
            f"{sum(r['processes'] > 1 for r in own)} | "
            f"{sum(all(r['same_bytes'].values()) for r in own)} | "
            f"{max(r['largest_difference'] for r in own):.1e} |"
        )
    print(f"preempted with code {EXIT_CODE}: {sum(EXIT_CODE in row['codes'] for row in rows)}")


if __name__ == "__main__":
    program = Program("drill", __doc__, config="configs/mnist5k.py:runlocal", workdir="runs/drill")
    program.flag("kills", "Trials.", type=at_least(1), default=30)
    program.flag("seed", "Of moments, signals and processes.", type=int, default=0)
    program.run(main)
