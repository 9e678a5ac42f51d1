"""Where runs, tiles and placements come from: one interface, two ways.

`LocalSource` reads the store of this machine beside the daemon, through `tilecast.reading`; it needs no daemon at all
for runs that have ended. `RemoteSource` asks a daemon on another machine through its query socket. Both give the same
values, so nothing above this module knows which it is. Orders of operators, statistics and health always go to the
daemon, through the query socket.

All methods block, may be called by any thread, and are called in the gateway's pool. News are in `news`.

>>> source = LocalSource(Path("runs"))          # doctest: +SKIP
>>> source.runs()[0].name                       # doctest: +SKIP
'liver, slice 12'
"""

from __future__ import annotations

import abc
import contextlib
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from tilecast.reading import (
    Canvas,
    PlaneKey,
    Rect,
    RunList,
    StoreError,
    TileKey,
    TileReader,
    coverage_bits,
    folder_nbytes,
    run_folder,
    shared_readers,
)
from tilecast_plugins.run import Blob, Run
from tilecast_protocol.client import Client, PlacedFrame
from tilecast_protocol.errors import DisconnectedError, QueryError
from tilecast_protocol.queries import COMMANDS, Reply

PAGE = 4000
"""Most tiles or frames that one answer names."""

_ASK_S: Final = 3.0  # how long a question to the daemon may take
_ORDER_S: Final = 60.0
_SILENT_S: Final = 5.0  # how long a daemon that did not answer is left alone


class UnknownRunError(LookupError):
    """There is no run of that id."""


class NoDaemonError(RuntimeError):
    """What was asked needs the daemon, and the gateway was not told where it is."""


class Changed(NamedTuple):
    """What happened after a rev; rows are (t, c, z, level, row, col, rev). With `resync`, begin anew."""

    epoch: int
    resync: bool
    tiles: list[tuple[int, ...]]
    gone: list[tuple[int, ...]]
    upto: int
    more: bool


class UnreadableRun(NamedTuple):
    """A run whose mosaic cannot be read at the moment, and why."""

    run: str
    state: str
    error: str


class Source(abc.ABC):
    """Runs and what is in them.

    Methods raise `UnknownRunError` if there is no such run, `StoreError`, `QueryError` or `DisconnectedError` if it
    cannot be read, each with a sentence that says why.
    """

    def __init__(self, query: str | None) -> None:
        self._clients = _Clients(query)

    @abc.abstractmethod
    def runs(self) -> list[Run | UnreadableRun]:
        """All runs, newest first."""

    @abc.abstractmethod
    def info(self, run: str) -> Run:
        """A run as it is now."""

    @abc.abstractmethod
    def nbytes(self, run: str) -> int:
        """Bytes on disk of everything of a run."""

    @abc.abstractmethod
    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:
        """A tile as stored, or None if there is none."""

    @abc.abstractmethod
    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:
        """The rev that last wrote a tile; None if there is none."""

    @abc.abstractmethod
    def changes(self, run: str, since: int, epoch: int | None = None, limit: int = PAGE) -> Changed:
        """What changed after the commit `since`; a commit is never cut in two."""

    @abc.abstractmethod
    def placements(self, run: str, since: int = 0, limit: int = PAGE) -> tuple[list[PlacedFrame], bool]:
        """Frames placed after a rev, oldest change first, and whether there are more."""

    @abc.abstractmethod
    def events(self, run: str, limit: int = 1000) -> list[dict[str, Any]]:
        """The run's log, oldest first, the last `limit` entries: {number, t_ns, name, detail}."""

    def report(self, run: str) -> dict[str, Any]:
        """The run's report as it stands: {report, revision, final}; of an open run live, if the daemon can be asked."""
        info = self.info(run)
        if info.state == "open":
            with contextlib.suppress(NoDaemonError, QueryError, ConnectionError):
                return self.ask("report", run=run)
        return {"report": info.report, "revision": info.revision, "final": info.report is not None}

    def ask(self, cmd: str, **arguments: Any) -> dict[str, Any]:
        """The daemon's answer to any query without payload.

        Raises
        ------
        NoDaemonError, QueryError, DisconnectedError
        """
        header = self._clients.ask(cmd, **arguments).header
        return {key: value for key, value in header.items() if key not in ("v", "id", "ok")}

    def close(self) -> None:
        """Let go of what is open."""
        self._clients.close()


