"""Open a run in a browser: its answers, and a box that takes new questions.

    stride-jax serve --workdir=runs/quickstart
    stride-jax serve --workdir=runs/bible_gpt --port=8080
    STRIDE_TOKEN=... stride-jax serve --workdir=runs/bible_gpt --host=0.0.0.0

The page is that of stride-jax report. Questions to a language model are prompts, perhaps with a
completion; other runs take an image or a table's row. They are answered one after the other, and
can be given up. Programs ask the same in JSON: docs/serve.md.

Only this machine can ask, unless --host names another address; then everyone needs a token:
STRIDE_TOKEN, or one that is made and printed. Nothing is encrypted: put a proxy or an ssh tunnel
before it where others can listen.
"""

import functools
import ipaddress
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Sequence

from absl import logging

from stride_jax.applications.live.answers import answering
from stride_jax.applications.live.bodies import question_of
from stride_jax.applications.live.desk import Desk
from stride_jax.applications.live.server import server
from stride_jax.applications.report import content
from stride_jax.applications.report.page import page
from stride_jax.cli.doors import Parser, at_least, one_line
from stride_jax.run import summary
from stride_jax.run.opened import open_run
from stride_jax.runtime.folders import local_folder
from stride_jax.runtime.progress import bars
from stride_jax.runtime.screen import visible

TOKEN = "STRIDE_TOKEN"
_LEAST_TOKEN = 16


def _parser() -> Parser:
    parser = Parser("serve", __doc__)
    parser.flag("workdir", "Folder of a run with its model and operators.", required=True)
    parser.flag("host", "Address to listen at.", default="127.0.0.1")
    parser.flag("port", "Port; 0 for a free one.", type=at_least(0), default=8000)
    parser.flag("title", "Title of the page; the folder's name by default.", default="")
    parser.flag("waiting", "Questions that wait at most.", type=at_least(1), default=64)
    return parser


def main(words: Sequence[str]) -> int:
    """Open the run, then answer until the process is told to end."""
    import uvicorn

    given, _ = _parser().read(words)
    logging.set_verbosity(logging.WARNING)
    folder = local_folder(given.workdir, writable=False)
    token = _token(given.host)
    with _listening(given.host, given.port) as listener:
        run = open_run(folder, text=False, progress=bars)
        finished = summary.read(run, "attribution") is not None
        told = content.content(run) if finished else content.questions(run, [])
        desk = Desk(answering(run), _said_of, given.waiting)
        run.progress = desk.progress
        html = page(told, given.title or folder.resolve().name, live=True)
        application = server(desk, functools.partial(question_of, run), html, token)
        config = uvicorn.Config(
            application, log_level="warning", access_log=False, lifespan="off", server_header=False,
            limit_concurrency=512, timeout_graceful_shutdown=2,
        )  # fmt: skip
        print(visible(f"{_address(given.host, listener, token)} (Ctrl-C ends it)"), flush=True)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # how it is meant to end
        finally:
            desk.close()
    return 0


def _token(host: str) -> str:
    """What everyone must have who asks from elsewhere; "" where only this machine can.

    Raises:
      ValueError: a token that is too short.
    """
    given = os.environ.get(TOKEN, "")
    if given and (len(given) < _LEAST_TOKEN or not given.isascii() or not given.isprintable()):
        raise ValueError(
            f"{TOKEN} must have at least {_LEAST_TOKEN} plain letters or digits: set a longer one, "
            "or unset it to have one made"
        )
    return given or ("" if _is_loopback(host) else secrets.token_urlsafe(24))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """The socket, before anything slow begins.

    Raises:
      ValueError: an address that is not this machine's, or a port that is taken.
    """
    if port > 65535:
        raise ValueError(f"--port={port}: ports end at 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        code = error.errno or 0  # of a name that is not known it is below zero
        said = os.strerror(code) if code > 0 else str(error.strerror)
        raise ValueError(
            f"--host={host} --port={port}: {said}: give another port, or --port=0 for a free one"
        ) from None


def _address(host: str, listener: socket.socket, token: str) -> str:
    """What to open in a browser."""
    name = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        name = socket.gethostname()
    asked = f"?token={token}" if token else ""
    return f"http://{name}:{listener.getsockname()[1]}/{asked}"


def _said_of(error: BaseException) -> str:
    """What whoever asked is told of an error; what is a bug of ours stays in the log."""
    line = one_line(error, ("run", "text"))
    if line is None:
        traceback.print_exception(error, file=sys.stderr)
        line = "this question could not be answered: the server's log says why"
    return line
