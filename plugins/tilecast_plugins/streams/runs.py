"""Makes runs of what other streams send: where one begins and ends, which frames were lost on the way.

`ArrayRuns` and `SeriesRuns` take parsed messages and call a `Publisher`; neither knows a socket or a clock.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tilecast_plugins.patience import STEP_S, Patience
from tilecast_protocol.messages import new_run
from tilecast_protocol.publisher import Publisher, RejectedError
from tilecast_protocol.ranges import RangeSet

from .areadetector import ArrayFrame
from .pixels import StreamError
from .series import SeriesEnd, SeriesImage, SeriesMessage, SeriesStart

log = logging.getLogger("tilecast.streams")

Affine = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What the stream does not say.

    Attributes
    ----------
    px_um : (float, float) or None
        Size of a pixel at the specimen, x and y; None: what the stream says.
    affine : Affine or None
    name : str
        What runs are called; the stream's own number is added.
    stage_stream : str
        Whose positions frames without one are joined to; empty: the instrument's only one.
    placed_by_frame : bool
        Whether frames carry their position.
    """

    px_um: tuple[float, float] | None
    affine: Affine | None = None
    name: str = "scan"
    stage_stream: str = ""
    placed_by_frame: bool = True

    def start_fields(self) -> dict[str, Any]:
        """Those of `Publisher.start` that are the same for all runs; without `px_um`."""
        return {
            "affine": self.affine,
            "pos_src": "frame" if self.placed_by_frame else "stage",
            "stage_stream": None if self.placed_by_frame else self.stage_stream or None,
        }


@dataclass(eq=False)
class _OpenRun:
    run: str
    shape: tuple[int, ...]
    dtype: str
    n_dropped: int = 0
    n_sent: int = 0
    said: set[str] = field(default_factory=set)


class _Runs:
    """What both kinds have in common: at most one run is open."""

    def __init__(self, publisher: Publisher, settings: RunSettings, patience: Patience) -> None:
        self._publisher = publisher
        self._settings = settings
        self._patience = patience
        self._open: _OpenRun | None = None
        self.n_images = 0
        self.n_dropped = 0

    def close(self) -> None:
        """End what is open: nobody knows what would have come."""
        self._end("abort")

    def _begin(self, name: str, shape: tuple[int, ...], dtype: str, px_um: tuple[float, float], **fields: Any) -> None:
        run = new_run()
        fields |= self._settings.start_fields() | {"shape": (shape[0], shape[1]), "dtype": dtype, "px_um": px_um}
        try:
            self._patience.until_taken(lambda: self._publisher.start(name, run=run, **fields))
        except RejectedError as error:  # the next frame tries again: disks are made room on
            raise StreamError(f"the daemon refuses the run: {error}") from error
        self._open = _OpenRun(run, shape, dtype)
        log.info("run %s begins: %s", run, name)

    def _send(self, open_: _OpenRun, pixels: Any, **fields: Any) -> None:
        if self._patience.until_taken(lambda: self._publisher.image(pixels, run=open_.run, timeout_s=STEP_S, **fields)):
            open_.n_sent += 1
            self.n_images += 1

    def _drop(self, open_: _OpenRun, n_frames: int, what: str) -> None:
        open_.n_dropped += n_frames
        self.n_dropped += n_frames
        log.warning("run %s: lost before they came here: %s", open_.run, what)

    def _say_once(self, open_: _OpenRun, what: str) -> None:
        if what not in open_.said:
            open_.said.add(what)
            log.warning("run %s: %s", open_.run, what)

    def _end(self, reason: Literal["done", "abort"]) -> None:
        if (open_ := self._open) is None:
            return
        self._open = None
        self._patience.until_taken(lambda: self._publisher.end(reason, run=open_.run, n_camera_dropped=open_.n_dropped))
        log.info("run %s ends: %d images sent, %d lost before they came", open_.run, open_.n_sent, open_.n_dropped)


class ArrayRuns(_Runs):
    """Frames of areaDetector, which has no word for the beginning and the end of a scan.

    A run ends when nothing comes for `idle_end_s`, when frames change their size or type, when areaDetector counts
    anew, and when the attribute that tells runs apart changes.

    Parameters
    ----------
    publisher : Publisher
    settings : RunSettings
        With `px_um`.
    patience : Patience
    idle_end_s : float
    """

    def __init__(self, publisher: Publisher, settings: RunSettings, patience: Patience, *, idle_end_s: float) -> None:
        super().__init__(publisher, settings, patience)
        if settings.px_um is None:
            raise ValueError("areaDetector does not say how large a pixel is: px_um must be given")
        self._px_um = settings.px_um
        self._idle_end_s = idle_end_s
        self._last: ArrayFrame | None = None
        self._last_s = 0.0

    def take(self, frame: ArrayFrame, now_s: float) -> None:
        """Send one frame; `now_s` by any clock that only goes forward."""
        self.tick(now_s)
        last, dtype = self._last, frame.pixels.dtype.str
        if last is not None and (
            last.pixels.shape != frame.pixels.shape
            or last.pixels.dtype != frame.pixels.dtype
            or last.run_key != frame.run_key
            or frame.unique_id < last.unique_id
        ):
            self._end("done")
            last = None
        if self._open is None:
            last = None
            name = " ".join(word for word in (self._settings.name, frame.run_key) if word)
            self._begin(name, frame.pixels.shape, dtype, self._px_um, user={"areadetector": _plain(frame.attributes)})
        open_ = self._open
        assert open_ is not None
        if last is not None and frame.unique_id > last.unique_id + 1:
            n_lost = frame.unique_id - last.unique_id - 1
            self._drop(open_, n_lost, f"{n_lost} of areaDetector's frames, after number {last.unique_id}")
        elif last is not None and frame.unique_id == last.unique_id:
            self._say_once(open_, "areaDetector's numbers of frames do not rise: losses before us cannot be seen")
        if not frame.exact:
            self._say_once(open_, "pixels above 2²⁴, or of double precision, are rounded to float32")
        self._send(
            open_,
            frame.pixels,
            pos_um=frame.pos_um,
            t0_ns=frame.t0_ns,
            t1_ns=frame.t1_ns,
            tcz=frame.tcz,
            user={"unique_id": frame.unique_id},
        )
        self._last, self._last_s = frame, now_s

    def tick(self, now_s: float) -> None:
        """End the run if nothing has come for long."""
        if self._open is not None and now_s - self._last_s > self._idle_end_s:
            self._end("done")


