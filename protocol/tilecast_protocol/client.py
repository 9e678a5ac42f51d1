"""Follow a mosaic while it grows: what a viewer, an analysis or an operator's script imports.

    from tilecast_protocol.client import Client, Resync, TileUpdate

    with Client("tcp://127.0.0.1:5572", "tcp://127.0.0.1:5573", instrument="scope-2") as client:
        for update in client.updates():
            match update:
                case Resync(run=run):  # begin anew: drop what is cached of this run
                    show(client.snapshot(run).tiles)
                case TileUpdate(run=run, tiles=tiles, gone=gone):
                    show(client.tile(run, tile) for tile in tiles)

Notifications can be lost: a viewer may be slow, a cable may be pulled. They are numbered, so the client sees a hole and
asks the daemon what changed meanwhile; whoever iterates gets every change, in order, and never notices. What cannot be
made good in this way (a run that was going on before we came, a run that was rebuilt) arrives as a `Resync`.

Either endpoint may be left out: without `query` a hole is a `Resync` too; without `notify` there is nothing to iterate
over. A client belongs to one thread. How the questions and answers look is in `protocol/README.md`, sections 3 and 4.

This module does not know how a mosaic is shown, nor where it is stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeAlias, overload

import numpy as np
import zmq
from numpy.typing import NDArray

from . import checks
from .errors import DisconnectedError, MalformedError, QueryError
from .messages import DaemonHeartbeat, RunNotice, Tiles, daemon_topic, parse_from_daemon, subscription
from .queries import Reply, make_query, parse_reply
from .sockets import CurveKeys, Link

MAX_ATTEMPTS: Final = 5
"""How often reading page by page is begun anew because the run was rebuilt meanwhile."""


class TileRef(NamedTuple):
    """Which tile: plane, level (0 is full resolution), row and column (signed)."""

    t: int
    c: int
    z: int
    level: int
    row: int
    col: int

    @property
    def tcz(self) -> tuple[int, int, int]:
        """The plane."""
        return self.t, self.c, self.z


@dataclass(frozen=True, slots=True)
class TileUpdate:
    """Tiles have changed.

    Attributes
    ----------
    run : str
        In which run.
    epoch, rev : int
        How far this update leads: after it, one has everything up to `rev`.
    tiles, gone : tuple of TileRef
        Written, and removed.
    t_recv_ns, t_commit_ns : int or None
        When the oldest frame in it reached the daemon, and when it was committed (UTC); None where that is not known.
    bbox_um : ((x0, y0), (x1, y1)) or None
        What the mosaic covers so far.
    healed : bool
        Whether it stands for notifications that were lost (or were too long to name their tiles).
    """

    run: str
    epoch: int
    rev: int
    tiles: tuple[TileRef, ...]
    gone: tuple[TileRef, ...] = ()
    t_recv_ns: int | None = None
    t_commit_ns: int | None = None
    bbox_um: tuple[tuple[float, float], tuple[float, float]] | None = None
    healed: bool = False


@dataclass(frozen=True, slots=True)
class Resync:
    """What is cached of this run does not hold any more: drop it, and begin from `snapshot`.

    `reason`: `joined` (the run was going on before we came), `epoch` (it was rebuilt, or lost something), `hole`
    (updates were lost, and there is no query endpoint to ask).
    """

    run: str
    epoch: int
    rev: int
    reason: Literal["joined", "epoch", "hole"]


Update: TypeAlias = TileUpdate | Resync | RunNotice
"""What iterating gives; notices about runs only if they were asked for."""


class Tile(NamedTuple):
    """A tile: pixels (rows, columns), which of them are covered (bool, same shape), and its revision."""

    pixels: NDArray[Any]
    coverage: NDArray[np.bool_]
    rev: int


class Unchanged(NamedTuple):
    """A tile that is not newer than asked for."""

    rev: int


class Region(NamedTuple):
    """Pixels of a rectangle (rows, columns), and which of them are covered (bool, same shape)."""

    pixels: NDArray[Any]
    coverage: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All tiles of a run at `rev` or later, each with its own revision. What changes after `rev` is also notified."""

    run: str
    epoch: int
    rev: int
    tiles: dict[TileRef, int]


