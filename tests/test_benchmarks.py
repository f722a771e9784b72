"""The recovery benchmark at a tiny size, and the gap that it holds every solver to."""

import dataclasses
import importlib
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import Lasso

from benchmarks import ensembles, leaderboard, leaderboard_page, plots, report, retrieval, standing
from benchmarks.methods import Method, Stride, changed, fit_stride, score_stride
from benchmarks.signals import plant, pose, relative_gaps
from benchmarks.solvers import left_out
from stride_jax.baselines.model import Model
from stride_jax.data import relevant
from stride_jax.models import MLP
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, run_settings
from stride_jax.runtime.settings import build
from tests.report_pages import stored

ROOT = pathlib.Path(__file__).parents[1]
_DATA = {
    "fashion_mnist50k": "data/usr",
    **{
        name: f"data/boards/{name}.npz"
        for name in ("cifar10_test", "letters", "parkinsons", "spam")
    },
}


def dense(problem):
    m = np.zeros((problem.num_subsets, len(problem.subsets_Nxd)))
    np.add.at(m, (problem.subsets_Nxd, np.arange(m.shape[1])[:, None]), 1)
    return m


@pytest.mark.parametrize("intercept", [True, False])
def test_the_gap_is_that_of_a_dense_computation(intercept):
    problem = pose(plant(200, 50, 4, 3, sparsity=4, noise=0.1), 0.1, 1e-4, cores=1)
    m = dense(problem)
    centred = m - m.mean(axis=0) if intercept else m
    np.testing.assert_allclose(np.abs(problem.y_QxK @ (m - m.mean(axis=0))).max(axis=1), 1)
    model = Lasso(0.1 / 50, fit_intercept=False, tol=1e-3)
    w = np.stack([model.fit(centred, y).coef_ for y in problem.y_QxK])
    found = relative_gaps(problem, np.arange(3), w, intercept)
    for q, y in enumerate(problem.y_QxK):
        r = y - centred @ w[q]
        theta = r * min(1, 0.1 / np.abs(centred.T @ r).max())
        gap = 0.5 * r @ r + 0.1 * np.abs(w[q]).sum() - 0.5 * y @ y + 0.5 * ((y - theta) ** 2).sum()
        np.testing.assert_allclose(found[q], gap / (0.5 * y @ y), rtol=1e-9)
        assert 0 < found[q] < 2e-3


