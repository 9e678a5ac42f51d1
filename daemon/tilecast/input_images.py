"""The frames of somebody's own scan: a folder of TIFF or PNG files, an OME-TIFF, an `.npz`, what PYME recorded.

What `tilecast send` reads, and, file by file (`open_image`), the plugin that watches folders. A source knows how many
frames there are and gives them one at a time, so that a scan larger than memory can be sent; an `.npz` is unpacked as
it is read. It gives pixels as they are, row-major, of a type that the protocol has; whatever would need a decision (a
colour, a double) is refused, with what to do about it. Where a frame lies is the business of `tilecast.inputs`; what
the files themselves say about that (OME-XML) is handed on as `SourceInfo`.

    source = open_images(Path("scan.ome.tif"))
    for pixels in source.read(range(source.n_frames)):
        ...
"""

from __future__ import annotations

import itertools
import re
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tilecast_protocol import pzf
from tilecast_protocol.errors import TilecastError

WIRE_DTYPES = {"u1": "|u1", "u2": "<u2", "f4": "<f4"}
"""Pixel types of the protocol, by kind and size."""

TIFF_SUFFIXES = frozenset({".tif", ".tiff", ".btf"})
PNG_SUFFIXES = frozenset({".png"})
NPY_SUFFIXES = frozenset({".npy"})
PZF_SUFFIXES = frozenset({".pzf"})
IMAGE_SUFFIXES = TIFF_SUFFIXES | PNG_SUFFIXES | NPY_SUFFIXES | PZF_SUFFIXES
"""Files that `open_image` reads."""

UM_PER_UNIT = {
    "m": 1e6,
    "cm": 1e4,
    "mm": 1e3,
    "µm": 1.0,  # micro sign
    "μm": 1.0,  # Greek letter mu
    "um": 1.0,
    "nm": 1e-3,
    "Å": 1e-4,
    "pm": 1e-6,
}


class InputError(TilecastError, ValueError):
    """A scan cannot be read, or not in one way only; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What image files say of themselves beside the pixels.

    Attributes
    ----------
    names : tuple of str
        File name of each frame; empty if the frames are not files.
    tcz : tuple of (t, c, z)
        Plane of each frame; empty if all are of the one plane (0, 0, 0).
    positions_um : tuple of (x, y) or None
        Stage position of each frame, µm.
    px_um : (x, y) or None
        Pixel size, µm.
    channels : tuple of dict
        Entries for the key `channels` of `start`.
    without_positions : str
        Why there are no positions, for the person who looked for them.
    positions_said, px_um_said : str
        What to call the place that tells positions, and that which tells the pixel size.
    positions_anchor : 'corner' or 'centre'
        What of a frame the positions are of.
    """

    names: tuple[str, ...] = ()
    tcz: tuple[tuple[int, int, int], ...] = ()
    positions_um: tuple[tuple[float, float], ...] | None = None
    px_um: tuple[float, float] | None = None
    channels: tuple[dict[str, Any], ...] = ()
    without_positions: str = ""
    positions_said: str = "positions in its OME-XML"
    px_um_said: str = "its OME-XML"
    positions_anchor: Literal["corner", "centre"] = "centre"


class ImageSource(ABC):
    """Frames of one shape and type, in order.

    Attributes
    ----------
    path : Path
        What was opened.
    n_frames : int
    shape : (height, width)
    dtype : str
        As on the wire.
    info : SourceInfo
    sequential : bool
        Reading a late frame means reading all before it.
    """

    sequential = False

    def __init__(self, path: Path, n_frames: int, info: SourceInfo) -> None:
        if not n_frames:
            raise InputError(f"{path} holds no frames")
        self.path = path
        self.n_frames = n_frames
        self.info = info
        first = next(iter(self._read([0])))
        self.shape: tuple[int, int] = (first.shape[0], first.shape[1])
        self.dtype = WIRE_DTYPES[first.dtype.str[1:]]

    @abstractmethod
    def _read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        """The frames asked for, in ascending order, each through `_plain`."""

    def read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        """The pixels of some frames.

        Parameters
        ----------
        frames : iterable of int
            In ascending order.

        Yields
        ------
        ndarray, (height, width), C-contiguous, u1, u2 or f4
            Belongs to the caller.

        Raises
        ------
        InputError
            A frame cannot be read, or is not like the first.
        """
        asked, wanted = itertools.tee(frames)
        for frame, pixels in zip(asked, self._read(wanted), strict=True):
            if pixels.shape != self.shape or WIRE_DTYPES[pixels.dtype.str[1:]] != self.dtype:
                raise InputError(
                    f"frame {frame} of {self.path} has {_described(pixels)}, the first has {self.shape[0]}×"
                    f"{self.shape[1]} {self.dtype}: all frames of a run are alike; send the others by themselves"
                )
            yield pixels


