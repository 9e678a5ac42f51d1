"""Puts the gateway together: the one place that knows all its parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from tilecast_plugins.web import (
    access,
    addresses,
    api,
    catmaid,
    deepzoom,
    events,
    hot,
    iip,
    iip_classic,
    instruments,
    ome_zarr,
    page,
)
from tilecast_plugins.web.gateway import Gateway
from tilecast_plugins.web.settings import Settings

ROUTERS = (
    api.router,
    addresses.router,
    events.router,
    catmaid.router,
    deepzoom.router,
    iip.router,
    iip_classic.router,
    ome_zarr.router,
    page.router,
)
"""What is served, in the order in which addresses are matched: each makes an APIRouter of the gateway."""


def create_app(settings: Settings) -> FastAPI:
    """The application, to be run by any ASGI server; `app.state.gateways` are the `Gateway` of each instrument."""
    if not settings.instruments:
        gateway = Gateway(settings)
        app = _application([gateway])
        _fill(app, gateway)
    else:
        stands = [instruments.Stand(one.name, Gateway(settings.of(one))) for one in settings.instruments]
        app = _application([stand.gateway for stand in stands])
        app.include_router(instruments.router(stands))
        for stand in stands:
            part = FastAPI(title=f"tilecast: {stand.name}", **_DESCRIPTION)
            access.explain(part)
            _fill(part, stand.gateway)
            app.mount(stand.path.rstrip("/"), _Root(part))
        app.include_router(page.files())
    access.guard(app, settings)
    return app


class _Root:
    """ASGI middleware: addresses that a mounted application tells begin with where it is mounted."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "app_root_path": scope.get("root_path", "")}, receive, send)


_DESCRIPTION: Any = {
    "version": version("tilecast"),
    "description": "Mosaics of tile scans, while they grow.",
    "openapi_url": "/api/v1/openapi.json",
    "docs_url": None,
    "redoc_url": None,
}


def _application(gateways: Sequence[Gateway]) -> FastAPI:
    """Starts and ends the gateways with itself."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        for gateway in gateways:
            gateway.start()
        try:
            yield
        finally:
            await asyncio.gather(*(gateway.close() for gateway in gateways))

    app = FastAPI(title="tilecast", lifespan=lifespan, **_DESCRIPTION)
    app.state.gateways = gateways
    return app


def _fill(app: FastAPI, gateway: Gateway) -> None:
    """Everything that is served of one gateway."""
    app.add_middleware(hot.TilePath, gateway=gateway)
    for router in ROUTERS:
        app.include_router(router(gateway))
