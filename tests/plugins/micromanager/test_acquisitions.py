"""Acquisitions of pymmcore-plus with Python devices and with Micro-Manager's own, into a real daemon.

Every mosaic is compared with the specimen where it lies under the stage: what a mosaic's pixel shows must be what is at
`affine · (column + 0.5, row + 0.5)` of the stage.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray

from faults.nursery import ForkedDaemon
from integration.stored import stored_mosaic
from integration.talking import Watcher
from tilecast.process import DaemonProcess
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_plugins.micromanager import attach
from tilecast_protocol.journal import Journal

pytest.importorskip("pymmcore_plus", reason="uv sync --group microscopes")
pytest.importorskip("mm_test_adapters", reason="uv sync --group microscopes")

import useq

from plugins.micromanager.scope import Affine, Scope, demo_core

TILE = 64
MISSED = "no tilecast daemon is to be reached"


@dataclass(frozen=True)
class Station:
    """A daemon, the folder of its runs, and what it says."""

    daemon: DaemonProcess
    root: Path
    watch: Watcher

    @property
    def ack(self) -> str:
        return self.daemon.endpoints["ingest.ack"]


@pytest.fixture(scope="module")
def station() -> Iterator[Station]:
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        root = Path(folder) / "runs"
        settings = {"blend.tile_size": str(TILE), "store.commit_interval_ms": "20", "ingest.idle_end_s": "600"}
        daemon = ForkedDaemon(root, settings=settings, log_file=Path(folder) / "log").start()
        try:
            with Watcher(daemon.endpoints["notify"]) as watch:
                yield Station(daemon, root, watch)
        finally:
            daemon.stop()


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Where nobody listens yet."""
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        yield f"ipc://{folder}/ack"


def plane(folder: Path, tcz: tuple[int, int, int] = (0, 0, 0)) -> tuple[NDArray[Any], NDArray[Any], int, int]:
    """Level 0 of a plane: values, coverage, and the row and column of its first pixel."""
    tiles = {key: tile for (where, key), tile in stored_mosaic(folder).items() if where == tcz and key[0] == 0}
    rows, cols = [key[1] for key in tiles], [key[2] for key in tiles]
    shape = (max(rows) - min(rows) + 1) * TILE, (max(cols) - min(cols) + 1) * TILE
    values, covered = np.zeros(shape, np.uint16), np.zeros(shape, bool)
    for (_, row, col), (pixels, mask) in tiles.items():
        top, left = (row - min(rows)) * TILE, (col - min(cols)) * TILE
        values[top : top + TILE, left : left + TILE] = pixels
        covered[top : top + TILE, left : left + TILE] = mask
    return values, covered, min(rows) * TILE, min(cols) * TILE


def assert_shows(folder: Path, scope: Scope, affine: Affine, *, tcz: Any = (0, 0, 0), z_um: float = 0.0) -> int:
    """That a plane is the specimen, pixel by pixel; returns how many pixels there are."""
    values, covered, row0, col0 = plane(folder, tcz)
    col, row = np.meshgrid(col0 + np.arange(values.shape[1]) + 0.5, row0 + np.arange(values.shape[0]) + 0.5)
    (a, b), (c, d) = affine
    expected = scope.specimen.seen(a * col + b * row, c * col + d * row, tcz[1], z_um)
    np.testing.assert_array_equal(values[covered], expected[covered])
    return int(covered.sum())


def header(folder: Path) -> dict[str, Any]:
    with SqliteReader(folder) as reader:
        return dict(reader.info().header)


def grid(rows: int = 3, columns: int = 2, **changes: Any) -> useq.GridRowsColumns:
    return useq.GridRowsColumns(rows=rows, columns=columns, overlap=25, **changes)


UP: Affine = ((0.5, 0.0), (0.0, -0.5))  # as useq thinks of it: y grows towards the top of the image
TURNED: Affine = ((0.0, 0.5), (-0.5, 0.0))
MIRRORED: Affine = ((-0.5, 0.0), (0.0, -0.5))