def open_images(path: Path) -> ImageSource:
    """Open whatever scan lies at a path.

    Parameters
    ----------
    path : Path
        A folder (of TIFF or of PNG files, with a `frames.npz`, or a series or a pyramid of PYME), a TIFF or OME-TIFF,
        or an `.npz` with the array `frames`.

    Raises
    ------
    InputError
        It is none of these, or holds something that the protocol has no type for.
    """
    if path.is_dir():
        if (path / "frames.npz").is_file():
            return NpzImages(path / "frames.npz")
        return _open_folder(path)
    if not path.is_file():
        raise InputError(f"there is no file or folder {path}")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return NpzImages(path)
    if suffix in TIFF_SUFFIXES:
        return TiffImages(path)
    if suffix in PNG_SUFFIXES:
        raise InputError(f"{path} is one frame; give the folder that holds the frames of the scan")
    raise InputError(f"{path}: expected a folder of TIFF or PNG files, a .tif (OME-TIFF) or an .npz, got {suffix!r}")


def open_image(path: Path) -> ImageSource:
    """Open one image file, and read all of it: what ends too early is refused.

    Parameters
    ----------
    path : Path
        A TIFF with one page, an OME-TIFF with any number of planes, a PNG, an NPY or a PZF.

    Returns
    -------
    ImageSource
        One that holds a single plane has its pixels in memory; the planes of a larger OME-TIFF are read again.

    Raises
    ------
    InputError
        It is none of these, is not complete, or holds something that the protocol has no type for.
    """
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: expected {', '.join(sorted(IMAGE_SUFFIXES))}, got {suffix!r}")
    if suffix not in TIFF_SUFFIXES:
        return _OneImage(path, _read_file(path), SourceInfo(names=(path.name,)))
    with _told_of(path), tifffile.TiffFile(path) as tiff:
        _check_complete(tiff, path)
        is_ome = tiff.is_ome
        if is_ome:
            _check_alone(tiff.ome_metadata or "", path)
    if not is_ome:
        return _OneImage(path, _read_file(path), SourceInfo(names=(path.name,), without_positions="it has no OME-XML"))
    source = TiffImages(path)
    if source.n_frames == 1:
        return _OneImage(path, next(iter(source.read([0]))), source.info)
    for _ in source.read(range(source.n_frames)):
        pass
    return source


def frame_of(source: ImageSource, frame: int) -> ImageSource:
    """One frame of a source, and what is known of it, as a source by itself; raises InputError if it cannot be read."""
    info = source.info
    only = replace(
        info,
        names=info.names[frame : frame + 1],
        tcz=info.tcz[frame : frame + 1],
        positions_um=None if info.positions_um is None else (info.positions_um[frame],),
    )
    path = source.path / info.names[frame] if info.names else source.path
    return _OneImage(path, next(iter(source.read([frame]))), only)


