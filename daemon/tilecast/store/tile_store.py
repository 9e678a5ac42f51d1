"""What a tile store can do: the interface that the rest of tilecast reads and writes one run through.

A store holds one run: its metadata, where its frames lie (*placements*), its tiles at every level, and what happened
to it. It is split in two. `TileReader` only reads; viewers, queries, `fsck` and the pyramid (which asks for committed
tiles and for the placements under a tile) need no more. `TileStore` adds writing, for the one thread that owns it.

Everything that changes together is written together: a `Commit` carries tiles, tiles that vanished, placements, levels
and boxes, and is applied whole or not at all. Each commit raises ``rev`` by exactly 1; ``rev`` is never reset, not by a
rebuild either. ``epoch`` counts histories: when it rises, what a viewer remembers is void.

Three decisions, for the next reader:

* *Coverage lies in the tile's row.* It follows from the placements, but to derive the coverage of a tile of the top
  level one would have to visit every placement under it: the cost of showing a tile would grow with the mosaic. So the
  pyramid, which has the mask at hand, hands it over with the tile (`tilecast.store.coverage`).
* *A page of `changes` never cuts a commit in two.* Its ``limit`` is therefore soft: a commit with more tiles than that
  comes as one page. A reader can then always go on from ``upto``, a number it already understands.
* *Vanished tiles leave tombstones*, or a viewer that missed a notification would show them for ever. They are dropped
  when the epoch rises, since every viewer then starts anew.

This module does not know SQLite, files, PZF or pixels; the blobs are opaque here. Two implementations exist,
`tilecast.store.sqlite_store` and, for tests, `tilecast.testing.memory_store`; both pass
`tilecast.testing.store_suite`, as any other must.

>>> from tilecast.geometry import PlaneKey, TileKey
>>> from tilecast.testing.memory_store import MemoryStore
>>> store = MemoryStore(NewRun(run="0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55", name="liver 3", instrument="scope",
...                            stream="cam0", start=b"", settings={"tile_size": 256}))
>>> store.commit(Commit(tiles=[TileRow(PlaneKey(), TileKey(0, -1, 4), b"PZF bytes")], levels=1)).rev
1
>>> store.tile(PlaneKey(), TileKey(0, -1, 4)).rev
1
"""

from __future__ import annotations

import abc
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgpack

from tilecast.errors import StoreError
from tilecast.geometry import Canvas, Placement, PlaneKey, Rect, TileKey, union_of

#: Longest page of `snapshot` and `changes` where the caller names none: about 100 kB on the wire.
PAGE_ITEMS = 4000

# Corners lie within ±2**30 (geometry.MAX_PIXEL); the spatial index holds 32-bit integers, so nothing may reach past.
_MAX_EDGE = 2**31 - 1
_MAX_NUMBER = 2**63  # what a store must be able to hold of frame numbers


class StoreFullError(StoreError, OSError):
    """The disk that holds the store is full; nothing of the refused write was kept, and it can be tried again."""


class StoreBusyError(StoreError):
    """Another program keeps the store locked; nothing was written, and it can be tried again."""


class StoreDamagedError(StoreError):
    """The store is missing, unfinished or ruined, and can only be made anew from the journal."""


class StoreUnfinishedError(StoreDamagedError):
    """The store is being made this moment, or its making was cut short."""


class TileRow(NamedTuple):
    """A tile to be committed.

    Attributes
    ----------
    plane, key
        Which tile.
    pzf : bytes-like
        Its pixels as a PZF record; stored as they are.
    coverage : bytes or None
        None where every pixel is covered, else as `tilecast.store.coverage.coverage_pack` makes it.
    """

    plane: PlaneKey
    key: TileKey
    pzf: bytes | memoryview | bytearray
    coverage: bytes | None = None


class StoredTile(NamedTuple):
    """A tile as stored: its PZF bytes, the rev that last wrote it, and its packed coverage (None: full)."""

    pzf: bytes
    rev: int
    coverage: bytes | None


class TileStamp(NamedTuple):
    """Which tile, and the rev that last changed it."""

    plane: PlaneKey
    key: TileKey
    rev: int