@pytest.mark.parametrize("affine", [UP, TURNED, MIRRORED], ids=["y up", "turned by 90°", "both axes mirrored"])
def test_a_grid_plan_becomes_the_specimen(station: Station, affine: Affine) -> None:
    scope = Scope(affine)
    plan = useq.MDASequence(grid_plan=grid(), stage_positions=[(20.0, -30.0)])
    with attach(scope.core, station.ack, instrument="scope", stream="grid") as attached:
        scope.core.mda.run(plan)
        attached.flush()
    [run] = attached.runs
    report = station.watch.report(run.run)
    assert (report["received"], report["n_missing"], report["placed"]) == (6, 0, 6)
    assert (report["reason"], report["planned"], report["n_outside_extent"]) == ("done", 6, 0)
    said = header(station.root / run.run)
    assert [list(row) for row in said["affine"]] == [list(row) for row in affine]
    assert list(said["px_um"]) == [0.5, 0.5]
    n_pixels = assert_shows(station.root / run.run, scope, affine)
    assert n_pixels > 6 * 64 * 96 * 0.6
    if affine is UP:  # 25 % of 64 × 96: steps of 48 rows and 72 columns; and the first row of the plan is at the top
        assert n_pixels == (64 + 2 * 48) * (96 + 72)
        with SqliteReader(station.root / run.run) as reader:
            rows = {row.placement.frame: (row.placement.row, row.placement.col) for row in reader.placements()}
        assert rows[0][0] < rows[2][0] < rows[5][0]
        assert rows[0][1] < rows[1][1]


def test_channels_depths_and_times_are_planes(station: Station) -> None:
    scope = Scope()
    plan = useq.MDASequence(
        axis_order="tpgcz",
        channels=[useq.Channel(config="DAPI", exposure=3), useq.Channel(config="FITC", exposure=7)],
        z_plan=useq.ZRangeAround(range=4, step=2),
        time_plan=useq.TIntervalLoops(interval=0, loops=2),
        stage_positions=[(0.0, 0.0, 10.0)],
        grid_plan=grid(1, 2),
    )
    with attach(
        scope.core, station.ack, instrument="scope", stream="planes", name="liver", colors={"DAPI": "#2040ff"}
    ) as attached:
        scope.core.mda.run(plan)
        attached.flush()
    [run] = attached.runs
    assert station.watch.report(run.run)["received"] == 2 * 2 * 3 * 2
    said = header(station.root / run.run)
    assert said["name"] == "liver"
    assert said["planes"] == {"t": 2, "c": 2, "z": 3}
    assert [dict(one) for one in said["channels"]] == [
        {"name": "DAPI", "color": "#2040ff"},
        {"name": "FITC", "color": "#00ff00"},
    ]
    for t in range(2):
        for c in range(2):
            for z, z_um in enumerate((8.0, 10.0, 12.0)):
                assert assert_shows(station.root / run.run, scope, UP, tcz=(t, c, z), z_um=z_um) == 64 * (96 + 72)


def images_of(folder: Path) -> list[dict[str, Any]]:
    """What the messages said that carried the frames."""
    with Journal.open(folder / "journal", readonly=True) as journal:
        return [msgpack.unpackb(journal.image(index).header) for index in range(journal.n_images)]


def test_frames_carry_exposure_channel_and_position(station: Station) -> None:
    scope = Scope()
    plan = useq.MDASequence(
        channels=[useq.Channel(config="FITC", exposure=7)], stage_positions=[(1.0, 2.0, 3.0), (4.0, 5.0, 6.0)]
    )
    with attach(scope.core, station.ack, instrument="scope", stream="carried") as attached:
        scope.core.mda.run(plan)
        attached.flush()
    [run] = attached.runs
    station.watch.report(run.run)
    images = images_of(station.root / run.run)
    assert [list(image["pos_um"]) for image in images] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert [list(image["set_um"]) for image in images] == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    assert all(image["user"]["channel"] == "FITC" and image["user"]["exposure_ms"] == 7.0 for image in images)
    assert all(image["t1"] - image["t0"] == 7_000_000 for image in images)


