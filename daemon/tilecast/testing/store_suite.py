"""What every tile store must do, as tests to inherit.

A new implementation proves itself in a few lines: it says how it is made and how it is opened again, and pytest runs
the whole suite on it. `StoreMachine` explores on its own: hypothesis invents sequences of commits, refusals, changes of
epoch and reopenings, while viewers that fall behind and catch up must end with exactly what the store holds.

>>> class TestMyStore(StoreSuite):                     # doctest: +SKIP
...     def create(self, folder, new):
...         return MyStore.create(folder, new)
...     def reopen(self, store):
...         store.close()
...         return MyStore.open(store.folder)

It needs pytest and hypothesis, and so is imported by tests only. It does not know how a store keeps anything.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tilecast.errors import StoreError
from tilecast.geometry import Canvas, Placement, PlaneKey, Rect, TileKey
from tilecast.store.tile_store import (
    Commit,
    EdgeRow,
    NewRun,
    Position,
    Registration,
    TileReader,
    TileRow,
    TileStore,
)

RUN = "0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55"

#: A run to create stores from.
NEW_RUN = NewRun(
    run=RUN,
    name="liver, section 3",
    instrument="scope-1",
    stream="cam0",
    start=msgpack.packb({"v": 1, "type": "start", "run": RUN, "user": {"by": "Ada", "raw": b"\0"}}),
    settings={"tile_size": 256, "dtype": "<u2", "mode": "feather", "dark": None},
)

P0 = PlaneKey(0, 0, 0)
P1 = PlaneKey(2, 1, 5)

_Tile = tuple[PlaneKey, TileKey]


def a_tile(row: int, col: int, *, level: int = 0, plane: PlaneKey = P0, text: str = "") -> TileRow:
    """A tile whose bytes say which it is."""
    return TileRow(plane, TileKey(level, row, col), f"{plane} {level} {row} {col} {text}".encode())


def a_placement(frame: int, row: int = 0, col: int = 0, **changes: Any) -> Placement:
    """A placement of 100 × 200 pixels; its image index is not its frame number."""
    placement = Placement(frame, 0, P0, row, col, 100, 200, "stage", frame + 7)
    return replace(placement, **changes)


def contents(reader: TileReader) -> dict[str, Any]:
    """Everything a store holds, comparable with ==, save when it was last written."""
    stamps = list(reader.stamps())
    return {
        "info": replace(reader.info(), updated_ns=0),
        "tiles": {(stamp.plane, stamp.key): reader.tile(stamp.plane, stamp.key) for stamp in stamps},
        "stamps": stamps,
        "changes": reader.changes(reader.info().epoch_rev, limit=10**6),
        "placements": list(reader.placements()),
        "indices": sorted(reader.placed_indices()),
        "commits": list(reader.commits()),
        "events": list(reader.events()),
        "reports": reader.reports(),
    }


class StoreSuite:
    """Inherit, and say how a store is made (`create`) and opened again (`reopen`)."""

    def create(self, folder: Path, new: NewRun) -> TileStore:
        """A new store; `folder` exists, is empty, and is for this store only."""
        raise NotImplementedError("say how your store is created")

    def reopen(self, store: TileStore) -> TileStore:
        """Close a store and open it again."""
        raise NotImplementedError("say how your store is opened again")

    def reader(self, store: TileStore) -> TileReader:
        """What to read through; by default the store itself."""
        return store

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[TileStore]:
        """A new store, closed at the end."""
        store = self.create(tmp_path, NEW_RUN)
        yield store
        store.close()

    @pytest.fixture
    def read(self, store: TileStore) -> Iterator[TileReader]:
        """What to read `store` through."""
        reader = self.reader(store)
        yield reader
        reader.close()

    def test_a_new_store_knows_its_run_and_nothing_else(self, store: TileStore, read: TileReader) -> None:
        info = read.info()
        assert (info.run, info.name, info.instrument, info.stream) == (RUN, "liver, section 3", "scope-1", "cam0")
        assert info.start == NEW_RUN.start
        assert info.header["user"] == {"by": "Ada", "raw": b"\0"}
        assert info.settings == NEW_RUN.settings
        assert (info.state, info.epoch, info.rev, info.epoch_rev, info.levels) == ("open", 1, 0, 0, 0)
        assert (info.bboxes, info.canvas, info.report, info.revision) == ({}, None, None, 0)
        assert (info.n_tiles, info.n_placements) == (0, 0)
        assert info.bbox.empty
        assert info.created_ns > 0
        assert read.tile(P0, TileKey(0, 0, 0)) is None
        assert read.tile_rev(P0, TileKey(0, 0, 0)) is None
        assert read.snapshot().tiles == ()
        assert read.covering(P0, Rect(-100, -100, 100, 100)) == []
        assert list(read.commits()) == []
        assert store.check() == []

    @pytest.mark.parametrize("run", ["", "x", "../../etc", RUN.upper(), RUN.replace("-", "")])
    def test_a_run_is_a_canonical_uuid(self, tmp_path: Path, run: str) -> None:
        with pytest.raises(StoreError, match="UUID in lower case"):
            self.create(tmp_path, replace(NEW_RUN, run=run))

    def test_a_start_header_is_a_msgpack_map(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match="msgpack"):
            self.create(tmp_path, replace(NEW_RUN, start=b"\xc1"))
        with pytest.raises(StoreError, match="should be a map, and is a list"):
            self.create(tmp_path, replace(NEW_RUN, start=b"\x90"))

    def test_a_tile_comes_back_as_it_was_written(self, store: TileStore, read: TileReader) -> None:
        big = random.Random(1).randbytes(200_000)
        masked = TileRow(P0, TileKey(3, -2, 5), memoryview(big), b"mask")
        result = store.commit(Commit(tiles=[masked, a_tile(0, 0), TileRow(P1, TileKey(0, 0, 0), bytearray(b"other"))]))
        assert result.rev == 1
        assert read.tile(P0, TileKey(3, -2, 5)) == (big, 1, b"mask")
        assert read.tile(P0, TileKey(0, 0, 0)) == (a_tile(0, 0).pzf, 1, None)
        assert read.tile(P1, TileKey(0, 0, 0)) == (b"other", 1, None)
        assert read.tile(P1, TileKey(3, -2, 5)) is None
        assert read.tile_rev(P0, TileKey(3, -2, 5)) == 1
        assert read.info().n_tiles == 3

    def test_a_tile_written_again_is_replaced_whole(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 1, 1), b"a" * 50_000, b"mask"), a_tile(0, 0)], levels=1))
        store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 1, 1), b"b")]))
        assert read.tile(P0, TileKey(0, 1, 1)) == (b"b", 2, None)
        assert read.tile(P0, TileKey(0, 0, 0)) == (a_tile(0, 0).pzf, 1, None)
        assert read.info().n_tiles == 2
        assert store.check() == []

    def test_rev_rises_by_one_per_commit_and_the_history_says_so(self, store: TileStore, read: TileReader) -> None:
        results = [
            store.commit(Commit(tiles=[a_tile(0, 0)], placements=[a_placement(0)], t_recv_ns=17, levels=1)),
            store.commit(Commit()),
            store.commit(Commit(gone=[(P0, TileKey(0, 0, 0))], removed_placements=[(0, 0)])),
        ]
        assert [result.rev for result in results] == [1, 2, 3]
        assert read.info().rev == 3
        rows = list(read.commits())
        assert [row.rev for row in rows] == [1, 2, 3]
        assert [(row.n_tiles, row.n_gone, row.n_placements) for row in rows] == [(1, 0, 1), (0, 0, 0), (0, 1, 1)]
        assert [row.t_recv_ns for row in rows] == [17, None, None]
        assert [row.t_commit_ns for row in rows] == [result.t_commit_ns for result in results]
        assert list(read.commits(after=2)) == rows[2:]
        assert store.check() == []

    def test_gone_tiles_are_told_until_they_come_back(self, store: TileStore, read: TileReader) -> None:
        where = (P0, TileKey(0, 4, -4))
        store.commit(Commit(tiles=[a_tile(4, -4), a_tile(0, 0)], levels=1))
        store.commit(Commit(gone=[where]))
        assert read.tile(*where) is None
        assert read.info().n_tiles == 1
        changes = read.changes(1)
        assert (changes.tiles, changes.gone) == ((), ((*where, 2),))
        assert store.check() == []
        store.commit(Commit(tiles=[a_tile(4, -4, text="again")]))
        changes = read.changes(0)
        assert changes.gone == ()
        assert {(stamp.key.row, stamp.rev) for stamp in changes.tiles} == {(0, 1), (4, 3)}
        assert read.info().n_tiles == 2
        assert store.check() == []

    def test_a_tile_that_never_was_may_be_gone(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(gone=[(P1, TileKey(1, 2, 3))]))
        assert [stamp.key for stamp in read.changes(0).gone] == [TileKey(1, 2, 3)]
        assert read.info().n_tiles == 0
        assert store.check() == []

    def test_changes_tell_each_tile_once_with_its_latest_rev(self, store: TileStore, read: TileReader) -> None:
        for cols in [(0, 1, 2), (1, 2), (2, 3), ()]:
            store.commit(Commit(tiles=[a_tile(0, col) for col in cols], levels=1))
        changes = read.changes(0)
        assert [(stamp.key.col, stamp.rev) for stamp in changes.tiles] == [(0, 1), (1, 2), (2, 3), (3, 3)]
        assert (changes.upto, changes.more, changes.resync, changes.epoch) == (4, False, False, 1)
        assert [stamp.key.col for stamp in read.changes(2).tiles] == [2, 3]
        assert read.changes(4).tiles == ()

    def test_pages_of_changes_never_cut_a_commit(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(tiles=[a_tile(9, 9), a_tile(9, 8)], levels=1))
        for n_tiles in (1, 3, 1):
            store.commit(Commit(tiles=[a_tile(n_tiles, col) for col in range(n_tiles)]))
        store.commit(Commit(gone=[(P0, TileKey(0, 9, 9))]))
        # Rev 1 has one tile left, 2 and 4 tell of the same tile, 3 has three, 5 a vanished one.
        for limit in range(1, 8):
            since, told, pages = 0, list[int](), 0
            while True:
                page = read.changes(since, limit=limit)
                revs = [stamp.rev for stamp in (*page.tiles, *page.gone)]
                assert all(since < rev <= page.upto for rev in revs)
                assert len(revs) <= limit or len(set(revs)) == 1
                told += revs
                pages += 1
                if not page.more:
                    break
                assert page.upto > since
                since = page.upto
            assert page.upto == 5
            assert sorted(told) == [1, 3, 3, 3, 4, 5]
            assert pages == {1: 4, 2: 3, 3: 3, 4: 2, 5: 2}.get(limit, 1)

    def test_a_viewer_of_another_history_must_start_anew(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
        assert read.changes(2).resync
        assert read.changes(-1).resync
        assert read.changes(0, epoch=2).resync
        assert not read.changes(0, epoch=1).resync
        store.commit(Commit(gone=[(P0, TileKey(0, 0, 0))]))
        assert store.bump_epoch("for the test") == 2
        info = read.info()
        assert (info.epoch, info.rev, info.epoch_rev) == (2, 2, 2)
        late = read.changes(1, epoch=1)
        assert (late.resync, late.epoch, late.upto, late.tiles, late.gone) == (True, 2, 2, (), ())
        assert read.changes(1, epoch=2).resync  # nobody has seen rev 1 under epoch 2
        assert not read.changes(2, epoch=2).resync
        assert store.commit(Commit()).rev == 3
        assert store.check() == []

    def test_a_commit_may_raise_the_epoch(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(tiles=[a_tile(0, 0)], levels=1))
        canvas = Canvas(Rect(-512, 0, 512, 1024), 3, 256, fixed=False)
        result = store.commit(Commit(tiles=[a_tile(0, 1)], new_epoch="the canvas moved", canvas=canvas))
        assert (result.rev, result.epoch) == (2, 2)
        assert [row.epoch for row in read.commits()] == [1, 2]
        assert read.info().canvas == canvas
        assert not read.changes(2, epoch=2).resync
        assert [(event.name, event.detail["reason"]) for event in read.events()] == [("epoch", "the canvas moved")]

    def test_a_snapshot_has_every_tile_once(self, store: TileStore, read: TileReader) -> None:
        rng = random.Random(5)
        places = [(level, row, col) for level in range(3) for row in range(-3, 3) for col in range(-3, 3)]
        rng.shuffle(places)
        tiles = [a_tile(row, col, level=level, plane=plane) for level, row, col in places for plane in (P1, P0)]
        store.commit(Commit(tiles=tiles[:100], levels=3))
        store.commit(Commit(tiles=tiles[100:]))
        revs = {(tile.plane, tile.key): 1 + (i >= 100) for i, tile in enumerate(tiles)}
        assert {(stamp.plane, stamp.key): stamp.rev for stamp in read.stamps()} == revs
        for plane, level, limit in itertools.product((None, P0, P1, PlaneKey(9, 9, 9)), (None, 1, 7), (1, 7, 36, 500)):
            expected = {
                where for where in revs if plane in (None, where[0]) and (level is None or where[1].level == level)
            }
            seen, after = [], None
            while True:
                page = read.snapshot(plane, level, after=after, limit=limit)
                assert (page.epoch, page.rev) == (1, 2)
                assert len(page.tiles) <= limit
                seen += [(stamp.plane, stamp.key) for stamp in page.tiles]
                if not page.more:
                    break
                after = seen[-1]
            assert len(seen) == len(expected)
            assert set(seen) == expected
            for _, group in itertools.groupby(seen, key=lambda where: where[0]):
                keys = [key for _, key in group]
                assert keys == sorted(keys)
        assert len(read.snapshot(P0, 1, after=(P0, TileKey(0, 99, 99))).tiles) == 36
        assert read.snapshot(P0, 1, after=(P0, TileKey(2, -3, -3))).tiles == ()
        assert list(read.keys(P0, 2)) == sorted(key for plane, key in revs if plane == P0 and key.level == 2)
        assert len(list(read.keys(P1))) == 108

    def test_a_page_holds_something(self, read: TileReader) -> None:
        with pytest.raises(StoreError, match="at least 1"):
            read.snapshot(limit=0)
        with pytest.raises(StoreError, match="at least 1"):
            read.changes(0, limit=0)

    def test_placements_come_back_as_they_were_written(self, store: TileStore, read: TileReader) -> None:
        far = Placement(2**40, 3, P1, -(2**30), 2**30, 2048, 1, "joined", 2**50)
        near = a_placement(0)
        assert store.commit(Commit(placements=[far, near])).rev == 1
        assert read.placement(2**40, 3) == (far, 1)
        assert read.placement(2**40) is None
        assert read.has_placement(0)
        assert not read.has_placement(1)
        assert {row.placement for row in read.placements()} == {far, near}
        assert sorted(read.placed_indices()) == [7, 2**50]
        assert read.covering(P1, Rect(-(2**31), -(2**31), 2**31, 2**31)) == [far]
        assert read.info().n_placements == 2
        assert store.check() == []

    def test_covering_is_exact_to_the_pixel(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(placements=[a_placement(0, -50, -50), a_placement(1, -50, -50, plane=P1)]))
        inside = Rect(-50, -50, 50, 150)
        for touching in (Rect(50, 0, 60, 10), Rect(-60, 0, -50, 10), Rect(0, 150, 10, 160), Rect(0, -60, 10, -50)):
            assert read.covering(P0, touching) == []
        for meeting in (Rect(49, 149, 60, 160), Rect(-60, -60, -49, -49), Rect(0, 0, 1, 1), inside):
            assert read.covering(P0, meeting) == [a_placement(0, -50, -50)]
        assert read.covering(P0, Rect(0, 0, 0, 10)) == []
        assert read.covering(PlaneKey(8, 8, 8), inside) == []

    def test_covering_agrees_with_looking_at_every_placement(self, store: TileStore, read: TileReader) -> None:
        rng = random.Random(3)
        indices = list(range(150))
        rng.shuffle(indices)
        placements = [
            Placement(
                frame=frame // 2,
                view=frame % 2,
                plane=rng.choice((P0, P1)),
                row=rng.randint(-900, 900),
                col=rng.randint(-900, 900),
                height=rng.randint(1, 300),
                width=rng.randint(1, 300),
                source="stage",
                index=indices[frame // 2],
            )
            for frame in range(300)
        ]
        for first in range(0, 300, 60):
            store.commit(Commit(placements=placements[first : first + 60]))
        for _ in range(100):
            row, col = rng.randint(-1100, 1100), rng.randint(-1100, 1100)
            rect = Rect(row, col, row + rng.randint(1, 400), col + rng.randint(1, 400))
            meeting = (one for one in placements if one.plane == P1 and not one.rect.intersect(rect).empty)
            assert read.covering(P1, rect) == sorted(meeting, key=lambda placement: placement.order)

    def test_placements_can_be_read_from_any_of_them_on(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(placements=[a_placement(frame) for frame in (5, 2, 9)]))
        store.commit(Commit(placements=[a_placement(1), a_placement(2, 40)]))
        rows = [(row.rev, *row.placement.id) for row in read.placements()]
        assert [(rev, frame) for rev, frame, _ in rows] == [(1, 5), (1, 9), (2, 2), (2, 1)]
        for number, last in enumerate(rows):
            rest = [(row.rev, *row.placement.id) for row in read.placements(after=last)]
            assert rest == rows[number + 1 :]
        assert list(read.placements(since=2, after=rows[0])) == []
        store.commit(Commit(removed_placements=[(5, 0)]))
        assert [row.placement.frame for row in read.placements(after=rows[0])] == [9, 2, 1]

    def test_a_placement_moves_and_goes(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(placements=[a_placement(0), a_placement(1, 500)]))
        moved = a_placement(0, 3000, 17, plane=P1, source="registered")
        store.commit(Commit(placements=[moved]))
        assert read.placement(0) == (moved, 2)
        assert read.covering(P0, Rect(0, 0, 200, 200)) == []
        assert read.covering(P1, moved.rect) == [moved]
        assert [(row.placement.frame, row.rev) for row in read.placements()] == [(1, 1), (0, 2)]
        assert list(read.placements(since=1)) == [(moved, 2)]
        assert read.info().n_placements == 2
        store.commit(Commit(removed_placements=[(0, 0), (77, 0)]))
        assert not read.has_placement(0)
        assert read.covering(P1, moved.rect) == []
        assert read.info().n_placements == 1
        assert list(read.placed_indices()) == [8]
        assert store.check() == []

    def test_what_a_commit_leaves_out_stays(self, store: TileStore, read: TileReader) -> None:
        canvas = Canvas(Rect(0, 0, 1024, 1024), 2, 256, fixed=True)
        boxes = {P0: Rect(-5, -6, 7, 8), P1: Rect(0, 0, 10, 10)}
        store.commit(Commit(levels=4, bboxes=boxes, canvas=canvas))
        store.commit(Commit(bboxes={P1: Rect(0, 0, 20, 20)}))
        info = read.info()
        assert (info.levels, info.canvas) == (4, canvas)
        assert info.bboxes == {P0: Rect(-5, -6, 7, 8), P1: Rect(0, 0, 20, 20)}
        assert info.bbox == Rect(-5, -6, 20, 20)

    def test_the_run_keeps_a_log(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(events=[("gap", {"frames": [[3, 5]]})]))
        first = store.add_note("bleached, µ ≈ 3")
        second = store.add_event("focus", {"lost": True}, t_ns=1234)
        assert second > first
        events = list(read.events())
        assert [(event.name, event.detail) for event in events] == [
            ("gap", {"frames": [[3, 5]]}),
            ("note", {"text": "bleached, µ ≈ 3"}),
            ("focus", {"lost": True}),
        ]
        assert events[2].t_ns == 1234
        assert list(read.events(after=first)) == events[2:]
        assert read.info().rev == 1  # the log has nothing to do with the mosaic

    def test_a_run_lives_and_is_renamed(self, store: TileStore, read: TileReader) -> None:
        store.set_state("idle")
        store.rename("liver, section 4")
        info = read.info()
        assert (info.state, info.name) == ("idle", "liver, section 4")
        assert [event.detail for event in read.events()] == [{"from": "liver, section 3", "to": "liver, section 4"}]

    def test_the_last_registration_is_kept(self, store: TileStore, read: TileReader) -> None:
        assert read.registration() is None
        store.commit(Commit(placements=[a_placement(0, 3, 4)]))
        first = Registration(
            facts={"method": "lsq", "components": 2},
            edges=(EdgeRow(0, 1, 0, -3, 90, 44.5, 0.9, 0.5, True), EdgeRow(1, 7, 1, 2, 9, 12.25, -0.1, 40.0, False)),
            stage=(Position(0, 0, 3, 4, "stage"), Position(0, 1, 3, 4, "joined")),
            registered=(Position(0, 0, -5, 4, "registered"),),
        )
        store.keep_registration(first)
        assert read.registration() == first
        second = replace(first, facts={"method": "tree"}, edges=(), stage=())
        store.keep_registration(second)
        assert read.registration() == second
        with pytest.raises(StoreError, match="JSON"):
            store.keep_registration(Registration(facts={"not": b"json"}))
        assert read.registration() == second
        [row] = read.placements()
        assert (row.placement.row, row.placement.col) == (3, 4)
        store.keep_registration(None)
        assert read.registration() is None

    def test_reports_are_kept_by_revision(self, store: TileStore, read: TileReader) -> None:
        store.set_report(1, {"missing": [[3, 4]]})
        store.set_report(2, {"missing": []})
        store.set_report(2, {"missing": [], "late": 1})
        assert read.reports() == {1: {"missing": [[3, 4]]}, 2: {"missing": [], "late": 1}}
        info = read.info()
        assert (info.revision, info.report) == (2, {"missing": [], "late": 1})
        with pytest.raises(StoreError, match="numbered from 1"):
            store.set_report(0, {})

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (Commit(tiles=[a_tile(5, 5), a_tile(5, 5, text="b")]), "names a tile twice"),
            (Commit(tiles=[a_tile(5, 5)], gone=[(P0, TileKey(0, 5, 5))]), "names a tile twice"),
            (Commit(gone=[(P0, TileKey(0, 0, 0))] * 2), "names a tile twice"),
            (Commit(tiles=[a_tile(5, 5), a_tile(0, 0, level=-1)]), "level is 0 or more"),
            (Commit(placements=[a_placement(9), a_placement(9, 5)]), "names one twice"),
            (Commit(placements=[a_placement(0)], removed_placements=[(0, 0)]), "names one twice"),
            (Commit(placements=[a_placement(8), a_placement(9, height=0)]), "at least a pixel"),
            (Commit(placements=[a_placement(8), a_placement(9, 2**31 - 50)]), "within"),
            (Commit(placements=[a_placement(8), a_placement(2**63)]), "below 2"),
            (Commit(placements=[a_placement(8), a_placement(-1)]), "0 or more"),
            (Commit(tiles=[a_tile(5, 5)], levels=-1), "0 or more levels"),
            (Commit(tiles=[a_tile(5, 5), a_tile(0, 0)], gone=[], events=[("x", {"y": b"z"})]), "JSON"),
        ],
    )
    def test_a_refused_commit_changes_nothing(self, store: TileStore, read: TileReader, bad: Commit, said: str) -> None:
        store.commit(Commit(tiles=[a_tile(0, 0)], placements=[a_placement(0)], levels=1, bboxes={P0: Rect(0, 0, 9, 9)}))
        before = contents(read)
        with pytest.raises(StoreError, match=said):
            store.commit(bad)
        assert contents(read) == before
        assert store.check() == []
        assert store.commit(Commit(tiles=[a_tile(5, 5)])).rev == 2

    def test_everything_is_there_after_reopening(self, store: TileStore) -> None:
        tiles = [a_tile(row, -row, level=row % 2, plane=plane) for row in range(9) for plane in (P1, P0)]
        store.commit(
            Commit(
                tiles=tiles,
                gone=[(P0, TileKey(0, 50, 50))],
                placements=[a_placement(frame, 10 * frame) for frame in range(5)],
                levels=2,
                bboxes={P0: Rect(0, 0, 140, 200)},
                canvas=Canvas(Rect(0, 0, 512, 512), 2, 256, fixed=False),
                t_recv_ns=5,
            )
        )
        store.set_report(1, {"received": 5})
        store.set_state("ended")
        store.add_note("kept")
        store.bump_epoch("for the test")
        store.commit(Commit(gone=[(P1, TileKey(1, 0, 0))]))
        before = contents(store)
        again = self.reopen(store)
        try:
            assert contents(again) == before
            assert again.check() == []
            assert again.commit(Commit()).rev == 3
        finally:
            again.close()

    def test_iterating_does_not_keep_anyone_from_committing(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(placements=[a_placement(frame) for frame in range(3)], tiles=[a_tile(0, 0)], levels=1))
        for iterator in (read.placements(), read.placed_indices(), read.stamps(), read.commits()):
            next(iterator)
            rev = store.commit(Commit(tiles=[a_tile(0, 0)])).rev
            assert read.info().rev == rev
            list(iterator)

    def test_size_is_known(self, store: TileStore, read: TileReader) -> None:
        store.commit(Commit(tiles=[TileRow(P0, TileKey(0, 0, 0), bytes(300_000))]))
        assert read.size().nbytes >= 300_000

    def test_a_closed_store_says_so(self, store: TileStore) -> None:
        store.close()
        store.close()
        with pytest.raises(StoreError, match="was closed"):
            store.info()
        with pytest.raises(StoreError, match="was closed"):
            store.commit(Commit())

    def test_check_shows_that_it_works(self, store: TileStore) -> None:
        ticks = []
        store.commit(Commit(tiles=[a_tile(row, col) for row in range(60) for col in range(60)], levels=1))
        assert store.check(lambda: ticks.append(1)) == []
        assert ticks


@dataclass
class _Viewer:
    """What somebody who was told of tiles believes."""

    epoch: int = 1
    rev: int = 0
    tiles: dict[_Tile, int] = field(default_factory=dict)


_planes = st.sampled_from([P0, P1, PlaneKey(0, 0, 1)])
_keys = st.builds(TileKey, st.integers(0, 2), st.integers(-2, 2), st.integers(-2, 2))
_places = st.tuples(_planes, _keys)
_blobs = st.binary(min_size=1, max_size=20) | st.integers(1, 3).map(lambda n: bytes(n * 70_000))


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of what a writer can do, beside viewers that fall behind, checked against plain dicts.

    Inherit, and say how a store is made and opened again, as in `StoreSuite`.
    """

    def create(self, folder: Path, new: NewRun) -> TileStore:
        """As in `StoreSuite`."""
        raise NotImplementedError("say how your store is created")

    def reopen(self, store: TileStore) -> TileStore:
        """As in `StoreSuite`."""
        raise NotImplementedError("say how your store is opened again")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.rev = 0
        self.epoch = 1
        self.n_events = 0
        self.tiles: dict[_Tile, tuple[bytes, int, bytes | None]] = {}
        self.placements: dict[tuple[int, int], tuple[Placement, int]] = {}
        self.viewers = [_Viewer(), _Viewer()]

    @initialize()
    def begin(self) -> None:
        """A new store."""
        self.store = self.create(Path(self.folder.name), NEW_RUN)

    @rule(
        tiles=st.dictionaries(_places, st.tuples(_blobs, st.none() | st.binary(max_size=5)), max_size=5),
        gone=st.sets(_places, max_size=3),
        placed=st.dictionaries(
            st.integers(0, 6), st.tuples(_planes, st.integers(-300, 300), st.integers(-300, 300)), max_size=3
        ),
        removed=st.sets(st.integers(0, 6), max_size=1),
        new_epoch=st.sampled_from([None, None, None, "by commit"]),
    )
    def commit(
        self,
        tiles: dict[_Tile, tuple[bytes, bytes | None]],
        gone: set[_Tile],
        placed: dict[int, tuple[PlaneKey, int, int]],
        removed: set[int],
        new_epoch: str | None,
    ) -> None:
        """A commit that must succeed."""
        gone -= tiles.keys()
        removed -= placed.keys()
        placements = [a_placement(frame, row, col, plane=plane) for frame, (plane, row, col) in placed.items()]
        result = self.store.commit(
            Commit(
                tiles=[TileRow(*where, pzf, coverage) for where, (pzf, coverage) in tiles.items()],
                gone=sorted(gone),
                placements=placements,
                removed_placements=[(frame, 0) for frame in removed],
                levels=3,
                new_epoch=new_epoch,
            )
        )
        self.rev += 1
        self.epoch += new_epoch is not None
        self.n_events += new_epoch is not None
        assert (result.rev, result.epoch) == (self.rev, self.epoch)
        for where in gone:
            self.tiles.pop(where, None)
        self.tiles |= {where: (pzf, self.rev, coverage) for where, (pzf, coverage) in tiles.items()}
        for frame in removed:
            self.placements.pop((frame, 0), None)
        self.placements |= {placement.id: (placement, self.rev) for placement in placements}

    @rule(where=_places)
    def refuse(self, where: _Tile) -> None:
        """A commit that fails at its very end, when all else has been written."""
        commit = Commit(
            tiles=[TileRow(*where, b"never")], placements=[a_placement(0, 9, 9)], events=[("bad", {"not": b"json"})]
        )
        with pytest.raises(StoreError, match="JSON"):
            self.store.commit(commit)

    @rule()
    def begin_epoch(self) -> None:
        """Another history."""
        self.epoch += 1
        self.n_events += 1
        assert self.store.bump_epoch("by the machine") == self.epoch

    @rule()
    def note(self) -> None:
        """Something that leaves the mosaic alone."""
        self.store.add_note("still here")
        self.n_events += 1

    @rule()
    def open_again(self) -> None:
        """Close and open."""
        self.store = self.reopen(self.store)

    @rule(number=st.integers(0, 1), limit=st.integers(1, 6))
    def catch_up(self, number: int, limit: int) -> None:
        """A viewer asks what it missed, page by page, and must end with what the store holds."""
        viewer = self.viewers[number]
        more = True
        while more:
            page = self.store.changes(viewer.rev, epoch=viewer.epoch, limit=limit)
            more = page.more
            if page.resync:
                assert viewer.epoch != self.epoch
                viewer.epoch, viewer.tiles = page.epoch, {}
                first = True
                after = None
                while after is not None or first:
                    listed = self.store.snapshot(after=after, limit=limit)
                    viewer.rev = listed.rev if first else viewer.rev
                    viewer.tiles |= {(stamp.plane, stamp.key): stamp.rev for stamp in listed.tiles}
                    after = (listed.tiles[-1].plane, listed.tiles[-1].key) if listed.more else None
                    first = False
            else:
                for stamp in page.gone:
                    viewer.tiles.pop((stamp.plane, stamp.key), None)
                viewer.tiles |= {(stamp.plane, stamp.key): stamp.rev for stamp in page.tiles}
                viewer.rev = page.upto
        assert (viewer.epoch, viewer.rev) == (self.epoch, self.rev)
        assert viewer.tiles == {where: rev for where, (_, rev, _) in self.tiles.items()}

    @precondition(lambda self: hasattr(self, "store"))
    @invariant()
    def the_store_holds_what_was_committed(self) -> None:
        """Tiles, placements, counts, history."""
        stamps = list(self.store.stamps())
        assert {(stamp.plane, stamp.key) for stamp in stamps} == self.tiles.keys()
        assert {where: self.store.tile(*where) for where in self.tiles} == self.tiles
        assert {row.placement.id: row for row in self.store.placements()} == self.placements
        info = self.store.info()
        assert (info.rev, info.epoch) == (self.rev, self.epoch)
        assert (info.n_tiles, info.n_placements) == (len(self.tiles), len(self.placements))
        assert [row.rev for row in self.store.commits()] == list(range(1, self.rev + 1))
        assert len(list(self.store.events())) == self.n_events
        rect = Rect(-50, -50, 60, 70)
        meeting = [one for one, _ in self.placements.values() if one.plane == P0 and not one.rect.intersect(rect).empty]
        assert self.store.covering(P0, rect) == sorted(meeting, key=lambda placement: placement.order)

    def teardown(self) -> None:
        """Whatever happened, the store does not contradict itself."""
        if hasattr(self, "store"):
            findings = self.store.check()
            self.store.close()
            self.folder.cleanup()
            assert findings == []
