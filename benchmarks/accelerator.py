"""On the GPU or TPU of this machine: tests, then STRIDE, LoGRA and EK-FAC, in eight minutes.

    make bench-accelerator
    python -m benchmarks.accelerator --platform=cpu --small    # the script itself, on any machine

Measured are fit, measuring, recovery and exact scores, and the fit and scores of LoGRA and EK-FAC,
on `mnist5k`, `bible_gpt` and a language model of nanochat's depth 12 with random weights: once with
compilation, once without. What the time no longer allows is named, and so is what fails. Written to
`docs/results/accelerator-<chip>.json`. Without an accelerator nothing is measured or written: the
programs of the plan are compiled for a TPU instead.
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from benchmarks.accelerator_kind import has_tpu
from benchmarks.contestants import contestants
from benchmarks.house import ROOT, command, commit_of, this_command
from benchmarks.meter import Meter
from benchmarks.methods import Stride
from configs import bible_gpt, common, mnist5k, nanochat
from stride_jax import asking, stride
from stride_jax.attribution import versions
from stride_jax.baselines import ekfac, logra
from stride_jax.baselines.model import Model
from stride_jax.cli.doors import Parser, at_least
from stride_jax.cli.plan_report import chip_table
from stride_jax.data import Examples
from stride_jax.frozen import freeze
from stride_jax.models import initial_params, make_model
from stride_jax.run.pipeline import Run
from stride_jax.run.planning import cost, devices_of, extent_of, planned_stages
from stride_jax.run.settings import run_settings
from stride_jax.runtime import mesh as meshes
from stride_jax.runtime.files import plain, write_json
from stride_jax.runtime.machine import device_name
from stride_jax.settings import ReadSettings

# Of one device, and about what an accelerator may do otherwise than a CPU: sums, products, sorting.
_TESTS = (
    "test_objectives", "test_measure", "test_gpt", "test_taps", "test_questions", "test_selection",
    "test_baselines",
)  # fmt: skip
_TOY = {
    "depth": 2, "width": 64, "num_heads": 2, "num_kv_heads": 2, "sequence_len": 64,
    "short_window": 16,
}  # fmt: skip
_SECONDS = 465
_TEST_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with its data and settings.

    Attributes:
      model: as baselines read it.
      train, query: examples.
      settings: of STRIDE.
      opponents: `{name: (fit, score, settings)}` of LoGRA and EK-FAC.
      left_out: `{name: why}`.
    """

    model: Model
    train: Examples
    query: Examples
    settings: Stride
    opponents: dict[str, tuple[Any, Any, Any]]
    left_out: dict[str, str]


class Clock:
    """Seconds that are left of those for everything."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()


# ── subjects ─────────────────────────────────────────────────────────────────────────────────────


def of_config(config: Any, workdir: pathlib.Path) -> Subject:
    """A config's model, trained here."""
    run = Run(run_settings(config.to_dict() | {"num_checkpoints": 1}), workdir)
    base = Stride.of(run.settings)
    names = sorted(jax.eval_shape(run.tapped.forward, run.model.params, run.train.inputs[:1])[1])
    methods = contestants(
        names, base, is_text=run.settings.is_text, only=("logra", "ekfac")
    )  # fmt: skip
    opponents = {m.name: (m.fit, m.score, m.grid[0][0]) for m in methods}
    return Subject(run.model, run.train, run.query, base, opponents, {})


