"""Cameras corrected channel by channel in a real daemon, as `cameras.toml` and the start say."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plugins.splitter.test_splitter import tilecast
from tilecast.hookspecs import FrameStep, RunStart, StartRefusedError
from tilecast.reading import open_run
from tilecast.testing.fixtures import DaemonUnderTest, StartDaemon
from tilecast_plugins.calibration.plugin import tilecast_run_starting
from tilecast_protocol.publisher import RejectedError

SHAPE = (48, 64)


def starting(folder: Path, parts: tuple[bytes, ...] = (), **header: Any) -> FrameStep | None:
    run = RunStart(
        run="0b0e5a5e-8f6d-4c43-9f5c-2f6f0f1f3a55",
        name="",
        instrument="scope",
        stream="camera",
        shape=SHAPE,
        dtype="<u2",
        pixel_size_um=(1, 1),
        header=header,
        parts=parts,
        calibrations=folder,
    )
    return tilecast_run_starting(run)


def npy(image: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, image)
    return file.getvalue()


def test_without_a_word_frames_pass_unchanged(tmp_path: Path) -> None:
    assert starting(tmp_path) is None
    (tmp_path / "cameras.toml").write_text('[[camera]]\nstream = "other"\ndark = 100\n')
    assert starting(tmp_path) is None


def test_what_is_said_later_counts_and_channels_add_to_all(tmp_path: Path) -> None:
    (tmp_path / "cameras.toml").write_text(
        '[[camera]]\ndark = 90\n[[camera]]\nstream = "camera"\ndark = 100\n[[camera]]\nchannel = "GFP"\ngain = 2\n'
    )
    channels = [{"name": "DAPI"}, {"name": "GFP"}]
    step = starting(tmp_path, channels=channels, user={"calibration": [{"channel": 0, "dark": 7}]})
    assert step is not None
    assert step.by_channel
    assert step.settings == {"others": {"dark": 100.0}, "1": {"dark": 100.0, "gain": 2.0}, "0": {"dark": 7.0}}


def test_images_come_from_the_folder_or_the_message(tmp_path: Path) -> None:
    np.save(tmp_path / "20x.npy", np.full(SHAPE, 2.0))
    hot = np.zeros(SHAPE, "u1")
    hot[3, 4] = 1
    said = {"calibration": {"flat": "20x", "hot": "part:0"}}
    step = starting(tmp_path, parts=(npy(hot),), user=said)
    assert step is not None
    assert not step.by_channel
    parts = step.settings["others"]
    assert (step.arrays[parts["flat"]] == 2).all()
    assert np.argwhere(step.arrays[parts["hot"]]).tolist() == [[3, 4]]


def test_what_the_start_names_is_not_done_twice(tmp_path: Path) -> None:
    (tmp_path / "cameras.toml").write_text("[[camera]]\ndark = 100\ngain = 2\n")
    step = starting(tmp_path, dark="d")
    assert step is not None
    assert step.settings == {"others": {"gain": 2.0}}
    with pytest.raises(StartRefusedError, match="the start names dark twice"):
        starting(tmp_path, dark="d", user={"calibration": {"dark": 5}})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[[camera]]\ndrak = 1\n", "'drak' is not known; did you mean dark"),
        ("[camera]\ndark = 1\n", r"expected tables \[\[camera\]\]"),
        ("dark = 1\n", r"expected tables \[\[camera\]\] and nothing else; got 'dark'"),
        ("[[camera]\n", "cameras.toml: "),
        ("[[camera]]\nchannel = 'GFP'\ndark = 1\n", "this run does not name its channels: give its number"),
        ("[[camera]]\ndark = 'd'\n", "there is no dark named 'd' in"),
        ("[[camera]]\nflat = '../20x'\n", "cannot be used: letters"),
        ("[[camera]]\nflat = 2\n", "flat is an image, not a number"),
        ("[[camera]]\ndark = 'part:3'\n", "this start carries 0 payload parts"),
        ("[[camera]]\nflat = 'small'\n", "it has the shape 2 × 2, the camera's frames are 48 × 64"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, why: str) -> None:
    np.save(tmp_path / "small.npy", np.ones((2, 2)))
    (tmp_path / "cameras.toml").write_text(text)
    with pytest.raises(StartRefusedError, match=why):
        starting(tmp_path)


@pytest.mark.parametrize("data", [b"", b"no array", npy(np.ones((2, 2))), npy(np.ones(SHAPE))[:-8]])
def test_parts_that_are_no_images_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(StartRefusedError, match="payload part is not an NPY file that can be used"):
        starting(tmp_path, parts=(data,), user={"calibration": {"flat": "part:0"}})


# ---- with a daemon ---------------------------------------------------------------------------------------------------

PIXELS = np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE).astype("<u2")


def send(daemon: DaemonUnderTest, **start: Any) -> str:
    """One frame in each of three channels, on each other."""
    with daemon.publisher() as publisher:
        run = publisher.start("channels", shape=SHAPE, dtype="<u2", px_um=(1.0, 1.0), **start)
        for channel in range(3):
            publisher.image(PIXELS, pos_um=(32.0, 24.0), tcz=(0, channel, 0))
        publisher.end()
        publisher.flush()
    return run


def test_each_channel_is_corrected_by_its_own(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "calibrations"
    folder.mkdir()
    (folder / "cameras.toml").write_text("[[camera]]\ndark = 100\n[[camera]]\nchannel = 1\ngain = 2\n")
    daemon = tilecast_daemon(**{"calibration.path": str(folder)})
    run = send(daemon)
    daemon.wait_logged("run report", run=run, timeout_s=30)
    daemon.finish()
    dark = np.maximum(PIXELS.astype(int) - 100, 0)
    expected = {0: dark, 1: np.rint(dark / 2), 2: dark}

    def expect() -> None:
        for channel, pixels in expected.items():
            np.testing.assert_array_equal(daemon.mosaic(run, channel=channel)[0], pixels)

    expect()
    store = ["--set", f"store.path={daemon.root}", "--set", f"calibration.path={folder}"]
    said = tilecast("info", run, *store)
    assert "299 pixels below" in said  # 100 of each frame; where it is halved, -1 becomes 0
    tilecast("fsck", run, *store)
    (folder / "cameras.toml").write_text("[[camera]]\ndark = 1000\n")
    tilecast("rebuild", run, *store)
    expect()
    said = tilecast("rebuild", run, "--steps", "again", *store)
    assert "3000 pixels below" in said
    dark = np.maximum(PIXELS.astype(int) - 1000, 0)
    expected = dict.fromkeys(range(3), dark)
    expect()
    tilecast("fsck", run, *store)


def test_the_report_tells_how_many_pixels_were_clipped(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = tilecast_daemon(**{"calibration.path": str(tmp_path)})
    run = send(daemon, dark="100")
    daemon.wait_logged("run report", run=run, timeout_s=30)
    with daemon.client() as client:
        assert client.report(run)["report"]["state"] == "ended"
    daemon.finish()
    with open_run(daemon.root, run) as reader:
        info = reader.info()
    assert info.clipped == (300, 0)
    assert info.report is not None
    assert info.report["clipped"] == {"low": 300, "high": 0}


def test_a_start_that_names_what_there_is_not_is_refused(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = tilecast_daemon(**{"calibration.path": str(tmp_path)})
    with pytest.raises(RejectedError, match="there is no flat named '20x' in"):
        send(daemon, user={"calibration": {"flat": "20x"}})
    daemon.finish()


def test_what_the_start_names_and_what_the_file_says_go_together(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    """A flat field by the daemon, which comes first, and a dark image by `cameras.toml`: as the formula says."""
    folder = tmp_path / "calibrations"
    folder.mkdir()
    (folder / "cameras.toml").write_text('[[camera]]\ndark = 100\nflat = "nowhere"\n')
    flats = {name: np.random.default_rng(n).uniform(0.5, 1.5, SHAPE).astype("<f4") for n, name in enumerate("ab")}
    for name, flat in flats.items():
        np.save(folder / f"{name}.npy", flat)
    np.save(folder / "dark.npy", np.full(SHAPE, 250.0))
    daemon = tilecast_daemon(**{"calibration.path": str(folder)})
    run = send(daemon, flat="a")
    daemon.wait_logged("run report", run=run, timeout_s=30)
    daemon.finish()
    store = ["--set", f"store.path={daemon.root}", "--set", f"calibration.path={folder}"]

    def expect(dark: float, flat: NDArray[Any]) -> None:
        right = np.clip((PIXELS.astype(float) - dark) * (flat.mean(dtype=float) / flat.astype(float)), 0, None)
        for channel in range(3):  # rounded twice: after the flat field, and after the dark image
            assert np.abs(daemon.mosaic(run, channel=channel)[0] - right).max() <= 1

    expect(100, flats["a"])
    said = tilecast("calibrate", "flat", run, "--out", tmp_path / "none.npy", *store, code=1)
    assert "100 grey levels are subtracted, as is frozen in the run" in said
    tilecast("rebuild", run, "--flat", "b", *store)
    expect(100, flats["b"])
    tilecast("rebuild", run, "--dark", "dark", *store)
    expect(250, flats["b"])
    tilecast("fsck", run, *store)


ESTIMATED_S = 200.0  # by a process of the lowest priority: on a busy machine that is long


@pytest.mark.timeout(500)
def test_a_flat_field_is_estimated_in_a_scan_applied_to_the_open_run_and_estimated_again(
    tilecast_daemon: StartDaemon, tmp_path: Path
) -> None:
    target = tmp_path / "flats"
    light = 1 - 0.4 * np.linspace(-1, 1, 96)[:, None] ** 2 * np.ones(96)
    rows, cols = np.indices((5 * 64 + 32, 4 * 64 + 32)) / 30.0
    whole = 2000 * np.exp(0.3 * np.sin(rows) * np.cos(1.3 * cols))
    settings = {"plugins.calibration.estimate_into": str(target), "plugins.calibration.estimate_every_s": "1"}
    daemon = tilecast_daemon(**settings, **{"calibration.path": str(target), "ingest.idle_end_s": "600"})
    of_daemon = ["--set", f"store.path={daemon.root}", "--set", f"calibration.path={target}"]

    def flatness() -> float:
        pixels = daemon.mosaic(run)[0].astype(float)
        ratio = pixels / whole[: len(pixels)]
        return float(ratio.std() / ratio.mean())

    with daemon.publisher() as publisher:
        run = publisher.start("vignette", shape=(96, 96), dtype="<u2", px_um=(1.0, 1.0), blend="newest")

        def send_row(row: int) -> None:
            for col in range(0, 256, 64):
                frame = (whole[row : row + 96, col : col + 96] * light).astype("<u2")
                publisher.image(frame, pos_um=(col + 48.0, row + 48.0))
            publisher.flush()

        for row in range(0, 256, 64):
            send_row(row)
        said = re.compile(r"from 16 frames.* 42 overlaps: .* times smaller")
        daemon.wait_logged("flat field estimated", timeout_s=ESTIMATED_S, state="open", said=said)
        [file] = target.glob("*.npy")
        assert (np.load(file) / (light / light.mean()) - 1).std() < 0.01
        with daemon.client() as client:
            assert client.run(run)["state"] == "open"
            [source] = client.stats()["plugins"]["sources"]
        assert source["told"]["last"] == str(file)
        before = flatness()
        tilecast("rebuild", run, "--flat", file, *of_daemon, "--set", f"query={daemon.endpoints['query']}")
        assert flatness() < 0.1 * before
        send_row(256)  # corrected as it comes
        publisher.end()
        publisher.flush()
    daemon.wait_logged("flat field estimated", timeout_s=ESTIMATED_S, state="ended", said=re.compile("from 20 frames"))
    assert (np.load(file) / (light / light.mean()) - 1).std() < 0.01
    daemon.finish()
    assert flatness() < 0.1 * before


def test_an_open_run_gets_another_calibration_while_frames_come(tilecast_daemon: StartDaemon, tmp_path: Path) -> None:
    folder = tmp_path / "calibrations"
    folder.mkdir()
    np.save(folder / "flat.npy", np.where(PIXELS % 2, 1.5, 0.5))
    (tmp_path / "elsewhere").mkdir()
    np.save(tmp_path / "elsewhere" / "other.npy", np.ones(SHAPE))
    daemon = tilecast_daemon(**{"calibration.path": str(folder), "blend.mode": "newest"})
    daemon_is = ["--set", f"store.path={daemon.root}", "--set", f"query={daemon.endpoints['query']}"]
    daemon_is += ["--set", f"calibration.path={folder}"]
    with daemon.publisher() as publisher:
        run = publisher.start("open", shape=SHAPE, dtype="<u2", px_um=(1.0, 1.0))
        publisher.image(PIXELS, pos_um=(32.0, 24.0))
        publisher.flush()
        said = tilecast("rebuild", run, "--flat", tmp_path / "elsewhere" / "other.npy", *daemon_is, code=2)
        assert "its daemon takes calibrations from its own folder alone: copy other.npy to" in said
        assert "there is no flat named '40x'" in tilecast("rebuild", run, "--flat", "40x", *daemon_is, code=2)
        tilecast("rebuild", run, "--flat", folder / "flat.npy", *daemon_is)
        publisher.image(PIXELS, pos_um=(132.0, 24.0))
        publisher.end()
        publisher.flush()
    daemon.finish()
    pixels, _ = daemon.mosaic(run)
    expected = np.rint(PIXELS * np.where(PIXELS % 2, 2 / 3, 2).astype(np.float32))
    np.testing.assert_array_equal(pixels[:, :64], expected)
    np.testing.assert_array_equal(pixels[:, 100:], expected)
    tilecast("fsck", run, *daemon_is[:2])
