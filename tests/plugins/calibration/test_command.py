"""`tilecast calibrate` as a person runs it, on folders of frames and on runs: files, pictures, and what it says."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from plugins.splitter.test_splitter import tilecast
from plugins.splitter.test_splitter import write as write_transform
from tilecast.testing.fixtures import StartDaemon
from tilecast_plugins.splitter.transform import Transform

SHAPE = (64, 80)


def dark_frames(seed: int = 0) -> NDArray[Any]:
    """Nine frames without light: an offset of 100 with a slope, noise of 3, and a hot pixel."""
    rng = np.random.default_rng(seed)
    level = 100 + np.linspace(0, 8, SHAPE[1])[None, :] + np.zeros(SHAPE)
    level[5, 6] = 900
    return np.rint(level + rng.normal(0, 3, (9, *SHAPE))).astype("<u2")


def assert_is_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_dark_from_a_folder_needs_no_positions(tmp_path: Path, suffix: str) -> None:
    frames = dark_frames()
    (tmp_path / "dark").mkdir()
    for number, frame in enumerate(frames):
        tifffile.imwrite(tmp_path / "dark" / f"img_{number}.tif", frame)
    target = tmp_path / f"out{suffix}"
    said = tilecast("calibrate", "dark", tmp_path / "dark", "--out", target)
    assert "Read 9 frames of 64×80 uint16 from dark." in said
    assert "median of 9 frames" in said
    assert "1 pixels stand out" in said
    image = np.load(target) if suffix == ".npy" else tifffile.imread(target)
    np.testing.assert_array_equal(image, np.median(frames, axis=0))
    assert_is_picture(tmp_path / "out.png")
    assert "exists: give another --out, or --force" in tilecast(
        "calibrate", "dark", tmp_path / "dark", "--out", target, code=2
    )


def scan(folder: Path) -> NDArray[np.float64]:
    """Sixteen frames that overlap, with an offset of 100, lit unevenly; returns the light."""
    folder.mkdir()
    down, right = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij")
    light = 1 - 0.4 * (down**2 + right**2) / 2
    rows, cols = np.indices((4 * 64 + 32, 4 * 64 + 32)) / 30.0
    whole = 2000 * np.exp(0.3 * np.sin(rows) * np.cos(1.3 * cols))
    with (folder / "positions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "x_px", "y_px"])
        for number in range(16):
            row, col = (64 * index for index in divmod(number, 4))
            frame = whole[row : row + 96, col : col + 96] * light + 100
            tifffile.imwrite(folder / f"{number:02}.tif", frame.astype("<u2"))
            table.writerow([f"{number:02}.tif", col, row])
    return light


def test_flat_from_a_folder_says_how_much_it_helps(tmp_path: Path) -> None:
    light = scan(tmp_path / "scan")
    np.save(tmp_path / "dark.npy", np.full((96, 96), 100.0))
    for name, dark in (("number", "100"), ("image", tmp_path / "dark.npy")):
        target = tmp_path / f"{name}.npy"
        said = tilecast("calibrate", "flat", tmp_path / "scan", "--dark", dark, "--out", target)
        told = re.search(
            r"differences in 42 overlaps: (\S+) grey levels before, (\S+) after: (\S+) times smaller", said
        )
        assert told is not None, said
        before, after, times = map(float, told.groups())
        assert times == pytest.approx(before / after, rel=0.01)
        assert times > 20
        assert (np.load(target) / (light / light.mean()) - 1).std() < 0.01
        assert_is_picture(tmp_path / f"{name}.png")
    said = tilecast("calibrate", "flat", tmp_path / "scan", "--out", tmp_path / "without.npy")
    assert "nothing is subtracted: if the camera has an offset, say it (--dark)" in said


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["dark", "scan", "--dark", "3"], 2, "--dark and --bleaching are for flat, not for dark"),
        (["flat", "scan", "--mirror", "rows"], 2, "--halves and --mirror are for split, not for flat"),
        (["flat", "scan", "--out", "flat.png"], 2, r"--out flat.png: its name should end with .npy or .tif"),
        (["flat", "scan", "--dark", "nowhere.npy"], 2, "neither a number nor an image that can be used: .*nowhere"),
        (["flat", "scan", "--channel", "3"], 1, "has no frames of channel 3"),
        (["flat", "scan", "--out", "none/flat.npy"], 1, "cannot write none/flat.npy: .* does its folder exist"),
        (["flat", "no-such-run"], 2, "there are no runs in"),
        (["split", "scan/00.tif"], 1, "beads"),
    ],
)
def test_what_a_user_gets_wrong_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, why: str
) -> None:
    scan(tmp_path / "scan")
    monkeypatch.chdir(tmp_path)
    said = tilecast("calibrate", *arguments, "--set", f"store.path={tmp_path / 'runs'}", code=code)
    assert re.search(why, said.replace("\n", " ")), said
    assert not list(tmp_path.glob("*.npy"))


def test_of_a_run(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    """Dark from frames that were recorded; a run that is split has no flat field to be had from its overlaps."""
    file = write_transform(tmp_path / "dual.json", Transform(shape=SHAPE))
    options = {"plugins.splitter.streams": "dual", "plugins.splitter.transform": str(file)}
    daemon = tilecast_daemon(**options)
    frames = dark_frames(1)
    runs = {}
    for stream in ("camera", "dual"):
        with daemon.publisher(stream) as publisher:
            runs[stream] = publisher.start(stream, shape=SHAPE, dtype="<u2", px_um=(1.0, 1.0))
            for number, frame in enumerate(frames):
                publisher.image(frame, pos_um=(60.0 * number, 0.0))
            publisher.end()
            publisher.flush()
    daemon.finish()
    store = ["--set", f"store.path={daemon.root}"]
    for stream, run in runs.items():
        said = tilecast("calibrate", "dark", run, "--out", tmp_path / f"{stream}.npy", *store)
        assert "read 9 frames of channel 0 of run" in said
        np.testing.assert_array_equal(np.load(tmp_path / f"{stream}.npy"), np.median(frames, axis=0))
    said = tilecast("calibrate", "flat", runs["dual"], "--out", tmp_path / "flat.npy", *store, code=1)
    assert "are split into views" in said
    said = tilecast("calibrate", "dark", runs["camera"], "--px-um", "2", "--out", tmp_path / "no.npy", *store, code=2)
    assert "--px-um is for frames in files, not for a run" in said
