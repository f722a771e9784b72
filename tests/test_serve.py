"""A run that is asked over HTTP: many at once, those that give up, and what is not listened to."""

import base64
import concurrent.futures
import dataclasses
import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from stride_jax.applications import inquiry
from stride_jax.applications.live import bodies
from stride_jax.applications.live.answers import answering
from stride_jax.applications.live.desk import Desk, LineFullError
from stride_jax.applications.live.server import LARGEST
from stride_jax.applications.report.content import questions
from stride_jax.applications.report.page import page
from stride_jax.attribution import Attribution
from stride_jax.cli import serve
from stride_jax.data.source import load_scaling
from stride_jax.run.opened import open_run
from stride_jax.stride import direct
from tests.report_pages import stored
from tests.serving import send, serving


def ended(call, name):
    """What becomes of a question."""
    for _ in range(1000):
        status, told = call("GET", f"/questions/{name}")
        assert status == 200, told
        if told["state"] not in ("waiting", "working"):
            return told
        time.sleep(0.01)
    raise AssertionError(told)


def test_fifty_ask_at_once_and_each_has_its_own_answer():
    desk = Desk(lambda asked: {"twice": 2 * asked["n"]}, str, waiting=64)

    def one(n):
        status, told = call("POST", "/questions", {"n": n})
        assert status == 202
        return ended(call, told["id"])["answer"]["twice"]

    with serving(desk) as call, concurrent.futures.ThreadPoolExecutor(50) as askers:
        assert list(askers.map(one, range(50))) == [2 * n for n in range(50)]
        assert desk.waiting == 0


def test_a_question_is_given_up_while_it_waits_or_is_thought_about():
    begun, seen = threading.Event(), []

    def slowly(asked):
        for _ in desk.progress(range(10_000), desc="thinking"):
            begun.set()
            seen.append(asked["n"])
            time.sleep(0.005)

    desk = Desk(slowly, str, waiting=2)
    with serving(desk) as call:
        first, second, third = (call("POST", "/questions", {"n": n})[1]["id"] for n in range(3))
        begun.wait()
        told = call("GET", f"/questions/{first}")[1]
        assert (told["state"], told["stage"], told["total"]) == ("working", "thinking", 10_000)
        assert call("GET", f"/questions/{third}")[1]["ahead"] == 2
        status, refused = call("POST", "/questions", {"n": 3})
        assert (status, refused["error"]) == (503, "too many questions wait: ask again later")
        assert call("DELETE", f"/questions/{second}")[1]["state"] == "cancelled"
        assert call("GET", f"/questions/{third}")[1]["ahead"] == 1
        assert call("DELETE", f"/questions/{first}")[1]["state"] == "cancelled"
        while 2 not in seen:
            time.sleep(0.01)
        assert 1 not in seen, "it had left the line"
        assert call("DELETE", f"/questions/{first}")[1]["state"] == "cancelled", "once more"
    assert call  # closing gave up the one that was being thought about


def test_memory_is_bounded_and_errors_are_told_in_a_line():
    def answer(asked):
        if asked["n"] == 7:
            raise KeyError("a secret path")
        return asked["n"]

    desk = Desk(answer, lambda error: type(error).__name__, kept=5)
    with serving(desk) as call:
        names = []
        for n in range(12):
            names.append(call("POST", "/questions", {"n": n})[1]["id"])
            told = ended(call, names[-1])
            assert told["state"] == ("failed" if n == 7 else "done")
        assert told["answer"] == 11
        assert [call("GET", f"/questions/{one}")[0] for one in names] == [404] * 7 + [200] * 5
        told = call("GET", f"/questions/{names[7]}")[1]
        assert told["error"] == "KeyError"
        assert "secret" not in json.dumps(told)
    with pytest.raises(LineFullError):
        desk.put({"n": 1})


def test_what_is_not_listened_to():
    def checked(body):
        raise ValueError("a text\nof two lines")

    with serving(Desk(lambda asked: asked, str), checked=checked) as call:
        status, html = call("GET", "/")
        assert (status, html) == (200, "<title>the page</title>")
        assert call("POST", "/questions", {"n": 1}) == (400, {"error": "a text of two lines"})
        for body, status in (
            (b"{", 400), (b"\xff\xfe", 400), (b"[" * 100_000, 400), (b"1" * (LARGEST + 1), 413),
            (b" " * (10 << 20), 413),
        ):  # fmt: skip
            got, told = call("POST", "/questions", body)
            assert got == status
            assert "Traceback" not in json.dumps(told)
        plain = {"Content-Type": "text/plain"}  # what a form of another site could send
        assert call("POST", "/questions", {"n": 1}, plain)[0] == 415
        assert call("GET", "/questions/none")[0] == 404
        assert call("GET", "/", headers={"Origin": "http://evil.example"})[0] == 403
        assert call("GET", "/", headers={"Host": "evil.example"})[0] == 403, "a name bound anew"
        assert call("GET", "/", headers={"Host": "localhost:8000"})[0] == 200
        assert call("PUT", "/questions")[0] == 405


