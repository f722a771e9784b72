"""A run's files are read with their digests; what was swapped or damaged is named, and redone."""

import json
import os
import shutil

import numpy as np
import pytest

from configs import breast_cancer
from stride_jax import Index
from stride_jax.cli.main import main
from stride_jax.data import map_splits, write_splits
from stride_jax.run import summary
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import check_workdir, run_settings
from stride_jax.runtime.files import (
    UnreadableFileError,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)


def made(workdir, **changes):
    config = breast_cancer.get_config("runlocal")
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    settings = run_settings(config.to_dict())
    workdir.mkdir(parents=True, exist_ok=True)
    check_workdir(workdir, settings)
    run = Run(settings, workdir)
    return run, summary.write(run)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two runs whose base models differ by their seed."""
    home = tmp_path_factory.mktemp("runs")
    return {seed: made(home / str(seed), train__seed=seed)[0] for seed in (0, 1)}


def said(capsys, *words):
    code = main(["verify", *words, "--json"])
    out = capsys.readouterr().out
    report = json.loads(out[: out.rindex("}") + 1])
    return code, {row["name"]: row for row in report["findings"]}


def copied(run, folder):
    shutil.copytree(run.workdir, folder)
    return Run(run.settings, folder)


def test_a_whole_run_is_as_written_and_agrees_with_its_copy(finished, tmp_path, capsys):
    run = copied(finished[0], tmp_path / "a")
    code, rows = said(capsys, f"--workdir={run.workdir}")
    assert code == 0
    assert {row["level"] for row in rows.values()} == {"ok"}, rows
    assert {"model", "operators", "measurements", "recovery", "bank", "attribution"} <= rows.keys()
    both = f"--workdir={run.workdir}", f"--against={finished[0].workdir}"
    code, rows = said(capsys, *both)
    assert code == 0
    assert {row["level"] for row in rows.values()} == {"ok"}
    code, rows = said(capsys, f"--workdir={run.workdir}", f"--against={finished[1].workdir}")
    assert code == 2
    assert rows["data"]["level"] == "ok"
    assert rows["model"]["level"] == "error"
    assert "differs by" in rows["model"]["measured"]


def test_a_damaged_stage_is_named_set_aside_and_made_again(finished, tmp_path, capsys):
    run = copied(finished[0], tmp_path / "a")
    path = run.products.path("measurements").with_suffix(".npz")
    whole = read_arrays(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)
    code, rows = said(capsys, f"--workdir={run.workdir}", "--redo")
    assert code == 2
    assert [name for name, row in rows.items() if row["level"] == "error"] == ["measurements"]
    assert str(path) in rows["measurements"]["measured"]
    assert len(list(path.parent.glob("*.npz.bad-*"))) == 1
    made(run.workdir, train__seed=0)
    np.testing.assert_array_equal(read_arrays(path)["y"], whole["y"])
    assert said(capsys, f"--workdir={run.workdir}")[0] == 0


@pytest.mark.parametrize("stage", ["model", "operators", "measurements", "recovery"])
def test_another_runs_whole_product_is_told(finished, tmp_path, capsys, stage):
    """By its key, where it is of other settings; by what later stages were made from, else."""
    run, other = copied(finished[0], tmp_path / "a"), finished[1]
    for suffix in ("", ".npz"):
        mine, theirs = (one.products.path(stage) for one in (run, other))
        mine, theirs = (p.with_name(p.name + suffix) for p in (mine, theirs))
        if theirs.is_dir():
            shutil.rmtree(mine)
            shutil.copytree(theirs, mine)
        elif theirs.exists():
            shutil.copy(theirs, mine)
    code, rows = said(capsys, f"--workdir={run.workdir}")
    assert code == 2
    assert rows[stage]["level"] == "error"
    assert "it was moved here" in rows[stage]["measured"] + rows[stage]["remedy"]


def test_a_product_made_from_another_is_told(finished, tmp_path, capsys):
    """Whole, of the right key, and yet not what the later stages were made from."""
    run = copied(finished[0], tmp_path / "a")
    path = run.products.path("measurements").with_suffix(".npz")
    arrays = read_arrays(path)
    write_arrays(path, **{**arrays, "y": arrays["y"] * np.float32(1.5)})
    code, rows = said(capsys, f"--workdir={run.workdir}")
    assert code == 2
    assert rows["measurements"]["level"] == "ok"
    assert "was made from another measurements" in rows["recovery"]["measured"]


def test_splits_that_several_processes_map_are_checked(finished, tmp_path, capsys):
    """Every file of them; folders of before digests are mapped as they are."""
    run = copied(finished[0], tmp_path / "a")
    write_splits(run.mapped, *run.data)
    code, rows = said(capsys, f"--workdir={run.workdir}")
    assert (code, rows["data"]["level"]) == (0, "ok")
    files = sorted(run.mapped.glob("*.npy"))
    assert {file.name.partition("-")[2] for file in files} >= {
        "inputs.npy",
        "labels.npy",
        "ids.npy",
    }
    for file in files:
        whole = file.read_bytes()
        for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[: len(whole) // 2], None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.raises(UnreadableFileError, match=f"{file.name} is missing, or not what"):
                map_splits(run.mapped)
            file.write_bytes(whole)
    raw = bytearray(files[0].read_bytes())
    raw[-1] ^= 1
    files[0].write_bytes(raw)
    code, rows = said(capsys, f"--workdir={run.workdir}")
    assert code == 2
    assert files[0].name in rows["data"]["measured"]
    assert f"remove {run.mapped}" in rows["data"]["remedy"]
    map_splits(run.mapped, check=False)
    contents = read_json(run.mapped / "splits.json")
    write_json(run.mapped / "splits.json", {n: v for n, v in contents.items() if n != "files"})
    splits, width = map_splits(run.mapped)
    assert (len(splits["train"]), width) == (len(run.train), run.data[1])
    (run.mapped / "splits.json").write_text("{")
    with pytest.raises(UnreadableFileError, match=f"splits.json.*remove {run.mapped}"):
        map_splits(run.mapped)


def test_an_index_file_of_anything_is_one_error(finished, tmp_path):
    """Whole arrays under the names of an index: it loads, or one error names the file."""
    run, path, rng = finished[0], tmp_path / "index.npz", np.random.default_rng(0)
    run.index.save(path)
    arrays, told = read_arrays(path), 0
    replacements = [
        np.array(3), np.array("text"), np.zeros((2, 2, 2, 2)), np.array([]), np.array(["["] * 3),
    ]  # fmt: skip
    for name in arrays:
        for other in (None, *replacements, arrays[rng.choice(sorted(arrays))]):
            changed = {n: v for n, v in arrays.items() if n != name}
            write_arrays(path, **changed, **({} if other is None else {name: other}))
            try:
                index = Index.load(path)
            except UnreadableFileError as error:
                told += str(path) in str(error)
            else:
                assert len(index.train_ids) == len(run.train)
    assert told > 2 * len(arrays)


def test_a_run_in_a_folder_for_reading_alone_is_shown(finished, tmp_path, capsys, monkeypatch):
    run = copied(finished[0], tmp_path / "a")
    words = ["run", "--config=configs/breast_cancer.py:runlocal", f"--workdir={run.workdir}"]
    # Root may write anywhere; benchmarks.odd_places mounts a folder for reading.
    may = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and may(path, mode))
    before = {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")}
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "nothing was written" in shown
    assert f"{json.loads((run.workdir / 'summary.json').read_text())['lds']:.3f}" in shown
    assert main([*words, "--until=model"]) == 0
    capsys.readouterr()
    assert said(capsys, f"--workdir={run.workdir}")[0] == 0
    assert main([*words, "--config.top_k=3"]) == 2
    assert "top_k: 100 there, 3 here" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.workdir.rglob("*")}
    run.products.path("recovery").with_suffix(".npz").unlink()
    assert main(words) == 2
    assert "not finished" in capsys.readouterr().err
    assert main([*words[:2], f"--workdir={tmp_path / 'b'}"]) == 2
    assert f"can't write to {tmp_path}" in capsys.readouterr().err
