"""One run on one device, on several, and in several processes; stopped and resumed."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import mnist5k
from stride_jax.models import open_orbax
from stride_jax.run.launching.jobs import local_commands
from stride_jax.run.launching.settings import LaunchSettings
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import ForeignWorkdirError, check_workdir, run_settings
from stride_jax.scores import as_dense

# Some examples are kept, some scored from the data, and the rest estimated.
SMALL = (
    "bank.num_subsets=2", "bank.num_seeds=1", "read.lasso.relative_gap=1e-5", "index.kept=20000",
    "read.exact.budget=100",
)  # fmt: skip
BY_HASH = (*SMALL, "index.design.kind=hash")


def start(
    workdir, overrides=SMALL, *, devices=1, processes=1, config="mnist5k.py:runlocal", more=()
):
    """The processes of one run; `more` are words of their command."""
    settings = LaunchSettings(
        f"configs/{config}", str(workdir), overrides=tuple(o.split("=") for o in overrides),
        processes=processes, python=sys.executable,
    )  # fmt: skip
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        commands = local_commands(settings, listener.getsockname()[1])
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(pathlib.Path(workdir).parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return [
        subprocess.Popen(
            [*words, *more],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for words in commands
    ]


def finish(running):
    for process in running:
        said = process.communicate(timeout=600)[0]
        assert process.returncode == 0, said[-3000:]


def products(workdir, overrides=SMALL, config=mnist5k, arg="runlocal"):
    """Operators, measurements and scores of a finished run by name, and which are exact."""
    values = config.get_config(arg)
    for override in overrides:
        name, _, value = override.partition("=")
        values.update_from_flattened_dict({name: value if value == "hash" else json.loads(value)})
    run = Run(run_settings(values.to_dict()), workdir)
    operators = run.index.operators["logit"]
    steering = np.asarray(operators.a_KxRxO) * np.asarray(operators.size_K)[:, None, None]
    return {
        "operators": steering, "measurements": run.measurements,
        "scores": np.array(as_dense(run.influences)), "exact": run.reading.exact_QxN.toarray() > 0,
    }  # fmt: skip


def differences(found, wanted):
    names = [name for name in wanted if name != "exact"]
    return {n: np.linalg.norm(found[n] - wanted[n]) / np.linalg.norm(wanted[n]) for n in names}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of an undisturbed run on one device, by its settings."""
    made = {}

    def folder(overrides):
        if overrides not in made:
            made[overrides] = tmp_path_factory.mktemp("alone")
            finish(start(made[overrides], overrides))
        return made[overrides]

    return folder


@pytest.mark.parametrize(
    ("devices", "processes", "how"),
    [
        pytest.param(8, 1, BY_HASH, marks=pytest.mark.slow),
        (2, 2, BY_HASH),
        pytest.param(2, 2, SMALL, marks=pytest.mark.slow),
    ],
)
def test_devices_and_processes_change_rounding_alone(alone, tmp_path, devices, processes, how):
    finish(start(tmp_path, how, devices=devices, processes=processes))
    found = differences(products(tmp_path, how), products(alone(how), how))
    assert max(found.values()) < 1e-5, found
    lines = (tmp_path / "metrics" / "metrics.jsonl").read_text().splitlines()
    assert all({"loop", "step", "mfu", "memory_bytes"} <= set(json.loads(row)) for row in lines)
    assert list((tmp_path / "metrics").glob("events.out.tfevents.*"))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(2, 1), (4, 1), (8, 1), (1, 2), (1, 4)])
def test_the_quickstart_is_the_same_everywhere(tmp_path_factory, tmp_path, devices, processes):
    reference = tmp_path_factory.getbasetemp() / "quickstart"
    less = ("bank.num_subsets=2", "read.lasso.relative_gap=1e-5")
    if not (reference / "summary.json").exists():
        finish(start(reference, less, config="mnist5k.py"))
    finish(start(tmp_path, less, devices=devices, processes=processes, config="mnist5k.py"))
    own, wanted = (products(folder, less, arg="") for folder in (tmp_path, reference))
    # Of examples that are nearly tied at the end of a shortlist, rounding decides who is scored
    # exactly, and estimates are of what the exact ones leave: where that happened, scores are
    # compared that are exact in both.
    exact, asked = own.pop("exact"), wanted.pop("exact")
    same_Q = (exact == asked).all(axis=1)
    assert same_Q.mean() > 0.5
    assert (exact != asked).sum() < 1e-3 * asked.sum()
    for scores in (own["scores"], wanted["scores"]):
        scores[~(same_Q[:, None] | (exact & asked))] = 0.0
    found = differences(own, wanted)
    assert max(found.values()) < 1e-5, found


@pytest.mark.slow
def test_processes_fine_tune_together_from_one_folder(tmp_path):
    config, until = "bible_gpt.py:runlocal", ("--until=model",)
    finish(start(tmp_path / "base", (), config=config, more=until))
    tuned = (f"model.init_from={tmp_path / 'base'}", "train.learning_rate=1e-3")
    split = (*tuned, "execution.mesh.parameters=sharded")
    finish(start(tmp_path / "one", tuned, config=config, more=until))
    finish(start(tmp_path / "four", split, devices=2, processes=2, config=config, more=until))

    def trained(name):
        (own,) = [p for p in (tmp_path / name / "model").iterdir() if p.is_dir()]
        return jax.tree.leaves(open_orbax(own).load())

    base, one, four = map(trained, ("base", "one", "four"))
    apart = [
        np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)
        for a, b in zip(four, one, strict=True)
    ]
    moved = [np.linalg.norm(np.asarray(a) - b) for a, b in zip(base, one, strict=True)]
    assert max(moved) > 1e-2, "fine-tuning moved it"
    assert max(apart) < 1e-4, apart


@pytest.mark.slow
def test_sigterm_saves_and_the_next_run_goes_on(alone, tmp_path):
    often = (*SMALL, "execution.keep.seconds=0.0", "execution.batch_size=64")
    (running,) = start(tmp_path, often)
    while not list(tmp_path.glob("*/*.partial/*/*")):
        assert running.poll() is None, running.communicate()[0][-3000:]
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=300)[0]
    assert running.returncode == 75, said[-3000:]
    assert not (tmp_path / "summary.json").exists()
    finish(start(tmp_path, often, devices=2))
    assert not list(tmp_path.glob("*/*.partial"))
    found = differences(products(tmp_path, often), products(alone(SMALL)))
    assert max(found.values()) < 1e-5, found


def test_a_folder_of_another_run_is_refused(tmp_path):
    ours = run_settings(mnist5k.get_config("runlocal").to_dict())
    check_workdir(tmp_path, ours)
    check_workdir(tmp_path, ours)
    values = mnist5k.get_config("runlocal")
    values.index.design.num_subsets = 100
    values.bank.models_at_once = 3  # changes no product
    check_workdir(tmp_path / "new", run_settings(values.to_dict()), reuse=True)
    with pytest.raises(
        ForeignWorkdirError, match=r"num_subsets: 200 there, 100 here\): .* --reuse"
    ):
        check_workdir(tmp_path, run_settings(values.to_dict()))