class PlacedFrame(NamedTuple):
    """Where a frame lies: (row, col) of its corner in level-0 pixels of its plane, and how that is known.

    `journal_index` is its number among the images of the run's journal, `rev` the commit that placed it.
    """

    frame: int
    view: int
    t: int
    c: int
    z: int
    row: int
    col: int
    height: int
    width: int
    source: str
    journal_index: int
    rev: int


@dataclass(frozen=True, slots=True)
class Placements:
    """The frames of a run that have a place, and those that have none.

    Attributes
    ----------
    placed : tuple of PlacedFrame
        Those placed last come last.
    unplaced : tuple of dict
        For each reason `why` a frame may have no place, the ranges [first, last] of `frames`.
    epoch, rev : int
        Up to where this holds; the next `since`, if the epoch is still the same.
    """

    placed: tuple[PlacedFrame, ...]
    unplaced: tuple[dict[str, Any], ...]
    epoch: int
    rev: int


class Lag(NamedTuple):
    """How far behind the daemon the updates are that were handed out.

    Attributes
    ----------
    revs : int
        Commits that were not handed out yet.
    ns : int
        How old the last one is that was, in nanoseconds by this machine's clock; 0 if there is none newer.
    """

    revs: int
    ns: int


@dataclass(slots=True)
class _Followed:
    """How far a run has been handed out."""

    epoch: int
    rev: int
    t_ns: int


