"""Eleven million examples: real measurements, through design, recovery and Parquet, and back.

    python -m benchmarks.recovery_scale
    python -m benchmarks.recovery_scale --sequences=100000 --only=run

`run`: a small GPT is trained on some sequences of two tokens from shards and attributed to all of
them (`experiments.run`, one process under a limit of addresses); pandas reads the table back. The
text is real, three translations of the Bible; it is repeated until there are as many sequences as
asked, each under an id of its own. Rows go to `docs/results/pod.json`.
"""

import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.corpus import POD
from benchmarks.house import ROOT, Row, command, record
from stride_jax.cli.doors import Parser, at_least
from stride_jax.data.bible import TRANSLATIONS, packaged_verses
from stride_jax.data.prepare import FORMAT, PrepareSettings
from stride_jax.data.tokens import train_tokenizer
from stride_jax.run import config_file
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import run_settings
from stride_jax.runtime.files import file_digest, read_json, write_arrays, write_json
from stride_jax.scores import row_scores

LENGTH, VOCAB, CONFIG = 2, 512, "configs/own_text.py"

MODEL = {
    "shards.num_query": 64, "shards.num_calibration": 64,
    "model.gpt.depth": 1, "model.gpt.width": 32, "model.gpt.sequence_len": LENGTH,
}  # fmt: skip
BASE = {**MODEL, "shards.max_train": 200_000, "train.epochs": 1, "train.batch_size": 4096}
"""What the model's own run changes of `configs/own_text.py`."""
CHANGES = {
    **MODEL, "train.epochs": 0,
    "index.basis.rank": 16, "index.output_rank": 16, "execution.batch_size": 16384,
}  # fmt: skip
"""What the run over all sequences changes, which starts from that model."""


def write_shards(folder: pathlib.Path, sequences: int) -> None:
    """A prepared corpus of so many sequences of two tokens; their ids are 8 random bytes each."""
    parts = folder / "parts"
    parts.mkdir(parents=True)
    texts = [verse.text for name in TRANSLATIONS for verse in packaged_verses(name)]
    tokenizer = train_tokenizer(texts, VOCAB)
    tokenizer.save(folder / "tokenizer.json")
    own = np.concatenate([ids for ids, _ in tokenizer.encode_all(texts)]).astype("<u2")
    tokens = sequences * LENGTH
    with open(parts / "00000.train.tokens", "wb") as file:
        own = own[: len(own) - 1 + len(own) % 2]  # an odd number: each time other pairs
        file.write(np.resize(own, tokens + 1).tobytes())
    ids = np.random.default_rng(0).integers(0, 2**64, sequences, "<u8")
    ids.tofile(parts / "00000.train.ids")
    write_arrays(folder / "copies.npz", row=np.zeros(0, np.int64), hash=np.zeros(0, "<u8"))
    held = {"tokens": tokens + 1, "sequences": sequences, "digest": "", "ids": ""}
    manifest = {
        "format": FORMAT, "settings": PrepareSettings("bible", length=LENGTH),
        "tokenizer": file_digest(folder / "tokenizer.json"), "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id, "dtype": "<u2", "total": {"train": {"sequences": sequences}},
        "parts": [{"streams": {"train": held}, "table": ""}],
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)