class PlacementRow(NamedTuple):
    """A placement, and the rev that last changed it."""

    placement: Placement
    rev: int

    @property
    def told(self) -> list[Any]:
        """As viewers are told of it: frame, view, t, c, z, row, col, height, width, source, index, rev."""
        one = self.placement
        return [
            *(one.frame, one.view, *one.plane, one.row, one.col, one.height, one.width, one.source, one.index),
            self.rev,
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What a store is created from; none of it but the name ever changes (short of a rebuild).

    Attributes
    ----------
    run : str
        Its UUID, canonical lower-case text.
    name, instrument, stream : str
        As in the run's `start` message.
    start : bytes
        The header of the `start` message, msgpack, exactly as it came.
    settings : mapping
        What `start` was resolved to and frozen: anything JSON can hold.
    """

    run: str
    name: str
    instrument: str
    stream: str
    start: bytes
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a viewer has to know of a run at one instant.

    Attributes
    ----------
    run, name, instrument, stream, settings
        As in `NewRun`; ``name`` may have been changed since.
    state : str
        Life of the run (PROTOCOL): ``open``, ``idle``, ``ended`` or ``sealed``.
    epoch, rev : int
        The history, from 1, and the number of its last commit, 0 before the first.
    levels : int
        Number of levels of every plane, 0 before the first commit.
    bboxes : dict of PlaneKey to Rect
        What is covered so far, level-0 pixels.
    canvas : Canvas or None
        What viewers with non-negative indices are shown, once there is one.
    created_ns : int
        UTC.
    report : dict or None
        The last run report, and in ``revision`` its number; 0 if none was issued.
    """

    run: str
    name: str
    instrument: str
    stream: str
    settings: dict[str, Any]
    state: str
    epoch: int
    rev: int
    levels: int
    bboxes: dict[PlaneKey, Rect]
    canvas: Canvas | None
    created_ns: int
    report: dict[str, Any] | None
    revision: int

    @property
    def bbox(self) -> Rect:
        """What all planes cover together, level-0 pixels; empty for none."""
        return union_of(self.bboxes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo(RunFacts):
    """All metadata of a run at one instant.

    Attributes
    ----------
    start : bytes
        As in `NewRun`.
    epoch_rev : int
        The ``rev`` at which this epoch began: nobody can have seen an older one under this epoch.
    updated_ns : int
        UTC, when anything of it was last written.
    n_tiles, n_placements : int
        Rows now in the store.
    clipped : two int
        Pixels of frames that were clipped before they were blended, below and above what their type holds.
    """

    start: bytes
    epoch_rev: int
    updated_ns: int
    n_tiles: int
    n_placements: int
    clipped: tuple[int, int] = (0, 0)

    @property
    def header(self) -> dict[str, Any]:
        """The header of the `start` message, decoded; empty if the run had none."""
        return unpack_start(self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Everything that one transaction changes. All parts are optional; even an empty commit raises ``rev``.

    Attributes
    ----------
    tiles : sequence of TileRow
        New contents of tiles, each tile at most once.
    gone : sequence of (PlaneKey, TileKey)
        Tiles that no frame covers any more.
    placements : sequence of Placement
        New ones, and moved ones under the (frame, view) they had.
    removed_placements : sequence of (frame, view)
        Frames taken out of the mosaic. A journalled frame without a row counts as not yet placed.
    levels : int, optional
        Number of levels from now on; None leaves it.
    bboxes : mapping of PlaneKey to Rect
        New boxes of those planes; others stay.
    canvas : Canvas, optional
        The canvas from now on; None leaves it.
    t_recv_ns : int, optional
        UTC, when the oldest frame in it arrived.
    new_epoch : str, optional
        A reason to raise the epoch with this commit, for instance that the canvas moved; None leaves the epoch.
    events : sequence of (name, detail)
        Written to the run's log with it.
    clipped : two int
        Pixels of the new frames that were clipped, below and above what their type holds; the store adds them up.
    """

    tiles: Sequence[TileRow] = ()
    gone: Sequence[tuple[PlaneKey, TileKey]] = ()
    placements: Sequence[Placement] = ()
    removed_placements: Sequence[tuple[int, int]] = ()
    levels: int | None = None
    bboxes: Mapping[PlaneKey, Rect] = field(default_factory=dict)
    canvas: Canvas | None = None
    t_recv_ns: int | None = None
    new_epoch: str | None = None
    events: Sequence[tuple[str, Mapping[str, Any]]] = ()
    clipped: tuple[int, int] = (0, 0)


class CommitResult(NamedTuple):
    """What a commit became: its rev, the epoch it belongs to, and when it was done (UTC, ns)."""

    rev: int
    epoch: int
    t_commit_ns: int


class CommitRow(NamedTuple):
    """One line of a run's history of commits; times are UTC in ns, counts are of rows."""

    rev: int
    epoch: int
    t_recv_ns: int | None
    t_commit_ns: int
    n_tiles: int
    n_gone: int
    n_placements: int


class EventRow(NamedTuple):
    """One entry of a run's log: its number, when (UTC, ns), what, and details."""

    number: int
    t_ns: int
    name: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A page of all tiles.

    Attributes
    ----------
    epoch, rev : int
        At the time of this page. A reader of several pages goes on with `changes` from the rev of the *first*; if the
        epoch differs between two pages, it starts again.
    tiles : tuple of TileStamp
        Sorted by plane, level, row, column (planes in the order of their first appearance).
    more : bool
        Whether to ask again, with ``after`` the last of these.
    """

    epoch: int
    rev: int
    tiles: tuple[TileStamp, ...]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What happened after a rev.

    Attributes
    ----------
    epoch : int
        The store's epoch.
    resync : bool
        The asker's epoch or rev is not of this history: drop everything, take a `snapshot`. The rest is then empty.
    tiles, gone : tuple of TileStamp
        Each tile once, with its latest rev, oldest first: those to fetch, those to forget.
    upto : int
        Everything up to this rev has been told; the next ``since``.
    more : bool
        Whether there is a next page.
    """

    epoch: int
    resync: bool
    tiles: tuple[TileStamp, ...]
    gone: tuple[TileStamp, ...]
    upto: int
    more: bool


class Position(NamedTuple):
    """Where a frame, or a view of it, lies in one of a run's layouts: its upper left pixel, and how that is known."""

    frame: int
    view: int
    row: int
    col: int
    source: str


class EdgeRow(NamedTuple):
    """A shift between two frames that overlap, as registration found it.

    Attributes
    ----------
    first, second : int
        The frames.
    view : int
        Of both.
    row, col : int
        The second's upper left pixel less that of the first, pixels.
    quality, ncc : float
        How far it stands out from chance; normalized cross-correlation of the overlap.
    left_px : float
        What the registered positions leave of it, pixels.
    used : bool
        Whether it took part in them.
    """

    first: int
    second: int
    view: int
    row: int
    col: int
    quality: float
    ncc: float
    left_px: float
    used: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What is kept of a run's registration, whichever of its layouts the mosaic is made by.

    Attributes
    ----------
    facts : dict
        How it was made and how it went: anything JSON can hold.
    edges : tuple of EdgeRow
    stage, registered : tuple of Position
        Where frames lie by the stage, and by registration; those that are in neither lie where they were placed.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    edges: tuple[EdgeRow, ...] = ()
    stage: tuple[Position, ...] = ()
    registered: tuple[Position, ...] = ()


class StoreSize(NamedTuple):
    """Bytes on disk: of the tiles' file, and of what has been committed beside it and not yet been moved into it."""

    file_nbytes: int
    wal_nbytes: int

    @property
    def nbytes(self) -> int:
        """Both together."""
        return self.file_nbytes + self.wal_nbytes


class TileReader(abc.ABC):
    """Reading one run. Each call sees one instant of the store; iterators see each of their pages at one instant.

    All methods raise `StoreError` if the store cannot be read, with what to do about it.
    """

    @abc.abstractmethod
    def info(self) -> RunInfo:
        """All metadata of the run."""

    @abc.abstractmethod
    def tile(self, plane: PlaneKey, key: TileKey) -> StoredTile | None:
        """One tile, or None if there is none; StoreDamagedError if its bytes are not those that were committed."""

    @abc.abstractmethod
    def tile_rev(self, plane: PlaneKey, key: TileKey) -> int | None:
        """The rev that last wrote a tile, without its pixels; None if there is no such tile."""

    @abc.abstractmethod
    def snapshot(
        self,
        plane: PlaneKey | None = None,
        level: int | None = None,
        *,
        after: tuple[PlaneKey, TileKey] | None = None,
        limit: int = PAGE_ITEMS,
    ) -> Snapshot:
        """A page of tiles with their revs.

        Parameters
        ----------
        plane, level : optional
            Only these; None takes all.
        after : (PlaneKey, TileKey), optional
            The last tile of the page before.
        limit : int
            Most tiles in the page, at least 1.
        """

    @abc.abstractmethod
    def changes(self, since: int, *, epoch: int | None = None, limit: int = PAGE_ITEMS) -> Changes:
        """What changed after the commit `since`.

        Parameters
        ----------
        since : int
            The asker has everything up to this rev.
        epoch : int, optional
            The epoch the asker is in; None stands for the store's own.
        limit : int
            About how many tiles to tell at once, at least 1; a single larger commit still comes whole.
        """

    @abc.abstractmethod
    def covering(self, plane: PlaneKey, rect: Rect) -> list[Placement]:
        """The placements of a plane that share a pixel with a level-0 rectangle, in the order of the journal."""

    @abc.abstractmethod
    def placement(self, frame: int, view: int = 0) -> PlacementRow | None:
        """Where a frame lies, or None if it has no placement."""

    @abc.abstractmethod
    def placements(self, since: int = 0, *, after: tuple[int, int, int] | None = None) -> Iterator[PlacementRow]:
        """All placements changed after rev `since`, oldest change first.

        One that moves meanwhile may come twice, the later one last.

        Parameters
        ----------
        since : int
        after : (rev, frame, view), optional
            The last of these rows that the asker has, to go on behind it. If that frame was taken out meanwhile, the
            others of its rev may come again.
        """

    @abc.abstractmethod
    def placed_indices(self) -> Iterator[int]:
        """The journal's image index of each placement, in no order; once per view where a frame has several.

        Recovery handles every image that is not among them.
        """

    @abc.abstractmethod
    def commits(self, after: int = 0) -> Iterator[CommitRow]:
        """The history of commits after a rev, oldest first."""

    @abc.abstractmethod
    def events(self, after: int = 0) -> Iterator[EventRow]:
        """The run's log after an entry's number, oldest first: events, notes, changes of epoch."""

    @abc.abstractmethod
    def reports(self) -> dict[int, dict[str, Any]]:
        """Every run report issued so far, by revision."""

    @abc.abstractmethod
    def registration(self) -> Registration | None:
        """What registration found, if the run was registered."""

    @abc.abstractmethod
    def size(self) -> StoreSize:
        """Bytes on disk, without looking inside."""

    @abc.abstractmethod
    def check(self, on_tick: Callable[[], None] | None = None) -> list[str]:
        """Look for anything that contradicts itself, as `fsck` does; reads the whole store.

        Parameters
        ----------
        on_tick : callable, optional
            Called every now and then meanwhile, so that a person can be shown that work goes on.

        Returns
        -------
        list of str
            One sentence per finding; empty if all is well. Damage is a finding, not an exception.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing."""

    def keys(self, plane: PlaneKey, level: int | None = None) -> Iterator[TileKey]:
        """The keys of a plane's tiles, of one level or of all, sorted by level, row, column."""
        for stamp in self.stamps(plane, level):
            yield stamp.key

    def stamps(self, plane: PlaneKey | None = None, level: int | None = None) -> Iterator[TileStamp]:
        """All tiles with their revs, page by page in the order of `snapshot`; tiles committed meanwhile may show.

        Raises
        ------
        StoreError
            If the epoch rises between two pages: what came so far is then of another history.
        """
        page = self.snapshot(plane, level)
        yield from page.tiles
        while page.more:
            epoch, last = page.epoch, page.tiles[-1]
            page = self.snapshot(plane, level, after=(last.plane, last.key))
            if page.epoch != epoch:
                raise StoreError("the run began a new epoch while its tiles were listed; list them again")
            yield from page.tiles

    def has_placement(self, frame: int, view: int = 0) -> bool:
        """Whether a frame has been placed."""
        return self.placement(frame, view) is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class TileStore(TileReader):
    """Reading and writing one run. Used by the thread that opened it, and by no other."""

    @abc.abstractmethod
    def commit(self, commit: Commit) -> CommitResult:
        """Apply a commit whole, or, if this raises, not at all.

        Raises
        ------
        StoreError
            If the commit contradicts itself, or cannot be written.
        StoreFullError
            If there is no room for it.
        """

    @abc.abstractmethod
    def bump_epoch(self, reason: str) -> int:
        """Begin a new history: viewers will drop what they have. Returns the new epoch; the rev stays."""

    @abc.abstractmethod
    def set_state(self, state: str) -> None:
        """Note where the run is in its life."""

    @abc.abstractmethod
    def set_report(self, revision: int, report: Mapping[str, Any]) -> None:
        """Keep a run report under its revision, from 1; the same revision again replaces it."""

    @abc.abstractmethod
    def keep_registration(self, registration: Registration | None) -> None:
        """Keep what registration found in place of what it found before; None forgets it. Placements stay."""

    @abc.abstractmethod
    def rename(self, name: str) -> None:
        """Give the run another name; the old one is kept in its log and in its `start`."""

    @abc.abstractmethod
    def add_event(self, name: str, detail: Mapping[str, Any], *, t_ns: int | None = None) -> int:
        """Add to the run's log; `t_ns` (UTC) is now by default. Returns the number of the entry."""

    def add_note(self, text: str) -> int:
        """Keep a person's remark in the run's log. Returns the number of the entry."""
        return self.add_event("note", {"text": text})


def check_new_run(new: NewRun) -> None:
    """Refuse what no store may be created from.

    Raises
    ------
    StoreError
        If the run is not a canonical UUID, or its `start` is not a msgpack map.
    """
    check_run_id(new.run)
    unpack_start(new.start)


def check_run_id(run: str) -> None:
    """Refuse anything but a canonical UUID: the text becomes the name of a folder.

    Raises
    ------
    StoreError
        With what was found.
    """
    try:
        canonical = str(uuid.UUID(run))
    except ValueError:
        canonical = None
    if run != canonical:
        raise StoreError(
            f"a run is known by a UUID in lower case, such as 0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55; got {run!r}"
        )


def unpack_start(start: bytes) -> dict[str, Any]:
    """The decoded header of a `start` message; empty for no bytes.

    Raises
    ------
    StoreError
        If the bytes are not one msgpack map.
    """
    if not start:
        return {}
    try:
        header = msgpack.unpackb(start)
    except ValueError as error:
        raise StoreError(f"the header of the run's start message should be msgpack, and is not ({error})") from error
    if not isinstance(header, dict):
        raise StoreError(f"the header of the run's start message should be a map, and is a {type(header).__name__}")
    return header


def check_commit(commit: Commit) -> None:
    """Refuse a commit that contradicts itself, before anything is written; every store calls this first.

    Raises
    ------
    StoreError
        If a tile or a placement comes twice, is written and removed at once, or has an impossible size or level.
    """
    written = {(row.plane, row.key) for row in commit.tiles}
    gone = set(commit.gone)
    if len(written) != len(commit.tiles) or len(gone) != len(commit.gone) or written & gone:
        raise StoreError("a commit names each tile once, to be written or gone; this one names a tile twice")
    for _, key in (*written, *gone):
        if key.level < 0:
            raise StoreError(f"a tile's level is 0 or more; got {key}")
    placed = {placement.id for placement in commit.placements}
    removed = set(commit.removed_placements)
    if len(placed) != len(commit.placements) or len(removed) != len(commit.removed_placements) or placed & removed:
        raise StoreError("a commit names each (frame, view) once, to be placed or removed; this one names one twice")
    for placement in commit.placements:
        if not (0 <= placement.frame < _MAX_NUMBER and 0 <= placement.index < _MAX_NUMBER and placement.view >= 0):
            raise StoreError(f"frame, view and image index are 0 or more and below 2**63; got {placement}")
        rect = placement.rect
        if rect.empty or rect.row0 < -_MAX_EDGE or rect.col0 < -_MAX_EDGE or max(rect.row1, rect.col1) > _MAX_EDGE:
            raise StoreError(
                f"frame {placement.frame} should cover at least a pixel and lie within ±2**31 pixels; got {rect}"
            )
    if commit.levels is not None and commit.levels < 0:
        raise StoreError(f"a run has 0 or more levels; got {commit.levels}")


def check_page(limit: int) -> None:
    """Refuse a page without room.

    Raises
    ------
    StoreError
        If `limit` is below 1.
    """
    if limit < 1:
        raise StoreError(f"a page holds at least 1 item; got a limit of {limit}")


def cut_changes(tiles: Sequence[TileStamp], gone: Sequence[TileStamp], limit: int) -> int | None:
    """Where a page of changes ends, so that no commit is cut in two.

    Parameters
    ----------
    tiles, gone : sequences of TileStamp
        The changes after the asker's rev, oldest first; at least the first ``limit + 1`` of each.

    Returns
    -------
    int or None
        The last rev of the page; None if everything fits.
    """
    if len(tiles) + len(gone) <= limit:
        return None
    revs = sorted(stamp.rev for stamp in (*tiles, *gone))
    first_left_out = revs[limit]
    whole = [rev for rev in revs[:limit] if rev < first_left_out]
    return whole[-1] if whole else first_left_out