def _check_complete(tiff: tifffile.TiffFile, path: Path) -> None:
    """Refuse a TIFF of which pixels have not been written: what is not there would be read as zeros."""
    nbytes = tiff.filehandle.size
    for number, page in enumerate(tiff.pages):
        page = page.aspage()
        ends = [begin + count for begin, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if not ends or 0 in page.dataoffsets or 0 in page.databytecounts or max(ends) > nbytes:
            raise InputError(
                f"page {number} of {path} is not complete: pixels are missing; was the writer interrupted?"
            )


def _check_alone(xml: str, path: Path) -> None:
    """Refuse one OME-TIFF of a set that describes each other's planes."""
    names = {element.get("FileName") for element in ElementTree.fromstring(xml).iterfind(".//{*}TiffData/{*}UUID")}
    others = sorted(name for name in names - {None, path.name} if name is not None)
    if others:
        raise InputError(
            f"{path} is one of a set of files ({others[0]}, …), whose planes are described in each of them: send it "
            "with `tilecast send` when all are there, or save a file for each position"
        )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names as people count: tile_2 before tile_10."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece.casefold()) for piece in pieces]


def _open_folder(folder: Path) -> ImageSource:
    from tilecast.input_pyme import is_pyme, open_pyme

    if is_pyme(folder) and not any(_files_in(folder, TIFF_SUFFIXES)):
        return open_pyme(folder)
    tiffs, pngs = _files_in(folder, TIFF_SUFFIXES), _files_in(folder, PNG_SUFFIXES)
    if tiffs and pngs:
        raise InputError(
            f"{folder} holds {len(tiffs)} TIFF and {len(pngs)} PNG files: which are the frames? Move the others away"
        )
    if not tiffs and not pngs:
        raise InputError(
            f"{folder} holds neither TIFF nor PNG files, nor a frames.npz, nor a series or pyramid of PYME"
        )
    return FileImages(folder, tiffs or pngs)


def _files_in(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files of some kind, in the natural order of their names; hidden ones are none."""
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.suffix.lower() in suffixes]
    return sorted(found, key=lambda path: natural_key(path.name))


class FileImages(ImageSource):
    """One frame per file, in the natural order of their names."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self._files = files
        why = "a folder of image files does not tell positions"
        super().__init__(
            folder, len(files), SourceInfo(names=tuple(file.name for file in files), without_positions=why)
        )

    def _read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        for frame in frames:
            file = self._files[frame]
            yield _read_file(file)


class _OneImage(ImageSource):
    """A file with one frame, which is in memory."""

    def __init__(self, path: Path, pixels: NDArray[Any], info: SourceInfo) -> None:
        self._pixels = pixels
        super().__init__(path, 1, info)

    def _read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        for _ in frames:
            yield self._pixels


def _read_file(file: Path) -> NDArray[Any]:
    """The one frame in a file."""
    suffix = file.suffix.lower()
    with _told_of(file):
        if suffix in PNG_SUFFIXES:
            pixels = _read_png(file)
        elif suffix in NPY_SUFFIXES:
            pixels = np.load(file, allow_pickle=False)
        elif suffix in PZF_SUFFIXES:
            pixels = pzf.decode_image(file.read_bytes())
        else:
            pixels = _read_single_tiff(file)
    return _plain(pixels, str(file))


def _read_png(file: Path) -> NDArray[Any]:
    with Image.open(file) as image:
        if image.mode not in ("L", "I;16"):
            raise InputError(
                f"{file} is a PNG of mode {image.mode}; expected 8 or 16 bit grey: save one channel of it as grey"
            )
        return np.array(image)


def _read_single_tiff(file: Path) -> NDArray[Any]:
    with tifffile.TiffFile(file) as tiff:
        if len(tiff.pages) != 1:
            raise InputError(
                f"{file} holds {len(tiff.pages)} pages, and the folder several files; expected one frame per file: "
                "send the file by itself"
            )
        pixels: NDArray[Any] = tiff.pages[0].asarray()
        return pixels


class NpzImages(ImageSource):
    """The array `frames` (n × rows × columns) of an `.npz`, unpacked frame by frame."""

    sequential = True

    def __init__(self, path: Path) -> None:
        with _told_of(path), zipfile.ZipFile(path) as archive:
            if "frames.npy" not in archive.namelist():
                found = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
                raise InputError(f"{path}: expected an array named `frames`, found {found}")
            with archive.open("frames.npy") as file:
                shape, self._fortran, self._stored = _read_npy_header(file)
        if len(shape) != 3:
            raise InputError(f"{path}: expected `frames` with 3 dimensions (frame, row, column), got shape {shape}")
        _check_dtype(self._stored, f"`frames` of {path}")
        self._frame_shape = shape[1:]
        super().__init__(path, shape[0], SourceInfo(without_positions="an .npz does not tell positions"))

    def _read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        where = f"`frames` of {self.path}"
        with _told_of(self.path):
            if self._fortran:
                # The first pixels of all frames lie side by side: nothing can be read before everything is.
                with np.load(self.path, allow_pickle=False) as archive:
                    array = archive["frames"]
                yield from (_plain(array[frame], where) for frame in frames)
                return
            frame_bytes = int(np.prod(self._frame_shape)) * self._stored.itemsize
            with zipfile.ZipFile(self.path) as archive_file, archive_file.open("frames.npy") as file:
                _read_npy_header(file)
                at = 0
                for frame in frames:
                    while at < frame:
                        file.read(frame_bytes)
                        at += 1
                    data = file.read(frame_bytes)
                    at += 1
                    if len(data) < frame_bytes:
                        raise InputError(f"{self.path} ends in the middle of frame {frame}; copy it again")
                    yield _plain(np.frombuffer(bytearray(data), self._stored).reshape(self._frame_shape), where)


def _read_npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type of the array that follows in an open `.npy`."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise InputError(f"`frames` is in .npy format {version}, expected (1, 0) or (2, 0): save plain numbers")


class TiffImages(ImageSource):
    """The planes of one TIFF file, or of an OME-TIFF with what its OME-XML says; one series after the other."""

    def __init__(self, path: Path) -> None:
        self._planes: list[tuple[int, int]] = []  # (series, page) of each frame
        with _told_of(path), tifffile.TiffFile(path) as tiff:
            info = self._read_ome(tiff, path) if tiff.is_ome else self._read_pages(tiff)
        super().__init__(path, len(self._planes), info)

    def _read_pages(self, tiff: tifffile.TiffFile) -> SourceInfo:
        self._planes = [(s, page) for s, series in enumerate(tiff.series) for page in range(len(series.pages))]
        return SourceInfo(without_positions="it is not an OME-TIFF")

    def _read_ome(self, tiff: tifffile.TiffFile, path: Path) -> SourceInfo:
        images = _read_ome_images(tiff.ome_metadata or "")
        if len(images) != len(tiff.series):
            raise InputError(
                f"{path}: its OME-XML describes {len(images)} images, the file holds {len(tiff.series)}; "
                "expected them to agree: export it again, or send the planes as a folder of TIFF files"
            )
        tcz: list[tuple[int, int, int]] = []
        positions: list[tuple[float, float] | str] = []
        for s, (image, series) in enumerate(zip(images, tiff.series, strict=True)):
            axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
            sizes = dict(zip(axes, shape, strict=True))
            odd = {axis: size for axis, size in sizes.items() if axis not in "TCZYX" and size > 1}
            if odd:
                raise InputError(
                    f"{path}: image {s} has axes {odd} beside T, C, Z, Y, X; expected single grey planes: "
                    "export one channel"
                )
            leading = [axis for axis in axes if axis in "TCZ"]
            for page, index in enumerate(np.ndindex(*(sizes[axis] for axis in leading))):
                at = dict(zip(leading, index, strict=True))
                plane = (at.get("T", 0), at.get("C", 0), at.get("Z", 0))
                self._planes.append((s, page))
                tcz.append(plane)
                positions.append(image.positions_um.get(plane, "it tells no position for some planes"))
        why = next((position for position in positions if isinstance(position, str)), "")
        known = tuple(position for position in positions if not isinstance(position, str))
        sizes_um = {image.px_um for image in images}
        return SourceInfo(
            tcz=tuple(tcz),
            positions_um=None if why else known,
            px_um=sizes_um.pop() if len(sizes_um) == 1 else None,
            channels=images[0].channels,
            without_positions=why,
        )

    def _read(self, frames: Iterable[int]) -> Iterator[NDArray[Any]]:
        with _told_of(self.path), tifffile.TiffFile(self.path) as tiff:
            for frame in frames:
                s, page_number = self._planes[frame]
                page = tiff.series[s].pages[page_number]
                if page is None:
                    raise InputError(
                        f"{self.path}: frame {frame} is described but not there; is a file of the set missing?"
                    )
                file = page.parent.filehandle
                in_another_file = file.closed
                if in_another_file:
                    file.open()
                try:
                    pixels = page.asarray()
                finally:
                    if in_another_file:
                        file.close()
                yield _plain(pixels, f"frame {frame} of {self.path}")


@dataclass
class _OmeImage:
    """One Image of OME-XML: positions by plane (t, c, z), or why there is none."""

    positions_um: dict[tuple[int, int, int], tuple[float, float] | str] = field(default_factory=dict)
    px_um: tuple[float, float] | None = None
    channels: tuple[dict[str, Any], ...] = ()


def _read_ome_images(xml: str) -> list[_OmeImage]:
    """The images that OME-XML describes, in order."""
    root = ElementTree.fromstring(xml)
    images = []
    for pixels in root.iterfind("{*}Image/{*}Pixels"):
        size = [_ome_length(pixels, f"PhysicalSize{axis}", "µm") for axis in "XY"]
        positions: dict[tuple[int, int, int], tuple[float, float] | str] = {}
        for plane in pixels.iterfind("{*}Plane"):
            key = tuple(int(plane.get(f"The{axis}", "0")) for axis in "TCZ")
            at = [_ome_length(plane, f"Position{axis}", "reference frame") for axis in "XY"]
            x, y = at
            if isinstance(x, float) and isinstance(y, float):
                positions[key[0], key[1], key[2]] = (x, y)
            else:
                positions[key[0], key[1], key[2]] = next(said for said in at if isinstance(said, str))
        x, y = size
        channels = [_ome_channel(channel) for channel in pixels.iterfind("{*}Channel")]
        images.append(
            _OmeImage(
                positions,
                (x, y) if isinstance(x, float) and isinstance(y, float) else None,
                tuple(channels) if any(channels) else (),
            )
        )
    return images


def _ome_length(element: ElementTree.Element, name: str, default_unit: str) -> float | str:
    """A length in µm, or why there is none."""
    text, unit = element.get(name), element.get(f"{name}Unit", default_unit)
    if text is None:
        return f"it has no {name}"
    if unit not in UM_PER_UNIT:
        return f"its {name} is in the unit {unit!r}, which is no length"
    return float(text) * UM_PER_UNIT[unit]


def _ome_channel(channel: ElementTree.Element) -> dict[str, Any]:
    described: dict[str, Any] = {}
    if channel.get("Name"):
        described["name"] = channel.get("Name")
    emission = channel.get("EmissionWavelength")
    if emission is not None and channel.get("EmissionWavelengthUnit", "nm") == "nm":
        described["emission_nm"] = float(emission)
    return described


def _plain(pixels: NDArray[Any], where: str) -> NDArray[Any]:
    """A frame as the protocol carries it; refuses what would need a decision."""
    if pixels.ndim != 2:
        raise InputError(
            f"{where} has shape {pixels.shape}; expected one grey plane (rows, columns): save each channel as a frame"
        )
    _check_dtype(pixels.dtype, where)
    return np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<"))


def _check_dtype(dtype: np.dtype[Any], where: str) -> None:
    if dtype.str[1:] not in WIRE_DTYPES:
        raise InputError(
            f"{where} has pixels of type {dtype}; expected uint8, uint16 or float32: convert it, with the range that "
            "you mean"
        )


def _described(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[0]}×{pixels.shape[1]} {pixels.dtype.str}"


# Pillow reports a broken PNG, and ElementTree broken XML, as a SyntaxError; tifffile lets struct.error through where a
# file ends within its head.
_UNREADABLE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    SyntaxError,
    tifffile.TiffFileError,
    struct.error,
)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Turn what the libraries say of a bad file into a sentence with its name."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError) as cause:
        if "imagecodecs" in str(cause):
            compression = str(cause.args[0]).split(" requires")[0]
            raise InputError(
                f"{path} is compressed ({compression}), which needs another package: pip install 'tilecast[codecs]'"
            ) from cause
        raise InputError(f"{path} cannot be read: {cause}") from cause
    except _UNREADABLE as cause:
        raise InputError(f"{path} cannot be read: {cause}") from cause
