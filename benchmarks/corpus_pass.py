"""Runs over a prepared corpus that are killed in the pass, and continued to the same operators.

    python -m benchmarks.corpus_pass --workdir=runs/corpus_pass

All begin with the same base model; every second one is a job of two processes. Each kill is kept in
the workdir: stopped, the same command goes on. Rows go to `docs/results/pod.json`.
"""

import hashlib
import pathlib
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.corpus import POD, finished, prepare, write_corpus
from benchmarks.corpus_steps import VOCAB
from benchmarks.drill.runs import commands, start, wait
from benchmarks.house import Row, command, record
from stride_jax import index as indices
from stride_jax.cli.doors import Parser, at_least
from stride_jax.data.tokens import train_tokenizer
from stride_jax.run import config_file
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, run_settings
from stride_jax.runtime.files import read_json, write_json

_CONFIG = "configs/own_text.py:runlocal"

# Small steps and a checkpoint after each: a kill may fall anywhere in the pass.
_STEPS = {
    "shards.max_train": 6000,
    "execution.keep.seconds": 0.0,
    "execution.batch_size": 64,
    "execution.memory": 2_000_000,
}


class Passes:
    """A prepared corpus, a base model of it, and passes over it; what is there is not made again.

    Args:
      home: folder of them all.
    """

    def __init__(self, home: pathlib.Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home, self.base = home, home / "base"
        if not (home / "tokens/manifest.json").exists():
            shutil.rmtree(home / "source", ignore_errors=True)
            train_tokenizer(write_corpus(home / "source", 12), VOCAB).save(home / "tokenizer.json")
            finished(prepare(home / "source", home / "tokens", home / "tokenizer.json"))
        self.changes = {**_STEPS, "shards.folder": str(home / "tokens")}
        texts = {name: str(value) for name, value in self.changes.items()}
        values = config_file.changed(config_file.read_config(_CONFIG), texts)
        self.settings: RunSettings = run_settings(values, tuple(texts))
        self._ended(self.start(self.base, 1, until="model"), self.base)

    def start(
        self, workdir: pathlib.Path, processes: int, until: str = "operators"
    ) -> list[subprocess.Popen[bytes]]:
        """The processes of a run."""
        words = commands(_CONFIG, workdir, processes, self.changes)
        return start([[*own, f"--until={until}"] for own in words], self.home, workdir.name)

    def undisturbed(self, processes: int) -> Mapping[str, Any]:
        """Hash of the operators of a pass that nobody disturbs, and its seconds."""
        workdir = self.home / f"whole-{processes}"
        told = workdir.with_suffix(".json")
        if not told.exists():
            running = self._copied(workdir, processes)
            began = time.monotonic()
            self._ended(running, workdir)
            seconds = time.monotonic() - began
            write_json(told, {"operators": self._operators(workdir), "seconds": seconds})
        return read_json(told)

    def hit(self, trial: int) -> Mapping[str, Any]:
        """Kill a pass at a random moment by SIGKILL or SIGTERM, and let another command end it."""
        rng, processes = random.Random(trial), 1 + trial % 2
        whole, workdir = self.undisturbed(processes), self.home / f"hit-{trial}"
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        victim, moment = rng.randrange(processes), rng.uniform(0, 1) * whole["seconds"]
        while True:
            running = self._copied(workdir, processes)
            time.sleep(moment)
            if running[victim].poll() is None and _in_pass(workdir):
                running[victim].send_signal(number)
                wait(running, patience=10)
                break
            wait(running)
            moment *= 0.8  # it had ended before
        saved = any(path.name.isdigit() for path in workdir.glob("operators/*.partial/*/*"))
        self._ended(self.start(workdir, processes), workdir)
        other = self._operators(workdir) != whole["operators"]
        shutil.rmtree(workdir)
        return {"by": number.name, "processes": processes, "saved": saved, "other": other}

    def _copied(self, workdir: pathlib.Path, processes: int) -> list[subprocess.Popen[bytes]]:
        """A run that begins with the base model, once it is in its pass."""
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(self.base, workdir)
        running = self.start(workdir, processes)
        while not _in_pass(workdir):
            if any(process.poll() is not None for process in running):
                wait(running)
                raise SystemExit(f"a run ended before its pass: see {workdir}.log")
            time.sleep(0.02)
        return running

    def _ended(self, running: list[subprocess.Popen[bytes]], workdir: pathlib.Path) -> None:
        if any(wait(running)):
            raise SystemExit(f"a run that nobody disturbs failed: see {workdir}.log")

    def _operators(self, workdir: pathlib.Path) -> str:
        """Hash of all that the pass makes."""
        digest = hashlib.blake2b(digest_size=8)
        for name, array in sorted(indices.to_arrays(Run(self.settings, workdir).index).items()):
            digest.update(name.encode() + np.asarray(array).tobytes())
        return digest.hexdigest()


def _in_pass(workdir: pathlib.Path) -> bool:
    """Whether a pass has begun and not ended: its state is being kept."""
    return any(workdir.glob("operators/*.partial"))


def main(words: Sequence[str]) -> None:
    """Kill as often as asked for, and record."""
    parser = Parser("corpus_pass", __doc__)
    parser.flag("workdir", "Folder of all files.", default="runs/corpus_pass")
    parser.flag("trials", "Kills.", type=at_least(1), default=10)
    given, _ = parser.read(words)
    home = pathlib.Path(given.workdir).absolute()
    passes, path = Passes(home), home / "trials.json"
    rows = read_json(path) if path.exists() else []
    for trial in range(len(rows), given.trials):
        rows.append(passes.hit(trial))
        write_json(path, rows)
        print(f"{trial}: {rows[-1]}", flush=True)
    told = f"pass over shards: kills of {len(rows)}"
    other, saved = (sum(row[name] for row in rows) for name in ("other", "saved"))
    record(
        [
            Row(f"{told} resumed to other operators", other, "lower", asked=0.0),
            Row(f"{told} resumed from a checkpoint", saved, "higher"),
        ],
        path=POD,
    )


if __name__ == "__main__":
    command(main, "benchmarks.corpus_pass")
