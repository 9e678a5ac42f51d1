"""Real scans through the real `tilecast send` to a real daemon: the store holds what the reference says.

Where each frame must lie is worked out here from the table of positions alone, not with the code that `send` uses.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from faults.nursery import ForkedDaemon, shared
from integration.stored import assert_same, journalled_frames, reference_mosaic, stored_mosaic
from scripted_peers import ScriptedDaemon
from tilecast import cli
from tilecast.process import DaemonProcess
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client

SCANS = ("lscm_tensile_ref", "mist_5x5", "czi_mosaic_test", "cut_lscm_int_6x6")
STAGE_UM = ("--columns", "x_um,y_um", "--anchor", "corner", "--px-um", "0.5", "--flip-y")


class Sent(NamedTuple):
    """A scan that was sent: what was said, and the folder of its run."""

    said: str
    folder: Path


def send(endpoint: str, *arguments: str | Path, code: int = 0) -> str:
    """What the command says, as a person would see it."""
    done = shared().run("send", *map(str, arguments), "--to", endpoint)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def run_of(said: str) -> str:
    """The uuid of the run that was sent."""
    found = re.search(r"as the run ([0-9a-f-]{36})\.", said)
    assert found, said
    return found[1]


def nearest(value: float) -> int:
    """PROTOCOL, Positions: floor(v + 0.5)."""
    return math.floor(value + 0.5)


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of its positions.csv, in order of frames."""
    with (folder / "positions.csv").open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["frame"]))


def corners_px(folder: Path) -> dict[int, tuple[int, int]]:
    """Row and column of each frame's first pixel, as its table says in pixels."""
    return {int(row["frame"]): (nearest(float(row["y_px"])), nearest(float(row["x_px"]))) for row in table(folder)}