def test_the_benchmark_writes_what_it_promises(tmp_path):
    asked = {
        "num_train": 300, "num_subsets": 60, "degree": 4, "num_queries": 6, "sparsity": 5,
        "repeats": 1, "solvers": "stride,sklearn,sklearn-nointercept,jaxopt-dense",
        "workdir": tmp_path, "max_queries_slow": 2,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.recovery", *(f"--{k}={v}" for k, v in asked.items())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "recovery.json").read_text())
    rows = {row["solver"]: row for row in result["rows"]}
    assert list(rows) == ["stride", "sklearn", "sklearn-nointercept", "jaxopt-dense"]
    for row in rows.values():
        assert row["max_relative_gap"] <= 1e-4
        assert row["seconds_per_query"] > 0
        assert {"compile_seconds", "peak_bytes", "passes_over_n", "ratio_to_sklearn"} <= set(row)
    assert rows["sklearn"]["ratio_to_sklearn"] == 1
    assert rows["jaxopt-dense"]["queries"] == 2
    # The same problem has one answer.
    assert rows["stride"]["mean_support"] == pytest.approx(rows["sklearn"]["mean_support"], abs=1)
    assert (result["num_train"], result["num_subsets"], result["degree"]) == (300, 60, 4)


def test_a_solver_that_cannot_fit_is_left_out_with_its_reason():
    problem = pose(plant(200, 50, 4, 3, sparsity=4, noise=0.1), 0.1, 1e-4, cores=1)
    assert left_out("jaxopt-dense", problem, 2**30) is None
    assert "needs about" in str(left_out("jaxopt-dense", problem, 1000))
    assert left_out("stride", problem, 0) is None


PACKAGED = ("breast_cancer", "mnist5k")
OTHERS = ("bible_gpt", "cifar_resnet", "digits_resnet", "fashion_mlp", "fashion_small", "letters",
          "parkinsons", "spam")  # of fetched data, or minutes of compilation  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*repeat another's content:UserWarning")
@pytest.mark.parametrize(
    "name", [*PACKAGED, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_every_board_holds_a_small_contest(name, tmp_path):
    values = importlib.import_module(f"configs.{name}").get_config("runlocal").to_dict()
    if not (ROOT / _DATA.get(values.get("data", {}).get("name"), ".")).exists():
        pytest.skip("its data come by `make data` or `make boards-data`")
    changes = {"methods": ("stride", "grad-dot"), "ensemble": 0, "removal_queries": 0, "repeats": 1}
    asked = build(leaderboard.LeaderboardSettings, values.pop("leaderboard") | changes)
    settings = leaderboard.on_bank_of(asked, run_settings(values))
    board = leaderboard.hold(Run(settings, tmp_path), asked)
    rows = {row["method"]: row for row in board["rows"]}
    assert set(rows) == {"stride", "grad-dot", "datamodels"}
    assert all(-1 <= row["lds"] <= 1 and row["index_bytes"] >= 0 for row in rows.values())
    assert rows["stride"]["lds_minus_stride_ci95"] == (0, 0)
    assert rows["grad-dot"]["ratio_to_grad_dot"] == 1


def test_a_dropout_mask_leaves_hidden_units_out_by_the_next_layers_rows():
    module, x = MLP(3, (8, 5)), np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    params = module.init(jax.random.key(0), x)["params"]
    own = ensembles.dropped(Model(module, (params,)), 0.5, seed=1, num_inputs=6)
    rng, out = np.random.default_rng(1), x.reshape(4, 6)
    for name, width in (("dense0", 8), ("dense1", 5)):
        layer = jax.tree.map(np.asarray, params[name])
        kept = rng.random(width) >= 0.5
        assert 0 < kept.sum() < width
        out = np.maximum(out @ layer["kernel"] + layer["bias"], 0) * kept / 0.5
    head = jax.tree.map(np.asarray, params["head"])
    wanted = out @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(own.logits(own.params, x), wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*repeat another's content:UserWarning")
def test_averages_of_several_models_are_compared_with_one(tmp_path):
    values = importlib.import_module("configs.breast_cancer").get_config("runlocal").to_dict()
    del values["leaderboard"]
    run = Run(run_settings(values), tmp_path)
    method = Method("stride", fit_stride, score_stride, [[own := Stride.of(run.settings)]])
    scores = ensembles.compare(method, own, run, sizes=(2,))
    by_hand = []
    for i, member in enumerate((run.model, run.another(1).model)):
        mine = changed(own, {"index.design.seed": own.index.design.seed + i})
        index = fit_stride(member, run.train, mine)
        by_hand.append(score_stride(index, member, run.train, run.query, mine))
    np.testing.assert_allclose(scores["2 seeds"], np.mean(by_hand, axis=0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scores["one model"], by_hand[0], rtol=1e-5, atol=1e-7)
    kinds = {"one model", "temperature 1", "2 seeds", "last 2 checkpoints", "2 dropout masks"}
    assert set(scores) == kinds
    found = {row.name: row for row in ensembles.rows("b", "m", scores, run.bank.halves()[1])}
    assert set(found) == {
        f"ensemble, b: m, {kind}, {figure}"
        for kind in kinds
        for figure in ("LDS", "gain")
        if (kind, figure) != ("one model", "gain")
    }
    lds = {kind: found[f"ensemble, b: m, {kind}, LDS"].value for kind in kinds}
    gain = found["ensemble, b: m, 2 seeds, gain"].value
    assert gain == pytest.approx(lds["2 seeds"] - lds["one model"])


@pytest.mark.filterwarnings("ignore:.*repeat another's content:UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["verses", "facts"])
def test_retrieval_finds_what_text_overlap_finds(name, tmp_path):
    values = importlib.import_module(f"configs.bible_{name}").get_config("runlocal").to_dict()
    del values["leaderboard"]
    asked = build(retrieval.RetrievalSettings, values.pop("retrieval"))
    asked = dataclasses.replace(asked, methods=("stride", "random", "bm25"))
    run = Run(build(RunSettings, values), tmp_path)
    board = retrieval.hold(run, asked)
    rows = {row["method"]: row for row in board["rows"]}
    assert list(rows) == ["stride", "random", "bm25"]
    assert board["queries"] == 8
    assert rows["stride"]["difference"] == 0
    assert rows["bm25"]["mrr"] > 0.3 > rows["random"]["mrr"]
    assert retrieval.table(board).count("\n") == 6
    # Every query has its answers among the training sequences, and they are what it says.
    truth = relevant(run.text.truth, run.query.ids, run.train.ids)
    assert (truth.sum(axis=1) >= (2 if name == "verses" else 1)).all()


def board(**lds):
    rows = [
        {"method": name.replace("_", "-"), "lds": value, "lds_ci95": (value - 0.1, value + 0.1),
         "lds_minus_stride_ci95": (value - lds["stride"] - 0.1, value - lds["stride"] + 0.1),
         "settings": {"index": {"design": {"num_subsets": 100}}}}
        for name, value in lds.items()
    ]  # fmt: skip
    return {"rows": rows, "num_train": 1234, "ceiling": {"perfect_predictor": 0.9}}


def test_the_standing_ranks_one_checkpoint_methods_alone():
    boards = {
        "one": board(stride=0.5, stride_direct=0.8, ekfac=0.4, ekfac_5=0.7, datamodels=0.9, less=0),
        "two": board(stride=0.3, ekfac=0.4, less=0.35, new=0.6),
    }
    first, second = (standing.standing(own) for own in boards.values())
    assert (first["rank"], first["of"], first["best"]) == (1, 3, "ekfac")
    assert (second["rank"], second["of"], second["best"]) == (4, 4, "new")
    np.testing.assert_allclose(first["ahead_ci95"], (0, 0.2), atol=1e-12)
    ranks = {name: (mean, low, high) for name, mean, low, high in standing.mean_ranks(boards)}
    assert ranks == {"ekfac": (1.5, 1, 2), "stride": (2, 1, 3), "less": (2.5, 2, 3)}
    table = standing.table(boards)
    assert standing.ranks(boards).endswith("| less | 2.5 | 2.0 – 3.0 |")
    assert "| [two](#two) | 1,234 | 100 | 0.900 | **0.300** [0.200, 0.400] | new 0.600 |" in table
    asked = {row.name: (row.value, row.asked) for row in standing.rows(boards)}
    # On board one the lead's interval begins at zero, which is not clear of it.
    assert asked == {
        "boards": (2, 9),
        "boards that stride is first on": (1, 7),
        "boards that stride is first on, clear of zero": (0, 5),
        "boards with a method clearly above stride": (1, 0),
    }


def test_the_leaderboard_is_of_the_files_of_boards(tmp_path):
    (tmp_path / "boards").symlink_to(ROOT / "docs/boards")
    report.write(tmp_path)
    said = (tmp_path / "leaderboard.md").read_text()
    assert said == (ROOT / "docs/leaderboard.md").read_text(), "run benchmarks.report.write"
    leaderboard_page.main([f"--out={tmp_path / 'page.html'}"])
    told = stored((tmp_path / "page.html").read_text())
    boards = standing.read_boards(ROOT / "docs/boards")
    assert [one["id"] for one in told["queries-0"]["own"]] == list(boards)
    for one in told["queries-0"]["own"]:
        lds = {row["method"]: row["lds"] for row in boards[one["id"]]["rows"]}
        shown = {told[f"examples-{i // 128}"]["id"][i % 128]: v for i, v, _ in one["lists"][0]}
        assert shown == pytest.approx(lds, abs=1e-4)


def test_pictures_are_of_the_results_files_and_have_words(tmp_path):
    """The page says what the files say today; no picture is empty."""
    for name in ("boards", "results"):
        (tmp_path / name).symlink_to(ROOT / "docs" / name)
    plots.main([f"--docs={tmp_path}"])
    page = (tmp_path / "figures.md").read_text()
    assert page == (ROOT / "docs/figures.md").read_text(), "run python -m benchmarks.plots"
    drawn = re.findall(r"!\[(.*)\]\((figures/.*)\)", page)
    assert len(drawn) == 7
    for words, file in drawn:
        assert len(words) > 60
        pixels = np.asarray(Image.open(tmp_path / file).convert("L"))
        assert pixels.shape == (675, 1200)
        assert 0.01 < (pixels < 200).mean() < 0.5