class Client:
    """A viewer's end of the notifications and the queries.

    Times are UTC in nanoseconds, waiting times in seconds.

    Parameters
    ----------
    notify_endpoint, query_endpoint : str or None
        The daemon's `notify` and `query`.
    run, instrument, stream : str, optional
        Follow only this run, instrument, or stream of an instrument.
    notices : bool
        Whether iterating also gives notices about runs (`RunNotice`: started, ended, gap, report …).
    curve : CurveKeys, optional
        Keys for encrypted connections.
    timeout_s : float
        How long a query may take.
    queue_messages : int
        How many notifications may wait for us; those beyond it are lost and made good later.

    Attributes
    ----------
    n_malformed : int
        Notifications that could not be read, and were passed over.
    heartbeat : DaemonHeartbeat or None
        The daemon's last heartbeat that iterating came across.

    Raises
    ------
    ValueError
        An endpoint that is none.
    MalformedError
        A name that PROTOCOL does not allow.
    """

    def __init__(
        self,
        notify_endpoint: str | None,
        query_endpoint: str | None,
        *,
        run: str | None = None,
        instrument: str | None = None,
        stream: str | None = None,
        notices: bool = False,
        curve: CurveKeys | None = None,
        timeout_s: float = 10.0,
        queue_messages: int = 1000,
    ) -> None:
        self.notify_endpoint = notify_endpoint
        self.query_endpoint = query_endpoint
        self.timeout_s = timeout_s
        self.n_malformed = 0
        self.heartbeat: DaemonHeartbeat | None = None
        self._run = None if run is None else checks.uuid(run, "run")
        self._instrument = instrument
        self._stream = stream
        self._notices = notices
        self._curve = curve
        self._queue_messages = queue_messages
        self._followed: dict[str, _Followed] = {}
        self._frozen: dict[str, tuple[int, str]] = {}
        self._updates: Iterator[Update] = self._first_updates()
        self._n_asked = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._notify: Link | None = None
        self._query: Link | None = None
        try:
            if notify_endpoint is not None:
                self._notify = self._subscribe(notify_endpoint)
            if query_endpoint is not None:
                self._query = self._connect(query_endpoint)
        except BaseException:
            self.close()
            raise

    def _subscribe(self, endpoint: str) -> Link:
        topics = [subscription(self._instrument, self._stream)]
        if self._stream is not None and self._instrument is not None:
            topics.append(daemon_topic(self._instrument))

        def prepare(socket: zmq.Socket[bytes]) -> None:
            for topic in topics:
                socket.setsockopt_string(zmq.SUBSCRIBE, topic)

        return Link(
            self._context, zmq.SUB, endpoint, receive_hwm=self._queue_messages, curve=self._curve, prepare=prepare
        )

    def _connect(self, endpoint: str) -> Link:
        return Link(self._context, zmq.DEALER, endpoint, curve=self._curve)

    def close(self) -> None:
        """Close the sockets. Calling it again does nothing."""
        for link in (self._notify, self._query):
            if link is not None:
                link.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- following ------------------------------------------------------------------------------------------------

    def updates(self, timeout_s: float = math.inf) -> Iterator[Update]:
        """Iterate over updates; ends when none has come for `timeout_s`. Raises as `next_update`."""
        while (update := self.next_update(timeout_s)) is not None:
            yield update

    def __iter__(self) -> Iterator[Update]:
        return self.updates()

    def next_update(self, timeout_s: float = math.inf) -> Update | None:
        """The next update, or None if none comes within `timeout_s`.

        Raises
        ------
        DisconnectedError
            A hole was seen and the daemon does not answer what changed. Nothing is lost by that: ask again.
        ValueError
            The client was made without the notify endpoint.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            update = next(self._updates, None)
            if update is not None:
                return update
            message = self._receive(deadline_s)
            if message is None:
                return None
            self._updates = self._digest(message)

    def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until the daemon's notifications are connected.

        Raises
        ------
        DisconnectedError
            Nobody is there; says what was seen instead.
        """
        link = self._followed_link()
        patience_s = self.timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + patience_s
        link.watch()
        while not link.connected:
            if not link.monitor.poll(_milliseconds(deadline_s)):
                raise self._unreachable(link, "notify", patience_s)
            link.watch()

    def lag(self, run: str) -> Lag:
        """How far behind the daemon we are with a run; asks the daemon. Raises as `ask`."""
        info = self.run(run)
        known = self._followed.get(_get(info, "run"))
        if known is None or known.epoch != _get(info, "epoch"):
            return Lag(_get(info, "rev"), 0 if known is None else max(0, time.time_ns() - known.t_ns))
        revs = max(0, _get(info, "rev") - known.rev)
        return Lag(revs, max(0, time.time_ns() - known.t_ns) if revs else 0)

    def _followed_link(self) -> Link:
        if self._notify is None:
            raise ValueError("this client was made without notify_endpoint: there is nothing to follow")
        return self._notify

    def _receive(self, deadline_s: float) -> Tiles | RunNotice | DaemonHeartbeat | None:
        """The next notification that we follow, or None at the deadline."""
        link = self._followed_link()
        while link.socket.poll(_milliseconds(deadline_s)):
            parts = link.try_receive()
            if parts is None:
                continue
            try:
                message = parse_from_daemon(parts)
            except MalformedError:
                self.n_malformed += 1
                continue
            if isinstance(message, Tiles | RunNotice | DaemonHeartbeat):
                return message
        return None

    def _first_updates(self) -> Iterator[Update]:
        """Where the run stands that was asked for by name, before anything is notified of it."""
        if self._run is None or self._query is None:
            return
        try:
            info = self.run(self._run)
        except QueryError as error:
            if error.code != "unknown-run":
                raise
            return  # it has not begun
        yield from self._begin(_get(info, "run"), _get(info, "epoch"), _get(info, "rev"))

    def _digest(self, message: Tiles | RunNotice | DaemonHeartbeat) -> Iterator[Update]:
        """What follows from a notification."""
        if isinstance(message, DaemonHeartbeat):
            self.heartbeat = message
            for run, epoch, rev in message.runs:
                # A heartbeat does not say which stream a run belongs to.
                if run in self._followed or (self._run in (None, run) and self._stream is None):
                    yield from self._follow(run, epoch, rev, None)
        elif self._run in (None, message.run):
            if isinstance(message, Tiles):
                yield from self._follow(message.run, message.epoch, message.rev, message)
            elif self._notices:
                yield message

    def _begin(self, run: str, epoch: int, rev: int) -> Iterator[Update]:
        self._followed[run] = _Followed(epoch, rev, time.time_ns())
        if rev:
            yield Resync(run, epoch, rev, "joined")

    def _follow(self, run: str, epoch: int, rev: int, message: Tiles | None) -> Iterator[Update]:
        """The daemon is at `rev` with a run: what of that has not been handed out."""
        known = self._followed.get(run)
        if known is None:
            if message is None or rev != 1:
                yield from self._begin(run, epoch, rev)
                return
            known = self._followed[run] = _Followed(epoch, 0, time.time_ns())  # its first commit: nothing is missing
        if epoch > known.epoch:
            yield self._start_epoch(run, epoch, rev)
        elif epoch == known.epoch and rev > known.rev:
            if message is not None and message.tiles is not None and rev == known.rev + 1:
                known.rev, known.t_ns = rev, message.t_commit_ns
                yield _as_update(message, message.tiles)
            else:
                yield from self._heal(run, known, rev, message)

    def _start_epoch(self, run: str, epoch: int, rev: int) -> Resync:
        self._followed[run] = _Followed(epoch, rev, time.time_ns())
        self._frozen.pop(run, None)
        return Resync(run, epoch, rev, "epoch")

    def _heal(self, run: str, known: _Followed, rev: int, message: Tiles | None) -> Iterator[Update]:
        """Ask for what happened between what was handed out and now."""
        if self._query is None:
            known.rev, known.t_ns = rev, time.time_ns()
            yield Resync(run, known.epoch, rev, "hole")
            return
        more = True
        while more:
            try:
                answer = self.ask("changes", run=run, epoch=known.epoch, since=known.rev).header
                info = self.run(run) if answer.get("resync") else None
            except QueryError as error:
                if error.code != "unknown-run":
                    raise
                self._followed.pop(run, None)  # it was deleted: nothing of it is left to be shown
                return
            if info is not None:
                yield self._start_epoch(run, _get(info, "epoch"), _get(info, "rev"))
                return
            upto = _get(answer, "upto")
            if upto <= known.rev:
                return  # the daemon has announced more than it has to tell: it will come
            known.rev, known.t_ns = upto, time.time_ns()
            more = _get(answer, "more")
            yield TileUpdate(
                run,
                known.epoch,
                upto,
                _refs(_get(answer, "tiles")),
                _refs(_get(answer, "gone")),
                t_recv_ns=message.t_recv_ns if message else None,
                t_commit_ns=message.t_commit_ns if message else None,
                bbox_um=message.bbox_um if message else None,
                healed=True,
            )

    # ---- asking ---------------------------------------------------------------------------------------------------

    def ask(self, cmd: str, *, timeout_s: float | None = None, **arguments: Any) -> Reply:
        """Ask anything of PROTOCOL section 4.

        Parameters
        ----------
        cmd : str
            The command.
        timeout_s : float, optional
            In place of the client's.
        **arguments
            Of that command; those that are None are left out.

        Raises
        ------
        QueryError
            The daemon refuses, or an argument is not what it must be.
        DisconnectedError
            No answer came in time.
        MalformedError
            The answer cannot be read.
        ValueError
            The client was made without the query endpoint.
        """
        if self._query is None or self.query_endpoint is None:
            raise ValueError("this client was made without query_endpoint: there is nobody to ask")
        self._n_asked += 1
        self._query.try_send([make_query(cmd, self._n_asked, **arguments)])
        patience_s = self.timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + patience_s
        while self._query.socket.poll(_milliseconds(deadline_s)):
            parts = self._query.try_receive()
            reply = parse_reply(parts) if parts is not None else None
            if reply is not None and reply.id == self._n_asked:
                reply.raise_for_error()
                return reply
        self._query.watch()
        error = self._unreachable(self._query, "query", patience_s)
        self._query.close()  # what it still has to say would answer the wrong question
        self._query = self._connect(self.query_endpoint)
        raise error

    def _unreachable(self, link: Link, option: str, patience_s: float) -> DisconnectedError:
        seen = f": {link.trouble}" if link.trouble else ""
        stop = "" if seen.endswith("?") else "."
        return DisconnectedError(
            f"no answer from the tilecast daemon at {link.endpoint} within {patience_s:g} s{seen}{stop} "
            f"Is it running (tilecast run), and is this the endpoint of its option {option}?"
        )

    def hello(self) -> dict[str, Any]:
        """The daemon's version, instrument, limits. Raises as `ask`, like all that follow."""
        return _values(self.ask("hello"))

    def runs(self) -> list[dict[str, Any]]:
        """Every run: name, state, shape, px_um, planes, levels, bbox, rev, epoch, bytes."""
        return list(_get(self.ask("runs").header, "runs"))

    def run(self, run: str) -> dict[str, Any]:
        """All metadata of a run: as in `runs`, what `start` said and what it was resolved to, canvas, report so far."""
        return dict(_get(self.ask("run", run=run).header, "run"))

    def report(self, run: str) -> dict[str, Any]:
        """`report` of a run (as it stands now, while it is open), its `revision`, and whether it is `final`."""
        return _values(self.ask("report", run=run))

    def stats(self) -> dict[str, Any]:
        """Queues, rates, latencies, counters, disk, write-ahead log."""
        return dict(_get(self.ask("stats").header, "stats"))

    def health(self) -> dict[str, Any]:
        """State of the daemon, and why it is not ready."""
        return dict(_get(self.ask("health").header, "health"))

    def placements(self, run: str, since: int | None = None) -> Placements:
        """Where each frame lies, and which have no place.

        Parameters
        ----------
        run : str
            The run.
        since : int, optional
            Only what was placed after this revision.

        Raises
        ------
        QueryError
            Also (`conflict`) if the run is rebuilt all the time.
        """
        for _ in range(MAX_ATTEMPTS):
            placements = self._read_placements(run, since)
            if placements is not None:
                return placements
        raise _always_rebuilt(run)

    def _read_placements(self, run: str, since: int | None) -> Placements | None:
        """All pages; None if the epoch changed between two of them."""
        placed: dict[tuple[int, int], PlacedFrame] = {}
        first = page = self.ask("placements", run=run, since=since).header
        while _get(page, "epoch") == _get(first, "epoch"):
            for row in _get(page, "placements"):
                one = PlacedFrame._make(row[:12])
                placed[one.frame, one.view] = one  # one that moved meanwhile comes again
            if not _get(page, "more"):
                unplaced = tuple(_get(page, "unplaced"))
                return Placements(tuple(placed.values()), unplaced, _get(first, "epoch"), _get(first, "rev"))
            after = (one.rev, one.frame, one.view)
            page = self.ask("placements", run=run, since=since, after=after).header
        return None

    def snapshot(self, run: str, *, tcz: tuple[int, int, int] | None = None, level: int | None = None) -> Snapshot:
        """All tiles of a run, or of one plane or level of it.

        Read in pages while the run may be growing: a tile that changes meanwhile is notified anyway.

        Raises
        ------
        QueryError
            Also (`conflict`) if the run is rebuilt all the time.
        """
        for _ in range(MAX_ATTEMPTS):
            snapshot = self._read_snapshot(run, tcz, level)
            if snapshot is not None:
                return snapshot
        raise _always_rebuilt(run)

    def _read_snapshot(self, run: str, tcz: tuple[int, int, int] | None, level: int | None) -> Snapshot | None:
        """All pages; None if the epoch changed between two of them."""
        tiles: dict[TileRef, int] = {}
        first = page = self.ask("snapshot", run=run, tcz=tcz, level=level).header
        while _get(page, "epoch") == _get(first, "epoch"):
            for *tile, rev in _get(page, "tiles"):
                tiles[TileRef(*tile)] = rev
            if not _get(page, "more"):
                return Snapshot(run, _get(first, "epoch"), _get(first, "rev"), tiles)
            after = _get(page, "tiles")[-1][:6]
            page = self.ask("snapshot", run=run, tcz=tcz, level=level, after=after).header
        return None

    @overload
    def tile(self, run: str, tile: TileRef | tuple[int, int, int, int, int, int]) -> Tile | None: ...
    @overload
    def tile(
        self, run: str, tile: TileRef | tuple[int, int, int, int, int, int], *, if_newer: int
    ) -> Tile | Unchanged | None: ...
    def tile(
        self, run: str, tile: TileRef | tuple[int, int, int, int, int, int], *, if_newer: int | None = None
    ) -> Tile | Unchanged | None:
        """One tile.

        Parameters
        ----------
        run : str
            The run.
        tile : TileRef or (t, c, z, level, row, col)
            Which.
        if_newer : int, optional
            The revision one has; `Unchanged` is returned if the daemon has none newer.

        Returns
        -------
        Tile, Unchanged or None
            None if there is no such tile: nothing is covered there.

        Raises
        ------
        PZFError
            The tile's bytes are not a tile of this run.
        """
        ref = TileRef(*tile)
        size, dtype = self._tile_format(run)
        reply = self.ask("tile", run=run, tcz=ref.tcz, level=ref.level, row=ref.row, col=ref.col, if_newer=if_newer)
        if reply.header.get("absent"):
            return None
        if reply.header.get("not_modified"):
            return Unchanged(_get(reply.header, "rev"))
        pixels = _pixels(reply, "pzf", (size, size), dtype)
        return Tile(pixels, _coverage(reply, pixels.shape), _get(reply.header, "rev"))

    def region(
        self,
        run: str,
        level: int,
        bounds: tuple[int, int, int, int],
        *,
        tcz: tuple[int, int, int] = (0, 0, 0),
        codec: Literal["raw", "pzf"] = "pzf",
        fill: float | None = None,
    ) -> Region:
        """Pixels of a rectangle, assembled from tiles.

        Parameters
        ----------
        run : str
            The run.
        level : int
            0 is full resolution.
        bounds : (row0, col0, row1, col1)
            In that level's pixels, signed, half-open.
        tcz : (int, int, int)
            The plane.
        codec : {"raw", "pzf"}
            How the pixels travel; they are the same.
        fill : float, optional
            Value of pixels that are not covered; 0, or NaN in float images, if it is left out.

        Raises
        ------
        PZFError, MalformedError
            What came is not this region.
        """
        _, dtype = self._tile_format(run)
        row0, col0, row1, col1 = bounds
        reply = self.ask("region", run=run, tcz=tcz, level=level, bounds=tuple(bounds), codec=codec, fill=fill)
        pixels = _pixels(reply, codec, (row1 - row0, col1 - col0), dtype)
        return Region(pixels, _coverage(reply, pixels.shape))

    def _tile_format(self, run: str) -> tuple[int, str]:
        """Tile size and pixel type of a run; asked for once."""
        if run not in self._frozen:
            info = self.run(run)
            self._frozen[run] = int(_get(info, "tile_size")), str(_get(info, "dtype"))
        return self._frozen[run]

    # ---- operating ------------------------------------------------------------------------------------------------

    def end(self, run: str) -> None:
        """End a run whose publisher will not (operators only, as all that follow)."""
        self.ask("end", run=run)

    def rebuild(
        self,
        run: str,
        *,
        blend: str | None = None,
        rejoin: bool = False,
        dark: str | None = None,
        flat: str | None = None,
        steps: bool = False,
        layout: str | None = None,
        registration: bool = False,
    ) -> None:
        """Make a run's tiles anew from its journal.

        Returns when it is done, which takes long for a long run: give the client a `timeout_s` to match.

        Parameters
        ----------
        run : str
        blend : str, optional
            Another blend mode.
        rejoin : bool
            Join all positions anew.
        dark, flat : str, optional
            Names of other calibration images in the daemon's `calibration.path`; "none": without.
        steps : bool
            Ask plugins again what is to be done with every frame.
        layout : str, optional
            Place frames as they lie by the "stage", or as they were "registered".
        registration : bool
            Take over the registration that lies in the run's folder for the daemon.
        """
        calibration: dict[str, Any] = {"dark": dark, "flat": flat, "steps": steps}
        places: dict[str, Any] = {"rejoin": rejoin, "layout": layout, "registration": registration}
        self.ask("rebuild", run=run, blend=blend, **calibration, **places)

    def repair(self, run: str) -> dict[str, Any]:
        """Have a run checked, and made good as far as it can be; the answer says what was `done` and what is `left`.

        Returns when it is done, which takes long for a long run, as `rebuild` does.
        """
        return _values(self.ask("repair", run=run))

    def rename(self, run: str, name: str) -> None:
        """Give a run another name."""
        self.ask("rename", run=run, name=name)

    def note(self, run: str, text: str) -> None:
        """Write a note into a run."""
        self.ask("note", run=run, text=text)

    def delete(self, run: str, *, if_seen: tuple[int, int] | None = None, why: str | None = None) -> None:
        """Delete a run, which must not be open, and everything that was recorded of it.

        Parameters
        ----------
        run : str
        if_seen : (int, int), optional
            When its store was last written (UTC, ns), and the bytes of its recording, as they were looked at last: if
            something has come since, it is kept, and the daemon answers `conflict`.
        why : str, optional
            What the log of deletions says for what reason.
        """
        self.ask("delete", run=run, if_seen=None if if_seen is None else list(if_seen), why=why)

    def seal(self, run: str, *, force: bool = False) -> int:
        """Drop a run's journal for good; how many bytes that freed.

        Parameters
        ----------
        run : str
            It must not be open.
        force : bool
            Without a check, whatever would be lost. A check takes long for a long run: give the client a `timeout_s`
            to match.
        """
        return int(_get(self.ask("seal", run=run, force=force).header, "freed_bytes"))

    def reload(self) -> dict[str, Any]:
        """Have the daemon read its configuration again; returns what it says about that."""
        return _values(self.ask("reload"))


