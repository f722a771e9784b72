"""The command line from end to end, its reuse of finished stages, and the README's example."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from stride_jax.attribution import Attribution
from stride_jax.design import Design
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings
from stride_jax.runtime.files import UnreadableFileError, atomic_path, fingerprint, read_arrays
from stride_jax.runtime.settings import build

ROOT = pathlib.Path(__file__).parents[1]


def command(workdir, *more, config="configs/mnist5k.py:runlocal"):
    return subprocess.run(
        [
            sys.executable,
            *("-m", "experiments.run", f"--config={config}", f"--workdir={workdir}"),
            *more,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    done = command(workdir)
    assert done.returncode == 0, done.stderr
    return workdir, done


def test_a_run_writes_what_it_promises(run):
    workdir, done = run
    summary = json.loads((workdir / "summary.json").read_text())
    for field in ("lds", "ceiling", "num_train", "num_queries"):
        assert isinstance(summary[field], (int, float))
    assert summary["lds_ci95"][0] <= summary["lds"] <= summary["lds_ci95"][1]
    assert set(summary["methods"]) == {"stride", "grad-dot", "feature-cosine", "random"}
    for row in summary["methods"].values():
        assert {"lds", "lds_ci95", "seconds"} <= set(row)
    assert {"data", "model", "operators", "measurements", "recovery", "bank"} <= set(
        summary["stages"]
    )
    assert summary["settings"]["stride"]["design"]["num_subsets"] == 200
    assert summary["versions"]["jaxopt"] == "0.8.5"
    assert (summary["num_train"], summary["num_queries"]) == (600, 40)
    assert summary["recovery"]["max_relative_gap"] <= 1e-3
    assert "stride" in done.stdout
    assert "perfect predictor" in done.stdout
    attribution = Attribution.load(workdir / "attribution.parquet")
    assert attribution.scores_QxN.shape == (40, 600)
    assert attribution.settings["stride"]["basis"]["rank"] == 64
    assert attribution.settings["stride"]["taps"] == ["input"], "the choice travels with the scores"
    assert (workdir / "proponents.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_reuses_every_stage(run):
    workdir, _ = run
    products = [p for kind in ("*/*.npz", "operators/*/0/_CHECKPOINT_METADATA")
                for p in workdir.glob(kind)]  # fmt: skip
    stages = {p: p.stat().st_mtime_ns for p in products}
    assert len(stages) >= 6
    other = "--config.stride.lasso.lambda_fraction=0.1"
    refused = command(workdir, other)
    assert refused.returncode == 1
    assert "lambda_fraction: 0.02 there, 0.1 here" in refused.stderr
    again = command(workdir, other, "--reuse")
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in stages} == stages
    fresh = set(workdir.glob("*/*.npz")) - set(stages)
    assert {p.parent.name for p in fresh} == {"recovery"}, "only what the change touches"


def test_mistakes_are_named_before_work_starts(tmp_path):
    wrong = command(tmp_path, "--config.stride.design.degree=300")
    assert wrong.returncode != 0
    assert "degree=300 exceeds num_subsets=200" in wrong.stderr
    assert not list(tmp_path.iterdir())
    unknown = command(tmp_path, config="configs/mnist5k.py:quick")
    assert "unknown config argument 'quick'" in unknown.stderr
    with pytest.raises(ValueError, match=r"config.stride has no setting 'desing'"):
        build(RunSettings, {"stride": {"desing": {}}})
    with pytest.raises(ValueError, match=r"config.num_subsets='9' must be of type int"):
        build(Design, {"num_subsets": "9"})
    with pytest.raises(ValueError, match=r"config.stride is a section of settings"):
        build(RunSettings, {"stride": 3})


def test_the_leaderboard_runs_every_method_on_one_bank(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "benchmarks.leaderboard", "--config=configs/breast_cancer.py:runlocal"),
            *(f"--workdir={tmp_path}/boards/small", f"--docs={tmp_path}/docs"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    board = json.loads((tmp_path / "boards/small/leaderboard.json").read_text())
    rows = {row["method"]: row for row in board["rows"]}
    assert set(rows) == {
        *("random", "feature-cosine", "grad-dot", "grad-cos", "tracin", "trak", "logra", "ekfac"),
        *("less", "datamodels", "stride", "stride-joint", "stride-direct", "stride-k30"),
        *("stride-2", "trak-2", "logra-2", "ekfac-2"),
    }
    assert {"ceiling", "bank", "device", "versions"} <= set(board)
    for row in rows.values():
        low, high = row["lds_ci95"]
        assert low <= row["lds"] <= high
        assert len(row["counterfactual"]["drop"]) == 1
        assert row["train_seconds"] + row["query_seconds"] > 0
    assert rows["stride"]["lds_minus_stride_ci95"] == [0, 0]
    assert rows["grad-dot"]["ratio_to_grad_dot"] == 1
    assert rows["trak"]["index_bytes"] == 4 * (427 * 1024 + 427), "one float a feature and doubt"
    page = (tmp_path / "docs/leaderboard.md").read_text()
    assert all(f"| {name} |" in page for name in rows)
    assert (tmp_path / "docs/leaderboard_small.png").exists()


def test_keys_follow_the_chain_of_stages(tmp_path):
    plain = Run(RunSettings(), tmp_path)
    other = Run(build(RunSettings, {"stride": {"joint": {"steps": 5}}}), tmp_path)
    assert plain.products.key("model") == other.products.key("model")
    assert plain.products.key("operators") != other.products.key("operators")
    assert plain.products.key("recovery") != other.products.key("recovery")
    assert plain.products.key("grad-dot") == other.products.key("grad-dot")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.npz"
    target.write_text("old")

    def tear():
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        tear()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(UnreadableFileError, match=r"a.npz can't be read.*delete it"):
        read_arrays(target)
    assert fingerprint(np.arange(3)) != fingerprint(np.arange(3.0))


def test_the_readme_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks, "the README shows the Python API"
    for block in blocks:
        space: dict = {}
        exec(compile(block, "README.md", "exec"), space)
        assert space["attribution"].scores_QxN.shape == (8, 1600)
