"""What PYME recorded goes where PYME itself says: its own code writes the series, maps times to frames, and tiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyme_source import pyme_sources, run_pyme
from tilecast.input_pyme import Event, frames_of_times
from tilecast.inputs import InputError, open_scan
from tilecast_protocol import pzf

SHAPE = (24, 32)  # rows, columns: PYME calls it [32, 24]
PX_UM = 0.25
START_S, CYCLE_S = 1_700_000_000.0, 0.1
N_FRAMES = 12

#: Where the stage was sent, µm, and when it had come there, in cycles after the start; the camera stopped and started.
MOVES = [(-1.5, 10.0, 20.0), (2.2, 15.0, 20.0), (4.4, 15.0, 23.5), (7.9, 10.0, 23.5), (12.2, 5.0, 23.5)]
STARTS = [(0.0, 0), (6.0, 4), (11.0, 8)]

MAKE = """
import json, sys
import numpy as np
from pathlib import Path
from PYME.IO import PZFFormat
from PYME.IO.MetaDataHandler import NestedClassMDHandler
from PYME.Analysis import tile_pyramid

folder, pyramid, told = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
frames = np.load(sys.argv[4])                                      # frame, x, y
for number, frame in enumerate(frames):
    (folder / ("frame%05d.pzf" % number)).write_bytes(PZFFormat.dumps(frame, frameNum=number))
mdh = NestedClassMDHandler()
for name, value in told["metadata"].items():
    mdh[name] = value
(folder / "metadata.json").write_text(mdh.to_JSON())
(folder / "events.json").write_text(json.dumps(told["events"]))
dtype = [("EventName", "S32"), ("EventDescr", "S256"), ("Time", "<f8")]
events = np.array([tuple(event) for event in told["events"]], dtype)
xm, ym = tile_pyramid.get_position_from_events(events, mdh)
numbers = np.arange(len(frames))
made = tile_pyramid.tile_pyramid(pyramid, np.moveaxis(frames, 0, 2), xm, ym, mdh, pyramid_tile_size=32)
tiles = {}
for x in range(made.n_tiles_x + 1):
    for y in range(made.n_tiles_y + 1):
        tile = made.get_tile(0, x, y)
        if tile is not None:
            tiles["%d,%d" % (x, y)] = np.asarray(tile, "f4").tolist()
print(json.dumps({"x": xm(numbers).tolist(), "y": ym(numbers).tolist(), "x0": made.x0, "y0": made.y0, "tiles": tiles}))
"""


def metadata() -> dict[str, Any]:
    return {
        "voxelsize.x": PX_UM,
        "voxelsize.y": PX_UM,
        "voxelsize.units": "um",
        "Camera.CycleTime": CYCLE_S,
        "Camera.ROIOriginX": 8,
        "Camera.ROIOriginY": 4,
        "Camera.ROIWidth": SHAPE[1],
        "Camera.ROIHeight": SHAPE[0],
        "Camera.ADOffset": 0,
        "StartTime": START_S,
        "Protocol.DataStartsAt": 0,
        "Positioning.x": 9.0,
        "Positioning.y": 19.0,
    }


def events() -> list[list[Any]]:
    """As PYME keeps them: name, description, seconds."""
    found: list[list[Any]] = [["StartAq", str(frame), START_S + cycles * CYCLE_S] for cycles, frame in STARTS]
    for cycles, x_um, y_um in MOVES:
        found.append(["ScannerXPos", f"{x_um:3.6f}", START_S + cycles * CYCLE_S])
        found.append(["ScannerYPos", f"{y_um:3.6f}", START_S + cycles * CYCLE_S])
    return sorted(found, key=lambda event: event[2])


def pixels() -> np.ndarray[Any, Any]:
    """Frame, row, column."""
    return np.random.default_rng(8).integers(1, 60_000, (N_FRAMES, *SHAPE), "<u2")


def write_series(folder: Path, **changes: Any) -> Path:
    """A series written with our own codec, which PYME reads (tests/protocol)."""
    folder.mkdir()
    for number, frame in enumerate(pixels()):
        (folder / f"frame{number:05d}.pzf").write_bytes(pzf.encode_image(np.ascontiguousarray(frame.T)))
    values = {name: value for name, value in (metadata() | changes).items() if value is not None}
    (folder / "metadata.json").write_text(json.dumps(values))
    (folder / "events.json").write_text(json.dumps(events()))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A series and a pyramid of it that PYME wrote, and what PYME says of them."""
    folder = tmp_path_factory.mktemp("pyme")
    sources = pyme_sources(folder / "sources")
    (folder / "series").mkdir()
    np.save(folder / "frames.npy", np.ascontiguousarray(pixels().transpose(0, 2, 1)))
    told = {"metadata": metadata(), "events": events()}
    arguments = [str(folder / name) for name in ("series", "pyramid")]
    return folder, run_pyme(sources, MAKE, *arguments, json.dumps(told), str(folder / "frames.npy"))


def test_a_series_lies_where_pyme_says(made: tuple[Path, dict[str, Any]]) -> None:
    folder, told = made
    scan = open_scan(folder / "series")
    assert scan.shape == SHAPE
    assert scan.px_um == (PX_UM, PX_UM)
    # The stage's position, and the corner of the region of interest on the chip; y counts down the rows.
    corners = [(round(y / PX_UM) + 4, round(x / PX_UM) + 8) for x, y in zip(told["x"], told["y"], strict=True)]
    assert len(set(corners)) == 5
    assert list(scan.corners) == corners
    for frame in scan.frames():
        np.testing.assert_array_equal(frame.pixels, pixels()[frame.frame])
    assert "positions in its events as the upper left corner of each frame in µm" in scan.how


