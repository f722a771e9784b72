"""The page of a run: what stands in it, that texts stay text, and how it works in a browser.

Tests in a browser want Debian's chromium and `pip install playwright`; `make test-page` has both.
"""

import contextlib
import csv
import io
import json
import pathlib
import re
import shutil
import threading
import types

import numpy as np
import pytest
import scipy.sparse

from benchmarks import leaderboard_page
from stride_jax.applications.audit_page import page as audit_page
from stride_jax.applications.live.desk import Desk
from stride_jax.applications.report import content as contents
from stride_jax.applications.report import documents as around
from stride_jax.applications.report.documents import documents
from stride_jax.applications.report.page import page
from stride_jax.attribution import Attribution
from stride_jax.data.documents import Document, Source
from stride_jax.data.packing import pack_stream, tokenise
from stride_jax.data.text_examples import named
from stride_jax.data.tokens import train_tokenizer
from tests.report_pages import stored
from tests.serving import serving

HOSTILE = "</script><script>alert(1)</script><!-- <b>\u202e\u0007\u0000\u2028 שלום \ud800 &amp;"


def small(kind="text", queries=60, long=0):
    """A report's content made by hand: every query has three proponents and two opponents."""
    count = 40
    examples = {
        "id": [f"t{i}" for i in range(count)], "row": list(range(count)), "copies": [1, 3] * 20,
    }  # fmt: skip
    texts = {}
    if kind == "text":
        pieces = [["In", " the", " beginning", f" {HOSTILE}", f" word{i}"] for i in range(count)]
        pieces[1].append(" x" * long)
        own = {"counts": "00111", "source": [HOSTILE], "documents": []}
        reach = [[max(i - 1, 0), min(i + 2, count - 1), i > 1, False] for i in range(count)]
        examples |= {"pieces": pieces, "reach": reach} | {n: [v] * count for n, v in own.items()}
        asked = [["And", " in", " the", " beginning", f" q{i}"] for i in range(queries)]
        texts = {"pieces": asked} | {n: [v] * queries for n, v in own.items()}
    else:
        rng = np.random.default_rng(0)
        examples |= {"label": [i % 3 for i in range(count)],
                     "values": rng.normal(size=(count, 15)).round(2).tolist()}  # fmt: skip
        texts = {"values": rng.normal(size=(queries, 15)).round(2).tolist(), "spread": [1.0] * 15}
    made = []
    for q in range(queries):
        entries = [[(q + i) % count, s, "kept"] for i, s in enumerate((0.5, 0.3, 0.1, -0.1, -0.4))]
        wrong = q % 4 == 0
        made.append({
            "id": f"q{q}", "row": q, "loss": q / 10, "verdict": "found" if q % 5 else "not_found",
            "worth": {"explained": 0.9, "exact": 4183}, "histogram": [-0.4, 0.5, [1, 2, 2]],
            "shares": [[1, 0.4], [5, 1.0]], "lists": [entries, entries[::-1]],
            "tokens": {"0": "j" * 5 + "jjjsa" * 4} if kind == "text" else {},
            **({"losses": [None, None, 1.0, 2.0, 0.5], "tokens_right": 0.5} if kind == "text" else
               {"label": q % 3, "guess": (q + wrong) % 3, "p": 0.5, "p_guess": 0.6,
                "right": not wrong}),
        })  # fmt: skip
    about = {
        "kind": kind, "methods": ["stride", "other"], "classes": kind != "text", "unit": "nats",
        "fine": ["found"],
        "objective": "cross_entropy", "scores": "nats", "train": count, "queries": queries,
        "top": 5, "versions": {"jax": "1"}, "summary": {"settings": {"a": HOSTILE}},
    }  # fmt: skip
    suspects = [] if kind == "text" else [[3, 1.5, 2.0, 1], [4, 1.0, 0.1, 1]]
    said = {i: f" {HOSTILE} of {i}." for i in range(count)} if kind == "text" else {}
    return {"about": about, "examples": examples, "queries": made, "texts": texts,
            "documents": said, "suspects": suspects}  # fmt: skip


def test_texts_of_data_stay_text():
    html = page(small(), HOSTILE)
    assert html.count("<script") == html.count("</script>") == len(stored(html)) + 1
    assert "<b>" not in html
    assert html.encode()  # halves of characters are gone
    told = stored(html)
    assert told["examples-0"]["pieces"][0][3] == f" {HOSTILE}".replace("\ud800", "?")
    assert told["about"]["parts"] == {"queries": 25, "examples": 128, "sheet": 256}
    assert len(told["index"]) == 60
    assert [len(told[f"queries-{i}"]["own"]) for i in range(3)] == [25, 25, 10]
    hosts = set(re.findall(r"https?://[^\s\"]+", html))
    assert hosts == {"http://www.w3.org/2000/svg"}, "it asks no host"


