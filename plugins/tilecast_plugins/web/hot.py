"""The short way to a tile: tiles of `/api/v1` are answered before the framework looks at the request.

A page that pans asks for hundreds of tiles a second. Routing, dependencies and the layers of FastAPI cost 0.25 ms of
each request, as much as reading the tile; here it is one regular expression. The function that answers, and the words
of a refusal, are those of `api` and `access`; `api` describes the address in OpenAPI.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from tilecast_plugins.web.access import refusal
from tilecast_plugins.web.api import tile_answer
from tilecast_plugins.web.gateway import Gateway

_TILE: Final = re.compile(
    r"/api/v1/runs/(?P<run>[0-9a-fA-F-]{36})/tiles"
    r"/(?P<epoch>[^/]+)/(?P<t>[^/]+)/(?P<c>[^/]+)/(?P<z>[^/]+)/(?P<level>[^/]+)/(?P<row>[^/]+)/(?P<name>[^/]+)"
)


class TilePath:
    """ASGI middleware that answers requests for tiles itself.

    Parameters
    ----------
    app : ASGIApp
        Answers everything else.
    gateway : Gateway
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        found = _TILE.fullmatch(path.removeprefix(scope.get("root_path", "")))
        if found is None:
            await self._app(scope, receive, send)
            return
        query = scope["query_string"]
        wanted = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else {}
        if_none_match = next(
            (value.decode("latin-1") for name, value in scope["headers"] if name == b"if-none-match"), None
        )
        try:
            answer = await self._gateway.work(tile_answer, self._gateway, found.groupdict(), wanted, if_none_match)
        except Exception as error:
            told = refusal(error)
            if told is None:
                raise
            answer = told
        await answer(scope, receive, send)