def test_a_token_is_asked_for():
    token = "a-token-of-many-letters"
    with serving(Desk(lambda asked: asked, str), token) as call:
        paths = ("/", "/questions/x", "/?token=wrong", f"/questions/x?token={token}")
        for path in paths:
            status, told = call("GET", path)
            assert status == 401
            assert "no token, or not the right one" in told["error"]
        assert call("POST", "/questions", {"n": 1})[0] == 401
        wrong = {"Authorization": "Bearer wrong"}
        assert call("POST", "/questions", {"n": 1}, wrong)[0] == 401
        right = {"Authorization": f"Bearer {token}", "Host": "any.example"}
        assert call("POST", "/questions", {"n": 1}, right)[0] == 202
        assert call("GET", f"/?token={token}")[0] == 303


def test_tokens_and_addresses(monkeypatch):
    assert serve._token("127.0.0.1") == serve._token("::1") == serve._token("localhost") == ""
    assert len(serve._token("0.0.0.0")) >= 32
    monkeypatch.setenv(serve.TOKEN, "short")
    with pytest.raises(ValueError, match="at least 16"):
        serve._token("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port={port}: Address already in use: give"):
            serve._listening("127.0.0.1", port)
    with pytest.raises(ValueError, match="ports end at 65535"):
        serve._listening("127.0.0.1", 70_000)


class Images:
    """What `bodies` asks of a run of images, or of rows."""

    def __init__(self, shape=(8, 6, 1), classes=True, width=10):
        self.settings = type("Settings", (), {"is_text": False})
        labels = np.zeros((1,) if classes else (1, width), np.float32)
        inputs = np.zeros((1, *shape), np.float32)
        self.query = type("Queries", (), {"inputs": inputs, "labels": labels})
        objective = type("Objective", (), {"classes": classes})
        self.model = type("Model", (), {"objective": objective})
        self.data = {}, width


