"""The built-in finder of calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from tilecast import calibration
from tilecast.hookspecs import CalibrationError, UnknownCalibrationError
from tilecast.plugins import Plugins
from tilecast_plugins.calibration import plugin

IMAGE = np.arange(12, dtype="<u2").reshape(3, 4)


def find(folder: Path, name: str = "20x", shape: tuple[int, int] = (3, 4)) -> NDArray[Any]:
    return Plugins([("calibration", plugin)]).find_calibration(name, "flat", shape=shape, folder=folder)


@pytest.mark.parametrize("ending", ["npy", "tif", "tiff"])
@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_found_by_name(tmp_path: Path, ending: str, dtype: str) -> None:
    image = IMAGE.astype(dtype)
    if ending == "npy":
        np.save(tmp_path / "20x", image)
    else:
        tifffile.imwrite(tmp_path / f"20x.{ending}", image)
    for name in ("20x", f"20x.{ending}"):
        found = find(tmp_path, name)
        assert np.array_equal(found, image)
        assert found.dtype == image.dtype


def test_a_file_edited_later_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "20x.npy"
    np.save(path, IMAGE + 1)
    frozen = calibration.freeze(flat=find(tmp_path), shape=(3, 4))
    before = frozen.sha256, frozen.flat
    with path.open("r+b") as file:
        file.seek(-24, 2)
        file.write(bytes(24))
    assert frozen.flat is not None
    assert np.array_equal(frozen.flat, IMAGE + 1)
    assert (frozen.sha256, frozen.flat) == before


def test_unknown_names_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UnknownCalibrationError, match="there are no NPY or TIFF images in it"):
        find(tmp_path)
    np.save(tmp_path / "40x", IMAGE)
    with pytest.raises(UnknownCalibrationError, match=r"no flat named '20x' in .*; there are 40x\.npy"):
        find(tmp_path)
    with pytest.raises(UnknownCalibrationError, match=r"does not exist: create it, or set calibration\.path"):
        find(tmp_path / "none")


@pytest.mark.parametrize("name", ["../20x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\x00b", "x" * 101])
def test_names_never_become_paths_unchecked(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    np.save(tmp_path / "20x", IMAGE)
    with pytest.raises(UnknownCalibrationError, match="cannot be used"):
        find(tmp_path / "inside", name)


def test_two_files_of_one_name_are_ambiguous(tmp_path: Path) -> None:
    np.save(tmp_path / "20x", IMAGE)
    tifffile.imwrite(tmp_path / "20x.tif", IMAGE)
    with pytest.raises(CalibrationError, match=r"20x\.npy and 20x\.tif .* say which"):
        find(tmp_path)
    assert find(tmp_path, "20x.tif").shape == (3, 4)


def test_wrong_sizes_are_refused_before_the_pixels_are_read(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "big.npy", "w+", "<f8", (1 << 20, 1 << 20)).flush()  # sparse: 8 TiB
    with pytest.raises(CalibrationError, match=r"shape 1048576 × 1048576, the camera's frames are 3 × 4"):
        find(tmp_path, "big")
    tifffile.imwrite(tmp_path / "stack.tif", np.stack([IMAGE] * 3))
    with pytest.raises(CalibrationError, match=r"shape 3 × 3 × 4"):
        find(tmp_path, "stack")


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"no array")
    (tmp_path / "b.tif").write_bytes(b"no tiff at all")
    np.save(tmp_path / "c.npy", np.array([[{}]], object), allow_pickle=True)
    (tmp_path / "d.npy").write_bytes(b"")
    for name in "abcd":
        with pytest.raises(CalibrationError, match=rf"flat image .*{name}\..* cannot be read"):
            find(tmp_path, name)
