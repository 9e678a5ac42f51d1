"""Whatever decays in the folder of a finished run: `fsck` finds it, or nothing of what the run shows has changed.

And where the recording is still whole, a repair brings every tile back, bit for bit.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from integration.stored import assert_same, journalled_frames, stored_mosaic
from recordings import Recording
from reference.mosaic_reference import Mosaic, differences
from tilecast.service.fsck import Kind, check_run, describe
from tilecast.service.rebuild import rebuild_run
from tilecast.service.repair import repair_run
from tilecast_protocol.errors import TilecastError

PAGE = 4096
CORNERS = ((0, 0), (0, 22), (17, 3), (-20, -9))


class Finished:
    """A run that has ended: its files, and what it shows."""

    def __init__(self, root: Path) -> None:
        made = Recording(root, dark=np.full((24, 30), 2, np.float32))
        made.images(CORNERS)
        made.end()
        self.folder = made.close()
        rebuild_run(self.folder)
        # Not: what says nothing (the lock's text), and what only says that somebody had the run open.
        self.files = sorted(
            path.relative_to(self.folder)
            for path in self.folder.rglob("*")
            if path.is_file() and path.name != "lock" and path.stat().st_size
        )
        self.mosaic = stored_mosaic(self.folder)
        self.frames = journalled_frames(self.folder)


@pytest.fixture(scope="module")
def finished() -> Iterator[Finished]:
    with tempfile.TemporaryDirectory() as folder:
        yield Finished(Path(folder) / "runs")


def spoil(path: Path, how: str, where: float, bit: int) -> None:
    """Damage one file: `where` is a fraction of its length."""
    data = bytearray(path.read_bytes())
    at = min(int(where * len(data)), len(data) - 1)
    if how == "flip":
        data[at] ^= 1 << bit
    elif how == "byte":
        data[at] = (data[at] + 1 + bit) % 256
    elif how == "zero":
        at -= at % PAGE
        data[at : at + PAGE] = bytes(len(data[at : at + PAGE]))
    else:
        del data[at:]
    path.write_bytes(data)


def shows(folder: Path) -> tuple[Mosaic, dict[int, bytes]]:
    """All tiles and all frames of a run."""
    frames = {frame: pixels.tobytes() for frame, pixels in journalled_frames(folder).items()}
    return stored_mosaic(folder), frames


def check_damage(finished: Finished, number: int, how: str, where: float, bit: int) -> None:
    """Damage a copy of the run; it is found, or harmless, and made good if the recording is whole."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / finished.folder.name
        shutil.copytree(finished.folder, folder)
        spoil(folder / finished.files[number % len(finished.files)], how, where, bit)
        found = check_run(folder)
        if not found:
            mosaic, frames = shows(folder)
            assert not differences(mosaic, finished.mosaic)
            assert frames == {frame: pixels.tobytes() for frame, pixels in finished.frames.items()}
            return
        is_recording_whole = not any(finding.kind is Kind.LOST for finding in found)
        is_newer = any("a newer tilecast" in finding.what for finding in found)
        try:
            left = repair_run(folder).left
        except TilecastError:
            assert not is_recording_whole
            return
        if is_recording_whole and not is_newer:
            assert [describe(finding) for finding in left] == [], [describe(finding) for finding in found]
            assert_same(stored_mosaic(folder), finished.mosaic)


_DAMAGE = {
    "number": st.integers(0, 99),
    "how": st.sampled_from(["flip", "flip", "byte", "zero", "cut"]),
    "where": st.floats(0, 1, exclude_max=True),
    "bit": st.integers(0, 7),
}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(number=0, how="cut", where=0.0, bit=0)
@example(number=52, how="cut", where=0.0, bit=0)
@example(number=64, how="cut", where=0.96875, bit=0)
@given(**_DAMAGE)
def test_any_damage_is_found_or_harmless_and_made_good(
    finished: Finished, number: int, how: str, where: float, bit: int
) -> None:
    check_damage(finished, number, how, where, bit)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**_DAMAGE)
def test_much_damage_is_found_or_harmless_and_made_good(
    finished: Finished, number: int, how: str, where: float, bit: int
) -> None:
    check_damage(finished, number, how, where, bit)
