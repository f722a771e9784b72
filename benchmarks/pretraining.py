"""What is asked of pre-training: a mesh changes rounding alone, a kill nothing, and it fits.

    python -m benchmarks.pretraining --only=kills
    python -m benchmarks.pretraining --only=mesh,size

Rows go to `docs/results/pod.json`. Eight devices of the CPU stand for real ones.
"""

import hashlib
import math
import os
import pathlib
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.corpus import POD
from benchmarks.house import Row, command, record
from configs import nanochat
from stride_jax import models
from stride_jax.cli.doors import Parser, at_least
from stride_jax.models.gpt import GPTSettings
from stride_jax.models.pretrain import program
from stride_jax.run.planning.costs import Stage, cost
from stride_jax.runtime import durable
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.execution import Execution
from stride_jax.runtime.keep import KeepSettings
from stride_jax.runtime.rows import Rows

VOCAB, LENGTH = 256, 32
MODULE = models.GPT(
    VOCAB, GPTSettings(depth=2, width=64, num_heads=2, num_kv_heads=2, sequence_len=LENGTH)
)


class Drawn(Rows):
    """Tokens that are drawn when they are asked for: a stand-in for files that are not held.

    Args:
      count: N.
      shift: 0 for inputs, 1 for labels.
    """

    def __init__(self, count: int, shift: int) -> None:
        self.shape, self.dtype, self._shift = (count, LENGTH), np.dtype(np.int32), shift

    def read(self, rows: np.ndarray) -> np.ndarray:
        some = [np.random.default_rng(int(row)).integers(0, 9, LENGTH + 1) for row in rows]
        tokens = np.cumsum(some, axis=1, dtype=np.int32).reshape(-1, LENGTH + 1) % VOCAB
        return tokens[:, self._shift : LENGTH + self._shift]


def trained(
    steps: int,
    parameters: str = "replicated",
    execution: Execution = Execution(),
    accumulation: int = 1,
) -> Any:
    """A small GPT after some steps of AdamW on batches of 16."""
    count = 16 * steps
    settings = models.TrainSettings(
        epochs=1,
        batch_size=16,
        optimizer="adamw",
        learning_rate=3e-3,
        warmup=0.1,
        accumulation=accumulation,
    )
    (params,), _ = models.pretrain(
        MODULE, Drawn(count, 0), Drawn(count, 1), settings, parameters=parameters,
        execution=execution,
    )  # fmt: skip
    return params


def mesh() -> list[Row]:
    """Twenty steps on eight devices against one.

    AdamW divides by the gradient's own size, so rounding of gradients near zero grows. How far it
    does is told by one device that adds the same gradient up in two parts.
    """
    alone, rows = jax.tree.leaves(trained(20)), []

    def row(said: str, params: Any) -> None:
        pairs = list(zip(map(np.asarray, jax.tree.leaves(params)), alone, strict=True))
        apart = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
        whole = math.hypot(*(np.linalg.norm(a - b) for a, b in pairs))
        whole /= math.hypot(*(np.linalg.norm(b) for _, b in pairs))
        name = f"pre-training, 20 steps on {said}: relative difference to one device"
        rows.append(Row(name, float(whole), "lower", asked=1e-4))
        rows.append(Row(f"{name}, worst array", float(max(apart)), "lower"))

    row("one device, gradient in two parts", trained(20, accumulation=2))
    for shape in ((4, 2), (8, 1)):
        for parameters in ("sharded", "replicated"):
            execution = Execution(meshes.make_mesh(*shape))
            said = f"{shape[0]} x {shape[1]} devices, parameters {parameters}"
            row(said, trained(20, parameters, execution))
    return rows


