"""How a run is going, in numbers: what a live view shows, asked of the daemon over its own sockets.

A `RunWatch` is a viewer like any other. It knows no terminal; `_live` shows what it finds. Several times a second:

    watch = RunWatch(endpoints["notify"], endpoints["query"], run, n_expected=180, frame_nbytes=2 << 20)
    status = watch.poll(0.25)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tilecast.commands._words import describe_losses, describe_notice
from tilecast.geometry import Rect, rect_at_level
from tilecast_protocol.client import Client
from tilecast_protocol.errors import QueryError
from tilecast_protocol.messages import RunNotice

_RATE_OVER_S = 5.0
_PICTURE_EVERY_S = 0.5
_ANSWER_S = 3.0
# The picture is read at a level at which it is at most so wide and high; a terminal has fewer pixels than that.
_PICTURE_PX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFill:
    """A queue of the daemon: items and bytes that wait, and the most bytes that ever waited and may wait."""

    name: str
    depth: int
    nbytes: int
    high_water_bytes: int
    max_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """What the mosaic looks like, small.

    Attributes
    ----------
    pixels, coverage : ndarray, (rows, columns)
        Of some level.
    rect : Rect
        What they show, in level-0 pixels.
    extent : Rect
        All that there will be to show, in level-0 pixels.
    """

    pixels: NDArray[Any]
    coverage: NDArray[np.bool_]
    rect: Rect
    extent: Rect


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A run at one moment.

    Attributes
    ----------
    state : str
        Of the daemon.
    elapsed_s : float
        Since the watch began.
    n_placed, n_expected : int
        Frames in the mosaic, and frames that there will be.
    frames_per_s, bytes_per_s : float
        Over the last seconds: what came into the mosaic, in frames and in bytes of their pixels.
    p50_ms, p99_ms : float or None
        From the arrival of a frame to its commit.
    size_px, px_um : (width, height)
        Of the mosaic, and of one of its pixels.
    levels, n_tiles, n_commits : int
        Levels of the pyramid; tiles written and transactions so far.
    n_unacknowledged : int
        Messages that publishers of this process keep until the daemon has them safe.
    queues : tuple of QueueFill
    wal_bytes, run_bytes, free_bytes : int
        Write-ahead log, everything of the run, and room on the disk.
    losses : str
        What is missing or went wrong; empty if nothing.
    notice : str
        What the daemon said of the run last, with the time; empty if nothing.
    notices_before : tuple of str
        What it had said before that, since it was asked last.
    ended : bool
        Whether the run's report has been written, after everything that came.
    picture : Picture or None
    """

    state: str = "starting"
    elapsed_s: float = 0.0
    n_placed: int = 0
    n_expected: int = 0
    frames_per_s: float = 0.0
    bytes_per_s: float = 0.0
    p50_ms: float | None = None
    p99_ms: float | None = None
    size_px: tuple[int, int] = (0, 0)
    px_um: tuple[float, float] = (1.0, 1.0)
    levels: int = 0
    n_tiles: int = 0
    n_commits: int = 0
    n_unacknowledged: int = 0
    queues: tuple[QueueFill, ...] = ()
    wal_bytes: int = 0
    run_bytes: int = 0
    free_bytes: int = 0
    losses: str = ""
    notice: str = ""
    notices_before: tuple[str, ...] = ()
    ended: bool = False
    picture: Picture | None = None


