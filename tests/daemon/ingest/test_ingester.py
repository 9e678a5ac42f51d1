"""The ingest thread: first the journal, then the rest; it pushes back, and it ends in good order whatever happens."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from fake_disk import FakeDisk
from ingest_harness import OTHER_RUN, RUN
from integration.talking import RawPublisher, picture
from recordings import Recording, centre_um, config
from tilecast.errors import RunLockedError
from tilecast.geometry import Placement
from tilecast.ingest import ingester as ingester_module
from tilecast.ingest.ingester import Ingester
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.room import Room
from tilecast.ingest.verdicts import IngestPath
from tilecast.plugins import Plugins
from tilecast.service.keeper import Keeper
from tilecast.service.rebuild import rebuild_run
from tilecast.service.settings import ingest_settings, ingester_options
from tilecast.service.sockets import Sockets
from tilecast.store.lock import RunLock
from tilecast_protocol import pzf
from tilecast_protocol.errors import JournalError, QueryError
from tilecast_protocol.journal import Journal, RecordKind
from tilecast_protocol.messages import Ack, RunNotice, parse_from_daemon

PATIENCE_S = 20.0


class Taken:
    """The sink: keeps what it is given, and can say that it is full, or keep a run that it is to let go."""

    def __init__(self) -> None:
        self.has_room = True
        self.asked_for = 0
        self.keeps_runs = False
        self.opened_runs: list[Any] = []
        self.frames: list[tuple[Any, Placement, NDArray[Any] | None, int]] = []
        self.marks: list[tuple[str | None, tuple[int, dict[str, Any]] | None]] = []
        self.notices: list[RunNotice] = []
        self.unloaded: list[tuple[Any, Callable[[], None]]] = []
        self.came = threading.Condition()
        self.before_placed: Callable[[Placement], None] = lambda _: None

    def has_room_for(self, nbytes: int) -> bool:
        self.asked_for = nbytes
        return self.has_room

    def opened(self, run: Any) -> None:
        self.opened_runs.append(run)

    def placed(
        self, run: Any, placement: Placement, pixels: NDArray[Any] | None, _t_recv_ns: int | None, ticket: int
    ) -> None:
        self.before_placed(placement)
        with self.came:
            self.frames.append((run, placement, pixels, ticket))
            self.came.notify_all()

    def marked(
        self, _run: Any, state: str | None, report: tuple[int, dict[str, Any]] | None, notices: Sequence[RunNotice]
    ) -> None:
        self.marks.append((state, report))
        self.notices += notices

    def noticed(self, _run: Any, notice: RunNotice) -> None:
        self.notices.append(notice)

    def unload(self, run: Any, on_done: Callable[[], None]) -> None:
        with self.came:
            self.unloaded.append((run, on_done))
            self.came.notify_all()
        if not self.keeps_runs:
            on_done()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.came:
            assert self.came.wait_for(condition, PATIENCE_S)


class Bench:
    """An ingest thread with real sockets and folders."""

    def __init__(self, root: Path, *overrides: str, recover: Sequence[str] = (), start: bool = True) -> None:
        self.config = config(
            root, "ingest.ack=tcp://127.0.0.1:*", "ingest.pull=tcp://127.0.0.1:*", "ingest.gap_report_ms=1", *overrides
        )
        self.root = root
        root.mkdir(exist_ok=True)
        self.sockets = Sockets(self.config)
        self.sink = Taken()
        self.failures: list[tuple[str, BaseException]] = []
        self.recovered = threading.Event()
        self.keeper = Keeper(self.config, Plugins())
        self.disk = FakeDisk()
        self.publishers: list[RawPublisher] = []
        self.ingester = Ingester(
            self.sockets.ingest([IngestPath.ACK, IngestPath.PULL]),
            machine=IngestMachine(ingest_settings(self.config), self.keeper.lookup),
            keeper=self.keeper,
            sink=self.sink,
            options=ingester_options(self.config, recent_bytes=1 << 20),
            disk=self.disk,
            state=lambda: "ready",
            on_failure=lambda name, error: self.failures.append((name, error)),
            recover=recover,
            on_recovered=self.recovered.set,
        )
        if start:
            self.ingester.start()

    def publisher(self, path: str = "ack", **options: Any) -> RawPublisher:
        kind = zmq.DEALER if path == "ack" else zmq.PUSH
        made = RawPublisher(self.sockets.endpoints[f"ingest.{path}"], kind, **options)
        self.publishers.append(made)
        return made

    def turn(self) -> None:
        """Wait until the thread has come round."""
        self.ingester.ask(lambda _: None, PATIENCE_S)

    def until(self, condition: Callable[[], bool]) -> None:
        """Let the thread come round until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            self.turn()

    def stop(self, *, finish: bool = True) -> None:
        self.ingester.stop()
        self.ingester.join()
        self.ingester.close_runs(PATIENCE_S, finish=finish)
        self.sockets.close()
        for publisher in self.publishers:
            publisher.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "runs")
    yield made
    made.stop()
    assert made.failures == []