class LocalSource(Source):
    """Reads the store on this machine.

    Parameters
    ----------
    root : Path
        The folder of the runs.
    query : str, optional
        The daemon's query endpoint, for orders and statistics.
    """

    def __init__(self, root: Path, query: str | None = None) -> None:
        super().__init__(query)
        self._root = root
        self._list = RunList(root)
        self._readers = shared_readers(root)

    def runs(self) -> list[Run | UnreadableRun]:
        found: list[Run | UnreadableRun] = []
        for entry in reversed(self._list.runs()):
            if entry.info is None:
                found.append(UnreadableRun(entry.run, "making" if entry.making else "damaged", entry.error))
            else:
                found.append(Run.of(entry.info))
        return found

    def info(self, run: str) -> Run:
        with self._reading(run) as reader:
            return Run.of(reader.info())

    def nbytes(self, run: str) -> int:
        return folder_nbytes(self._folder(run))

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:
        with self._reading(run.run) as reader:
            stored = reader.tile(plane, key)
        if stored is None:
            return None
        return Blob(stored.pzf, stored.rev, coverage_bits(stored.coverage, run.tile_size))

    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:
        with self._reading(run.run) as reader:
            return reader.tile_rev(plane, key)

    def changes(self, run: str, since: int, epoch: int | None = None, limit: int = PAGE) -> Changed:
        with self._reading(run) as reader:
            found = reader.changes(since, epoch=epoch, limit=limit)
        return Changed(
            found.epoch,
            found.resync,
            [(*stamp.plane, *stamp.key, stamp.rev) for stamp in found.tiles],
            [(*stamp.plane, *stamp.key, stamp.rev) for stamp in found.gone],
            found.upto,
            found.more,
        )

    def placements(self, run: str, since: int = 0, limit: int = PAGE) -> tuple[list[PlacedFrame], bool]:
        with self._reading(run) as reader:
            rows = list(islice(reader.placements(since), limit + 1))
        return [PlacedFrame._make(row.told) for row in rows[:limit]], len(rows) > limit

    def events(self, run: str, limit: int = 1000) -> list[dict[str, Any]]:
        with self._reading(run) as reader:
            rows = list(reader.events())[-limit:]
        return [{"number": row.number, "t_ns": row.t_ns, "name": row.name, "detail": row.detail} for row in rows]

    def close(self) -> None:
        super().close()
        self._readers.close()

    def _folder(self, run: str) -> Path:
        try:
            folder = run_folder(self._root, run)
        except StoreError as error:
            raise UnknownRunError(f"there is no run {run!r}: runs have UUIDs in lower case") from error
        if not folder.is_dir():
            self._readers.forget(run)
            raise UnknownRunError(f"there is no run {run} here; /api/v1/runs lists those that are")
        return folder

    @contextlib.contextmanager
    def _reading(self, run: str) -> Iterator[TileReader]:
        self._folder(run)
        with self._readers.reading(run) as reader:
            yield reader


