"""Runs on disk without a daemon: journals written by hand, in the very folders that the daemon makes.

A `Recording` writes the folder of one run as ingest does (what is frozen, journal, what is kept beside it), through
the project's own parts and no thread or socket. `tilecast.service.rebuild` then makes its tiles, or a test's own
blender and store thread do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ingest_harness import T0, Camera, StageSource
from tilecast import calibration as cal
from tilecast.geometry import Placement, PlaneKey, place_centre
from tilecast.ingest.joining import PlacingRules
from tilecast.plugins import Plugins
from tilecast.service import runs
from tilecast.service.config import Config, load
from tilecast.service.runs import Run
from tilecast_protocol import pzf
from tilecast_protocol.journal import RecordKind
from tilecast_protocol.messages import Start, encode, parse

MS = 1_000_000
SHAPE = (24, 30)
TILE = 16
PX_UM = (0.5, 0.25)

#: A scan with overlaps, a revisit, a frame apart, and growth to the upper left.
CORNERS = ((0, 0), (0, 22), (17, 3), (17, 25), (-20, -9), (1, 21), (-64, 70))


def config(store: Path, *overrides: str) -> Config:
    """The configuration of a daemon whose runs lie in `store`, whatever the environment says."""
    return load(overrides=[f"store.path={store}", *overrides], environ={})


def frame_pixels(frame: int, dtype: str = "<u2", shape: tuple[int, int] = SHAPE) -> NDArray[Any]:
    """Noise that no other frame is like; a float frame has a pixel that is not finite."""
    rng = np.random.default_rng(frame)
    if dtype == "<f4":
        pixels = rng.normal(100, 30, shape).astype(dtype)
        pixels[frame % shape[0], 0] = np.nan
        return pixels
    return rng.integers(0, 250, shape).astype(dtype)


def centre_um(row: int, col: int, shape: tuple[int, int] = SHAPE) -> tuple[float, float]:
    """The stage position of a frame whose upper left pixel is (row, col)."""
    return (col + shape[1] / 2) * PX_UM[0], (row + shape[0] / 2) * PX_UM[1]


@dataclass
class Recording:
    """The folder of one run, being written.

    Attributes
    ----------
    root : Path
        The folder of the runs.
    dtype, blend, tile_size, shape, changes
        Of its start; `changes` are further keys.
    dark : ndarray, optional
        A dark image that it carries.
    rules : PlacingRules
    run : Run
        Loaded, for writing, until `close`.
    pixels : dict of int to ndarray
        As the camera sent them.
    """

    root: Path
    dtype: str = "<u2"
    blend: str = "feather"
    tile_size: int = TILE
    shape: tuple[int, int] = SHAPE
    changes: dict[str, Any] = field(default_factory=dict)
    dark: NDArray[Any] | None = None
    rules: PlacingRules = field(default_factory=PlacingRules)
    name: str = "scan"
    run_id: str = "0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f"
    segment_bytes: int = 1 << 30
    pixels: dict[int, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.camera = Camera(run=self.run_id)
        self.stages = StageSource()
        changes: dict[str, Any] = {}
        if self.dark is not None:
            data = cal.dump_npy(self.dark)
            digest = hashlib.sha256(data).hexdigest()
            changes = {"dark": "part:0", "parts": (data,), "nbytes": (len(data),), "sha256": (digest,)}
        changes |= {"shape": self.shape, "dtype": self.dtype, "px_um": PX_UM, "blend": self.blend, "name": self.name}
        start = parse(encode(self.camera.start(**(changes | self.changes))))
        assert isinstance(start, Start)
        self.start = start
        settings = config(self.root, f"blend.tile_size={self.tile_size}")
        frozen, images = runs.resolve(self.start, self.rules, settings, Plugins())
        self.root.mkdir(exist_ok=True)
        self.run: Run = runs.create_run(self.root, self.start, frozen, images, segment_bytes=self.segment_bytes)
        self._append(RecordKind.START, self.start, self.start.parts)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.root / self.run_id

    def image(
        self,
        frame: int,
        corner: tuple[int, int] | None = None,
        pixels: NDArray[Any] | None = None,
        **changes: Any,
    ) -> Placement:
        """A frame, with the position that puts it at `corner`; returns where it then lies."""
        pixels = frame_pixels(frame, self.dtype, self.shape) if pixels is None else pixels
        self.pixels[frame] = pixels
        if corner is not None:
            changes = {"pos_um": centre_um(*corner, self.shape)} | changes
        payload = bytes(pzf.encode_image(pixels))
        message = self.camera.image(frame, nbytes=pixels.nbytes, parts=(pixels.tobytes(),), **changes)
        index = self._append(RecordKind.IMAGE, message, (payload,), frame=frame, encoded=True)
        row, col = (0, 0)
        if message.pos_um is not None:
            row, col = place_centre(message.pos_um, self.start.effective_affine, self.shape)
        return Placement(frame, 0, PlaneKey(*message.tcz), row, col, *self.shape, "stage", index)

    def images(self, corners: Sequence[tuple[int, int]] = CORNERS, planes: int = 1) -> list[Placement]:
        """Frames at these corners, from plane to plane in turn."""
        return [
            self.image(frame, corner, tcz=(0, frame % planes, 0))
            for frame, corner in enumerate(corners, len(self.pixels))
        ]

    def stage(self, t_ms: float, corner: tuple[int, int], **changes: Any) -> None:
        """Where the stage was, so that a frame exposed then has its upper left pixel at `corner`."""
        x_um, y_um = centre_um(*corner, self.shape)
        message = self.stages.at(T0 + round(t_ms * MS), x_um, y_um, **changes)
        self._append(RecordKind.STAGE, message, ())

    def end(self, n_sent: int | None = None) -> None:
        """The end of the run."""
        message = self.camera.end(len(self.pixels) if n_sent is None else n_sent)
        self._append(RecordKind.END, message, ())

    def again(self, message: Any, parts: Sequence[Any] = ()) -> None:
        """Any message, as it is."""
        self._append(RecordKind[type(message).__name__.upper()], message, parts)

    def close(self, *, finished: bool = True) -> Path:
        """Give it back; returns its folder."""
        self.run.release(finished=finished)
        return self.folder

    def _append(
        self, kind: RecordKind, message: Any, parts: Sequence[Any], *, frame: int | None = None, encoded: bool = False
    ) -> int:
        position = self.run.journal.append(
            kind,
            topic=message.topic,
            header=bytes(encode(message)[1]),
            parts=parts,
            t_recv_ns=message.t_ns + 1000,
            frame=frame,
            pzf=encoded,
        )
        return -1 if position.image_index is None else position.image_index


def record(root: Path, corners: Sequence[tuple[int, int]] = CORNERS, *, planes: int = 1, **recording: Any) -> Recording:
    """A recording that has ended and is closed, of frames with positions of their own."""
    made = Recording(root, **recording)
    made.images(corners, planes)
    made.end()
    made.close()
    return made
