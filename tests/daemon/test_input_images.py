"""One image file at a time: what is whole is read, what is not is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from folder_writers import encoded
from tilecast.inputs import InputError, open_image

PIXELS = np.random.default_rng(1).integers(0, 60_000, (40, 56), "u2")
SUFFIXES = [".tif", ".ome.tif", ".png", ".npy", ".pzf"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_whole_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(PIXELS, suffix))
    source = open_image(path)
    assert (source.n_frames, source.shape, source.dtype) == (1, PIXELS.shape, "<u2")
    np.testing.assert_array_equal(next(iter(source.read([0]))), PIXELS)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compression", [None, "zlib"])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_part_of_a_file_is_refused_or_holds_all_pixels(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, compression: str | None, share: float
) -> None:
    is_tiff = "tif" in suffix
    data = encoded(PIXELS, suffix, **({"compression": compression, "rowsperstrip": 8} if is_tiff else {}))
    path = tmp_path_factory.mktemp("part") / f"a{suffix}"
    path.write_bytes(data[: int(share * len(data))])
    try:
        source = open_image(path)
    except InputError:
        return
    np.testing.assert_array_equal(next(iter(source.read([0]))), PIXELS)


def test_a_tiff_whose_pixels_are_not_written_yet_is_refused(tmp_path: Path) -> None:
    """Its directory is complete, and tifffile reads pixels all the same: zeros, or the head of the file."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, None, shape=(40, 56), dtype="u2")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages.first.tags["StripOffsets"].overwrite((0,))
    assert tifffile.imread(path).shape == (40, 56)
    with pytest.raises(InputError, match="pixels are missing"):
        open_image(path)


def test_planes_of_an_ome_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.stack([PIXELS, PIXELS + 1]), metadata={"axes": "ZYX"})
    source = open_image(path)
    assert source.info.tcz == ((0, 0, 0), (0, 0, 1))
    np.testing.assert_array_equal(next(iter(source.read([1]))), PIXELS + 1)


def test_one_of_a_set_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    xml = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYZCT" Type="uint16" SizeX="56" SizeY="40" SizeZ="2" SizeC="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstZ="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>'
        '<TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="b.ome.tif">urn:uuid:2</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(path, PIXELS, description=xml, metadata=None)
    with pytest.raises(InputError, match=r"one of a set of files \(b\.ome\.tif"):
        open_image(path)


def test_pages_and_suffixes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([PIXELS, PIXELS]), metadata=None)
    with pytest.raises(InputError, match="expected one frame per file"):
        open_image(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"expected .*\.npy, .*got '\.jpg'"):
        open_image(tmp_path / "a.jpg")
