"""The blend thread: when it hands tiles over, what it may hold in memory, and what becomes of what it cannot do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ingest_harness import OTHER_RUN, RUN
from integration.stored import assert_same, reference_mosaic, stored_mosaic
from recordings import CORNERS, TILE, Recording
from tilecast.errors import StoreError
from tilecast.geometry import Placement
from tilecast.pyramid import Pyramid
from tilecast.queues import ByteQueue
from tilecast.service import blender
from tilecast.service.blender import Blender, BlendItem, Placed, Rebuild, Unload
from tilecast.service.committer import (
    Closed,
    Marked,
    Opened,
    Rendered,
    StoreItem,
    as_commit,
    encode_rows,
    marks,
    open_or_create,
    refuse,
)
from tilecast.service.rebuild import rebuild_run
from tilecast.service.runs import Run
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore

PATIENCE_S = 20.0
HOUR_S = 3600.0
FRAME_NBYTES = 24 * 30 * 2


@dataclass
class Bench:
    """A blend thread; the test is the store thread, and takes its time."""

    commit_interval_s: float = HOUR_S
    batch_bytes: int = 1 << 30
    budget_bytes: int = 1 << 24
    failures: list[tuple[str, BaseException]] = field(default_factory=list)
    queue: ByteQueue[BlendItem] = field(default_factory=lambda: ByteQueue("blend", 1 << 30))
    store_queue: ByteQueue[StoreItem] = field(default_factory=lambda: ByteQueue("store", 1 << 30))
    stores: dict[str, SqliteStore] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blender = Blender(
            self.queue,
            self.store_queue,
            budget_bytes=self.budget_bytes,
            commit_interval_s=self.commit_interval_s,
            batch_bytes=self.batch_bytes,
            on_failure=lambda name, error: self.failures.append((name, error)),
        )
        self.blender.start()

    def put(self, item: BlendItem, nbytes: int = 0) -> None:
        assert self.queue.put(item, nbytes)

    def place(self, made: Recording, placement: Placement, *, from_journal: bool = False, **changes: Any) -> None:
        """Have a recorded frame blended."""
        pixels = None if from_journal else made.pixels[placement.frame]
        self.put(
            Placed(
                **({"run": made.run, "placement": placement, "pixels": pixels, "t_recv_ns": 1, "ticket": 0} | changes)
            )
        )

    def take(self, timeout_s: float = PATIENCE_S) -> StoreItem | None:
        """What comes next for the store thread."""
        return self.store_queue.get(timeout_s=timeout_s)

    def open(self, made: Recording) -> None:
        """Begin with a run: its store is opened."""
        self.put(Opened(made.run))
        self.opened(self.take())

    def opened(self, item: StoreItem | None) -> None:
        """Do what the store thread does to open."""
        assert isinstance(item, Opened)
        self.stores[item.run.run] = open_or_create(item.run, wal_limit_bytes=1 << 24)
        item.run.store_ready.set()

    def rendered(self) -> Rendered:
        """The batch that comes next."""
        item = self.take()
        assert isinstance(item, Rendered), item
        return item

    def commit(self, item: Rendered) -> None:
        """Commit a batch, and tell the blender."""
        store = self.stores[item.run.run]
        store.commit(as_commit(item.batch, encode_rows(item.batch), store.info().canvas, None, 16, None))
        self.blender.committed(item.run, item.batch.number)

    def closed(self, item: StoreItem | None) -> None:
        """Do what the store thread does to close."""
        assert isinstance(item, Closed)
        self.stores.pop(item.run.run).close()
        item.on_done()

    def unload(self, made: Recording) -> None:
        """Let a run go, and commit all that comes before."""
        done = threading.Event()
        self.put(Unload(made.run, done.set))
        while not isinstance(item := self.take(), Closed):
            if isinstance(item, Rendered):
                self.commit(item)
        self.closed(item)
        assert done.is_set()

    def settle(self, run: Run) -> None:
        """Wait until the blender has done all that was put so far."""
        done = threading.Event()
        self.put(Marked(run, on_done=lambda _: done.set()))
        item = self.take()
        assert isinstance(item, Marked), item
        assert item.on_done is not None
        item.on_done(None)

    def stop(self) -> None:
        self.queue.close()
        self.blender.join()
        while (item := self.take(0)) is not None:
            refuse(item, StoreError("over"))
        for store in self.stores.values():
            store.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.stop()
    assert made.failures == []


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path)
    yield made
    made.run.journal.close()
    made.run.lock.release()


def frames_of(item: Rendered) -> list[int]:
    """The frames that a batch brings."""
    return [placement.frame for placement in item.batch.placements]


# ---- when tiles are handed over --------------------------------------------------------------------------------------


def test_a_lone_frame_is_handed_over_at_once(bench: Bench, made: Recording) -> None:
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)), t_recv_ns=7, ticket=3)
    item = bench.rendered()
    assert (frames_of(item), item.t_recv_ns, item.ticket) == ([0], 7, 3)


def test_while_the_store_is_busy_frames_are_gathered(bench: Bench, made: Recording) -> None:
    bench.open(made)
    placements = made.images()
    bench.place(made, placements[0])
    first = bench.rendered()
    for number, placement in enumerate(placements[1:]):
        bench.place(made, placement, t_recv_ns=50 - number, ticket=number)
    bench.settle(made.run)
    assert bench.take(0) is None, "one batch is on its way, so nothing more is handed over"
    bench.commit(first)
    item = bench.rendered()
    assert frames_of(item) == [1, 2, 3, 4, 5, 6]
    assert (item.t_recv_ns, item.ticket) == (45, 5), "of the oldest frame; and all must be durable"


def test_a_note_of_the_store_is_read_at_once(bench: Bench, made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if no frame comes any more: the last ones would be late by as long as the thread likes to wait."""
    monkeypatch.setattr(blender, "_LONGEST_WAIT_S", HOUR_S)
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    first = bench.rendered()
    bench.place(made, made.image(1, (5, 5)))
    bench.settle(made.run)
    bench.commit(first)
    assert frames_of(bench.rendered()) == [1]


