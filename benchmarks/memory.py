"""What runs are estimated to need in memory, against what they take and against tight limits.

    python -m benchmarks.memory measure
    python -m benchmarks.memory refuse

`measure` runs configs as they are and enlarged, each in a process of its own, and reads the peak of
every stage from the system; those as they are then again, in about the address space that they
took. `refuse` starts runs that are too large for theirs. Rows go to `docs/results/disk.json`.
"""

import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.house import ROOT, Row, command, record
from stride_jax.cli.doors import Parser, read_settings
from stride_jax.run import summary
from stride_jax.run.pipeline import Run
from stride_jax.run.planning import Extent, gib, needs
from stride_jax.run.settings import check_workdir
from stride_jax.run.stages import STAGES
from stride_jax.runtime.files import read_json
from stride_jax.runtime.metrics import resident_bytes

DISK = ROOT / "docs/results/disk.json"
# Bytes from which on an estimate counts as large.
_LARGE = 2**29
# Seconds from a run's start to its refusal; data sets are prepared, tokenizers trained before.
_SOON = 60
_CHILD = "import json, sys; from benchmarks.memory import taken; taken(*json.loads(sys.argv[1]))"

_TEXT = "configs/bible_gpt.py"
_SMALL = {
    "bank": "None", "unit": "None", "text.length": "32", "text.num_calibration": "20",
    "text.num_query": "20", "train.epochs": "1", "num_checkpoints": "1", "read.exact.budget": "0",
}  # fmt: skip
"""A language model that is trained in a few seconds."""

FITTING: dict[str, tuple[str, dict[str, str]]] = {
    "breast_cancer": ("configs/breast_cancer.py:runlocal", {}),
    "mnist5k": ("configs/mnist5k.py:runlocal", {}),
    "digits_resnet": ("configs/digits_resnet.py:runlocal", {}),
    "bible_gpt": (f"{_TEXT}:runlocal", {}),
    "mnist5k, 2,000 models at once": (
        "configs/mnist5k.py:runlocal",
        {"bank.num_subsets": "1000", "bank.models_at_once": "2000", "train.epochs": "1"},
    ),
    "digits_resnet, 400 models at once": (
        "configs/digits_resnet.py:runlocal",
        {"bank.num_subsets": "200", "bank.models_at_once": "400", "num_checkpoints": "1"},
    ),
    "bible_gpt, K x R x O": (
        _TEXT,
        _SMALL | {"text.max_train": "1000", "index.design.num_subsets": "800",
                  "index.output_rank": "0"},
    ),
    "bible_gpt, a batch of 4,000": (
        _TEXT,
        _SMALL | {"text.max_train": "4000", "train.batch_size": "4000",
                  "index.design.num_subsets": "100", "index.basis.rank": "16"},
    ),
    "bible_gpt, joint training": (
        _TEXT,
        _SMALL | {"text.max_train": "2000", "index.fit": "joint", "index.joint.steps": "1",
                  "index.design.num_subsets": "50", "index.basis.rank": "64"},
    ),
}  # fmt: skip
"""Runs that fit this machine: config and its changes."""

