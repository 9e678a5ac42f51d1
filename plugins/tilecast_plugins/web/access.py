"""Who may ask, and how a refusal looks.

* Without a token only this machine can connect (`settings` sees to that), and only under a name that means this
  machine: a page somewhere else that makes its own name point here is refused.
* With a token every request needs it: ``Authorization: Bearer TOKEN``, the cookie that the page gets from
  ``?token=TOKEN``, or, for viewers that can neither, a path that begins with ``/t/TOKEN/``.
* Pages of other origins may read where `cors` names them. They may never give orders.
* Whatever goes wrong is told in one sentence, ``{"detail": …}``; what was not foreseen is in our log only.

`HEAD` is answered as `GET`; the server leaves the body out.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from traceback import format_exception
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilecast.reading import StoreError
from tilecast_plugins.web.gateway import AbsentTileError, BadRequestError, NotFoundError, TooLargeError
from tilecast_plugins.web.rendering import UnknownLookError
from tilecast_plugins.web.settings import Settings, is_loopback
from tilecast_plugins.web.sources import NoDaemonError, UnknownRunError
from tilecast_protocol.errors import DisconnectedError, PZFError, QueryError

log = structlog.get_logger()

COOKIE: Final = "tilecast_token"
MAX_BODY_NBYTES: Final = 1 << 17
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_STATUS_OF_ERROR: Final[dict[type[Exception], int]] = {
    UnknownRunError: 404,
    NotFoundError: 404,
    TooLargeError: 413,
    BadRequestError: 400,
    UnknownLookError: 400,
    NoDaemonError: 501,
    DisconnectedError: 503,
    StoreError: 503,
    PZFError: 500,
}
_STATUS_OF_CODE: Final = {
    "malformed": 400,
    "unknown-command": 501,
    "unknown-run": 404,
    "not-allowed": 403,
    "too-large": 413,
    "busy": 503,
    "conflict": 409,
}


def guard(app: FastAPI, settings: Settings) -> None:
    """Put an application behind the rules above."""
    explain(app)
    app.add_middleware(_Access, settings=settings)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "HEAD"],
            allow_headers=["Authorization", "If-None-Match", "Last-Event-ID"],
            expose_headers=["ETag", "X-Tilecast-Dtype", "X-Tilecast-Shape", "X-Tilecast-Rev", "X-Tilecast-Coverage"],
        )


def explain(app: FastAPI) -> None:
    """Have an application tell in one sentence what goes wrong in it."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)
    for kind in (*_STATUS_OF_ERROR, QueryError):
        app.add_exception_handler(kind, _tell)