def test_a_busy_thread_hands_over_when_the_interval_has_passed(made: Recording) -> None:
    """With frames waiting all the time: nobody would ever see anything."""
    bench = Bench(commit_interval_s=0.0)
    placements = made.images([(0, number) for number in range(60)])
    bench.queue.put(Opened(made.run))
    for placement in placements:
        bench.place(made, placement)
    bench.opened(bench.take())
    assert frames_of(bench.rendered()) == [0], "the interval is over with the first"
    bench.stop()


def test_a_busy_thread_gathers_until_the_interval_has_passed_or_nobody_waits(bench: Bench, made: Recording) -> None:
    bench.put(Opened(made.run))
    for placement in made.images([(0, number) for number in range(60)]):
        bench.place(made, placement)
    bench.opened(bench.take())
    assert frames_of(bench.rendered()) == list(range(60))


def test_never_more_is_gathered_than_fits_in_a_batch(made: Recording) -> None:
    """Weighed in the tiles of all levels: frames far from each other make more of them than frames in one place."""
    tile_nbytes = TILE * TILE * 3
    bench = Bench(batch_bytes=20 * tile_nbytes)
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    bench.rendered()  # and it is never committed
    for number in range(1, 9):
        bench.place(made, made.image(number, (0, number % 4)))
    bench.place(made, made.image(9, (200, 0)))
    for number in range(10, 15):
        bench.place(made, made.image(number, (500 * number, 0)))
    batches = [bench.rendered() for _ in range(4)]
    assert [frames_of(batch) for batch in batches] == [[*range(1, 10)], [10], [11, 12], [13, 14]]
    most = (3 * 2 + 2 * 8) * tile_nbytes  # what a frame changes, with eight levels above it
    assert all(batch.batch.nbytes < 20 * tile_nbytes + most for batch in batches)
    bench.settle(made.run)
    bench.stop()


def test_what_is_said_of_a_run_comes_after_its_tiles(bench: Bench, made: Recording) -> None:
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    first = bench.rendered()
    bench.place(made, made.image(1, (5, 5)))
    bench.put(Marked(made.run, events=[("shutter", {})]))
    assert isinstance(bench.take(), Marked), "an event says nothing of tiles"
    bench.put(Marked(made.run, state="ended"))
    assert frames_of(bench.rendered()) == [1]
    assert isinstance(bench.take(), Marked)
    bench.commit(first)


def test_the_end_hands_over_what_there_is(made: Recording) -> None:
    bench = Bench()
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    bench.rendered()
    bench.place(made, made.image(1, (5, 5)))
    bench.queue.close()
    bench.blender.join()
    assert frames_of(bench.rendered()) == [1]
    assert bench.store_queue.drained
    bench.stop()


