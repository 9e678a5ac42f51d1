"""Puts the gateway together: the one place that knows all its parts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import version

from fastapi import FastAPI

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
    """The application, to be run by any ASGI server; `app.state.gateway` is the `Gateway`."""
    gateway = Gateway(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        gateway.start()
        try:
            yield
        finally:
            await gateway.close()

    app = FastAPI(
        title="tilecast",
        version=version("tilecast"),
        description="Mosaics of tile scans, while they grow.",
        openapi_url="/api/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.add_middleware(hot.TilePath, gateway=gateway)
    access.guard(app, gateway)
    for router in ROUTERS:
        app.include_router(router(gateway))
    return app
