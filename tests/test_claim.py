"""One run at a time in a folder, no litter of killed ones; odd names work or are refused."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from stride_jax.runtime import checkpoint, claim
from stride_jax.runtime.files import atomic_path
from stride_jax.runtime.folders import local_folder

HOLD = """
import pathlib, sys, time
from stride_jax.runtime.claim import only_run
with only_run(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_told_of_the_first_and_a_kill_gives_the_folder_back(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        words = rf"in use by another run \(process {holder.pid} on .*, began 2.*\): wait"
        with pytest.raises(claim.BusyError, match=words), claim.only_run(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with claim.only_run(tmp_path):
        pass
    with claim.only_run(tmp_path):
        pass


def test_litter_of_killed_writes_is_removed_and_nothing_else(tmp_path):
    kept = ["recovery/a.npz", "bank/.hidden", "data/x/1.0.0/y.array_record", ".a.part", "b.part"]
    lost = [
        "recovery/.a.npz.k2_x9abc.part",
        "model/0123/0.orbax-checkpoint-tmp/params.orbax-checkpoint-tmp/d/1",
        "data/mnist5k/incomplete.ABC123_1.0.0/z",
    ]
    for name in kept + lost:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with atomic_path(tmp_path / "written.npz") as path:
        path.write_text("x")
    path.write_text("x")  # as if it had been killed before the renaming
    assert len(claim.litter(tmp_path)) == 4
    with claim.only_run(tmp_path):
        assert not claim.litter(tmp_path)
    assert all((tmp_path / name).exists() for name in kept)
    assert not any((tmp_path / name).exists() for name in [*lost, path.name])


ODD = [
    "a b",
    "ä日本",
    "q'\"`$x",
    "-dash",
    "%s{0}",
    "#;&|",
    "new\nline",
    "~",
    "a.b..c",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_hold_checkpoints(tmp_path, name):
    folder = local_folder(tmp_path / name)
    tree = {"w": np.arange(6.0, dtype=np.float32)}
    checkpoint.save(folder / "model", tree, {"a": 1})
    found, config = checkpoint.restore(folder / "model", tree)
    np.testing.assert_array_equal(found["w"], tree["w"])
    assert config == {"a": 1}
    assert os.listdir(folder) == ["model"]


@pytest.mark.parametrize("name", ["a[1]", "x*", "y?", "back\\slash", "l" * 300])
def test_names_that_can_not_be_are_refused_at_the_start(tmp_path, name):
    with pytest.raises(ValueError, match=r"not read as it is|a part of 300 bytes"):
        local_folder(tmp_path / name)
