"""Where other viewers find a run: the addresses to paste into them, as they are at this moment.

They hold as long as the run's epoch does; when its canvas has to move, they are 404, and there are new ones here.
"""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request

from tilecast_plugins.web import iip
from tilecast_plugins.web.api import REFUSALS, RunId
from tilecast_plugins.web.canvas_view import CanvasView
from tilecast_plugins.web.gateway import Gateway


class IIPAddress(BaseModel):
    """For OpenSeadragon: ``{iipsrv: server, image: image}``; for VisiOmatic: the image's name."""

    server: str
    image: str


class Addresses(BaseModel):
    """Addresses of the first time point and plane; others differ in the numbers in them."""

    epoch: int
    deepzoom: list[str]
    """The `.dzi` of each channel, at most 64."""
    catmaid: list[str]
    """The description of the stack of each channel, at most 64."""
    iip: IIPAddress
    ome_zarr_04: str
    ome_zarr_05: str


def router(gateway: Gateway) -> APIRouter:
    """The endpoint."""
    routes = APIRouter(prefix="/api/v1", tags=["viewers"], responses=REFUSALS)

    @routes.get("/runs/{run}/viewers")
    async def viewers(request: Request, run: RunId) -> Addresses:
        """Addresses of a run for other viewers; 404 while no frame of it has been placed."""
        root = str(request.base_url).rstrip("/")

        def answer() -> Addresses:
            view = CanvasView.of(gateway.run(run))
            name, epoch = view.run.run, view.run.epoch
            channels = range(min(view.shape[1], 64))
            return Addresses(
                epoch=epoch,
                deepzoom=[f"{root}/deepzoom/{name}/{epoch}/0/{c}/0/mosaic.dzi" for c in channels],
                catmaid=[f"{root}/catmaid/{name}/stack/0.{c}/info" for c in channels],
                iip=IIPAddress(server=f"{root}/iip", image=iip.fif(view)),
                ome_zarr_04=f"{root}/zarr/0.4/{name}/{epoch}.zarr",
                ome_zarr_05=f"{root}/zarr/0.5/{name}/{epoch}.zarr",
            )

        return await gateway.work(answer)

    return routes
