"""The command line from end to end, its reuse of finished stages, and the README's example."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from stride_jax import ClosedFormSettings
from stride_jax.attribution import Attribution
from stride_jax.design import Design
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, read_run_settings
from stride_jax.runtime import checkpoint
from stride_jax.runtime.files import UnreadableFileError, atomic_path, fingerprint, read_arrays
from stride_jax.runtime.settings import build
from tests.report_pages import check_a_report, stored

ROOT = pathlib.Path(__file__).parents[1]


CONFIG = "--config=configs/mnist5k.py:runlocal"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run by the entry point, in a process of its own."""
    workdir = tmp_path_factory.mktemp("run")
    words = [sys.executable, "-m", "experiments.run", CONFIG, f"--workdir={workdir}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture
def command(call, monkeypatch):
    """A run of a config in this process."""
    monkeypatch.chdir(ROOT)

    def called(workdir, *more, config=CONFIG):
        return call("run", config, f"--workdir={workdir}", *more)

    return called


def test_a_run_writes_what_it_promises(run):
    workdir, done = run
    summary = json.loads((workdir / "summary.json").read_text())
    for field in ("lds", "perfect_predictor", "num_train", "num_queries", "seconds"):
        assert isinstance(summary[field], (int, float))
    assert "10 retrained subsets and 40 queries are too few to rank methods" in summary["too_small"]
    assert summary["too_small"] in done.stdout
    assert (
        summary["command"].startswith("__main__.py run --config") or "run.py" in summary["command"]
    )
    assert set(summary["products"]) == {
        "model", "operators", "measurements", "recovery", "attribution", "bank"
    }  # fmt: skip
    assert all(list(workdir.glob(f"{path}*")) for path in summary["products"].values())
    assert "joint" not in summary["settings"]["index"], "settings of parts not used are left out"
    assert summary["lds_ci95"][0] <= summary["lds"] <= summary["lds_ci95"][1]
    assert set(summary["methods"]) == {"stride", "grad-dot", "feature-cosine", "random"}
    for row in summary["methods"].values():
        assert {"lds", "lds_ci95", "seconds"} <= set(row)
    assert {"data", "model", "operators", "measurements", "recovery", "bank"} <= set(
        summary["stages"]
    )
    assert summary["settings"]["index"]["design"]["num_subsets"] == 200
    assert summary["versions"]["jaxopt"] == "0.8.5"
    assert (summary["num_train"], summary["num_queries"]) == (600, 40)
    # Clusters, and all is kept: every score is exact.
    assert summary["settings"]["index"]["design"]["kind"] == "clusters"
    found = summary["recovery"]
    assert (found["mean_exact"], found["found"], found["not_found"]) == (600, 1, 0)
    assert found["mean_explained"] == pytest.approx(1, abs=1e-3)
    assert "answers: 600 exact scores per query, explain 100% of what was measured" in done.stdout
    assert "stride" in done.stdout
    assert "perfect predictor" in done.stdout
    attribution = Attribution.load(workdir / "attribution.parquet")
    assert attribution.scores_QxN.shape == (40, 600)
    assert attribution.settings["index"]["basis"]["rank"] == 64
    assert attribution.settings["index"]["taps"] == ["input"], "the choice travels with the scores"
    table = attribution.top(2)
    assert set(table) >= {"query_label", "train_label", "train_row", "rank", "found_by"}
    assert set(table.found_by) == {"kept"}
    assert (attribution.diagnostics["verdict"] == 0).all()
    assert (workdir / "proponents.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_shows_a_run_beside_another_method(run, call, tmp_path):
    workdir, _ = run
    attribution = Attribution.load(workdir / "attribution.parquet")
    other = dataclasses.replace(attribution, scores=-attribution.scores_QxN)
    other.save(tmp_path / "other.parquet")
    out = tmp_path / "page.html"
    words = ("report", f"--workdir={workdir}", f"--out={out}", "--top=4", "--suspects=7")
    done = call(*words, f"--compare={tmp_path / 'other.parquet'}")
    assert done.returncode == 0, done.stderr
    check_a_report(Run(read_run_settings(workdir), workdir), stored(out.read_text()), attribution)
    for wrong, message in (
        (f"--out={tmp_path / 'page.pdf'}", "give a name that ends in .html"),
        (f"--out={tmp_path / 'no' / 'page.html'}", "there is no folder"),
        (f"--compare={tmp_path / 'nothing'}", "no attribution.parquet is there"),
        (f"--workdir={tmp_path}", "holds no run"),
    ):
        done = call(*words, wrong)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_second_run_reuses_every_stage(run, command):
    workdir, _ = run
    products = [p for kind in ("*/*.npz", "operators/*/0/_CHECKPOINT_METADATA")
                for p in workdir.glob(kind)]  # fmt: skip
    stages = {p: p.stat().st_mtime_ns for p in products}
    assert len(stages) >= 6
    other = "--config.read.lasso.lambda_fraction=0.1"
    refused = command(workdir, other)
    assert refused.returncode == 2
    assert "lambda_fraction: 0.02 there, 0.1 here" in refused.stderr
    again = command(workdir, other, "--reuse")
    assert again.returncode == 0, again.stderr
    assert {p: p.stat().st_mtime_ns for p in stages} == stages
    fresh = set(workdir.glob("*/*.npz")) - set(stages)
    assert {p.parent.name for p in fresh} == {"recovery"}, "only what the change touches"


def test_mistakes_are_named_before_work_starts(tmp_path, command):
    wrong = command(tmp_path, "--config.index.design.degree=300")
    assert wrong.returncode != 0
    assert "degree=300 exceeds num_subsets=200" in wrong.stderr
    assert not list(tmp_path.iterdir())
    unknown = command(tmp_path, config="--config=configs/mnist5k.py:quick")
    assert "unknown config argument 'quick'" in unknown.stderr
    with pytest.raises(ValueError, match=r"config.index has no setting 'desing'"):
        build(RunSettings, {"index": {"desing": {}}})
    with pytest.raises(ValueError, match=r"config.num_subsets='9' must be of type int"):
        build(Design, {"num_subsets": "9"})
    with pytest.raises(ValueError, match=r"config.index is a section of settings"):
        build(RunSettings, {"index": 3})


def test_a_run_goes_as_far_as_one_wants(tmp_path, command):
    """Without a bank, up to a stage; a tap that is not there is refused before training."""
    small = ("--config.bank=None", "--config.train.epochs=1", "--config.num_checkpoints=1")
    wrong = command(tmp_path / "wrong", "--config.index.taps=hiden0", *small)
    assert wrong.returncode == 2
    assert "unknown tap 'hiden0'" in wrong.stderr
    assert not (tmp_path / "wrong" / "model").exists()
    done = command(tmp_path, "--until=model", *small)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["stages"]) == {"data", "model"}
    assert summary["lds"] is summary["perfect_predictor"] is summary["recovery"] is None
    assert 0 < summary["accuracy"] <= 1
    assert not (tmp_path / "operators").exists()
    by_hash = ("--config.index.design.kind=hash", "--config.index.kept=0", "--reuse")
    done = command(tmp_path, *small, *by_hash)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["lds"] is None
    assert summary["methods"] == {}
    found = summary["recovery"]
    assert found["max_relative_gap"] <= 1e-3
    assert found["mean_exact"] == 300
    assert 0 < found["mean_agreement"] < 1
    assert found["found"] + found["partly_found"] + found["not_found"] == pytest.approx(1)
    table = Attribution.load(tmp_path / "attribution.parquet").top(400)
    assert "sketch" in set(table.found_by) <= {"sketch", "estimate"}
    assert (tmp_path / "attribution.parquet").exists()
    assert not (tmp_path / "bank").exists()
    assert "0.000" not in done.stdout


@pytest.mark.slow
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
        *("gauss-newton", "astra", "ev-shampoo", "trackstar", "source", "representer", "pas"),
        *(
            "knn-shapley",
            "less",
            "datamodels",
            "stride",
            "stride-joint",
            "stride-direct",
            "stride-k30",
        ),
        *("stride-2", "trak-2", "logra-2", "ekfac-2"),
    }
    assert {"bank", "device", "versions"} <= set(board)
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