_WIDE = {"text.max_train": "20000", "text.num_query": "5000", "text.length": "16"}
TOO_LARGE: dict[str, tuple[str, dict[str, str], str]] = {
    "models of the bank at once": (
        "configs/breast_cancer.py:runlocal",
        {"bank.num_subsets": "100000", "bank.models_at_once": "200000"}, "bank.models_at_once",
    ),
    "models of the unit at once": (
        f"{_TEXT}:runlocal",
        {"unit.groups": "20000", "unit.models_at_once": "20000"}, "unit.models_at_once",
    ),
    "a batch's logits": (
        _TEXT, _SMALL | {"text.max_train": "16000", "train.batch_size": "40000",
                         "text.length": "64"}, "train.batch_size",
    ),
    "subsets x rank x outputs": (
        _TEXT, _SMALL | {"index.design.num_subsets": "3000", "index.output_rank": "0"},
        "index.design.num_subsets",
    ),
    "joint training's tables": (
        _TEXT, _SMALL | {"text.max_train": "16000", "index.fit": "joint", "text.length": "64"},
        "text.max_train",
    ),
    "scores of every pair": (
        _TEXT, _WIDE | {"text.max_train": "30000", "text.num_query": "20000", "unit": "None"},
        "text.num_query",
    ),
    "a table of every pair": (
        _TEXT, _WIDE | {"index.design.kind": "clusters", "read.exact.shrink": "0.0", "top_k": "0",
                        "bank": "None", "unit": "None"}, "top_k",
    ),
    "measurements of every token": (
        _TEXT, _WIDE | {"text.length": "64", "text.num_query": "8000", "read.measure.group": "1",
                        "text.max_train": "4000", "bank": "None", "unit": "None",
                        "index.design.num_subsets": "2000"}, "text.num_query",
    ),
    "checkpoints": (
        "configs/mnist5k.py",
        {"model.widths": "(2000, 1000)", "num_checkpoints": "1000"}, "num_checkpoints",
    ),
    "a model": (
        "configs/breast_cancer.py:runlocal", {"model.widths": "(4000000, 100)"}, "give it more",
    ),
}  # fmt: skip
"""Runs that do not fit `_SPACE`: config, its changes, and what the refusal names."""

_SPACE = 5 * 2**30
# Threads' arenas differ from run to run.
_AMPLE = 1.25


def taken(config: str, changes: Mapping[str, str], workdir: str) -> None:
    """Run all stages in this process; print what each was estimated to take, and took, as JSON."""
    _, settings = read_settings(config, changes)
    home = pathlib.Path(workdir)
    check_workdir(home, settings)
    run = Run(settings, home)
    train = run.train
    before = resident_bytes()
    extent = Extent(len(train), len(run.query), train.inputs.shape[1:], run.data[1])
    rows, wanted = {}, needs(settings, extent, run.mesh)
    for stage in STAGES[1:]:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        summary.write(run, until=stage)
        own = [one for one in wanted if one.stage in _PARTS.get(stage, (stage,))]
        if own:
            estimate = max(one.held.host + one.held.devices for one in own)
            rows[stage] = estimate, _status("VmHWM") - before
    print(json.dumps({"stages": rows, "space": _status("VmPeak")}))


_PARTS = {"evaluation": ("bank", "evaluation")}


