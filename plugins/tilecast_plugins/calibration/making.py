"""What `tilecast calibrate` does: reads frames of a run or a folder, and writes images, pictures and transforms."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import tifffile
from numpy.typing import NDArray

from tilecast.inputs import open_images, open_scan
from tilecast.reading import RecordedFrames, open_folder
from tilecast_plugins.calibration.corrections import frozen_parts
from tilecast_plugins.calibration.finding import read_image
from tilecast_plugins.calibration.illumination import Estimate, EstimateError, estimate
from tilecast_plugins.calibration.picture import Panel, draw
from tilecast_plugins.calibration.splitting import RegistrationError, register
from tilecast_plugins.splitter.resampling import Grid
from tilecast_plugins.splitter.transform import Transform, TransformError, halves_of

_MOST_DARK_BYTES: Final = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person asked for; see the options of the command."""

    source: str
    target: Path
    png: Path
    channel: int
    dark: str | None
    bleaching: bool
    reading: dict[str, Any]
    halves: str
    mirror: str


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of one plane or more.

    Attributes
    ----------
    shape : tuple of int
    planes : list of list of (row, col)
        Upper left pixels of the frames, plane by plane.
    read : callable
        Gives the frames of a plane, in the same order.
    dark : ndarray, float or None
        What is frozen in the run.
    how : str
        Where they are from, in a sentence.
    """

    shape: tuple[int, int]
    planes: list[list[tuple[int, int]]]
    read: Callable[[int], Iterator[NDArray[Any]]]
    dark: NDArray[Any] | float | None
    how: str


def make(kind: str, asked: Asked, invocation: Any) -> Iterator[str]:
    """Do it; yields what there is to say, line by line.

    Raises
    ------
    click.ClickException
        If it cannot be done; the message says why.
    """
    try:
        if kind == "split":
            yield from _make_split(asked)
        elif kind == "dark":
            yield from _make_dark(asked, invocation)
        else:
            yield from _make_flat(asked, invocation)
    except (EstimateError, RegistrationError, TransformError) as error:
        raise click.ClickException(str(error)) from error


# ---- dark ------------------------------------------------------------------------------------------------------------


def _make_dark(asked: Asked, invocation: Any) -> Iterator[str]:
    frames = _frames_of("dark", asked, invocation)
    yield frames.how
    n_frames = sum(map(len, frames.planes))
    most = max(3, _MOST_DARK_BYTES // (frames.shape[0] * frames.shape[1] * 4))
    step = -(-n_frames // most)
    number, kept = 0, []
    for plane in range(len(frames.planes)):
        for frame in frames.read(plane):
            if number % step == 0:
                kept.append(frame)
            number += 1
    stack = np.stack(kept)
    dark = np.median(stack, axis=0).astype(np.float32)
    spread = np.median(np.abs(stack - dark), axis=0)
    _write(asked.target, dark)
    outliers = np.abs(dark - np.median(dark)) > 20 * max(1.0, float(np.median(spread)))
    draw(asked.png, [Panel("dark image, grey levels", dark)])
    yield f"median of {len(kept)} frames: {np.median(dark):.6g} grey levels, from {dark.min():.6g} to {dark.max():.6g}"
    if outliers.any():
        yield (
            f"{int(outliers.sum())} pixels stand out by more than 20 times the noise: they may be hot; an image that "
            "is 1 there and 0 elsewhere is `hot` in cameras.toml"
        )
    if dark.max() > 20 * max(1.0, float(np.median(dark))) and not outliers.any():
        yield "these frames look as if there was light: take them with the shutter closed"
    yield from _said(asked)


# ---- flat ------------------------------------------------------------------------------------------------------------


def _make_flat(asked: Asked, invocation: Any) -> Iterator[str]:
    frames = _frames_of("flat", asked, invocation)
    yield frames.how
    dark, said = _dark(asked.dark, frames)
    yield said
    # The plane with most frames: channels differ, and planes of one channel were lit alike.
    plane = max(range(len(frames.planes)), key=lambda one: len(frames.planes[one]))
    corners = frames.planes[plane]
    first: list[NDArray[Any]] = []
    total = np.zeros(frames.shape)

    def looked_at() -> Iterator[NDArray[Any]]:
        for frame in frames.read(plane):
            if not first:
                first.append(frame)
            np.add(total, frame, out=total)
            yield frame

    found = estimate(looked_at(), corners, frames.shape, dark=dark, bleaching=asked.bleaching)
    _write(asked.target, found.field)
    before = total / found.n_frames - dark
    after = before / found.field
    window = float(np.percentile(before, 0.5)), float(np.percentile(before, 99.5))
    draw(
        asked.png,
        [
            Panel("relative illumination", found.field),
            Panel("mean of all frames, before", before, window),
            Panel("after, the same scale", after, window),
        ],
    )
    yield _of_field(found)
    yield from _of_overlaps(found)
    if asked.bleaching:
        yield f"bleaching: {1 - found.bleaching:.2%} of the light is lost from one frame to the next"
    yield from _said(asked)


def _of_field(found: Estimate) -> str:
    low, high = float(found.field.min()), float(found.field.max())
    return f"illumination from {found.n_frames} frames: darkest {low / high:.0%} of the brightest"


def _of_overlaps(found: Estimate) -> Iterator[str]:
    if not found.n_overlaps:
        yield "no frames overlap: the field is from the mean of all frames alone, and may show something of them"
        return
    times = found.improvement
    yield (
        f"differences in {found.n_overlaps} overlaps: {found.before:.4g} grey levels before, {found.after:.4g} after: "
        f"{times:.3g} times smaller"
    )
    if times < 1.1:
        yield "that is no improvement worth having: was the scan lit evenly, or is --dark missing or wrong?"


def _dark(text: str | None, frames: Frames) -> tuple[NDArray[Any] | float, str]:
    if text is None:
        if frames.dark is not None:
            if isinstance(frames.dark, np.ndarray):
                return frames.dark, "the dark image that is frozen in the run is subtracted"
            return frames.dark, f"{frames.dark:g} grey levels are subtracted, as is frozen in the run"
        return (
            0.0,
            "nothing is subtracted: if the camera has an offset, say it (--dark), or the field comes out flatter",
        )
    try:
        return float(text), f"{float(text):g} grey levels are subtracted"
    except ValueError:
        pass
    path = Path(text).expanduser()
    try:
        return read_image(path, frames.shape), f"{path} is subtracted"
    except (OSError, EOFError, ValueError, tifffile.TiffFileError) as error:
        raise click.BadParameter(
            f"neither a number nor an image that can be used: {error}", param_hint="--dark"
        ) from error


# ---- split -----------------------------------------------------------------------------------------------------------


def _make_split(asked: Asked) -> Iterator[str]:
    path = Path(asked.source).expanduser()
    try:
        image = np.load(path, allow_pickle=False) if path.suffix.lower() == ".npy" else tifffile.imread(path)
    except (OSError, EOFError, ValueError, tifffile.TiffFileError) as error:
        raise click.ClickException(f"{path} cannot be read as NPY or TIFF: {error}") from error
    if image.ndim == 3:
        image = image.mean(axis=0)  # of several frames
    if image.ndim != 2:
        raise click.ClickException(
            f"{path} has the shape {image.shape}: expected one frame with both halves, or several"
        )
    plain = Transform(halves=asked.halves, mirror=asked.mirror)
    half = plain.half_of(image.shape)
    first, second = halves_of(image, asked.halves, asked.mirror)
    found = register(first, second)
    transform = Transform(asked.halves, asked.mirror, found.matrix, found.shift_px, (image.shape[0], image.shape[1]))
    try:
        grid = Grid.of(half, found.matrix, found.shift_px, "bilinear")
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    about = {"n_beads": found.n_beads, "residual_px": found.residual_px}
    _replace(asked.target, lambda file: file.write(json.dumps(transform.as_dict() | about, indent=1).encode()))
    part = np.s_[grid.row0 : grid.row0 + grid.shape[0], grid.col0 : grid.col0 + grid.shape[1]]
    scale = float(np.percentile(image, 1)), float(np.percentile(image, 99.9))
    registered = grid.sample(second.astype(np.float64))
    draw(
        asked.png,
        [
            Panel("difference of the halves, before", first[part] - second[part].astype(np.float64), _both_ways(scale)),
            Panel("after registration", first[part] - registered, _both_ways(scale)),
        ],
    )
    scaling = np.sqrt(abs(np.linalg.det(found.matrix)))
    turn = np.degrees(np.arctan2(found.matrix[1, 0], found.matrix[0, 0]))
    yield (
        f"{found.n_beads} beads agree to {found.residual_px:.2g} pixels: shift {found.shift_px[0]:.3g} rows, "
        f"{found.shift_px[1]:.3g} columns; scale {scaling:.5g}, turned by {turn:.2g}°"
    )
    if found.residual_px > 0.5:
        yield "that is more than half a pixel: use more beads, in focus, and check --halves and --mirror"
    yield f"views will have {grid.shape[0]} × {grid.shape[1]} pixels"
    yield from _said(asked)


def _both_ways(scale: tuple[float, float]) -> tuple[float, float]:
    return -(scale[1] - scale[0]), scale[1] - scale[0]


# ---- frames ----------------------------------------------------------------------------------------------------------


def _frames_of(kind: str, asked: Asked, invocation: Any) -> Frames:
    path = Path(asked.source).expanduser()
    if path.exists() and not (path / "journal").is_dir() and not (path / "tiles.sqlite").is_file():
        if kind == "dark" and not any(asked.reading.values()) and not _table_beside(path):
            return _dark_frames_on_disk(path, asked)
        return _frames_on_disk(path, asked)
    said = {key: value for key, value in asked.reading.items() if value}
    if said:
        raise click.UsageError(f"--{next(iter(said)).replace('_', '-')} is for frames in files, not for a run")
    folder = invocation.find_run(asked.source).folder
    with open_folder(folder) as reader:
        placements = [
            row.placement
            for row in reader.placements()
            if row.placement.view == 0 and (row.placement.plane.c == asked.channel)
        ]
        name = reader.info().name
    placements.sort(key=lambda placement: placement.index)
    if not placements:
        raise click.ClickException(f"the run {folder.name} has no placed frames of channel {asked.channel}")
    recorded = RecordedFrames(folder)
    if recorded.views and kind == "flat":
        raise click.ClickException(
            f"the frames of the run {folder.name} are split into views: what neighbours share says nothing of the "
            "whole chip. Take frames of something evenly bright instead, and use their mean as the flat field"
        )
    by_plane: dict[Any, list[Any]] = {}
    for placement in placements:
        by_plane.setdefault(placement.plane, []).append(placement)
    planes = list(by_plane.values())

    def read(number: int) -> Iterator[NDArray[Any]]:
        for placement in planes[number]:
            yield recorded.recorded(placement)

    corners = [[(one.row, one.col) for one in plane] for plane in planes]
    how = f"read {len(placements)} frames of channel {asked.channel} of run {folder.name[:8]} ({name}), as recorded"
    return Frames(recorded.shape, corners, read, _frozen_dark(recorded, asked.channel), how)


def _frozen_dark(recorded: RecordedFrames, channel: int) -> NDArray[Any] | float | None:
    """What is subtracted from the frames of a run: by name of its start, or by cameras.toml."""
    step = recorded.step("calibration")
    if recorded.dark is not None or step is None:
        return recorded.dark
    return frozen_parts(step, channel).get("dark")


def _table_beside(path: Path) -> bool:
    return ((path if path.is_dir() else path.parent) / "positions.csv").is_file()


def _dark_frames_on_disk(path: Path, asked: Asked) -> Frames:
    """Frames of which nobody said, nor needs to know, where they lay."""
    source = open_images(path)
    planes = source.info.tcz or ((0, 0, 0),) * source.n_frames
    wanted = [number for number, (_, c, _) in enumerate(planes) if c == asked.channel]
    if not wanted:
        raise click.ClickException(f"{path} has no frames of channel {asked.channel}")
    height, width = source.shape
    how = f"Read {len(wanted)} frames of {height}×{width} {np.dtype(source.dtype).name} from {path.name}."
    return Frames(source.shape, [[(0, 0)] * len(wanted)], lambda _: source.read(wanted), None, how)


def _frames_on_disk(path: Path, asked: Asked) -> Frames:
    reading = dict(asked.reading)
    positions = reading.pop("positions")
    scan = open_scan(path, None if positions is None else Path(positions), **reading)
    groups: dict[tuple[int, int], list[int]] = {}
    tcz = [frame.tcz for frame in scan.frames()] if scan.planes != (1, 1, 1) else [(0, 0, 0)] * scan.n_frames
    for number, (t, c, z) in enumerate(tcz):
        if c == asked.channel:
            groups.setdefault((t, z), []).append(number)
    if not groups:
        raise click.ClickException(f"{path} has no frames of channel {asked.channel}")
    members = list(groups.values())

    def read(number: int) -> Iterator[NDArray[Any]]:
        wanted = set(members[number])
        for frame in scan.frames():
            if frame.frame in wanted:
                yield frame.pixels

    corners = [[scan.corners[frame] for frame in group] for group in members]
    return Frames(scan.shape, corners, read, None, scan.how)


# ---- files -----------------------------------------------------------------------------------------------------------


def _write(target: Path, image: NDArray[Any]) -> None:
    if target.suffix.lower() == ".npy":
        _replace(target, lambda file: np.save(file, image))
    else:
        _replace(target, lambda file: tifffile.imwrite(file, image))


def _replace(target: Path, write: Callable[[Any], object]) -> None:
    """Whole or not at all."""
    unborn = target.with_name(target.name + ".new")
    try:
        with unborn.open("wb") as file:
            write(file)
        unborn.replace(target)
    except OSError as error:
        raise click.ClickException(f"cannot write {target}: {error.strerror}; does its folder exist?") from error


def _said(asked: Asked) -> Sequence[str]:
    return [f"wrote {asked.target} and {asked.png}"]
