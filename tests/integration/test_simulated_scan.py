"""A simulated microscope talks to a real daemon: the store holds what the reference says, as does every replay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from faults.nursery import shared
from integration.conftest import StartDaemon
from integration.stored import assert_same, journalled_frames, reference_mosaic, stored_mosaic
from tilecast.process import DaemonProcess
from tilecast.simulate import Microscope, run_scan
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.publisher import Publisher

SCOPE = Microscope(
    shape=(120, 90), grid=(5, 6), overlap=0.3, px_um=(0.5, 0.6), jitter_um=3.0, seed=3, stage_hz=200, exposure_ms=5.0
)


def scan(daemon: DaemonProcess, scope: Microscope = SCOPE, *, joined: bool = False, **fields: str) -> str:
    endpoint = daemon.endpoints["ingest.ack"]
    with (
        Publisher(endpoint, instrument="scope", stream="stage") as stage,
        Publisher(endpoint, instrument="scope", stream="cam") as camera,
    ):
        run = run_scan(
            camera,
            stage,
            scope,
            fps=20,
            paced=False,
            pos_src="stage" if joined else "frame",
            start_fields=fields,
        )
        camera.flush(30)
        stage.flush(30)
    return run


def tilecast(*arguments: str, store: Path, code: int = 0) -> str:
    """Run a command as a person would."""
    done = shared().run(*arguments, "--set", f"store.path={store}")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("joined", [False, True], ids=["own positions", "joined to the stage"])
@pytest.mark.parametrize("mode", ["feather", "newest"])
def test_the_store_holds_what_the_reference_says(
    start_daemon: StartDaemon, tmp_path: Path, joined: bool, mode: str
) -> None:
    daemon = start_daemon(**{"blend.tile_size": "64"})
    run = scan(daemon, joined=joined, blend=mode)
    assert daemon.stop() == 0
    folder = tmp_path / "runs" / run
    pixels = journalled_frames(folder)
    assert len(pixels) == SCOPE.n_frames
    with SqliteReader(folder) as reader:
        info = reader.info()
    assert info.state == "ended"
    assert info.report is not None
    assert (info.report["received"], info.report["n_missing"], info.report["n_unplaced"]) == (30, 0, 0)
    assert_same(stored_mosaic(folder), reference_mosaic(folder, pixels))


def test_every_way_to_make_it_again_gives_the_same_tiles(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(**{"blend.tile_size": "64"})
    run = scan(daemon, joined=True)
    daemon.stop()
    folder = tmp_path / "runs" / run
    live = stored_mosaic(folder)
    placements = corners(folder)

    tilecast("rebuild", run, "--rejoin", store=tmp_path / "runs")
    assert_same(stored_mosaic(folder), live)
    assert "clean" in tilecast("fsck", run, store=tmp_path / "runs")

    # A budget of a megabyte forgets all it can between two frames.
    starved = start_daemon("replays", **{"blend.tile_size": "64", "blend.budget_bytes": str(1 << 20)})
    at_full_speed = ["--speed", "max"]
    for how in (
        ["--speed", "1"],
        at_full_speed,
        [*at_full_speed, "--duplicate", "0.3", "--seed", "1"],
        [*at_full_speed, "--reorder", "7", "--seed", "2"],
    ):
        said = tilecast("replay", run, *how, "--to", starved.endpoints["ingest.ack"], store=tmp_path / "runs")
        again = said.split(" as ")[1][:36]
        starved.wait_logged("run report", run=again)
    starved.stop()
    for again in [path for path in (tmp_path / "replays").iterdir() if path.is_dir()]:
        assert corners(again) == placements
        assert_same(stored_mosaic(again), live)


def test_float_frames_and_newest_follow_the_journal(start_daemon: StartDaemon, tmp_path: Path) -> None:
    scope = replace(SCOPE, dtype="<f4", grid=(3, 4))
    daemon = start_daemon(**{"blend.tile_size": "64", "blend.budget_bytes": str(1 << 20)})
    for mode in ("feather", "newest"):
        run = scan(daemon, scope, joined=True, blend=mode)
        said = tilecast(
            "replay", run, "--speed", "max", "--to", daemon.endpoints["ingest.ack"], store=tmp_path / "runs"
        )
        again = said.split(" as ")[1][:36]
        daemon.wait_logged("run report", run=again)
        one, other = tmp_path / "runs" / run, tmp_path / "runs" / again
        assert_same(stored_mosaic(one), reference_mosaic(one, journalled_frames(one)))
        assert_same(stored_mosaic(other), stored_mosaic(one))


def corners(folder: Path) -> dict[int, tuple[int, int]]:
    """Where each frame lies."""
    with SqliteReader(folder) as reader:
        return {row.placement.frame: (row.placement.row, row.placement.col) for row in reader.placements()}