def test_doubt_is_by_losses_on_held_out_examples(run):
    """`.001 (held-out loss / training loss − 1)`, with both losses in numpy."""
    settings = read_run_settings(run[0])
    how = ClosedFormSettings(doubt=None, decay=0.3)
    index = dataclasses.replace(settings.index, closed_form=how)
    same = Run(dataclasses.replace(settings, index=index), run[0])
    assert checkpoint.latest(same.products.path("model")) is not None, "the model of the whole run"

    def nats(examples):
        layers = [same.model.params[name] for name in ("dense0", "dense1", "head")]
        z = np.asarray(examples.inputs, np.float64).reshape(len(examples), -1)
        for i, layer in enumerate(layers):
            z = z @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
            z = np.maximum(z, 0) if i < 2 else z / same.model.temperature
        return np.mean(np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), examples.labels])

    expected = 1e-3 * (nats(same.data[0]["calibration"]) / nats(same.train) - 1)
    assert expected > 0
    assert same.resolved.index.closed_form.doubt == pytest.approx(expected, rel=1e-4)


def test_keys_follow_the_chain_of_stages(tmp_path):
    plain = Run(RunSettings(), tmp_path)
    other = Run(build(RunSettings, {"index": {"closed_form": {"damping": 5.0}}}), tmp_path)
    unused = Run(build(RunSettings, {"index": {"joint": {"steps": 5}}}), tmp_path)
    assert unused.products.key("operators") == plain.products.key("operators")
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
    with pytest.raises(UnreadableFileError, match=r"a.npz can't be read as arrays"):
        read_arrays(target)
    assert fingerprint(np.arange(3)) != fingerprint(np.arange(3.0))


def test_the_readme_example_runs():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks, "the README shows the Python API"
    for block in blocks:
        space: dict = {}
        exec(compile(block, "README.md", "exec"), space)
        assert space["attribution"].scores_QxN.shape == (8, 1600)
