"""Rows that are chosen for tasks: budgets and bounds, and the command on real rows."""

import dataclasses
import json
import pathlib
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from stride_jax.applications.selection import POOLS, Pool, SelectSettings, choose, table
from stride_jax.applications.targets import likeness, targets_of, task_scores
from stride_jax.cli.main import main
from stride_jax.data.bible import packaged_verses
from stride_jax.examples import Examples
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import check_workdir, read_run_settings, run_settings
from stride_jax.self_influence import self_influence
from stride_jax.stride import direct
from tests.report_pages import stored


def pool_of(scores, keys=None, sources=None, sizes=None) -> Pool:
    scores = np.atleast_2d(np.asarray(scores, float))
    tasks, count = scores.shape
    names = np.array([str(i) for i in range(count)])
    return Pool(
        scores,
        tuple("abcdef"[:tasks]),
        np.ones(count, int) if sizes is None else np.asarray(sizes),
        names if keys is None else np.asarray(keys),
        np.full(count, "") if sources is None else np.asarray(sources),
    )


def rows(selection) -> list[int]:
    return [one.row for one in selection.chosen]


def test_pools() -> None:
    """The best of tasks, their mean, and tasks in turn; ties by row."""
    pool = pool_of([[5.0, 4.0, 0.0, 1.0], [0.0, 4.0, 2.0, 3.0]])
    chosen = {name: choose(pool, SelectSettings(4, pool=name)) for name in ("max", "mean", "turns")}
    assert rows(chosen["max"]) == [0, 1, 3, 2]
    assert rows(chosen["mean"]) == [1, 0, 3, 2]
    assert rows(chosen["turns"]) == [0, 1, 3, 2]
    assert [one.task for one in chosen["turns"].chosen] == ["a", "b", "a", "b"]
    assert [one.task for one in chosen["max"].chosen] == ["a", "a", "b", "b"]
    assert chosen["mean"].unhelpful == 0
    # Ranked by something else, rows keep their scores.
    joined = pool._replace(ranks_AxN=np.array([[0.0, 1.0, 0.0, 3.0], [2.0, 0.0, 0.0, 0.0]]))
    by_rank = {name: choose(joined, SelectSettings(2, pool=name)).chosen for name in POOLS}
    assert [(one.row, one.score, one.task) for one in by_rank["max"]] == [(3, 1, "a"), (0, 0, "b")]
    assert [(one.row, one.score) for one in by_rank["mean"]] == [(3, 2.0), (0, 2.5)]
    assert [(one.row, one.score) for one in by_rank["turns"]] == [(3, 1.0), (0, 0.0)]
    assert choose(pool_of([1.0, -1.0, 0.0]), SelectSettings(3)).unhelpful == 2


@given(st.data())
def test_budgets_and_bounds_hold(data) -> None:
    """Whatever the rows: no bound is exceeded, and nothing better would still have fitted."""
    count = data.draw(st.integers(1, 12))
    ints = lambda most: data.draw(st.lists(st.integers(0, most), min_size=count, max_size=count))  # noqa: E731
    scores, sizes = ints(20), [1 + size for size in ints(4)]
    keys, sources = ([str(v) for v in ints(most)] for most in (6, 2))
    settings = SelectSettings(
        data.draw(st.integers(1, 12)), data.draw(st.integers(0, 20)),
        cap=data.draw(st.sampled_from([0.3, 0.5, 1.0])), copies=data.draw(st.booleans()),
    )  # fmt: skip
    pool = pool_of(scores, keys, sources, sizes)
    own = choose(pool, settings)
    chosen = rows(own)
    cap = max(1, int(settings.cap * settings.examples))

    def fits(these: list[int]) -> bool:
        named = [sources[i] for i in these]
        return (
            len(set(these)) == len(these) <= settings.examples
            and (not settings.tokens or sum(sizes[i] for i in these) <= settings.tokens)
            and (settings.copies or len({keys[i] for i in these}) == len(these))
            and (settings.cap == 1 or all(named.count(n) <= cap for n in named))
        )

    assert fits(chosen)
    assert own.tokens == sum(sizes[i] for i in chosen)
    assert [scores[i] for i in chosen] == sorted((scores[i] for i in chosen), reverse=True)
    for i in set(range(count)) - set(chosen):
        ahead = [j for j in chosen if (-scores[j], j) < (-scores[i], i)]
        assert not fits([*ahead, i]) or len(ahead) == settings.examples


