"""Runs as the drill starts them: real processes, in small steps, and what they made."""

import hashlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.house import ROOT
from stride_jax.run.launching.jobs import local_commands
from stride_jax.run.launching.settings import LaunchSettings
from stride_jax.run.pipeline import Run
from stride_jax.runtime.claim import litter
from stride_jax.scores import as_dense

DISK = ROOT / "docs/results/disk.json"

# Small steps and a checkpoint after each: a kill may fall anywhere.
CHANGES = {
    "execution.keep.seconds": 0.0,
    "execution.batch_size": 64,
    "execution.memory": 2_000_000,
    "bank.num_subsets": 12,
    "bank.models_at_once": 2,
}


def commands(
    config: str, workdir: pathlib.Path, processes: int, changes: Mapping[str, Any] = CHANGES
) -> list[list[str]]:
    """The words of each process of a run of this config, in small steps."""
    settings = LaunchSettings(
        config, str(workdir), overrides=tuple(changes.items()), processes=processes,
        python=sys.executable,
    )  # fmt: skip
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return local_commands(settings, listener.getsockname()[1])


def start(
    words: Sequence[Sequence[str]], home: pathlib.Path, name: str
) -> list[subprocess.Popen[bytes]]:
    """Start processes together; what they say goes to `<home>/<name>.log`."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    # Another compilation would be most of a trial.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(home / "compiled")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    with (home / f"{name}.log").open("ab") as log:
        return [
            subprocess.Popen(own, env=environment, stdout=log, stderr=log, cwd=ROOT)
            for own in words
        ]


def wait(running: Sequence[subprocess.Popen[bytes]], patience: float = 60.0) -> list[int]:
    """Exit codes; once one process failed the others are asked to stop, then killed.

    So does every launcher.
    """
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


def compared(own: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """Whether two runs made the same bytes, and by how much they differ at most."""
    furthest = (np.abs(own[n][1] - v).max() / np.abs(v).max() for n, (_, v) in reference.items())
    return {
        "same_bytes": {n: own[n][0] == reference[n][0] for n in reference},
        "largest_difference": float(max(furthest)),
    }


def left_behind(workdir: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """Files of a run that one which nobody disturbed has not, and what is litter by its name."""
    strange = sorted(_names(workdir) - _names(whole))
    return [str(path.relative_to(workdir)) for path in litter(workdir)] + strange


def _names(workdir: pathlib.Path) -> set[str]:
    """Files by path; orbax names its data by chance, and the metrics are named by the time."""
    return {
        re.sub("[0-9a-f]{32}", "*", str(inside))
        for path in workdir.rglob("*")
        if (inside := path.relative_to(workdir)).parts[0] != "metrics" and path.is_file()
    }


def kind_of(path: str) -> str:
    """A path without what differs from run to run and from step to step, nor orbax' own files.

    >>> kind_of("bank/0123456789abcdef/.models-003.npz.ab_3cd9z.part")
    'bank/*/.models-*.npz.part'
    """
    path = re.sub(r"\.[a-z0-9_]{8}\.part", ".part", path)
    path = re.sub(r"incomplete\.[^/]*", "incomplete.*", path)
    path = re.sub(r"(\.orbax-checkpoint-tmp/).*", r"\1…", path)
    return re.sub(r"[0-9a-f]{16}|\d+", "*", path)