def test_a_full_store_queue_makes_it_wait(made: Recording) -> None:
    bench = Bench(store_queue=ByteQueue("store", 1), commit_interval_s=0.0)
    bench.open(made)
    for number in range(6):
        bench.place(made, made.image(number, (number, 0)))
    bench.unload(made)
    assert bench.store_queue.stats().n_put > 2
    assert bench.store_queue.stats().high_water_bytes > 1, "one item is let in, however heavy"
    bench.stop()
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))


# ---- what it knows ---------------------------------------------------------------------------------------------------


def test_the_store_ends_with_what_the_reference_says(bench: Bench, made: Recording) -> None:
    bench.open(made)
    for placement in made.images(planes=2):
        bench.place(made, placement, from_journal=placement.frame % 2 == 0)
        bench.commit(bench.rendered())
    bench.unload(made)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels, dict(enumerate(CORNERS))))
    assert bench.blender.stats()["n_frames"] == len(CORNERS)


def test_a_run_that_comes_back_goes_on_where_it_was(bench: Bench, made: Recording) -> None:
    """Frames may come before the store is open: what is in it must be known all the same."""
    bench.open(made)
    placements = made.images()
    for placement in placements[:4]:
        bench.place(made, placement)
        bench.commit(bench.rendered())
    bench.unload(made)
    made.run.store_ready.clear()  # as of a run that has just been loaded
    bench.put(Opened(made.run))
    bench.place(made, placements[0])  # a frame that is there already
    for placement in placements[4:]:
        bench.place(made, placement)
    bench.opened(bench.take())
    while bench.stores[RUN].info().n_placements < len(CORNERS):
        bench.commit(bench.rendered())
    bench.unload(made)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels, dict(enumerate(CORNERS))))


