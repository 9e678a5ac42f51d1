"""A scan of one's own goes where its table says: every convention, every format, and what is refused or warned of."""

from __future__ import annotations

import math
import shutil
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tilecast.geometry import place_centre
from tilecast.inputs import InputError, Scan, open_scan
from tilecast_protocol.errors import TilecastError

# A scan of 2 rows and 3 columns: frames of 20 × 30 pixels (not square), 5 pixels of overlap.
SHAPE = (20, 30)
STEP = (15, 25)
CORNERS = [(row * STEP[0], col * STEP[1]) for row in range(2) for col in range(3)]
MOSAIC = np.random.default_rng(5).integers(0, 60_000, (3, 3), "u2").repeat(12, 0).repeat(27, 1)[:35, :80]


def frames_cut(dtype: str = "<u2", corners: list[tuple[int, int]] = CORNERS) -> np.ndarray[Any, Any]:
    """The frames of the scan, cut from one picture, so that neighbours look alike where they overlap."""
    cut = [MOSAIC[row : row + SHAPE[0], col : col + SHAPE[1]] for row, col in corners]
    return np.stack(cut).astype(dtype) if dtype != "|u1" else (np.stack(cut) >> 8).astype(dtype)


def write_npz(folder: Path, frames: np.ndarray[Any, Any]) -> Path:
    np.savez_compressed(folder / "frames.npz", frames=frames)
    return folder / "frames.npz"


def write_table(folder: Path, text: str) -> Path:
    (folder / "positions.csv").write_text(text, "utf-8")
    return folder / "positions.csv"


def corner_table(corners: list[tuple[int, int]] = CORNERS) -> str:
    return "frame,x_px,y_px\n" + "".join(f"{frame},{col},{row}\n" for frame, (row, col) in enumerate(corners))


@pytest.fixture
def scan_folder(tmp_path: Path) -> Path:
    write_npz(tmp_path, frames_cut())
    write_table(tmp_path, corner_table())
    return tmp_path


def placed(scan: Scan) -> list[tuple[int, int]]:
    """Where the daemon will put the frames, from what is sent."""
    affine = scan.affine or ((scan.px_um[0], 0.0), (0.0, scan.px_um[1]))
    return [place_centre(frame.pos_um, affine, scan.shape) for frame in scan.frames()]


# Positions ------------------------------------------------------------------------------------------------------------

PIXELS = st.one_of(
    st.floats(-(2.0**20), 2.0**20),
    st.integers(-(2**20), 2**20).map(lambda twice: twice / 2),
    st.integers(-1000, 1000).map(lambda twice: math.nextafter(twice / 2, math.inf)),
    st.integers(-1000, 1000).map(lambda twice: math.nextafter(twice / 2, -math.inf)),
)
SIZES = st.sampled_from([0.1, 0.65, 1.0, 1.0833, 3.3e-3, 1 / 3, 250.0])


@pytest.fixture(scope="module")
def empty_scans(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int, int], Path]:
    """Scans of so many black frames of a shape; made once each."""
    root = tmp_path_factory.mktemp("scans")

    def make(n_frames: int, height: int, width: int) -> Path:
        path = root / f"{n_frames}_{height}_{width}.npz"
        if not path.exists():
            np.savez(path, frames=np.zeros((n_frames, height, width), "u1"))
        return path

    return make


@given(
    xy=st.lists(st.tuples(PIXELS, PIXELS), min_size=3, max_size=3),
    size=st.tuples(SIZES, SIZES),
    shape=st.sampled_from([(4, 6), (5, 7), (1, 1), (3, 8)]),
    flip_y=st.booleans(),
    anchor=st.sampled_from(["corner", "centre"]),
)
@example(
    xy=[(0.49999999999999994, -0.5), (-0.49999999999999994, 0.5), (1.5, 2.5)],
    size=(0.1, 0.1),
    shape=(5, 7),
    flip_y=False,
    anchor="corner",
)
def test_pixels_come_to_lie_on_the_nearest_pixel_halves_up(
    empty_scans: Callable[[int, int, int], Path], **case: Any
) -> None:
    path = empty_scans(3, *case["shape"])
    table = path.parent / "table.csv"
    table.write_text("x_px,y_px\n" + "".join(f"{x!r},{y!r}\n" for x, y in case["xy"]))
    scan = open_scan(path, table, anchor=case["anchor"], px_um=case["size"], flip_y=case["flip_y"])
    expected = []
    for x, y in case["xy"]:
        # Exactly, in fractions: what a person would say.
        left, top = Fraction(x), Fraction(-y if case["flip_y"] else y)
        if case["anchor"] == "centre":
            left, top = left - Fraction(case["shape"][1], 2), top - Fraction(case["shape"][0], 2)
            left, top = Fraction(float(left)), Fraction(float(top))
        expected.append((math.floor(top + Fraction(1, 2)), math.floor(left + Fraction(1, 2))))
    assert placed(scan) == list(scan.corners) == expected
    affine = scan.affine or ((case["size"][0], 0.0), (0.0, case["size"][1]))
    for frame, (x, y) in zip(scan.frames(), case["xy"], strict=True):
        # What is told as measured is what was measured: to a thousandth of a pixel, where halves needed a push.
        edge = (case["shape"][1] / 2, case["shape"][0] / 2) if case["anchor"] == "corner" else (0.0, 0.0)
        assert frame.pos_um[0] / affine[0][0] == pytest.approx(x + edge[0], abs=1 / 900)
        assert frame.pos_um[1] / affine[1][1] == pytest.approx((-y if case["flip_y"] else y) + edge[1], abs=1 / 900)


