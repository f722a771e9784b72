"""Strict settings for every test: 4 fake devices, no silent rank promotion, real digits.

Programs for twice as many devices take half as long again to compile, so tests that need eight are
marked so, and run by themselves with STRIDE_TEST_DEVICES=8.
"""

import os

import jax

jax.config.update("jax_num_cpu_devices", int(os.environ.get("STRIDE_TEST_DEVICES", "4")))
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling takes most of the time here, and programs run for moments, also in processes that tests
# start; slow tests, which run for long, keep XLA's optimisations in these.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
jax.config.update("jax_disable_most_optimizations", True)
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "true":
    # XLA's older way of writing loops for a CPU compiles in half of the time, and is slower.
    flags = (os.environ.get("XLA_FLAGS", ""), "--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(filter(None, flags))
# Writing programs of fake devices to a cache on disk ends in a segmentation fault now and then.
jax.config.update("jax_enable_compilation_cache", False)

import contextlib
import functools
import gc
import io
import pathlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from stride_jax import taps
from stride_jax.adapters import from_model
from stride_jax.cli.main import main
from stride_jax.data import DataSettings, Examples, load_splits
from stride_jax.models import MLP, TrainSettings, fit, initial_params


class ProgramsLetGo:
    """Every compiled program takes pages of its own; at 65,530 of them Linux kills the process."""

    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        maps = pathlib.Path("/proc/self/maps")
        if (nextitem is not None and nextitem.path == item.path) or not maps.exists():
            return
        if maps.read_bytes().count(b"\n") > 20_000:
            jax.clear_caches()
            gc.collect()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if jax.device_count() < 8:
        skip = pytest.mark.skip(reason="needs eight devices: STRIDE_TEST_DEVICES=8 pytest -m eight")
        for item in items:
            if item.get_closest_marker("eight"):
                item.add_marker(skip)


def pytest_configure(config: pytest.Config) -> None:
    # As a plugin: hooks of this file see no doctest of `stride_jax`, which run in the same process.
    config.pluginmanager.register(ProgramsLetGo())


class Trained(NamedTuple):
    """A small model of real digits."""

    module: MLP
    params: Any
    tapped: taps.TappedModel
    train: Examples
    query: Examples


@pytest.fixture(scope="session", autouse=True)
def programs_of_processes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands that tests start share a folder of compiled programs, and leave the user's alone."""
    home = tmp_path_factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def call() -> Callable[..., Done]:
    """A command of `stride-jax` in this process, which compiles nothing twice."""

    def called(*words: str) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        return Done(code, out.getvalue(), err.getvalue())

    return called


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Examples]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicates are tested in test_data
        return load_splits(DataSettings("digits8x8"), tmp_path_factory.mktemp("tfds"))[0]


@pytest.fixture(scope="session")
def trained(digits: dict[str, Examples]) -> Trained:
    """MLP 64-24-16-10 on 400 digits."""
    whole = digits["train"]
    train = Examples(whole.inputs[:400], whole.labels[:400], whole.ids[:400])
    module = MLP(10, (24, 16))
    params = initial_params(module, jax.random.key(0), jnp.asarray(train.inputs))
    run = jax.jit(
        functools.partial(
            fit,
            lambda p, x: module.apply({"params": p}, x)[0],
            settings=TrainSettings(epochs=10, batch_size=32, learning_rate=0.1),
        )
    )
    params = run(params, train.inputs, train.labels, np.arange(400), key=jax.random.key(1))
    return Trained(module, params, from_model(module), train, digits["query"])
