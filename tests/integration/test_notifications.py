"""What viewers are told, over real sockets: nothing too early, nothing that cannot be noticed as missing.

A viewer here keeps a picture of its own, made of what was announced to it and of the tiles it then fetched. At the end
that picture must be the store's, bit for bit, whatever was lost on the way.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

from integration.conftest import IMPATIENT, StartDaemon, Station
from integration.scanning import Pixels, assert_holds, endpoints, pictures, serpentine
from integration.stored import assert_same, stored_mosaic
from integration.talking import PATIENCE_S, PX_UM, SHAPE, RawPublisher, Watcher, centre_um, new_uuid, picture
from reference import mosaic_reference
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client, Resync, TileRef, TileUpdate, Update
from tilecast_protocol.messages import DaemonHeartbeat, RunNotice, Tiles, encode, parse_from_daemon
from tilecast_protocol.publisher import Publisher

CAMERA: dict[str, Any] = {"shape": SHAPE, "dtype": "<u2", "px_um": PX_UM}
HEIGHT, WIDTH = SHAPE
FAR = {0: (0, 0), 1: (5, 20), 2: (-700, -900), 3: (-690, -880), 4: (-2500, -10), 5: (-2510, 10)}
"""Corners of a scan that twice goes far away to the upper left."""


def _key(tile: Iterable[int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """A tile as `stored_mosaic` names it."""
    t, c, z, level, row, col = tile
    return (t, c, z), (level, row, col)


class Picture:
    """What a viewer has of a run: every tile that it was told of, as it got it when it asked.

    Attributes
    ----------
    tiles : dict
        As `stored_mosaic` gives them.
    n_fetched : int
        Tiles fetched because of an announcement.
    """

    def __init__(self, client: Client, run: str) -> None:
        self.tiles: mosaic_reference.Mosaic = {}
        self.n_fetched = 0
        self._client = client
        self._run = run

    def change(self, tiles: Iterable[tuple[int, ...]], gone: Iterable[tuple[int, ...]], rev: int) -> None:
        """Fetch what was announced with `rev`, which must be there, and that new."""
        for tile in gone:
            self.tiles.pop(_key(tile), None)
        for tile in tiles:
            found = self._client.tile(self._run, TileRef(*tile))
            assert found is not None, f"{tile} was announced with rev {rev}, and is absent"
            assert found.rev >= rev, f"{tile} was announced with rev {rev}, and is of rev {found.rev}"
            self.tiles[_key(tile)] = (found.pixels, found.coverage)
            self.n_fetched += 1

    def begin(self) -> None:
        """Drop everything, and take what there is now."""
        self.tiles.clear()
        for tile in self._client.snapshot(self._run).tiles:
            found = self._client.tile(self._run, tile)
            assert found is not None, f"{tile} is in the snapshot, and is absent"
            self.tiles[_key(tile)] = (found.pixels, found.coverage)

    def follow(self, update: Update | None) -> None:
        """Do what an update of a client asks for."""
        match update:
            case Resync():
                self.begin()
            case TileUpdate(tiles=tiles, gone=gone, healed=healed, rev=rev):
                # `changes` says of each tile the rev it has now, the update only how far all of it leads.
                self.change(tiles, gone, 0 if healed else rev)


class Relay:
    """Stands between the daemon's notifications and a viewer, and passes on only what the test wants."""

    def __init__(self, endpoint: str) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(endpoint)
        self.endpoint = endpoint

    def wait_subscribed(self) -> None:
        """Wait until somebody listens."""
        assert self._socket.poll(round(PATIENCE_S * 1000)), "nobody subscribes"
        self._socket.recv()

    def send(self, message: Tiles | RunNotice | DaemonHeartbeat) -> None:
        """Pass this on."""
        self._socket.send_multipart(encode(message))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()


@pytest.fixture
def relay() -> Iterator[Relay]:
    # Not below pytest's own folder: the path of an ipc socket may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        found = Relay(f"ipc://{folder}/relay")
        yield found
        found.close()


def send(publisher: Publisher, sent: Pixels, frames: Iterable[int], place: Callable[[int], tuple[int, int]]) -> None:
    """Send frames, each when the one before it is safe, so that they fall into many commits."""
    for frame in frames:
        publisher.image(sent[frame], frame=frame, pos_um=centre_um(*place(frame)))
        publisher.flush()