def test_bad_settings_are_named() -> None:
    for changes, says in (
        ({"examples": 0}, "give one of them"),
        ({"pool": "best"}, "pool='best' must be one of max, mean, turns"),
        ({"cap": 0.0}, "cap=0.0"),
        ({"cap": 0.5, "examples": 0, "tokens": 5}, "give their number too"),
    ):
        with pytest.raises(ValueError, match=says):
            SelectSettings(**changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of fine-tuning on halves of real verses of two books, up to its operators."""
    home = tmp_path_factory.mktemp("select")
    verses = [v for v in packaged_verses("kjv") if v.book in ("Genesis", "Psalms")]
    chosen = [v for v in verses if len(v.text.split()) >= 12]
    lines = []
    for verse in chosen[:60] + chosen[-60:]:
        words = verse.text.split()
        name = f"{verse.book} {verse.chapter}:{verse.verse}"
        lines.append({"id": name, "prompt": " ".join(words[:6]), "book": verse.book,
                      "completion": " " + " ".join(words[6:12])})  # fmt: skip
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    dev = [row | {"id": f"dev {row['id']}"} for row in lines[::10]]
    (home / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dev))
    gpt = {"depth": 1, "width": 32, "num_heads": 2, "num_kv_heads": 2, "sequence_len": 48}
    settings = run_settings(
        {
            "tuning": {"path": str(home / "rows.jsonl"), "num_query": 4, "num_calibration": 4,
                       "vocab_size": 400, "length": 48},
            "model": {"kind": "gpt", "gpt": gpt},
            "train": {"epochs": 6, "batch_size": 8, "optimizer": "adamw", "learning_rate": 3e-3},
            "num_checkpoints": 1,
            "index": {"taps": ("final",), "design": {"num_subsets": 24, "degree": 4},
                      "basis": {"rank": 16}, "output_rank": 32, "kept": 0},
            "read": {"exact": {"budget": None}},
        }
    )  # fmt: skip
    check_workdir(home / "run", settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*repeat another's content")
        assert Run(settings, home / "run").index
    return home


def select(folder: pathlib.Path, *more: str) -> int:
    return main(["select", f"--workdir={folder / 'run'}", *more])


def test_the_command(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Targets that are training rows choose these first; rows come back as they were given."""
    out = folder / "chosen.jsonl"
    words = (f"--targets={folder / 'dev.jsonl'}", "--by=book", "--source=book")
    assert select(folder, *words, "--examples=30", "--pool=turns", f"--out={out}") == 0
    said = capsys.readouterr().out
    assert "task 1 of 2, Genesis: 6 targets" in said
    assert "30 of 112 rows" in said
    chosen = [json.loads(line) for line in out.read_text().splitlines()]
    given = {r["id"]: r for r in map(json.loads, (folder / "rows.jsonl").read_text().splitlines())}
    for rank, row in enumerate(chosen, start=1):
        assert row.pop("rank") == rank
        assert {row.pop("task_chosen_for")} <= {"Genesis", "Psalms"}
        assert isinstance(row.pop("score"), float)
        assert row == given[row["id"]]
    held = {json.loads(line)["id"].removeprefix("dev ")
            for line in (folder / "dev.jsonl").read_text().splitlines()}  # fmt: skip
    run = Run(read_run_settings(folder / "run"), folder / "run")
    there = set(run.text.train.origins("document").tolist())
    found = held & {row["id"] for row in chosen}
    assert len(found) >= 0.7 * len(held & there), (found, held & there)
    told = json.loads(out.with_suffix(".report.json").read_text())
    assert {own["name"]: own["of"] for own in told["sources"]} == {
        book: sum(given[name]["book"] == book for name in there) for book in ("Genesis", "Psalms")
    }
    # The same command computes nothing again, and Parquet holds the same.
    table_out = folder / "chosen.parquet"
    assert select(folder, *words, "--examples=30", "--pool=turns", f"--out={table_out}") == 0
    assert "task 1" not in capsys.readouterr().out
    assert pd.read_parquet(table_out)["id"].tolist() == [row["id"] for row in chosen]
    html = folder / "chosen.html"
    capped = ("--examples=30", "--cap=.5", f"--out={out}", f"--html={html}")
    assert select(folder, *words, *capped) == 0
    shown, lines = stored(html.read_text()), out.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    lists = {own["id"]: own["lists"][0] for own in shown["queries-0"]["own"]}
    for task, entries in lists.items():
        own = [row for row in rows if row["task_chosen_for"] == task]
        assert [score for _, score, _ in entries] == pytest.approx(
            sorted((row["score"] for row in own), reverse=True), rel=1e-3
        )
        texts = {"".join(shown["examples-0"]["pieces"][i]).strip() for i, *_ in entries}
        assert texts == {(row["prompt"] + row["completion"]).strip() for row in own}
    told = json.loads(out.with_suffix(".report.json").read_text())
    assert [own["examples"] for own in told["sources"]] == [15, 15]
    assert told["examples"] == len(out.read_text().splitlines()) == 30
    assert select(folder, *words, "--examples=112", "--relative", f"--out={out}") == 0
    assert "task 1" not in capsys.readouterr().out, "only divided anew"
    text_ids = run.text.train.origins("document").tolist()
    length = dict(zip(text_ids, np.sqrt(self_influence(
        run.tapped, run.model.params, run.index, run.train).scores_N), strict=True))  # fmt: skip
    scores_AxN, _ = task_scores(run, targets_of(run, str(folder / "dev.jsonl"), "book"))
    best = dict(zip(text_ids, scores_AxN.max(axis=0), strict=True))
    for row in map(json.loads, out.read_text().splitlines()):
        assert row["score"] * length[row["id"]] == pytest.approx(best[row["id"]], rel=1e-3)
    # With a budget of all rows one pass over them says the same as a question for each task.
    targets = targets_of(run, str(folder / "dev.jsonl"), "book")
    read = dataclasses.replace(
        run.settings.read,
        exact=dataclasses.replace(run.settings.read.exact, budget=len(run.train)),
    )
    whole = Run(dataclasses.replace(run.settings, read=read), folder / "run")
    for each in (False, True):
        own, says = task_scores(whole, targets, each=each)
        other, _ = task_scores(run, targets, each=each)
        np.testing.assert_allclose(own, other, atol=2e-3 * np.abs(own).max())
        assert says == ["found", "found"]
    scores_QxN = direct(
        run.tapped, run.model.params, run.index, run.train, targets.examples
    ).scores_QxN
    sizes = np.sqrt((scores_QxN**2).mean(axis=1, keepdims=True))
    for a in range(2):
        largest = (scores_QxN / sizes)[targets.task_Q == a].max(axis=0)
        np.testing.assert_allclose(own[a], largest, rtol=1e-5)


def test_words_rank_rows_too(folder: pathlib.Path) -> None:
    """Reciprocal ranks of scores and of TF-IDF cosines, worked out from the texts' token ids."""
    out = folder / "joined.jsonl"
    words = (f"--targets={folder / 'dev.jsonl'}", "--by=book", "--words")
    assert select(folder, *words, "--examples=20", f"--out={out}") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    run = Run(read_run_settings(folder / "run"), folder / "run")
    targets = targets_of(run, str(folder / "dev.jsonl"), "book")

    def texts(part: Examples) -> list[str]:
        ends = [int((own >= 0).nonzero()[0].max()) for own in part.labels]
        both = zip(part.inputs, part.labels, ends, strict=True)
        return [" ".join(map(str, [*own[: n + 1], label[n]])) for own, label, n in both]

    vectors = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), sublinear_tf=True)
    train_NxV = vectors.fit_transform(texts(run.train))
    alike_QxN = (vectors.transform(texts(targets.examples)) @ train_NxV.T).toarray()
    alike_AxN = np.stack([alike_QxN[targets.task_Q == a].mean(axis=0) for a in (0, 1)])
    np.testing.assert_allclose(likeness(run, targets), alike_AxN, atol=1e-5)
    scores_AxN, _ = task_scores(run, targets)
    ranks = [
        scipy.stats.rankdata(-own, method="ordinal", axis=1) for own in (scores_AxN, alike_AxN)
    ]
    joined_AxN = 1 / (59 + ranks[0]) + 1 / (59 + ranks[1])
    best = np.argsort(-joined_AxN.max(axis=0), kind="stable")[:20]
    names = run.text.train.origins("document")
    assert [row["id"] for row in rows] == names[best].tolist()
    assert [row["score"] for row in rows] == pytest.approx(
        scores_AxN[joined_AxN.argmax(axis=0)[best], best].tolist(), rel=1e-5
    )


def test_bad_input_of_the_command(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    out = f"--out={tmp_path / 'a.jsonl'}"
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n')
    for words, says in (
        ((f"--out={tmp_path / 'a.csv'}",), "ends in .jsonl or .parquet"),
        ((out, "--cap=.5"), "name their column by --source"),
        ((out, f"--targets={tmp_path / 'bad.jsonl'}"), "line 1 has no column 'prompt'"),
        ((out, f"--targets={tmp_path / 'none.jsonl'}"), "no file or folder"),
        ((out, "--by=author"), "no such column: use one of document, book"),
        ((out, "--examples=0"), "give one of them"),
    ):
        assert select(folder, *words) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()


def test_table_counts_everything_once() -> None:
    pool = pool_of([3.0, 2.0, 1.0], keys=["k", "k", "l"], sources=["x", "y", "x"], sizes=[5, 6, 7])
    own = choose(pool, SelectSettings(3))
    told = table(own, pool)
    assert told["examples"] == 2
    assert told["tokens"] == 12
    assert told["passed_over"] == {"copy": 1}
    assert told["sources"] == [{"name": "x", "examples": 2, "tokens": 12, "of": 2}]
