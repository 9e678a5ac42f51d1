"""The store thread: commits what is durable, then tells; and what it cannot write stops one run, not the daemon."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_disk import FakeDisk
from ingest_harness import OTHER_RUN, RUN
from integration.stored import assert_same, reference_mosaic, stored_mosaic
from recordings import CORNERS, PX_UM, SHAPE, TILE, Recording
from tilecast.errors import StoreError
from tilecast.geometry import Canvas, PlaneKey, Rect, TileKey
from tilecast.hookspecs import Committed
from tilecast.ingest.room import Room
from tilecast.pyramid import Batch, Pyramid, PyramidSettings
from tilecast.queues import ByteQueue
from tilecast.service import committer
from tilecast.service.committer import (
    Closed,
    Committer,
    Encoding,
    Marked,
    Opened,
    Rendered,
    StoreItem,
    as_commit,
    encode_rows,
    extent_of,
    rect_um,
)
from tilecast.service.runs import Run
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import CommitResult, StoreBusyError, StoreFullError
from tilecast.testing.memory_sources import MemorySources
from tilecast_protocol import pzf
from tilecast_protocol.messages import RunNotice, Tiles

PATIENCE_S = 20.0


class Durable:
    """Says what is durable (the part of `Syncer` that the store thread asks)."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.durable_ticket = 0
        self.failure: Exception | None = None
        self.asked = threading.Event()

    def sync(self, ticket: int) -> None:
        with self._changed:
            self.durable_ticket = ticket
            self._changed.notify_all()

    def fail(self) -> None:
        with self._changed:
            self.failure = OSError("Input/output error")
            self._changed.notify_all()

    def refusal(self, _journal: object) -> Exception | None:
        return self.failure

    def wait_durable(self, ticket: int, timeout_s: float | None = None) -> bool:
        with self._changed:
            self.asked.set()
            self._changed.wait_for(lambda: self.durable_ticket >= ticket or self.failure is not None, timeout_s)
            return self.durable_ticket >= ticket


@dataclass
class Bench:
    """A store thread, and all that it says."""

    durable: Durable = field(default_factory=Durable)
    disk: FakeDisk = field(default_factory=FakeDisk)
    said: list[Tiles | RunNotice] = field(default_factory=list)
    committed: list[tuple[str, int]] = field(default_factory=list)
    plugins_told: list[Committed] = field(default_factory=list)
    failures: list[tuple[str, BaseException]] = field(default_factory=list)
    on_announce: Callable[[Tiles | RunNotice], None] = lambda _: None
    queue: ByteQueue[StoreItem] = field(default_factory=lambda: ByteQueue("store", 1 << 30))

    def __post_init__(self) -> None:
        self.committer = Committer(
            self.queue,
            syncer=self.durable,  # type: ignore[arg-type]
            disk=self.disk,
            announcer=self,
            on_committed=lambda run, number: self.committed.append((run.run, number)),
            tell_plugins=self.plugins_told.append,
            on_failure=lambda name, error: self.failures.append((name, error)),
            wal_limit_bytes=64 << 20,
        )
        self.committer.start()

    def announce(self, message: Tiles | RunNotice) -> None:
        self.on_announce(message)
        self.said.append(message)

    def put(self, item: StoreItem) -> None:
        assert self.queue.put(item)

    def settle(self, run: Run) -> Exception | None:
        """Wait until all that was put so far is done; what the last mark came to."""
        answers: list[Exception | None] = []
        done = threading.Event()

        def answer(error: Exception | None) -> None:
            answers.append(error)
            done.set()

        self.put(Marked(run, on_done=answer))
        assert done.wait(PATIENCE_S)
        return answers[0]

    def stop(self) -> None:
        self.queue.close()
        self.committer.join()

    @property
    def tiles(self) -> list[Tiles]:
        """The commits that were announced."""
        return [message for message in self.said if isinstance(message, Tiles)]

    @property
    def notices(self) -> list[RunNotice]:
        """The notices that were."""
        return [message for message in self.said if isinstance(message, RunNotice)]


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.committer.abandon()
    made.stop()
    assert made.failures == []


