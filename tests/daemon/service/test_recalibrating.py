"""A run rebuilt with another calibration: what is frozen changes with the mosaic, at one instant."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from faults.nursery import shared
from integration.stored import assert_same, reference_mosaic, stored_mosaic
from recordings import SHAPE, Recording, record
from tilecast import calibration as cal
from tilecast.errors import CalibrationError, StartRefusedError
from tilecast.plugins import Plugins
from tilecast.service import runs
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import Refreeze, Source, rebuild_run
from tilecast_plugins.calibration import plugin

DARK = np.full(SHAPE, 7, "<u2")


def plugins() -> Plugins:
    return Plugins([("calibration", plugin)])


def corrected(made: Recording, **calibration: object) -> dict[int, np.ndarray]:
    frozen = cal.freeze(shape=SHAPE, **calibration)  # type: ignore[arg-type]
    return {frame: cal.apply(pixels, frozen).pixels for frame, pixels in made.pixels.items()}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix == ".npy" or path.name.startswith("frozen")}


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "calibrations"
    folder.mkdir()
    np.save(folder / "flat.npy", np.linspace(0.5, 1.5, SHAPE[0] * SHAPE[1]).reshape(SHAPE))
    return folder


def test_another_flat_and_no_dark(tmp_path: Path, flat: Path) -> None:
    made = record(tmp_path / "runs", dark=DARK)
    rebuild_run(made.folder)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, corrected(made, dark=DARK)))
    first = rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, flat=Source(flat, "flat")))
    image = np.load(flat / "flat.npy")
    expected = corrected(made, dark=DARK, flat=image)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, expected))
    assert not check_run(made.folder)
    assert runs.read_frozen(made.folder).calibration == first.frozen.calibration == first.images.calibration.sha256
    # It holds from then on.
    rebuild_run(made.folder, mode="max")
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, expected))
    rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, dark=Source(), flat=Source()))
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))
    assert files(made.folder) == {"frozen.json"}
    assert not check_run(made.folder)
    rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, dark=Source(flat, "7")))
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, corrected(made, dark=DARK)))
    assert not check_run(made.folder)


def test_steps_are_asked_for_again(tmp_path: Path, flat: Path) -> None:
    made = record(tmp_path / "runs")
    rebuild_run(made.folder)
    (flat / "cameras.toml").write_text('[[camera]]\ndark = 7\nflat = "flat"\n')
    rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, steps=True))
    [step] = runs.read_frozen(made.folder).steps
    assert step.plugin == "calibration"
    assert not check_run(made.folder)
    expected = corrected(made, dark=DARK, flat=np.load(flat / "flat.npy"))
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, expected))
    (flat / "cameras.toml").unlink()
    rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, steps=True))
    assert runs.read_frozen(made.folder).steps == ()
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, made.pixels))
    assert files(made.folder) == {"frozen.json"}


def test_what_cannot_be_had_changes_nothing(tmp_path: Path, flat: Path) -> None:
    made = record(tmp_path / "runs", dark=DARK)
    rebuild_run(made.folder)
    before, there = stored_mosaic(made.folder), files(made.folder)
    with pytest.raises(CalibrationError, match="there is no flat named '40x'"):
        rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, flat=Source(flat, "40x")))
    (flat / "cameras.toml").write_text("[[camera]]\nflat = 'none'\n")
    with pytest.raises(StartRefusedError, match="there is no flat named 'none'"):
        rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, steps=True))

    def stop(what: str, done: int, _total: int) -> None:
        if (what, done) == ("blending frames", 4):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, flat=Source(flat, "flat")), progress=stop)
    assert_same(stored_mosaic(made.folder), before)
    assert files(made.folder) == there
    assert not check_run(made.folder)


_KILLED = """
import os, signal, sys
from pathlib import Path
from tilecast.plugins import Plugins
from tilecast.service import rebuild, runs
from tilecast_plugins.calibration import plugin

where, folder, flat = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def when_blending(what, done, total):
    if where == "blending" and (what, done) == ("blending frames", 4):
        kill()

swap_in = rebuild.swap_in
def swap(*arguments, **more):
    if where == "before the swap":
        kill()
    result = swap_in(*arguments, **more)
    if where == "after the swap":
        kill()
    return result
rebuild.swap_in = swap

path_replace, path_unlink = Path.replace, Path.unlink
def replaced(self, target):
    result = path_replace(self, target)
    if where == "settled" and self.name == runs.PENDING_NAME:
        kill()
    return result
Path.replace = replaced

dark, field = rebuild.Source(), rebuild.Source(flat, "flat")
wanted = rebuild.Refreeze(Plugins([("calibration", plugin)]), flat, dark=dark, flat=field)
rebuild.rebuild_run(folder, refreeze=wanted, progress=when_blending)
"""


@pytest.mark.parametrize("where", ["blending", "before the swap", "after the swap", "settled"])
def test_killed_at_any_moment_one_of_the_two_holds(tmp_path: Path, flat: Path, where: str) -> None:
    made = record(tmp_path / "runs", dark=DARK)
    rebuild_run(made.folder)
    done = shared().script(_KILLED, where, str(made.folder), str(flat))
    assert done.returncode == -signal.SIGKILL
    is_new = where in ("after the swap", "settled")
    pixels = corrected(made, flat=np.load(flat / "flat.npy")) if is_new else corrected(made, dark=DARK)
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, pixels))
    assert not check_run(made.folder), "what is read is what the tiles were made by"
    loaded = runs.load_run(made.folder, segment_bytes=1 << 30)
    assert (loaded.images.calibration.flat is not None) == is_new
    assert (loaded.images.calibration.dark is not None) == (not is_new)
    loaded.release()
    assert runs.PENDING_NAME not in files(made.folder)
    assert not check_run(made.folder)
    rebuild_run(made.folder, refreeze=Refreeze(plugins(), flat, dark=Source(flat, "7"), flat=Source()))
    assert_same(stored_mosaic(made.folder), reference_mosaic(made.folder, corrected(made, dark=DARK)))
    assert not check_run(made.folder)


def test_a_copy_of_what_a_kill_left_reads_the_same(tmp_path: Path, flat: Path) -> None:
    made = record(tmp_path / "runs", dark=DARK)
    rebuild_run(made.folder)
    shared().script(_KILLED, "after the swap", str(made.folder), str(flat))
    assert (made.folder / runs.PENDING_NAME).exists()
    pending = json.loads((made.folder / runs.PENDING_NAME).read_text())
    assert runs.read_frozen(made.folder).calibration == pending["calibration"]
    assert list(runs.frozen_images(made.folder)) == ["flat"]
    os.sync()