def size() -> list[Row]:
    """A step of the 1.38B model, compiled for eight devices from shapes."""
    # Blocks are computed again in the backward pass, a sequence per device at a time.
    values = nanochat.get_config("d24").to_dict()["model"]["gpt"] | {"remat": True}
    settings = models.TrainSettings(
        epochs=1, batch_size=16, accumulation=2, optimizer="adamw", learning_rate=3e-4
    )
    one = np.zeros((1, values["sequence_len"]), np.int32)
    began = time.monotonic()
    own = program(
        models.GPT(32_768, GPTSettings(**values)), one, one, nanochat.NUM_TRAIN[24], settings,
        meshes.make_mesh(1, 8), "sharded",
    )  # fmt: skip
    params = sum(math.prod(v.shape) for v in jax.tree.leaves(own.args[0][0]))
    found, what = cost(Stage("pre-training", own)), "pre-training step of nanochat d24 on 8 devices"
    return [
        Row(f"{what}: parameters", params, "higher"),
        Row(f"{what}: GiB of state and batch on a device", found.argument_bytes / 2**30, "lower"),
        Row(f"{what}: GiB at most on a device", found.peak_bytes / 2**30, "lower"),
        Row(f"{what}: seconds to compile", time.monotonic() - began, "lower"),
    ]


# ── kills ────────────────────────────────────────────────────────────────────────────────────────

_STEPS = 300


def _train(folder: pathlib.Path) -> None:
    """A process that trains over two devices, saves after every piece, and writes what it made."""
    stop = durable.StopRequest().listen()
    own = meshes.arranged((1, 2), jax.devices())
    keep = durable.CheckpointKeep(
        folder / "partial", own, time.monotonic, KeepSettings(seconds=0.0), stop
    )
    params = trained(_STEPS, "sharded", Execution(own, keep=keep))
    digest = hashlib.blake2b(b"".join(np.asarray(v).tobytes() for v in jax.tree.leaves(params)))
    (folder / "digest").write_text(digest.hexdigest())


def _start(folder: pathlib.Path) -> int:
    """Fork a process that trains; JAX is imported once, and starts in the forks alone."""
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX warns of any fork
        if pid := os.fork():
            return pid
    code = 1
    try:
        _train(folder)
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        os._exit(code)


def _finished(folder: pathlib.Path) -> str:
    """The digest of a training that nobody disturbs from here on."""
    _, status = os.waitpid(_start(folder), 0)
    if status:
        raise SystemExit(f"the training in {folder} failed with {status}")
    return (folder / "digest").read_text()


def kills(home: pathlib.Path, trials: int) -> list[Row]:
    """SIGKILL or SIGTERM at random moments of a training, until one ends by itself."""
    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    alone = _finished(home / "alone")
    began = time.monotonic()
    other = int(_finished(home / "again") != alone)
    whole, rng, hits, resumed = time.monotonic() - began, random.Random(0), 0, 0
    if other:
        raise SystemExit("two trainings that nobody disturbed differ: a kill would tell nothing")
    while hits < trials:
        folder = home / f"killed-{hits}"
        pid = _start(folder)
        time.sleep(rng.uniform(0.2, 1.0) * whole)
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if not ended:
            os.kill(pid, rng.choice([signal.SIGKILL, signal.SIGTERM]))
            hits += 1
            os.waitpid(pid, 0)
            steps = [int(p.name) for p in folder.glob("partial/training/*") if p.name.isdigit()]
            resumed += bool(steps)
            print(f"killed with checkpoints {sorted(steps)}", flush=True)
            other += _finished(folder) != alone
        shutil.rmtree(folder)
    return [
        Row(f"pre-training: kills of {hits} resumed to other bytes", other, "lower", asked=0.0),
        Row(f"pre-training: kills of {hits} that left a checkpoint", resumed, "higher"),
    ]


def main(words: Sequence[str]) -> None:
    """Measure what is asked for and record it."""
    parser = Parser("pretraining", __doc__)
    parser.flag("workdir", "Folder of all files; it is emptied first.", default="runs/pretraining")
    parser.flag("only", "Of kills, mesh, size; all by default.", default="")
    parser.flag("trials", "Kills.", type=at_least(1), default=10)
    given, _ = parser.read(words)
    home = pathlib.Path(given.workdir).absolute()
    shutil.rmtree(home, ignore_errors=True)
    jax.config.update("jax_num_cpu_devices", 8)
    # Kills first: their processes are forked before JAX starts here.
    parts: dict[str, Callable[[], list[Row]]] = {
        "kills": lambda: kills(home, given.trials), "mesh": mesh, "size": size,
    }  # fmt: skip
    for name in given.only.split(",") if given.only else parts:
        rows = parts[name]()
        for row in rows:
            print(f"{row.name}: {row.value}", flush=True)
        record(rows, path=POD)


if __name__ == "__main__":
    command(main, "benchmarks.pretraining")