@given(
    corners=st.lists(st.tuples(*[st.integers(-(2**20), 2**20)] * 2), min_size=3, max_size=3),
    size=st.tuples(SIZES, SIZES),
    shape=st.sampled_from([(4, 6), (5, 7), (1, 1)]),
    flip_y=st.booleans(),
    anchor=st.sampled_from(["corner", "centre"]),
)
def test_micrometres_of_a_pixel_come_back_to_that_pixel(
    empty_scans: Callable[[int, int, int], Path], **case: Any
) -> None:
    """What a stage would say of frames whose corners lie on whole pixels, however odd their size."""
    path = empty_scans(3, *case["shape"])
    size_x, size_y = case["size"][0], -case["size"][1] if case["flip_y"] else case["size"][1]
    half = (case["shape"][0] / 2, case["shape"][1] / 2) if case["anchor"] == "centre" else (0.0, 0.0)
    table = path.parent / "table.csv"
    rows = [f"{size_x * (col + half[1])!r},{size_y * (row + half[0])!r}\n" for row, col in case["corners"]]
    table.write_text("x_um,y_um\n" + "".join(rows))
    scan = open_scan(path, table, columns="x_um,y_um", anchor=case["anchor"], px_um=case["size"], flip_y=case["flip_y"])
    assert placed(scan) == list(scan.corners) == case["corners"]


def test_a_stage_position_of_the_centre_is_passed_on_as_it_is(scan_folder: Path) -> None:
    write_table(scan_folder, "x_um,y_um\n" + "".join(f"{0.1 * i!r},{-0.3 * i!r}\n" for i in range(6)))
    scan = open_scan(scan_folder, columns="x_um,y_um", anchor="centre", px_um=0.01, flip_y=True)
    assert [frame.pos_um for frame in scan.frames()] == [(0.1 * i, -0.3 * i) for i in range(6)]
    assert scan.affine == ((0.01, 0.0), (0.0, -0.01))


def test_the_extent_is_what_the_mosaic_covers(scan_folder: Path) -> None:
    assert open_scan(scan_folder, px_um=(0.5, 2)).extent_um == ((0, 0), (80 * 0.5, 35 * 2))
    flipped = open_scan(scan_folder, px_um=(0.5, 2), flip_y=True)
    assert flipped.corners[0] == (0, 0)
    assert flipped.extent_um == ((0, -20 * 2), (80 * 0.5, 15 * 2))


# How it was read ------------------------------------------------------------------------------------------------------


def test_corner_pixels_are_taken_if_they_are_there(scan_folder: Path) -> None:
    scan = open_scan(scan_folder)
    assert scan.how == (
        "Read 6 frames of 20×30 uint16 from frames.npz, and x_px,y_px of positions.csv as the upper left corner of "
        "each frame in pixels, y downwards, 1 µm per pixel for want of --px-um."
    )
    assert (scan.shape, scan.dtype, scan.px_um, scan.affine) == (SHAPE, "<u2", (1.0, 1.0), None)
    assert (scan.n_frames, scan.planes, scan.warnings) == (6, (1, 1, 1), ())
    assert list(scan.corners) == placed(scan) == CORNERS
    for frame, cut in zip(scan.frames(), frames_cut(), strict=True):
        np.testing.assert_array_equal(frame.pixels, cut)
        assert frame.tcz == (0, 0, 0)
    assert [frame.frame for frame in scan.frames()] == list(range(6))


