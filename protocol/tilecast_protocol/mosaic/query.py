"""A mosaic read from a daemon, through its query socket; its notifications tell what changes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from typing import Any, Final

import numpy as np

from ..client import Client, Resync, TileRef, TileUpdate
from ..errors import DisconnectedError, QueryError
from ..messages import RunNotice
from ..rects import Rect
from ..sockets import CurveKeys
from .facts import Facts, affine_of, plane_counts
from .source import Changed, News, Source, State, Tile, UnknownRunError, choose_run, frozen

_LISTEN_S: Final = 0.25  # how long following waits for news before it looks whether it is to end
_STATES: Final = frozenset({"started", "idle", "ended", "sealed", "deleted"})


class QuerySource(Source):
    """Asks a daemon.

    Parameters
    ----------
    endpoint : str
        Its option `query`.
    run : str or None
        See `choose_run`.
    notify : str or None
        Its option `notify`, for following; asked for where it is left out.
    curve : CurveKeys, optional
    timeout_s : float
        How long an answer may take.
    """

    def __init__(
        self,
        endpoint: str,
        run: str | None = None,
        *,
        notify: str | None = None,
        curve: CurveKeys | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        self._endpoint = endpoint
        self._notify = notify
        self._curve = curve
        self._timeout_s = timeout_s
        self._local = threading.local()  # a client belongs to one thread
        self._lock = threading.Lock()
        self._clients: list[Client] = []
        try:
            listed = [(one["run"], str(one.get("name", ""))) for one in self._client().runs()]
            self._run = choose_run(listed, run, endpoint)
        except BaseException:
            self.close()
            raise

    def _client(self) -> Client:
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = Client(None, self._endpoint, curve=self._curve, timeout_s=self._timeout_s)
            with self._lock:
                self._clients.append(client)
        return client

    def facts(self) -> Facts:
        with _known(self._endpoint):
            return facts_of(self._client().run(self._run))

    def tile(self, ref: TileRef) -> Tile | None:
        with _known(self._endpoint):
            found = self._client().tile(self._run, ref)
        return None if found is None else frozen(found.pixels, found.coverage)

    def changes(self, epoch: int, since: int) -> Changed:
        with _known(self._endpoint):
            answer = self._client().ask("changes", run=self._run, epoch=epoch, since=since).header
            if answer["resync"]:
                now = self._client().run(self._run)
                return Changed(now["epoch"], now["rev"], True)
        tiles, gone = (tuple(TileRef(*row[:6]) for row in answer[key]) for key in ("tiles", "gone"))
        return Changed(answer["epoch"], answer["upto"], False, tiles, gone, answer["more"])

    def updates(self, epoch: int, rev: int, stop: threading.Event) -> Generator[News, None, None]:
        notify = self._notify or self._announced()
        with Client(
            notify, self._endpoint, run=self._run, notices=True, curve=self._curve, timeout_s=self._timeout_s
        ) as client:
            while not stop.is_set():
                try:
                    news = client.next_update(_LISTEN_S)
                except DisconnectedError:
                    continue  # nothing is lost by that: it asks again
                match news:
                    case Resync(reason="joined"):
                        yield from self.since(self._run, epoch, rev)
                    case TileUpdate() | Resync():
                        yield news
                    case RunNotice(kind=kind) if kind in _STATES:
                        yield State("open" if kind == "started" else kind)

    def _announced(self) -> str:
        """Where the daemon says that its notifications are."""
        told: str | None = self._client().hello().get("endpoints", {}).get("notify")
        if not told:
            raise ValueError(
                f"the daemon at {self._endpoint} does not say where its notifications are; give notify=ENDPOINT"
            )
        kind, _, address = told.partition("://")
        host, _, port = address.rpartition(":")
        if kind == "tcp" and host in ("*", "0.0.0.0", "[::]"):
            return f"tcp://{self._endpoint.partition('://')[2].rpartition(':')[0]}:{port}"
        return told

    def close(self) -> None:
        with self._lock:
            clients, self._clients = self._clients, []
        for client in clients:
            client.close()


def facts_of(told: dict[str, Any]) -> Facts:
    """What the answer to `run` says."""
    start, canvas, size = told["start"], told["canvas"], int(told["tile_size"])
    boxes = {(plane[0], plane[1], plane[2]): Rect(*rect) for plane, rect in told["bboxes"]}
    return Facts(
        run=told["run"],
        name=told["name"],
        state=told["state"],
        epoch=told["epoch"],
        rev=told["rev"],
        levels=told["levels"],
        tile_shape=(size, size),
        dtype=np.dtype(told["dtype"]),
        counts=plane_counts(start, boxes),
        boxes=boxes,
        canvas=None if canvas is None else Rect(*canvas["bounds"]),
        affine=affine_of(start),
        start=start,
    )


@contextlib.contextmanager
def _known(endpoint: str) -> Iterator[None]:
    try:
        yield
    except QueryError as error:
        if error.code != "unknown-run":
            raise
        raise UnknownRunError(f"the daemon at {endpoint} does not have this run any more: {error}") from error
