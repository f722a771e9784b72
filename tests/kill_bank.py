"""Build a bank in processes that are killed at random points, then once to the end.

    python tests/kill_bank.py <folder> <kills> <seed>

Run as a program of its own: it imports JAX once and forks before JAX starts a thread, so a process
costs little. Leaves `folder/whole` (never killed) and `folder/killed`.
"""

import os
import pathlib
import random
import signal
import sys
import time
import warnings

import jax
import numpy as np

from stride_jax import evaluation
from stride_jax.data import Examples
from stride_jax.models import MLP, TrainSettings

# Enough shards that ten kills leave some, however fast the machine trains them.
SETTINGS = evaluation.BankSettings(num_subsets=160, num_seeds=2, models_at_once=2)
RECIPE = TrainSettings(epochs=200, batch_size=4)


def world():
    """Random examples: what a bank is retrained from, and its settings."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(60, 12)).astype(np.float32), rng.integers(0, 3, 60)
    examples = Examples(inputs, labels.astype(np.int32), np.arange(60).astype(str))
    cut = lambda rows: Examples(examples.inputs[rows], examples.labels[rows], examples.ids[rows])  # noqa: E731
    setup = evaluation.Retraining(MLP(3, (8,)), cut(slice(40)), cut(slice(40, 60)), RECIPE)
    return setup, SETTINGS


def start(folder: pathlib.Path) -> int:
    """Fork a process that fills the bank and exits with 0."""
    if pid := os.fork():
        return pid
    evaluation.fill_bank(*world(), folder)
    os._exit(0)


def finish(folder: pathlib.Path) -> None:
    """Fill the bank in a process that nobody kills."""
    assert os.waitpid(start(folder), 0)[1] == 0


def shards(folder: pathlib.Path) -> int:
    """How many shards are written."""
    return len(list(folder.glob("*/models-*.npz")))


def kill(folder: pathlib.Path, rng: random.Random) -> None:
    """SIGKILL a filling process: somewhere in its start, or in or between its next few shards."""
    before, after = shards(folder), rng.randrange(4)
    pid = start(folder)
    while after and shards(folder) < before + after:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05 if after else 0.5))
    os.kill(pid, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    print(f"killed with {shards(folder)} shards", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", RuntimeWarning)  # JAX warns of any fork
    home, rng = pathlib.Path(sys.argv[1]), random.Random(int(sys.argv[3]))
    # The first process compiles, the others read what it compiled.
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    finish(home / "whole")
    for _ in range(int(sys.argv[2])):
        kill(home / "killed", rng)
    finish(home / "killed")
