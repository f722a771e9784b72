"""What is asked of corpora: the same bytes however they are prepared, and memory that stays.

    python -m benchmarks.corpus --only=kills,speed
    python -m benchmarks.corpus --only=processes
    python -m benchmarks.corpus --only=memory,steps

Rows go to `docs/results/pod.json`. The text is made up: words drawn by Zipf's law.
"""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus_steps import VOCAB, stand_in
from benchmarks.house import ROOT, Row, command, record
from stride_jax.cli.doors import Parser, at_least
from stride_jax.data.tokens import train_tokenizer
from stride_jax.run import config_file
from stride_jax.run.launching.jobs import local_commands
from stride_jax.run.launching.settings import LaunchSettings
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import run_settings
from stride_jax.runtime.files import read_json, write_json
from stride_jax.scores import as_dense

POD = ROOT / "docs/results/pod.json"

# Tighter than scores are compared.
_GAP = {"read.lasso.relative_gap": 1e-7}


def write_corpus(folder: pathlib.Path, megabytes: int, files: int = 4) -> list[str]:
    """Parquet files of so many megabytes of text altogether; some of it."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(5000)])
    share = 1 / np.arange(1, len(words) + 1)
    folder.mkdir(parents=True)
    texts: list[str] = []
    for i in range(files):
        schema = pa.schema([("id", pa.string()), ("text", pa.string())])
        with pq.ParquetWriter(folder / f"{i}.parquet", schema) as writer:
            for group in range(-(-megabytes // files)):
                lengths = rng.integers(20, 400, 850)  # about a megabyte
                drawn = rng.choice(words, lengths.sum(), p=share / share.sum())
                parts = np.split(drawn, np.cumsum(lengths)[:-1])
                texts = [" ".join(part) for part in parts]
                ids = [f"{i}-{group}-{n}" for n in range(len(texts))]
                writer.write_table(pa.table({"id": ids, "text": texts}, schema=schema))
    return texts


def prepare(source: pathlib.Path, out: pathlib.Path, tokenizer: pathlib.Path, *more: str):
    """The process of a `stride-jax prepare`."""
    words = [
        sys.executable, "-m", "stride_jax", "prepare", f"--source={source}", f"--out={out}",
        f"--tokenizer={tokenizer}", "--length=64", "--part=1", "--held_out=.05", *more,
    ]  # fmt: skip
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished(process: subprocess.Popen[bytes]) -> tuple[float, int]:
    """Seconds until a process ended well, and its own largest resident memory."""
    began = time.monotonic()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args} ended with {process.returncode}")
    return time.monotonic() - began, 1024 * usage.ru_maxrss


def packed(folder: pathlib.Path) -> dict[str, bytes]:
    """The files of a prepared corpus; what a kill left beside them is hidden."""
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


class Bench:
    """A folder with a corpus, a tokenizer of it, and what is measured there."""

    def __init__(self, home: pathlib.Path, trials: int, sequences: int) -> None:
        self.home, self.trials, self.sequences = home, trials, sequences
        self.source, self.tokenizer = home / "source", home / "tokenizer.json"
        if not self.tokenizer.exists():
            shutil.rmtree(self.source, ignore_errors=True)
            texts = write_corpus(self.source, 12)
            train_tokenizer(texts, VOCAB).save(self.tokenizer)

    def fresh(self, name: str) -> pathlib.Path:
        """A folder's path, with nothing there."""
        shutil.rmtree(self.home / name, ignore_errors=True)
        return self.home / name

    def kills(self) -> list[Row]:
        """SIGKILL or SIGTERM at random moments, until a command ends by itself.

        What each trial found is kept: stopped, the same command goes on.
        """
        told = self.home / "kills.json"
        if not told.exists():
            began = time.monotonic()
            finished(prepare(self.source, self.fresh("alone"), self.tokenizer, "--workers=2"))
            write_json(told, {"seconds": time.monotonic() - began, "trials": []})
        found = read_json(told)
        alone = packed(self.home / "alone")
        for trial in range(len(found["trials"]), self.trials):
            found["trials"].append(self._killed(trial, found["seconds"], alone))
            write_json(told, found)
            print(f"{trial}: {found['trials'][-1]}", flush=True)
        hits, other = (sum(own[n] for own in found["trials"]) for n in ("kills", "other"))
        return [Row(f"prepare: kills of {hits} resumed to other bytes", other, "lower", asked=0.0)]

    def _killed(self, trial: int, whole: float, alone: dict[str, bytes]) -> dict[str, Any]:
        """A kill of a command at work, and whether the next one ends in other bytes."""
        rng, name = random.Random(trial), f"killed-{trial}"
        moment, number = rng.uniform(0.2, 1.0) * whole, rng.choice([signal.SIGKILL, signal.SIGTERM])
        while True:
            process = prepare(self.source, self.fresh(name), self.tokenizer, "--workers=2")
            time.sleep(moment)
            if process.poll() is None:
                process.send_signal(number)
                process.wait()
                break
            moment *= 0.8
        parts = len(list((self.home / name).glob("parts/*.json")))
        finished(prepare(self.source, self.home / name, self.tokenizer, "--workers=1"))
        other = packed(self.home / name) != alone
        self.fresh(name)
        return {"kills": 1, "by": number.name, "parts": parts, "other": other}

    def speed(self) -> list[Row]:
        """Tokens a second of one worker and of two, start and manifest included."""
        rows = []
        for workers in (1, 2):
            process = prepare(
                self.source, self.fresh(f"speed-{workers}"), self.tokenizer, f"--workers={workers}"
            )
            seconds, _ = finished(process)
            total = read_json(self.home / f"speed-{workers}" / "manifest.json")["total"]
            tokens = sum(own["tokens"] for own in total.values())
            name = f"prepare: tokens per second, {workers} workers"
            rows.append(Row(name, tokens / seconds, "higher"))
        return rows

    def memory(self) -> list[Row]:
        """Peak memory of `prepare` at ten times the text, over that at once."""
        peaks = []
        for megabytes in (12, 120):
            source = self.source
            if megabytes != 12:
                write_corpus(source := self.fresh(f"source-{megabytes}"), megabytes)
            process = prepare(
                source, self.fresh(f"memory-{megabytes}"), self.tokenizer, "--workers=1"
            )
            peaks.append(finished(process)[1])
            print(f"{megabytes} MB of text: {peaks[-1] / 2**20:.0f} MiB at most", flush=True)
        ratio = peaks[1] / peaks[0]
        return [
            Row("prepare: peak MiB at 12 MB of text", peaks[0] / 2**20, "lower"),
            Row("prepare: peak at ten times the text, ratio", ratio, "lower", asked=1.1),
        ]  # fmt: skip

    def processes(self) -> list[Row]:
        """Prepared and run by 1, 2 and 4 processes: the largest difference to one."""
        products, other = {}, 0
        for count in (1, 2, 4):
            folder = self.fresh(f"by-{count}")
            running = [
                prepare(
                    self.source, folder, self.tokenizer, "--workers=1",
                    f"--num_processes={count}", f"--process_id={i}",
                )
                for i in range(count)
            ]  # fmt: skip
            for process in running:
                finished(process)
            other += packed(folder) != packed(self.home / "by-1")
            # The same folder, so that stages have the same names.
            products[count] = self._run(self.home / "by-1", self.fresh(f"run-{count}"), count)
        rows = [
            Row("corpus: folders of 2, 4 processes with other bytes", other, "lower", asked=0.0)
        ]
        for name in products[1]:
            wanted = products[1][name]
            worst = max(
                float(np.linalg.norm(products[n][name] - wanted) / np.linalg.norm(wanted))
                for n in (2, 4)
            )
            said = f"corpus: {name} of 2, 4 processes against 1, relative difference"
            rows.append(Row(said, worst, "lower", asked=1e-5))
        return rows

    def _run(
        self, tokens: pathlib.Path, workdir: pathlib.Path, count: int
    ) -> dict[str, np.ndarray]:
        config = "configs/own_text.py:runlocal"
        changes = {**_GAP, "shards.folder": str(tokens)}
        settings = LaunchSettings(
            config, str(workdir), overrides=tuple(changes.items()), processes=count,
            python=sys.executable,
        )  # fmt: skip
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        environment["JAX_COMPILATION_CACHE_DIR"] = str(self.home / "compiled")
        words = [[*own, "--until=recovery"] for own in local_commands(settings, _free_port())]
        log = open(self.home / f"run-{count}.log", "wb")  # noqa: SIM115
        running = [
            subprocess.Popen(own, cwd=ROOT, env=environment, stdout=log, stderr=log)
            for own in words
        ]
        for process in running:
            finished(process)
        values = config_file.changed(
            config_file.read_config(config), {n: str(v) for n, v in changes.items()}, {}
        )
        run = Run(run_settings(values, tuple(changes)), workdir)
        operators = next(iter(run.index.operators.values()))
        return {
            "operators": np.asarray(operators.a_KxRxO)
            * np.asarray(operators.size_K)[:, None, None],
            "measurements": run.measurements,
            "scores": as_dense(run.influences),
        }

    def steps(self) -> list[Row]:
        """Twenty batches of the pass over N and 10 N sequences, four processes, 3 GiB each."""
        told = []
        for count in (self.sequences // 10, self.sequences):
            folder = self.fresh(f"sparse-{count}")
            stand_in(folder, count, self.tokenizer)
            told.append(_steps(folder, 4))
            print(f"{count} sequences: {told[-1]}", flush=True)
            shutil.rmtree(folder)
        few, many = ({name: max(own[name] for own in t) for name in t[0]} for t in told)
        at = f"{self.sequences / 1e6:.1f} M sequences of 2048 tokens, four processes of 3 GiB"
        return [
            Row(f"first 20 steps: peak MiB of a process, {at}", many["peak"] / 2**20, "lower"),
            Row(f"first 20 steps: peak against a tenth of N, {at}", many["peak"] / few["peak"],
                "lower", asked=1.1),
            Row(f"first 20 steps: seconds to the first step, {at}", many["first"], "lower",
                asked=120.0),
        ]  # fmt: skip


def _steps(folder: pathlib.Path, processes: int) -> list[dict[str, float]]:
    port = _free_port()
    words = [sys.executable, "-m", "benchmarks.corpus_steps", f"--folder={folder}", "--limit=3"]
    running = [
        subprocess.Popen(
            [
                *words, f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}",
                f"--process_id={i}",
            ],
            cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        for i in range(processes)
    ]  # fmt: skip
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"the first steps failed: {[p.returncode for p in running]}")
    return [json.loads(own.strip().splitlines()[-1]) for own in said]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main(words: Sequence[str]) -> None:
    """Measure what is asked for and record it."""
    parser = Parser("corpus", __doc__)
    parser.flag("workdir", "Folder of all files.", default="runs/corpus")
    parser.flag("only", "Of kills, speed, memory, processes, steps; all by default.", default="")
    parser.flag("trials", "Kills.", type=at_least(1), default=10)
    parser.flag("sequences", "Of the largest corpus.", type=at_least(10), default=11_400_000)
    given, _ = parser.read(words)
    bench = Bench(pathlib.Path(given.workdir).absolute(), given.trials, given.sequences)
    parts: dict[str, Callable[[], list[Row]]] = {
        name: getattr(bench, name) for name in ("kills", "speed", "memory", "processes", "steps")
    }
    for name in given.only.split(",") if given.only else parts:
        rows = parts[name]()
        for row in rows:
            print(f"{row.name}: {row.value}", flush=True)
        record(rows, path=POD)
    print(f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime:.0f} s of CPU")


if __name__ == "__main__":
    command(main, "benchmarks.corpus")