def test_the_sentence_names_what_was_chosen(scan_folder: Path) -> None:
    write_table(scan_folder, "frame,Stage X (µm),Stage Y (µm)\n" + "".join(f"{i},{i},{-i}\n" for i in range(6)))
    scan = open_scan(scan_folder, columns="Stage X (µm),Stage Y (µm)", anchor="centre", px_um="0.2,0.25", flip_y=True)
    assert "Stage X (µm),Stage Y (µm) of positions.csv as the centre of each frame in µm, y upwards" in scan.how
    assert scan.how.endswith("0.2×0.25 µm per pixel.")


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("X_PX;Y_PX", None),
        ("a\tb", "a:px,b:px"),
        ("stage x [px],stage y [px]", "stage x [px],stage y [px]"),
        ("x,y", "x:px,y:px"),
        ("x_um,y_um", ["x_um", "y_um"]),
        ("x,y", ("X:um", "Y:um")),
    ],
)
def test_headers_as_people_write_them(scan_folder: Path, header: str, columns: str | None) -> None:
    mark = next(mark for mark in "\t;," if mark in header)
    text = header + "\n" + "".join(f"{col}{mark}{row}\n" for row, col in CORNERS)
    write_table(scan_folder, "\ufeff" + text + "\n")
    assert list(open_scan(scan_folder, columns=columns, anchor="corner", px_um=1).corners) == CORNERS


def test_rows_find_their_frames_by_number(scan_folder: Path) -> None:
    rows = [f"{frame},{col},{row}\n" for frame, (row, col) in enumerate(CORNERS)]
    write_table(scan_folder, "frame,x_px,y_px\n" + "".join(rows[::-1]))
    assert list(open_scan(scan_folder).corners) == CORNERS


def test_rows_find_their_frames_by_file(tmp_path: Path) -> None:
    for frame, cut in enumerate(frames_cut()):
        Image.fromarray(cut).save(tmp_path / f"tile {frame}.png")
    rows = [f"C:\\scan\\tile {frame}.png,{col},{row}\n" for frame, (row, col) in enumerate(CORNERS)]
    write_table(tmp_path, "filename,x_px,y_px\n" + "".join(rows[::-1]))
    scan = open_scan(tmp_path)
    assert list(scan.corners) == CORNERS
    assert "matched by filename" in scan.how


def test_rows_are_taken_in_order_where_nothing_names_frames(scan_folder: Path) -> None:
    write_table(scan_folder, "x_px,y_px\n" + "".join(f"{col},{row}\n" for row, col in CORNERS))
    scan = open_scan(scan_folder)
    assert list(scan.corners) == CORNERS
    assert "row by row in the order of the frames" in scan.how