def send_and_wait(
    station: Station, publisher: Publisher, run: str, sent: Pixels, frame: int, corner: tuple[int, int]
) -> Tiles:
    """Send one frame; the notification of the commit that placed it."""
    publisher.image(sent[frame], frame=frame, pos_um=centre_um(*corner))
    publisher.flush()
    return station.watch.placed(run, rev_of(station, run, frame))


def rev_of(station: Station, run: str, frame: int) -> int:
    """The commit that placed a frame; waits for it."""
    begun = False  # the store of a run may be made a moment after its frames are safe
    for message in station.watch.messages():
        begun = begun or (isinstance(message, Tiles) and message.run == run)
        if begun and isinstance(message, Tiles | DaemonHeartbeat):
            for placed in station.client.placements(run).placed:
                if placed.frame == frame:
                    return placed.rev
    raise AssertionError(f"frame {frame} of {run} is not placed")


def last_rev(station: Station, run: str, n: int) -> int:
    """The commit with which the last of `n` frames was placed; waits for it."""
    return max(rev_of(station, run, frame) for frame in range(n))


def box_um(corners: Iterable[tuple[int, int]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Outer edges of frames at these corners."""
    places = list(corners)
    rows, cols = [row for row, _ in places], [col for _, col in places]
    return (
        (min(cols) * PX_UM[0], min(rows) * PX_UM[1]),
        ((max(cols) + WIDTH) * PX_UM[0], (max(rows) + HEIGHT) * PX_UM[1]),
    )


# ---- commits ---------------------------------------------------------------------------------------------------------


def test_what_is_announced_can_be_fetched_and_makes_the_whole_picture(station: Station) -> None:
    """The viewer knows nothing but notifications and `tile`; it fetches while the scan goes on."""
    n, n_alone, sent = 40, 8, pictures(31, 40)
    extent = ((-500.0, -300.0), (100.0, 100.0))  # so that the canvas stays, and nothing has to be begun anew
    with station.publisher("announced") as publisher, Client(None, station.daemon.endpoints["query"]) as client:
        run = publisher.start("announced", **CAMERA, extent_um=extent)
        mine = Picture(client, run)
        heard: list[Tiles] = []
        waiting, n_sent = iter(range(n)), 0
        for message in station.watch.messages(len(station.watch.heard)):
            if isinstance(message, Tiles) and message.run == run:
                assert message.tiles is not None
                assert not message.truncated
                mine.change(message.tiles, message.gone, message.rev)
                heard.append(message)
            if len(heard) < n_sent <= n_alone:
                continue  # the first few each go when the one before has been announced: a commit of its own
            frame = next(waiting, None)
            if frame is not None:
                # Nobody waits for this one: the next announcement is looked at the moment it is there.
                publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
                n_sent += 1
            elif heard and len((found := client.placements(run)).placed) == n and heard[-1].rev == found.rev:
                break
        publisher.end()
        publisher.flush()
    assert [message.rev for message in heard] == list(range(1, len(heard) + 1))
    assert {message.epoch for message in heard} == {heard[0].epoch}
    assert mine.n_fetched > len(mine.tiles)
    assert_same(mine.tiles, stored_mosaic(station.folder(run)))
    assert_holds(station.folder(run), sent)

    rows = {placed.frame: placed.rev for placed in station.client.placements(run).placed}
    assert [rows[frame] for frame in range(n_alone)] == list(range(1, n_alone + 1)), "each as soon as it came"
    assert min(rows[frame] for frame in range(n_alone, n)) > n_alone
    for message in heard:
        assert message.bbox_um == box_um(serpentine(frame) for frame, rev in rows.items() if rev <= message.rev)
        assert message.t_recv_ns is not None
        assert 0 < message.t_commit_ns - message.t_recv_ns < 60_000_000_000
    assert all(one.t_commit_ns <= other.t_commit_ns for one, other in itertools.pairwise(heard))


def test_the_epoch_rises_when_the_canvas_moves_and_viewers_begin_anew(station: Station) -> None:
    sent = pictures(32, len(FAR))
    with (
        station.publisher("far") as publisher,
        Client(
            station.daemon.endpoints["notify"], station.daemon.endpoints["query"], instrument="scope", stream="far"
        ) as viewer,
    ):
        viewer.wait_connected()
        run = publisher.start("far", **CAMERA)
        placed, canvases = [], []
        for frame, corner in FAR.items():
            placed.append(send_and_wait(station, publisher, run, sent, frame, corner))
            canvases.append(station.client.run(run)["canvas"])
        mine = Picture(station.client, run)
        updates = list(following(viewer, mine, placed[-1].rev))
        publisher.end()
        publisher.flush()
    first = placed[0].epoch
    assert [message.epoch - first for message in placed] == [0, 0, 1, 1, 2, 2]
    assert [message.rev for message in station.watch.tiles(run)] == list(range(1, placed[-1].rev + 1))
    for before, after, message, earlier in zip(canvases, canvases[1:], placed[1:], placed, strict=False):
        assert (before == after) == (message.epoch == earlier.epoch)
        assert not after["fixed"]
    for (_, corner), canvas in zip(FAR.items(), canvases, strict=True):
        row0, col0, row1, col1 = canvas["bounds"]
        assert row0 <= corner[0] <= row1 - HEIGHT
        assert col0 <= corner[1] <= col1 - WIDTH
    begun = [update for update in updates if isinstance(update, Resync) and update.reason == "epoch"]
    assert [update.epoch - first for update in begun] == [1, 2]
    assert_same(mine.tiles, stored_mosaic(station.folder(run)))
    assert_holds(station.folder(run), sent, FAR)


def following(viewer: Client, mine: Picture, rev: int) -> Iterator[Update]:
    """What a viewer is given until it has come to `rev`; its picture follows."""
    for update in viewer.updates(PATIENCE_S):
        mine.follow(update)
        yield update
        if isinstance(update, TileUpdate | Resync) and update.rev >= rev:
            return
    raise AssertionError(f"the viewer does not come to rev {rev}")


def test_a_planned_canvas_stays_and_frames_outside_are_warned_of_once(station: Station) -> None:
    sent = pictures(33, 6)
    corners = {0: (-60, -60), 1: (30, 30), 2: (-300, 0), 3: (0, 500), 4: (-2000, -2000), 5: (10, 10)}
    extent = ((-64 * PX_UM[0], -64 * PX_UM[1]), (64 * PX_UM[0], 64 * PX_UM[1]))
    with station.publisher("planned") as publisher:
        run = publisher.start("planned", **CAMERA, extent_um=extent)
        placed, canvases, n_warnings = [], [], []
        for frame, corner in corners.items():
            placed.append(send_and_wait(station, publisher, run, sent, frame, corner))
            canvases.append(station.client.run(run)["canvas"])
            n_warnings.append(len(warnings(station.watch, run)))
        publisher.end()
        publisher.flush()
        report = station.watch.report(run)
    assert [n for first, last in report["outside_extent"] for n in range(first, last + 1)] == [2, 3, 4]
    assert report["n_outside_extent"] == 3
    # Tiles of 32, 4 x 4 of them: with a second level they are 2 x 2.
    assert canvases == [{"bounds": [-64, -64, 64, 64], "levels": 2, "fixed": True}] * len(corners)
    assert {message.epoch for message in placed} == {placed[0].epoch}
    assert n_warnings == [0, 0, 1, 1, 1, 1]
    [warning] = warnings(station.watch, run)
    text = "frames lie outside extent_um; they are blended, and seen by signed queries only"
    assert warning == {"what": "outside-extent", "message": text}
    with SqliteReader(station.folder(run)) as reader:
        assert [event.detail for event in reader.events() if event.name == "warning"] == [warning]
    assert [message.bbox_um for message in placed] == [
        box_um(corners[frame] for frame in range(n + 1)) for n in range(len(corners))
    ]
    assert_holds(station.folder(run), sent, corners)


def warnings(watch: Watcher, run: str) -> list[dict[str, Any]]:
    """Details of the warnings about a run that were heard so far."""
    return [notice.detail for notice in watch.notices(run) if notice.kind == "warning"]


# ---- notices ---------------------------------------------------------------------------------------------------------


def test_each_notice_of_a_run_says_exactly_what_happened(station: Station) -> None:
    watch, run, sent = station.watch, new_uuid(), pictures(34, 9)

    def raw_image(camera: RawPublisher, frame: int) -> None:
        camera.wait_settled(camera.image(run, frame, sent[frame], pos_um=list(centre_um(*serpentine(frame)))))

    with RawPublisher(station.ack, stream="notices") as camera:
        camera.hello()
        camera.wait_settled(camera.start(run, name="the name"))
        assert watch.notice(run, "started") == {"name": "the name"}
        for frame in (0, 1, 4):
            raw_image(camera, frame)
        missing = {"what": "frames", "missing": [[2, 3]], "n_missing": 2}
        assert watch.notice(run, "gap") == missing
        raw_image(camera, 2)
        healed = {"what": "frames", "healed": [[2, 2]], "n_healed": 1}
        assert watch.notice(run, "gap", lambda detail: "healed" in detail) == healed
        camera.wait_settled(camera.send("end", run=run, reason="done", n_sent=8, n_camera_dropped=3))
        assert watch.notice(run, "ended") == {}
        tail = {"what": "frames", "missing": [[5, 7]], "n_missing": 3}
        assert watch.notice(run, "gap", lambda detail: detail.get("missing") == [[5, 7]]) == tail
        expected = {
            "run": run,
            "revision": 1,
            "state": "ended",
            "reason": "done",
            "planned": None,
            "expected": 8,
            "expected_from": "end",
            "received": 4,
            "n_missing": 4,
            "missing": [[3, 3], [5, 7]],
            "duplicate": 0,
            "resent": 0,
            "malformed": 0,
            "rejected": {},
            "lost_before_start": 0,
            "late": 0,
            "by_status": {"good": 4, "incomplete": 0, "repeated": 0, "saturated": 0},
            "camera_dropped": 3,
            "placed": 4,
            "n_outside_extent": 0,
            "outside_extent": [],
            "n_unplaced": 0,
            "unplaced": {},
            "joined": None,
        }
        assert watch.report(run) == expected
        assert station.client.report(run)["report"] == expected
        raw_image(camera, 6)
        assert watch.notice(run, "late") == {"frames": [[6, 6]], "n": 1}
        assert watch.report(run, 2) == expected | {
            "revision": 2,
            "received": 5,
            "n_missing": 3,
            "missing": [[3, 3], [5, 5], [7, 7]],
            "late": 1,
            "by_status": {"good": 5, "incomplete": 0, "repeated": 0, "saturated": 0},
            "placed": 5,
            "n_outside_extent": 0,
            "outside_extent": [],
        }
    kinds = [notice.kind for notice in watch.notices(run)]
    assert (kinds[0], kinds.count("started"), kinds.count("ended"), kinds.count("late")) == ("started", 1, 1, 1)
    assert kinds.index("ended") < kinds.index("report") < kinds.index("late")
    assert set(kinds) == {"started", "gap", "ended", "report", "late"}


def test_the_daemon_tells_every_second_how_it_is_and_where_each_run_stands(station: Station) -> None:
    sent = pictures(35, 3)
    with station.publisher("beats") as publisher:
        run = publisher.start("beats", **CAMERA)
        send(publisher, sent, range(3), serpentine)
        rev = last_rev(station, run, 3)
        own = station.client.hello()["instrument"]
        beat: DaemonHeartbeat = station.watch.until(
            lambda message: (
                isinstance(message, DaemonHeartbeat)
                and message.instrument == own
                and any(row.run == run for row in message.runs)
                and next(row.rev for row in message.runs if row.run == run) == rev
            ),
            "a heartbeat with the last rev",
        )
        info = station.client.run(run)
        [row] = [row for row in beat.runs if row.run == run]
        assert (row.epoch, row.rev) == (info["epoch"], info["rev"])
        assert (beat.state, beat.stream, beat.instrument) == ("ready", "daemon", own)
        assert beat.topic == f"tc1/{beat.instrument}/daemon/hb"
        assert beat.wal_bytes is not None
        assert beat.wal_bytes == 0 or beat.wal_bytes > 32  # none, or one with a header
        assert beat.free_bytes is not None
        assert beat.free_bytes > 0
        # Who follows the instrument of the run alone hears of it, too.
        theirs: DaemonHeartbeat = station.watch.until(
            lambda message: isinstance(message, DaemonHeartbeat) and message.instrument == "scope", "one of the scope"
        )
        assert (own != "scope", theirs.topic, theirs.state) == (True, "tc1/scope/daemon/hb", "ready")
        n = len([one for one in station.watch.heard if isinstance(one, DaemonHeartbeat) and one.instrument == own])
        beats: list[DaemonHeartbeat] = []
        for message in station.watch.messages():
            if isinstance(message, DaemonHeartbeat) and message.instrument == own:
                beats.append(message)
                if len(beats) == n + 2:
                    break
        publisher.end()
        publisher.flush()
    apart_s = np.diff([beat.t_ns for beat in beats]) / 1e9
    assert apart_s.min() > 0.9  # a timer may be late on a busy machine, never early
    assert np.median(apart_s) < 1.5


# ---- viewers that miss something -------------------------------------------------------------------------------------


def test_a_viewer_that_comes_late_has_the_same_picture(station: Station) -> None:
    n, sent = 24, pictures(36, 24)
    with station.publisher("latecomer") as publisher:
        run = publisher.start("latecomer", **CAMERA)
        send(publisher, sent, range(12), serpentine)
        before = last_rev(station, run, 12)
        with Client(station.daemon.endpoints["notify"], station.daemon.endpoints["query"], run=run) as viewer:
            mine = Picture(station.client, run)
            viewer.wait_connected()
            first = viewer.next_update(PATIENCE_S)
            assert isinstance(first, Resync)
            assert (first.reason, first.run, first.rev) == ("joined", run, before)
            assert viewer.lag(run).revs == 0
            mine.follow(first)
            assert_same(mine.tiles, stored_mosaic(station.folder(run)))
            send(publisher, sent, range(12, n), serpentine)
            rev = last_rev(station, run, n)
            assert viewer.lag(run).revs == rev - before
            assert list(following(viewer, mine, rev))
            assert viewer.lag(run) == (0, 0)
        publisher.end()
        publisher.flush()
    assert_same(mine.tiles, stored_mosaic(station.folder(run)))
    assert_holds(station.folder(run), sent)


@pytest.mark.parametrize("heals", ["the next commit", "a heartbeat"])
def test_a_viewer_that_missed_commits_heals(station: Station, relay: Relay, heals: str) -> None:
    """Of all commits but the first and, in one case, the last, the viewer hears nothing."""
    n, sent = 16, pictures(37, 16)
    extent = ((-500.0, -300.0), (100.0, 100.0))  # so that nothing but what is missed has to be made good
    with (
        station.publisher("holes") as publisher,
        Client(relay.endpoint, station.daemon.endpoints["query"]) as viewer,
    ):
        relay.wait_subscribed()
        run = publisher.start("holes", **CAMERA, extent_um=extent)
        mine = Picture(station.client, run)
        send(publisher, sent, range(n), serpentine)
        rev = last_rev(station, run, n)
        station.watch.placed(run, rev)
        commits = station.watch.tiles(run)
        assert len(commits) == rev > 2
        relay.send(commits[0])
        first = viewer.next_update(PATIENCE_S)
        assert isinstance(first, TileUpdate)
        assert (first.rev, first.healed) == (1, False)
        mine.follow(first)
        if heals == "a heartbeat":
            beat: DaemonHeartbeat = station.watch.until(
                lambda message: isinstance(message, DaemonHeartbeat) and (run, commits[0].epoch, rev) in message.runs,
                "a heartbeat with the last rev",
            )
            # Other runs of this daemon are in it too; here only this one is followed.
            relay.send(replace(beat, runs=tuple(row for row in beat.runs if row.run == run)))
        else:
            relay.send(commits[-1])
        updates = list(following(viewer, mine, rev))
        assert all(isinstance(update, TileUpdate) and update.healed for update in updates)
        assert viewer.next_update(0) is None
        publisher.end()
        publisher.flush()
    assert_same(mine.tiles, stored_mosaic(station.folder(run)))
    assert_holds(station.folder(run), sent)


def test_a_commit_of_very_many_tiles_names_none_and_an_idle_run_is_told(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    shape = (1030, 1030)
    daemon = start_daemon(
        **IMPATIENT | {"blend.tile_size": "16", "ingest.max_frame_bytes": "4MiB", "ingest.idle_end_s": "1"}
    )
    pixels = picture(38, shape)
    with (
        Client(daemon.endpoints["notify"], daemon.endpoints["query"], notices=True) as viewer,
        Watcher(daemon.endpoints["notify"]) as watch,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
    ):
        viewer.wait_connected()
        camera.hello()
        run = new_uuid()
        camera.start(run, shape=list(shape))
        camera.wait_settled(camera.image(run, 0, pixels, pos_um=list(centre_um(0, 0, shape))))
        found = watch.placed(run, 1)
        assert (found.rev, found.tiles, found.gone, found.truncated) == (1, None, (), True)
        assert watch.notice(run, "idle") == {}
        report = watch.report(run)
        assert (report["state"], report["reason"], report["expected_from"]) == ("idle", None, "frames")
        updates = [update for update in drained(viewer) if isinstance(update, TileUpdate)]
    tiles = [tile for update in updates for tile in update.tiles]
    assert {update.rev for update in updates} == {1}
    with SqliteReader(tmp_path / "runs" / run) as reader:
        stored = {TileRef(*stamp.plane, *stamp.key) for stamp in reader.stamps()}
    assert len(tiles) == len(stored) > 4000
    assert set(tiles) == stored


def drained(viewer: Client) -> Iterator[Update]:
    """What is there for a viewer already."""
    while (update := viewer.next_update(0)) is not None:
        yield update


# ---- a viewer that never reads ---------------------------------------------------------------------------------------


def test_a_viewer_that_never_reads_loses_but_slows_nobody(start_daemon: StartDaemon) -> None:
    """Its queue fills, and more is published than it can hold; all others get everything, at the usual pace."""
    shape, far, n_calm, n_deaf = (200, 200), (-10_000_000, -10_000_000), 20, 220
    # Small tiles with large numbers: a notification of 4 KB. The queue in front of each viewer holds a hundred.
    settings = {"blend.tile_size": "16", "viewers.queue_bytes": "1MiB", "store.commit_interval_ms": "1"}
    sent = [picture(number, shape) for number in range(4)]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    deaf = context.socket(zmq.SUB)
    for option, value in ((zmq.RCVHWM, 1), (zmq.LINGER, 0)):
        deaf.setsockopt(option, value)
    deaf.subscribe(b"tc1/")
    try:
        # The buffers of ipc sockets do not grow as those of TCP do.
        with endpoints() as fixed:
            daemon = start_daemon(**IMPATIENT | settings | fixed)
            process = psutil.Process(daemon.pid)
            with Watcher(fixed["notify"]) as watch, RawPublisher(fixed["ingest.ack"]) as camera:
                run = new_uuid()
                camera.hello()
                camera.start(run, shape=list(shape))

                def scan(frames: range) -> list[float]:
                    took = []
                    for frame in frames:
                        began = time.monotonic()
                        camera.image(run, frame, sent[frame % 4], pos_um=list(centre_um(*far, shape)))
                        watch.placed(run, frame + 1)
                        took.append(time.monotonic() - began)
                        camera.wait_settled(camera.seq - 1)
                    return took

                calm = scan(range(n_calm))
                deaf.connect(fixed["notify"])
                assert deaf.poll(round(PATIENCE_S * 1000)), "it is not connected"
                resident = process.memory_info().rss
                disturbed = scan(range(n_calm, n_calm + n_deaf))
                grown = process.memory_info().rss - resident
                revs = [message.rev for message in watch.tiles(run)]
                # Now it does read: all that was kept for it, until it hears what is published now.
                n_kept, since_ns = 0, time.time_ns()
                while True:
                    assert deaf.poll(round(PATIENCE_S * 1000)), "it is told nothing any more"
                    message = parse_from_daemon(deaf.recv_multipart())
                    n_kept += isinstance(message, Tiles)
                    if isinstance(message, DaemonHeartbeat) and (message.t_ns or 0) > since_ns:
                        break
            assert daemon.stop() == 0
    finally:
        deaf.close()
        context.term()
    assert revs == list(range(1, n_calm + n_deaf + 1))
    assert 0 < n_kept < n_deaf
    assert grown < 16 << 20
    assert np.median(disturbed) < 2 * np.median(calm) + 0.02