def png(size, mode="L", colour=128):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_an_image_takes_the_size_and_colours_of_the_data():
    grey = bodies.question_of(Images(), {"image": png((30, 20), "RGBA", (255, 255, 255, 255))})
    assert grey.values.shape == (8, 6, 1)
    assert (grey.values == 255).all()
    assert (grey.label, grey.top, grey.form) == (None, 3, "answer")
    url = "data:image/png;base64," + png((6, 8))
    colours = bodies.question_of(Images((8, 6, 3)), {"image": url, "label": 4, "form": "page"})
    assert colours.values.shape == (8, 6, 3)
    assert (colours.values == 128).all()
    large = png((5000, 5000))
    for body, said in (
        ({"image": large}, "5000 x 5000 pixels"), ({"image": 3}, "must be a text"),
        ({"image": "a"}, "not base64"), ({"image": "aGFsbG8="}, "no PNG or JPEG"),
        ({"image": png((6, 8))[:60]}, "no PNG or JPEG|not base64"), ({}, "no 'image'"),
        ({"image": url, "label": True}, "0 to 9"), ({"image": url, "label": 10}, "0 to 9"),
        ({"image": url, "top": 1000}, "1 to 100"), ({"prompt": "x"}, "unknown field 'prompt'"),
        ({"image": url, "form": "x"}, "answer, page"), ([1], "JSON object"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            bodies.question_of(Images(), body)


def test_a_row_has_a_number_for_each_column():
    run = Images((3,), classes=False, width=2)
    asked = bodies.question_of(run, {"row": "1,2.5\t-3", "label": [1, 2]})
    assert asked.values.tolist() == [1, 2.5, -3]
    assert asked.label.tolist() == [1, 2]
    for body, said in (
        ({"row": [1, 2], "label": [1, 2]}, "must have 3 numbers, one a column: got 2"),
        ({"row": [1, 2, "x"], "label": [1, 2]}, "numbers alone"),
        ({"row": [1, 2, 1e60], "label": [1, 2]}, "finite"),
        ({"row": [1, 2, 3]}, "label must be 2 numbers"),
        ({"row": {"a": 1}, "label": [1, 2]}, "something else"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            bodies.question_of(run, body)


def test_a_prompt_is_text():
    run = type("Run", (), {"settings": type("Settings", (), {"is_text": True})})
    asked = bodies.question_of(run, {"prompt": "In", "completion": None, "seed": 3, "top": 5})
    assert asked.text == {"prompt": "In", "seed": 3}
    for body, said in (
        ({"prompt": " "}, "prompt is empty"), ({"prompt": 1}, "must be a text"),
        ({"prompt": "\ud800"}, "half a character"), ({"prompt": "x" * 300_000}, "300000 letters"),
        ({"prompt": "x", "seed": -1}, "seed must be"), ({"prompt": "x", "image": ""}, "unknown"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            bodies.question_of(run, body)


def test_answers_are_those_of_the_run(tmp_path, call):
    """The command on a run of images: a query of the run has the answer that the run gave it."""
    done = call(
        "run", "--config=configs/mnist5k.py:runlocal", "--config.bank=None",
        f"--workdir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run, given = open_run(tmp_path, text=False), Attribution.load(tmp_path / "attribution.parquet")
    file = io.BytesIO()
    pixels = np.rint(255 * run.query.inputs[5, :, :, 0]).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    body = {"image": base64.b64encode(file.getvalue()).decode(), "top": 4,
            "label": int(run.query.labels[5])}  # fmt: skip
    words = [sys.executable, "-m", "stride_jax", "serve", f"--workdir={tmp_path}", "--port=0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as own:
        try:
            line = own.stdout.readline()
            port = int(line.split(":")[2].partition("/")[0])
            told = send(port, "POST", "/questions", body)[1]
            told = ended(lambda *words: send(port, *words), told["id"])
            page = send(port, "GET", "/")[1]
        finally:
            own.send_signal(signal.SIGINT)
        assert own.wait(30) == 0
        assert "Traceback" not in own.stderr.read()
    assert "connect-src 'self'" in page
    answer = told["answer"]
    assert answer["id"] == str(run.query.ids[5]), "named by its content"
    for side in ("proponents", "opponents"):
        expected = getattr(given, side)(answer["id"], 4)
        assert [one["id"] for one in answer[side]] == [name for name, _ in expected]
        np.testing.assert_allclose(
            [one["score"] for one in answer[side]], [score for _, score in expected], rtol=2e-3
        )


def test_a_run_without_answers_takes_questions(tmp_path, call):
    """Of a table, by its operators alone: the page is empty, and a row in the data's own units has
    the scores of the training example that it copies."""
    done = call(
        "run", "--config=configs/breast_cancer.py:runlocal", "--config.bank=None",
        f"--workdir={tmp_path}", "--until=operators",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = open_run(tmp_path, text=False)
    empty = questions(run, [])
    assert (empty["queries"], empty["examples"]["id"], empty["texts"]["values"]) == ([], [], [])
    assert stored(page(empty, "Empty", live=True))["index"] == []
    scaling = load_scaling(run.settings.data, tmp_path / "data")
    given = scaling.undo(run.train.inputs[7])
    body = {"row": [float(v) for v in given], "label": int(run.train.labels[7]), "form": "page"}
    told = answering(run)(bodies.question_of(run, body))
    np.testing.assert_allclose(told["texts"]["values"][0], given, rtol=1e-3)
    # A question that measures nothing at all, as of a prediction without a doubt, is still one.
    asked = inquiry._measure(run, run.train.take([7]), "loss")
    silent = dataclasses.replace(asked, y_YxK=np.zeros_like(asked.y_YxK))
    assert inquiry._spoken(silent) is silent
    body["form"] = "answer"
    answer = answering(run)(bodies.question_of(run, body))
    exact = direct(run.tapped, run.model.params, run.index, run.train, run.train.take([7]))
    scores = np.asarray(exact)[0]
    found = [scores[run.train.ids.tolist().index(one["id"])] for one in answer["proponents"]]
    np.testing.assert_allclose([one["score"] for one in answer["proponents"]], found, rtol=1e-2)
    np.testing.assert_allclose(found, np.sort(scores)[::-1][:3], rtol=1e-2)
    np.testing.assert_allclose(
        [score for _, score, _ in told["queries"][0]["lists"][0][:3]],
        [one["score"] for one in answer["proponents"]], rtol=1e-3,
    )  # fmt: skip