def d12(small: bool) -> Subject:
    """nanochat's depth 12 with random weights on random tokens; `small` is a toy of two layers."""
    length, classes, train, queries = 2048, 32_768, 32, 8
    changes: dict[str, Any] = {"index.design.num_subsets": 64, "index.design.degree": 4}
    if small:
        length, classes = 64, 300
        changes |= {f"model.gpt.{name}": value for name, value in _TOY.items()}
        changes |= {"index.taps": ("block1",), "index.sites": ("block1",)}
    config = common.changed(nanochat.get_config("d12"), **changes)
    settings = run_settings(config.to_dict())
    module = make_model(settings.model, classes)
    tokens = np.random.default_rng(0).integers(0, classes, (train + queries, length + 1))
    tokens = tokens.astype(np.int32)
    params = initial_params(module, jax.random.key(0), tokens[:, :-1])
    model = Model(module, (params,))
    ids = np.array([f"sequence-{i}" for i in range(len(tokens))])
    every = Examples(tokens[:, :-1], tokens[:, 1:], ids)
    first, last = every.take(np.arange(train)), every.take(np.arange(train, len(tokens)))
    base = Stride(settings.index, settings.read)
    of_logra = logra.LograSettings(rank=8, init="random", batch_size=1)
    opponents: dict[str, tuple[Any, Any, Any]] = {"logra": (logra.fit, logra.score, of_logra)}
    left_out = {}
    if small:
        opponents["ekfac"] = (ekfac.fit, ekfac.score, ekfac.EkfacSettings(batch_size=1))
    else:
        left_out["ekfac"] = "the head's factor has 32,768 rows: 4 GiB, and hours of eigenvectors"
    return Subject(model, first, last, base, opponents, left_out)


# ── work ─────────────────────────────────────────────────────────────────────────────────────────


def works(subject: Subject) -> dict[str, Callable[[], Any]]:
    """What is timed, in order; what a later one needs, an earlier one leaves."""
    model, train, query, settings = subject.model, subject.train, subject.query, subject.settings
    tapped, made = model.tapped, {}

    def fit() -> Any:
        made["index"] = stride.fit(
            tapped, model.params, train.inputs, train.labels, settings.index, ids=train.ids
        )
        return [own.a_KxRxO for own in made["index"].operators.values()]

    def measure() -> Any:
        frozen = freeze(tapped, model.params, train, made["index"].settings)
        return asking.measure_all(frozen, made["index"].operators, query, settings.read.measure)

    def attribute(read: ReadSettings, corpus: Examples | None) -> Any:
        return stride.attribute(
            tapped, model.params, made["index"], query.inputs, query.labels, read,
            ids=query.ids, train=corpus,
        ).scores  # fmt: skip

    no_budget = dataclasses.replace(settings.read.exact, budget=0)
    none = dataclasses.replace(settings.read, exact=no_budget)
    own: dict[str, Callable[[], Any]] = {
        "fit": fit,
        "measure": measure,
        "measure and recover": lambda: attribute(none, None),
        "measure, recover and score exactly": lambda: attribute(settings.read, train),
    }
    for name, (fit_it, score_it, of) in subject.opponents.items():
        own[f"{name}: fit"] = lambda f=fit_it, of=of, name=name: made.update(
            {name: f(model, train, of)}
        )
        own[f"{name}: scores"] = lambda s=score_it, of=of, name=name: s(
            made[name], model, train, query, of
        )
    return own


def timed(subject: Subject, clock: Clock) -> dict[str, Any]:
    """Seconds of each piece of work: compiling, with it, and of a second turn."""
    rows: dict[str, Any] = {name: {"left out": why} for name, why in subject.left_out.items()}
    for name, work in works(subject).items():
        if clock.left < 20:
            rows[name] = {"left out": "no time was left"}
            continue
        try:
            with Meter() as first:
                jax.block_until_ready(work())
            with Meter() as second:
                jax.block_until_ready(work())
        except Exception as error:  # a method that fails here is a result too
            line = next(iter(str(error).splitlines()), "")
            rows[name] = {"failed": f"{type(error).__name__}: {line}"}
            print(f"  {name}: failed: {line}", flush=True)
            continue
        rows[name] = {
            "compile_seconds": first.compile_seconds,
            "first_seconds": first.seconds + first.compile_seconds,
            "seconds": second.seconds + second.compile_seconds,
        }
        print(f"  {name}: {rows[name]['seconds']:.3g} s", flush=True)
    return rows