def send_frames(publisher: RawPublisher, frames: Sequence[int], run: str = RUN) -> None:
    for frame in frames:
        publisher.image(run, frame, picture(frame), pos_um=list(centre_um(0, 10 * frame)))


def journalled(root: Path, run: str = RUN) -> list[int]:
    """The frames in a run's journal."""
    with Journal.open(root / run / "journal", readonly=True) as journal:
        return [number for first, last in journal.frames().ranges() for number in range(first, last + 1)]


# ---- the way of a message --------------------------------------------------------------------------------------------


def test_a_frame_is_in_the_journal_before_anybody_sees_it(bench: Bench) -> None:
    seen = []

    def look(placement: Placement) -> None:
        run = bench.sink.opened_runs[0]
        seen.append(placement.frame in run.journal.frames())

    bench.sink.before_placed = look
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, range(5))
    publisher.wait_settled(5)
    bench.sink.wait(lambda: len(bench.sink.frames) == 5)
    assert seen == [True] * 5
    assert [placement.index for _, placement, _, _ in bench.sink.frames] == [0, 1, 2, 3, 4]
    for run, placement, pixels, _ in bench.sink.frames:
        assert pixels is not None
        assert (pixels == picture(placement.frame)).all()
        record = run.journal.image(placement.index)
        assert (pzf.decode_image(record.parts[0]) == picture(placement.frame)).all()
    assert bench.sink.marks[0] == ("open", None)
    assert [notice.kind for notice in bench.sink.notices] == ["started"]


def test_an_acknowledgement_waits_for_the_disk(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "journal.fsync_interval_ms=10000")
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    bench.sink.wait(lambda: len(bench.sink.frames) == 1)
    *_, ticket = bench.sink.frames[0]
    assert ticket > bench.ingester.syncer.durable_ticket == 0
    bench.turn()
    assert publisher.upto_seq == -1
    bench.stop()
    assert bench.ingester.syncer.durable_ticket == ticket


def test_the_last_acknowledgement_comes_with_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "journal.fsync_interval_ms=10000")
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0, 1])
    bench.sink.wait(lambda: len(bench.sink.frames) == 2)
    bench.ingester.stop()
    publisher.wait_settled(2)
    bench.stop()


def test_without_fsync_a_write_is_acknowledged_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "journal.fsync_interval_ms=10000", "journal.durability=os")
    publisher = bench.publisher()
    assert publisher.hello().durability == "os"
    publisher.start(RUN)
    send_frames(publisher, [0])
    publisher.wait_settled(1)
    assert bench.ingester.syncer.durable_ticket == 0, "and yet tiles wait for it"
    bench.stop()


def test_what_is_behind_pushes_back_on_the_publishers(bench: Bench) -> None:
    ack, push = bench.publisher(), bench.publisher("pull", stream="other")
    ack.hello()
    bench.sink.has_room = False
    bench.turn()
    ack.start(RUN)
    push.start(OTHER_RUN)
    for _ in range(5):
        bench.turn()
    assert bench.ingester.stats().get("accepted", 0) == 0
    bench.sink.has_room = True
    ack.wait_settled(0)
    bench.until(lambda: bench.ingester.stats().get("accepted", 0) == 2)
    # The next frame, and what may have to be said of runs, can be handed on without waiting.
    bench.turn()
    assert bench.sink.asked_for > picture(0).nbytes


def test_orders_are_carried_out_while_it_pushes_back(bench: Bench) -> None:
    bench.sink.has_room = False
    assert bench.ingester.ask(lambda machine: machine.loaded()) == ()