def test_memory_is_shared_by_those_who_are_at_work(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(budget_bytes=1 << 20, commit_interval_s=0.0)
    other = Recording(made.root, run_id=OTHER_RUN)
    now = [1000.0]
    monkeypatch.setattr(blender.time, "monotonic", lambda: now[0])

    def budgets() -> dict[str, int]:
        for each in (made, other):
            bench.place(each, each.image(len(each.pixels), (0, 0)))
            bench.commit(bench.rendered())
        return {run: stats["budget_bytes"] for run, stats in bench.blender.stats()["pyramids"].items()}

    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    bench.commit(bench.rendered())
    assert bench.blender.stats()["pyramids"][RUN]["budget_bytes"] == 1 << 20
    bench.open(other)
    budgets()
    assert budgets() == {RUN: 1 << 19, OTHER_RUN: 1 << 19}
    now[0] += 11
    bench.place(other, other.image(len(other.pixels), (3, 3)))
    bench.commit(bench.rendered())
    assert bench.blender.stats()["pyramids"][OTHER_RUN]["budget_bytes"] == 1 << 20
    bench.unload(other)
    bench.place(made, made.image(len(made.pixels), (4, 4)))
    bench.commit(bench.rendered())
    assert bench.blender.stats()["pyramids"].keys() == {RUN}
    assert bench.blender.stats()["pyramids"][RUN]["budget_bytes"] == 1 << 20
    bench.unload(made)
    bench.stop()
    for each in (made, other):
        assert_same(stored_mosaic(each.folder), reference_mosaic(each.folder, each.pixels))
    other.close()


# ---- what it cannot do -----------------------------------------------------------------------------------------------


def damage(made: Recording, frame: int) -> None:
    """Flip a bit in the pixels of a journalled frame."""
    made.run.journal.sync()
    segment = made.folder / "journal" / "000000.tcj"
    lsn = made.run.journal.image_of_frame(frame).lsn
    with segment.open("r+b") as file:
        file.seek(lsn - 20)
        byte = file.read(1)[0]
        file.seek(lsn - 20)
        file.write(bytes([byte ^ 1]))


def test_a_frame_whose_recording_is_damaged_is_left_out_and_told(bench: Bench, made: Recording) -> None:
    bench.open(made)
    placements = made.images()
    damage(made, 2)
    for placement in placements[:4]:
        bench.place(made, placement, from_journal=True)
    notices, frames = [], []
    while len(frames) < 3:
        item = bench.take()
        if isinstance(item, Marked):
            notices += item.notices
        else:
            assert isinstance(item, Rendered)
            frames += frames_of(item)
            bench.commit(item)
    assert frames == [0, 1, 3]
    [notice] = notices
    assert (notice.kind, notice.detail["what"], notice.detail["frames"]) == ("warning", "damaged", [[2, 2]])
    assert made.run.stuck == ""


def test_a_mosaic_that_cannot_be_read_is_stuck_and_the_others_go_on(
    bench: Bench, made: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Recording(made.root, run_id=OTHER_RUN)
    bench.open(made)
    bench.open(other)
    bench.place(made, made.image(0, (0, 0)))
    bench.commit(bench.rendered())

    add = Pyramid.add

    def fail(self: Pyramid, placement: Placement, pixels: Any = None) -> bool:
        if placement.row == 666:
            raise StoreError("a tile cannot be read")
        return add(self, placement, pixels)

    monkeypatch.setattr(Pyramid, "add", fail)
    bench.place(made, made.image(1, (666, 0)))
    item = bench.take()
    assert isinstance(item, Marked)
    [notice] = item.notices
    assert (notice.kind, notice.detail["what"]) == ("warning", "stuck")
    assert made.run.stuck == "a tile cannot be read"
    bench.place(made, made.image(2, (1, 1)))
    bench.place(other, other.image(0, (0, 0)))
    item = bench.rendered()
    assert item.run is other.run
    bench.commit(item)
    bench.unload(made)
    bench.unload(other)
    assert RUN not in bench.blender.stats()["pyramids"]
    other.close()


def test_what_comes_for_a_run_that_was_let_go_is_answered(bench: Bench, made: Recording) -> None:
    bench.open(made)
    bench.unload(made)
    answers: list[Exception | None] = []
    done = threading.Event()
    bench.place(made, made.image(0, (0, 0)))
    bench.put(Marked(made.run, note="late", on_done=answers.append))
    bench.put(Rebuild(made.run, lambda: None, answers.append))
    bench.put(Unload(made.run, done.set))
    assert done.wait(PATIENCE_S)
    assert [type(answer) for answer in answers] == [StoreError, StoreError]


def test_when_it_dies_nobody_waits_for_it(made: Recording) -> None:
    bench = Bench()
    bench.open(made)
    answers: list[Exception | None] = []
    done = threading.Event()
    made.run.store_ready.clear()  # so that it is held at the frame until all is in the queue
    bench.place(made, made.image(0, (0, 0)), pixels="no pixels at all")
    bench.put(Marked(made.run, on_done=answers.append))
    bench.put(Rebuild(made.run, lambda: None, answers.append))
    bench.put(Unload(made.run, done.set))
    made.run.store_ready.set()
    bench.blender.join()
    assert [name for name, _ in bench.failures] == ["blend"]
    assert done.is_set()
    assert [type(answer) for answer in answers] == [StoreError, StoreError]
    assert not bench.queue.put(Opened(made.run)), "nothing more is taken"
    assert bench.store_queue.drained, "and the store thread can end"
    bench.stop()


def test_when_the_store_thread_has_died_it_goes_on_to_its_end(made: Recording) -> None:
    bench = Bench()
    bench.open(made)
    bench.store_queue.close()
    bench.place(made, made.image(0, (0, 0)))
    done = threading.Event()
    bench.put(Unload(made.run, done.set))
    other = Recording(made.root, run_id=OTHER_RUN)
    bench.put(Opened(other.run))
    bench.place(other, other.image(0, (0, 0)))
    assert done.wait(PATIENCE_S)
    bench.stop()
    assert bench.failures == []
    assert made.run.stuck
    assert other.run.stuck
    other.close()


# ---- rebuilds --------------------------------------------------------------------------------------------------------


class Work:
    """A rebuild that waits for the test."""

    def __init__(self, made: Recording, **options: Any) -> None:
        self.made, self.options = made, options
        self.began, self.go_on, self.done = threading.Event(), threading.Event(), threading.Event()
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.began.set()
        assert self.go_on.wait(PATIENCE_S)
        rebuild_run(self.made.folder, lock=self.made.run.lock, journal=self.made.run.journal, **self.options)

    def answered(self, error: Exception | None) -> None:
        self.error = error
        self.done.set()


def test_frames_that_come_during_a_rebuild_are_blended_after_it(bench: Bench, made: Recording) -> None:
    bench.open(made)
    placements = made.images(CORNERS[:4])
    for placement in placements[:3]:
        bench.place(made, placement)
        bench.commit(bench.rendered())
    bench.place(made, placements[3])
    last = bench.rendered()  # not committed yet when the rebuild is ordered

    work = Work(made, mode="max")
    bench.put(Rebuild(made.run, work, work.answered))
    bench.commit(last)
    bench.closed(bench.take())
    assert work.began.wait(PATIENCE_S)
    seen_by_the_rebuild = made.image(4, CORNERS[4])
    bench.place(made, seen_by_the_rebuild)
    bench.put(Marked(made.run, state="ended"))
    work.go_on.set()
    assert work.done.wait(PATIENCE_S)
    assert work.error is None
    later = made.image(5, CORNERS[5])
    bench.place(made, later)

    bench.opened(bench.take())
    assert isinstance(bench.take(), Marked)
    item = bench.rendered()
    assert frames_of(item) == [5], "frame 4 was in the journal that was rebuilt"
    bench.commit(item)
    # It hands over as ever: no batch is thought to be on its way.
    bench.place(made, made.image(6, CORNERS[6]))
    item = bench.rendered()
    assert frames_of(item) == [6]
    bench.commit(item)
    bench.unload(made)
    with SqliteReader(made.folder) as reader:
        assert reader.info().settings["mode"] == "max"
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels, dict(enumerate(CORNERS))))