def _milliseconds(deadline_s: float) -> int | None:
    """Time until a deadline, as pollers take it; None for ever."""
    if math.isinf(deadline_s):
        return None
    return max(0, math.ceil((deadline_s - time.monotonic()) * 1000))


def _refs(tiles: Any) -> tuple[TileRef, ...]:
    """Tiles from rows [t, c, z, level, row, col, …]."""
    return tuple(TileRef(*row[:6]) for row in tiles)


def _as_update(message: Tiles, tiles: Any) -> TileUpdate:
    return TileUpdate(
        message.run,
        message.epoch,
        message.rev,
        _refs(tiles),
        _refs(message.gone),
        t_recv_ns=message.t_recv_ns,
        t_commit_ns=message.t_commit_ns,
        bbox_um=message.bbox_um,
    )


def _always_rebuilt(run: str) -> QueryError:
    return QueryError("conflict", f"the run {run} was rebuilt {MAX_ATTEMPTS} times while it was read")


def _get(answer: dict[str, Any], key: str) -> Any:
    """A key that an answer must have; raises MalformedError if it has not."""
    if key not in answer:
        raise MalformedError(f"the daemon's answer lacks {key}: it has {', '.join(answer)}")
    return answer[key]


def _values(reply: Reply) -> dict[str, Any]:
    """What an answer says, without its envelope."""
    return {key: value for key, value in reply.header.items() if key not in ("v", "id", "ok")}


