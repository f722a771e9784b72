"""Leaks of a benchmark: how problems are judged, and the command on real verses."""

import json
import math
import pathlib
import warnings

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from stride_jax.applications.audit import (
    CLEAN,
    LEARNT,
    PRESENT,
    AuditSettings,
    Judged,
    judge,
    null_of,
    share_of,
)
from stride_jax.applications.audit_page import page
from stride_jax.applications.audit_report import warnings_of
from stride_jax.applications.overlap import overlaps
from stride_jax.applications.replicas import Evidence, read_problems
from stride_jax.cli.main import main
from stride_jax.data.bible import packaged_verses
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import check_workdir, read_run_settings, run_settings
from tests.report_pages import stored


def evidence(scores_QxG: np.ndarray, overlaps_QxG: np.ndarray) -> Evidence:
    queries, groups = scores_QxG.shape
    return Evidence(
        *(scipy.sparse.csr_array(v) for v in (scores_QxG, overlaps_QxG)),
        np.arange(groups), np.full(queries, 5.0), np.full(queries, 3), np.zeros(queries, int),
    )  # fmt: skip


def unleaked(rng: np.random.Generator, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and overlaps as clean problems have them, of all sizes."""
    size_Qx1 = rng.uniform(0.1, 10.0, (queries, 1))
    return size_Qx1 * rng.standard_normal((queries, 80)), rng.uniform(0, 0.3, (queries, 80))


def test_false_alarms_keep_their_rate_and_leaks_are_told_apart() -> None:
    """Over fresh draws of both; one leak is there in words, one in its effect, one in both."""
    rng, settings = np.random.default_rng(0), AuditSettings(rate=0.05)
    alarms, merely = [], []
    for _ in range(60):
        null = null_of(evidence(*unleaked(rng, 59)), settings)
        scores, held = unleaked(rng, 40)
        typical_Q = np.median(np.abs(scores), axis=1)
        held[0, 3] = held[2, 5] = 0.95
        scores[0, 3] = 0.0  # the text is there, and the model took nothing of it
        scores[1, 4], scores[2, 5] = 40 * typical_Q[1:3]
        judged = judge(evidence(scores, held), null, settings)
        # A group that is there in words may have another, by chance, that seems to matter.
        merely.append(judged[0].verdict == PRESENT)
        assert [own.verdict for own in judged[1:3]] == [LEARNT, LEARNT]
        assert [own.groups[0] for own in judged[1:3]] == [4, 5]
        assert 3 in judged[0].groups
        assert judged[1].effect >= 40 * typical_Q[1] * (1 - 1e-5)
        assert judged[1].times >= 36, "the median moves a little with the leak"
        for own in judged:
            assert own.p == (1 + (null.t_C >= own.t).sum()) / 60
            assert (own.p <= 0.05) == (own.t > null.critical) == (own.verdict != CLEAN)
        alarms.append(np.mean([own.verdict != CLEAN for own in judged[3:]]))
    assert np.mean(merely) >= 0.9
    assert 0.01 < np.mean(alarms) <= 0.05 + 2 * np.std(alarms) / math.sqrt(len(alarms))


def test_nothing_known_is_clean_and_too_few_clean_problems_are_refused() -> None:
    rng, settings = np.random.default_rng(1), AuditSettings(rate=0.05)
    null = null_of(evidence(*unleaked(rng, 19)), settings)
    [own] = judge(evidence(np.zeros((1, 80)), np.zeros((1, 80))), null, settings)
    assert (own.verdict, own.p, own.groups, own.nearest) == (CLEAN, 1.0, (), -1)
    with pytest.raises(ValueError, match=r"18 clean problems .* at least 19, or a rate of 0.053"):
        null_of(evidence(*unleaked(rng, 18)), settings)
    for changes, says in (({"rate": 0.5}, "rate=0.5"), ({"shingle": 0}, "shingle=0"),
                          ({"control": -1}, "control=-1")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            AuditSettings(**changes)


@given(st.integers(0, 200), st.floats(0.05, 1.0))
def test_the_share_lies_in_its_interval(flagged: int, power: float) -> None:
    own = Judged(CLEAN, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, (), -1)
    judged = [own._replace(p=0.01)] * flagged + [own] * (200 - flagged)
    share = share_of(judged, 99, power, 0.02)
    low, high = share.interval
    assert (share.flagged, share.expected) == (flagged, 4.0)
    assert 0 <= low <= share.leaked + 1e-9
    assert share.leaked <= high + 1e-9 <= 1 + 1e-8


@given(st.data())
def test_overlaps_are_those_of_sets(data) -> None:
    """Against Python's sets of tuples, the formula written out."""
    text = st.lists(st.integers(0, 3), max_size=7).map(np.array)
    train, queries = (data.draw(st.lists(text, min_size=1, max_size=5)) for _ in range(2))
    length = data.draw(st.integers(1, 3))

    def shingles(own: np.ndarray) -> set[tuple[int, ...]]:
        words = own.tolist()
        size = min(length, len(words))
        return {tuple(words[i : i + size]) for i in range(len(words) - size + 1) if size}

    held = [shingles(own) for own in train]
    idf = lambda s: math.log((1 + len(held)) / (1 + sum(s in own for own in held)))  # noqa: E731
    own_QxN = overlaps(train, queries, length).toarray()
    for q, query in enumerate(queries):
        asked = shingles(query)
        total = sum(map(idf, asked))
        for i, own in enumerate(held):
            wanted = sum(map(idf, asked & own)) / total if total > 1e-9 else 0.0
            assert own_QxN[q, i] == pytest.approx(wanted, abs=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of fine-tuning on real verses, four of which the benchmark asks, two of them often."""
    home = tmp_path_factory.mktemp("audit")
    rows = []
    for verse in packaged_verses("kjv"):
        words = verse.text.split()
        if verse.book == "Psalms" and len(words) >= 12:
            name = f"{verse.chapter}:{verse.verse}"
            rows.append({"id": name, "prompt": " ".join(words[:6]),
                         "completion": " " + " ".join(words[6:12])})  # fmt: skip
    leaked = [row | {"id": f"leak {i} {copy}"} for i, row in enumerate(rows[:4])
              for copy in range(1 + 11 * (i % 2))]  # fmt: skip
    files = {"train": rows[100:160] + leaked, "problems": rows[:16], "clean": rows[40:64]}
    for name, own in files.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    gpt = {"depth": 1, "width": 32, "num_heads": 2, "num_kv_heads": 2, "sequence_len": 48}
    settings = run_settings(
        {
            "tuning": {"path": str(home / "train.jsonl"), "num_query": 2, "num_calibration": 2,
                       "vocab_size": 400, "length": 48},
            "model": {"kind": "gpt", "gpt": gpt},
            "train": {"epochs": 8, "batch_size": 8, "optimizer": "adamw", "learning_rate": 5e-3},
            "num_checkpoints": 1,
            "index": {"taps": ("final",), "design": {"num_subsets": 24, "degree": 4},
                      "basis": {"rank": 16}, "output_rank": 32, "kept": 0},
            "read": {"exact": {"budget": 60, "rounds": 1}},
        }
    )  # fmt: skip
    check_workdir(home / "run", settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*repeat another's content")
        assert Run(settings, home / "run").index
    return home


def audit(folder: pathlib.Path, *more: str) -> int:
    words = [f"--workdir={folder / 'run'}", f"--benchmark={folder / 'problems.jsonl'}"]
    return main(["audit", *words, *more])


def test_the_command(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The leaked verses are flagged with their copies, others hardly; asked again, the same."""
    out = folder / "audit.html"
    words = (f"--clean={folder / 'clean.jsonl'}", "--rate=.05", "--control=10", f"--out={out}")
    assert audit(folder, *words) == 0
    said = capsys.readouterr().out
    told = json.loads(out.with_suffix(".json").read_text())
    flagged = {own["id"] for own in told["problems"] if own["verdict"] != CLEAN}
    names = [json.loads(line)["id"] for line in
             (folder / "problems.jsonl").read_text().splitlines()]  # fmt: skip
    assert set(names[:4]) <= flagged, flagged
    assert len(flagged - set(names[:4])) <= 3
    assert f"{len(flagged)} of 16 problems flagged" in said
    own = next(own for own in told["problems"] if own["id"] == names[1])
    assert own["replicas"][0]["copies"] == 12
    assert own["replicas"][0]["rows"][0][0].startswith("leak 1 ")
    assert own["overlap"] == pytest.approx(1.0)
    assert told["control"]["flagged"] >= 0.9
    assert told["benchmark"]["leaked_share_ci95"][0] > 0
    run = Run(read_run_settings(folder / "run"), folder / "run")
    text = read_problems(run, str(folder / "problems.jsonl"))
    row = text.origins("document").tolist().index(names[1])
    logits_TxC = np.asarray(run.tapped(run.model.params, text.inputs_NxT[[row]])[0], np.float64)[0]
    counted = np.flatnonzero(text.weights_NxT[row])
    log_p_TxC = logits_TxC - np.log(np.exp(logits_TxC).sum(axis=1, keepdims=True))
    loss = -log_p_TxC[counted, text.labels_NxT[row, counted]].mean()
    assert own["loss_per_token"] == pytest.approx(loss, rel=1e-4)
    shown = stored(out.read_text())
    assert [one["verdict"] for one in shown["index"]] == [
        one["verdict"] for one in told["problems"]
    ]
    place, times, words_held = shown["queries-0"]["own"][0]["lists"][0][0]
    group = told["problems"][0]["replicas"][0]
    assert shown["examples-0"]["copies"][place] == group["copies"]
    assert times == pytest.approx(group["times"], rel=1e-3)
    assert words_held == "words 100 %"
    assert "".join(shown["examples-0"]["pieces"][place]) == group["text"]
    files = sorted((folder / "run/audit").rglob("*.npz"))
    times = [path.stat().st_mtime_ns for path in files]
    again = folder / "again.json"
    assert audit(folder, *words[:-1], f"--out={again}") == 0
    assert json.loads(again.read_text()) == told
    assert [path.stat().st_mtime_ns for path in files] == times


def test_a_weak_audit_says_so() -> None:
    """A control that its effect does not tell, lost sketches, and a model that guesses."""
    own = evidence(*unleaked(np.random.default_rng(2), 4))  # a loss of 5 / 3 nats a token
    strong = {"rows": 10, "flagged": 1.0, "by_effect": 0.9}
    assert warnings_of(strong, own, guess=2.0) == []
    lost = own._replace(verdict_Q=np.full(4, 2))
    said = warnings_of(strong | {"by_effect": 0.2}, lost, guess=1.0)
    for part, words in zip(said, ("worse than guessing", "only 20 %", "raise K"), strict=True):
        assert words in part
    assert "no control" in warnings_of({"rows": 0}, own, guess=2.0)[0]


def test_texts_can_not_change_the_page() -> None:
    problem = {"id": "<i>", "text": "<script>alert(1)</script>", "verdict": LEARNT, "p": 0.01,
               "overlap": 1.0, "loss_per_token": 1.0, "times": 9.0, "groups": 1, "replicas": [
                   {"copies": 2, "rows": [["a<b"]], "ids": ["x"], "text": "</pre><b>",
                    "overlap": 1.0, "times": 9.0}]}  # fmt: skip
    benchmark = {"verdict": "", "flagged": 1, "problems": 1, "learnt": 1, "present": 0,
                 "leaked_share": 1.0, "leaked_share_ci95": (0.5, 1.0),
                 "expected_false_alarms": 0.0}  # fmt: skip
    html = page({"benchmark": benchmark, "control": {"rows": 0}, "warnings": ["<w>"],
                 "problems": [problem],
                 "settings": {"train": 1, "clean": 1, "rate": 0.02}})  # fmt: skip
    assert html.count("<script") == html.count("</script>") == len(stored(html)) + 1
    for text in ("<i>", "<w>", "</pre><b>", "a<b"):
        assert text not in html


def test_bad_input_is_named_before_anything_is_measured(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "empty.jsonl").write_text('{"prompt": "a", "completion": " "}\n')
    clean, out = f"--clean={folder / 'clean.jsonl'}", f"--out={tmp_path / 'a.json'}"
    for words, says in (
        ((clean, f"--out={tmp_path / 'a.pdf'}"), "ends in .html or .json"),
        ((clean, out, f"--benchmark={tmp_path / 'asked.jsonl'}"), "no column 'completion'"),
        ((clean, out, f"--benchmark={tmp_path / 'empty.jsonl'}"), "is empty"),
        ((clean, out, f"--benchmark={tmp_path / 'none.jsonl'}"), "no file or folder"),
        ((clean, out, "--rate=.01"), "--clean has 24 problems, which can't tell a rate of 0.01"),
        ((f"--clean={folder / 'problems.jsonl'}", out), "are problems of the benchmark"),
        ((out, "--rate=.3"), "--clean has 2 problems"),
        ((clean, out, "--rate=0"), "rate=0.0"),
        ((clean, out, f"--workdir={tmp_path}"), "no run"),
    ):
        assert audit(folder, *words) == 2, says
        assert says in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()
