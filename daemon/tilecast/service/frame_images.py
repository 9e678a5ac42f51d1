"""How the frames of a run become the images that are blended: its calibration, then what plugins do, all of it frozen.

    frame ─ calibration (dark, flat) ─ step of a plugin ─ … ─ step of the plugin that splits ─▶ one image for each view

What a plugin does is decided when the run starts (`hookspecs.tilecast_run_starting`) and kept in the run's folder by
content: settings in `frozen.json`, arrays beside it. Here that is written, read again and checked, and every frame is
taken through it. A run in whose frames no plugin takes part passes none of this, and costs nothing for it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tilecast import calibration as cal
from tilecast.errors import StartRefusedError, StoreError
from tilecast.geometry import Placement, PlaneKey
from tilecast.guests import guests
from tilecast.hookspecs import FrameStep, MakeImages, RunStart, View
from tilecast.plugins import PluginFailedError, Plugins
from tilecast_protocol.errors import TilecastError
from tilecast_protocol.headers import unpack_header
from tilecast_protocol.messages import Start, encode


@dataclass(frozen=True, slots=True)
class FrozenStep:
    """What is kept of a plugin's `FrameStep` in `frozen.json` and in the store.

    Attributes
    ----------
    plugin, version : str
        Who made it; the version of its package is for people.
    settings : dict
    arrays : dict of str to str
        SHA-256 of each array's NPY file, by its name.
    views : tuple of View
    by_channel : bool
        Whether what is done depends on the channel of the frame.
    """

    plugin: str
    version: str
    settings: dict[str, Any]
    arrays: dict[str, str]
    views: tuple[View, ...]
    by_channel: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        views = [
            {"shape": list(view.shape), "channel": view.channel, "corner": view.corner and list(view.corner)}
            for view in self.views
        ]
        about = {"plugin": self.plugin, "version": self.version}
        by_channel = {"by_channel": True} if self.by_channel else {}
        return about | {"settings": self.settings, "arrays": self.arrays, "views": views} | by_channel

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From what :meth:`as_dict` gave; KeyError, TypeError or ValueError if something is missing."""
        views = tuple(
            View(
                shape=_pair(view["shape"]),
                channel=view["channel"],
                corner=None if view["corner"] is None else _pair(view["corner"]),
            )
            for view in values["views"]
        )
        return cls(
            str(values["plugin"]),
            str(values["version"]),
            dict(values["settings"]),
            dict(values["arrays"]),
            views,
            bool(values.get("by_channel", False)),
        )

    def file_name(self, array: str) -> str:
        """What an array of it is called in the run's folder, as `frozen_path` takes it."""
        return f"step-{self.plugin}-{array}.npy"


def again_name(name: str, sha256: str) -> str:
    """What a file is called that is frozen by a rebuild: it lies beside the one that it will follow, or has followed.

    >>> again_name("flat.npy", "0123456789abcdef" * 4)
    'flat.0123456789abcdef.npy'
    """
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{sha256[:16]}.{suffix}"


def frozen_path(folder: Path, name: str, sha256: str) -> Path:
    """Where a file that is frozen in a run lies: as a rebuild froze it, if one did, or else as the start did."""
    again = folder / again_name(name, sha256)
    return again if again.exists() else folder / name