def test_planes_are_read_from_the_table(scan_folder: Path) -> None:
    rows = [f"{frame},{col},{row},{frame % 2},{frame // 3}\n" for frame, (row, col) in enumerate(CORNERS)]
    write_table(scan_folder, "frame,x_px,y_px,c,z\n" + "".join(rows))
    scan = open_scan(scan_folder)
    assert scan.planes == (1, 2, 2)
    assert [frame.tcz for frame in scan.frames()] == [(0, i % 2, i // 3) for i in range(6)]


def test_a_table_that_is_named_is_taken_before_the_one_beside(scan_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(corner_table([(row + 100, col) for row, col in CORNERS]))
    assert open_scan(scan_folder, other).corners[0] == (100, 0)


# What is refused ------------------------------------------------------------------------------------------------------

BOTH = "frame,x_px,y_px,x_um,y_um\n" + "".join(f"{i},{i},{i},{i},{-i}\n" for i in range(6))
UM = "frame,x_um,y_um\n" + "".join(f"{i},{i},{-i}\n" for i in range(6))


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        (UM, {}, "no columns x_px,y_px, but frame, x_um, y_um: say which"),
        (UM, {"columns": "x_um,y_um", "px_um": 1}, "--anchor corner or --anchor centre"),
        (UM, {"columns": "x_um,y_um", "anchor": "centre"}, "how large is a pixel"),
        (UM, {"columns": "x,y"}, "no column 'x', but frame, x_um, y_um"),
        (UM, {"columns": "x_um"}, "expected two names"),
        (UM, {"columns": "x_um,x_um"}, "expected two names"),
        (UM, {"columns": "frame,x_um"}, "pixels or micrometres"),
        (UM, {"columns": "x_um:foo,y_um:foo"}, "pixels or micrometres"),
        (UM, {"columns": "x_um,y_um", "anchor": "middle"}, "expected corner or centre"),
        (UM, {"columns": "x_um,y_um", "px_um": "0.5,0.5,0.5"}, "--px-um: expected the pixel size"),
        (UM, {"columns": "x_um,y_um", "px_um": 0}, "--px-um: expected the pixel size"),
        (UM, {"columns": "x_um,y_um", "px_um": "nan"}, "--px-um: expected the pixel size"),
        (UM, {"columns": "x_um,y_um", "px_um": "big"}, "--px-um: expected the pixel size"),
        (BOTH, {"flip_y": True}, "which do --anchor and --flip-y speak of"),
        (BOTH, {"anchor": "centre"}, "which do --anchor and --flip-y speak of"),
        (BOTH, {"columns": "x_px,y_um"}, "pixels or micrometres"),
        ("x_px,y_px\n1,2\n", {}, "has 1 positions, .* has 6 frames"),
        (corner_table() + "6,0,0\n", {}, "line 8: frame is '6', and .* has no such frame"),
        (corner_table() + "5,0,0\n", {}, "lines 7 and 8 are both about frame '5'"),
        (corner_table(CORNERS[:4]), {}, "no position for 2 of 6 frames, the first is frame 4"),
        (corner_table().replace("3,", "3.5,"), {}, "frame counts from 0, got '3.5'"),
        (corner_table().replace("50,15", "fifty,15"), {}, "line 7: expected a number in x_px, got 'fifty'"),
        (corner_table().replace("50,15", ",15"), {}, "line 7: expected a number in x_px, got ''"),
        (corner_table().replace("50,15", "inf,15"), {}, "line 7: expected a number in x_px"),
        (corner_table().replace(",", ";").replace("50;15", "50,5;15"), {}, "with a point, not a comma"),
        (corner_table().replace("50,15", "1e300,15"), {}, "frame 5 at .* cannot be placed"),
        (corner_table().replace("50,15", "5e9,15"), {}, "cannot be placed.*beyond"),
        (corner_table() + "1,2\n", {}, "line 8: expected 3 columns"),
        ("frame,x_px,x_px\n", {}, "'x_px' is there twice"),
        ("frame,x_px,y_px\n", {}, "no positions below it"),
        ("", {}, "a line with the names of the columns"),
        ("x_px,y_px,z\n" + "1,2,0.5\n" * 6, {}, "z counts from 0, got '0.5'; give the column another name"),
    ],
)
def test_a_table_that_can_be_read_in_two_ways_or_none_is_refused(
    scan_folder: Path, table: str, options: dict[str, Any], says: str
) -> None:
    write_table(scan_folder, table)
    with pytest.raises(InputError, match=says) as caught:
        open_scan(scan_folder, **options)
    assert isinstance(caught.value, (TilecastError, ValueError))


def test_a_table_there_is_not(scan_folder: Path) -> None:
    with pytest.raises(InputError, match="cannot read the positions"):
        open_scan(scan_folder, scan_folder / "nowhere.csv")
    (scan_folder / "positions.csv").write_bytes(b"x_px,y_px\n\xff\xfe\n")
    with pytest.raises(InputError, match="cannot read the positions"):
        open_scan(scan_folder)


def test_files_that_are_not_in_the_folder(tmp_path: Path) -> None:
    for frame, cut in enumerate(frames_cut()):
        Image.fromarray(cut).save(tmp_path / f"{frame}.png")
    write_table(tmp_path, "file,x_px,y_px\n0.png,0,0\nother.png,1,1\n")
    with pytest.raises(InputError, match=r"line 3: file is 'other\.png'.* no such frame"):
        open_scan(tmp_path)
    write_table(tmp_path, "file,x_px,y_px\n0.png,0,0\n")
    with pytest.raises(InputError, match=r"no position for 5 of 6 frames, the first is 1\.png"):
        open_scan(tmp_path)


# Formats --------------------------------------------------------------------------------------------------------------


def write_tiffs(folder: Path, frames: np.ndarray[Any, Any]) -> None:
    for frame, cut in enumerate(frames):
        tifffile.imwrite(folder / f"tile_{frame}.tif", cut)


def write_pngs(folder: Path, frames: np.ndarray[Any, Any]) -> None:
    for frame, cut in enumerate(frames):
        Image.fromarray(cut).save(folder / f"tile_{frame}.PNG", format="PNG")


def write_stack(folder: Path, frames: np.ndarray[Any, Any]) -> None:
    tifffile.imwrite(folder / "stack.tif", frames, photometric="minisblack")


def write_big_endian(folder: Path, frames: np.ndarray[Any, Any]) -> None:
    tifffile.imwrite(folder / "stack.tif", frames, photometric="minisblack", byteorder=">")


def write_fortran(folder: Path, frames: np.ndarray[Any, Any]) -> None:
    write_npz(folder, np.asfortranarray(frames))


@pytest.mark.parametrize(
    ("write", "dtypes"),
    [
        (write_npz, ["|u1", "<u2", "<f4", ">u2"]),
        (write_fortran, ["|u1", "<u2", "<f4"]),
        (write_tiffs, ["|u1", "<u2", "<f4"]),
        (write_stack, ["|u1", "<u2", "<f4"]),
        (write_big_endian, [">u2", ">f4"]),
        (write_pngs, ["|u1", "<u2"]),
    ],
)
def test_pixels_come_as_they_are(tmp_path: Path, write: Callable[..., object], dtypes: list[str]) -> None:
    for n, dtype in enumerate(dtypes):
        folder = tmp_path / str(n)
        folder.mkdir()
        frames = frames_cut(dtype)
        write(folder, frames)
        write_table(folder, corner_table())
        path = folder / "stack.tif" if (folder / "stack.tif").exists() else folder
        scan = open_scan(path)
        assert scan.dtype == dtype.replace(">", "<")
        got = [frame.pixels for frame in scan.frames()]
        np.testing.assert_array_equal(got, frames)
        assert all(pixels.flags.c_contiguous and pixels.dtype.str == scan.dtype for pixels in got)
        assert [frame.frame for frame in scan.frames()] == list(range(6)), "it can be read again"


def test_files_are_in_the_order_in_which_people_count(tmp_path: Path) -> None:
    values = list(range(12))
    for value in values:
        Image.fromarray(np.full((4, 4), value, "u1")).save(tmp_path / f"Tile{value}.png")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("not a frame")
    write_table(tmp_path, "x_px,y_px\n" + "".join(f"{3 * value},0\n" for value in values))
    assert [frame.pixels[0, 0] for frame in open_scan(tmp_path).frames()] == values


def test_an_npz_is_unpacked_frame_by_frame(tmp_path: Path) -> None:
    frames = np.zeros((60, 512, 1024), "u2")
    frames[:, 0, 0] = range(60)
    write_npz(tmp_path, frames)
    write_table(tmp_path, "x_px,y_px\n" + "".join(f"{900 * frame},0\n" for frame in range(60)))
    del frames
    tracemalloc.start()
    try:
        scan = open_scan(tmp_path)
        assert [int(frame.pixels[0, 0]) for frame in scan.frames()] == list(range(60))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20, "of 60 MiB"
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")  # which is what one of the cases is about
@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((6, 4, 4, 3), "u1"), "3 dimensions"),
        (np.zeros((6, 4, 4), "f8"), "type float64; expected uint8, uint16 or float32"),
        (np.zeros((6, 4, 4), "i2"), "type int16"),
        (np.zeros((6, 4, 4), bool), "type bool"),
        (np.zeros((0, 4, 4), "u1"), "holds no frames"),
        (np.array([[[None]]]), "type object"),
        (np.zeros((2, 2, 2), [("Ж", "u1")]), r"format \(3, 0\)"),
    ],
)
def test_arrays_that_the_protocol_cannot_carry(tmp_path: Path, array: np.ndarray[Any, Any], says: str) -> None:
    write_npz(tmp_path, array)
    write_table(tmp_path, corner_table())
    with pytest.raises(InputError, match=says):
        open_scan(tmp_path)