def corners_um(folder: Path) -> dict[int, tuple[int, int]]:
    """The same from stage coordinates of the corner, y upwards, 0.5 µm per pixel."""
    return {
        int(row["frame"]): (nearest(float(row["y_um"]) / -0.5), nearest(float(row["x_um"]) / 0.5))
        for row in table(folder)
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def daemon(store: Path) -> Iterator[DaemonProcess]:
    """One for all these tests; it ends in good order."""
    shared().learn("tilecast.inputs")
    with ForkedDaemon(store, log_file=store / "daemon.log") as process:
        yield process
        assert process.stop() == 0


def wait_finished(daemon: DaemonProcess, run: str) -> None:
    """Wait until everything that came of a run is in its store: the report is written after it."""
    with Client(daemon.endpoints["notify"], daemon.endpoints["query"], run=run, notices=True) as client:
        client.wait_connected()  # or the notice of the report might go by between the question and the answer
        while client.run(run)["revision"] == 0:
            assert client.next_update(30) is not None, "nothing was heard of the run"


@pytest.fixture(scope="module")
def sent(daemon: DaemonProcess, store: Path, shared_data: Path) -> dict[str, Sent]:
    """Every real scan, sent and finished; one of them also by its stage coordinates."""
    endpoint = daemon.endpoints["ingest.ack"]
    said = {name: send(endpoint, shared_data / "scans" / name) for name in SCANS}
    said["stage"] = send(endpoint, shared_data / "scans" / "cut_lscm_int_6x6", *STAGE_UM, "--blend", "nearest")
    for text in said.values():
        wait_finished(daemon, run_of(text))
    return {name: Sent(text, store / run_of(text)) for name, text in said.items()}


@pytest.mark.shared_data
@pytest.mark.parametrize("name", [*SCANS, "stage"])
def test_the_store_holds_what_the_reference_says(sent: dict[str, Sent], shared_data: Path, name: str) -> None:
    scan = shared_data / "scans" / ("cut_lscm_int_6x6" if name == "stage" else name)
    folder = sent[name].folder
    frames = np.load(scan / "frames.npz")["frames"]
    corners = corners_um(scan) if name == "stage" else corners_px(scan)
    journalled = journalled_frames(folder)
    assert journalled.keys() == corners.keys()
    for frame, pixels in journalled.items():
        np.testing.assert_array_equal(pixels, frames[frame])
    with SqliteReader(folder) as reader:
        info = reader.info()
        assert {row.placement.frame for row in reader.placements()} == corners.keys()
    assert info.report is not None
    assert info.state == "ended"
    assert (info.report["received"], info.report["n_missing"], info.report["n_unplaced"]) == (len(frames), 0, 0)
    assert info.settings["mode"] == ("nearest" if name == "stage" else "feather")
    assert_same(stored_mosaic(folder), reference_mosaic(folder, journalled, corners))


@pytest.mark.shared_data
def test_it_says_how_it_read_the_scan_and_how_to_see_it(sent: dict[str, Sent]) -> None:
    said = sent["lscm_tensile_ref"].said.splitlines()
    assert said[0].startswith("Read 16 frames of 1024×1024 uint8 from frames.npz, and x_px,y_px of positions.csv")
    assert f"All 16 frames are safe on the daemon's disk, as the run {sent['lscm_tensile_ref'].folder.name}." in said
    # `uv run` stands before it where the tests were started so.
    assert said[-1].split()[-3:] == ["tilecast", "export-png", sent["lscm_tensile_ref"].folder.name[:8]]
    assert "y upwards, 0.5 µm per pixel" in sent["stage"].said
    with SqliteReader(sent["stage"].folder) as reader:
        start = reader.info().header
    assert start["name"] == "cut_lscm_int_6x6"
    assert start["affine"] == [[0.5, 0.0], [0.0, -0.5]]
    assert start["n_expected"] == 36


def pictures(rows: int = 3, cols: int = 4) -> tuple[NDArray[np.uint16], list[tuple[int, int]]]:
    """A small scan cut from one picture, with its corners."""
    y, x = np.mgrid[: 40 * rows + 20, : 50 * cols + 20]
    whole = (2000 + 900 * np.sin(x / 9) + 700 * np.cos(y / 7 + x / 31)).astype(np.uint16)
    corners = [(40 * row, 50 * col) for row, col in itertools.product(range(rows), range(cols))]
    return np.stack([whole[row : row + 60, col : col + 70] for row, col in corners]), corners


def write_table(path: Path, corners: list[tuple[int, int]], files: list[str] | None = None) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame" if files is None else "file", "x_px", "y_px"])
        for number, (row, col) in enumerate(corners):
            writer.writerow([number if files is None else files[number], col, row])


@pytest.mark.parametrize("kind", ["tiff", "png", "ome"])
def test_files_of_any_kind(daemon: DaemonProcess, store: Path, tmp_path: Path, kind: str) -> None:
    frames, corners = pictures()
    scan = tmp_path / "scan"
    scan.mkdir()
    options: list[str | Path] = []
    if kind == "ome":
        scan = tmp_path / "scan.ome.tif"
        with tifffile.TiffWriter(scan, ome=True) as writer:
            for pixels, (row, col) in zip(frames, corners, strict=True):
                plane: dict[str, Any] = {"PositionX": [(col + 35) * 0.5], "PositionY": [(row + 30) * 0.5]}
                plane |= {"PositionXUnit": ["µm"], "PositionYUnit": ["µm"]}
                size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
                writer.write(pixels, photometric="minisblack", metadata={"axes": "YX", "Plane": plane, **size})
    else:
        # Numbered against the order of the scan: the names in the table decide.
        files = [f"tile_{len(frames) - n}.{kind}" for n in range(len(frames))]
        for name, pixels in zip(files, frames, strict=True):
            if kind == "tiff":
                tifffile.imwrite(scan / name, pixels)
            else:
                Image.fromarray(pixels).save(scan / name)
        write_table(tmp_path / "where.csv", corners, files)
        options = ["--positions", tmp_path / "where.csv"]
    run = run_of(send(daemon.endpoints["ingest.ack"], scan, *options, "--name", "mine", "--fps", "500"))
    wait_finished(daemon, run)
    folder = store / run
    # In the order of the files' names, which is the other way round.
    expected = dict(enumerate(corners if kind == "ome" else corners[::-1]))
    assert_same(stored_mosaic(folder), reference_mosaic(folder, journalled_frames(folder), expected))
    with SqliteReader(folder) as reader:
        assert reader.info().name == "mine"


def test_a_scan_that_is_broken_off_is_ended(daemon: DaemonProcess, tmp_path: Path) -> None:
    frames, corners = pictures()
    np.savez(tmp_path / "frames.npz", frames=frames)
    write_table(tmp_path / "positions.csv", corners)
    command = [sys.executable, "-m", "tilecast", "send", str(tmp_path / "frames.npz"), "--fps", "2"]
    command += ["--to", daemon.endpoints["ingest.ack"], "--name", "to be broken off"]
    sending = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = daemon.wait_logged("run started", name="to be broken off")
    sending.send_signal(signal.SIGINT)
    said, _ = sending.communicate(timeout=60)
    assert sending.returncode == 130
    assert re.search(r"Stopped after \d+ of 12 frames; these are safe", said)
    report = daemon.wait_logged("run report", run=started["run"])
    assert (report["reason"], report["planned"], report["n_missing"]) == ("abort", 12, 0)
    assert report["received"] < 12


def test_warnings_are_shown(daemon: DaemonProcess, tmp_path: Path) -> None:
    frames, corners = pictures()
    np.savez(tmp_path / "frames.npz", frames=frames)
    write_table(tmp_path / "positions.csv", [(3 * row, 3 * col) for row, col in corners])
    said = send(daemon.endpoints["ingest.ack"], tmp_path / "frames.npz")
    assert "Warning: 12 of 12 frames overlap no other" in said
    assert "All 12 frames are safe" in said


def test_what_the_daemon_refuses_is_told(tmp_path: Path) -> None:
    frames, corners = pictures()
    np.savez(tmp_path / "frames.npz", frames=frames)
    write_table(tmp_path / "positions.csv", corners)
    with ScriptedDaemon() as full:
        full.judge = lambda message: (
            ("disk-reserve", "only 3 GB are free on /data") if message.TYPE == "image" else None
        )
        arguments = ["send", str(tmp_path / "frames.npz"), "--to", full.endpoint]
        result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1
    assert "image 0 was rejected (disk-reserve): only 3 GB are free on /data" in result.stderr
    assert "the daemon refused 12 of 12 frames" in result.stderr
    assert len(result.stderr.splitlines()) < 10
    assert "are safe" not in result.output


def test_without_a_daemon_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecast.commands.send._CONNECT_S", 0.5)
    frames, corners = pictures()
    np.savez(tmp_path / "frames.npz", frames=frames)
    write_table(tmp_path / "positions.csv", corners)
    with socket.socket() as nobody:  # bound and not listening: nobody else can be there
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{nobody.getsockname()[1]}"
        result = CliRunner().invoke(cli.main, ["send", str(tmp_path / "frames.npz"), "--to", endpoint])
    assert result.exit_code == 2
    assert f"no tilecast daemon is to be reached at {endpoint}" in result.stderr
    assert "tilecast run" in result.stderr
