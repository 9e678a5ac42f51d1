"""`/api/v1/events`: server-sent events, one stream for each page.

With `run`, a page is told of every commit of that run, without a hole: where news were lost, or the page was away, the
store is asked what changed since. The id of each such event is the rev up to which it leads, so a browser that connects
again says by itself (`Last-Event-ID`) where it stands. Without `run`, commits of all runs are told as they are heard.

| event | data |
|---|---|
| `hello` | {run?, epoch?, rev?}: where the stream begins |
| `commit` | {run, epoch, rev, tiles, gone, t_recv_ns, t_commit_ns, healed}; tiles are [t, c, z, level, row, col] |
| `resync` | {run, epoch, rev}: drop what you have of this run, and begin anew |
| `frame` | {run, rev, frame, plane: [t, c, z], rect: [row0, col0, row1, col1]}: newest last, after its commit |
| `stage` | {x_um, y_um, z_um, source}: where the stage is, as it says (`stage`) or the newest frame does (`frame`) |
| `gap`, `report`, `warning`, … | {run, kind, detail}: notices of PROTOCOL section 3 |
| `run` | {run, kind, detail}: started, idle, ended, sealed, deleted, renamed |
| `heartbeat` | {state, runs, free_bytes, heard_s}: every second; `heard_s` is how long the daemon has been silent |
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from tilecast.reading import StoreError
from tilecast_plugins.run import Run
from tilecast_plugins.web.access import problem
from tilecast_plugins.web.gateway import Gateway
from tilecast_plugins.web.news import Committed, Ended, Heartbeat, Lost, Moved, News, Notice, StageAt
from tilecast_plugins.web.sources import UnknownRunError
from tilecast_protocol.client import PlacedFrame
from tilecast_protocol.errors import QueryError

_BEAT_S: Final = 1.0
_NEWEST_FRAMES: Final = 32  # named after one commit
_RUN_KINDS: Final = frozenset({"started", "idle", "ended", "sealed", "deleted", "renamed"})


def router(gateway: Gateway) -> APIRouter:
    """The stream of events."""
    api = APIRouter(prefix="/api/v1")

    @api.get(
        "/events",
        summary="What happens, as it happens",
        response_class=StreamingResponse,
        responses={
            200: {"description": "Server-sent events", "content": {"text/event-stream": {}}},
            "4XX": {"description": "What is wrong with the request"},
            "5XX": {"description": "Why it cannot be answered now"},
        },
    )
    async def events(
        request: Request,
        run: Annotated[str | None, Query(pattern="^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")] = None,
        since: Annotated[int | None, Query(ge=0, le=2**53)] = None,
        epoch: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    ) -> Response:
        """See the table in the README: commit, frame, stage, resync, run, gap, report, heartbeat."""
        if gateway.news.n_followers >= gateway.settings.max_event_streams:
            return problem(503, f"{gateway.settings.max_event_streams} pages follow already", {"Retry-After": "5"})
        last_id = request.headers.get("last-event-id", "")
        if last_id.isdigit():
            since = int(last_id)
        if run is None:
            stream = _everything(gateway)
        else:
            run = run.lower()
            found = await gateway.work(gateway.source.info, run)  # 404 before the stream begins
            known_epoch = found.epoch if epoch is None else epoch
            stream = _Follower(gateway, found, known_epoch, found.rev if since is None else since).stream()
        return StreamingResponse(
            stream,
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return api


async def _everything(gateway: Gateway) -> AsyncIterator[str]:
    """Of all runs, as it is heard."""
    with gateway.news.follow() as queue:
        yield "retry: 1000\n" + _event("hello", {})
        while True:
            news = await _next(queue)
            if isinstance(news, Committed):
                yield _commit(news, healed=False)
            elif isinstance(news, Moved):
                yield _event("resync", {"run": news.run, "epoch": news.epoch, "rev": news.rev})
            elif isinstance(news, Notice):
                yield _notice(news)
            elif isinstance(news, StageAt):
                yield _stage(news)
            elif isinstance(news, Ended):
                return
            elif not isinstance(news, Lost):
                yield _heartbeat(gateway)


class _Follower:
    """One stream of one run: where it stands, and what it says next."""

    def __init__(self, gateway: Gateway, run: Run, epoch: int, rev: int) -> None:
        self._gateway = gateway
        self._run = run.run
        self._instrument = run.instrument
        self._epoch = epoch
        self._rev = rev

    async def stream(self) -> AsyncIterator[str]:
        """All events, until the page goes away or the run is deleted."""
        with self._gateway.news.follow() as queue:
            hello = {"run": self._run, "epoch": self._epoch, "rev": self._rev}
            yield "retry: 1000\n" + _event("hello", hello)
            try:
                async for event in self._heal():
                    yield event
                while True:
                    news = await _next(queue)
                    if isinstance(news, Ended):
                        return
                    async for event in self._tell(news):
                        yield event
                    if isinstance(news, Notice) and (news.run, news.kind) == (self._run, "deleted"):
                        return
            except (StoreError, QueryError, ConnectionError, UnknownRunError) as error:
                if await self._is_gone():
                    yield _event("run", {"run": self._run, "kind": "deleted", "detail": {}})
                else:
                    # The page connects again by itself, and goes on where it stands.
                    yield _event("warning", {"run": self._run, "kind": "warning", "detail": {"message": str(error)}})

    async def _is_gone(self) -> bool:
        """Whether the run is not there any more; while it is being deleted, reading it fails in other ways."""
        try:
            await self._gateway.work(self._gateway.source.info, self._run)
        except UnknownRunError:
            return True
        except (StoreError, QueryError, ConnectionError):
            return False
        return False

    async def _tell(self, news: News | None) -> AsyncIterator[str]:
        match news:
            case Committed(run=self._run):
                if (news.epoch, news.rev) == (self._epoch, self._rev + 1):
                    self._rev = news.rev
                    yield _commit(news, healed=False)
                    async for event in self._frames(news.rev - 1):
                        yield event
                elif news.epoch != self._epoch or news.rev > self._rev:
                    async for event in self._heal():
                        yield event
            case Moved(run=self._run) | Lost():
                async for event in self._heal():
                    yield event
            case Notice() if news.run == self._run or news.kind in _RUN_KINDS:  # of others, for the list of runs
                yield _notice(news)
            case StageAt(instrument=self._instrument):
                yield _stage(news)
            case Heartbeat() | None:
                # Also finds what nobody announced, such as a run that another program rebuilt.
                async for event in self._heal():
                    yield event
                yield _heartbeat(self._gateway)

    async def _heal(self) -> AsyncIterator[str]:
        """Tell what the store has after where this stream stands."""
        gateway = self._gateway
        now = await gateway.work(gateway.run, self._run)
        while (now.epoch, now.rev) != (self._epoch, self._rev):
            before = self._rev
            found = await gateway.work(gateway.source.changes, self._run, self._rev, self._epoch)
            if found.resync:
                now = await gateway.work(gateway.source.info, self._run)
                self._epoch, self._rev = now.epoch, now.rev
                yield _event("resync", {"run": self._run, "epoch": now.epoch, "rev": now.rev}, now.rev)
                return
            if found.upto <= before:
                return
            self._rev = found.upto
            told = Committed(
                self._run,
                self._epoch,
                found.upto,
                tuple(row[:6] for row in found.tiles),
                tuple(row[:6] for row in found.gone),
                None,
                None,
            )
            yield _commit(told, healed=True)
            if not found.more:
                async for event in self._frames(max(before, self._rev - _NEWEST_FRAMES)):
                    yield event
                return

    async def _frames(self, since: int) -> AsyncIterator[str]:
        """The frames that came after a rev, and where the stage therefore was."""
        gateway = self._gateway
        placed, _ = await gateway.work(gateway.source.placements, self._run, since)
        for one in placed[-_NEWEST_FRAMES:]:
            yield _event("frame", _frame(one, self._run))
        if placed:
            last = placed[-1]
            run = await gateway.work(gateway.run, self._run)
            x_um, y_um = run.stage_um(last.row + last.height / 2, last.col + last.width / 2)
            yield _event("stage", {"run": self._run, "x_um": x_um, "y_um": y_um, "z_um": None, "source": "frame"})


async def _next(queue: asyncio.Queue[News]) -> News | None:
    """The next news; None if none come for as long as a heartbeat takes."""
    try:
        return await asyncio.wait_for(queue.get(), _BEAT_S)
    except TimeoutError:
        return None


def _event(name: str, data: Any, number: int | None = None) -> str:
    lines = "" if number is None else f"id: {number}\n"
    return f"{lines}event: {name}\ndata: {json.dumps(data, separators=(',', ':'), default=str)}\n\n"


def _commit(news: Committed, *, healed: bool) -> str:
    data = {
        "run": news.run,
        "epoch": news.epoch,
        "rev": news.rev,
        "tiles": news.tiles,
        "gone": news.gone,
        "t_recv_ns": news.t_recv_ns,
        "t_commit_ns": news.t_commit_ns,
        "healed": healed,
    }
    return _event("commit", data, news.rev)


def _notice(news: Notice) -> str:
    name = "run" if news.kind in _RUN_KINDS else news.kind
    return _event(name, {"run": news.run, "kind": news.kind, "detail": news.detail})


def _stage(news: StageAt) -> str:
    return _event("stage", {**dataclasses.asdict(news), "source": "stage"})


def _frame(placed: PlacedFrame, run: str) -> dict[str, Any]:
    return {
        "run": run,
        "rev": placed.rev,
        "frame": placed.frame,
        "view": placed.view,
        "plane": [placed.t, placed.c, placed.z],
        "rect": [placed.row, placed.col, placed.row + placed.height, placed.col + placed.width],
    }


def _heartbeat(gateway: Gateway) -> str:
    beat = gateway.news.heartbeat
    heard_s = asyncio.get_running_loop().time() - gateway.news.heard_at_s if beat is not None else None
    return _event(
        "heartbeat",
        {
            "state": beat and beat.state,
            "runs": beat and [list(one) for one in beat.runs],
            "free_bytes": beat and beat.free_bytes,
            "heard_s": heard_s,
        },
    )
