"""What a plugin can do, and the whole of what it needs to know of the daemon.

A plugin is a module (or an object) with functions named and marked as below, announced by an entry point:

    [project.entry-points."tilecast.plugins"]
    my-plugin = "my_package.my_module"

A function takes those of the arguments below that it needs, by name, so that hooks can get new arguments without
breaking it. `options` is the plugin's own table of the configuration, checked (`tilecast.options`). What a plugin
raises is logged with its name and counted; it does not stop the daemon. One that hangs is not waited for longer than
`plugins.timeout_s`, and one that fails again and again is not called any more. Our own plugins come in by the same
door and use nothing else of the daemon but this module, `tilecast.options`, `tilecast.reading`, `tilecast.placing`,
`tilecast.inputs`, `tilecast.testing` and the protocol.

Frames are never given to a plugin unless it asked for them when their run started: `tilecast_run_starting` returns a
`FrameStep`, what is in it is frozen in the run, and `tilecast_make_images` turns it into the function that every frame
of that run then passes through, now and whenever the mosaic is made anew.

Examples
--------
A plugin that prints what viewers are about to see:

    from tilecast.hookspecs import Committed, hookimpl

    @hookimpl
    def tilecast_committed(commit: Committed) -> None:
        print(f"{commit.run}: {len(commit.tiles)} tiles changed, revision {commit.rev}")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import pluggy
from numpy.typing import NDArray

# For plugins, which import nothing below this module.
from tilecast.errors import CalibrationError as CalibrationError
from tilecast.errors import StartRefusedError as StartRefusedError
from tilecast.errors import UnknownCalibrationError as UnknownCalibrationError
from tilecast.options import PluginOptions
from tilecast_protocol.publisher import Publisher

PROJECT = "tilecast"
ENTRY_POINT_GROUP = "tilecast.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Role: TypeAlias = Literal["dark", "flat"]
TileIndex: TypeAlias = tuple[int, int, int, int, int, int]
"""t, c, z, level, row, col, as on the wire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What one commit changed; it is in the store when this is told.

    Attributes
    ----------
    run : str
        Its uuid.
    instrument, stream : str
    epoch, rev : int
        The history, and the number of this commit in it: it rises by 1 from one commit of a run to the next. A hole
        means that the plugin was too slow and missed some.
    tiles, gone : tuple of TileIndex
        Those that were written, and those that no frame covers any more.
    t_recv_ns, t_commit_ns : int
        When the oldest frame in it arrived, and when it was committed; UTC.
    """

    run: str
    instrument: str
    stream: str
    epoch: int
    rev: int
    tiles: tuple[TileIndex, ...]
    gone: tuple[TileIndex, ...]
    t_recv_ns: int
    t_commit_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """A run that takes no more frames, or has fallen silent; its last tiles are in the store when this is told.

    Attributes
    ----------
    run : str
        Its uuid.
    name, instrument, stream : str
    folder : Path
        Where it lies; read it through `tilecast.reading`.
    state : str
        `ended`, or `idle`: that one may go on, and end later.
    report : mapping
        How many frames came, which are missing, and why (protocol/README.md).
    query : str
        Where the daemon answers questions and takes orders, which has the run open for a while yet; empty if nowhere.
    """

    run: str
    name: str
    instrument: str
    stream: str
    folder: Path
    state: str
    report: Mapping[str, Any]
    query: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """A run that is about to begin, as its `start` message says.

    Attributes
    ----------
    run : str
        Its uuid.
    name, instrument, stream : str
    shape : tuple of int
        Rows and columns of the camera's frames.
    dtype : str
        `|u1`, `<u2` or `<f4`.
    pixel_size_um : tuple of float
        x and y.
    header : mapping
        The whole header of the message (PROTOCOL): `user`, `channels`, `dark`, … Anything that a stranger can write.
    parts : tuple of bytes
        The payload parts of the message.
    calibrations : Path
        The option `calibration.path`: the folder with calibration images.
    """

    run: str
    name: str
    instrument: str
    stream: str
    shape: tuple[int, int]
    dtype: str
    pixel_size_um: tuple[float, float]
    header: Mapping[str, Any]
    parts: tuple[bytes, ...] = ()
    calibrations: Path = Path()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One of the images that each frame of a run is split into.

    Attributes
    ----------
    shape : tuple of int
        Rows and columns of the image.
    channel : int or None
        Index c of the plane that it goes to; None: that of the frame.
    corner : tuple of int or None
        Row and column of its upper left pixel, counted from where the upper left pixel of the whole frame would lie in
        the mosaic. None: its centre lies where that of the frame would, as the stage says.
    """

    shape: tuple[int, int]
    channel: int | None = None
    corner: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameStep:
    """What a plugin does with every frame of a run; frozen in the run's folder, by content.

    Attributes
    ----------
    settings : mapping
        Anything that JSON can hold: numbers, names, matrices as lists.
    arrays : mapping of str to ndarray
        Images and tables, by a name of letters, digits and _.
    views : tuple of View
        The images that it makes of a frame, if it splits it; empty: one, of the same size and at the same place. Of all
        plugins one may split; it then comes last.
    by_channel : bool
        What is done depends on the channel of the frame: `tilecast_make_images` is asked for each.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    views: tuple[View, ...] = ()
    by_channel: bool = False


class Images(NamedTuple):
    """What became of one frame.

    Attributes
    ----------
    images : sequence of ndarray
        One for each view, of its shape, and of the run's type. Frames that come in must not be changed.
    n_low, n_high : int
        Pixels that were clipped, because they fell below or above what the type holds.
    """

    images: Sequence[NDArray[Any]]
    n_low: int = 0
    n_high: int = 0


MakeImages: TypeAlias = Callable[[NDArray[Any]], Images]
"""Makes the images of one frame: a pure function, called by one thread at a time."""


class Feed(Protocol):
    """The door through which a source's messages come in: the daemon's acknowledged path, on this machine only."""

    endpoint: str
    """For a source that runs in a process of its own: `Publisher(endpoint, …)` there."""

    instrument: str
    """The option `instrument`."""

    store: Path
    """The folder of the runs (`store.path`), to read them through `tilecast.reading`."""

    @property
    def folder(self) -> Path:
        """A folder of this plugin's own, beside the runs, for what it must know after a restart; made when asked for.

        All sources of the plugin have it in common.
        """
        ...

    def tell(self, **facts: str | int | float) -> None:
        """Say how the source is doing; `stats` and `tilecast plugins` show what was said last under each name.

        Parameters
        ----------
        **facts
            Texts and numbers, such as `n_taken=12`, `waits_for="the folder /data"`.
        """
        ...

    def publisher(self, stream: str, **options: Any) -> Publisher:
        """A publisher to this daemon; `with feed.publisher("camera") as publisher: …`.

        It waits while the daemon is behind, and what it has acknowledged is on disk. The messages that the daemon
        refuses are logged with the source's name, unless `on_rejected` is given.

        Parameters
        ----------
        stream : str
            The source on the microscope that the frames are of, such as a camera.
        **options
            Further arguments of `Publisher`.
        """
        ...


class MessageSource(Protocol):
    """Something that makes messages: it watches a folder, listens to another program, drives a camera."""

    name: str
    """For messages and statistics; unique within its plugin."""

    def run(self, feed: Feed, stop: threading.Event) -> None:
        """Send messages until there are no more, or until `stop` is set (look at it at least every second).

        It runs in a thread of its own. If it raises, the daemon says so, and calls it again after a while that grows
        from one failure to the next; after `plugins.max_failures` in a row the source is over.
        """
        ...


@hookspec(firstresult=True)
def tilecast_find_calibration(
    name: str, role: Role, shape: tuple[int, int], folder: Path, options: PluginOptions
) -> NDArray[Any] | None:
    """Find the image that a run's `start` names as its `dark` or `flat`, to correct its frames before blending.

    It is asked once, when a run starts; the contents are then frozen in the run. The first plugin that knows the name
    wins.

    Parameters
    ----------
    name : str
        As it came in the message: anything that a stranger can write. It must not become a path unchecked.
    role : {"dark", "flat"}
    shape : tuple of int
        Rows and columns that the image must have.
    folder : Path
        The option `calibration.path`.
    options : PluginOptions
        The plugin's own table of the configuration.

    Returns
    -------
    ndarray or None
        An image of that shape, of any real type; None if the name is not known here.

    Raises
    ------
    UnknownCalibrationError
        If the name is not known here, and there is something to say about it. Others are asked; if none of them knows
        it either, the run is refused with this message.
    CalibrationError
        If the name is known, but the image cannot be used. Nobody else is asked, and the run is refused.
    """


@hookspec
def tilecast_run_starting(run: RunStart, options: PluginOptions) -> FrameStep | None:
    """Say what is to be done with every frame of a run that begins, or refuse the run.

    It is asked once (and again if a person has a run rebuilt with another calibration, `tilecast rebuild --steps`);
    ingest waits for the answer, at most `plugins.timeout_s`. What it returns is frozen in the run. If
    it fails, or is not called any more because it has failed too often, the run is refused: a run must not lack
    silently what it was set up for. (On one-way sockets, which cannot be answered, its frames are recorded, and blended
    when the start comes again and is accepted.)

    Parameters
    ----------
    run : RunStart
    options : PluginOptions
        The plugin's own table of the configuration.

    Returns
    -------
    FrameStep or None
        None if frames pass unchanged.

    Raises
    ------
    StartRefusedError
        If the run cannot begin like this; whoever started it is told the message.
    """


@hookspec
def tilecast_make_images(  # type: ignore[empty-body]
    step: FrameStep,
    shape: tuple[int, int],
    dtype: str,
    channel: int | None,
    applied: Mapping[str, NDArray[Any]],
) -> MakeImages:
    """Make the function that every frame of a run passes through, from what was frozen in the run.

    It is asked whenever a run is begun, loaded, rebuilt or checked, of the plugin alone that returned the step. What
    the function does must follow from the step and nothing else (no options, no clock, no memory of other frames), bit
    for bit: the mosaic is made anew from the recorded frames at any time. If it fails, the mosaic of that run stops
    where it is, its frames are recorded all the same, and a rebuild shows them.

    Parameters
    ----------
    step : FrameStep
        As it was returned by `tilecast_run_starting`; its arrays must not be changed.
    shape : tuple of int
        Rows and columns of the frames.
    dtype : str
        `|u1`, `<u2` or `<f4`; images have the same.
    channel : int or None
        Of the frames that will pass through it, if the step is `by_channel`; else None: of any.
    applied : mapping
        The images `dark` and `flat`, float32, of which frames have been corrected before: those that the run's `start`
        names, or a rebuild (`tilecast rebuild --flat`). Frozen as the step is.
    """


@hookspec
def tilecast_message_sources(instrument: str, options: PluginOptions) -> Sequence[MessageSource]:  # type: ignore[empty-body]
    """Name sources of messages, which the daemon then runs beside its sockets, each in a thread of its own.

    It is asked once, when the daemon starts.

    Parameters
    ----------
    instrument : str
        The option `instrument`.
    options : PluginOptions
        The plugin's own table of the configuration.
    """


@hookspec
def tilecast_committed(commit: Committed, options: PluginOptions) -> None:
    """Be told of a commit, after viewers have been.

    It runs in a thread that each plugin has for itself, behind a queue with a limit: a plugin that is slow misses
    commits, and sees by `rev` that it did.

    Parameters
    ----------
    commit : Committed
    options : PluginOptions
        The plugin's own table of the configuration.
    """


@hookspec
def tilecast_run_ended(run: RunEnded, options: PluginOptions) -> None:
    """Be told that a run has ended or gone idle, after its last commit.

    It runs in the same thread as `tilecast_committed`, and comes after the commits of that run. It is told again if the
    run goes on and ends again. It may take long, up to `plugins.timeout_s`; what takes longer belongs into a thread or
    process of the plugin.

    Parameters
    ----------
    run : RunEnded
    options : PluginOptions
        The plugin's own table of the configuration.
    """
