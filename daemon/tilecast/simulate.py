"""A microscope to try tilecast with: a specimen without end, a camera with its faults, and a stage that reports.

The specimen (`Specimen`) is a fluorescent culture: cells with filaments, nuclei and bright puncta, between fibres, on
a faint uneven background. It is drawn on the fly for any rectangle of an infinite plane, the same for the same seed
whatever is asked for first, so that a mosaic can be compared with what was really there. A `Microscope` scans it:
positions with jitter, vignetting, photon noise (as normal noise of the same variance, which it is very nearly at these
light levels) and read noise, exposure times on a clock, and a stage that is read out beside the frames. What comes
out is a time-ordered list of events; pixels are made only when they are asked for.

`run_scan` sends these events through two publishers, as a real microscope's programs would. Nothing here knows the
daemon, a socket or a wall clock but through what is handed in.

Notes
-----
Frames are cut from the specimen at whole pixels. A frame's `pos_um` is where the stage says it was; with
`readout_um = 0` that is exactly where it was, and the mosaic equals the specimen under the camera's faults.

Examples
--------
>>> scope = Microscope(shape=(64, 64), grid=(2, 3), overlap=0.25, seed=1)
>>> [(event.frame, event.row, event.col) for event in scope.events(fps=10) if isinstance(event, FrameEvent)][:3]
[(0, -54, -82), (1, -56, -31), (2, -57, 18)]
>>> scope.image(next(e for e in scope.events(fps=10) if isinstance(e, FrameEvent))).shape
(64, 64)
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tilecast.geometry import Rect, place_centre

if TYPE_CHECKING:
    from tilecast_protocol.publisher import Publisher

Image: TypeAlias = NDArray[np.float32]

_BLOCK: Final = 512  # the specimen is drawn in squares of this many pixels, which are then cut and joined
_CELL_PITCH: Final = 104  # one cell, or none, in each square of this many pixels
_SPRITE: Final = 192  # a drawn cell fits into a square of this many pixels
_N_SPRITES: Final = 40
_SPOT: Final = np.arange(-7, 8, dtype=np.float32)

_MULTIPLIERS: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class Specimen:
    """What lies under the objective: brightness from 0 to about 1 for every pixel of an infinite plane.

    Parameters
    ----------
    seed : int
        Another seed is another specimen.
    cache_bytes : int
        How much of what was drawn is remembered. The same pixels are the same, remembered or not.
    """

    def __init__(self, seed: int = 0, *, cache_bytes: int = 96 << 20) -> None:
        self.seed = seed
        self._blocks: OrderedDict[tuple[int, int], Image] = OrderedDict()
        self._max_blocks = max(1, cache_bytes // (4 * _BLOCK * _BLOCK))
        self._sprites: dict[int, Image] = {}
        self._slopes = {pitch: _interpolation(pitch) for pitch in (32, 128, 256, 512)}

    def region(self, rect: Rect) -> Image:
        """Brightness inside a rectangle of level-0 pixels; float32, rows × columns, owned by the caller."""
        out = np.empty((rect.row1 - rect.row0, rect.col1 - rect.col0), np.float32)
        for block_row in range(rect.row0 // _BLOCK, -(-rect.row1 // _BLOCK)):
            for block_col in range(rect.col0 // _BLOCK, -(-rect.col1 // _BLOCK)):
                row, col = block_row * _BLOCK, block_col * _BLOCK
                part = rect.intersect(Rect(row, col, row + _BLOCK, col + _BLOCK))
                out[part.row0 - rect.row0 : part.row1 - rect.row0, part.col0 - rect.col0 : part.col1 - rect.col0] = (
                    self._block(block_row, block_col)[
                        part.row0 - row : part.row1 - row, part.col0 - col : part.col1 - col
                    ]
                )
        return out

    def _block(self, row: int, col: int) -> Image:
        block = self._blocks.get((row, col))
        if block is None:
            block = self._blocks[row, col] = self._draw(row, col)
            while len(self._blocks) > self._max_blocks:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end((row, col))
        return block

    def _draw(self, row: int, col: int) -> Image:
        coarse, medium, fine = (self._noise(row, col, pitch, salt) for pitch, salt in ((512, 2), (128, 3), (32, 4)))
        block: Image = np.float32(0.05) * coarse + np.float32(0.03) * medium + np.float32(0.015) * fine
        # Fibres are the places where a smooth random height passes through 0: thin curves, never straight, without
        # end. They fade in and out with the coarse background.
        for salt, width, strength in ((5, 0.020, 0.20), (6, 0.012, 0.14)):
            height = self._noise(row, col, 256, salt) - 0.5
            height += 0.55 * (medium - 0.5)
            height += 0.10 * (fine - 0.5)
            height *= np.float32(1 / width)
            np.square(height, out=height)
            height += 1.0
            np.reciprocal(height, out=height)
            height *= coarse
            height *= np.float32(strength)
            block += height
        self._add_cells(block, row * _BLOCK, col * _BLOCK)
        return block

    def _noise(self, block_row: int, block_col: int, pitch: int, salt: int) -> Image:
        """Random values 0 to 1 at the corners of a lattice, and between them smoothly interpolated."""
        n = _BLOCK // pitch
        rows = np.arange(block_row * n, block_row * n + n + 1)
        cols = np.arange(block_col * n, block_col * n + n + 1)
        lattice = _random(self.seed, salt, rows[:, None], cols[None, :]).astype(np.float32)
        # Not as a product of matrices: its threads would fight with everybody else's for the cores.
        before, after, share = self._slopes[pitch]
        across = lattice[:, before] * (1 - share) + lattice[:, after] * share
        noise = across[before] * (1 - share)[:, None]
        noise += across[after] * share[:, None]
        return noise

    def _add_cells(self, block: Image, top: int, left: int) -> None:
        reach = _SPRITE // 2 + _CELL_PITCH
        rows = np.arange((top - reach) // _CELL_PITCH, (top + _BLOCK + reach) // _CELL_PITCH + 1)[:, None]
        cols = np.arange((left - reach) // _CELL_PITCH, (left + _BLOCK + reach) // _CELL_PITCH + 1)[None, :]
        # Cells like company: their density follows a lattice of its own, six times as coarse.
        crowd = _random(self.seed, 7, rows // 6, cols // 6)
        present = _random(self.seed, 8, rows, cols) < 0.25 + 0.65 * crowd
        row = (rows * _CELL_PITCH + _random(self.seed, 9, rows, cols) * _CELL_PITCH).astype(int) - _SPRITE // 2 - top
        col = (cols * _CELL_PITCH + _random(self.seed, 10, rows, cols) * _CELL_PITCH).astype(int) - _SPRITE // 2 - left
        which = (_random(self.seed, 11, rows, cols) * _N_SPRITES * 8).astype(int)
        bright = (0.6 + 0.8 * _random(self.seed, 12, rows, cols)).astype(np.float32)
        for i, j in np.argwhere(present):
            r, c = int(row[i, j]), int(col[i, j])
            r0, c0, r1, c1 = max(r, 0), max(c, 0), min(r + _SPRITE, _BLOCK), min(c + _SPRITE, _BLOCK)
            if r0 < r1 and c0 < c1:
                sprite, turn = divmod(int(which[i, j]), 8)
                if sprite not in self._sprites:
                    self._sprites[sprite] = _draw_cell(np.random.default_rng((self.seed, 1, sprite)))
                drawn = np.rot90(self._sprites[sprite], turn % 4)
                drawn = drawn.T if turn >= 4 else drawn
                block[r0:r1, c0:c1] += drawn[r0 - r : r1 - r, c0 - c : c1 - c] * bright[i, j]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameEvent:
    """The camera has exposed a frame.

    Attributes
    ----------
    t_ns : int
        When it is there: the end of the exposure, UTC.
    frame : int
    t0_ns, t1_ns : int
        Exposure, as the camera's clock says.
    row, col : int
        Upper left pixel in the specimen: the truth.
    true_um, set_um, pos_um : tuple of float
        Where the frame's centre was at mid-exposure, was told to go, and was reported to be.
    moving : bool
        Whether the stage moved during the exposure.
    """

    t_ns: int
    frame: int
    t0_ns: int
    t1_ns: int
    row: int
    col: int
    true_um: tuple[float, float]
    set_um: tuple[float, float]
    pos_um: tuple[float, float]
    moving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent:
    """The stage was read out.

    Attributes
    ----------
    t_ns : int
        When, as the stage's clock says, UTC.
    pos_um, true_um : tuple of float
        What it reported, and where it was.
    moving : bool
    """

    t_ns: int
    pos_um: tuple[float, float]
    true_um: tuple[float, float]
    moving: bool


Event: TypeAlias = FrameEvent | StageEvent
Order: TypeAlias = Literal["serpentine", "raster", "spiral", "random"]
Affine: TypeAlias = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Microscope:
    """A camera and a stage over a specimen.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of a frame.
    dtype : {"|u1", "<u2", "<f4"}
    px_um : tuple of float
        Size of a pixel in the specimen, x and y.
    affine : tuple, optional
        How the camera lies to the stage (PROTOCOL, "Positions"); diag(px_um) if not given.
    overlap : float
        Share of a frame's edge that it has in common with its neighbour, 0 to below 1.
    grid : tuple of int
        Rows and columns of the scan.
    order : {"serpentine", "raster", "spiral", "random"}
    centre_um : tuple of float
        Stage position of the middle of the scan.
    seed : int
        Of everything random, the specimen included.
    jitter_um : float
        How far the stage stops from where it was told to, standard deviation along each axis.
    readout_um : float
        Error of each position that the stage reports, standard deviation.
    sweep : bool
        The stage does not stop for frames, but moves on at a constant speed along each row.
    exposure_ms : float
        It is cut to a third of the time between frames.
    stage_hz : float
        How often the stage is read out.
    clock_jitter_ms : float
        Each time that camera and stage report is wrong by up to this.
    vignetting : float
        Loss of light in the corners, 0 to 1.
    photons : float
        Photons per pixel where the specimen is as bright as 1.
    read_noise : float
        Of the camera, in photons.
    noise : bool
        False for frames without photon and read noise.
    offset : float
        Grey level of no light.
    """

    shape: tuple[int, int] = (1024, 1024)
    dtype: Literal["|u1", "<u2", "<f4"] = "<u2"
    px_um: tuple[float, float] = (0.5, 0.5)
    affine: Affine | None = None
    overlap: float = 0.1
    grid: tuple[int, int] = (6, 8)
    order: Order = "serpentine"
    centre_um: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    jitter_um: float = 1.0
    readout_um: float = 0.0
    sweep: bool = False
    exposure_ms: float = 10.0
    stage_hz: float = 50.0
    clock_jitter_ms: float = 0.0
    vignetting: float = 0.2
    photons: float = 3000.0
    read_noise: float = 2.0
    noise: bool = True
    offset: float = 100.0

    def __post_init__(self) -> None:
        if self.dtype not in ("|u1", "<u2", "<f4"):
            raise ValueError(f"a camera delivers |u1, <u2 or <f4, not {self.dtype!r}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"the overlap is a share from 0 to below 1 (10 % is 0.1), got {self.overlap}")
        if min(*self.shape, *self.grid) < 1:
            raise ValueError(f"frames and scans have at least one row and column, got {self.shape} and {self.grid}")
        if self.order not in ("serpentine", "raster", "spiral", "random"):
            raise ValueError(f"the order is serpentine, raster, spiral or random, not {self.order!r}")
        object.__setattr__(self, "_specimen", Specimen(self.seed))
        object.__setattr__(self, "_flat", self._make_flat())

    @property
    def specimen(self) -> Specimen:
        """What it looks at."""
        specimen: Specimen = self.__dict__["_specimen"]
        return specimen

    @property
    def flat(self) -> Image:
        """The illumination over a frame, 1 in the middle: the truth that a flat-field correction looks for."""
        flat: Image = self.__dict__["_flat"]
        return flat

    @property
    def n_frames(self) -> int:
        """Frames of the whole scan."""
        return self.grid[0] * self.grid[1]

    @property
    def camera_affine(self) -> Affine:
        """`affine`, or what stands for it."""
        return self.affine or ((self.px_um[0], 0.0), (0.0, self.px_um[1]))

    def targets_um(self) -> list[tuple[float, float]]:
        """Where the stage is told to go, frame by frame."""
        rows, cols = self.grid
        step_row = max(1.0, round(self.shape[0] * (1 - self.overlap)))
        step_col = max(1.0, round(self.shape[1] * (1 - self.overlap)))
        (a, b), (c, d) = self.camera_affine
        targets = []
        for row, col in _visits(self.grid, self.order, self.seed):
            dx, dy = (col - (cols - 1) / 2) * step_col, (row - (rows - 1) / 2) * step_row
            targets.append((self.centre_um[0] + a * dx + b * dy, self.centre_um[1] + c * dx + d * dy))
        return targets

    def extent_um(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Outer edges of where the scan is planned to go: ((x0, y0), (x1, y1))."""
        (a, b), (c, d) = self.camera_affine
        reach_x = (abs(a) * self.shape[1] + abs(b) * self.shape[0]) / 2
        reach_y = (abs(c) * self.shape[1] + abs(d) * self.shape[0]) / 2
        xs, ys = zip(*self.targets_um(), strict=True)
        return (min(xs) - reach_x, min(ys) - reach_y), (max(xs) + reach_x, max(ys) + reach_y)

    def events(self, fps: float, t_start_ns: int = 0) -> Iterator[Event]:
        """Everything that happens, in the order of the true time; the same again for the same arguments.

        Parameters
        ----------
        fps : float
            Frames per second. The stage is as fast as that needs.
        t_start_ns : int
            When the first move begins, UTC.

        Yields
        ------
        FrameEvent or StageEvent
            The last stage event comes after the last exposure, so that every frame has one before and one after.
        """
        interval_ns = round(1e9 / fps)
        exposure_ns = min(round(self.exposure_ms * 1e6), interval_ns // 3)
        stage_ns = max(1, round(1e9 / self.stage_hz))
        path = _Path(self, interval_ns, exposure_ns)
        rng = np.random.default_rng((self.seed, 3))
        frame, t_stage = 0, 0
        while frame < self.n_frames or t_stage <= path.end_ns + stage_ns:
            t0, t1 = path.exposure(frame)
            if t_stage <= t1 or frame == self.n_frames:
                yield StageEvent(
                    t_ns=t_start_ns + t_stage + self._clock_error(rng),
                    pos_um=self._readout(path.at(t_stage), rng),
                    true_um=path.at(t_stage),
                    moving=path.moving(t_stage, t_stage),
                )
                t_stage += stage_ns
                continue
            true_um = path.at((t0 + t1) // 2)
            row, col = place_centre(true_um, self.camera_affine, self.shape)
            error_ns = self._clock_error(rng)
            yield FrameEvent(
                t_ns=t_start_ns + t1 + error_ns,
                frame=frame,
                t0_ns=t_start_ns + t0 + error_ns,
                t1_ns=t_start_ns + t1 + error_ns,
                row=row,
                col=col,
                true_um=true_um,
                set_um=path.targets[frame],
                pos_um=self._readout(true_um, rng),
                moving=path.moving(t0, t1),
            )
            frame += 1

    def image(self, event: FrameEvent) -> NDArray[Any]:
        """The pixels of a frame; the same for the same event."""
        height, width = self.shape
        rect = Rect(event.row, event.col, event.row + height, event.col + width)
        light = self.specimen.region(rect)
        light *= self.flat
        light *= np.float32(self.photons)
        if self.noise:
            rng = np.random.Generator(np.random.SFC64((self.seed, 4, event.frame)))
            noise = rng.standard_normal(self.shape, np.float32)
            noise *= np.sqrt(light + np.float32(self.read_noise**2))
            light += noise
        if self.dtype == "<f4":
            light += np.float32(self.offset)
            return light
        # An 8-bit camera shows the same light in its fewer grey levels.
        limit, gain = (255, np.float32(200 / self.photons)) if self.dtype == "|u1" else (65535, np.float32(1))
        light *= gain
        light += np.float32(self.offset if self.dtype == "<u2" else min(self.offset, 10))
        np.rint(light, out=light)
        np.clip(light, 0, limit, out=light)
        return light.astype(self.dtype)

    def _make_flat(self) -> Image:
        height, width = self.shape
        y = (np.arange(height, dtype=np.float32) - (height - 1) / 2) / max(1.0, height / 2)
        x = (np.arange(width, dtype=np.float32) - (width - 1) / 2) / max(1.0, width / 2)
        flat: Image = 1 - np.float32(self.vignetting / 2) * (y[:, None] ** 2 + x[None, :] ** 2)
        return flat

    def _readout(self, true_um: tuple[float, float], rng: np.random.Generator) -> tuple[float, float]:
        if self.readout_um == 0:
            return true_um
        return true_um[0] + rng.normal(0, self.readout_um), true_um[1] + rng.normal(0, self.readout_um)

    def _clock_error(self, rng: np.random.Generator) -> int:
        return round(rng.uniform(-1, 1) * self.clock_jitter_ms * 1e6) if self.clock_jitter_ms else 0


class _Path:
    """Where the stage is at each time, in nanoseconds from the start, and when frames are exposed.

    Stopping: in each interval the stage moves to the next target, smoothly, settles, and the frame is exposed. In a
    sweep it passes the targets at constant speed, so that mid-exposure is where the frame should be.
    """

    def __init__(self, scope: Microscope, interval_ns: int, exposure_ns: int) -> None:
        rng = np.random.default_rng((scope.seed, 2))
        self.targets = scope.targets_um()
        self._stops = [
            (x + rng.normal(0, scope.jitter_um), y + rng.normal(0, scope.jitter_um)) if scope.jitter_um else (x, y)
            for x, y in self.targets
        ]
        self._interval_ns = interval_ns
        self._exposure_ns = exposure_ns
        self._sweep = scope.sweep
        # What is left of an interval after the exposure: nine tenths to move, one to settle.
        self._move_ns = (interval_ns - exposure_ns) * 9 // 10
        self.end_ns = self.exposure(len(self._stops) - 1)[1]

    def exposure(self, frame: int) -> tuple[int, int]:
        """Start and end."""
        end = (frame + 1) * self._interval_ns
        return end - self._exposure_ns, end

    def at(self, t_ns: int) -> tuple[float, float]:
        """True position, µm."""
        n = len(self._stops)
        if self._sweep:
            # Mid-exposure of frame k is where the stage passes stop k.
            along = (t_ns + self._exposure_ns / 2) / self._interval_ns - 1
            k = min(max(math.floor(along), 0), max(0, n - 2))
            share = along - k if n > 1 else 0.0
            following = self._stops[min(k + 1, n - 1)]
        else:
            k = min(max((t_ns - 1) // self._interval_ns - 1, -1), n - 2)
            since = t_ns - (k + 1) * self._interval_ns
            share = min(max(since / self._move_ns, 0.0), 1.0)
            share = share**3 * (10 - 15 * share + 6 * share**2)  # smoothest start and stop (minimum jerk)
            k, following = max(k, 0), self._stops[k + 1]
        here = self._stops[k]
        return here[0] + share * (following[0] - here[0]), here[1] + share * (following[1] - here[1])

    def moving(self, t0_ns: int, t1_ns: int) -> bool:
        """Whether it moves at any time from one to the other."""
        if self._sweep:
            return True
        first, last = self._interval_ns, self.end_ns  # before and after, it stands at the first and the last stop
        return any(first < t <= last and (t - 1) % self._interval_ns < self._move_ns for t in (t0_ns, t1_ns))


def run_scan(
    camera: Publisher,
    stage: Publisher | None,
    microscope: Microscope,
    *,
    fps: float,
    paced: bool = True,
    name: str = "simulated scan",
    pos_src: Literal["frame", "stage"] = "frame",
    start_fields: dict[str, Any] | None = None,
    on_frame: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> str:
    """Send one scan through publishers.

    Parameters
    ----------
    camera, stage : tilecast_protocol.publisher.Publisher
        Two, because one source sends through one socket. `stage` may be None if `pos_src` is `frame`.
    microscope : Microscope
    fps : float
        Frames per second of the microscope's clock.
    paced : bool
        Keep to that clock; False sends as fast as publishers take it, with the same times in the messages.
    name : str
        Of the run.
    pos_src : {"frame", "stage"}
        Whether frames bring their positions, or are joined to the stage's by time.
    start_fields : dict, optional
        Further fields of the `start` message, such as `blend` or `flat`.
    on_frame : callable, optional
        Called with the number of frames sent so far.
    stop : threading.Event, optional
        Set it to end the run early, with the reason `abort`.

    Returns
    -------
    str
        The run's uuid.

    Raises
    ------
    RejectedError, DisconnectedError
        As the publishers do.
    """
    if stage is None and pos_src == "stage":
        raise ValueError("frames without positions need a stage publisher: give one, or pos_src='frame'")
    stop = stop or threading.Event()
    fields: dict[str, Any] = {
        "shape": microscope.shape,
        "dtype": microscope.dtype,
        "px_um": microscope.px_um,
        "affine": microscope.affine,
        "n_expected": microscope.n_frames,
        "extent_um": microscope.extent_um(),
        "pos_src": pos_src,
    }
    t_start_ns, started_s = time.time_ns(), time.monotonic()
    run = camera.start(name, **fields | (start_fields or {}))
    n_sent = 0
    for event in microscope.events(fps, t_start_ns):
        if isinstance(event, FrameEvent):
            pixels = microscope.image(event)  # made ahead of its time, so that pacing hides what it costs
        if paced:
            stop.wait(started_s + (event.t_ns - t_start_ns) / 1e9 - time.monotonic())
        if stop.is_set():
            break
        if isinstance(event, StageEvent):
            if stage is not None:
                stage.stage(event.pos_um, t_ns=event.t_ns, moving=event.moving)
            continue
        camera.image(
            pixels,
            frame=event.frame,
            pos_um=event.pos_um if pos_src == "frame" else None,
            set_um=event.set_um,
            t0_ns=event.t0_ns,
            t1_ns=event.t1_ns,
            moving=event.moving,
        )
        n_sent += 1
        if on_frame is not None:
            on_frame(n_sent)
    camera.end("abort" if stop.is_set() else "done")
    return run


def _visits(grid: tuple[int, int], order: Order, seed: int) -> list[tuple[int, int]]:
    """Row and column of each frame of a scan, in the order of acquisition."""
    rows, cols = grid
    cells = [(row, col) for row in range(rows) for col in range(cols)]
    if order == "serpentine":
        return [(row, col if row % 2 == 0 else cols - 1 - col) for row, col in cells]
    if order == "random":
        return [cells[n] for n in np.random.default_rng((seed, 5)).permutation(len(cells))]
    if order == "spiral":
        row, col, n_steps = (rows - 1) // 2, (cols - 1) // 2, 1
        visits, directions, n = [(row, col)], ((0, 1), (1, 0), (0, -1), (-1, 0)), 0
        while len(visits) < len(cells):
            for _ in range(2):
                for _ in range(n_steps):
                    row, col = row + directions[n % 4][0], col + directions[n % 4][1]
                    if 0 <= row < rows and 0 <= col < cols:
                        visits.append((row, col))
                n += 1
            n_steps += 1
        return visits
    return cells


def _random(seed: int, salt: int, row: NDArray[np.int64], col: NDArray[np.int64]) -> NDArray[np.float64]:
    """Evenly distributed numbers 0 to 1, one for each lattice point, always the same (splitmix64's finalizer)."""
    golden, first, second = _MULTIPLIERS
    state: NDArray[np.uint64] = np.full(1, (seed * 1_000_003 + salt) * 0x9E3779B97F4A7C15 % (1 << 64), np.uint64)
    for axis in (row, col):
        state = state + axis.astype(np.int64).view(np.uint64) * golden + golden
        state = (state ^ (state >> np.uint64(30))) * first
        state = (state ^ (state >> np.uint64(27))) * second
        state = state ^ (state >> np.uint64(31))
    uniform: NDArray[np.float64] = (state >> np.uint64(11)) / float(1 << 53)
    return uniform


def _interpolation(pitch: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Image]:
    """For each pixel along the edge of a block: the lattice points before and after it, and how far it is between
    them, smoothed (cubic Hermite)."""
    position = np.arange(_BLOCK) / pitch
    before = position.astype(np.intp)
    share = position - before
    return before, before + 1, (share * share * (3 - 2 * share)).astype(np.float32)


def _smooth_step(value: Image) -> Image:
    """0 below 0, 1 above 1, and smooth between."""
    clipped = np.clip(value, 0, 1)
    return clipped * clipped * (3 - 2 * clipped)


def _draw_cell(rng: np.random.Generator) -> Image:
    """One cell: a lobed or pointed body, filaments along it, a nucleus with nucleoli, and bright puncta."""
    axis = np.arange(_SPRITE, dtype=np.float32) - (_SPRITE - 1) / 2
    y, x = axis[:, None], axis[None, :]
    turn = rng.uniform(0, math.pi)
    along, across = x * math.cos(turn) + y * math.sin(turn), -x * math.sin(turn) + y * math.cos(turn)
    stretch = rng.uniform(1.0, 1.5)
    angle = np.arctan2(across * stretch, along)
    outline = 1 + rng.uniform(0, 0.35) * np.cos(2 * angle)
    for lobes in range(3, 8):
        outline += rng.normal(0, 0.3 / lobes) * np.cos(lobes * angle + rng.uniform(0, 2 * math.pi))
    radius = rng.uniform(32, 46)
    edge = radius * math.sqrt(stretch) * np.clip(outline, 0.45, 1.6)
    distance = np.hypot(along, across * stretch) / edge
    body = _smooth_step((1 - distance) / 0.3) * (0.35 + 0.65 * np.exp(-1.8 * distance))

    filaments = np.zeros_like(body)
    for _ in range(3):  # bundles of slightly different direction, each in some places only
        tilt, bend = rng.normal(0, 0.22), rng.uniform(0, 2 * math.pi, 5).tolist()
        over = across * math.cos(tilt) - along * math.sin(tilt)
        phase = 2 * math.pi * over / rng.uniform(6, 11) + 3 * np.sin(along / 29 + bend[0])
        phase += 1.6 * np.sin(along / 13 + across / 17 + bend[1]) + 1.1 * np.sin(over / 7 + bend[2])
        where = 0.5 + 0.5 * np.sin(along / 19 + across / 31 + bend[3]) * np.cos(across / 12 - along / 37 + bend[4])
        filaments += (0.5 + 0.5 * np.cos(phase)) ** 3 * where**2

    off_along, off_across = rng.normal(0, 5, 2).tolist()
    nucleus_radius = rng.uniform(11, 16)
    to_nucleus = np.hypot((along - off_along) / 1.25, across - off_across) / nucleus_radius
    nucleus = _smooth_step((1 - to_nucleus) / 0.25 + 0.5)
    bend = rng.uniform(0, 2 * math.pi, 3).tolist()
    chromatin = 0.8 + 0.2 * np.sin(x / 3.1 + bend[0]) * np.sin(y / 2.7 + bend[1]) * np.cos((x - y) / 4.3 + bend[2])
    cell = body * (0.32 + 0.42 * filaments) * (1 - 0.75 * nucleus) + rng.uniform(0.3, 0.55) * nucleus * chromatin

    for _ in range(int(rng.integers(2, 4))):  # nucleoli
        to_along = off_along + rng.normal(0, nucleus_radius / 3)
        to_across = off_across + rng.normal(0, nucleus_radius / 3)
        cell -= 0.22 * nucleus * np.exp(-((along - to_along) ** 2 + (across - to_across) ** 2) / 7)
    for _ in range(int(rng.integers(5, 30))):  # puncta
        reach, direction = radius * math.sqrt(rng.uniform(0.05, 0.8)), rng.uniform(0, 2 * math.pi)
        column = int(reach * math.cos(direction) + _SPRITE / 2)
        row = int(reach * math.sin(direction) + _SPRITE / 2)
        near = np.s_[row - 7 : row + 8, column - 7 : column + 8]
        spot = np.exp(-(_SPOT**2) / np.float32(2 * rng.uniform(1.1, 1.9) ** 2))
        cell[near] += np.float32(rng.uniform(0.1, 0.5)) * spot[:, None] * spot[None, :] * _smooth_step(body[near] * 4)
    return np.asarray(np.maximum(cell, 0), np.float32)