def test_small_frames_that_lie_anywhere_in_memory(bench: Bench) -> None:
    """ZeroMQ hands out small messages where they lie in its buffer: at odd addresses, too."""
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN, shape=[3, 5], user={"odd": "x"})
    for frame in range(8):
        pixels = np.arange(15, dtype="<u2").reshape(3, 5) + frame
        publisher.image(RUN, frame, pixels, pos_um=[0.0, 0.0], user={"pad": "x" * frame})
    publisher.wait_settled(8)
    bench.sink.wait(lambda: len(bench.sink.frames) == 8)
    for frame, (_, _, pixels, _) in enumerate(bench.sink.frames):
        assert pixels is not None
        assert pixels.tolist() == (np.arange(15).reshape(3, 5) + frame).tolist()


# ---- publishers that come and go -------------------------------------------------------------------------------------


def test_a_publisher_that_has_gone_is_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingester_module, "_ACK_EVERY_S", 0.0)
    for _ in range(5):
        with RawPublisher(bench.sockets.endpoints["ingest.ack"]) as publisher:
            publisher.hello()
    bench.until(lambda: bench.ingester.stats()["publishers"] == 0)


def test_no_refusal_is_lost_on_a_publisher_that_does_not_read(tmp_path: Path) -> None:
    """What was not told of counts as accepted: `upto_seq` passes over it."""
    bench = Bench(tmp_path, start=False)
    [router] = bench.ingester._sockets[IngestPath.ACK]
    router.sndhwm = 1
    address = "inproc://narrow"
    router.bind(address)
    dealer = router.context.socket(zmq.DEALER)
    dealer.linger, dealer.rcvhwm = 0, 1
    dealer.connect(address)
    publisher = bench.publisher()
    hello = {"v": 1, "type": "hello", "src": publisher.src, "boot": publisher.boot, "next_seq": 0}
    dealer.send_multipart([b"tc1/scope/cam/hello", msgpack.packb(hello)])
    bench.ingester.start()
    bench.recovered.wait(PATIENCE_S)
    for _ in range(30):
        # An image of a run that nobody knows: refused, one by one, in acknowledgements that soon do not fit.
        dealer.send_multipart(publisher.message("image", b"xx", run=RUN, frame=0, codec="raw", nbytes=2))
        publisher.seq += 1
        bench.until(lambda: bench.ingester.stats().get("rejected_unknown-run", 0) == publisher.seq)
    refused: set[int] = set()
    upto = -1
    while len(refused) < 30:
        assert dealer.poll(round(PATIENCE_S * 1000)), f"only {sorted(refused)} of 30 were told"
        message = parse_from_daemon(dealer.recv_multipart())
        if isinstance(message, Ack):
            refused |= {rejected.seq for rejected in message.rejected}
            upto = message.upto_seq
            assert refused >= set(range(upto + 1)), "nothing is settled that it has not been told of"
    dealer.close()
    bench.stop()


# ---- disks and folders that fail -------------------------------------------------------------------------------------