class RunWatch:
    """Follows one run.

    Parameters
    ----------
    notify, query : str
        The daemon's endpoints.
    run : str
        Which; it need not have begun.
    n_expected : int
        Frames that it will have.
    frame_nbytes : int
        Size of a frame's pixels.
    extent : Rect, optional
        Where the scan will go, in level-0 pixels, for the picture; without it there is none.

    Raises
    ------
    DisconnectedError
        No daemon is there.
    """

    def __init__(
        self, notify: str, query: str, run: str, *, n_expected: int, frame_nbytes: int, extent: Rect | None = None
    ) -> None:
        self._client = Client(notify, query, run=run, notices=True, timeout_s=_ANSWER_S)
        self._run = run
        self._frame_nbytes = frame_nbytes
        self._extent = extent
        self._began_s = time.monotonic()
        self._progress: deque[tuple[float, int]] = deque()
        self._picture_due_s = 0.0
        self._status = Status(n_expected=n_expected)
        try:
            self._client.wait_connected()  # what is notified before is not heard
        except BaseException:
            self._client.close()
            raise

    def poll(self, timeout_s: float, *, n_unacknowledged: int = 0) -> Status:
        """Listen for `timeout_s`, then ask how things are.

        Raises
        ------
        DisconnectedError
            The daemon does not answer.
        """
        deadline_s = time.monotonic() + timeout_s
        heard: list[str] = []
        while (left_s := deadline_s - time.monotonic()) > 0:
            update = self._client.next_update(left_s)
            if isinstance(update, RunNotice):
                heard.append(f"{time.strftime('%H:%M:%S')} {describe_notice(update.kind, update.detail)}")
        if heard:
            self._status = replace(self._status, notice=heard[-1], notices_before=tuple(heard[:-1]))
        self._ask(n_unacknowledged)
        return self._status

    def report(self) -> dict[str, Any]:
        """The run report as it stands; raises as `Client.report`."""
        return dict(self._client.report(self._run)["report"])

    def _ask(self, n_unacknowledged: int) -> None:
        stats = self._client.stats()
        now_s = time.monotonic()
        self._status = replace(
            self._status,
            state=stats["state"],
            elapsed_s=now_s - self._began_s,
            p50_ms=stats["latency_ms"]["p50"],
            p99_ms=stats["latency_ms"]["p99"],
            n_tiles=stats["store"]["n_tiles"],
            n_commits=stats["store"]["n_commits"],
            wal_bytes=stats["store"]["wal_bytes"],
            free_bytes=stats["store"]["free_bytes"],
            queues=tuple(_fill(name, queue) for name, queue in stats["queues"].items()),
            n_unacknowledged=n_unacknowledged,
        )
        try:
            info = self._client.run(self._run)
            report = self._client.report(self._run)["report"]
        except QueryError as error:
            if error.code != "unknown-run":
                raise
            return  # it has not begun
        bbox, per_s = Rect(*info["bbox"]), self._rate(now_s, info["frames"])
        self._status = replace(
            self._status,
            n_placed=info["frames"],
            size_px=(bbox.width, bbox.height),
            px_um=tuple(info["px_um"]),
            levels=info["levels"],
            run_bytes=info["bytes"],
            ended=info["revision"] > 0,
            losses="" if report is None else describe_losses(report),
            frames_per_s=per_s,
            bytes_per_s=per_s * self._frame_nbytes,
        )
        due = now_s >= self._picture_due_s or self._status.ended
        if self._extent is not None and not bbox.empty and due:
            self._picture_due_s = now_s + _PICTURE_EVERY_S
            self._status = replace(self._status, picture=self._look(bbox, self._extent, info["levels"]))

    def _rate(self, now_s: float, n_placed: int) -> float:
        """Frames per second over the last seconds, not over the whole run: a scan that stands still shows."""
        self._progress.append((now_s, n_placed))
        while len(self._progress) > 2 and now_s - self._progress[1][0] >= _RATE_OVER_S:
            self._progress.popleft()
        since_s, before = self._progress[0]
        return (n_placed - before) / (now_s - since_s) if now_s > since_s else 0.0

    def _look(self, bbox: Rect, extent: Rect, levels: int) -> Picture:
        """What is covered so far, at the finest level at which it is small, or the coarsest there is."""
        level = next((n for n in range(levels) if max(bbox.height, bbox.width) >> n <= _PICTURE_PX), levels - 1)
        at_level = rect_at_level(bbox, level)
        seen = self._client.region(self._run, level, at_level)
        rect = Rect(*(edge << level for edge in at_level))
        return Picture(pixels=seen.pixels, coverage=seen.coverage, rect=rect, extent=extent.union(rect))

    def close(self) -> None:
        """Close the sockets."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _fill(name: str, queue: Mapping[str, int]) -> QueueFill:
    return QueueFill(
        name=name,
        depth=queue["depth"],
        nbytes=queue["nbytes"],
        high_water_bytes=queue["high_water_bytes"],
        max_bytes=queue["max_bytes"],
    )