def _status(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _run(words: Sequence[str], space: float | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process in the checkout, of at most so much address space."""

    def limit() -> None:
        if space is not None:
            resource.setrlimit(resource.RLIMIT_AS, (int(space), int(space)))

    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False,
        preexec_fn=limit,
    )  # fmt: skip


def measure(name: str) -> list[Row]:
    """A run's estimate over its peak; one that is as it is again in an address space that does."""
    config, changes = FITTING[name]
    with tempfile.TemporaryDirectory() as home:
        done = _run(["-c", _CHILD, json.dumps([config, changes, f"{home}/run"])])
        if done.returncode:
            raise ValueError(f"{name} failed: {done.stderr[-2000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
        for stage, (estimate, peak) in told["stages"].items():
            print(f"{name}, {stage}: {gib(estimate)} of {gib(peak)}", flush=True)
        estimates, peaks = zip(*told["stages"].values(), strict=True)
        largest = max(a / b for a, b in zip(estimates, peaks, strict=True))
        rows = [Row(f"memory, {name}: {_STAGES}", largest, "lower", asked=1.0)]
        if max(estimates) >= _LARGE:
            share = max(estimates) / max(peaks)
            rows.append(Row(f"memory, {name}: {_WHOLE}", share, "higher", asked=0.5))
        if not changes:
            refused = _refused_again(config, pathlib.Path(home, "run"), _AMPLE * told["space"])
            rows.append(Row(f"memory, {name}: {_AGAIN}", float(refused), "lower", asked=0))
    return rows


_STAGES = "estimate over measured peak, largest of its stages"
_WHOLE = "estimate over measured peak of the run"
_AGAIN = "refused in about the address space that it took"


def totals() -> list[Row]:
    """The worst of all runs that were measured, from their rows."""
    told = {row["name"]: row["value"] for row in read_json(DISK)}

    def of(what: str) -> list[float]:
        return [told[name] for run in FITTING if (name := f"memory, {run}: {what}") in told]

    stages, whole, again = (of(what) for what in (_STAGES, _WHOLE, _AGAIN))
    return [
        Row("memory: runs measured", len(stages), "higher", asked=len(FITTING)),
        Row("memory: runs refused that fit", sum(again), "lower", asked=0),
        Row("memory: estimate over measured peak, largest", max(stages), "lower", asked=1.0),
        Row("memory: estimate over measured peak, smallest of runs over 0.5 GiB",
            min(whole, default=None), "higher", asked=0.5),
    ]  # fmt: skip


def _refused_again(config: str, home: pathlib.Path, space: float) -> bool:
    """Whether the same run is refused in about the address space that it took before."""
    for path in home.iterdir():
        if path.name != "data":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = _run(["-m", "stride_jax", "run", f"--config={config}", f"--workdir={home}"], space)
    said = (done.stderr.splitlines() or [""])[-1][:300] if done.returncode else "done"
    print(f"{config} in {gib(space)} of address space: {said}", flush=True)
    return "would hold" in done.stderr


def refuse(names: Sequence[str]) -> list[Row]:
    """Runs that are refused by name, in time and before anything is trained."""
    seconds, right = [], 0
    for name in names:
        config, changes, named = TOO_LARGE[name]
        with tempfile.TemporaryDirectory() as home:
            words = ["-m", "stride_jax", "run", f"--config={config}", f"--workdir={home}/run"]
            words += _flags(changes)
            began = time.monotonic()
            done = _run(words, _SPACE)
            seconds.append(time.monotonic() - began)
            last = (done.stderr.splitlines() or [""])[-1]
            whole = done.returncode == 2 and "would hold" in last and named in last
            trained = pathlib.Path(home, "run/model").exists()
        good = whole and not trained and "Traceback" not in done.stderr and seconds[-1] < _SOON
        right += good
        print(f"{name}: {done.returncode}, {seconds[-1]:.1f} s: {last[-600:]}", flush=True)
    return [
        Row("memory: runs too large, refused before training with the setting to change", right,
            "higher", asked=len(names)),
        Row("memory: seconds to refuse a run too large, data loaded, most", max(seconds), "lower",
            asked=_SOON),
    ]  # fmt: skip


def _flags(changes: Mapping[str, str]) -> list[str]:
    return [f"--config.{name}={value}" for name, value in changes.items()]


def main(words: Sequence[str]) -> int:
    """Measure or refuse, print the rows, write them down."""
    parser = Parser("memory", __doc__)
    parser.prog = "python -m benchmarks.memory"
    parser.usage = f"{parser.prog} measure|refuse --flag=value …"
    parser.add_argument("what", choices=("measure", "refuse"))
    parser.flag("only", "Runs whose names start so.", default="")
    given, _ = parser.read(words)
    cases: Any = FITTING if given.what == "measure" else TOO_LARGE
    names = [name for name in cases if name.startswith(given.only)]
    if not names:
        raise ValueError(f"--only={given.only!r}: no run starts so; there are {', '.join(cases)}")
    if given.what == "measure":
        for name in names:
            record(measure(name), path=DISK)
        record(rows := totals(), path=DISK)
    else:
        rows = refuse(names)
        if names == [*cases]:
            record(rows, path=DISK)
    for row in rows:
        print(f"{row.name}: {row.value}")
    return 0


if __name__ == "__main__":
    command(main, "memory")
