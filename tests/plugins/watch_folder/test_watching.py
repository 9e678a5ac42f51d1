"""A real daemon, and programs that write into the folders that it watches: what is recorded, and where it lies."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from faults.nursery import Nursery, shared
from folder_writers import encoded, write_renamed
from tilecast.reading import list_runs
from tilecast.testing.fixtures import DaemonUnderTest, StartDaemon
from tilecast.testing.microscope import TestScan
from tilecast_protocol import pzf
from tilecast_protocol.journal import Journal

SCAN = TestScan(grid=(2, 3), shape=(64, 64), overlap_px=8)
ENDED = "run of a folder has ended"
PATIENCE_S = 60.0


class Recorded(NamedTuple):
    """An image in a journal."""

    run: str
    frame: int
    file: str
    pixels: NDArray[Any]
    tcz: tuple[int, ...]


def recorded(root: Path) -> list[Recorded]:
    """All images in the journals of a store."""
    found = []
    for run in list_runs(root):
        with Journal.open(run.folder / "journal", readonly=True) as journal:
            for index in range(journal.n_images):
                record = journal.image(index)
                header = msgpack.unpackb(record.header)
                found.append(
                    Recorded(
                        run.run,
                        header["frame"],
                        header["user"]["file"],
                        pzf.decode_image(record.parts[0]),
                        tuple(header.get("tcz", (0, 0, 0))),
                    )
                )
    return found


def options(folder: Path, **more: str) -> dict[str, str]:
    given = {"folders": str(folder), "settle_ms": "100", "poll_s": "0.2", "end_marker": "done", "px_um": "0.5"} | more
    return {f"plugins.watch_folder.{name}": value for name, value in given.items()}


def told(daemon: DaemonUnderTest) -> dict[str, Any]:
    with daemon.client() as client:
        (source,) = client.stats()["plugins"]["sources"]
    return dict(source["told"])


def told_once(daemon: DaemonUnderTest, **facts: Any) -> dict[str, Any]:
    """What the source tells of itself once it tells these facts: it does at the end of a look, after what it logs."""
    deadline_s = time.monotonic() + PATIENCE_S
    while any((found := told(daemon)).get(name) != fact for name, fact in facts.items()):
        assert time.monotonic() < deadline_s, (facts, found)
    return found


def expected_mosaic(scan: TestScan = SCAN) -> NDArray[Any]:
    """Of a scan without overlap, whose frames do not blend."""
    rows, cols = scan.corner(scan.n_frames - 1)
    whole = np.zeros((rows + scan.shape[0], cols + scan.shape[1]), scan.dtype)
    for frame in range(scan.n_frames):
        row, col = scan.corner(frame)
        whole[row : row + scan.shape[0], col : col + scan.shape[1]] = scan.frame(frame)
    return whole


@pytest.fixture(scope="module", autouse=True)
def learnt(nursery: Nursery) -> None:
    """What the daemons import once there is a folder to be watched."""
    nursery.learn("tilecast_plugins.watch_folder.source")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("suffix", [".tif", ".png", ".npy", ".pzf", ".ome.tif"])
def test_files_that_lay_there_with_a_table(tilecast_daemon: StartDaemon, images: Path, suffix: str) -> None:
    scan = TestScan(grid=(2, 3), shape=(32, 48))
    lines = ["file,x_px,y_px"]
    for frame in range(scan.n_frames):
        (images / f"f{frame}{suffix}").write_bytes(encoded(scan.frame(frame), suffix))
        row, col = scan.corner(frame)
        lines.append(f"f{frame}{suffix},{col},{row}")
    (images / "positions.csv").write_text("\n".join(lines))
    (images / "done").touch()
    daemon = tilecast_daemon(**options(images))
    run = daemon.wait_logged(ENDED, timeout_s=PATIENCE_S, n_sent=6)["run"]
    with daemon.client() as client:
        report = client.report(run)["report"]
    assert (report["received"], report["n_missing"]) == (6, 0)
    daemon.finish()
    pixels, corner = daemon.mosaic(run)
    assert corner == (0, 0)
    np.testing.assert_array_equal(pixels, expected_mosaic(scan))


def test_names_tell_positions_channels_and_runs(tilecast_daemon: StartDaemon, images: Path) -> None:
    scan = TestScan(grid=(2, 2), shape=(32, 48), overlap_px=0)
    pattern = "{run}_r{row:d}_c{col:d}_ch{c:d}.tif"
    daemon = tilecast_daemon(**options(images, pattern=pattern))
    for frame in range(scan.n_frames):
        row, col = divmod(frame, 2)
        for run in ("liver", "kidney"):
            write_renamed(images / f"{run}_r{row}_c{col}_ch{frame % 2}.tif", encoded(scan.frame(frame), ".tif"))
    (images / "done").touch()
    ended = {daemon.wait_logged(ENDED, timeout_s=PATIENCE_S)["run"]}
    while len(ended) < 2:
        daemon.log.remove(next(line for line in daemon.log if line["event"] == ENDED))
        ended.add(daemon.wait_logged(ENDED, timeout_s=PATIENCE_S)["run"])
    daemon.finish()
    assert {run.info.name for run in list_runs(daemon.root) if run.info} == {"images liver", "images kidney"}
    for run in ended:
        pixels, _ = daemon.mosaic(run, channel=1)
        np.testing.assert_array_equal(pixels[:32, -48:], scan.frame(1))


def test_ome_tiff_tells_positions_and_pixel_size(tilecast_daemon: StartDaemon, images: Path) -> None:
    scan = TestScan(grid=(1, 2), shape=(32, 48), pixel_size_um=0.25)
    for frame in range(2):
        x_um, y_um = scan.pos_um(frame)
        metadata = {
            "axes": "CYX",
            "PhysicalSizeX": 0.25,
            "PhysicalSizeY": 0.25,
            "Channel": {"Name": ["DAPI", "GFP"]},
            "Plane": {
                "PositionX": [x_um] * 2, "PositionXUnit": ["µm"] * 2,
                "PositionY": [y_um] * 2, "PositionYUnit": ["µm"] * 2,
            },
        }  # fmt: skip
        data = np.stack([scan.frame(frame), scan.frame(frame + 10)])
        tifffile.imwrite(images / f"tile{frame}.ome.tif", data, metadata=metadata)
    (images / "done").touch()
    daemon = tilecast_daemon(**(options(images) | {"plugins.watch_folder.px_um": ""}))
    run = daemon.wait_logged(ENDED, timeout_s=PATIENCE_S, n_sent=4)["run"]
    daemon.finish()
    pixels, corner = daemon.mosaic(run, channel=0)
    assert corner == (0, 0)
    np.testing.assert_array_equal(pixels, expected_mosaic(scan))
    assert [one.tcz for one in sorted(recorded(daemon.root), key=lambda one: one.frame)] == [(0, 0, 0), (0, 1, 0)] * 2
    (found,) = list_runs(daemon.root)
    assert found.info is not None
    assert [channel["name"] for channel in found.info.header["channels"]] == ["DAPI", "GFP"]


@pytest.mark.parametrize("observer", ["native", "polling"])
def test_a_table_and_files_that_grow_while_the_scan_goes_on(
    tilecast_daemon: StartDaemon, images: Path, observer: str
) -> None:
    scan = TestScan(grid=(2, 2), shape=(32, 48))
    daemon = tilecast_daemon(**options(images, observer=observer), **{"log.level": "debug"})
    with (images / "positions.jsonl").open("w") as table:
        for frame in range(scan.n_frames):
            data = encoded(scan.frame(frame), ".tif")
            with (images / f"f{frame}.tif").open("wb") as file:  # bit by bit, and the position comes last
                for begin in range(0, len(data), 700):
                    file.write(data[begin : begin + 700])
                    file.flush()
            row, col = scan.corner(frame)
            line = json.dumps({"file": f"f{frame}.tif", "x_px": col, "y_px": row}) + "\n"
            table.write(line[:15])
            table.flush()
            table.write(line[15:])
            table.flush()
            daemon.wait_logged("files are taken", timeout_s=PATIENCE_S, n_in_all=frame + 1)
    (images / "done").touch()
    run = daemon.wait_logged(ENDED, timeout_s=PATIENCE_S, n_sent=4)["run"]
    assert told(daemon)["watched"] == observer
    daemon.finish()
    np.testing.assert_array_equal(daemon.mosaic(run)[0], expected_mosaic(scan))


def test_a_folder_that_comes_late_vanishes_and_returns(tilecast_daemon: StartDaemon, images: Path) -> None:
    images.rmdir()
    daemon = tilecast_daemon(**options(images, pattern="f_{row:d}_{col:d}.npy"), **{"log.level": "debug"})
    assert "is not there" in daemon.wait_logged("folder cannot be watched", timeout_s=PATIENCE_S)["why"]
    images.mkdir()
    daemon.wait_logged("folder is watched again", timeout_s=PATIENCE_S)
    write_renamed(images / "f_0_0.npy", encoded(SCAN.frame(0), ".npy"))
    daemon.wait_logged("files are taken", timeout_s=PATIENCE_S, n_in_all=1)
    daemon.log.clear()
    images.rename(images.with_name("away"))
    daemon.wait_logged("folder cannot be watched", timeout_s=PATIENCE_S)
    assert "is not there" in told(daemon)["trouble"]
    images.with_name("away").rename(images)
    write_renamed(images / "f_0_1.npy", encoded(SCAN.frame(1), ".npy"))
    daemon.wait_logged("files are taken", timeout_s=PATIENCE_S, n_in_all=2)
    (images / "done").touch()
    daemon.wait_logged(ENDED, timeout_s=PATIENCE_S, n_sent=2)
    assert told(daemon)["trouble"] == ""
    daemon.finish()
    assert sorted(one.file for one in recorded(daemon.root)) == ["f_0_0.npy", "f_0_1.npy"]


def test_a_burst_comes_in_order(tilecast_daemon: StartDaemon, images: Path) -> None:
    n = 2000
    for number in reversed(range(n)):
        (images / f"b_{number // 50}_{number % 50}.npy").write_bytes(encoded(SCAN.frame(number), ".npy"))
    (images / "done").touch()
    daemon = tilecast_daemon(
        **options(images, pattern="b_{row:d}_{col:d}.npy", taken="delete"), **{"ingest.queue_bytes": "16MiB"}
    )
    run = daemon.wait_logged(ENDED, timeout_s=PATIENCE_S, n_sent=n)["run"]
    with daemon.client() as client:
        report = client.report(run)["report"]
    assert (report["received"], report["n_missing"], report["duplicate"]) == (n, 0, 0)
    daemon.finish()
    found = sorted(recorded(daemon.root), key=lambda one: one.frame)
    assert [one.file for one in found] == [f"b_{number // 50}_{number % 50}.npy" for number in range(n)]
    assert not list(images.glob("*.npy"))


def test_what_cannot_be_used_is_named(tilecast_daemon: StartDaemon, images: Path) -> None:
    daemon = tilecast_daemon(**options(images, give_up_s="0.5"))
    (images / "positions.csv").write_text("file,x_px,y_px\na.tif,0,0\nb.tif,10,0\nbroken.tif,0,0\n")
    (images / "a.tif").write_bytes(encoded(SCAN.frame(0), ".tif"))
    (images / "nowhere.tif").write_bytes(encoded(SCAN.frame(1), ".tif"))
    (images / "broken.tif").write_bytes(encoded(SCAN.frame(2), ".tif")[:3000])
    daemon.wait_logged("file cannot be used", timeout_s=PATIENCE_S, file="nowhere.tif")
    daemon.wait_logged("file cannot be used", timeout_s=PATIENCE_S, file="broken.tif")
    (images / "b.tif").write_bytes(encoded(SCAN.frame(1)[:32], ".tif"))
    daemon.wait_logged("file cannot be used", timeout_s=PATIENCE_S, file="b.tif")
    said = told_once(daemon, n_rejected=3)
    shown = shared().run("plugins", "--set", f"query={daemon.endpoints['query']}")
    assert (shown.returncode, "n_rejected: 3" in shown.stdout) == (0, True), shown
    daemon.finish()
    assert (said["n_taken"], said["n_rejected"]) == (1, 3)
    reasons = {
        line["file"]: line["why"] for line in map(json.loads, Path(said["rejected_list"]).read_text().splitlines())
    }
    assert "positions.csv has no line about nowhere.tif" in reasons["nowhere.tif"]
    assert "all frames of a run are alike" in reasons["b.tif"]
    assert "pixels are missing" in reasons["broken.tif"] or "cannot be read" in reasons["broken.tif"]
    assert len(list(images.iterdir())) == 5


def test_a_daemon_that_is_killed_takes_nothing_twice_and_loses_nothing(
    tilecast_daemon: StartDaemon, images: Path
) -> None:
    n = 400
    given = options(images, pattern="k_{row:d}_{col:d}.tif", settle_ms="20") | {"log.level": "debug"}
    data = {f"k_{i // 20}_{i % 20}.tif": encoded(SCAN.frame(i), ".tif") for i in range(n)}

    def write() -> None:
        for number, (name, content) in enumerate(data.items()):
            path = images / name
            if number % 3:
                write_renamed(path, content)
            else:
                with path.open("wb") as file:
                    for begin in range(0, len(content), 1000):
                        file.write(content[begin : begin + 1000])
                        file.flush()
        (images / "done").touch()

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(3):
        daemon = tilecast_daemon(**given)
        daemon.wait_logged("files are taken", timeout_s=PATIENCE_S)
        daemon.kill()
    daemon = tilecast_daemon(**given)
    run = daemon.wait_logged(ENDED, timeout_s=PATIENCE_S, n_sent=n)["run"]
    writer.join()
    daemon.finish()
    found = recorded(daemon.root)
    assert Counter(one.file for one in found) == Counter(dict.fromkeys(data, 1))
    assert {one.run for one in found} == {run}
    for one in found:
        row, col = (int(part) for part in one.file[2:-4].split("_"))
        np.testing.assert_array_equal(one.pixels, SCAN.frame(row * 20 + col))


def test_moved_when_safe(tilecast_daemon: StartDaemon, images: Path) -> None:
    daemon = tilecast_daemon(**options(images, pattern="f_{row:d}_{col:d}.npy", taken="move"))
    write_renamed(images / "f_0_0.npy", encoded(SCAN.frame(0), ".npy"))
    (images / "done").touch()
    daemon.wait_logged(ENDED, timeout_s=PATIENCE_S, n_sent=1)
    daemon.finish()
    again = tilecast_daemon(**options(images, pattern="f_{row:d}_{col:d}.npy", taken="move"))
    shutil.copy(images / "done", images / "ignored.txt")
    again.finish()
    assert len(recorded(again.root)) == 1
    assert [path.name for path in (images / "taken").iterdir()] == ["f_0_0.npy"]