def test_files_that_cannot_be_read(tmp_path: Path, scan_folder: Path) -> None:
    cases: list[tuple[str, bytes, str]] = [
        ("a.npz", b"no zip", "a.npz cannot be read"),
        ("b.tif", b"no tiff", "b.tif cannot be read"),
        ("c.csv", b"", "expected a folder of TIFF or PNG files"),
        ("d.png", b"", "is one frame; give the folder"),
    ]
    for name, data, says in cases:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=says):
            open_scan(tmp_path / name)
    with pytest.raises(InputError, match="no file or folder"):
        open_scan(tmp_path / "nothing")
    np.savez(tmp_path / "e.npz", pictures=np.zeros(3))
    with pytest.raises(InputError, match="array named `frames`, found pictures"):
        open_scan(tmp_path / "e.npz")
    data = bytearray((scan_folder / "frames.npz").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "frames.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"frames\.npz cannot be read"):
        list(open_scan(tmp_path).frames())


def test_folders_that_are_no_scan(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither TIFF nor PNG"):
        open_scan(tmp_path)
    write_pngs(tmp_path, frames_cut())
    with pytest.raises(InputError, match=r"nothing tells where the frames .* lie, .*add --positions FILE"):
        open_scan(tmp_path)
    with pytest.raises(InputError, match="--columns names columns of a table, and none lies beside"):
        open_scan(tmp_path, columns="x_px,y_px")
    write_tiffs(tmp_path, frames_cut())
    with pytest.raises(InputError, match="6 TIFF and 6 PNG files: which"):
        open_scan(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: tifffile.imwrite(path, np.zeros((4, 4), "u2")), "4×4 <u2, the first has 20×30 <u2"),
        (lambda path: tifffile.imwrite(path, np.zeros((20, 30), "u1")), r"20×30 \|u1, the first has 20×30 <u2"),
        (lambda path: tifffile.imwrite(path, np.zeros((2, 20, 30), "u2"), photometric="minisblack"), "holds 2 pages"),
        (lambda path: tifffile.imwrite(path, np.zeros((20, 30, 3), "u1"), photometric="rgb"), "one grey plane"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "tile_4.tif cannot be read"),
        (lambda path: Image.fromarray(frames_cut()[0]).save(path, compression="tiff_lzw"), "COMPRESSION.LZW"),
    ],
)
def test_one_file_that_is_unlike_the_others_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], says: str
) -> None:
    write_tiffs(tmp_path, frames_cut())
    write_table(tmp_path, corner_table([(40 * frame, 0) for frame in range(6)]))
    spoil(tmp_path / "tile_4.tif")
    if "LZW" in says and _has_imagecodecs():
        pytest.skip("imagecodecs is installed: it reads this")
    scan = open_scan(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        list(scan.frames())
    if "LZW" in says:
        assert "pip install 'tilecast[codecs]'" in str(caught.value)


def _has_imagecodecs() -> bool:
    from importlib.util import find_spec

    return find_spec("imagecodecs") is not None


def test_colour_pictures_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    write_table(tmp_path, "x_px,y_px\n0,0\n")
    with pytest.raises(InputError, match="mode RGB; expected 8 or 16 bit grey"):
        open_scan(tmp_path)


# OME-TIFF -------------------------------------------------------------------------------------------------------------


def write_ome(path: Path, frames: np.ndarray[Any, Any], unit: str = "µm", **changes: Any) -> None:
    """Each tile an image of its own, with two channels; at 0.5 × 0.25 µm per pixel, or as `changes` say."""
    with tifffile.TiffWriter(path, ome=True) as tiff:
        for cut, (row, col) in zip(frames, CORNERS, strict=True):
            scale = {"µm": 1.0, "mm": 1e-3}.get(unit, 1.0)
            plane = {
                "PositionX": [scale * 0.5 * (col + SHAPE[1] / 2)] * 2,
                "PositionY": [scale * 0.25 * (row + SHAPE[0] / 2)] * 2,
                "PositionXUnit": [unit] * 2,
                "PositionYUnit": [unit] * 2,
            }
            metadata: dict[str, Any] = {
                "axes": "CYX",
                "PhysicalSizeX": 500,
                "PhysicalSizeXUnit": "nm",
                "PhysicalSizeY": 0.25,
                "PhysicalSizeYUnit": "µm",
                "Channel": {"Name": ["DAPI", "GFP"]},
                "Plane": plane,
            } | changes
            metadata = {key: value for key, value in metadata.items() if value is not None}
            tiff.write(np.stack([cut, cut + 1]), metadata=metadata, photometric="minisblack")


@pytest.mark.parametrize("unit", ["µm", "mm"])
def test_an_ome_tiff_tells_everything_itself(tmp_path: Path, unit: str) -> None:
    write_ome(tmp_path / "scan.ome.tif", frames_cut(), unit)
    scan = open_scan(tmp_path / "scan.ome.tif")
    assert "positions in its OME-XML as the centre of each frame in µm, y downwards" in scan.how
    assert "0.5×0.25 µm per pixel as its OME-XML says" in scan.how
    assert (scan.n_frames, scan.px_um, scan.planes) == (12, (0.5, 0.25), (1, 2, 1))
    assert scan.channels == ({"name": "DAPI"}, {"name": "GFP"})
    frames = list(scan.frames())
    assert [frame.tcz for frame in frames] == [(0, 0, 0), (0, 1, 0)] * 6
    assert placed(scan) == [corner for corner in CORNERS for _ in range(2)]
    np.testing.assert_array_equal([frame.pixels for frame in frames[1::2]], frames_cut() + 1)
    assert scan.warnings == ()


def test_options_are_stronger_than_ome_xml(tmp_path: Path) -> None:
    path = tmp_path / "scan.ome.tif"
    write_ome(path, frames_cut())
    scan = open_scan(path, anchor="corner", px_um="0.5,0.25")
    assert scan.corners[0] == (10, 15)
    write_table(tmp_path, "x_px,y_px\n" + "".join(f"{col},{row}\n" * 2 for row, col in CORNERS))
    scan = open_scan(path)
    assert scan.corners == tuple(corner for corner in CORNERS for _ in range(2))
    assert "x_px,y_px of positions.csv" in scan.how
    assert scan.px_um == (0.5, 0.25)
    assert [frame.tcz for frame in scan.frames()] == [(0, 0, 0), (0, 1, 0)] * 6


@pytest.mark.parametrize(
    ("unit", "changes", "says"),
    [
        ("reference frame", {}, "PositionX is in the unit 'reference frame', which is no length"),
        ("µm", {"Plane": None}, "it tells no position for some planes"),
        ("µm", {"Plane": {"PositionX": [1.0, 2.0], "PositionXUnit": ["µm", "µm"]}}, "it has no PositionY"),
        ("µm", {"PhysicalSizeX": None, "PhysicalSizeXUnit": None}, "how large is a pixel"),
    ],
)
def test_an_ome_tiff_that_does_not_tell_is_refused(
    tmp_path: Path, unit: str, changes: dict[str, Any], says: str
) -> None:
    write_ome(tmp_path / "scan.ome.tif", frames_cut(), unit, **changes)
    with pytest.raises(InputError, match=says):
        open_scan(tmp_path / "scan.ome.tif")


def test_an_ome_tiff_in_several_files(tmp_path: Path) -> None:
    """One image and one file for each position, as acquisition programs write them."""
    images = "".join(
        f'<Image ID="Image:{i}"><Pixels ID="Pixels:{i}" DimensionOrder="XYCZT" Type="uint16" SizeX="{SHAPE[1]}" '
        f'SizeY="{SHAPE[0]}" SizeC="1" SizeZ="1" SizeT="1" PhysicalSizeX="1" PhysicalSizeY="1">'
        f'<Channel ID="Channel:{i}:0" SamplesPerPixel="1" EmissionWavelength="509"/>'
        f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="tile_{i}.ome.tif">urn:uuid:{i}</UUID></TiffData>'
        f'<Plane TheC="0" TheZ="0" TheT="0" PositionX="{col}" PositionXUnit="um" PositionY="{row}" PositionYUnit="um"/>'
        "</Pixels></Image>"
        for i, (row, col) in enumerate(CORNERS)
    )
    for i, cut in enumerate(frames_cut()):
        xml = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{i}">{images}</OME>'
        )
        tifffile.imwrite(tmp_path / f"tile_{i}.ome.tif", cut, description=xml, metadata=None)
    scan = open_scan(tmp_path / "tile_0.ome.tif", anchor="corner")
    assert list(scan.corners) == CORNERS
    np.testing.assert_array_equal([frame.pixels for frame in scan.frames()], frames_cut())
    assert scan.channels == ({"emission_nm": 509.0},)
    (tmp_path / "tile_3.ome.tif").unlink()
    with pytest.raises(InputError, match=r"tile_0\.ome\.tif"):
        list(open_scan(tmp_path / "tile_0.ome.tif", anchor="corner").frames())


