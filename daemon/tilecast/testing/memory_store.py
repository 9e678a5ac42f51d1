"""A tile store in memory: what the interface asks for, and nothing else.

For tests that need a store and no disk, and as the proof that `tilecast.store.tile_store` can be implemented twice:
it passes the same suite. Slow where that is simpler; nothing here survives the process.

Reading and writing are safe from any thread (one lock), so a `MemoryStore` serves as its own reader.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tilecast.errors import StoreError
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.store.tile_store import (
    PAGE_ITEMS,
    Changes,
    Commit,
    CommitResult,
    CommitRow,
    EventRow,
    NewRun,
    PlacementRow,
    Registration,
    RunInfo,
    Snapshot,
    StoredTile,
    StoreSize,
    TileStamp,
    TileStore,
    check_commit,
    check_new_run,
    check_page,
    cut_changes,
)

_Tile = tuple[PlaneKey, TileKey]


class MemoryStore(TileStore):
    """One run, in dicts.

    Parameters
    ----------
    new : NewRun
        What the run is.
    clock_ns : callable
        UTC in nanoseconds.
    """

    def __init__(self, new: NewRun, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        check_new_run(new)
        now_ns = clock_ns()
        self._clock_ns = clock_ns
        self._guard = threading.RLock()
        self._closed = False
        self._tiles: dict[_Tile, StoredTile] = {}
        self._gone: dict[_Tile, int] = {}
        self._placements: dict[tuple[int, int], PlacementRow] = {}
        self._planes: dict[PlaneKey, int] = {}  # in the order of their first appearance
        self._commits: list[CommitRow] = []
        self._events: list[EventRow] = []
        self._reports: dict[int, dict[str, Any]] = {}
        self._registration: Registration | None = None
        self._info = RunInfo(
            run=new.run,
            name=new.name,
            instrument=new.instrument,
            stream=new.stream,
            start=new.start,
            settings=_plain(new.settings),
            state="open",
            epoch=1,
            rev=0,
            epoch_rev=0,
            levels=0,
            bboxes={},
            canvas=None,
            created_ns=now_ns,
            updated_ns=now_ns,
            n_tiles=0,
            n_placements=0,
            report=None,
            revision=0,
        )

    def reopen(self) -> MemoryStore:
        """Go on after `close`, as one opens a file again."""
        with self._guard:
            self._closed = False
        return self

    def info(self) -> RunInfo:
        with self._locked():
            revision = max(self._reports, default=0)
            return replace(
                self._info,
                bboxes=dict(self._info.bboxes),
                n_tiles=len(self._tiles),
                n_placements=len(self._placements),
                revision=revision,
                report=self._reports.get(revision),
            )

    def tile(self, plane: PlaneKey, key: TileKey) -> StoredTile | None:
        with self._locked():
            return self._tiles.get((plane, key))

    def tile_rev(self, plane: PlaneKey, key: TileKey) -> int | None:
        tile = self.tile(plane, key)
        return None if tile is None else tile.rev

    def snapshot(
        self,
        plane: PlaneKey | None = None,
        level: int | None = None,
        *,
        after: _Tile | None = None,
        limit: int = PAGE_ITEMS,
    ) -> Snapshot:
        check_page(limit)
        with self._locked():
            start = None if after is None else (self._planes.get(after[0], -1), after[1])
            stamps = sorted(
                (
                    TileStamp(where[0], where[1], tile.rev)
                    for where, tile in self._tiles.items()
                    if (plane is None or where[0] == plane)
                    and (level is None or where[1].level == level)
                    and (start is None or (self._planes[where[0]], where[1]) > start)
                ),
                key=lambda stamp: (self._planes[stamp.plane], stamp.key),
            )
            return Snapshot(
                epoch=self._info.epoch, rev=self._info.rev, tiles=tuple(stamps[:limit]), more=len(stamps) > limit
            )

    def changes(self, since: int, *, epoch: int | None = None, limit: int = PAGE_ITEMS) -> Changes:
        check_page(limit)
        with self._locked():
            info = self._info
            if (epoch is not None and epoch != info.epoch) or not info.epoch_rev <= since <= info.rev:
                return Changes(epoch=info.epoch, resync=True, tiles=(), gone=(), upto=info.rev, more=False)
            tiles = self._changed({where: tile.rev for where, tile in self._tiles.items()}, since)
            gone = self._changed(self._gone, since)
            upto = cut_changes(tiles, gone, limit)
            last = info.rev if upto is None else upto
            return Changes(
                epoch=info.epoch,
                resync=False,
                tiles=tuple(stamp for stamp in tiles if stamp.rev <= last),
                gone=tuple(stamp for stamp in gone if stamp.rev <= last),
                upto=last,
                more=last < info.rev,
            )

    def covering(self, plane: PlaneKey, rect: Rect) -> list[Placement]:
        with self._locked():
            found = [
                row.placement
                for row in self._placements.values()
                if row.placement.plane == plane and not row.placement.rect.intersect(rect).empty
            ]
        return sorted(found, key=lambda placement: placement.order)

    def placement(self, frame: int, view: int = 0) -> PlacementRow | None:
        with self._locked():
            return self._placements.get((frame, view))

    def placements(self, since: int = 0, *, after: tuple[int, int, int] | None = None) -> Iterator[PlacementRow]:
        with self._locked():
            ids = list(self._placements)  # in the order in which they were placed first
            last = (since, len(ids))
            if after is not None:
                rev, *frame_and_view = after
                last = max(last, (rev, ids.index(found) if (found := tuple(frame_and_view)) in ids else -1))
            rows = sorted((row.rev, number, row) for number, row in enumerate(self._placements.values()))
        yield from (row for rev, number, row in rows if (rev, number) > last)

    def placed_indices(self) -> Iterator[int]:
        with self._locked():
            indices = [row.placement.index for row in self._placements.values()]
        yield from indices

    def commits(self, after: int = 0) -> Iterator[CommitRow]:
        with self._locked():
            rows = [row for row in self._commits if row.rev > after]
        yield from rows

    def events(self, after: int = 0) -> Iterator[EventRow]:
        with self._locked():
            rows = [row for row in self._events if row.number > after]
        yield from rows

    def reports(self) -> dict[int, dict[str, Any]]:
        with self._locked():
            return dict(sorted(self._reports.items()))

    def registration(self) -> Registration | None:
        with self._locked():
            return self._registration

    def size(self) -> StoreSize:
        with self._locked():
            return StoreSize(sum(len(tile.pzf) + len(tile.coverage or b"") for tile in self._tiles.values()), 0)

    def check(self, on_tick: Callable[[], None] | None = None) -> list[str]:
        with self._locked():
            if on_tick is not None:
                on_tick()
            revs = [row.rev for row in self._commits]
            whole = revs == list(range(1, self._info.rev + 1)) and not self._tiles.keys() & self._gone.keys()
        return [] if whole else ["the store in memory contradicts itself, which is a defect of MemoryStore"]

    def close(self) -> None:
        with self._guard:
            self._closed = True

    def commit(self, commit: Commit) -> CommitResult:
        check_commit(commit)
        events = [(name, _plain(detail)) for name, detail in commit.events]  # first, because it may be refused
        with self._locked():
            now_ns = self._clock_ns()
            rev = self._info.rev + 1
            self._info = replace(self._info, rev=rev, updated_ns=now_ns)
            if commit.new_epoch is not None:
                self._raise_epoch(commit.new_epoch, now_ns)
            for tile in commit.tiles:
                self._see(tile.plane)
                self._tiles[tile.plane, tile.key] = StoredTile(bytes(tile.pzf), rev, tile.coverage)
                self._gone.pop((tile.plane, tile.key), None)
            for plane, key in commit.gone:
                self._see(plane)
                self._tiles.pop((plane, key), None)
                self._gone[plane, key] = rev
            for identity in commit.removed_placements:
                self._placements.pop(identity, None)
            for placement in commit.placements:
                self._see(placement.plane)
                self._placements[placement.id] = PlacementRow(placement, rev)
            for plane in commit.bboxes:
                self._see(plane)
            self._info = replace(
                self._info,
                levels=self._info.levels if commit.levels is None else commit.levels,
                canvas=self._info.canvas if commit.canvas is None else commit.canvas,
                bboxes={**self._info.bboxes, **commit.bboxes},
                clipped=(self._info.clipped[0] + commit.clipped[0], self._info.clipped[1] + commit.clipped[1]),
            )
            for name, detail in events:
                self._add_event(name, detail, now_ns)
            self._commits.append(
                CommitRow(
                    rev=rev,
                    epoch=self._info.epoch,
                    t_recv_ns=commit.t_recv_ns,
                    t_commit_ns=now_ns,
                    n_tiles=len(commit.tiles),
                    n_gone=len(commit.gone),
                    n_placements=len(commit.placements) + len(commit.removed_placements),
                )
            )
            return CommitResult(rev, self._info.epoch, now_ns)

    def bump_epoch(self, reason: str) -> int:
        with self._locked():
            self._raise_epoch(reason, self._clock_ns())
            return self._info.epoch

    def set_state(self, state: str) -> None:
        with self._locked():
            self._info = replace(self._info, state=state, updated_ns=self._clock_ns())

    def set_report(self, revision: int, report: Mapping[str, Any]) -> None:
        if revision < 1:
            raise StoreError(f"run reports are numbered from 1; got {revision}")
        with self._locked():
            self._reports[revision] = _plain(report)
            self._info = replace(self._info, updated_ns=self._clock_ns())

    def keep_registration(self, registration: Registration | None) -> None:
        with self._locked():
            if registration is not None:
                registration = Registration(
                    facts=_plain(registration.facts),
                    edges=tuple(sorted(registration.edges)),
                    stage=tuple(sorted(registration.stage)),
                    registered=tuple(sorted(registration.registered)),
                )
            self._registration = registration
            self._info = replace(self._info, updated_ns=self._clock_ns())

    def rename(self, name: str) -> None:
        with self._locked():
            now_ns = self._clock_ns()
            self._add_event("rename", {"from": self._info.name, "to": name}, now_ns)
            self._info = replace(self._info, name=name, updated_ns=now_ns)

    def add_event(self, name: str, detail: Mapping[str, Any], *, t_ns: int | None = None) -> int:
        with self._locked():
            return self._add_event(name, _plain(detail), self._clock_ns() if t_ns is None else t_ns)

    def _locked(self) -> threading.RLock:
        """The lock, if the store is open."""
        with self._guard:
            if self._closed:
                raise StoreError("this store in memory was closed; reopen it")
        return self._guard

    def _see(self, plane: PlaneKey) -> None:
        self._planes.setdefault(plane, len(self._planes))

    def _changed(self, revs: Mapping[_Tile, int], since: int) -> Sequence[TileStamp]:
        stamps = (TileStamp(plane, key, rev) for (plane, key), rev in revs.items() if rev > since)
        return sorted(stamps, key=lambda stamp: (stamp.rev, self._planes[stamp.plane], stamp.key))

    def _raise_epoch(self, reason: str, now_ns: int) -> None:
        epoch = self._info.epoch + 1
        self._info = replace(self._info, epoch=epoch, epoch_rev=self._info.rev, updated_ns=now_ns)
        self._gone.clear()
        self._add_event("epoch", {"epoch": epoch, "reason": reason}, now_ns)

    def _add_event(self, name: str, detail: dict[str, Any], t_ns: int) -> int:
        number = len(self._events) + 1
        self._events.append(EventRow(number, t_ns, name, detail))
        return number


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as it would come back from JSON, in which stores keep what people read."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise StoreError(f"cannot keep this as JSON: {error}") from error
    return copy