def _part(reply: Reply, number: int, what: str) -> bytes | memoryview:
    if number >= len(reply.payload):
        raise MalformedError(f"the answer has no {what}: {len(reply.payload)} payload parts came")
    return reply.payload[number]


def _pixels(reply: Reply, codec: str, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """The first payload part as an array of our own."""
    part = _part(reply, 0, "pixels")
    if codec == "pzf":
        from .pzf import decode_image  # brings the compiler along: only for those who fetch pixels

        return decode_image(part, shape=shape, dtype=dtype)
    expected = shape[0] * shape[1] * np.dtype(dtype).itemsize
    if len(part) != expected:
        raise MalformedError(f"{shape[0]} × {shape[1]} pixels of {dtype} have {expected} bytes; {len(part)} came")
    return np.frombuffer(part, dtype).reshape(shape)  # the memory of the message, which is nobody else's


def _coverage(reply: Reply, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which pixels are covered: all, or a bit for each, row-major, in the second payload part."""
    said = reply.header.get("coverage")
    if said == "full":
        return np.ones(shape, np.bool_)
    if said != "mask":
        raise MalformedError(f"coverage must be full or mask; got {said!r}")
    bits = _part(reply, 1, "coverage mask")
    n_pixels = math.prod(shape)
    if len(bits) != -(-n_pixels // 8):
        raise MalformedError(f"the mask of {n_pixels} pixels has {-(-n_pixels // 8)} bytes; {len(bits)} came")
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=n_pixels).reshape(shape).astype(np.bool_)