def run(home: pathlib.Path, sequences: int, limit: int) -> list[Row]:
    """From shards to a table and back."""
    write_shards(home / "tokens", sequences)
    began, tokens = time.monotonic(), {"shards.folder": str(home / "tokens")}
    usages = [_finished(home / "base", {**BASE, **tokens}, limit, "--until=model")]
    seconds = {"training on 0.2 M of them": time.monotonic() - began}
    changes = {**CHANGES, **tokens, "model.init_from": str(home / "base")}
    usages.append(_finished(home / "run", changes, limit))
    told = read_json(home / "run" / "summary.json")
    seconds |= told["stages"]
    seconds["Parquet back by pandas, against the scores"] = check(home / "run", changes)
    minutes = (time.monotonic() - began) / 60
    at = f"{told['num_train'] / 1e6:.1f} M examples, {told['num_queries']} queries"
    return [
        Row(f"scale: peak GiB, {at}", max(u.ru_maxrss for u in usages) / 2**20, "lower", asked=8.0),
        Row(f"scale: GiB of addresses allowed, {at}", limit, "lower", asked=8.0),
        Row(f"scale: minutes from shards to pandas, {at}", minutes, "lower", asked=15.0),
        Row(
            f"scale: minutes of CPU, {at}",
            sum(u.ru_utime + u.ru_stime for u in usages) / 60,
            "lower",
        ),
        *(Row(f"scale: seconds of {name}, {at}", own, "lower") for name, own in seconds.items()),
    ]


def _finished(
    workdir: pathlib.Path, changes: dict, limit: int, *more: str
) -> resource.struct_rusage:
    """What a run that ended well used, under a limit of addresses in GiB."""
    words = [
        sys.executable, "-m", "experiments.run", f"--config={CONFIG}", f"--workdir={workdir}",
        *(f"--config.{name}={value}" for name, value in changes.items()), *more,
    ]  # fmt: skip
    size = limit << 30
    process = subprocess.Popen(
        words, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the run in {workdir.name} ended with {process.returncode}")
    return usage


def check(workdir: pathlib.Path, changes: dict) -> float:
    """Seconds to read the table with pandas and find each score of it in the run's products.

    Raises:
      SystemExit: a score, an id or a rank that is another one.
    """
    import pandas as pd

    began = time.monotonic()
    table = pd.read_parquet(workdir / "attribution.parquet")
    values = config_file.changed(
        config_file.read_config(CONFIG), {n: str(v) for n, v in changes.items()}, {}
    )
    own = Run(run_settings(values, tuple(changes)), workdir)
    scores, names = own.influences, own.query.ids.tolist()
    wrong = len(table) == 0
    for query, rows in table.groupby("query_id", sort=False):
        q = names.index(query)
        columns, w = row_scores(scores, q)
        stored = dict(zip(own.train.ids[columns].tolist(), w.tolist(), strict=True))
        helps = rows[rows["rank"] > 0]
        wrong |= any(
            stored[name] != w for name, w in zip(rows["train_id"], rows["score"], strict=True)
        )
        wrong |= helps["rank"].tolist() != list(range(1, len(helps) + 1))
        wrong |= bool((np.diff(helps["score"]) > 0).any())
    if wrong:
        raise SystemExit("the table is not what was recovered")
    print(f"{len(table)} rows of {table['query_id'].nunique()} queries, as recovered", flush=True)
    return time.monotonic() - began


def main(words: Sequence[str]) -> None:
    """Measure what is asked for and record it."""
    parser = Parser("recovery_scale", __doc__)
    parser.flag("workdir", "Folder of all files; it is emptied first.", default="runs/scale")
    parser.flag("only", "Of run; all by default.", default="")
    parser.flag("sequences", "N.", type=at_least(1000), default=11_400_000)
    parser.flag("limit", "GiB of addresses.", type=at_least(1), default=8)
    parser.flag("record", "Whether rows are recorded: 1 or 0.", type=at_least(0), default=1)
    given, _ = parser.read(words)
    home = pathlib.Path(given.workdir).absolute()
    shutil.rmtree(home, ignore_errors=True)
    parts: dict[str, Callable[[], list[Row]]] = {
        "run": lambda: run(home, given.sequences, given.limit)
    }
    for name in given.only.split(",") if given.only else parts:
        rows = parts[name]()
        for row in rows:
            print(f"{row.name}: {row.value}", flush=True)
        if given.record:
            record(rows, path=POD)


if __name__ == "__main__":
    command(main, "benchmarks.recovery_scale")