class RemoteSource(Source):
    """Asks a daemon, which may run on another machine.

    Parameters
    ----------
    query : str
        Its query endpoint.
    """

    def __init__(self, query: str) -> None:
        super().__init__(query)
        self._listed: dict[str, tuple[dict[str, Any], Run]] = {}

    def runs(self) -> list[Run | UnreadableRun]:
        found: list[Run | UnreadableRun] = []
        listed = {}
        for row in self.ask("runs")["runs"]:
            if "epoch" not in row:
                found.append(UnreadableRun(row["run"], str(row.get("state")), str(row.get("error", ""))))
                continue
            with contextlib.suppress(UnknownRunError):  # deleted this moment
                run = row["run"]
                before = self._listed.get(run)
                one = before[1] if before is not None and before[0] == row else self.info(run)
                listed[run] = row, one
                found.append(one)
        self._listed = listed
        return sorted(found, key=lambda one: -one.created_ns if isinstance(one, Run) else 0)

    def info(self, run: str) -> Run:
        details = self._asked("run", run=run)["run"]
        canvas = details["canvas"]
        size = int(details["tile_size"])
        return Run(
            **{key: details[key] for key in ("run", "name", "instrument", "stream", "state", "epoch", "rev", "levels")},
            tile_size=size,
            dtype=np.dtype(details["dtype"]),
            bboxes={PlaneKey(*plane): Rect(*rect) for plane, rect in details["bboxes"]},
            canvas=canvas and Canvas(Rect(*canvas["bounds"]), canvas["levels"], size, canvas["fixed"]),
            start=details["start"],
            settings=details["settings"],
            created_ns=details["created_ns"],
            n_frames=details["frames"],
            report=details["report"],
            revision=details["revision"],
        )

    def nbytes(self, run: str) -> int:
        return int(self._asked("run", run=run)["run"]["bytes"])

    def tile(self, run: Run, plane: PlaneKey, key: TileKey) -> Blob | None:
        with _known(run.run):
            reply = self._clients.ask("tile", run=run.run, tcz=tuple(plane), level=key.level, row=key.row, col=key.col)
        if reply.header.get("absent"):
            return None
        bits = None if reply.header["coverage"] == "full" else bytes(reply.payload[1])
        return Blob(bytes(reply.payload[0]), int(reply.header["rev"]), bits)

    def tile_rev(self, run: Run, plane: PlaneKey, key: TileKey) -> int | None:
        # Beyond every rev, so that the daemon answers with the rev alone.
        answer = self._asked(
            "tile", run=run.run, tcz=tuple(plane), level=key.level, row=key.row, col=key.col, if_newer=2**62
        )
        return None if answer.get("absent") else int(answer["rev"])

    def changes(self, run: str, since: int, epoch: int | None = None, limit: int = PAGE) -> Changed:
        asked_epoch = self.info(run).epoch if epoch is None else epoch
        answer = self._asked("changes", run=run, epoch=asked_epoch, since=since, limit=limit)
        if answer["resync"]:
            return Changed(answer["epoch"], True, [], [], self.info(run).rev, False)
        tiles, gone = ([tuple(row) for row in answer[key]] for key in ("tiles", "gone"))
        return Changed(answer["epoch"], False, tiles, gone, answer["upto"], answer["more"])

    def placements(self, run: str, since: int = 0, limit: int = PAGE) -> tuple[list[PlacedFrame], bool]:
        answer = self._asked("placements", run=run, since=since, limit=limit)
        return [PlacedFrame._make(row) for row in answer["placements"]], bool(answer["more"])

    def events(self, run: str, limit: int = 1000) -> list[dict[str, Any]]:  # noqa: ARG002  (nobody can be asked)
        self.info(run)
        raise QueryError("unknown-command", "the log of a run is not told by the daemon; read it on its own machine")

    def _asked(self, cmd: str, **arguments: Any) -> dict[str, Any]:
        with _known(str(arguments.get("run"))):
            return self.ask(cmd, **arguments)


@contextlib.contextmanager
def _known(run: str) -> Iterator[None]:
    """Turn the daemon's word for a run that is not there into ours."""
    try:
        yield
    except QueryError as error:
        if error.code != "unknown-run":
            raise
        raise UnknownRunError(f"there is no run {run} here; /api/v1/runs lists those that are") from error


class _Clients:
    """A client of the query socket for each thread, since a client belongs to one.

    A daemon that did not answer is not asked again for some seconds: threads that wait for it would be missing where
    tiles are made.
    """

    def __init__(self, query: str | None) -> None:
        self._query = query
        self._local = threading.local()
        self._lock = threading.Lock()
        self._all: list[Client] = []
        self._silent_until_s = 0.0

    def ask(self, cmd: str, **arguments: Any) -> Reply:
        """Ask through the calling thread's client."""
        if self._query is None:
            raise NoDaemonError("this needs the daemon: start the gateway with the address of its query socket")
        if time.monotonic() < self._silent_until_s:
            raise DisconnectedError(f"the tilecast daemon at {self._query} did not answer a moment ago; is it running?")
        client: Client | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = Client(None, self._query)
            with self._lock:
                self._all.append(client)
        is_order = cmd in COMMANDS and COMMANDS[cmd].operator
        try:
            return client.ask(cmd, timeout_s=_ORDER_S if is_order else _ASK_S, **arguments)
        except DisconnectedError:
            if not is_order:
                self._silent_until_s = time.monotonic() + _SILENT_S
            raise

    def close(self) -> None:
        with self._lock:
            for client in self._all:
                client.close()
            self._all.clear()