@pytest.fixture
def failing_append(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the next so many appends to journals fail, as on a full disk."""
    left = [0]
    append = Journal.append

    def fail(self: Journal, *args: Any, **kwargs: Any) -> Any:
        if left[0]:
            left[0] -= 1
            error = JournalError("No space left on device")
            error.errno = errno.ENOSPC
            raise error
        return append(self, *args, **kwargs)

    monkeypatch.setattr(Journal, "append", fail)

    def let_fail(n: int) -> None:
        left[0] = n

    return let_fail


def test_a_run_that_cannot_be_begun_leaves_nothing_and_may_come_again(
    bench: Bench, failing_append: Callable[[int], None]
) -> None:
    publisher = bench.publisher()
    publisher.hello()
    failing_append(1)
    refused = publisher.wait_rejected(publisher.start(RUN))
    assert (refused.reason, "No space left" in refused.message) == ("disk-reserve", True)
    assert list(bench.root.iterdir()) == []
    assert bench.sink.opened_runs == []
    bench.disk.now = Room.OK
    publisher.wait_settled(publisher.start(RUN))
    send_frames(publisher, [0])
    publisher.wait_settled(2)
    assert journalled(bench.root) == [0]


def test_a_frame_that_cannot_be_written_is_refused_and_may_come_again(
    bench: Bench, failing_append: Callable[[int], None]
) -> None:
    publisher = bench.publisher()
    publisher.hello()
    publisher.wait_settled(publisher.start(RUN))
    failing_append(1)
    send_frames(publisher, [0])
    assert publisher.wait_rejected(1).reason == "disk-reserve"
    bench.disk.now = Room.OK
    send_frames(publisher, [0])
    publisher.wait_settled(2)
    assert journalled(bench.root) == [0]
    assert 2 not in publisher.rejections


@pytest.mark.parametrize("ruin", ["tiles.sqlite", "journal/000000.tcj", "frozen.json"])
def test_a_message_for_a_ruined_run_stops_nobody(tmp_path: Path, ruin: str) -> None:
    root = tmp_path / "runs"
    made = Recording(root)
    made.images()
    rebuild_run(made.close())
    (made.folder / ruin).write_bytes(b"ruined" * 1000)
    (made.folder / "journal" / "000000.tci").unlink()
    bench = Bench(root)
    publisher = bench.publisher()
    publisher.hello()
    for _ in range(3):
        send_frames(publisher, [100])
        refused = publisher.wait_rejected(publisher.seq - 1)
        assert refused.reason == "busy"
        assert "cannot be loaded" in refused.message
    publisher.wait_settled(publisher.start(OTHER_RUN))
    RunLock(made.folder).release()
    bench.stop()
    assert bench.failures == []


def test_a_run_that_cannot_be_loaded_is_not_tried_for_every_message(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Recording(bench.root)
    made.images()
    made.close()
    lock = RunLock(made.folder)  # another process has it
    n_tries = 0
    load = bench.keeper.load

    def counted(record: Any) -> Any:
        nonlocal n_tries
        n_tries += 1
        return load(record)

    monkeypatch.setattr(bench.keeper, "load", counted)
    publisher = bench.publisher()
    publisher.hello()
    send_frames(publisher, [100, 101, 102])
    assert "is being written by" in publisher.wait_rejected(2).message
    assert n_tries == 1
    lock.release()
    monkeypatch.setattr(ingester_module.time, "monotonic", lambda clock=time.monotonic: clock() + 60)
    send_frames(publisher, [100])
    publisher.wait_settled(3)
    assert n_tries == 2


class FailingFsync:
    """Lets fsync fail for as long as a test wants; all of it, or only that of journals that grow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails: set[str] = set()
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self.around(name, getattr(os, name)))

    def around(self, name: str, sync: Callable[[int], None]) -> Callable[[int], None]:
        def attempt(fd: int) -> None:
            if name in self.fails:
                raise OSError(errno.EIO, "Input/output error")
            sync(fd)

        return attempt


@pytest.fixture
def fsync(monkeypatch: pytest.MonkeyPatch) -> FailingFsync:
    return FailingFsync(monkeypatch)


def test_a_journal_that_could_not_be_synced_is_read_again(tmp_path: Path, fsync: FailingFsync) -> None:
    bench = Bench(tmp_path, "journal.fsync_interval_ms=0")
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    publisher.wait_settled(1)
    fsync.fails = {"fdatasync"}
    send_frames(publisher, [1])
    bench.until(lambda: len(bench.sink.opened_runs) == 2)
    fsync.fails = set()
    publisher.wait_settled(2)
    assert publisher.rejections == {}, "it was found, and written once more"
    assert "could not be made durable" not in bench.disk.trouble
    assert "Input/output error" in bench.disk.trouble
    send_frames(publisher, [2])
    publisher.wait_settled(3)
    assert bench.failures == []
    run = bench.sink.opened_runs[1]
    assert [(frame[0], frame[1].frame) for frame in bench.sink.frames[-1:]] == [(run, 2)]
    assert (run.load(bench.sink.frames[-1][1]) == picture(2)).all()
    bench.stop()
    assert journalled(tmp_path) == [0, 1, 2]