def test_a_pyramid_is_read_as_its_tiles(made: tuple[Path, dict[str, Any]]) -> None:
    folder, told = made
    scan = open_scan(folder / "pyramid")
    assert scan.dtype == "<f4"
    assert scan.shape == (32, 32)
    found = {}
    for frame in scan.frames():
        x_um, y_um = (at - 16 * PX_UM for at in frame.pos_um)
        x, y = ((at - origin) / PX_UM / 32 for at, origin in ((x_um, told["x0"]), (y_um, told["y0"])))
        assert (x, y) == pytest.approx((round(x), round(y)), abs=1e-6)
        found[f"{round(x)},{round(y)}"] = frame.pixels
    assert found.keys() == told["tiles"].keys()
    assert len(found) > 1
    for name, tile in told["tiles"].items():
        np.testing.assert_array_equal(found[name], np.array(tile, "f4").T)
        assert found[name].any()


@pytest.mark.parametrize("cycles", [0.0, 0.5, 3.99, 4.5, 6.0, 7.2, 11.0, 30.0])
def test_times_become_frames(cycles: float) -> None:
    """By hand: four frames from each start, whatever the pause before the next."""
    list_of = [Event("StartAq", str(frame), START_S + at * CYCLE_S) for at, frame in STARTS]
    (frame,) = frames_of_times(np.array([START_S + (cycles + 1e-3) * CYCLE_S]), list_of, START_S, CYCLE_S)
    expected = {0.0: 0, 0.5: 0, 3.99: 3, 4.5: 4, 6.0: 4, 7.2: 5, 11.0: 8, 30.0: 27}
    assert frame == expected[cycles]


def test_frames_before_the_data_are_left_out(tmp_path: Path) -> None:
    whole = open_scan(write_series(tmp_path / "whole"))
    later = open_scan(write_series(tmp_path / "later", **{"Protocol.DataStartsAt": 3}))
    assert later.n_frames == N_FRAMES - 3
    assert later.corners == whole.corners[3:]
    np.testing.assert_array_equal(next(later.frames()).pixels, pixels()[3])


def test_older_metadata(tmp_path: Path) -> None:
    """Regions counted from 1, values nested instead of named with dots."""
    new = open_scan(write_series(tmp_path / "new"))
    old = write_series(
        tmp_path / "old",
        **{"Camera.ROIOriginX": None, "Camera.ROIOriginY": None, "Camera.ROIPosX": 9, "Camera.ROIPosY": 5},
    )
    assert open_scan(old).corners == new.corners
    nested: dict[str, Any] = {}
    for name, value in metadata().items():
        group, _, key = name.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[key] = value
    (old / "metadata.json").write_text(json.dumps(nested))
    assert open_scan(old).corners == new.corners


def test_a_missing_frame_moves_no_other(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    whole = open_scan(folder).corners
    (folder / "frame00005.pzf").unlink()
    assert open_scan(folder).corners == (*whole[:5], *whole[6:])


@pytest.mark.parametrize(
    ("breaking", "hint"),
    [
        (lambda folder: (folder / "metadata.json").unlink(), "holds PZF frames and no metadata.json"),
        (lambda folder: (folder / "metadata.json").write_text("{"), "metadata.json cannot be read"),
        (lambda folder: (folder / "metadata.json").write_text("[]"), "expected a map of PYME's metadata, got a list"),
        (lambda folder: (folder / "events.json").unlink(), "events.json is missing"),
        (
            lambda folder: (folder / "events.json").write_text("[[1]]"),
            "expected a list of [name, description, seconds]",
        ),
        (lambda folder: (folder / "events.json").write_text('[["ScannerXPos", "left", 3.0]]'), "says 'left'"),
        (lambda folder: (folder / "frame00000.pzf").write_bytes(b"BD"), "frame00000.pzf cannot be read"),
        (
            lambda folder: (folder / "frame00000.pzf").write_bytes(pzf.dumps(np.zeros((4, 4, 2), "u1"))),
            "expected one plane [x, y]",
        ),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, breaking: Any, hint: str) -> None:
    folder = write_series(tmp_path / "series")
    breaking(folder)
    with pytest.raises(InputError) as caught:
        open_scan(folder)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"voxelsize.x": None}, "expected a number as voxelsize.x, got None"),
        ({"voxelsize.units": "nm"}, "voxelsize is in 'nm'"),
        ({"Camera.CycleTime": None}, "expected a number as Camera.CycleTime"),
        ({"Camera.CycleTime": 0}, "expected more than 0"),
        ({"Protocol.DataStartsAt": 99}, "all 12 lie before frame 99"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(InputError) as caught:
        open_scan(write_series(tmp_path / "series", **changes))
    assert hint in str(caught.value)


def test_a_table_helps_where_events_do_not(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    (folder / "events.json").unlink()
    table = "frame,x_px,y_px\n" + "".join(f"{number},{20 * number},0\n" for number in range(N_FRAMES))
    (folder / "positions.csv").write_text(table)
    assert open_scan(folder).corners == tuple((0, 20 * number) for number in range(N_FRAMES))


def test_a_pyramid_without_its_tiles(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = made
    (tmp_path / "pyramid" / "0").mkdir(parents=True)
    shutil.copy(folder / "pyramid" / "metadata.json", tmp_path / "pyramid")
    with pytest.raises(InputError, match="none of its tiles of full resolution is there"):
        open_scan(tmp_path / "pyramid")