class Rendering:
    """The pyramid of a recording, to have batches of."""

    def __init__(self, made: Recording) -> None:
        self.made = made
        self.sources = MemorySources()
        self.pyramid = Pyramid(
            PyramidSettings(made.dtype, made.blend, made.tile_size),
            budget_bytes=1 << 24,
            placements=self.sources,
            frames=self.sources,
            tiles=self.sources,
        )

    def batch(self, *corners: tuple[int, int]) -> Batch:
        """What frames at these corners change."""
        for corner in corners:
            placement = self.made.image(len(self.made.pixels), corner)
            self.pyramid.add(placement, self.made.pixels[placement.frame])
        batch = self.pyramid.flush()
        assert batch is not None
        self.sources.commit(batch)
        self.pyramid.committed(batch.number)
        return batch

    def rendered(self, *corners: tuple[int, int], ticket: int = 0, t_recv_ns: int | None = 5) -> Rendered:
        return Rendered(self.made.run, self.batch(*corners), t_recv_ns, ticket)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path)
    yield made
    made.run.lock.release()
    made.run.journal.close()


def info_of(made: Recording) -> Any:
    with SqliteReader(made.folder) as reader:
        return reader.info()


def test_a_store_is_made_or_opened_and_readers_are_told(bench: Bench, made: Recording) -> None:
    for _ in range(2):
        made.run.store_ready.clear()
        bench.put(Opened(made.run))
        assert made.run.store_ready.wait(PATIENCE_S)
        assert bench.settle(made.run) is None
        assert bench.committer.revs() == {RUN: (1, 0)}
        assert bench.committer.wal_bytes() > 0
        closed = threading.Event()
        bench.put(Closed(made.run, closed.set))
        assert closed.wait(PATIENCE_S)
        assert bench.committer.revs() == {}
        assert bench.committer.wal_bytes() == 0
    info = info_of(made)
    assert (info.run, info.name, info.settings["tile_size"], info.rev) == (RUN, "scan", TILE, 0)


def test_a_store_whose_making_was_cut_short_is_finished(bench: Bench, made: Recording) -> None:
    (made.folder / TILES_NAME).touch()
    bench.put(Opened(made.run))
    assert bench.settle(made.run) is None
    assert info_of(made).run == RUN


def test_what_is_committed_is_what_was_rendered(bench: Bench, made: Recording) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    for corners in (CORNERS[:3], CORNERS[3:4], CORNERS[4:]):
        bench.put(rendering.rendered(*corners))
    bench.settle(made.run)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels, dict(enumerate(CORNERS))))
    assert bench.committed == [(RUN, 1), (RUN, 2), (RUN, 3)]
    assert [tiles.rev for tiles in bench.tiles] == [1, 2, 3]
    stats = bench.committer.stats
    assert stats.n_commits == 3
    assert stats.n_tiles == sum(len(tiles.tiles or ()) for tiles in bench.tiles)
    assert stats.n_bytes > 0
    assert len(stats.latency_s) == 3


def test_announced_is_only_what_anybody_can_read(bench: Bench, made: Recording) -> None:
    rendering = Rendering(made)
    checked = []

    def look(message: Tiles | RunNotice) -> None:
        assert isinstance(message, Tiles)
        with SqliteReader(made.folder) as reader:
            assert reader.info().rev == message.rev
            for t, c, z, *key in message.tiles or ():
                assert reader.tile_rev(PlaneKey(t, c, z), TileKey(*key)) == message.rev
        checked.append(message.rev)

    bench.on_announce = look
    bench.put(Opened(made.run))
    for corner in CORNERS[:4]:
        bench.put(rendering.rendered(corner))
    bench.settle(made.run)
    assert checked == [1, 2, 3, 4]