def test_planes_of_an_ome_tiff_in_another_order(tmp_path: Path) -> None:
    stack = np.arange(2 * 3 * 2, dtype="u1").reshape(2, 3, 2, 1, 1).repeat(4, 3).repeat(4, 4)
    n = stack.shape[0] * stack.shape[1] * stack.shape[2]
    plane = {
        "PositionX": [0.0] * n,
        "PositionY": [0.0] * n,
        "PositionXUnit": ["µm"] * n,
        "PositionYUnit": ["µm"] * n,
    }
    tifffile.imwrite(
        tmp_path / "a.ome.tif", stack, photometric="minisblack", metadata={"axes": "ZTCYX", "Plane": plane}
    )
    scan = open_scan(tmp_path / "a.ome.tif", px_um=1)
    assert scan.planes == (3, 2, 2)
    for frame in scan.frames():
        t, c, z = frame.tcz
        assert frame.pixels[0, 0] == stack[z, t, c, 0, 0]


# Does it make sense? --------------------------------------------------------------------------------------------------


def test_frames_that_overlap_no_other(scan_folder: Path) -> None:
    assert open_scan(scan_folder).warnings == ()
    write_table(scan_folder, corner_table([*CORNERS[:5], (15, 81)]))
    (warning,) = open_scan(scan_folder).warnings
    assert warning.startswith("1 of 6 frames overlap no other (the first is frame 5): look at --px-um")