class SeriesRuns(_Runs):
    """Series of a Dectris detector: one run each.

    Parameters
    ----------
    publisher : Publisher
    settings : RunSettings
        Without `px_um`: the detector's own, divided by `magnification`.
    patience : Patience
    magnification : float
    """

    def __init__(
        self, publisher: Publisher, settings: RunSettings, patience: Patience, *, magnification: float = 1.0
    ) -> None:
        super().__init__(publisher, settings, patience)
        self._magnification = magnification
        self._start: SeriesStart | None = None
        self._series: str | None = None
        self._ids = RangeSet()
        self._channels: list[str] = []

    def take(self, message: SeriesMessage, _now_s: float) -> None:
        """Send what there is to send."""
        if isinstance(message, SeriesStart):
            if self._series not in (None, message.series):
                self._finish("abort")
            self._start = message
        elif isinstance(message, SeriesImage):
            self._image(message)
        else:
            self._end_series(message)

    def tick(self, _now_s: float) -> None:
        """A series ends when the detector says so, not by time."""

    def close(self) -> None:
        """End what is open: nobody knows what would have come."""
        self._finish("abort")

    def _image(self, image: SeriesImage) -> None:
        if self._series not in (None, image.series):
            self._finish("abort")
        first = next(iter(image.channels.values()))
        if any(array.shape != first.shape or array.dtype != first.dtype for array in image.channels.values()):
            raise StreamError("the channels of an image differ in size or type")
        if self._open is None:
            self._begin_series(image)
        open_ = self._open
        assert open_ is not None
        if (first.shape, first.dtype.str) != (open_.shape, open_.dtype):
            raise StreamError(f"image {image.image_id} is of another size or type than its series")
        if not self._ids.add(image.image_id):
            raise StreamError(f"image {image.image_id} of series {image.series} has come before")
        if not image.exact:
            self._say_once(open_, "pixels above 2²⁴ are rounded to float32")
        for name, pixels in image.channels.items():
            if name not in self._channels:
                self._channels.append(name)
            self._send(
                open_,
                pixels,
                pos_um=image.pos_um,
                t0_ns=image.t0_ns,
                t1_ns=image.t1_ns,
                tcz=(0, self._channels.index(name), 0),
                user={"image_id": image.image_id, "channel": name},
            )

    def _begin_series(self, image: SeriesImage) -> None:
        start = self._start if self._start is not None and self._start.series == image.series else None
        px_um = self._settings.px_um
        if px_um is None and start is not None and start.px_um is not None:
            px_um = (start.px_um[0] / self._magnification, start.px_um[1] / self._magnification)
        if px_um is None:
            raise StreamError(
                f"nobody said how large a pixel of series {image.series} is: its start was not seen (does another "
                "program listen to the detector?), and px_um is not given"
            )
        self._channels = list(start.channels if start is not None and start.channels else image.channels)
        n_images = None if start is None else start.n_images
        first = next(iter(image.channels.values()))
        self._begin(
            f"{self._settings.name} {image.series_id}",
            first.shape,
            first.dtype.str,
            px_um,
            n_expected=None if n_images is None else n_images * len(self._channels),
            channels=[{"name": name or "detector"} for name in self._channels],
            user={"dectris": {} if start is None else start.user},
        )
        self._series = image.series
        self._ids = RangeSet()

    def _end_series(self, end: SeriesEnd) -> None:
        if self._series == end.series:
            self._finish("done")
        self._start = None

    def _finish(self, reason: Literal["done", "abort"]) -> None:
        if self._open is not None and (last := self._ids.last) is not None:
            lost = self._ids.missing(last + 1)
            n_lost = sum(stop - first + 1 for first, stop in lost)
            if n_lost:
                ranges = ", ".join(f"{first}–{stop}" if first != stop else str(first) for first, stop in lost[:20])
                self._drop(self._open, n_lost * max(1, len(self._channels)), f"images {ranges} of the series")
            if reason == "abort":
                log.warning("run %s: its series has no end", self._open.run)
        self._end(reason)
        self._series = None
        self._start = None


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the first frame, as far as they are plain and few: a header has at most 64 KiB."""
    plain = {key: value for key, value in attributes.items() if isinstance(value, (str, int, float))}
    return {
        key[:60]: value[:100] if isinstance(value, str) else value
        for key, value in list(plain.items())[:50]
        if not isinstance(value, int) or abs(value) < 2**63
    }