def test_viewers_and_plugins_are_told_the_same(bench: Bench, made: Recording) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((8, -10), t_recv_ns=77))
    bench.put(rendering.rendered((9, -10), t_recv_ns=None))
    bench.settle(made.run)
    first, second = bench.tiles
    assert (first.instrument, first.stream, first.run, first.epoch, first.truncated) == ("scope", "cam", RUN, 1, False)
    assert (first.t_recv_ns, second.t_recv_ns) == (77, None)
    x0, y0 = -10 * PX_UM[0], 8 * PX_UM[1]
    assert first.bbox_um == ((x0, y0), (x0 + SHAPE[1] * PX_UM[0], y0 + SHAPE[0] * PX_UM[1]))
    told = bench.plugins_told
    assert [one.rev for one in told] == [1, 2]
    assert (told[0].tiles, told[0].gone, told[0].t_recv_ns) == (first.tiles, first.gone, 77)
    assert told[1].t_recv_ns == told[1].t_commit_ns == second.t_commit_ns


def test_a_commit_of_very_many_tiles_only_says_so(
    bench: Bench, made: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer, "MAX_ANNOUNCED_TILES", 10)
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered(*CORNERS))
    bench.settle(made.run)
    assert (bench.tiles[0].tiles, bench.tiles[0].gone, bench.tiles[0].truncated) == (None, (), True)
    assert len(bench.plugins_told[0].tiles) > 10


# ---- durability ------------------------------------------------------------------------------------------------------


def test_nothing_is_committed_before_its_frames_are_durable(bench: Bench, made: Recording) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.settle(made.run)
    bench.durable.asked.clear()
    bench.put(rendering.rendered((0, 0), ticket=5))
    assert bench.durable.asked.wait(PATIENCE_S)
    bench.durable.sync(4)
    assert (info_of(made).rev, bench.said) == (0, [])
    bench.durable.sync(5)
    bench.settle(made.run)
    assert (info_of(made).rev, bench.tiles[0].rev) == (1, 1)


def test_frames_that_never_become_durable_are_never_shown(bench: Bench, made: Recording) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((0, 0)))
    bench.settle(made.run)
    bench.put(rendering.rendered((5, 5), ticket=5))
    bench.put(rendering.rendered((9, 9)))  # durable itself, but it rests on one that is not
    bench.durable.fail()
    bench.settle(made.run)
    assert (info_of(made).rev, info_of(made).n_placements) == (1, 1)
    assert "could not be made durable" in made.run.stuck
    made.run.release()
    assert (made.folder / "active").exists(), "the next daemon goes on with it"