def tests(clock: Clock, seconds: float) -> dict[str, Any]:
    """A few of the fast tests, file by file, on this platform."""
    told: dict[str, Any] = {}
    end = time.monotonic() + min(seconds, clock.left)
    for name in _TESTS:
        path = ROOT / "tests" / f"{name}.py"
        left = end - time.monotonic()
        if not path.is_file() or left < 5:
            told[name] = "no time was left" if path.is_file() else "not there"
            continue
        words = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "--no-header", "-rf"]
        environment = {**os.environ, "STRIDE_TEST_DEVICES": "1"}
        try:
            done = subprocess.run(
                [*words, str(path)], cwd=ROOT, env=environment, capture_output=True, text=True,
                timeout=left, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            told[name] = "no time was left"
            continue
        lines = done.stdout.strip().splitlines()
        failed = [line.removeprefix("FAILED ") for line in lines if line.startswith("FAILED ")]
        told[name] = {"summary": lines[-1] if lines else done.stderr[-200:], "failed": failed}
        print(f"  {name}: {told[name]['summary']}", flush=True)
    return told


# ── without an accelerator ───────────────────────────────────────────────────────────────────────


def compiled_only(names: Sequence[str], small: bool) -> None:
    """The programs of the plan for one chip, compiled for it."""
    (chip, *_) = devices_of("v5e:2x2")
    mesh = meshes.arranged((1, 1), [chip])
    configs = {"mnist5k": mnist5k.get_config(), "bible_gpt": bible_gpt.get_config(),
               "d12": nanochat.get_config("d12")}  # fmt: skip
    for name in names:
        values = configs[name].to_dict()
        settings = dataclasses.replace(run_settings(values), bank=None, unit=None)
        stages = planned_stages(settings, extent_of(values), mesh)
        few = ("solve", "basis") if small else ("pass", "solve", "measure", "recovery", "basis")
        costs = [cost(one) for one in stages if one.name.startswith(few)]
        print(f"{name}, one v5e\n{chip_table(costs, 'v5e')}", flush=True)


def main(words: Sequence[str]) -> int:
    """Measure, or say that there is nothing to measure on."""
    parser = Parser("accelerator", __doc__)
    parser.prog = "python -m benchmarks.accelerator"
    parser.usage = f"{parser.prog} --flag=value …"
    parser.flag("platform", "Run there in place of the accelerator found.", choices=("cpu",))
    parser.switch("small", "Sizes of seconds.")
    parser.flag("seconds", "For everything.", type=at_least(10), default=_SECONDS)
    parser.flag("workdir", "Folder of the trained models.", default="runs/accelerator")
    given, _ = parser.read(words)
    logging.set_verbosity(logging.WARNING)
    clock = Clock(given.seconds)
    if given.platform or not (has_tpu() or _has_gpu()):
        jax.config.update("jax_platforms", "cpu")
    platform = jax.devices()[0].platform
    if platform == "cpu" and not given.platform:
        print("no GPU or TPU is here: nothing is measured, and no result is written")
        compiled_only(("mnist5k", "bible_gpt", "d12"), given.small)
        return 0
    result: dict[str, Any] = {"device": device_name(), "platform": platform}
    if given.platform:
        os.environ["JAX_PLATFORMS"] = given.platform
    print("tests", flush=True)
    result["tests"] = tests(clock, 20 if given.small else _TEST_SECONDS)
    arg = "runlocal" if given.small else ""
    home = pathlib.Path(given.workdir)
    subjects: dict[str, Callable[[], Subject]] = {
        "mnist5k": lambda: of_config(mnist5k.get_config(arg), home / f"mnist5k{arg}"),
        "d12": lambda: d12(given.small),
        "bible_gpt": lambda: of_config(bible_gpt.get_config(arg), home / f"bible_gpt{arg}"),
    }
    for name, make in subjects.items():
        print(name, flush=True)
        if clock.left < 30:
            result[name] = "no time was left"
            continue
        result[name] = timed(make(), clock)
    result |= {
        "seconds": given.seconds - clock.left, "command": this_command(), "commit": commit_of(ROOT),
        "versions": versions(),
    }  # fmt: skip
    if platform == "cpu" or given.small:
        print(f"{result['seconds']:.0f} s; on a CPU or at small sizes no result is written")
        return 0
    kind = re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    path = ROOT / f"docs/results/accelerator-{kind}.json"
    write_json(path, plain(result))
    print(f"{result['seconds']:.0f} s; written: {path}")
    return 0


def _has_gpu() -> bool:
    return any(pathlib.Path("/dev").glob("nvidia[0-9]*"))


if __name__ == "__main__":
    command(main, "benchmarks.accelerator")