def test_a_scale_that_is_far_off(scan_folder: Path) -> None:
    table = "x_um,y_um\n" + "".join(f"{0.5 * col},{0.5 * row}\n" for row, col in CORNERS)
    write_table(scan_folder, table)
    for px_um, says in ((0.05, "6 of 6 frames overlap no other"), (50, "All 6 frames of plane (0, 0, 0) lie within a")):
        (warning,) = open_scan(scan_folder, columns="x_um,y_um", anchor="corner", px_um=px_um).warnings
        assert warning.startswith(says)
    assert open_scan(scan_folder, columns="x_um,y_um", anchor="corner", px_um=0.5).warnings == ()


def test_frames_of_other_planes_are_no_neighbours(scan_folder: Path) -> None:
    write_table(scan_folder, "x_px,y_px,t\n" + "".join(f"0,0,{frame}\n" for frame in range(6)))
    assert open_scan(scan_folder).warnings == ()


def test_a_parked_stage_is_looked_at_in_bounded_time(empty_scans: Callable[[int, int, int], Path]) -> None:
    path = empty_scans(20_000, 4, 6)
    table = path.parent / "parked.csv"
    table.write_text("x_px,y_px\n" + "0,0\n" * 19_999 + "5,0\n")
    assert open_scan(path, table).warnings == ()


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "shape", "extent"),
    [
        ("lscm_tensile_ref", (1024, 1024), (3789, 3797)),
        ("mist_5x5", (183, 245), (888, 1185)),
        ("czi_mosaic_test", (624, 924), (624, 1756)),
        ("cut_lscm_int_6x6", (512, 512), (2687, 2687)),
    ],
)
def test_the_real_scans(shared_data: Path, name: str, shape: tuple[int, int], extent: tuple[int, int]) -> None:
    folder = shared_data / "scans" / name
    scan = open_scan(folder)
    assert scan.warnings == ()
    assert scan.shape == shape
    assert "x_px,y_px of positions.csv as the upper left corner" in scan.how
    rows, cols = zip(*scan.corners, strict=True)
    assert (max(rows) - min(rows) + shape[0], max(cols) - min(cols) + shape[1]) == extent
    table = np.genfromtxt(folder / "positions.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    nearest = np.floor(np.stack([table["y_px"], table["x_px"]], 1) + 0.5)
    assert scan.corners == tuple(map(tuple, nearest.astype(int).tolist()))
    assert placed(scan) == list(scan.corners)
    with np.load(folder / "frames.npz") as archive:
        np.testing.assert_array_equal([frame.pixels for frame in scan.frames()], archive["frames"])


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["lscm_tensile_ref", "mist_5x5", "cut_lscm_int_6x6"])
def test_a_real_scan_with_y_the_wrong_way_round_is_noticed(shared_data: Path, name: str) -> None:
    folder = shared_data / "scans" / name
    (warning,) = open_scan(folder, columns="x_px,y_px", flip_y=True).warnings
    assert "do not match as y runs now" in warning
    assert warning.endswith("leave out --flip-y.")


