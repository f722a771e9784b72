"""A server of questions on a free port, for the tests of several modules."""

import contextlib
import functools
import http.client
import json
import socket
import threading

import uvicorn

from stride_jax.applications.live.server import server


@contextlib.contextmanager
def serving(desk, token="", checked=dict, html="<title>the page</title>"):
    """The server on a free port; a function that sends a request and gives status and JSON."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        config = uvicorn.Config(
            server(desk, checked, html, token), log_level="critical",
            lifespan="off",
        )  # fmt: skip
        own = uvicorn.Server(config)
        thread = threading.Thread(target=own.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        try:
            call = functools.partial(send, port)
            call.address = f"http://127.0.0.1:{port}/"
            yield call
        finally:
            own.should_exit = True
            thread.join()
            desk.close()


def send(port, method, path, body=None, headers=()):
    """Status and JSON of an answer, or its text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    connection.request(method, path, data, {"Content-Type": "application/json", **dict(headers)})
    answer = connection.getresponse()
    said = answer.read().decode()
    connection.close()
    kind = answer.getheader("content-type", "")
    return answer.status, json.loads(said) if kind == "application/json" else said
