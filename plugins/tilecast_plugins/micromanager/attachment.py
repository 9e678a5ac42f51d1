"""Listens to a core of pymmcore-plus, and makes runs and frames of what its acquisitions emit.

The handlers run in the thread that acquires: they copy the pixels, note where and when, and return. Whatever goes wrong
in them is logged; none of it reaches the acquisition.
"""

from __future__ import annotations

import atexit
import functools
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self

import numpy as np
from numpy.typing import NDArray

from tilecast_plugins.patience import STEP_S
from tilecast_protocol.messages import new_run
from tilecast_protocol.publisher import Publisher
from tilecast_protocol.sockets import CurveKeys

from .optics import Affine, Optics, optics_of
from .plans import commanded_um, plan_of, plane_of, position_um
from .sender import Reason, Run, Sender, log, log_rejection

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5570"
_EXIT_S: Final = 10.0
"""How long the interpreter waits, at its end, for frames that are still on their way."""

_attached: weakref.WeakKeyDictionary[Any, Attachment] = weakref.WeakKeyDictionary()
_P = ParamSpec("_P")


def attach(
    core: Any,
    endpoint: str = DEFAULT_ENDPOINT,
    *,
    instrument: str = "micromanager",
    stream: str = "camera",
    name: str | Callable[[Any], str] | None = None,
    px_um: tuple[float, float] | None = None,
    affine: Affine | None = None,
    sensor_shape: tuple[int, int] | None = None,
    colors: Mapping[str, str] | None = None,
    snaps: bool = False,
    buffer_bytes: int = 512 * 1024 * 1024,
    codec: str = "raw",
    curve: CurveKeys | None = None,
) -> Attachment:
    """Send every frame of this core's acquisitions to a daemon, from now on.

    It returns at once, whether or not the daemon is there. What it does, it does in threads of its own: an acquisition
    never waits for the daemon, and never fails because of it.

    Parameters
    ----------
    core : CMMCorePlus, UniMMCore or MDARunner
        The core, or its `mda`.
    endpoint : str
        The daemon's option `ingest.ack`.
    instrument, stream : str
        Names of the microscope and of this camera: letters, digits, `_`, `-` and full stop.
    name : str or callable, optional
        What runs are called; a function gets the sequence. Left out: the name under which pymmcore-widgets saves it,
        or the time.
    px_um : (float, float), optional
        Size of a pixel, µm, where the core's configuration is not to be believed.
    affine : ((float, float), (float, float)), optional
        The same for its affine; ((px, 0), (0, -px)) is a stage whose y points up in the image.
    sensor_shape : (int, int), optional
        Rows and columns of the whole chip, binned as it is. Needed where an ROI is set and positions should be those
        of the ROI's centre; without it they are the stage's own.
    colors : mapping of str to str, optional
        `#rrggbb` by channel; well-known dyes have theirs.
    snaps : bool
        Send what `core.snapImage()` takes outside of acquisitions, too, as a run of its own.
    buffer_bytes : int
        Pixels that may wait in memory while the daemon is slow or away. What does not fit is lost, and named.
    codec : {"raw", "pzf"}
        As in `Publisher`.
    curve : CurveKeys, optional
        Keys for a daemon on another machine.

    Raises
    ------
    TypeError
        It is no core.
    ValueError
        It is attached already, or the endpoint is none, or a name that PROTOCOL does not allow.
    """
    runner = getattr(core, "mda", core)
    if not hasattr(getattr(runner, "events", None), "frameReady"):
        raise TypeError(
            f"attach takes a CMMCorePlus (or UniMMCore) of pymmcore-plus, or its .mda; got a {type(core).__name__}. "
            "The plain pymmcore.CMMCore has no acquisitions to listen to"
        )
    core = core if runner is not core else getattr(runner.engine, "mmcore", None)
    if core is None:
        raise TypeError("this runner has no core: give attach the core, or register an engine that has one first")
    if runner in _attached:
        raise ValueError("this core is attached already: call detach() on what attach returned first")
    if codec not in ("raw", "pzf"):
        raise ValueError(f"codec must be 'raw' or 'pzf'; got {codec!r}")
    publisher = Publisher(
        endpoint,
        instrument=instrument,
        stream=stream,
        src=f"{stream}-pymmcore",
        codec="pzf" if codec == "pzf" else "raw",
        timeout_s=STEP_S,
        curve=curve,
        on_rejected=log_rejection,
    )
    settings = _Settings(name, px_um, affine, sensor_shape, dict(colors or {}), snaps)
    attachment = Attachment(core, runner, Sender(publisher, buffer_bytes), settings)
    _attached[runner] = attachment  # psygnal holds its listeners by weak references
    return attachment


