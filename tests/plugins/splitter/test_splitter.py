"""A dual-view camera, split by a real daemon, registered, un-mixed, and rebuilt with another transform."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from numpy.typing import NDArray

from plugins.calibration.test_splitting import picture, spread
from tilecast import cli
from tilecast.hookspecs import FrameStep, RunStart, StartRefusedError
from tilecast.reading import open_run
from tilecast.testing.fixtures import DaemonUnderTest, StartDaemon
from tilecast.testing.frames import read
from tilecast.testing.microscope import TestScan
from tilecast_plugins.splitter.options import SplitterOptions
from tilecast_plugins.splitter.plugin import tilecast_make_images, tilecast_run_starting
from tilecast_plugins.splitter.transform import Transform
from tilecast_protocol.publisher import RejectedError

RUN = "0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55"
SHAPE = (64, 96)


def starting(shape: tuple[int, int] = SHAPE, dtype: str = "<u2") -> RunStart:
    return RunStart(
        run=RUN, name="", instrument="scope", stream="dual", shape=shape, dtype=dtype, pixel_size_um=(1, 1), header={}
    )


def step_of(shape: tuple[int, int] = SHAPE, **options: Any) -> FrameStep:
    step = tilecast_run_starting(starting(shape), SplitterOptions(streams=("dual",), **options))
    assert step is not None
    return step


def test_only_named_streams_are_split() -> None:
    assert tilecast_run_starting(starting(), SplitterOptions()) is None
    assert tilecast_run_starting(starting(), SplitterOptions(streams=("other",))) is None


@pytest.mark.parametrize("mirror", ["none", "rows", "columns"])
@pytest.mark.parametrize("halves", ["left-right", "top-bottom"])
def test_halves_lie_on_each_other_exactly(halves: str, mirror: str) -> None:
    frame = np.random.default_rng(0).integers(0, 65536, SHAPE).astype("<u2")
    step = step_of(halves=halves, mirror=mirror)
    first, second = tilecast_make_images(step, "<u2")(frame).images
    half = (64, 48) if halves == "left-right" else (32, 96)
    assert [view.shape for view in step.views] == [half, half]
    expected = frame[:, 48:] if halves == "left-right" else frame[32:]
    expected = {"none": expected, "rows": expected[::-1], "columns": expected[:, ::-1]}[mirror]
    np.testing.assert_array_equal(first, frame[: half[0], : half[1]])
    np.testing.assert_array_equal(second, expected)


def write(path: Path, transform: Transform) -> Path:
    path.write_text(json.dumps(transform.as_dict()))
    return path


def test_what_is_mixed_is_unmixed_rounded_clipped_and_counted() -> None:
    dyes = np.random.default_rng(1).integers(0, 20000, (2, 64, 48)).astype(float)
    mixed = [dyes[0] + 0.25 * dyes[1], 0.5 * dyes[0] + dyes[1]]
    frame = np.rint(np.hstack(mixed)).astype("<u2")
    step = step_of(mixing=(1.0, 0.25, 0.5, 1.0))
    made = tilecast_make_images(step, "<u2")(frame)
    for image, dye in zip(made.images, dyes, strict=True):
        assert np.abs(image.astype(float) - dye).max() <= 2
    assert made.n_high == 0
    bright = np.zeros(SHAPE, "<u2")
    bright[:, :48] = 60000  # the second half would have to hold half of this
    made = tilecast_make_images(step, "<u2")(bright)
    assert (made.n_low, made.n_high) == (64 * 48, 64 * 48)
    assert (made.images[0] == 65535).all()
    assert (made.images[1] == 0).all()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"second_channel": 0}, "both halves would become channel 0"),
        ({"mixing": (1.0, 2.0)}, "expected four numbers a,b,c,d; got 2"),
        ({"mixing": (1.0, 1.0, 1.0, 1.0)}, "cannot be un-mixed, because both halves show the same"),
        ({"transform": Path("/nowhere/dual.json")}, "cannot read /nowhere/dual.json: No such file.*calibrate split"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(StartRefusedError, match=why):
        step_of(**options)


def test_transforms_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefusedError, match="97 columns have no halves"):
        step_of((64, 97))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(StartRefusedError, match="is not a file made by `tilecast calibrate split`"):
        step_of(transform=tmp_path / "a.json")
    other = write(tmp_path / "b.json", Transform(shape=(512, 512)))
    with pytest.raises(StartRefusedError, match="made with frames of 512 × 512 pixels, these are 64 × 96"):
        step_of(transform=other)
    far = write(tmp_path / "c.json", Transform(shift_px=np.array([0.0, 30.0])))
    with pytest.raises(StartRefusedError, match="share less than half"):
        step_of(transform=far)


# ---- with a daemon ---------------------------------------------------------------------------------------------------


def tilecast(*arguments: object, code: int = 0) -> str:
    """What a command says."""
    done = CliRunner().invoke(cli.main, list(map(str, arguments)))
    assert done.exit_code == code, done.output + "".join(traceback.format_exception(done.exception))
    return done.output


def scanned(daemon: DaemonUnderTest, scan: TestScan) -> str:
    with daemon.publisher("dual") as publisher:
        return scan.send(publisher)


def test_a_camera_is_split_by_the_transform_of_its_beads(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    places = spread(5)
    tifffile.imwrite(tmp_path / "beads.tif", np.hstack([picture(places, 1), picture(places + np.array([2, -3]), 2)]))
    file = tmp_path / "dual.json"
    said = tilecast("calibrate", "split", tmp_path / "beads.tif", "--out", file)
    assert "beads agree to 0." in said
    assert (tmp_path / "dual.png").read_bytes()[1:4] == b"PNG"
    found = json.loads(file.read_text())
    np.testing.assert_allclose(found["shift_px"], (2, -3), atol=0.3)
    # Frames of the same size that know themselves, and a transform of whole pixels, so that they stay legible.
    scan = TestScan(grid=(1, 2), shape=(160, 400))
    write(file, Transform(shift_px=np.array([2.0, -3.0]), shape=scan.shape))
    daemon = tilecast_daemon(**{"plugins.splitter.streams": "dual", "plugins.splitter.transform": str(file)})
    run = scanned(daemon, scan)
    daemon.finish()

    def expect(channel: int, row: int, col: int, shape: tuple[int, int]) -> NDArray[Any]:
        pixels, corner = daemon.mosaic(run, channel=channel)
        for frame in (0, 1):
            at = scan.corner(frame)[1] + 100  # the half lies about the middle of the frame
            part = pixels[:, at + 3 - corner[1] :][:, : shape[1]] if frame == 0 else pixels[:, -shape[1] :]
            expected = scan.frame(frame)[row : row + shape[0], col : col + shape[1]]
            np.testing.assert_array_equal(part, expected)
        return pixels

    # Of the half, the last two rows and first three columns have nothing in the other one.
    expect(0, 0, 3, (158, 197))
    expect(1, 2, 200, (158, 197))
    with open_run(daemon.root, run) as reader:
        views = {(row.placement.frame, row.placement.view) for row in reader.placements()}
        assert views == {(0, 0), (0, 1), (1, 0), (1, 1)}
        assert reader.info().settings["steps"][0]["settings"]["shift_px"] == [2.0, -3.0]
    store = ["--set", f"store.path={daemon.root}"]
    tilecast("fsck", run, *store)
    # What is edited later changes nothing, until somebody asks for it.
    write(file, Transform(shape=scan.shape))
    tilecast("rebuild", run, *store)
    expect(1, 2, 200, (158, 197))
    again = ["--set", "plugins.splitter.streams=dual", "--set", f"plugins.splitter.transform={file}"]
    tilecast("rebuild", run, "--steps", "again", *store, *again)
    pixels, _ = daemon.mosaic(run, channel=1)
    np.testing.assert_array_equal(pixels[:, :200], scan.frame(0)[:, 200:])
    assert {sighting.frame for sighting in read(pixels)} == {0, 1}
    tilecast("fsck", run, *store)


def test_a_start_that_cannot_be_split_is_refused_with_the_reason(tilecast_daemon: StartDaemon) -> None:
    daemon = tilecast_daemon(**{"plugins.splitter.streams": "dual"})
    with pytest.raises(RejectedError, match=r"the plugin splitter refuses the run: .* 63 columns have no halves"):
        scanned(daemon, TestScan(shape=(64, 63)))
    daemon.finish()