def _pair(values: Sequence[Any]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


@dataclass(slots=True, eq=False)
class Step:
    """One step, ready to be taken.

    Attributes
    ----------
    frozen : FrozenStep
    arrays : dict of str to ndarray
    plugins : Plugins
        Who calls it.
    start : Start
    calibration : Calibration
        What is done to frames before they come here.
    trouble : str
        Why it cannot be used.
    """

    frozen: FrozenStep
    arrays: dict[str, NDArray[Any]]
    plugins: Plugins
    start: Start
    calibration: cal.Calibration
    trouble: str = ""
    _makes: dict[int | None, MakeImages] = field(default_factory=dict)

    def prepare(self, channel: int | None) -> None:
        """Have the function of the plugin made; if it cannot be, `trouble` says why."""
        frozen, start = self.frozen, self.start
        images = {"dark": self.calibration.dark, "flat": self.calibration.flat}
        applied = {role: image for role, image in images.items() if image is not None}
        try:
            self._makes[channel] = self.plugins.make_images(
                frozen.plugin, self.told, shape=start.shape, dtype=start.dtype, channel=channel, applied=applied
            )
        except TilecastError as error:
            self.trouble = str(error)

    @property
    def told(self) -> FrameStep:
        """What the plugin returned when the run began."""
        frozen = self.frozen
        return FrameStep(settings=frozen.settings, arrays=self.arrays, views=frozen.views, by_channel=frozen.by_channel)

    def after(self, calibration: cal.Calibration) -> Step:
        """The same for frames that have been calibrated in another way."""
        return _ready(self.frozen, self.arrays, self.start, self.plugins, calibration)

    def make(self, channel: int) -> MakeImages:
        """The function of the plugin for frames of a channel.

        Raises
        ------
        PluginFailedError
            If there is none.
        """
        asked = channel if self.frozen.by_channel else None
        if asked not in self._makes and not self.trouble:
            self.prepare(asked)
        if self.trouble:
            raise PluginFailedError(self.trouble)
        return self._makes[asked]


@dataclass(eq=False)
class FrameImages:
    """What every frame of a run becomes.

    Parameters
    ----------
    calibration : Calibration
    steps : sequence of Step
        In their order; the one that splits frames, if there is one, is the last.

    Attributes
    ----------
    """

    calibration: cal.Calibration
    steps: Sequence[Step] = ()

    @cached_property
    def views(self) -> tuple[View, ...]:
        """What a frame is split into; empty if it is not."""
        return self.steps[-1].frozen.views if self.steps else ()

    @property
    def is_identity(self) -> bool:
        """Whether frames pass unchanged."""
        return self.calibration.is_identity and not self.steps

    @property
    def by_channel(self) -> bool:
        """Whether it must be known of which channel a frame is."""
        return any(step.frozen.by_channel for step in self.steps)

    @property
    def frozen(self) -> tuple[FrozenStep, ...]:
        """What is kept of the steps."""
        return tuple(step.frozen for step in self.steps)

    def files(self) -> Iterator[tuple[str, str, bytes]]:
        """Name, digest and contents of every file that is frozen."""
        for role, image in (("dark", self.calibration.dark), ("flat", self.calibration.flat)):
            if image is not None:
                yield f"{role}.npy", self.calibration.sha256, cal.dump_npy(image)
        for step in self.steps:
            for name, array in step.arrays.items():
                yield step.frozen.file_name(name), step.frozen.arrays[name], cal.dump_npy(array)

    def of(self, pixels: NDArray[Any], channel: int = 0) -> MadeImages:
        """The images of one frame, in the order of its views.

        Parameters
        ----------
        pixels : ndarray, 2-D
            As the camera sent them; not changed.
        channel : int
            Of the frame; needed if it is `by_channel`.

        Raises
        ------
        PluginFailedError
            If a plugin that takes part is not there, fails, hangs, or gives something else than it said.
        """
        corrected = cal.apply(pixels, self.calibration)
        made = MadeImages((corrected.pixels,), corrected.n_low, corrected.n_high)
        for step in self.steps:
            made = _taken(step, made, channel)
        return made


class MadeImages(NamedTuple):
    """What became of a frame, and how many of its pixels fell below and above what their type holds."""

    images: tuple[NDArray[Any], ...]
    n_low: int
    n_high: int


def _taken(step: Step, before: MadeImages, channel: int) -> MadeImages:
    pixels = before.images[0]
    plugin = step.frozen.plugin
    make = step.make(channel)
    frame = pixels.view()
    frame.flags.writeable = False
    found = step.plugins.images(plugin, make, frame)
    shapes = [view.shape for view in step.frozen.views] or [pixels.shape]
    images = tuple(found.images)
    got = [(getattr(image, "shape", None), str(getattr(image, "dtype", None))) for image in images]
    if got != [(shape, str(pixels.dtype)) for shape in shapes]:
        raise PluginFailedError(
            f"the plugin {plugin} should make images of {pixels.dtype} and shapes {shapes} of a frame; got {got}"
        )
    # A part of a frame is not contiguous, and kernels want it so.
    contiguous = tuple(map(np.ascontiguousarray, images))
    return MadeImages(contiguous, before.n_low + int(found.n_low), before.n_high + int(found.n_high))


def placements_of(placement: Placement, views: Sequence[View]) -> tuple[Placement, ...]:
    """Where the views of a frame lie, from where the whole frame would lie.

    >>> frame = Placement(0, 0, PlaneKey(), 10, 20, 4, 8, "stage", 0)
    >>> halves = [View(shape=(4, 4), channel=c) for c in (0, 1)]
    >>> [(one.view, one.plane.c, one.row, one.col) for one in placements_of(frame, halves)]
    [(0, 0, 10, 22), (1, 1, 10, 22)]
    """
    if not views:
        return (placement,)
    found = []
    for number, view in enumerate(views):
        (height, width), plane = view.shape, placement.plane
        down, right = _corner_of(view, (placement.height, placement.width))
        found.append(
            Placement(
                placement.frame,
                number,
                plane if view.channel is None else PlaneKey(plane.t, view.channel, plane.z),
                placement.row + down,
                placement.col + right,
                height,
                width,
                placement.source,
                placement.index,
            )
        )
    return tuple(found)


def whole_of(view: Placement, views: Sequence[View], shape: tuple[int, int], channel: int) -> Placement:
    """Where the whole frame lies, of that shape and channel, of which this is a view: the way back.

    >>> frame = Placement(0, 0, PlaneKey(), 10, 20, 4, 8, "stage", 0)
    >>> halves = [View(shape=(4, 4), channel=c) for c in (0, 1)]
    >>> [whole_of(one, halves, (4, 8), 0) == frame for one in placements_of(frame, halves)]
    [True, True]
    """
    down, right = _corner_of(views[view.view], shape)
    return replace(
        view,
        view=0,
        plane=PlaneKey(view.plane.t, channel, view.plane.z),
        row=view.row - down,
        col=view.col - right,
        height=shape[0],
        width=shape[1],
    )


def _corner_of(view: View, shape: tuple[int, int]) -> tuple[int, int]:
    return view.corner or ((shape[0] - view.shape[0]) // 2, (shape[1] - view.shape[1]) // 2)


def run_start(start: Start, calibrations: Path) -> RunStart:
    """A `start` message as plugins are told of it, with the option `calibration.path`."""
    return RunStart(
        run=start.run,
        name=start.name,
        instrument=start.instrument,
        stream=start.stream,
        shape=start.shape,
        dtype=start.dtype,
        pixel_size_um=start.px_um,
        header=unpack_header(bytes(encode(start)[1])),
        parts=tuple(bytes(part) for part in start.parts),
        calibrations=calibrations,
    )


def ask_for_steps(start: Start, plugins: Plugins, calibrations: Path, calibration: cal.Calibration) -> list[Step]:
    """What plugins want to do with the frames of a run that begins, after they have been calibrated.

    Raises
    ------
    StartRefusedError
        If one refuses the run, fails, or cannot do what it says.
    """
    if not plugins.takes_starts:
        return []
    versions = {guest.name: guest.version for guest in guests()}
    steps = []
    for plugin, wanted in plugins.run_starting(run_start(start, calibrations)):
        arrays = {name: np.array(array, order="C") for name, array in wanted.arrays.items()}
        digests = {name: _sha256(array) for name, array in arrays.items()}
        settings = json.loads(json.dumps(dict(wanted.settings)))  # as they will be read again: a tuple is a list then
        frozen = FrozenStep(
            plugin, versions.get(plugin, ""), settings, digests, tuple(wanted.views), bool(wanted.by_channel)
        )
        step = _ready(frozen, arrays, start, plugins, calibration)
        if step.trouble:
            raise StartRefusedError(step.trouble)
        steps.append(step)
    return steps


def load_steps(
    folder: Path, start: Start, frozen: Sequence[FrozenStep], plugins: Plugins | None, calibration: cal.Calibration
) -> list[Step]:
    """The steps that were frozen in a run's folder.

    Raises
    ------
    StoreError
        If an array of one cannot be read, or is another than was frozen.
    """
    if not frozen:
        return []
    plugins = plugins or Plugins.load()
    return [_ready(step, _read_arrays(folder, step), start, plugins, calibration) for step in frozen]


def _ready(
    frozen: FrozenStep,
    arrays: dict[str, NDArray[Any]],
    start: Start,
    plugins: Plugins,
    calibration: cal.Calibration,
) -> Step:
    for array in arrays.values():
        array.flags.writeable = False
    step = Step(frozen, arrays, plugins, start, calibration)
    step.prepare(0 if frozen.by_channel else None)
    return step


def _read_arrays(folder: Path, step: FrozenStep) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, sha256 in step.arrays.items():
        path = frozen_path(folder, step.file_name(name), sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {path}, which is frozen in the run: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(f"{path} is not what was frozen at the start of the run")
        arrays[name] = np.load(io.BytesIO(data), allow_pickle=False)
    return arrays


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(cal.dump_npy(array)).hexdigest()