@dataclass(frozen=True, slots=True)
class _Settings:
    name: str | Callable[[Any], str] | None
    px_um: tuple[float, float] | None
    affine: Affine | None
    sensor_shape: tuple[int, int] | None
    colors: dict[str, str]
    snaps: bool


@dataclass(eq=False)
class _Open:
    """A run that is open, and what its frames must be like."""

    run: Run
    optics: Optics
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset_um: tuple[float, float]
    n_cameras: int
    channels: dict[str, int] = field(default_factory=dict)  # of events that have no index: in order of appearance


def _harmless(
    handler: Callable[Concatenate[Attachment, _P], None],
) -> Callable[Concatenate[Attachment, _P], None]:
    """A handler that raises nothing into the acquisition."""

    @functools.wraps(handler)
    def call(self: Attachment, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            with self._lock:
                handler(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  (the edge: beyond it is the microscope)
            self._complain(f"{handler.__name__}: {error!r}" if not str(error) else str(error))

    return call


class Attachment:
    """What `attach` returns: the link between a core and a daemon, until `detach`. Use it as a context manager, or not.

    Attributes
    ----------
    runs : list of Run
        Those that were begun, with what was lost of each; the last is the newest.
    """

    def __init__(self, core: Any, runner: Any, sender: Sender, settings: _Settings) -> None:
        self._core = core
        self._runner = runner
        self._sender = sender
        self._settings = settings
        self._lock = threading.RLock()
        self._open: _Open | None = None
        self._snaps: _Open | None = None
        self._sequence: Any = None
        self._last_um: tuple[float, ...] | None = None
        self._cancelled = False
        self._hopeless = False  # whether this sequence cannot be shown at all
        self._complaints: set[str] = set()
        self._signals = [
            (runner.events.sequenceStarted, self._on_started),
            (runner.events.frameReady, self._on_frame),
            (runner.events.sequenceCanceled, self._on_cancelled),
            (runner.events.sequenceFinished, self._on_finished),
        ]
        if settings.snaps:
            self._signals.append((core.events.imageSnapped, self._on_snap))
        sender.start()
        for signal, handler in self._signals:
            signal.connect(handler)
        atexit.register(self.detach, _EXIT_S)

    @property
    def runs(self) -> list[Run]:
        """Oldest first."""
        return list(self._sender.runs)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until all frames so far are safe on the daemon's disk.

        Raises
        ------
        DisconnectedError
            They are not in time; they are kept, and still sent.
        """
        self._sender.flush(timeout_s)

    def detach(self, timeout_s: float = 30.0) -> int:
        """Listen no more, send what waits for at most so long; returns the number of frames that were lost, ever.

        An acquisition that is going on goes on; its run is ended as aborted. Calling it again does nothing.
        """
        if _attached.get(self._runner) is self:
            del _attached[self._runner]
            atexit.unregister(self.detach)
            for signal, handler in self._signals:
                signal.disconnect(handler)
            with self._lock:
                self._end_open("abort")
                self._end_snaps()
        return self._sender.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    # ---- an acquisition -------------------------------------------------------------------------------------------

    @_harmless
    def _on_started(self, sequence: Any, metadata: Mapping[str, Any] | None = None) -> None:
        self._end_open("error")  # one that never finished
        self._end_snaps()
        self._sequence = sequence
        self._cancelled = self._hopeless = False
        self._complaints.clear()
        position = (metadata or {}).get("position") or {}
        start = tuple(float(position[axis]) for axis in "xyz" if position.get(axis) is not None)
        self._last_um = start if len(start) >= 2 else None

    @_harmless
    def _on_frame(self, image: NDArray[Any], event: Any, metadata: Mapping[str, Any] | None = None) -> None:
        metadata = metadata or {}
        t1_ns = time.time_ns()
        if self._open is None:
            if self._hopeless:
                return
            try:
                self._open = self._begin(image, self._sequence)
            except Exception:
                self._hopeless = True
                raise
        open_ = self._open
        number = open_.run.next_number()
        try:
            centre_um, source = position_um(metadata, event, self._last_um)
        except ValueError as error:
            open_.run.lose(number, str(error))
            return
        self._last_um = centre_um
        exposure_ms = metadata.get("exposure_ms") or event.exposure
        channel = event.channel.config if event.channel is not None else None
        t, c, z = plane_of(event, int(event.index.get("cam", 0)), open_.n_cameras)
        if channel is not None and "c" not in event.index:
            c = open_.channels.setdefault(channel, len(open_.channels))
        user = {
            "exposure_ms": None if exposure_ms is None else float(exposure_ms),
            "channel": channel,
            "camera": metadata.get("camera_device"),
            "position": source,
            "index": {str(axis): int(value) for axis, value in event.index.items()},
        }
        self._send(
            open_,
            number,
            image,
            centre_um,
            exposure_ms=None if metadata.get("hardware_triggered") else exposure_ms,
            t1_ns=t1_ns,
            tcz=(t, c, z),
            set_um=commanded_um(event),
            user=user,
        )

    @_harmless
    def _on_cancelled(self, _sequence: Any = None) -> None:
        self._cancelled = True

    @_harmless
    def _on_finished(self, _sequence: Any = None) -> None:
        finish = str(getattr(getattr(self._runner, "status", None), "finish_reason", ""))
        self._end_open("abort" if self._cancelled else "error" if finish == "errored" else "done")
        self._sequence = None

    # ---- single images --------------------------------------------------------------------------------------------

    @_harmless
    def _on_snap(self, _camera: str = "") -> None:
        if self._runner.is_running():
            return
        t1_ns = time.time_ns()
        image = self._core.getImage()
        optics = self._optics()
        if self._snaps is not None and (
            (image.shape, image.dtype, optics) != (self._snaps.shape, self._snaps.dtype, self._snaps.optics)
        ):
            self._end_snaps()
        if self._snaps is None:
            self._snaps = self._begin(image, None)
        centre_um = (*self._core.getXYPosition(), *((self._core.getPosition(),) if self._core.getFocusDevice() else ()))
        exposure_ms = float(self._core.getExposure())
        self._send(
            self._snaps,
            self._snaps.run.next_number(),
            image,
            tuple(map(float, centre_um)),
            exposure_ms=exposure_ms,
            t1_ns=t1_ns,
            user={"exposure_ms": exposure_ms, "position": "measured"},
        )

    # ---- inside ---------------------------------------------------------------------------------------------------

    def _begin(self, image: NDArray[Any], sequence: Any) -> _Open:
        """Begin a run whose frames are like this one."""
        if image.ndim != 2:
            raise ValueError(
                f"this camera makes images of shape {image.shape}: colour cannot be sent. Set its pixel type to a grey "
                "one (8bit, 16bit)"
            )
        optics = self._optics()
        n_cameras = max(1, int(self._core.getNumberOfCameraChannels()))
        shape = (int(image.shape[0]), int(image.shape[1]))
        offset_um = self._roi_offset_um(optics, shape)
        run = Run(new_run(), self._name(sequence))
        user = {
            "micromanager": {
                "camera": str(self._core.getCameraDevice()),
                "pixel_size_config": str(self._core.getCurrentPixelSizeConfig()),
                "affine": optics.source,
            }
        }
        if sequence is not None:
            user["micromanager"]["sequence"] = str(sequence.uid)

        def fields() -> dict[str, Any]:
            plan = plan_of(
                sequence, optics, shape, offset_um=offset_um, n_cameras=n_cameras, colors=self._settings.colors
            )
            return {
                "shape": shape,
                "dtype": image.dtype,
                "px_um": optics.px_um,
                "affine": optics.affine,
                "n_expected": plan.n_expected,
                "channels": plan.channels,
                "planes": plan.planes,
                "extent_um": plan.extent_um,
                "pos_src": "frame",
                "user": user,
            }

        if optics.source == "pixel size":
            self._complain(
                "this core has no pixel size affine: rows of the image are taken to run along the stage's +y, columns "
                "along +x. If neighbouring frames do not fit, measure it, or give attach(..., affine=...)"
            )
        self._sender.begin(run, fields)
        return _Open(run, optics, image.shape, image.dtype, offset_um, n_cameras)

    def _send(
        self,
        open_: _Open,
        number: int,
        image: NDArray[Any],
        centre_um: tuple[float, ...],
        *,
        exposure_ms: float | None,
        t1_ns: int,
        **fields: Any,
    ) -> None:
        if image.shape != open_.shape or image.dtype != open_.dtype:
            open_.run.lose(
                number,
                f"it is {' × '.join(map(str, image.shape))} {image.dtype}, and its run is of "
                f"{' × '.join(map(str, open_.shape))} {open_.dtype}: cameras, regions and binning stay as they are "
                "within a run",
            )
            return
        dx_um, dy_um = open_.offset_um
        fields["pos_um"] = (centre_um[0] + dx_um, centre_um[1] + dy_um, *centre_um[2:])
        if fields.get("set_um") is not None:
            fields["set_um"] = (fields["set_um"][0] + dx_um, fields["set_um"][1] + dy_um, *fields["set_um"][2:])
        if exposure_ms is not None and exposure_ms >= 0:  # what is left out is unknown: a triggered frame was waiting
            fields |= {"t0_ns": t1_ns - round(exposure_ms * 1e6), "t1_ns": t1_ns}
        self._sender.image(open_.run, number, np.array(image, order="C", copy=True), fields)

    def _optics(self) -> Optics:
        return optics_of(self._core, px_um=self._settings.px_um, affine=self._settings.affine)

    def _roi_offset_um(self, optics: Optics, shape: tuple[int, int]) -> tuple[float, float]:
        """From the centre of the chip, of which the stage speaks, to that of the delivered image."""
        x, y, width, height = self._core.getROI()
        if self._settings.sensor_shape is None:
            if (x, y) != (0, 0):
                self._complain(
                    f"the camera delivers a part of its chip ({width} × {height} pixels from {x}, {y}): the mosaic "
                    "lies where the stage says, as if that were the middle of the chip. To have it lie where it is, "
                    "give attach(..., sensor_shape=(rows, columns))"
                )
            return 0.0, 0.0
        rows, columns = self._settings.sensor_shape
        return optics.shift_um(x + shape[1] / 2 - columns / 2, y + shape[0] / 2 - rows / 2)

    def _name(self, sequence: Any) -> str:
        name = self._settings.name
        if callable(name):
            return str(name(sequence))
        if name is not None:
            return name
        if sequence is None:
            return time.strftime("snaps %Y-%m-%d %H:%M:%S")
        saved = (sequence.metadata.get("pymmcore_widgets") or {}).get("save_name")
        return str(saved) if saved else time.strftime("MDA %Y-%m-%d %H:%M:%S")

    def _end_open(self, reason: Reason) -> None:
        if self._open is not None:
            self._sender.end(self._open.run, reason)
            self._open = None

    def _end_snaps(self) -> None:
        if self._snaps is not None:
            self._sender.end(self._snaps.run, "done")
            self._snaps = None

    def _complain(self, what: str) -> None:
        """Log it once per acquisition."""
        if what not in self._complaints:
            self._complaints.add(what)
            log.warning("tilecast: %s", what)
