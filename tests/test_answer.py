"""A language model from text to an answer, by the entry points."""

import json

import numpy as np
import pytest

from stride_jax import direct, reading
from stride_jax.applications.inquiry import inquire
from stride_jax.applications.live.answers import answering
from stride_jax.applications.live.bodies import question_of
from stride_jax.applications.question import question
from stride_jax.applications.report.queries import of_questions, of_run
from stride_jax.applications.report.tokens import token_scores
from stride_jax.attribution import Attribution
from stride_jax.data.tokens import train_tokenizer
from stride_jax.run.opened import open_run
from stride_jax.run.pipeline import Run
from stride_jax.run.settings import read_run_settings
from stride_jax.runtime.files import read_arrays, write_arrays
from stride_jax.unit import Unit, words
from tests.report_pages import stored


def test_a_language_model_from_text_to_an_answer(tmp_path, call):
    # Banks and baselines are those of test_pipeline.
    words = ("--config=configs/bible_gpt.py:runlocal", "--config.bank=None")
    done = call("run", *words, f"--workdir={tmp_path}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["num_train"] == 200
    assert summary["settings"]["text"]["length"] == 16
    assert not summary["methods"]

    def ask(*arguments):
        return call("ask", f"--workdir={tmp_path}", *arguments)

    done = ask("--prompt=And God", "--completion= said", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["completion"] == " said"
    assert not answer["generated"]
    for sign, name in ((1, "proponents"), (-1, "opponents")):
        scores = [sign * passage["score"] for passage in answer[name]]
        assert scores == sorted(scores, reverse=True)
        assert all(score > 0 for score in scores)
        for passage in answer[name]:
            assert passage["references"][0].startswith("kjv Genesis")
            assert len(passage["pieces"]) == len(passage["shares"]) <= 16
            assert passage["found_by"] in ("sketch", "estimate")
    assert answer["support"] >= len(answer["proponents"]) + len(answer["opponents"])
    worth = answer["diagnostics"]
    assert {"held_out_r2", "relative_gap", "signal", "explained", "agreement"} <= set(worth)
    assert worth["exact"] == 50, "the budget"
    best = max(worth["explained"], worth["agreement"])
    assert answer["verdict"] == reading.VERDICTS[0 if best >= 0.9 else 1 if best >= 0.5 else 2]
    assert answer["scores"] == summary["scores"]
    _check_unit(tmp_path, summary, answer, ask)
    _check_report(tmp_path, call)
    _check_asked_pages(tmp_path, answer, ask)
    done = ask("--prompt=And God", "--contrast= said")
    assert done.returncode == 0, done.stderr
    assert "rather than:  said" in done.stdout
    said = " ".join(done.stdout.split())
    assert any(f"{verdict} loss " in said for verdict in reading.VERDICTS)
    for number in ("held out r2", "relative gap", "signal", "explained", "agreement", "exact 50"):
        assert number in said
    for prompt, message in (("", "the prompt is empty"), ("And God said " * 9, "shorten them")):
        done = ask(f"--prompt={prompt}")
        assert done.returncode == 2
        assert message in done.stderr
    done = call("ask", f"--workdir={tmp_path / 'none'}", "--prompt=And")
    assert done.returncode == 2
    assert "holds no run" in done.stderr


def _check_unit(workdir, summary, answer, ask):
    """The run's own unit is in its files; a unit that is known doubles the same answer's scores."""
    unit = Unit(summary["unit"]["slope"], tuple(summary["unit"]["ci95"]))
    path = workdir / f"{summary['products']['unit']}"
    stored = read_arrays(path)
    assert stored["unit"].tolist() == [unit.slope, *unit.ci95]
    assert summary["scores"] == words(unit)
    attribution = Attribution.load(workdir / "attribution.parquet")
    assert attribution.unit == unit
    assert f"; {words(unit)})" in repr(attribution)
    assert answer["scores"] == words(unit)
    write_arrays(path, **stored | {"unit": np.array([2.0, 1.5, 2.5])})
    done = ask("--prompt=And God", "--completion= said", "--json")
    doubled = json.loads(done.stdout)
    assert doubled["scores"] == "nats, unit 2 [1.5, 2.5]"
    for name in ("proponents", "opponents"):
        before, after = ([one["score"] for one in given[name]] for given in (answer, doubled))
        np.testing.assert_allclose(after, np.multiply(before, 2 / unit.factor), rtol=1e-5)
    write_arrays(path, **stored)


def test_a_question_counts_its_completion_alone():
    tokenizer = train_tokenizer(["in the beginning was the word"] * 20, 262)
    inputs, labels = question(tokenizer, "in the", " word", 12)
    said = labels[0] >= 0
    assert tokenizer.decode(labels[0, said]) == " word"
    before = tokenizer.encode("in the")
    assert inputs[0, 0] == tokenizer.bos_id
    np.testing.assert_array_equal(inputs[0, 1 : 1 + len(before)], before)
    assert said.argmax() == len(before), "the last token of the prompt predicts the first"
    with pytest.raises(ValueError, match="completion is empty"):
        question(tokenizer, "in", "", 12)


def _check_report(folder, call):
    """Shares of tokens add up to exact scores; the page has them as letters."""
    done = call("report", f"--workdir={folder}", "--tokens=2", "--top=3", "--queries=4")
    assert done.returncode == 0, done.stderr
    told = stored((folder / "report.html").read_text())
    run = Run(read_run_settings(folder), folder)
    own = told["queries-0"]
    row = own["own"][0]["row"]
    asked = of_run(run, np.array([row])).asked[0]
    scores = token_scores(run, asked, np.array([3, 50]))
    exact = direct(
        run.tapped, run.model.params, run.index, run.train, run.query.take(np.array([row]))
    ).scores_QxN  # fmt: skip
    np.testing.assert_allclose(scores.sum(axis=(1, 2)), exact[0, [3, 50]], rtol=1e-4)
    places = own["own"][0]["tokens"]
    assert 0 < len(places) <= 4
    ids = told["examples-0"]["id"]
    for place, letters in places.items():
        example = own["own"][0]["lists"][0][int(place)][0]
        pieces = told["examples-0"]["pieces"][example]
        assert len(letters) == len(own["texts"]["pieces"][0]) * len(pieces)
        assert {"s", "a"} & set(letters)
        assert ids[example] in run.train.ids


def _check_asked_pages(folder, answer, ask):
    """A server's answer is `ask`'s; a page of questions has the same examples and scores."""
    run = open_run(folder)
    reply = answering(run)
    asked = {"prompt": "And God", "completion": " said"}
    told = reply(question_of(run, asked))
    assert json.loads(json.dumps(told)).keys() == answer.keys()
    for name in ("proponents", "opponents"):
        assert [one["id"] for one in told[name]] == [one["id"] for one in answer[name]]
        scores = [[one["score"] for one in given[name]] for given in (told, answer)]
        np.testing.assert_allclose(*scores, rtol=1e-5)
    shown = reply(question_of(run, asked | {"form": "page"}))
    ids = [shown["examples"]["id"][i] for i, *_ in shown["queries"][0]["lists"][0]]
    expected = [one["id"] for one in [*answer["proponents"], *answer["opponents"][::-1]]]
    assert ids == expected
    assert "".join(shown["texts"]["pieces"][0]) == "And God said"
    assert shown["texts"]["counts"][0].endswith("1")
    assert list(shown["queries"][0]["tokens"]) == list(range(len(ids)))
    # Held against another one, and of two prompts at once.
    against = inquire(run, ["And God", "In the"], " said", " was")
    parts = of_questions(run, [against]).asked[0]
    scores = token_scores(run, parts, np.array([3, 50])).sum(axis=(1, 2))
    own = [direct(run.tapped, run.model.params, run.index, run.train, one).scores_QxN.mean(axis=0)
           for one in against.examples]  # fmt: skip
    np.testing.assert_allclose(scores, (own[0] - own[1])[[3, 50]], rtol=1e-3, atol=1e-6)
    page = folder / "asked.html"
    done = ask("--prompt=And God", "--completion= said", "--contrast= was", f"--html={page}")
    assert done.returncode == 0, done.stderr
    told = stored(page.read_text())
    assert told["queries-0"]["own"][0]["against"] == " was"
    assert told["index"][0]["text"] == "And God said"
    done = ask("--prompt=And", "--html=none/asked.html")
    assert done.returncode == 2
    assert "there is no folder none: make it first" in done.stderr