@pytest.mark.shared_data
def test_a_real_scan_with_x_the_wrong_way_round_is_noticed(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "scans" / "lscm_tensile_ref"
    shutil.copy(folder / "frames.npz", tmp_path)
    corners = open_scan(folder).corners
    write_table(tmp_path, corner_table([(row, -col) for row, col in corners]))
    (warning,) = open_scan(tmp_path).warnings
    assert "do not match as x runs now" in warning
    assert "change the sign of the x column" in warning


@pytest.mark.shared_data
def test_stage_positions_of_the_real_scans(shared_data: Path) -> None:
    """cut_lscm counts y upwards, and its stage is a few pixels off; the other's µm are its pixels."""
    cut = shared_data / "scans" / "cut_lscm_int_6x6"
    stage = {"columns": "x_um,y_um", "anchor": "corner", "px_um": 0.5}
    scan = open_scan(cut, **stage, flip_y=True)
    assert scan.warnings == ()
    assert scan.affine == ((0.5, 0.0), (0.0, -0.5))
    off = np.abs(np.array(scan.corners) - np.array(open_scan(cut).corners))
    assert off.max() <= 6
    (warning,) = open_scan(cut, **stage).warnings
    assert warning.endswith("try --flip-y.")
    czi = shared_data / "scans" / "czi_mosaic_test"
    in_um = open_scan(czi, columns="x_um,y_um", anchor="corner", px_um=901.3333 / 832)
    assert in_um.corners == open_scan(czi).corners == ((0, 0), (0, 832))
