"""Programs are kept in a folder of this user's own, cut to a bound, or not at all."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from stride_jax.exact import _in_eights
from stride_jax.runtime import compiled
from stride_jax.runtime.compiled import folder_of_programs

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_kind_of_cpu_and_a_jaxlib_have_a_folder_of_their_own(home, monkeypatch):
    folder = folder_of_programs()
    assert folder.parent == home / "stride_jax" / "compiled"
    assert folder.stat().st_mode & 0o077 == 0
    assert folder_of_programs() == folder
    monkeypatch.setattr(compiled.importlib.metadata, "version", lambda _: "another")
    assert folder_of_programs() != folder


def test_a_folder_that_others_write_to_is_refused(home):
    folder_of_programs().chmod(0o770)
    with pytest.raises(ValueError, match=r"others can write to .* chmod go-w"):
        folder_of_programs()


def test_the_oldest_programs_go(home):
    folder = folder_of_programs()
    for i in range(5):
        (folder / f"{i}-cache").write_bytes(bytes(100))
        os.utime(folder / f"{i}-cache", (i, i))
    folder_of_programs(bound=250)
    assert sorted(p.name for p in folder.iterdir()) == ["3-cache", "4-cache"]


def test_directions_are_padded_by_rows_of_nothing():
    v = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    flat = _in_eights(v)
    assert flat.shape == (8, 6)
    np.testing.assert_array_equal(flat[:5], v.reshape(5, 6))
    assert not flat[5:].any()
    assert _in_eights(np.concatenate([v, v[:3]])).shape == (8, 6)


def _run(folder, **environment):
    words = ["run", "--config=configs/breast_cancer.py:runlocal", f"--workdir={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "stride_jax", *words, "--until=recovery"], cwd=ROOT, text=True,
        capture_output=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_kept_programs_change_no_byte_and_a_bad_folder_no_run(tmp_path):
    cache, on = tmp_path / "cache", {"JAX_ENABLE_COMPILATION_CACHE": "true"}
    _run(tmp_path / "without", JAX_ENABLE_COMPILATION_CACHE="false")
    for name in ("cold", "warm"):
        _run(tmp_path / name, XDG_CACHE_HOME=str(cache), **on)
    assert list(cache.rglob("*-cache"))
    (tmp_path / "file").write_text("no folder")
    said = _run(tmp_path / "bad", XDG_CACHE_HOME=str(tmp_path / "file"), **on)
    assert said.count("programs are compiled anew") == 1
    arrays = {}
    for name in ("without", "cold", "warm", "bad"):
        found = sorted((tmp_path / name / "recovery").glob("*.npz"))
        assert len(found) == 1
        with np.load(found[0]) as held:
            arrays[name] = {key: held[key].tobytes() for key in held.files}
    assert arrays["without"] == arrays["cold"] == arrays["warm"] == arrays["bad"]
