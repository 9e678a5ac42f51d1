"""Runs registered by a real daemon: at their end, and while it has them open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import CliRunner

from plugins.registration.scans import Scan
from plugins.registration.test_tracking import small_scan
from tilecast import cli
from tilecast.hookspecs import RunEnded
from tilecast.reading import open_run
from tilecast.testing.fixtures import DaemonUnderTest, StartDaemon
from tilecast_plugins.registration.options import RegistrationOptions
from tilecast_plugins.registration.plugin import command_for
from tilecast_protocol.client import Client

OPTIONS = {"plugins.registration.max_shift_pixels": "10"}


def send(daemon: DaemonUnderTest, scan: Scan, stream: str = "camera", *, ends: bool = True) -> str:
    height, width = scan.frames.shape[1:]
    with daemon.publisher(stream) as publisher:
        run = publisher.start("crooked", shape=(height, width), dtype="<u2", px_um=(1.0, 1.0))
        for pixels, (row, col) in zip(scan.frames, scan.nominal.tolist(), strict=True):
            publisher.image(pixels, pos_um=(col + width / 2, row + height / 2))
        if ends:
            publisher.end()
        publisher.flush()
    return run


def corners(daemon: DaemonUnderTest, run: str) -> tuple[set[str], np.ndarray]:
    with open_run(daemon.root, run) as reader:
        rows = sorted(reader.placements(), key=lambda row: row.placement.frame)
    return {row.placement.source for row in rows}, np.array([[row.placement.row, row.placement.col] for row in rows])


def test_a_run_is_registered_when_it_has_ended_if_that_is_wanted(tilecast_daemon: StartDaemon) -> None:
    scan = small_scan(3, 4)
    daemon = tilecast_daemon(
        **OPTIONS, **{"plugins.registration.at_end": "true", "plugins.registration.streams": "camera"}
    )
    other = send(daemon, scan, "other")
    run = send(daemon, scan)
    line = daemon.wait_logged("run registered", timeout_s=90)
    assert line["run"] == run
    assert "17 of 17 shifts used" in line["said"]
    sources, places = corners(daemon, run)
    assert sources == {"registered"}
    assert scan.errors(places).max() == 0
    # Back, and there again: the daemon has the run open.
    told = ["--set", f"store.path={daemon.root}", "--set", f"query={daemon.endpoints['query']}"]
    for layout in ("stage", "registered"):
        done = CliRunner().invoke(cli.main, ["register", run, "--use", layout, *told])
        assert done.exit_code == 0, done.output
        assert corners(daemon, run)[0] == {layout}
    assert sources == {"registered"}
    daemon.finish()
    assert corners(daemon, other)[0] == {"stage"}
    done = CliRunner().invoke(cli.main, ["fsck", run, *told])
    assert done.exit_code == 0, done.output


def test_an_open_run_is_registered_and_goes_on(tilecast_daemon: StartDaemon) -> None:
    scan = small_scan(2, 4)
    daemon = tilecast_daemon(**OPTIONS)
    height, width = scan.frames.shape[1:]
    told = ["--set", f"store.path={daemon.root}", "--set", f"query={daemon.endpoints['query']}"]
    told += ["--set", "plugins.registration.max_shift_pixels=10"]
    viewer = Client(daemon.endpoints["notify"], daemon.endpoints["query"])
    with viewer, daemon.publisher() as publisher:
        viewer.wait_connected(30)
        run = publisher.start("crooked", shape=(height, width), dtype="<u2", px_um=(1.0, 1.0))
        for n in range(8):
            if n == 6:
                publisher.flush()
                for _ in viewer.updates(timeout_s=30):
                    if viewer.run(run)["frames"] == 6:
                        break
                done = CliRunner().invoke(cli.main, ["register", run, *told])
                assert done.exit_code == 0, done.output
            row, col = scan.nominal[n].tolist()
            publisher.image(scan.frames[n], pos_um=(col + width / 2, row + height / 2))
        publisher.end()
        publisher.flush()
    daemon.finish()
    with open_run(daemon.root, run) as reader:
        found = {row.placement.frame: row.placement for row in reader.placements()}
        registration = reader.registration()
    assert registration is not None
    assert {one.frame for one in registration.registered} == set(range(6))
    assert {found[n].source for n in range(6)} == {"registered"}
    assert np.ptp([np.subtract((found[n].row, found[n].col), scan.true[n]) for n in range(6)], axis=0).max() == 0
    assert [found[7].row, found[7].col, found[7].source] == [*scan.nominal[7].tolist(), "stage"]
    done = CliRunner().invoke(cli.main, ["fsck", run, *told])
    assert done.exit_code == 0, done.output


def test_what_is_run_for_it() -> None:
    run = RunEnded(
        run="0f8a2c1e",
        name="",
        instrument="scope",
        stream="camera",
        folder=Path("/runs/0f8a2c1e"),
        state="ended",
        report={},
        query="ipc:///q",
    )
    command = command_for(run, RegistrationOptions(method="tree", normalize=True))
    assert command[1:] == [
        *("-m", "tilecast", "register", "/runs/0f8a2c1e", "--method", "tree", "--max-shift-px", "40"),
        *("--min-quality", "8.0", "--normalize", "--set", "store.path=/runs", "--set", "query=ipc:///q"),
    ]
