"""One run at a time in a folder, no litter of killed ones; odd names work or are refused."""

import contextlib
import os
import signal
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from stride_jax.runtime import checkpoint, claim
from stride_jax.runtime.files import UnreadableFileError, atomic_path, read_arrays, write_arrays
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.metrics import MetricsWriter

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


def test_links_in_a_folder_are_neither_followed_nor_written_through(tmp_path):
    home, outside = tmp_path / "run", tmp_path / "outside"
    for folder in (home / "incomplete.y", outside):
        folder.mkdir(parents=True)
    (outside / "precious").write_text("x")
    (home / "incomplete.x").symlink_to(outside)
    (home / ".a.abcdefgh.part").symlink_to(outside / "precious")
    (home / "incomplete.y" / "z").symlink_to(outside)
    with claim.only_run(home):
        assert os.listdir(home) == [".running"]
    (home / ".running").unlink()
    (home / ".running").symlink_to(outside / "precious")
    with pytest.raises(UnreadableFileError, match=r"is a link to .*precious"), claim.only_run(home):
        pass
    (home / "metrics").mkdir()
    (home / "metrics/metrics.jsonl").symlink_to(outside / "precious")
    with pytest.raises(UnreadableFileError, match=r"is a link to .*precious"):
        MetricsWriter(home / "metrics")
    assert (outside / "precious").read_text() == "x"


@hypothesis.settings(max_examples=40, deadline=None, database=None)
@hypothesis.given(
    st.text(
        st.characters(exclude_characters="/") | st.sampled_from("[]*?~ .-:%{}$\"'\n\0"), max_size=9
    )
    | st.sampled_from(
        ["a" * 255, "ü" * 128, "gs:", "file:", "s3:x", "x.orbax-checkpoint-tmp", "12"]
    )
)
def test_odd_names_are_refused_at_the_start_or_hold_what_is_written(tmp_path_factory, name):
    """Relative ones, which libraries are most likely to take for something else."""
    hypothesis.assume(name != "..")
    home = tmp_path_factory.mktemp("odd")
    with contextlib.chdir(home):
        try:
            folder = local_folder(name)
        except ValueError as error:
            words = str(error)
            assert repr(name) in words or repr(name[:20]) in words
            return
        tree = {"w": np.arange(6.0, dtype=np.float32)}
        checkpoint.save(folder / "model", tree, {"a": 1})
        write_arrays(folder / "y.npz", **tree)
        with claim.only_run(folder):
            found, config = checkpoint.restore(folder / "model", tree)
        np.testing.assert_array_equal(found["w"], tree["w"])
        np.testing.assert_array_equal(read_arrays(folder / "y.npz")["w"], tree["w"])
        assert config == {"a": 1}
        assert sorted(os.listdir(os.fsencode(home / name))) == [b".running", b"model", b"y.npz"]
        assert os.listdir(home) == [name] or name == "."


def test_where_a_folder_is_told_from_where_it_only_seems_to_be(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "nowhere").symlink_to("nothing")
    (tmp_path / "in[1]").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    for name, words in [
        ("file", "is a file"),
        ("file/below", "file, which is a file"),
        ("circle", "nowhere or in a circle"),
        ("nowhere/below", "nowhere or in a circle"),
        ("d/" * 1800, "a path of"),
    ]:
        with pytest.raises(ValueError, match=words):
            local_folder(tmp_path / name)
    with contextlib.chdir(tmp_path / "in[1]"), pytest.raises(ValueError, match="in its whole path"):
        local_folder("run")
    assert local_folder(tmp_path / "link" / "run") == tmp_path / "link" / "run"