def refusal(error: Exception) -> Response | None:
    """The answer to what was asked in vain; None if nobody foresaw this error."""
    if isinstance(error, QueryError):
        status: int | None = _STATUS_OF_CODE.get(error.code, 502)
    else:
        status = next((number for kind, number in _STATUS_OF_ERROR.items() if isinstance(error, kind)), None)
    if status is None:
        return None
    headers = {"Retry-After": "1"} if status == 503 else None
    if isinstance(error, AbsentTileError):  # told apart from an address that is over
        headers = {"X-Tilecast-Coverage": "none"}
    return problem(status, str(error), headers)


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal."""
    return JSONResponse({"detail": message}, status, headers)


class _Access:
    """ASGI middleware: names, tokens, orders from strange pages, HEAD."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._token = settings.token
        self._host = settings.host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in _LOOKED_AT}
        scope = dict(scope)
        given = None
        if self._token is not None:
            given = self._given(scope, headers)
            if given is None:
                wanted = "this needs the gateway's token: Authorization: Bearer TOKEN, ?token=TOKEN, or /t/TOKEN/…"
                await problem(401, wanted, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
        elif not self._is_our_name(headers.get(b"host")):
            await problem(403, "ask under the address that the gateway printed, such as 127.0.0.1")(
                scope, receive, send
            )
            return
        if scope["method"] not in _SAFE_METHODS and not _is_own_origin(headers):
            await problem(403, "orders are taken from the gateway's own page or from programs")(scope, receive, send)
            return
        if scope["method"] not in _SAFE_METHODS and (refused := _too_much_to_read(headers)) is not None:
            await refused(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope["method"] = "GET"
        await self._app(scope, receive, _with_cookie(send, self._token) if given == "query" else send)

    def _given(self, scope: Scope, headers: dict[bytes, bytes]) -> str | None:
        """Where the right token stands, if it does."""
        kind, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() == "bearer" and self._is_token(value.strip()):
            return "header"
        path: str = scope["path"]
        if path.startswith("/t/"):
            prefix = path.split("/", 3)[2]
            if self._is_token(prefix):
                scope["root_path"] = scope.get("root_path", "") + f"/t/{prefix}"
                return "path"
        try:
            cookie = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
        except CookieError:
            cookie = None
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if self._is_token(query.get("token", "")):
            return "query"
        return "cookie" if cookie is not None and self._is_token(cookie.value) else None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self._token or "").encode())

    def _is_our_name(self, host: bytes | None) -> bool:
        if host is None:
            return True  # HTTP/1.0; no browser
        try:
            name = urlsplit(f"//{host.decode('latin-1')}").hostname or ""
        except ValueError:
            return False
        return name == self._host or is_loopback(name)


_LOOKED_AT: Final = frozenset(
    {b"host", b"authorization", b"cookie", b"origin", b"sec-fetch-site", b"content-length", b"transfer-encoding"}
)


def _too_much_to_read(headers: dict[bytes, bytes]) -> Response | None:
    """The refusal of an order that is longer than any order is, or that does not say how long it is."""
    if b"transfer-encoding" in headers:
        return problem(411, "say how long the body is, with Content-Length")
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_BODY_NBYTES:
        return problem(413, f"an order may have {MAX_BODY_NBYTES} bytes")
    return None


def _is_own_origin(headers: dict[bytes, bytes]) -> bool:
    """Whether a request comes from a page of ours, or from no page."""
    site = headers.get(b"sec-fetch-site")
    if site is not None and site not in (b"same-origin", b"none"):
        return False
    origin = headers.get(b"origin")
    return origin is None or origin.partition(b"://")[2] == headers.get(b"host")


def _with_cookie(send: Send, token: str | None) -> Send:
    cookie = SimpleCookie({COOKIE: token or ""})
    cookie[COOKIE]["path"], cookie[COOKIE]["httponly"], cookie[COOKIE]["samesite"] = "/", True, "Strict"

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).append("Set-Cookie", cookie[COOKIE].OutputString())
        await send(message)

    return sending


async def _tell(_request: Request, error: Exception) -> Response:
    answer = refusal(error)
    assert answer is not None, "it is told of errors that are in the table"
    return answer


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = str(error.detail)
    if error.status_code == 404 and said == "Not Found":  # the framework's own word for an address that leads nowhere
        said = f"nothing is served at {request.url.path[:200]}; / is the page, /api/v1/openapi.json describes the rest"
    return problem(error.status_code, said, dict(error.headers or {}))


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem(422, "; ".join(_sentence(one) for one in error.errors()))


def _sentence(one: Mapping[str, Any]) -> str:
    """What is wrong with a parameter; without a regular expression, where a word will do."""
    name = ".".join(str(part) for part in one["loc"][1:]) or "body"
    if name == "run" and one["type"] == "string_pattern_mismatch":
        return f"a run is named by its UUID, as /api/v1/runs lists them; got {str(one['input'])[:40]!r}"
    return f"{name}: {one['msg']}"


async def _unforeseen(request: Request, error: Exception) -> Response:
    log.error("a request failed", path=request.url.path, error=repr(error), trace="".join(format_exception(error)))
    return problem(500, "the gateway failed to answer this; its log says why")