def test_what_is_not_found_in_a_journal_that_could_not_be_synced_is_refused(
    tmp_path: Path, fsync: FailingFsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the kernel had dropped the pages: the frame is gone, and its number is free for it to come again."""
    bench = Bench(tmp_path, "journal.fsync_interval_ms=0")
    publisher = bench.publisher()
    publisher.hello()
    publisher.wait_settled(publisher.start(RUN))
    journal = bench.sink.opened_runs[0].journal
    opened = Journal.open.__func__  # type: ignore[attr-defined]

    def forgetful(cls: type[Journal], folder: Path, **options: Any) -> Journal:
        if not options.get("readonly"):
            os.truncate(folder / "000000.tcj", journal.synced_lsn)
        found: Journal = opened(cls, folder, **options)
        return found

    monkeypatch.setattr(Journal, "open", classmethod(forgetful))
    fsync.fails = {"fdatasync"}
    send_frames(publisher, [0])
    refused = publisher.wait_rejected(1)
    fsync.fails = set()
    assert refused.reason == "disk-reserve"
    assert "it was not found again" in refused.message
    monkeypatch.undo()
    publisher.image(RUN, 0, picture(7), pos_um=list(centre_um(0, 0)))
    publisher.wait_settled(2)
    assert 2 not in publisher.rejections
    _, placement, pixels, _ = bench.sink.frames[-1]
    assert (placement.frame, placement.index) == (0, 0)
    assert pixels is not None
    assert (pixels == picture(7)).all()
    bench.stop()
    assert bench.failures == []


def test_a_disk_that_cannot_be_written_at_all_is_waited_for(
    tmp_path: Path, fsync: FailingFsync, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingester_module, "_LOAD_AGAIN_S", 0.3)
    bench = Bench(tmp_path, "journal.fsync_interval_ms=0")
    publisher = bench.publisher()
    publisher.hello()
    publisher.wait_settled(publisher.start(RUN))
    fsync.fails = {"fsync", "fdatasync"}
    send_frames(publisher, [0])
    assert publisher.wait_rejected(1).reason == "disk-reserve"
    send_frames(publisher, [1])
    assert publisher.wait_rejected(2).reason == "busy"
    assert bench.ingester.not_loadable().keys() == {RUN}
    assert bench.ingester.loaded() == []
    fsync.fails = set()
    bench.disk.trouble = ""  # so it is when a small file could be written
    bench.until(lambda: bench.ingester.loaded() == [RUN])
    send_frames(publisher, [2])
    publisher.wait_settled(3)
    assert 3 not in publisher.rejections
    bench.stop()
    assert bench.failures == []


def test_a_journal_that_fails_in_the_last_sync_is_left_to_the_next_daemon(tmp_path: Path, fsync: FailingFsync) -> None:
    bench = Bench(tmp_path, "journal.fsync_interval_ms=10000")
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    publisher.send("end", run=RUN, reason="done", n_sent=0)
    bench.until(lambda: ("ended", None) in bench.sink.marks)
    fsync.fails = {"fdatasync"}
    bench.ingester.stop()
    bench.ingester.join()
    bench.ingester.close_runs(PATIENCE_S)
    assert publisher.socket.poll(0) == 0 or publisher.upto_seq == -1
    assert (tmp_path / RUN / "active").exists()
    bench.stop()
    assert bench.failures == []


# ---- a disk that gets full -------------------------------------------------------------------------------------------


def disk_notices(bench: Bench) -> list[str]:
    return [notice.detail["room"] for notice in bench.sink.notices if notice.detail.get("what") == "disk"]


def test_a_disk_that_gets_full_and_has_room_again(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    publisher.wait_settled(1)

    bench.disk.now = Room.WARN
    bench.until(lambda: disk_notices(bench) == ["warn"])
    bench.disk.now = Room.STOP
    bench.until(lambda: disk_notices(bench) == ["warn", "stop"])
    refused = publisher.wait_rejected(publisher.start(OTHER_RUN))
    assert (refused.reason, refused.message) == ("disk-reserve", "the disk is stop")
    assert not (bench.root / OTHER_RUN).exists()
    assert publisher.start(RUN) == 3
    send_frames(publisher, [1])
    publisher.wait_settled(4)
    assert publisher.rejections.keys() == {2}, "the run goes on, and its start may be repeated"

    bench.disk.now = Room.FULL
    bench.until(lambda: any(state == "ended" for state, _ in bench.sink.marks))
    send_frames(publisher, [2])
    assert publisher.wait_rejected(5).message == "the disk is full"
    publisher.send("end", run=RUN, reason="done", n_sent=3)
    publisher.wait_settled(6)
    assert 6 not in publisher.rejections, "it is small, and says how many images there were"

    bench.disk.now = Room.OK
    bench.until(lambda: publisher.seq == 7 and bench.ingester._room is Room.OK)
    send_frames(publisher, [2])
    publisher.wait_settled(publisher.start(OTHER_RUN))
    assert publisher.rejections.keys() == {2, 5}
    bench.until(lambda: bench.ingester.ask(lambda machine: machine.report(RUN)["late"]) == 1)
    report = bench.ingester.ask(lambda machine: machine.report(RUN))
    assert (report["received"], report["n_missing"], report["rejected"]) == (3, 0, {"disk-reserve": 1})
    first = next(report for _, report in bench.sink.marks if report is not None)
    assert (first[1]["reason"], first[1]["received"]) == ("disk-reserve", 2)


def test_a_journal_without_room_ends_its_run(bench: Bench, failing_append: Callable[[int], None]) -> None:
    publisher = bench.publisher()
    publisher.hello()
    publisher.wait_settled(publisher.start(RUN))
    failing_append(1)
    send_frames(publisher, [0])
    assert publisher.wait_rejected(1).reason == "disk-reserve"
    assert bench.disk.told == [Room.FULL]
    bench.until(lambda: any(state == "ended" for state, _ in bench.sink.marks))


def test_runs_catch_up_when_there_is_room(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0, 1])
    publisher.wait_settled(2)
    left = Recording(bench.root, run_id=OTHER_RUN)
    left.images()
    left.close(finished=False)
    bench.disk.now = Room.STOP
    bench.until(lambda: bench.ingester._was_short)
    run = bench.sink.opened_runs[0]
    run.stuck, run.shed = "no room", True
    send_frames(publisher, [2])
    publisher.wait_settled(3)
    assert bench.sink.opened_runs == [run]
    bench.disk.now = Room.WARN
    bench.until(lambda: len(bench.sink.opened_runs) == 3)
    again = next(one for one in bench.sink.opened_runs[1:] if one.run == RUN)
    assert (again is not run, again.shed) == (True, False)
    assert [placement.frame for one, placement, _, _ in bench.sink.frames if one is again] == [0, 1, 2]
    send_frames(publisher, [3])
    publisher.wait_settled(4)
    assert publisher.rejections == {}
    assert set(bench.ingester.loaded()) == {RUN, OTHER_RUN}
    publisher.send("end", run=RUN, reason="done", n_sent=4)
    publisher.wait_settled(5)
    assert bench.ingester.ask(lambda machine: machine.report(RUN)["received"]) == 4


def test_a_run_is_let_go_for_somebody_else_to_write(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    publisher.wait_settled(1)
    with pytest.raises(QueryError) as refused:
        bench.ingester.let_go(RUN)
    assert (refused.value.code, "end it first" in str(refused.value)) == ("conflict", True)
    publisher.send("end", run=RUN, reason="done", n_sent=1)
    publisher.wait_settled(2)
    bench.ingester.let_go(RUN)
    RunLock(bench.root / RUN).release()
    assert not (bench.root / RUN / "active").exists()
    bench.ingester.let_go(RUN)
    send_frames(publisher, [1])
    publisher.wait_settled(3)
    assert bench.ingester.loaded() == [RUN], "and comes back when it is needed"


# ---- runs that go and come back --------------------------------------------------------------------------------------


def end_and_unload(bench: Bench, publisher: RawPublisher) -> None:
    """Let a run end, and its time in memory be over."""
    publisher.send("end", run=RUN, reason="done", n_sent=1)
    publisher.wait_settled(publisher.seq - 1)
    bench.ingester.order(lambda: bench.ingester._do(unload_now(bench)))
    bench.sink.wait(lambda: len(bench.sink.unloaded) == 1)


def unload_now(bench: Bench) -> Any:
    return bench.ingester._machine.tick(time.time_ns() + 10**12)


def test_a_late_frame_of_a_run_that_is_just_leaving(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingester_module, "_UNLOAD_S", 0.05)
    monkeypatch.setattr(ingester_module, "_LOAD_AGAIN_S", 0.0)
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    bench.sink.keeps_runs = True
    end_and_unload(bench, publisher)
    send_frames(publisher, [1])
    assert "still being written" in publisher.wait_rejected(3).message
    [(leaving, on_done)] = bench.sink.unloaded
    on_done()
    bench.sink.keeps_runs = False
    send_frames(publisher, [1])
    publisher.wait_settled(4)
    assert journalled(bench.root) == [0, 1]
    assert len(bench.sink.opened_runs) == 2
    assert bench.ingester.run_loaded(RUN) is bench.sink.opened_runs[1]
    with pytest.raises(JournalError):
        leaving.journal.append(RecordKind.STAGE, topic="x", header=b"", t_recv_ns=0)
    # Told of it twice, it does not give back the run that came after.
    on_done()
    bench.turn()
    send_frames(publisher, [2])
    publisher.wait_settled(5)
    assert journalled(bench.root) == [0, 1, 2]


def test_what_was_counted_last_is_kept_when_a_run_leaves(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0, 0, 0])
    end_and_unload(bench, publisher)
    bench.until(lambda: not bench.ingester.loaded())
    found = bench.keeper.lookup(RUN)
    assert found is not None
    assert found.counts["duplicate"] == 2
    assert not (bench.root / RUN / "active").exists()
    RunLock(bench.root / RUN).release()


def test_the_end_does_not_wait_twice_for_a_run_that_is_leaving(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    bench.sink.keeps_runs = True
    end_and_unload(bench, publisher)
    bench.ingester.stop()
    bench.ingester.join()
    [(_, on_done)] = bench.sink.unloaded
    on_done()
    bench.stop()
    assert len(bench.sink.unloaded) == 1
    assert not (tmp_path / RUN / "active").exists()


@pytest.mark.parametrize(("ended", "in_time"), [(True, True), (False, True), (True, False)])
def test_runs_are_given_back_at_the_end(tmp_path: Path, ended: bool, in_time: bool) -> None:
    bench = Bench(tmp_path)
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    if ended:
        publisher.send("end", run=RUN, reason="done", n_sent=1)
    publisher.wait_settled(publisher.seq - 1)
    bench.sink.keeps_runs = not in_time
    bench.ingester.stop()
    bench.ingester.join()
    bench.ingester.close_runs(PATIENCE_S if in_time else 0.0)
    bench.stop()
    # The next daemon takes up what goes on, and what was not finished.
    assert (tmp_path / RUN / "active").exists() == (not ended or not in_time)
    RunLock(tmp_path / RUN).release()
    assert bench.ingester.loaded() == []


def test_what_the_last_daemon_left_is_loaded_and_blended(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.images()
    made.close(finished=False)
    bench = Bench(tmp_path, recover=[RUN, OTHER_RUN])
    assert bench.recovered.wait(PATIENCE_S)
    assert [placement.frame for _, placement, _, _ in bench.sink.frames] == list(range(7))
    assert all(pixels is None for _, _, pixels, _ in bench.sink.frames), "they are read from the journal"
    publisher = bench.publisher()
    [state] = publisher.hello().runs
    assert (state.run, state.next_frame, state.received) == (RUN, 7, ((0, 6),))
    bench.stop()
    assert bench.failures == []


def test_an_end_while_it_still_loads_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.images()
    made.end()
    made.close(finished=False)
    bench = Bench(tmp_path, recover=[RUN], start=False)
    bench.sink.before_placed = lambda placement: bench.ingester.stop() if placement.frame == 3 else None
    bench.ingester.start()
    bench.sink.wait(lambda: len(bench.sink.frames) == 4)
    bench.stop()
    assert [placement.frame for _, placement, _, _ in bench.sink.frames] == [0, 1, 2, 3]
    assert (tmp_path / RUN / "active").exists()
    again = Bench(tmp_path, recover=[RUN])
    assert again.recovered.wait(PATIENCE_S)
    again.stop()


@pytest.mark.parametrize("stopped", [False, True])
def test_journals_are_verified_before_any_is_applied(tmp_path: Path, stopped: bool) -> None:
    made = Recording(tmp_path)
    made.images()
    made.close(finished=False)
    bench = Bench(tmp_path, recover=[RUN], start=False)
    seen: list[int] = []

    def verified() -> None:
        with pytest.raises(RunLockedError):
            RunLock(tmp_path / RUN)
        seen.append(len(bench.sink.frames))
        if stopped:
            bench.ingester.stop()

    bench.ingester._on_verified = verified
    bench.ingester.start()
    if stopped:
        bench.ingester.join()
    else:
        assert bench.recovered.wait(PATIENCE_S)
    bench.stop()
    assert bench.failures == []
    assert seen == [0]
    assert len(bench.sink.frames) == (0 if stopped else 7)
    # Whoever comes next finds it as this one did.
    assert (tmp_path / RUN / "active").exists()
    RunLock(tmp_path / RUN).release()


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_what_was_taken_over_from_one_way_publishers_is_finished(tmp_path: Path) -> None:
    """They think that it has arrived, and nobody would tell them otherwise."""
    bench = Bench(tmp_path)
    push = bench.publisher("pull")
    bench.sink.has_room = False
    bench.turn()
    push.start(RUN)
    send_frames(push, [0, 1])
    [pull] = bench.ingester._sockets[IngestPath.PULL]
    while not pull.getsockopt(zmq.EVENTS) & zmq.POLLIN:
        bench.turn()
    bench.stop()
    assert journalled(tmp_path) == [0, 1]


def test_nobody_waits_for_a_thread_that_has_ended(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    go_on = threading.Event()
    bench.ingester.order(lambda: go_on.wait(PATIENCE_S))  # type: ignore[arg-type, return-value]
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(bench.ingester.ask(lambda machine: machine.loaded())))
    asking.start()
    while not len(bench.ingester._orders):
        pass
    bench.ingester.stop()
    go_on.set()
    asking.join(PATIENCE_S)
    assert answers == [()], "what was asked before the end is answered"
    bench.stop()
    assert not bench.ingester.order(lambda: None)
    with pytest.raises(QueryError) as refused:
        bench.ingester.ask(lambda machine: machine.loaded())
    assert refused.value.code == "busy"
    bench.ingester.wake()  # as the fsync thread, or a store that is late, may still do


def test_a_question_that_is_not_come_to_in_time_is_not_asked_later(bench: Bench) -> None:
    go_on, asked = threading.Event(), []
    bench.ingester.order(lambda: go_on.wait(PATIENCE_S))  # type: ignore[arg-type, return-value]
    with pytest.raises(QueryError, match="catching up"):
        bench.ingester.ask(lambda _: asked.append(1), timeout_s=0.01)
    go_on.set()
    bench.turn()
    assert asked == []


def test_a_question_that_fails_is_the_asker_s_affair(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.ingester.ask(lambda _: 1 / 0)
    bench.turn()
    with pytest.raises(QueryError) as refused:
        bench.ingester.end_run(RUN)
    assert refused.value.code == "unknown-run"


def test_an_operator_ends_a_run(bench: Bench) -> None:
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    publisher.wait_settled(1)
    bench.ingester.end_run(RUN)
    assert bench.sink.marks[1][0] == "ended"
    report = bench.sink.marks[2][1]
    assert report is not None
    assert (report[0], report[1]["reason"]) == (1, "abort")
    with pytest.raises(QueryError) as refused:
        bench.ingester.end_run(RUN)
    assert refused.value.code == "conflict"


def test_a_bug_ends_it_and_gives_everything_back(tmp_path: Path) -> None:
    n_fds = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of this process, and only counted
    bench = Bench(tmp_path)
    publisher = bench.publisher()
    publisher.hello()
    publisher.start(RUN)
    send_frames(publisher, [0])
    publisher.wait_settled(1)

    def bug(_: Placement) -> None:
        raise ZeroDivisionError("a bug")

    bench.sink.before_placed = bug
    send_frames(publisher, [1])
    publisher.wait_settled(2)  # it was durable, so it is acknowledged in its last breath
    bench.ingester.join()
    bench.stop(finish=False)
    assert [name for name, _ in bench.failures] == ["ingest"]
    assert (tmp_path / RUN / "active").exists()
    RunLock(tmp_path / RUN).release()
    assert journalled(tmp_path) == [0, 1]
    assert len(os.listdir("/proc/self/fd")) <= n_fds  # noqa: PTH208 - as above
