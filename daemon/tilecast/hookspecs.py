"""What a plugin can do, and the whole of what it needs to know of the daemon.

A plugin is a module (or an object) with functions named and marked as below, announced by an entry point:

    [project.entry-points."tilecast.plugins"]
    my-plugin = "my_package.my_module"

A function takes those of the arguments below that it needs, by name, so that hooks can get new arguments without
breaking it. What a plugin raises is logged with its name and counted; it does not stop the daemon. One that hangs is
not waited for longer than `plugins.timeout_s`, and one that fails again and again is not called any more. Our own
plugins come in by the same door and use nothing else of the daemon but this module, `tilecast.testing` and the
protocol.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import pluggy
from numpy.typing import NDArray

# For plugins, which import nothing below this module.
from tilecast.errors import CalibrationError as CalibrationError
from tilecast.errors import UnknownCalibrationError as UnknownCalibrationError

PROJECT = "tilecast"
ENTRY_POINT_GROUP = "tilecast.plugins"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Role: TypeAlias = Literal["dark", "flat"]
TileIndex: TypeAlias = tuple[int, int, int, int, int, int]
"""t, c, z, level, row, col, as on the wire."""

Emit: TypeAlias = Callable[[Sequence[bytes | memoryview]], None]
"""Hands one message, `[topic, header, payload…]` as on the wire, to the daemon; blocks while the daemon is behind."""


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


class MessageSource(Protocol):
    """Something that makes messages: it watches a folder, listens to another program, drives a camera."""

    name: str
    """For messages and statistics; unique within its plugin."""

    def run(self, emit: Emit, stop: threading.Event) -> None:
        """Emit messages until there are no more, or until `stop` is set (look at it at least every second).

        It runs in a thread of its own. What it emits is checked like anything that comes from a socket. If it raises,
        the source is over, and the daemon says so.
        """
        ...


@hookspec(firstresult=True)
def tilecast_find_calibration(name: str, role: Role, shape: tuple[int, int], folder: Path) -> NDArray[Any] | None:
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
def tilecast_message_sources(instrument: str) -> Sequence[MessageSource]:  # type: ignore[empty-body]  # as above
    """Name sources of messages, which the daemon then runs beside its sockets.

    It is asked once, when the daemon starts.

    Parameters
    ----------
    instrument : str
        The option `instrument`, for the topics of what is emitted.
    """


@hookspec
def tilecast_committed(commit: Committed) -> None:
    """Be told of a commit, after viewers have been.

    It runs in a thread that each plugin has for itself, behind a queue with a limit: a plugin that is slow misses
    commits, and sees by `rev` that it did.

    Parameters
    ----------
    commit : Committed
    """
