"""Several microscopes on one page: a list of instruments, with what each does now, its newest run and a small picture.

Each instrument has a `Gateway` of its own, with its own threads, cache and ear for its daemon, and everything that a
gateway serves lies below its own address, `/at/NAME/`. So an instrument whose daemon is dead, or whose disk hangs,
keeps nobody from the others: the list is put together from what is known of each, and never waits for one for longer
than `WAIT_S`.

    /                        the page with all instruments
    /at/NAME/                the page of one, and below it all that `tilecast web` serves of one
    /api/v1/instruments      the list, for programs
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import structlog
from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from tilecast.reading import StoreError
from tilecast_plugins.run import Run
from tilecast_plugins.web import api, page
from tilecast_plugins.web.gateway import Gateway
from tilecast_protocol.errors import TilecastError

log = structlog.get_logger()

WAIT_S: Final = 0.5
"""How long the list waits for instruments of which nothing new is known."""

SILENT_S: Final = 5.0
"""How long a daemon may say nothing; it does so every second."""

_FRESH_S: Final = 0.9  # how old what is known may be


class Stand:
    """One instrument.

    Parameters
    ----------
    name : str
    gateway : Gateway
        Its own.
    """

    def __init__(self, name: str, gateway: Gateway) -> None:
        self.name = name
        self.gateway = gateway
        self._run: dict[str, Any] | None = None
        self._error: str | None = None
        self._looked_at_s = -_FRESH_S
        self._looking: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        """Below which address it is served."""
        return f"/at/{self.name}/"

    def look(self) -> asyncio.Task[None] | None:
        """Begin to ask what its newest run is, unless that is known or being asked; in the event loop."""
        if self._looking is None and asyncio.get_running_loop().time() - self._looked_at_s > _FRESH_S:
            self._looking = asyncio.create_task(self._look())
        return self._looking

    async def _look(self) -> None:
        try:
            self._run, self._error = await self.gateway.consult(self._newest), None
        except (TilecastError, StoreError, OSError) as error:
            self._error = str(error)  # what was known of its run stays
        except Exception as error:
            log.error("an instrument cannot be looked at", instrument=self.name, error=repr(error), exc_info=error)
            self._error = "the gateway failed to look at it; its log says why"
        finally:
            self._looked_at_s = asyncio.get_running_loop().time()
            self._looking = None

    def _newest(self) -> dict[str, Any] | None:
        """The run that is being scanned, else the newest one; blocking."""
        runs = [one for one in self.gateway.source.runs() if isinstance(one, Run)]
        chosen = next((one for one in runs if one.state == "open"), runs[0] if runs else None)
        if chosen is None:
            return None
        told = api.summary(chosen)
        return told | {"thumbnail": self.path.lstrip("/") + told["thumbnail"].lstrip("/")}

    def told(self) -> dict[str, Any]:
        """What is known of it; in the event loop."""
        news, now_s = self.gateway.news, asyncio.get_running_loop().time()
        beat = news.heartbeat
        heard_s = None if beat is None else now_s - news.heard_at_s
        if self.gateway.settings.notify is None:
            state = "files"
        elif beat is None or heard_s is None or heard_s > SILENT_S:
            state = "silent"
        else:
            state = beat.state
        return {
            "name": self.name,
            "path": self.path.lstrip("/"),
            "state": state,
            "heard_s": heard_s,
            "free_bytes": beat and beat.free_bytes,
            "run": self._run,
            "error": self._error,
        }


def router(stands: Sequence[Stand]) -> APIRouter:
    """The page and the list."""
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def instruments_page() -> Response:
        return page.document("instruments.html")

    @routes.get("/api/v1/instruments", summary="All instruments")
    async def instruments() -> JSONResponse:
        """Of each what its daemon does, and its newest run.

        `state` is the daemon's, `silent` if nothing was heard of it for 5 s, `files` if it has none; `run` is the run
        that is being scanned, else the newest, as last known; `error` says why nothing newer is.
        """
        looking = [task for stand in stands if (task := stand.look()) is not None]
        if looking:
            await asyncio.wait(looking, timeout=WAIT_S)
        return JSONResponse({"instruments": [stand.told() for stand in stands]}, headers={"Cache-Control": "no-cache"})

    return routes
