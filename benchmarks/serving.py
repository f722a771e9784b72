"""A run that many ask at once over HTTP: what is lost, what is told, what it takes.

    make quickstart
    python -m benchmarks.serving --workdir=runs/quickstart

Starts `stride-jax serve` on a run of images as a process of its own. Askers send queries of the run
as pictures, all at the same time, and compare the answers with the run's attribution; others send
bodies that are malformed or too large, from other origins and by wrong names, or ask and give up.
Rows go to `docs/results/people.json`.
"""

import base64
import concurrent.futures
import http.client
import io
import json
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.house import Row, command, record
from benchmarks.report_page import PEOPLE
from stride_jax.attribution import Attribution
from stride_jax.cli.doors import Parser, at_least
from stride_jax.run.opened import open_run

_TOP = 5


class Client:
    """Sends requests to one server."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON, or text."""
        own = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        own.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = own.getresponse()
        said = answer.read()
        own.close()
        kind = answer.getheader("content-type", "")
        return answer.status, json.loads(said) if kind == "application/json" else said.decode()

    def ask(self, body: Any, give_up: bool = False) -> dict[str, Any]:
        """What became of a question."""
        _, told = self.send("POST", "/questions", body)
        if give_up:
            self.send("DELETE", f"/questions/{told['id']}")
        while told["state"] in ("waiting", "working"):
            time.sleep(0.1)
            _, told = self.send("GET", f"/questions/{told['id']}")
        return told


def memory(process: int) -> float:
    """Resident memory of a process, MB."""
    text = pathlib.Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return float(text.partition("VmRSS:")[2].split()[0]) / 1024


def agree(answer: dict[str, Any], given: Attribution) -> bool:
    """Whether an answer has the run's proponents and opponents, scores up to rounding."""
    for side in ("proponents", "opponents"):
        expected = getattr(given, side)(answer["id"], _TOP)
        own = [(one["id"], one["score"]) for one in answer[side]]
        if not np.allclose([s for _, s in own], [s for _, s in expected], rtol=5e-3, atol=1e-7):
            return False
        # Nearly tied examples may change places.
        if len({name for name, _ in own} - {name for name, _ in expected}) > 1:
            return False
    return True


def refused(client: Client) -> tuple[int, int]:
    """Requests that must not be answered: how many there were, and how many were told a trace."""
    large = b" " * (10 << 20)
    tries = [
        (400, client.send("POST", "/questions", b"{")),
        (400, client.send("POST", "/questions", b"\xff")),
        (400, client.send("POST", "/questions", b"[" * 200_000)),
        (400, client.send("POST", "/questions", {"image": "aGFsbG8="})),
        (413, client.send("POST", "/questions", large)),
        (415, client.send("POST", "/questions", {}, **{"Content-Type": "text/plain"})),
        (403, client.send("POST", "/questions", {}, Origin="http://evil.example")),
        (403, client.send("GET", "/", Host="evil.example")),
        (404, client.send("GET", "/questions/none")),
    ]
    wrong = sum(status != asked or "Traceback" in str(told) for asked, (status, told) in tries)
    return len(tries), wrong


def main(words: Sequence[str]) -> None:
    """Start the server, ask, end it, write the rows down."""
    parser = Parser("serving", __doc__)
    parser.flag("workdir", "Folder of a finished run of images.", required=True)
    parser.flag("askers", "Who ask at the same time.", type=at_least(2), default=50)
    given, _ = parser.read(words)
    folder = pathlib.Path(given.workdir)
    run, truth = open_run(folder, text=False), Attribution.load(folder / "attribution.parquet")
    bodies = [_body(run, i) for i in range(given.askers)]
    line = [sys.executable, "-m", "stride_jax", "serve", f"--workdir={folder}", "--port=0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "it was asked for"
        client = Client(int(process.stdout.readline().split(":")[2].partition("/")[0]))
        try:
            first = client.ask(bodies[0])
            before, began = memory(process.pid), time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(given.askers) as askers:
                gone = askers.submit(client.ask, bodies[0], True)
                told = list(askers.map(client.ask, bodies))
            seconds, tries = time.monotonic() - began, refused(client)
            for _ in range(2):
                with concurrent.futures.ThreadPoolExecutor(given.askers) as askers:
                    list(askers.map(client.ask, bodies))
            after = memory(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
    done = [one for one in told if one["state"] == "done"]
    right = sum(agree(one["answer"], truth) for one in done)
    name = f"serve, {given.askers} askers at once"
    record([
        Row(f"{name}, answers lost", len(told) - len(done), "lower", asked=0),
        Row(f"{name}, answers that differ from the run's", len(done) - right, "lower", asked=0),
        Row(f"{name}, seconds an answer", seconds / len(told), "lower"),
        Row("serve, seconds of the first answer", first["seconds"], "lower"),
        Row("serve, a question that was given up is answered",
            float(gone.result()["state"] == "done"),
            "lower", asked=0),
        Row(f"serve, of {tries[0]} requests to refuse, answered or told a trace", tries[1],
            "lower", asked=0),
        Row(f"{name}, two rounds later, MB more", after - before, "lower"),
        Row("serve, exit code of Ctrl-C", process.returncode, "lower", asked=0),
    ], path=PEOPLE)  # fmt: skip


def _body(run: Any, row: int) -> dict[str, Any]:
    """A query of the run as a picture."""
    from PIL import Image

    file = io.BytesIO()
    pixels = np.rint(255 * run.query.inputs[row].squeeze()).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    return {"image": image, "label": int(run.query.labels[row]), "top": _TOP}


if __name__ == "__main__":
    command(main, "serving")