@pytest.mark.parametrize(("longest", "runs_of"), [(100, [9]), (4, [4, 4, 1])])
def test_a_stage_that_the_camera_triggers(station: Station, longest: int, runs_of: list[int]) -> None:
    """The engine hands the stage whole sequences, and asks it nothing: frames lie where it was told to be."""
    scope = Scope(longest_sequence=longest)
    plan = useq.MDASequence(grid_plan=grid(3, 3), stage_positions=[(20.0, -30.0, 2.0)])
    triggered, handed_over = [], []
    scope.core.mda.events.frameReady.connect(lambda _, __, meta: triggered.append(meta.get("hardware_triggered")))
    sent = scope.xy.send_sequence
    scope.xy.send_sequence = lambda sequence: (handed_over.append(len(sequence)), sent(sequence))[1]  # type: ignore[method-assign]
    with attach(scope.core, station.ack, instrument="scope", stream=f"triggered-{longest}") as attached:
        scope.core.mda.run(plan)
        attached.flush()
    assert handed_over == [length for length in runs_of if length > 1]
    assert [bool(one) for one in triggered] == [length > 1 for length in runs_of for _ in range(length)]
    [run] = attached.runs
    report = station.watch.report(run.run)
    assert (report["reason"], report["received"], report["placed"], report["planned"]) == ("done", 9, 9, 9)
    n_pixels = assert_shows(station.root / run.run, scope, UP, z_um=2.0)
    assert n_pixels == (64 + 2 * 48) * (96 + 2 * 72)
    for image, was_triggered in zip(images_of(station.root / run.run), triggered, strict=True):
        # Nobody knows when a triggered exposure began.
        assert ("t0" in image) == ("t1" in image) == (not was_triggered)
        assert image["user"]["position"] == ("commanded" if was_triggered else "measured")


def test_micro_managers_own_focus_is_triggered(station: Station) -> None:
    core = demo_core()
    core.setProperty("Z", "UseSequences", "Yes")
    plan = useq.MDASequence(
        z_plan=useq.ZRangeAround(range=4, step=1), stage_positions=[(0.0, 0.0, 10.0), (200.0, 0.0, 20.0)]
    )
    triggered = []
    core.mda.events.frameReady.connect(lambda _, __, meta: triggered.append(bool(meta.get("hardware_triggered"))))
    with attach(core, station.ack, instrument="scope", stream="demo-z") as attached:
        core.mda.run(plan)
        attached.flush()
    assert triggered == [True] * 10
    [run] = attached.runs
    report = station.watch.report(run.run)
    assert (report["received"], report["placed"], report["n_missing"]) == (10, 10, 0)
    images = images_of(station.root / run.run)
    expected = [
        [x_um, 0.0, z_um] for x_um, z0_um in ((0.0, 8.0), (200.0, 18.0)) for z_um in np.arange(z0_um, z0_um + 5)
    ]
    assert [list(image["pos_um"]) for image in images] == expected
    assert [image.get("tcz", (0, 0, 0))[2] for image in images] == [0, 1, 2, 3, 4] * 2
    core.reset()