def test_the_disk_takes_the_next_batch_while_one_is_committed(
    bench: Bench, made: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written ahead is shown no sooner than what came before it."""
    appended: ByteQueue[str] = ByteQueue("appended", 100)
    append = SqliteStore.append

    def watched(store: SqliteStore, tiles: Any) -> int:
        offset = append(store, tiles)
        appended.put(threading.current_thread().name)
        return offset

    monkeypatch.setattr(SqliteStore, "append", watched)
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((0, 0), ticket=1))
    assert appended.get(timeout_s=PATIENCE_S) == "tilecast-store", "nothing else is to be done meanwhile"
    bench.put(rendering.rendered((5, 5), ticket=7))
    bench.put(rendering.rendered((9, 9), ticket=7))
    bench.durable.sync(1)
    names = [appended.get(timeout_s=PATIENCE_S) for _ in range(2)]
    assert all(str(name).startswith("tilecast-write") for name in names)
    assert info_of(made).rev == 1
    bench.durable.sync(7)
    assert bench.settle(made.run) is None
    assert [tiles.rev for tiles in bench.tiles] == [1, 2, 3]
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))


# ---- a disk without room ---------------------------------------------------------------------------------------------


@dataclass
class FullDisk:
    """Lets writes of stores fail for want of room, `n_failures` times."""

    n_failures: int = 0
    error: StoreError = field(default_factory=lambda: StoreFullError("the disk is full"))
    tried: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def n_tried(self) -> int:
        """Writes so far."""
        return self.tried._value

    def around(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            self.tried.release()
            if self.n_failures:
                self.n_failures -= 1
                raise self.error
            return write(*args, **kwargs)

        return attempt


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> FullDisk:
    disk = FullDisk()
    monkeypatch.setattr(committer, "_RETRY_S", 0.0)
    for name in ("commit", "set_state", "set_report", "add_event"):
        monkeypatch.setattr(SqliteStore, name, disk.around(getattr(SqliteStore, name)))
    monkeypatch.setattr(committer, "open_or_create", disk.around(committer.open_or_create))
    return disk


def test_the_same_commit_is_tried_until_nobody_locks_the_store(
    bench: Bench, made: Recording, full_disk: FullDisk
) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.settle(made.run)
    full_disk.n_failures, full_disk.error = 5, StoreBusyError("locked")
    bench.put(rendering.rendered(*CORNERS))
    assert bench.settle(made.run) is None
    assert [tiles.rev for tiles in bench.tiles] == [1]
    assert bench.committer.stats.n_retries == 5
    assert made.run.stuck == ""
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))


def test_tiles_for_which_there_is_no_room_are_left_to_the_journal(
    bench: Bench, made: Recording, full_disk: FullDisk
) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((0, 0)))
    bench.settle(made.run)
    full_disk.n_failures = 1
    bench.put(rendering.rendered((5, 5)))
    bench.put(rendering.rendered((9, 9)))  # there is room again, but it rests on what is missing
    bench.put(Marked(made.run, state="ended", report=(1, {"received": 3, "state": "ended"})))
    assert bench.settle(made.run) is None
    assert bench.disk.told == [Room.STOP]
    assert (made.run.shed, made.run.stuck) == (True, "the disk is full")
    assert (info_of(made).rev, info_of(made).state, info_of(made).revision) == (1, "ended", 1)
    [notice] = bench.notices
    assert notice.detail["what"] == "stuck"
    assert "catches up by itself" in notice.detail["message"]


def test_a_batch_that_finds_no_room_while_another_is_committed(
    bench: Bench, made: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk = FullDisk()
    monkeypatch.setattr(SqliteStore, "append", full_disk.around(SqliteStore.append))
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((0, 0), ticket=1))
    assert bench.durable.asked.wait(PATIENCE_S)
    full_disk.n_failures = 1
    bench.put(rendering.rendered((5, 5)))
    bench.put(rendering.rendered((9, 9)))
    bench.durable.sync(1)
    assert bench.settle(made.run) is None
    assert bench.disk.told == [Room.STOP]
    assert (info_of(made).rev, made.run.shed, made.run.stuck) == (1, True, "the disk is full")


def test_tiles_are_not_written_while_room_is_short(bench: Bench, made: Recording, full_disk: FullDisk) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.settle(made.run)
    n_writes = full_disk.n_tried()
    bench.disk.now = Room.STOP
    bench.put(rendering.rendered((0, 0)))
    bench.put(Marked(made.run, state="idle"))
    assert bench.settle(made.run) is None
    assert full_disk.n_tried() == n_writes + 1, "the mark only"
    assert (info_of(made).rev, info_of(made).state) == (0, "idle")
    assert made.run.shed
    assert bench.disk.told == []


def test_marks_are_made_with_what_is_kept_back_for_them(bench: Bench, made: Recording, full_disk: FullDisk) -> None:
    full_disk.n_failures = 1
    bench.put(Opened(made.run))
    assert bench.settle(made.run) is None
    full_disk.n_failures = 1
    bench.put(Marked(made.run, state="ended", report=(1, {"received": 0, "state": "ended"})))
    assert bench.settle(made.run) is None
    assert (info_of(made).state, info_of(made).revision) == ("ended", 1)
    assert bench.disk.told == [Room.FULL] * 2
    assert not made.run.stuck


def test_nobody_waits_for_room(bench: Bench, made: Recording, full_disk: FullDisk) -> None:
    bench.put(Opened(made.run))
    bench.settle(made.run)
    full_disk.n_failures = 10**9
    bench.put(Marked(made.run, state="ended", notices=[made.run.notice("ended", {})]))
    assert bench.settle(made.run) is None
    assert made.run.shed
    assert [notice.kind for notice in bench.notices] == ["ended", "warning"]
    full_disk.n_failures = 0
    closed = threading.Event()
    bench.put(Closed(made.run, closed.set))
    assert closed.wait(PATIENCE_S)
    made.run.release()
    assert (made.folder / "active").exists(), "the next daemon goes on with it"


def test_at_the_end_nobody_waits_for_who_locks_a_store(bench: Bench, made: Recording, full_disk: FullDisk) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((0, 0)))
    bench.settle(made.run)
    full_disk.n_failures, full_disk.error = 10**9, StoreBusyError("locked")
    while full_disk.tried.acquire(blocking=False):
        pass
    bench.put(rendering.rendered((5, 5)))
    assert full_disk.tried.acquire(timeout=PATIENCE_S)
    bench.committer.abandon()
    bench.settle(made.run)
    assert made.run.stuck
    full_disk.n_failures = 0
    bench.put(rendering.rendered((9, 9)))
    bench.put(Marked(made.run, state="ended"))
    bench.settle(made.run)
    assert info_of(made).rev == 1, "what came after rests on what is missing"
    closed = threading.Event()
    bench.put(Closed(made.run, closed.set))
    assert closed.wait(PATIENCE_S)
    made.run.release()
    assert (made.folder / "active").exists()


@pytest.mark.parametrize(
    ("code", "shed"), [(sqlite3.SQLITE_IOERR, False), (sqlite3.SQLITE_READONLY, True)], ids=["broken", "read-only"]
)
def test_a_disk_that_does_not_take_tiles_is_told_of(
    bench: Bench, made: Recording, full_disk: FullDisk, code: int, shed: bool
) -> None:
    cause = sqlite3.OperationalError("disk I/O error")
    cause.sqlite_errorcode = code
    full_disk.error = StoreError("the disk failed")
    full_disk.error.__cause__ = cause
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.settle(made.run)
    full_disk.n_failures = 1
    bench.put(rendering.rendered((0, 0)))
    bench.settle(made.run)
    assert bench.disk.trouble == made.run.stuck == "the disk failed"
    assert (made.run.shed, bench.disk.told) == (shed, [])


# ---- stores that cannot be written -----------------------------------------------------------------------------------


def test_a_store_that_cannot_be_opened_stops_its_run_only(bench: Bench, made: Recording) -> None:
    (made.folder / TILES_NAME).write_bytes(b"no database" * 1000)
    sound = Recording(made.root, run_id=OTHER_RUN)
    rendering, other = Rendering(made), Rendering(sound)
    bench.put(Opened(made.run))
    assert made.run.store_ready.wait(PATIENCE_S), "or the blender would wait for ever"
    bench.put(rendering.rendered((0, 0)))
    bench.put(Marked(made.run, notices=[RunNotice(instrument="scope", stream="cam", run=RUN, kind="idle")]))
    bench.put(Opened(sound.run))
    bench.put(other.rendered((0, 0)))
    assert bench.settle(sound.run) is None
    refused = bench.settle(made.run)
    assert isinstance(refused, StoreError)
    assert "is damaged" in made.run.stuck
    assert [tiles.run for tiles in bench.tiles] == [OTHER_RUN]
    assert [(notice.kind, notice.detail.get("what")) for notice in bench.notices] == [
        ("warning", "stuck"),
        ("idle", None),
    ]
    closed = threading.Event()
    bench.put(Closed(made.run, closed.set))
    assert closed.wait(PATIENCE_S)
    sound.close()


def test_a_store_that_fails_in_mid_run_stops_its_run_only(
    bench: Bench, made: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((0, 0)))
    bench.settle(made.run)

    def fail(*_: Any) -> CommitResult:
        raise StoreError("the disk failed")

    with monkeypatch.context() as broken:
        broken.setattr(SqliteStore, "commit", fail)
        bench.put(rendering.rendered((5, 5)))
        assert bench.settle(made.run) is None, "what still can be written is"
    assert made.run.stuck == "the disk failed"
    bench.put(rendering.rendered((9, 9)))
    bench.settle(made.run)
    assert info_of(made).rev == 1


def test_a_store_that_cannot_be_closed_in_good_order_is_closed(
    bench: Bench, made: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.put(Opened(made.run))
    bench.settle(made.run)
    close = SqliteStore.close

    def fail(self: SqliteStore) -> None:
        close(self)
        raise StoreError("no room")

    closed = threading.Event()
    with monkeypatch.context() as broken:
        broken.setattr(SqliteStore, "close", fail)
        bench.put(Closed(made.run, closed.set))
        assert closed.wait(PATIENCE_S)


def test_when_the_thread_dies_nobody_waits_for_it(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    go_on, arrived = threading.Event(), threading.Event()

    def die(*_: Any, **__: Any) -> SqliteStore:
        arrived.set()
        go_on.wait(PATIENCE_S)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(committer, "open_or_create", die)
    bench.put(Opened(made.run))
    assert arrived.wait(PATIENCE_S)
    answers: list[Exception | None] = []
    closed = threading.Event()
    other = Recording(made.root, run_id=OTHER_RUN)
    bench.put(Opened(other.run))
    bench.put(Marked(made.run, on_done=answers.append))
    bench.put(Closed(made.run, closed.set))
    go_on.set()
    bench.committer.join()
    assert [name for name, _ in bench.failures] == ["store"]
    assert not bench.queue.put(Opened(made.run)), "nothing more is taken"
    assert closed.is_set()
    assert isinstance(answers[0], StoreError)
    assert other.run.store_ready.is_set()
    assert other.run.stuck
    other.close()


# ---- marks -----------------------------------------------------------------------------------------------------------


def test_what_happens_to_a_run_is_kept_and_then_announced(bench: Bench, made: Recording) -> None:
    report = RunNotice(instrument="scope", stream="cam", run=RUN, kind="report", detail={"revision": 2})
    ended = RunNotice(instrument="scope", stream="cam", run=RUN, kind="ended", detail={})

    def look(_: object) -> None:
        assert info_of(made).state == "ended"

    bench.on_announce = look
    bench.put(Opened(made.run))
    bench.put(
        Marked(
            made.run,
            state="ended",
            report=(2, {"received": 3, "state": "ended"}),
            notices=[ended, report],
            events=[("shutter", {"open": True})],
            renamed="liver",
            note="bright",
        )
    )
    bench.settle(made.run)
    info = info_of(made)
    assert (info.state, info.revision, info.report, info.name) == (
        "ended",
        2,
        {"received": 3, "state": "ended"},
        "liver",
    )
    with SqliteReader(made.folder) as reader:
        assert [event.name for event in reader.events()] == ["rename", "note", "shutter", "ended"]
    assert bench.said == [ended, report]


# ---- the canvas ------------------------------------------------------------------------------------------------------


def test_the_epoch_rises_when_the_canvas_must_move(bench: Bench, made: Recording) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    corners = [(0, 0), (4, 2), (0, 500), (0, 510), (-600, 0)]
    epochs, canvases = [], []
    for corner in corners:
        bench.put(rendering.rendered(corner))
        bench.settle(made.run)
        info = info_of(made)
        epochs.append(info.epoch)
        canvases.append(info.canvas)
        assert info.canvas is not None
        assert info.canvas.contains(info.bbox)
        assert info.canvas.levels == info.levels + 1 or info.canvas is canvases[-2]
    assert epochs == [1, 1, 2, 2, 3]
    assert [tiles.epoch for tiles in bench.tiles] == epochs
    assert canvases[0] == canvases[1] != canvases[2] == canvases[3] != canvases[4]
    with SqliteReader(made.folder) as reader:
        reasons = [event.detail["reason"] for event in reader.events() if event.name == "epoch"]
    assert reasons == ["the canvas moved", "the canvas moved"]


def test_a_planned_canvas_stands_and_what_lies_outside_is_told_once(bench: Bench, tmp_path: Path) -> None:
    made = Recording(tmp_path, changes={"extent_um": ((0.0, 0.0), (64 * PX_UM[0], 64 * PX_UM[1]))})
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    for corner in ((0, 0), (500, 0), (-600, 0), (10, 10)):
        bench.put(rendering.rendered(corner))
    bench.settle(made.run)
    info = info_of(made)
    assert info.canvas == Canvas(Rect(0, 0, 64, 64), 2, TILE, fixed=True)
    assert info.epoch == 1
    assert [notice.kind for notice in bench.notices] == ["warning"]
    assert "outside extent_um" in bench.notices[0].detail["message"]
    made.close()


def test_a_store_that_is_opened_again_knows_its_canvas(bench: Bench, made: Recording) -> None:
    rendering = Rendering(made)
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((0, 0)))
    closed = threading.Event()
    bench.put(Closed(made.run, closed.set))
    bench.put(Opened(made.run))
    bench.put(rendering.rendered((2, 1)))
    bench.settle(made.run)
    assert info_of(made).epoch == 1
    assert bench.tiles[-1].bbox_um == rect_um(Rect(0, 0, 26, 31), made.start.effective_affine)


# ---- pure parts ------------------------------------------------------------------------------------------------------


def test_a_batch_becomes_one_transaction(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    batch = Rendering(made).batch(*CORNERS)
    rows = encode_rows(batch)
    assert [(row.plane, row.key) for row in rows] == list(batch.tiles)
    full = [row for row in rows if row.coverage is None]
    assert len(full) == sum(tile.coverage is None for tile in batch.tiles.values())
    commit = as_commit(batch, rows, None, None, TILE, 9)
    assert (commit.tiles, commit.placements, commit.levels, commit.t_recv_ns) == (
        rows,
        batch.placements,
        batch.levels,
        9,
    )
    assert commit.new_epoch is None, "the first canvas moves nobody's"
    again = as_commit(batch, rows, commit.canvas, None, TILE, None)
    assert (again.canvas, again.new_epoch) == (commit.canvas, None)
    empty = Batch(number=1, placements=(), tiles={}, gone=(), levels=0, bboxes={})
    assert as_commit(empty, [], None, None, TILE, None).canvas is None
    assert encode_rows(empty) == []
    made.close()


def test_each_half_of_the_tiles_is_encoded_by_another_thread(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    rendering = Rendering(made)
    batch = rendering.batch(*CORNERS)
    assert len(batch.tiles) >= 16, "fewer are not worth another thread"

    class Counting(ThreadPoolExecutor):
        n_jobs = 0

        def submit(self, *job: Any, **options: Any) -> Any:
            self.n_jobs += 1
            return super().submit(*job, **options)

    with Counting(2) as encoders:
        encoding = Encoding(Rendered(made.run, batch, None, 0), encoders)
        rows = encoding.rows()
        assert encoders.n_jobs == 2
        assert encoding.seconds > 0
    assert [(row.plane, row.key) for row in rows] == list(batch.tiles)
    for row, tile in zip(rows, batch.tiles.values(), strict=True):
        assert np.array_equal(pzf.decode_image(row.pzf), tile.pixels)
    made.close()


def test_stage_boxes_follow_the_affine() -> None:
    rect = Rect(-10, 20, 30, 60)
    assert rect_um(rect, ((0.5, 0), (0, 0.25))) == ((10, -2.5), (30, 7.5))
    assert rect_um(rect, ((0, 1), (-2, 0))) == ((-10, -120), (30, -40))


def test_a_planned_extent_in_pixels(tmp_path: Path) -> None:
    made = Recording(tmp_path, changes={"extent_um": ((-1.0, 2.0), (1.0, 4.0))})
    assert extent_of(made.start) == Rect(8, -2, 16, 2)
    assert extent_of(Recording(tmp_path, run_id=OTHER_RUN).start) is None
