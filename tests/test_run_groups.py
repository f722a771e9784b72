"""Groups of a run's examples, and what may be asked of it by the command line."""

import contextlib
import io
import json

import numpy as np
import pytest

import stride_jax
from stride_jax.applications import question as questions
from stride_jax.attribution import Attribution
from stride_jax.cli import ask as ask_command
from stride_jax.cli.main import main
from stride_jax.data import TextSettings
from stride_jax.data.documents import Source
from stride_jax.data.packing import Spans
from stride_jax.data.text_examples import TextExamples
from stride_jax.data.tokens import train_tokenizer
from stride_jax.examples import Examples
from stride_jax.run import grouping
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import RunSettings, read_run_settings
from stride_jax.runtime.settings import build

RUN = ["run", "--config=configs/bible_gpt.py:runlocal", "--config.unit=None", "--config.bank=None"]


# Little is compiled.
SMALL = (
    "index.taps=final", "index.output_rank=0", "read.measure.group=8", "read.exact.budget=20",
    "num_checkpoints=1", "train.batch_size=64", "text.num_calibration=8", "text.max_train=80",
)  # fmt: skip
WORDS = (
    "and",
    "god",
    "said",
    "let",
    "there",
    "be",
    "light",
    "made",
    "day",
    "night",
    "seas",
    "good",
)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The folder of a run whose sequences are grouped by author, and what the run printed."""
    folder, out = tmp_path_factory.mktemp("run"), io.StringIO()
    draw = np.random.default_rng(0)
    rows = [
        {"text": " ".join(draw.permutation(WORDS)), "author": None if i == 7 else f"a {i % 13}"}
        for i in range(150)
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = (
        "text.name=files", f"text.path={folder / 'mine.jsonl'}", "text.books=()",
        "text.vocab_size=300", "groups=author",
    )  # fmt: skip
    changes = [f"--config.{change}" for change in (*SMALL, *files)]
    with contextlib.redirect_stdout(out):
        assert main([*RUN, f"--workdir={folder / 'out'}", *changes]) == 0
    return folder / "out", out.getvalue()


@pytest.fixture(scope="module")
def asked(printed):
    """Ask by the command line, and read its JSON; the run is opened once."""
    opened, patch = ask_command.open_run(printed[0]), pytest.MonkeyPatch()
    patch.setattr(ask_command, "open_run", lambda workdir: opened)

    def ask(*words, prompt="and god said", completion=" let there", text=False):
        flags = [f"--workdir={printed[0]}", f"--prompt={prompt}", f"--completion={completion}"]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main(["ask", *flags, "--top=300", *words, *([] if text else ["--json"])]) == 0
        return out.getvalue() if text else json.loads(out.getvalue())

    yield ask
    patch.undo()


def scores(answer):
    """Scores by id, and those of groups by name."""
    passages = {p["id"]: p["score"] for p in (*answer["proponents"], *answer["opponents"])}
    return passages, {group["name"]: group["score"] for group in answer["groups"]}


def close(a, b, tolerance=1e-4):
    assert set(a) == set(b)
    first, second = (np.array([own[name] for name in sorted(own)]) for own in (a, b))
    np.testing.assert_allclose(first, second, rtol=0, atol=tolerance * np.abs(second).max())


def test_a_runs_groups_are_those_of_its_exported_index(printed):
    workdir, out = printed
    run = Run(read_run_settings(workdir), workdir)
    text, groups = run.text.train, run.index.groups
    assert groups is not None
    # By hand, token by token.
    names = []
    for row in range(len(text)):
        spans, tokens = text.spans.of(row), {}
        for document, start, stop in zip(
            spans.document_P, spans.start_P, spans.stop_P, strict=True
        ):
            author = text.sources[document].metadata["author"]
            tokens[author] = tokens.get(author, 0) + int(stop - start)
        names.append(tokens)
    assert run.groups is not None
    place_N = run.groups[1].place_N
    for own, place in zip(names, place_N.tolist(), strict=True):
        author = None if place < 0 else str(groups.names[place])
        assert own[author] == max(own.values())
    assert len(text) == 80
    assert groups.sizes_G.tolist() == np.bincount(place_N[place_N >= 0]).tolist()
    path = workdir / "index.npz"
    run.index.save(path)
    query = run.query
    expected = stride_jax.attribute_groups(
        run.tapped, run.model.params, stride_jax.Index.load(path), query.inputs, query.labels,
        run.settings.read.measure, ids=query.ids,
    )  # fmt: skip
    found = Attribution.load(workdir / "groups.parquet")
    assert found.train_ids.tolist() == expected.train_ids.tolist() == groups.names.tolist()
    assert len(groups) % 8, "their number need not suit the devices"
    largest = np.abs(expected.scores_QxN).max()
    np.testing.assert_allclose(found.scores_QxN, expected.scores_QxN, atol=1e-5 * largest)
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["groups"]["by"], summary["groups"]["count"]) == ("author", len(groups))
    rows = {row["name"]: row for row in summary["groups"]["rows"]}
    for i, name in enumerate(groups.names.tolist()):
        assert rows[name]["examples"] == groups.sizes_G[i]
        own = expected.scores_QxN[:, i]
        assert abs(rows[name]["mean"] - own.mean()) < 1e-5 * largest
    assert sum(row["first"] for row in rows.values()) == pytest.approx(1)
    assert summary["products"]["groups"] == "groups.parquet"
    assert f"without (of {len(groups)} by author)" in out
    assert "groups.parquet" in out.splitlines()[-2]


def test_other_groups_make_other_operators_of_the_same_model(printed):
    workdir, _ = printed
    settings = read_run_settings(workdir)
    same, other, none = (
        Run(build(RunSettings, {"groups": by}, default=settings), workdir).products
        for by in ("author", "document", "")
    )
    for stage in ("operators", "groups", "measurements"):
        assert len({same.key(stage), other.key(stage), none.key(stage)}) == 3
        assert list((workdir / stage).iterdir()) == list(
            (workdir / stage).glob(f"{same.key(stage)}*")
        )
    assert same.key("model") == other.key("model") == none.key("model")


def test_a_contrast_turned_round_changes_its_sign(asked):
    there = asked("--against= made")
    back = asked("--against= let there", completion=" made")
    for one, other in zip(scores(there), scores(back), strict=True):
        close(one, {name: -score for name, score in other.items()})
        assert len(one) > 1
    assert there["meaning"].startswith("what speaks for ' let there' and against ' made': ")
    alone, made = (asked(completion=text) for text in (" let there", " made"))
    both, one, other = (scores(answer)[1] for answer in (there, alone, made))
    close(both, {name: one[name] - other[name] for name in one})
    old = asked("--contrast= made")
    assert scores(old) == scores(there)


def test_chosen_tokens_add_up_to_the_whole(asked):
    whole, first, rest = asked(), asked("--tokens=:1"), asked("--tokens=1:")
    both, one, other = (scores(answer)[1] for answer in (whole, first, rest))
    close(both, {name: one[name] + other[name] for name in one})
    assert whole["loss"] == pytest.approx(first["loss"] + rest["loss"], rel=1e-5)
    named = asked("--tokens=let,there")
    assert scores(named) == scores(whole)
    assert named["meaning"].endswith("would fall without the text, tokens 'let,there' alone")


def test_prompts_together_are_their_mean(asked, monkeypatch, printed):
    alone = [asked(prompt=prompt) for prompt in ("and god said", "made")]
    monkeypatch.setattr("sys.stdin", io.StringIO("and god said\nmade\n"))
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        words = [f"--workdir={printed[0]}", "--completion= let there", "--top=300", "--together"]
        assert main(["ask", *words, "--json"]) == 0
    whole = json.loads(out.getvalue())
    assert whole["prompt"] == ["and god said", "made"]
    mean, one, other = (scores(answer)[1] for answer in (whole, *alone))
    close(mean, {name: (one[name] + other[name]) / 2 for name in one})
    assert whole["loss"] == pytest.approx(np.mean([answer["loss"] for answer in alone]), rel=1e-5)


def test_an_answer_says_what_was_asked(asked):
    margin = asked("--question=margin")
    assert margin["question"] == "margin"
    assert margin["meaning"] == (
        "by how much the log odds of ' let there' would fall without the text"
    )
    loss = scores(asked())[1]
    assert any(
        abs(score - loss[name]) > 1e-3 * abs(score) for name, score in scores(margin)[1].items()
    )
    said = " ".join(asked("--top=1", text=True).split())
    assert "scores: by how much the log-probability of ' let there' would fall without" in said
    best = max(loss, key=loss.__getitem__)
    assert f"without each of these groups it would fall by {loss[best]:+.4f} {best} " in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--question=odds"], "invalid choice: 'odds'"),
        (["--tokens=war"], "'war' is not in ' let there'"),
        (["--tokens=7:"], "choose none of the tokens of ' let there' (0 "),
        (["--tokens=let", "--against= made"], "choose none of the tokens of ' made'"),
        (["--against= let there"], "against is the completion itself"),
        (["--against="], "against is empty"),
        (["--against= a", "--contrast= b"], "--contrast is another name of --against"),
    ],
)
def test_questions_that_make_no_sense_are_refused(printed, asked, capsys, words, message):
    flags = [f"--workdir={printed[0]}", "--prompt=and god said", "--completion= let there"]
    assert main(["ask", *flags, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["groups=label"], "grouped by document, translation, book, chapter; leave it empty"),
        (["groups=author"], "groups='author': examples of this run can be grouped by document"),
        (["groups=book", "index.fit=joint"], "joint training has no moments"),
    ],
)
def test_groups_that_data_lack_are_refused_before_any_work(tmp_path, capsys, words, message):
    changes = [f"--config.{word}" for word in words]
    assert main([*RUN, *changes, f"--workdir={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_own_files_are_grouped_by_their_columns(printed, tmp_path, capsys):
    settings = json.loads((printed[0] / "settings.json").read_text())
    (tmp_path / "same.json").write_text(json.dumps(settings | {"groups": "book"}))
    words = [f"--config={tmp_path / 'same.json'}", f"--workdir={tmp_path / 'out'}"]
    assert main(["run", *words]) == 2
    assert "these texts have no such column: use one of document, author" in capsys.readouterr().err
    assert not (tmp_path / "out/model").exists(), "before anything is trained"


def test_a_sequence_is_of_what_most_of_its_tokens_are_of():
    sources = (
        Source("d", "d", metadata={"of": 1}),
        Source("e", "e"),
        Source("f", "f", ("",), {"of": 2}),
    )
    rows, starts, stops = [0, 0, 0, 1, 1, 2], [0, 2, 3, 0, 3, 0], [2, 3, 6, 3, 4, 4]
    columns = (rows, starts, stops, [0, 1, 2, 1, 0, 0], [0] * 6)
    spans = Spans(*(np.array(column, np.int32) for column in columns))
    zeros = np.zeros((3, 6), np.int32)
    text = TextExamples(
        zeros, zeros, zeros.astype(np.float32), np.array(list("abc")), spans, sources
    )
    assert text.origins("of").tolist() == ["2", "", "1"]
    assert text.origins("document").tolist() == ["f", "e", "d"]
    with pytest.raises(ValueError, match="use one of document, of"):
        text.origins("author")


def test_classes_are_groups_and_other_labels_are_none():
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    names, labels = grouping.named("label", Examples(x, np.array([3, 1, 3, 3])), None)
    assert (names.tolist(), labels.place_N.tolist()) == (["3", "1"], [0, 1, 0, 0])
    with pytest.raises(ValueError, match=r"groups='document': .* grouped by label"):
        RunSettings(groups="document")
    assert RunSettings(groups="author", text=TextSettings(name="files", path="x")).groups


def test_words_choose_every_token_that_holds_a_part_of_them():
    tokenizer = train_tokenizer(["in the beginning was the wörd"] * 20, 262)
    text = " the wörd was"
    ids, starts = next(tokenizer.encode_all([text]))
    counted = questions.chosen(tokenizer, text, "wörd")
    inside = (starts >= text.index("w")) & (starts < text.index(" was"))
    assert counted[inside].all()
    assert "wörd" in tokenizer.decode(ids[counted])
    assert not counted[starts >= text.index("was")].any()