def test_a_run_is_let_go_only_when_its_rebuild_is_over(bench: Bench, made: Recording) -> None:
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    bench.commit(bench.rendered())
    work = Work(made)
    bench.put(Rebuild(made.run, work, work.answered))
    bench.closed(bench.take())
    assert work.began.wait(PATIENCE_S)
    gone = threading.Event()
    bench.put(Unload(made.run, gone.set))
    work.go_on.set()
    assert work.done.wait(PATIENCE_S)
    bench.opened(bench.take())
    assert not gone.is_set()
    bench.closed(bench.take())
    assert gone.is_set()


def test_a_rebuild_that_fails_leaves_all_as_it_was(bench: Bench, made: Recording) -> None:
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    bench.commit(bench.rendered())
    answers: list[Exception | None] = []
    answered = threading.Event()

    def fail() -> None:
        raise StoreError("the disk is full")

    def answer(error: Exception | None) -> None:
        answers.append(error)
        answered.set()

    bench.put(Rebuild(made.run, fail, answer))
    bench.closed(bench.take())
    assert answered.wait(PATIENCE_S)
    assert isinstance(answers[0], StoreError)
    bench.opened(bench.take())
    bench.place(made, made.image(1, (4, 4)))
    bench.commit(bench.rendered())
    bench.unload(made)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))


def test_a_rebuild_frees_a_mosaic_that_was_stuck(bench: Bench, made: Recording) -> None:
    bench.open(made)
    bench.place(made, made.image(0, (0, 0)))
    bench.commit(bench.rendered())
    made.run.stuck = "its store failed"
    bench.place(made, made.image(1, (4, 4)))
    work = Work(made)
    work.go_on.set()
    bench.put(Rebuild(made.run, work, work.answered))
    bench.closed(bench.take())
    assert work.done.wait(PATIENCE_S)
    bench.opened(bench.take())
    assert made.run.stuck == ""
    bench.place(made, made.image(2, (8, 8)))
    bench.commit(bench.rendered())
    bench.unload(made)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))


def test_pixels_are_not_kept_while_a_rebuild_goes_on(bench: Bench, made: Recording) -> None:
    bench.open(made)
    work = Work(made)
    bench.put(Rebuild(made.run, work, work.answered))
    bench.closed(bench.take())
    assert work.began.wait(PATIENCE_S)
    placement = made.image(0, (0, 0))
    item = Placed(made.run, placement, made.pixels[0], 1, 0)
    bench.put(item)
    refused = threading.Event()
    bench.put(Unload(Recording(made.root, run_id=OTHER_RUN).run, refused.set))  # comes after it
    assert refused.wait(PATIENCE_S)
    assert item.pixels is None
    work.go_on.set()
    bench.opened(bench.take())


def test_marks_can_be_written_one_by_one(made: Recording) -> None:
    store = open_or_create(made.run, wal_limit_bytes=1 << 24)
    for write in marks(store, Marked(made.run, state="idle", note="x")):
        write()
    assert store.info().state == "idle"
    store.close()