def test_micro_managers_own_camera_and_stage(station: Station) -> None:
    core = demo_core()
    plan = useq.MDASequence(grid_plan=grid(2, 2), channels=["DAPI"], stage_positions=[(50.0, 40.0)])
    with attach(core, station.ack, instrument="scope", stream="demo") as attached:
        core.mda.run(plan)
        attached.flush()
    [run] = attached.runs
    report = station.watch.report(run.run)
    assert (report["received"], report["placed"], report["planned"]) == (4, 4, 4)
    values, covered, row0, col0 = plane(station.root / run.run)
    assert abs(int(covered.sum()) - (192 + 144) * (256 + 192)) <= 2 * (192 + 256 + 144 + 192)  # the stage has steps

    def seen_at(x_um: float, y_um: float) -> tuple[float, float]:
        """What the camera sees there now, and what the mosaic shows: how alike, and how alike 4 pixels aside."""
        core.setXYPosition(x_um, y_um)
        core.waitForSystem()
        core.snapImage()
        snapped = core.getImage()[32:-32, 32:-32].astype(float)
        top, left = round(y_um) - 96 + 32 - row0, round(x_um) - 128 + 32 - col0

        def alike(shift: int) -> float:
            part = values[top : top + snapped.shape[0], left + shift : left + shift + snapped.shape[1]].astype(float)
            return float(np.corrcoef(part.ravel(), snapped.ravel())[0, 1])

        return alike(0), alike(4)

    for x_um, y_um in [(50.0, 40.0), (10.0, 20.0), (90.0, 60.0)]:  # between the frames, over their seams
        here, aside = seen_at(x_um, y_um)
        assert here > 0.9
        assert aside < here - 0.2
    core.reset()


def test_a_cancelled_acquisition_is_an_aborted_run(station: Station) -> None:
    scope = Scope()
    with attach(scope.core, station.ack, instrument="scope", stream="cancelled") as attached:
        seen: list[int] = []

        def after_two(*_: Any) -> None:
            seen.append(1)
            if len(seen) == 2:
                scope.core.mda.cancel()

        scope.core.mda.events.frameReady.connect(after_two)
        scope.core.mda.run(useq.MDASequence(grid_plan=grid(), stage_positions=[(0.0, 0.0)]))
        attached.flush()
        [run] = attached.runs
        report = station.watch.report(run.run)
        assert (report["reason"], report["received"], report["expected"], report["planned"]) == ("abort", 2, 2, 6)
        # the next one is a run of its own
        scope.core.mda.run(useq.MDASequence(grid_plan=grid(1, 1), stage_positions=[(0.0, 0.0)]))
        attached.flush()
        assert station.watch.report(attached.runs[1].run)["reason"] == "done"


def test_an_acquisition_that_fails_is_a_run_with_an_error(station: Station) -> None:
    scope = Scope()

    def events() -> Iterator[useq.MDAEvent]:
        yield useq.MDAEvent(x_pos=0.0, y_pos=0.0)
        raise RuntimeError("the scheduler died")

    with attach(scope.core, station.ack, instrument="scope", stream="failed") as attached:
        with pytest.raises(RuntimeError, match="scheduler"):
            scope.core.mda.run(events())
        attached.flush()
    report = station.watch.report(attached.runs[0].run)
    assert (report["reason"], report["received"]) == ("error", 1)


def test_snaps_are_a_run_of_their_own(station: Station) -> None:
    scope = Scope()
    with attach(scope.core, station.ack, instrument="scope", stream="snaps", snaps=True) as attached:
        for x_um in (0.0, 20.0, 40.0):
            scope.core.setXYPosition(x_um, -5.0)
            scope.core.snapImage()
        attached.flush()
    [run] = attached.runs
    assert station.watch.report(run.run)["received"] == 3
    assert assert_shows(station.root / run.run, scope, UP) == 64 * (96 + 80)


def test_a_region_of_the_chip_lies_where_it_is(station: Station) -> None:
    scope = Scope()
    scope.core.setROI(40, 8, 32, 48)
    with attach(scope.core, station.ack, instrument="scope", stream="roi", sensor_shape=(64, 96)) as attached:
        # SimpleCameraDevice cuts the region out of the whole image
        scope.core.mda.run(useq.MDASequence(stage_positions=[(0.0, 0.0), (10.0, 5.0)]))
        attached.flush()
    [run] = attached.runs
    report = station.watch.report(run.run)
    assert (report["received"], report["n_outside_extent"]) == (2, 0)
    assert assert_shows(station.root / run.run, scope, UP) > 32 * 48


