"""The server: one page, and questions in JSON.

    POST   /questions       a question (`bodies`); 202 with its name and place in the line
    GET    /questions/NAME  how far it is, or its answer
    DELETE /questions/NAME  give it up
    GET    /                the page

Whoever may ask is decided before anything is read: by a token, or without one by the names of this
machine alone, so that no site that a browser visits can ask. What goes wrong is told in one line.
"""

import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from stride_jax.applications.live.desk import Desk, LineFullError
from stride_jax.runtime.screen import json_text

LARGEST = 4 << 20
"""Bytes of a body."""

_DRAINED = 8 * LARGEST
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_Endpoint = Callable[[Request], Awaitable[Response]]


def server(
    desk: Desk, checked: Callable[[Any], Any], page: str, token: str = ""
) -> Callable[..., Awaitable[None]]:
    """The application, for any ASGI server.

    Args:
      desk: that takes the questions.
      checked: from a body's JSON to a question; raises ValueError with what is wrong.
      page: HTML.
      token: that everyone must have; "" where only this machine can ask.
    """
    html = page.encode()

    def guarded(endpoint: _Endpoint) -> _Endpoint:
        async def own(request: Request) -> Response:
            refused = _refused(request, token)
            made = await endpoint(request) if refused is None else refused
            made.headers.update(_HEADERS)
            return made

        return own

    async def home(request: Request) -> Response:
        if token and "token" in request.query_params:
            answer = RedirectResponse("/", 303)  # so that no token stays in the address
            answer.set_cookie(_cookie(request), token, httponly=True, samesite="strict")
            return answer
        return Response(html, media_type="text/html")

    async def ask(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return _error(415, "send JSON, with Content-Type: application/json")
        body = await _body(request)
        if body is None:
            return _error(413, f"the body is larger than {LARGEST >> 20} MiB: send less")
        try:
            asked = await run_in_threadpool(lambda: checked(json.loads(body)))
        except RecursionError:
            return _error(400, "the body is nested too deeply: send one flat JSON object")
        except (UnicodeDecodeError, json.JSONDecodeError):
            return _error(400, "the body is not JSON in UTF-8")
        except ValueError as error:
            return _error(400, " ".join(str(error).splitlines()))
        try:
            ticket = desk.put(asked)
        except LineFullError:
            return _error(503, "too many questions wait: ask again later", {"Retry-After": "5"})
        return _json(desk.look(ticket.id), 202)

    async def look(request: Request) -> Response:
        told = desk.look(request.path_params["name"])
        return _gone() if told is None else _json(told)

    async def cancel(request: Request) -> Response:
        name = request.path_params["name"]
        desk.cancel(name)
        told = desk.look(name)
        return _gone() if told is None else _json(told)

    return Starlette(
        routes=[
            Route("/", guarded(home), methods=["GET"]),
            Route("/questions", guarded(ask), methods=["POST"]),
            Route("/questions/{name}", guarded(look), methods=["GET"]),
            Route("/questions/{name}", guarded(cancel), methods=["DELETE"]),
        ]
    )


def _refused(request: Request, token: str) -> Response | None:
    """Why a request is not listened to; None for one that is."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return _error(403, "a page of another site can't ask")
    if not token:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in _LOOPBACK:
            return _error(403, f"ask at http://{_LOOPBACK[0]}, not by another name of this machine")
        return None
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    kinds = (
        given.strip() if scheme.lower() == "bearer" else "",
        request.cookies.get(_cookie(request), ""),
        request.query_params.get("token", "") if request.url.path == "/" else "",
    )
    if any(secrets.compare_digest(one.encode(), token.encode()) for one in kinds if one):
        return None
    return _error(
        401,
        "no token, or not the right one: open the address that stride-jax serve printed, or send "
        "Authorization: Bearer TOKEN",
        {"WWW-Authenticate": "Bearer"},
    )


def _cookie(request: Request) -> str:
    """Cookies are of a host: servers on several of its ports have one each."""
    return f"stride_token_{request.url.port}"


async def _body(request: Request) -> bytes | None:
    """The body, or None for one that is too large, of which nothing is kept.

    A client that is still sending would not read an answer, so that too much is read to its end,
    up to a multiple.
    """
    told = request.headers.get("content-length", "0")
    if not told.isdigit() or int(told) > _DRAINED:
        return None
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > _DRAINED:
            return None
        if size <= LARGEST:
            parts.append(part)
        else:
            parts.clear()
    return b"".join(parts) if size <= LARGEST else None


def _json(value: Any, status: int = 200) -> Response:
    return Response(json_text(value), status, media_type="application/json")


def _gone() -> Response:
    return _error(404, "no question of this name: it was never asked, or its answer is forgotten")


def _error(status: int, said: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": said}, status, headers)
