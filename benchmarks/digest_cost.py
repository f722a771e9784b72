"""What digests cost: a share of a run's time, and of reading large products.

    python -m benchmarks.digest_cost --workdir=runs/digest_cost
    python -m benchmarks.digest_cost --workdir=runs/digest_cost --parts=run --run_rounds=3

Runs and reads with digests and without take turns. Without, this process's hashes are replaced by
ones that hash nothing; there is no such setting. Rows go to `docs/results/disk.json`.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq

from benchmarks.drill.faults import finished
from benchmarks.drill.runs import DISK
from benchmarks.house import Row, record
from benchmarks.program import Asked, Program, listed
from stride_jax import Attribution, Index
from stride_jax.cli.doors import at_least
from stride_jax.run import summary
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings
from stride_jax.runtime import checkpoint, digests, files, npz, tables

_GB = 10**9
_HASHING = (npz, digests, files, tables)  # modules that name xxhash

Seconds = list[tuple[float, float]]  # of rounds: with digests, and without

# ── without digests, and their own time ──────────────────────────────────────────────────────────


class _NoHash:
    """A hash of nothing."""

    def __init__(self, first: Any = b"") -> None: ...

    def update(self, part: Any) -> None: ...

    def hexdigest(self) -> str:
        return "none"


@contextlib.contextmanager
def no_digests() -> Iterator[None]:
    """Nothing that was written is compared with what is read; products keep their names."""
    nothing = types.SimpleNamespace(xxh3_64=_NoHash, xxh3_64_hexdigest=lambda part: "none")
    unchecked = functools.partial(pq.ParquetFile, page_checksum_verification=False)

    def parquet(path: Any, **given: Any) -> pq.ParquetFile:
        return unchecked(path)

    with contextlib.ExitStack() as patches:
        for module in _HASHING:
            patches.enter_context(mock.patch.object(module, "xxhash", nothing))
        for owner, name, value in (
            (npz, "_named", lambda file: "xxh3:none"),
            (digests, "_checksum", lambda array: 0),
            (digests, "differing", lambda tree, written: []),
            (tables, "_digest", lambda table, note: "xxh3:none"),
            (tables, "_opened", lambda path, table, envelope: envelope["note"]),
            (pq, "ParquetFile", parquet),
        ):
            patches.enter_context(mock.patch.object(owner, name, value))
        yield


@contextlib.contextmanager
def timed_digests() -> Iterator[list[float]]:
    """Seconds of every outermost call of a function that hashes; names of products count, too."""
    spent: list[float] = []
    inside = [False]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            if inside[0]:
                return function(*args, **given)
            inside[0], began = True, time.perf_counter()
            try:
                return function(*args, **given)
            finally:
                inside[0] = False
                spent.append(time.perf_counter() - began)

        return call

    functions = (
        digests.by_path, digests.differing, digests.parameters_fingerprint, files.fingerprint,
        files.file_digest, files.content_digest, npz.digest, tables._digest,
    )  # fmt: skip
    with contextlib.ExitStack() as patches:
        for function in functions:
            for module in _importers(function):
                own = mock.patch.object(module, function.__name__, timed(function))
                patches.enter_context(own)
        update = npz.xxhash.xxh3_64

        class Timed:
            """The hash of a file, whose parts are timed one by one."""

            def __init__(self) -> None:
                self._whole = update()
                self.update = timed(self._whole.update)
                self.hexdigest = self._whole.hexdigest

        named = types.SimpleNamespace(xxh3_64=Timed)
        patches.enter_context(mock.patch.object(npz, "xxhash", named))
        yield spent


def _importers(function: Any) -> list[Any]:
    """Modules of the package in which a function goes by its name."""
    ours = [m for name, m in sys.modules.items() if name.startswith("stride_jax") and m is not None]
    return [m for m in ours if vars(m).get(function.__name__) is function]


# ── rounds, and what they say ────────────────────────────────────────────────────────────────────


def rounds(
    work: Callable[[], Any], count: int, before: Callable[[], Any] = lambda: None
) -> Seconds:
    """Time work with digests and without, which take turns; the first round of each is not kept."""
    kept = []
    for i in range(count + 1):
        own = {}
        for on in (True, False) if i % 2 else (False, True):
            before()
            with contextlib.nullcontext() if on else no_digests():
                began = time.perf_counter()
                work()
                own[on] = time.perf_counter() - began
        kept.append((own[True], own[False]))
    return kept[1:]


def share(seconds: Seconds) -> tuple[float, tuple[float, float]]:
    """Median time with digests over that without, less 1; 95 % by bootstrap over rounds."""
    pairs = np.array(seconds)
    drawn = np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))

    def of(rows: np.ndarray) -> np.ndarray:
        with_, without = np.median(pairs[rows], axis=-2).T
        return with_ / without - 1

    low, high = np.quantile(of(drawn), [0.025, 0.975])
    return float(of(np.arange(len(pairs)))), (float(low), float(high))


def said(what: str, seconds: Seconds, asked: float | None) -> list[Row]:
    """Rows of one comparison: the share, and the seconds that it is a share of."""
    value, interval = share(seconds)
    base = statistics.median(without for _, without in seconds)
    print(
        f"{what}: {value:+.1%} [{interval[0]:+.1%}, {interval[1]:+.1%}] of {base:.2f} s", flush=True
    )
    return [
        Row(f"digests: share of {what}", value, "lower", interval, asked),
        Row(f"digests: seconds of {what}, without them", base, "lower"),
    ]


# ── a run ────────────────────────────────────────────────────────────────────────────────────────


def of_a_run(settings: RunSettings, workdir: pathlib.Path, count: int) -> list[Row]:
    """A run from nothing: its time with digests and without, and the time spent in them."""
    folder, shares = workdir / "run", []

    def one() -> None:
        summary.write(Run(settings, folder))

    def empty() -> None:
        shutil.rmtree(folder, ignore_errors=True)

    seconds = rounds(one, count, empty)
    for _ in range(count):
        empty()
        with timed_digests() as spent:
            began = time.perf_counter()
            one()
            shares.append(sum(spent) / (time.perf_counter() - began))
    empty()
    inside = statistics.median(shares)
    print(f"inside of digests: {inside:.2%} of a run", flush=True)
    return [
        *said("a quickstart's time", seconds, None),
        Row("digests: share of a quickstart's time spent inside of them", inside, "lower",
            (min(shares), max(shares)), 0.02),
    ]  # fmt: skip


# ── large products ───────────────────────────────────────────────────────────────────────────────


def large_index(run: Run, size: int) -> Index:
    """A run's index with as many subsets as fill `size` bytes, of other numbers."""
    index, rng = run.index, np.random.default_rng(0)
    (site, own), *_ = index.operators.items()
    subsets = size // own.a_KxRxO[0].nbytes
    a_KxRxO = rng.standard_normal((subsets, *own.a_KxRxO.shape[1:]), np.float32)
    large = dataclasses.replace(
        own, a_KxRxO=jnp.asarray(a_KxRxO), size_K=jnp.resize(own.size_K, (subsets,))
    )
    design = dataclasses.replace(index.settings.design, num_subsets=subsets)
    settings = dataclasses.replace(index.settings, design=design)
    return dataclasses.replace(index, operators={site: large}, settings=settings)