def test_a_daemon_that_is_away_holds_up_nothing(
    tmp_path: Path, endpoint: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when the acquisition is over: everything arrives, the log tells what happened."""
    scope = Scope()
    missed = threading.Event()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: missed.set() if MISSED in record.getMessage() else None  # type: ignore[method-assign]
    monkeypatch.setattr(logging.getLogger("tilecast.micromanager"), "handlers", [handler])
    caplog.set_level(logging.WARNING, "tilecast.micromanager")
    with attach(scope.core, endpoint, instrument="scope", stream="late") as attached:
        scope.core.mda.run(useq.MDASequence(grid_plan=grid(), stage_positions=[(0.0, 0.0)]))
        [run] = attached.runs
        assert run.n_frames == 6
        assert missed.wait(60)
        settings = {"ingest.ack": endpoint, "blend.tile_size": str(TILE)}
        daemon = ForkedDaemon(tmp_path / "late", settings=settings).start()
        try:
            attached.flush(60)
        finally:
            daemon.stop()
        assert attached.detach() == 0
    assert any(MISSED in record.message for record in caplog.records)
    assert any("takes frames again" in record.message for record in caplog.records)
    assert assert_shows(tmp_path / "late" / run.run, scope, UP) == (64 + 2 * 48) * (96 + 72)


def test_what_does_not_fit_into_memory_is_lost_by_number(
    tmp_path: Path, endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two frames fit; the other four are named by the log, and by the daemon that comes later."""
    scope = Scope()
    caplog.set_level(logging.WARNING, "tilecast.micromanager")
    with attach(scope.core, endpoint, instrument="scope", stream="full", buffer_bytes=2 * 64 * 96 * 2) as attached:
        scope.core.mda.run(useq.MDASequence(grid_plan=grid(), stage_positions=[(0.0, 0.0)]))
        [run] = attached.runs
        daemon = ForkedDaemon(tmp_path / "full", settings={"ingest.ack": endpoint}).start()
        try:
            attached.flush(60)
            with Watcher(daemon.endpoints["notify"]):
                pass
        finally:
            daemon.stop()
        assert attached.detach() == 4
    with SqliteReader(tmp_path / "full" / run.run) as reader:
        report = reader.info().report
    assert report is not None
    assert (report["received"], report["expected"], report["missing"]) == (2, 6, [[2, 5]])
    assert any("4 of 6 frames never reached the daemon: 2–5" in record.message for record in caplog.records)


def test_nobody_waits_for_a_daemon_that_never_comes(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    scope = Scope()
    attached = attach(scope.core, endpoint, instrument="scope", stream="never")
    done = threading.Event()
    scope.core.mda.events.sequenceFinished.connect(lambda *_: done.set())
    with caplog.at_level(logging.WARNING, "tilecast.micromanager"):
        scope.core.mda.run(useq.MDASequence(grid_plan=grid(1, 2), stage_positions=[(0.0, 0.0)]))
        assert done.is_set()
        assert attached.detach(0.1) == 2
    assert any("was never begun" in record.message for record in caplog.records)
    assert any("2 of 2 frames never reached" in record.message for record in caplog.records)


def test_detaching_does_not_wait_for_each_frame(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The daemon dies after the first frame: what waits is given up together, when the time is over."""
    daemon = ForkedDaemon(tmp_path / "dies").start()
    scope = Scope()
    caplog.set_level(logging.WARNING, "tilecast.micromanager")
    attached = attach(scope.core, daemon.endpoints["ingest.ack"], instrument="scope", stream="dies")

    def kill(*_: Any) -> None:
        if daemon.running:
            attached.flush()
            daemon.kill()

    scope.core.mda.events.frameReady.connect(kill)
    scope.core.mda.run(useq.MDASequence(grid_plan=grid(12, 12), stage_positions=[(0.0, 0.0)]))
    began_s = time.monotonic()
    n_lost = attached.detach(0.1)
    assert time.monotonic() - began_s < 20  # an attempt takes 2 s, and there were 143 frames
    assert (n_lost, attached.runs[0].lost.ranges()) == (143, [(1, 143)])
    assert any("has not acknowledged it" in record.message for record in caplog.records)


def test_frames_of_another_shape_and_colour_are_named(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    scope = Scope()

    def events() -> Iterator[useq.MDAEvent]:
        yield useq.MDAEvent(x_pos=0.0, y_pos=0.0)
        scope.core.setROI(0, 0, 32, 32)
        yield useq.MDAEvent(x_pos=0.0, y_pos=0.0)

    caplog.set_level(logging.WARNING, "tilecast.micromanager")
    with attach(scope.core, station.ack, instrument="scope", stream="shapes") as attached:
        scope.core.mda.run(events())
        attached.flush()
        scope.core.clearROI()
        scope.camera.full_shape = (64, 96, 3)
        scope.core.mda.run([useq.MDAEvent(x_pos=0.0, y_pos=0.0)])
    assert station.watch.report(attached.runs[0].run)["missing"] == [[1, 1]]
    assert len(attached.runs) == 1
    assert any("it is 32 × 32 uint16, and its run is of 64 × 96 uint16" in record.message for record in caplog.records)
    assert any("colour cannot be sent" in record.message for record in caplog.records)


def test_without_a_pixel_size_it_says_what_to_do(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    scope = Scope()
    scope.core.setPixelSizeUm("20x", 0.0)
    scope.core.setPixelSizeAffine("20x", [1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    caplog.set_level(logging.WARNING, "tilecast.micromanager")
    with attach(scope.core, station.ack, instrument="scope", stream="nosize") as attached:
        scope.core.mda.run([useq.MDAEvent(x_pos=0.0, y_pos=0.0)])
    assert attached.runs == []
    assert any("does not know how large a pixel is" in record.message for record in caplog.records)


def test_without_an_affine_the_stage_runs_with_rows_and_columns(
    station: Station, caplog: pytest.LogCaptureFixture
) -> None:
    down: Affine = ((0.5, 0.0), (0.0, 0.5))
    scope = Scope(down, tell_affine=False)
    caplog.set_level(logging.WARNING, "tilecast.micromanager")
    with attach(scope.core, station.ack, instrument="scope", stream="plain") as attached:
        scope.core.mda.run(useq.MDASequence(grid_plan=grid(), stage_positions=[(0.0, 0.0)]))
        attached.flush()
    assert any("has no pixel size affine" in record.message for record in caplog.records)
    folder = station.root / attached.runs[0].run
    station.watch.report(attached.runs[0].run)
    assert "affine" not in header(folder)
    assert assert_shows(folder, scope, down) == (64 + 2 * 48) * (96 + 72)


def test_a_run_that_cannot_be_is_named(station: Station, caplog: pytest.LogCaptureFixture) -> None:
    scope = Scope()
    caplog.set_level(logging.WARNING, "tilecast.micromanager")
    with attach(scope.core, station.ack, instrument="scope", stream="refused", name="x" * 600) as attached:
        scope.core.mda.run([useq.MDAEvent(x_pos=0.0, y_pos=0.0)])
    assert attached.detach() == 1
    assert any("cannot be shown: " in record.message for record in caplog.records)


def test_attaching_to_something_else_or_twice_says_so(endpoint: str) -> None:
    scope = Scope()
    with pytest.raises(TypeError, match="takes a CMMCorePlus"):
        attach(object())
    with pytest.raises(ValueError, match="stream"):
        attach(scope.core, stream="two words")
    attached = attach(scope.core.mda, endpoint)
    with pytest.raises(ValueError, match="attached already"):
        attach(scope.core, endpoint)
    assert attached.detach(0) == 0
    attach(scope.core, endpoint).detach(0)