def test_a_text_is_shown_in_its_documents(monkeypatch):
    words = (pathlib.Path(__file__).parents[1] / "LICENSE").read_text().split()
    texts = [" ".join(words[a:b]) for a, b in ((0, 20), (20, 700), (700, 730), (730, 1500))]
    written = [Document(Source(f"d{i}", ""), text) for i, text in enumerate(texts)]
    tokenizer = train_tokenizer(texts, 300)
    packed = pack_stream(tokenise(written, tokenizer), 32, tokenizer.bos_id)
    split = named({"train": packed}, tuple(one.source for one in written))["train"]

    class Ran:
        corpus = types.SimpleNamespace(train=split, tokenizer=tokenizer)

    run = Ran()
    spans = split.spans
    rows = np.array([0, *(np.median(spans.row_P[spans.document_P == d]) for d in (1, 2, 3))], int)
    told = documents(run, rows)

    def whole(i):
        first, last, *_ = told.reach[i]
        return "".join(told.said[row] for row in range(first, last + 1))

    assert [texts[d] in whole(i) for i, d in ((1, 1), (2, 2), (3, 3))] == [True] * 3
    assert texts[3] not in whole(1)
    assert [one[2:] for one in told.reach] == [(False, False)] * 4
    monkeypatch.setattr(around, "_MOST", 200)
    less = documents(run, rows)
    assert less.reach[1][2:] == (True, True), "a document that goes on says so"
    assert sum(map(len, less.said.values())) < 2000
    assert documents(run, rows[:0]) == ([], {})


def test_histogram_and_shares_are_those_of_all_scores():
    values = np.random.default_rng(0).standard_t(2, 300)
    low, high, counts = contents.histogram(values)
    assert sum(counts) == 300
    assert (low, high) == (float(f"{values.min():.4g}"), float(f"{values.max():.4g}"))
    told = dict(contents.shares(values, 300))
    ordered = np.sort(np.abs(values))[::-1]
    assert told[10] == pytest.approx(ordered[:10].sum() / ordered.sum(), abs=1e-4)
    assert told[300] == 1
    assert contents.histogram(np.zeros(4)) == [0.0, 0.0, []]
    assert contents.shares(np.zeros(4), 4) == []


