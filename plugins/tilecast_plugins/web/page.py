"""The live page: static files of the package, under a policy that lets nothing else run.

There is no build step and nothing comes from elsewhere: `static/` is what the browser gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from tilecast_plugins.web.gateway import Gateway

FOLDER: Final = Path(__file__).parent / "static"

# The one style that OpenSeadragon writes into the page: no outline where there is no mouse.
_OPENSEADRAGON_STYLE: Final = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"

HEADERS: Final = {
    # Scripts and styles from here only, none of them in line; pictures also from canvases of the page itself.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; "
    f"style-src 'self' {_OPENSEADRAGON_STYLE}; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Files are small and near; a page of one release must not run scripts of another.
    "Cache-Control": "no-cache",
}


def router(_gateway: Gateway) -> APIRouter:
    """`/` is the page, `/static` what it is made of."""
    pages = files()

    @pages.get("/")
    async def page() -> Response:
        return document("index.html")

    return pages


def document(name: str) -> Response:
    """A page."""
    return FileResponse(FOLDER / name, headers=HEADERS)


def files() -> APIRouter:
    """`/static`, what pages are made of."""
    pages = APIRouter(include_in_schema=False)
    files = StaticFiles(directory=FOLDER)

    @pages.get("/static/{path:path}")
    async def static(path: str, request: Request) -> Response:
        response = await files.get_response(path, request.scope)
        response.headers.update(HEADERS)
        return response

    return pages