def of_an_index(run: Run, workdir: pathlib.Path, count: int) -> list[Row]:
    """Reading an index of 1 GB from memory that the system keeps of the file, and from the disk."""
    path = workdir / "index.npz"
    large_index(run, _GB).save(path)

    def from_disk() -> None:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def read() -> None:
        index = Index.load(path)
        jax.block_until_ready([own.a_KxRxO for own in index.operators.values()])

    warm, cold = rounds(read, count), rounds(read, count, from_disk)
    path.unlink()
    return [
        *said("reading a 1 GB index", cold, 0.05),
        *said("reading a 1 GB index that is in the page cache", warm, None),
    ]


def of_a_checkpoint(workdir: pathlib.Path, count: int) -> list[Row]:
    """Restoring 1 GB of parameters."""
    folder, rng = workdir / "checkpoint", np.random.default_rng(0)
    tree = {f"w{i}": rng.standard_normal((1000, 25_000), np.float32) for i in range(10)}
    checkpoint.save(folder, tree, {"seconds": 0.0})
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=here), tree)
    del tree
    seconds = rounds(lambda: checkpoint.restore(folder, like), count)
    shutil.rmtree(folder)
    return said("reading a 1 GB checkpoint", seconds, 0.05)


def of_an_attribution(workdir: pathlib.Path, count: int) -> list[Row]:
    """Reading an attribution of about 200 MB of Parquet."""
    path, rng = workdir / "attribution.parquet", np.random.default_rng(0)
    queries, trains = 400, 50_000
    scores = rng.standard_normal((queries, trains), np.float32)
    asked = np.array([f"q{i:04d}" for i in range(queries)])
    train = np.array([f"train-{i:06d}" for i in range(trains)])
    Attribution(asked, train, scores, {}, {}).save(path)
    print(f"attribution: {path.stat().st_size / 1e6:.0f} MB", flush=True)
    seconds = rounds(lambda: Attribution.load(path), count)
    tabled = rounds(lambda: tables.read_table(path), count)
    path.unlink()
    return [
        *said("reading a 200 MB attribution", seconds, 0.05),
        *said("reading a 200 MB attribution's table alone", tabled, None),
    ]


def main(asked: Asked) -> None:
    """The parts that are asked for, one after the other."""
    home, flags = asked.workdir, asked.flags
    home.mkdir(parents=True, exist_ok=True)
    work = {
        "run": lambda: of_a_run(asked.settings, home, flags.run_rounds),
        "index": lambda: of_an_index(
            finished("configs/mnist5k.py:runlocal", home / "small", 0), home, flags.rounds
        ),
        "checkpoint": lambda: of_a_checkpoint(home, flags.rounds),
        "attribution": lambda: of_an_attribution(home, flags.rounds),
    }
    if unknown := [part for part in flags.parts if part not in work]:
        raise ValueError(f"--parts={','.join(unknown)}: there are {', '.join(work)}")
    for part in flags.parts:
        record(work[part](), path=DISK)


if __name__ == "__main__":
    program = Program("digest_cost", __doc__, config="configs/mnist5k.py:runlocal",
                      workdir="runs/digest_cost")  # fmt: skip
    program.flag("parts", "run, index, checkpoint, attribution.", type=listed(str),
                 default=("run", "index", "checkpoint", "attribution"))  # fmt: skip
    program.flag("rounds", "Reads of each kind.", type=at_least(1), default=9)
    program.flag("run_rounds", "Runs of each kind.", type=at_least(1), default=5)
    program.run(main)