@contextlib.contextmanager
def browser(address, **details):
    """A page in a browser, what it complains of, and whom it asks."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    said = []
    with playwright.sync_playwright() as p:
        own = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = own.new_page(**details)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: said.append(f"asks {request.url}")
               if not request.url.startswith((address, "blob:", "data:")) else None)  # fmt: skip
        tab.goto(address)
        yield tab, said
        own.close()


@contextlib.contextmanager
def opened(html, tmp_path, **details):
    """A page from disk, which may neither complain nor ask anyone for anything."""
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    with browser(f"file://{file}", **details) as (tab, said):
        yield tab
        assert not said


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_of_texts_is_used(tmp_path, width):
    html = page(small(long=5_000_000), "Texts")
    with opened(html, tmp_path, viewport={"width": width, "height": 800}) as tab:
        assert tab.locator("#count").inner_text() == "60 of 60 queries"
        assert tab.locator("#rows .row").count() < 60, "the list is drawn as far as it is seen"
        # Words of the data are text, a character that turns the line is named.
        first = tab.locator(".help .text").first
        assert "</script><script>alert(1)</script>" in first.inner_text()
        assert "⟨U+202E⟩" in first.inner_text()
        # What the chosen token says of each token of a proponent; clicked again, of all.
        shades = lambda: first.locator(".tok").evaluate_all(  # noqa: E731
            "all => all.map(each => each.style.background)"
        )
        assert [bool(v) for v in shades()] == [False, False, False, True, True]
        tab.locator("#asked button.tok").nth(0).click()
        assert tab.locator("#asked button.tok[aria-pressed=true]").inner_text().strip() == "the"
        assert "help" in shades()[3]
        assert "hurt" in shades()[4]
        # A word that is clicked is marked wherever it stands.
        first.locator(".tok").nth(2).click()
        marked = tab.locator(".tok.marked").all_inner_texts()
        assert {word.strip() for word in marked} == {"beginning"}
        assert len(marked) == 5, "in the query and in the texts that are not cut"
        assert "shared" in first.locator(".tok").nth(2).get_attribute("class")
        # A text's document opens around it.
        tab.get_by_role("button", name="document").nth(2).click()
        said = tab.locator(".text.whole").inner_text()
        assert [f"of {i}." in said for i in range(6)] == [False, True, False, True, True, False]
        assert said.index("of 1.") < said.index("word2") < said.index("of 3.")
        tab.get_by_role("button", name="less").click()
        assert tab.locator(".around").count() == 0
        # Ten megabytes of text are cut, and nothing hangs.
        tab.locator("#search").fill("q59")
        assert tab.locator("#count").inner_text() == "1 of 60 queries"
        tab.locator(".row").click()
        assert tab.url.endswith("#query=q59")


@pytest.mark.slow
def test_a_page_of_classes_is_used(tmp_path):
    with opened(page(small("table"), "Table"), tmp_path) as tab:
        tab.locator("#state").select_option("wrong")
        assert tab.locator("#count").inner_text() == "15 of 60 queries"
        tab.locator("#class").select_option("0")
        assert tab.locator("#count").inner_text() == "5 of 60 queries"
        tab.locator("#order").select_option("loss")
        tab.locator(".row").first.click()
        assert tab.url.endswith("#query=q48")
        assert "column" in tab.locator(".cells .differs").first.inner_text()
        worth = tab.locator("#detail .figures").last.inner_text().split("\n")
        assert worth == ["explained", "0.9", "exact", "4183"]
        tab.locator("#list").press("ArrowDown")
        assert tab.url.endswith("#query=q36")
        # Another method beside the first.
        assert tab.locator(".sides").count() == 1
        tab.get_by_role("button", name="other").click()
        assert tab.locator(".sides").count() == 2
        with tab.expect_download() as csv_file:
            tab.locator("#csv").click()
        rows = list(csv.DictReader(io.StringIO(csv_file.value.path().read_text())))
        assert len(rows) == 5 * 2 * 5, "filtered queries, both methods"
        first = [row for row in rows if row["query_id"] == "q36" and row["method"] == "stride"]
        assert [row["rank"] for row in first] == ["1", "2", "3", "-1", "-2"]
        assert [float(row["score"]) for row in first] == [0.5, 0.3, 0.1, -0.4, -0.1]
        with tab.expect_download() as lines:
            tab.locator("#jsonl").click()
        told = [json.loads(line) for line in lines.value.path().read_text().splitlines()]
        assert [one["query"]["id"] for one in told[::2]] == ["q48", "q36", "q24", "q12", "q0"]
        assert told[2]["proponents"][0]["id"] == f"t{36 % 40}"
        # A link opens the query it names, another page too.
        tab.goto(tab.url.split("#")[0] + "#query=q7")
        tab.reload()
        assert tab.locator("#detail h2").inner_text() == "Query 7"
        tab.locator("[data-page=suspects]").click()
        assert tab.locator("#suspects tbody tr").count() == 2
        tab.locator("[data-page=about]").click()
        assert "No models were retrained" in tab.locator("#about").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_takes_questions(width):
    """The page of a server: a question joins the queries; one that fails or is given up says so."""
    asked, go = [], threading.Event()
    one = small(queries=1) | {"suspects": []}
    one["queries"][0] |= {"id": "asked", "row": -1, "said_of": "by how much", "against": " war"}
    one["queries"][0]["lists"] = one["queries"][0]["lists"][:1]

    def answer(body):
        asked.append(body)
        if body["prompt"] == "fail":
            raise ValueError("shorten the prompt")
        for _ in desk.progress(range(1000), desc="thinking"):
            if go.wait(0.02):
                break
        return one

    desk, details = Desk(answer, str), {"viewport": {"width": width, "height": 800}}
    with (
        serving(desk, html=page(small(), "Live", live=True)) as call,
        browser(call.address, **details) as (tab, said),
    ):
        tab.locator("#prompt").fill("fail")
        tab.locator("#send").click()
        tab.locator("#progress").filter(has_text="shorten the prompt").wait_for()
        tab.locator("#prompt").fill("And <b>God")
        tab.locator("#against").fill(" war")
        tab.locator("#send").click()
        tab.locator("#progress").filter(has_text="thinking").wait_for()
        tab.locator("#cancel").click()
        tab.locator("#progress").filter(has_text="given up").wait_for()
        go.set()
        tab.locator("#send").click()
        tab.locator("#progress").filter(has_text="answered in").wait_for()
        assert asked[-1] == {
            "form": "page",
            "top": 5,
            "prompt": "And <b>God",
            "against": " war",
        }
        assert tab.locator("#count").inner_text() == "61 of 61 queries"
        assert tab.url.endswith("#query=asked")
        assert tab.locator("#detail h2").inner_text() == "Question"
        assert "rather than: war" in tab.locator("#detail").inner_text()
        assert tab.locator(".card.help").count() == 3
        first = tab.locator(".help .text").first.locator(".tok")
        assert "help" in first.nth(3).evaluate("each => each.style.background")
        tab.locator(".row").nth(1).click()
        assert tab.url.endswith("#query=q0"), "the run's own queries are still there"
        assert not said


@pytest.mark.slow
def test_pages_of_runs_and_of_an_audit_are_used(tmp_path, call):
    """A table's run, a language model's and an audit, by their commands, with nobody shut out."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install it")
    for name in ("breast_cancer", "bible_gpt"):
        words = (f"--workdir={tmp_path / name}", "--config.bank=None")
        assert call("run", f"--config=configs/{name}.py:runlocal", *words).returncode == 0
        done = call("report", words[0])
        assert done.returncode == 0, done.stderr
    (tmp_path / "audit").mkdir()
    told = {
        "benchmark": {"verdict": "no leak found", "flagged": 1, "problems": 2, "learnt": 1,
                      "present": 0, "leaked_share": 0.1, "leaked_share_ci95": (0.0, 0.2),
                      "expected_false_alarms": 0.0},
        "control": {"rows": 0}, "warnings": ["no control was asked"],
        "settings": {"train": 9, "clean": 50, "rate": 0.02},
        "problems": [
            {"id": f"p{i}", "text": f"what is {i} and {HOSTILE}", "verdict": verdict, "p": 0.01,
             "overlap": 1.0, "loss_per_token": 1.0, "times": 9.0, "groups": 1, "replicas": [
                 {"copies": 12, "rows": [["row 4"]], "ids": ["x"], "overlap": 1.0, "times": 9.0,
                  "text": f"what is {i} and so on"}]}
            for i, verdict in enumerate(("learnt", "clean"))
        ],
    }  # fmt: skip
    (tmp_path / "audit/report.html").write_text(
        audit_page(told).encode("utf-8", "replace").decode()
    )
    (tmp_path / "boards").mkdir()
    leaderboard_page.main([f"--out={tmp_path / 'boards/report.html'}"])
    for name in ("breast_cancer", "bible_gpt", "audit", "boards"):
        html = (tmp_path / name / "report.html").read_text()
        for width, scheme in ((1280, "light"), (390, "dark")):
            details = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
            with opened(html, tmp_path, bypass_csp=True, **details) as tab:
                tab.locator("#list").press("ArrowDown")
                assert "#query=" in tab.url
                assert tab.locator(".card").count() > 0
                if name == "breast_cancer":
                    assert re.search(
                        r"(mean|worst) radius: 1\d", tab.locator("#detail").inner_text()
                    )
                if name == "bible_gpt":
                    tab.locator("button.tok").first.click()
                    assert tab.locator("button.tok[aria-pressed=true]").count() == 1
                if name == "audit":
                    tab.locator("#state").select_option("verdict-learnt")
                    assert tab.locator("#count").inner_text() == "1 of 2 problems"
                    tab.locator(".row").click()
                    assert "12 copies act as one" in tab.locator(".card").inner_text()
                    assert tab.locator(".shared").count() > 0
                if name == "boards":
                    tab.locator("#search").fill("letters")
                    assert tab.locator("#count").inner_text() == "1 of 9 boards"
                    tab.locator(".row").click()
                    assert "gauss-newton" in tab.locator("#detail").inner_text()
                for button in tab.locator("nav button:visible").all():
                    button.click()
                    found = axe.Axe().run(tab).response["violations"]
                    assert not [v["id"] for v in found if v["impact"] in ("serious", "critical")]


def test_an_attribution_of_other_data_is_refused():
    class Ran:
        train = type("Train", (), {"ids": np.array(["x", "y"])})

    scores = scipy.sparse.csr_array(np.array([[1.0, -2.0]], np.float32))
    lists = contents._lists(Ran, Attribution(["b"], ["y", "x"], scores), ["a", "b"], 3, "other")
    assert lists == [[], [(1, 1.0, ""), (0, -2.0, "")]]
    with pytest.raises(ValueError, match="other has none of this run's queries"):
        contents._lists(Ran, Attribution(["q"], ["y", "x"], scores), ["a", "b"], 3, "other")
    with pytest.raises(ValueError, match="other names 'z', which is no training example"):
        contents._lists(Ran, Attribution(["b"], ["z", "x"], scores), ["a", "b"], 3, "other")
