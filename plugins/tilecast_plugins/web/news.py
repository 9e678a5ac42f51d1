"""What happens, as it happens: one thread listens to the daemon, any number of followers in the event loop hear of it.

`Newsroom.follow` gives a queue of news. A follower that does not keep up loses news and is told so (`Lost`); it asks
the store what it missed, as it does after any hole. Without a daemon nothing comes, and whoever follows looks there
now and then.

It does not know HTTP, nor what is done with the news.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import structlog

from tilecast_protocol.client import Client, Resync, TileUpdate
from tilecast_protocol.errors import TilecastError
from tilecast_protocol.messages import DaemonHeartbeat, RunNotice

log = structlog.get_logger()

_PATIENCE_S: Final = 0.5  # how long the thread waits for news before it looks whether it is to end
_AGAIN_S: Final = 2.0  # until it tries again to listen
_QUEUE_ITEMS: Final = 500


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit of a run; `tiles` and `gone` are (t, c, z, level, row, col)."""

    run: str
    epoch: int
    rev: int
    tiles: tuple[tuple[int, ...], ...]
    gone: tuple[tuple[int, ...], ...]
    t_recv_ns: int | None
    t_commit_ns: int | None


@dataclass(frozen=True, slots=True)
class Moved:
    """Something of a run changed, and it is not said what: ask the store from where you are."""

    run: str
    epoch: int
    rev: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something about a run that a person may want to know; PROTOCOL section 3."""

    run: str
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The daemon lives."""

    state: str
    runs: tuple[tuple[str, int, int], ...]
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class StageAt:
    """Where a stage is, as it said last; `t_ns` is when it read that, UTC."""

    instrument: str
    stream: str
    x_um: float
    y_um: float
    z_um: float | None
    moving: bool | None
    t_ns: int


@dataclass(frozen=True, slots=True)
class Lost:
    """News were lost between the last and the next."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The gateway stops: nothing more will come."""


News: TypeAlias = Committed | Moved | Notice | Heartbeat | StageAt | Lost | Ended


class Newsroom:
    """Tells followers what the daemon says.

    Parameters
    ----------
    notify : str or None
        The daemon's notify endpoint; None: there are no news.
    on_news : callable, optional
        Called in the event loop with everything, before followers are told.
    """

    def __init__(self, notify: str | None, on_news: Callable[[News], None] | None = None) -> None:
        self._notify = notify
        self._on_news = on_news
        self._followers: set[asyncio.Queue[News]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.heartbeat: Heartbeat | None = None
        self.heard_at_s = 0.0

    @property
    def n_followers(self) -> int:
        """How many follow."""
        return len(self._followers)

    def start(self) -> None:
        """Begin to listen; in the event loop that followers are in."""
        self._loop = asyncio.get_running_loop()
        if self._notify is not None:
            self._thread = threading.Thread(target=self._listen, name="tilecast-web-news", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """Tell all followers that nothing more comes; in the event loop."""
        self.tell(Ended())

    def stop(self) -> None:
        """Stop listening."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @contextlib.contextmanager
    def follow(self) -> Iterator[asyncio.Queue[News]]:
        """A queue of all news from now on."""
        queue: asyncio.Queue[News] = asyncio.Queue(_QUEUE_ITEMS)
        self._followers.add(queue)
        try:
            yield queue
        finally:
            self._followers.discard(queue)

    def tell(self, news: News) -> None:
        """Hand news to all followers; in the event loop."""
        if isinstance(news, Heartbeat):
            self.heartbeat = news
            self.heard_at_s = asyncio.get_running_loop().time()
        if self._on_news is not None:
            self._on_news(news)
        for queue in self._followers:
            try:
                queue.put_nowait(news)
            except asyncio.QueueFull:
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(Lost())

    def _listen(self) -> None:
        """The thread: everything that comes, until it is stopped."""
        assert self._notify is not None
        while not self._stop.is_set():
            try:
                with Client(self._notify, None, notices=True) as client:
                    self._hear(client)
            except (TilecastError, ValueError, OSError) as error:  # that may change
                log.warning("the daemon cannot be heard; trying again", notify=self._notify, error=str(error))
            except Exception as error:
                log.error("the gateway no longer hears the daemon", error=repr(error), exc_info=error)
                return
            self._stop.wait(_AGAIN_S)

    def _hear(self, client: Client) -> None:
        last: DaemonHeartbeat | None = None
        while not self._stop.is_set():
            try:
                update = client.next_update(_PATIENCE_S)
            except TilecastError as error:
                log.warning("a notification could not be used", error=str(error))
                continue
            if client.heartbeat is not last and client.heartbeat is not None:
                last = client.heartbeat
                self._hand_over(_heartbeat(last))
            if update is not None:
                self._hand_over(_news(update))

    def _hand_over(self, news: News) -> None:
        assert self._loop is not None, "it was started"
        with contextlib.suppress(RuntimeError):  # the loop has ended; so will this thread
            self._loop.call_soon_threadsafe(self.tell, news)


def _heartbeat(message: DaemonHeartbeat) -> Heartbeat:
    return Heartbeat(message.state, tuple((one.run, one.epoch, one.rev) for one in message.runs), message.free_bytes)


def _news(update: TileUpdate | Resync | RunNotice) -> News:
    match update:
        case TileUpdate():
            return Committed(
                update.run,
                update.epoch,
                update.rev,
                update.tiles,
                update.gone,
                update.t_recv_ns,
                update.t_commit_ns,
            )
        case Resync():
            return Moved(update.run, update.epoch, update.rev)
        case RunNotice():
            return Notice(update.run, update.kind, update.detail)
