"""Send frames, stage positions and events to tilecast: what a camera or stage script imports.

    from tilecast_protocol.publisher import Publisher

    with Publisher("tcp://127.0.0.1:5570", instrument="scope-2", stream="orca") as publisher:
        publisher.start("liver, slice 12", shape=(2048, 2048), dtype="<u2", px_um=(0.325, 0.325))
        for x_um, y_um in scan_positions:
            stage.move_to(x_um, y_um)
            publisher.image(camera.snap(), pos_um=(x_um, y_um))
        publisher.end()

Leaving the `with` waits until the daemon has everything safely on disk, and raises if it refused something. In between
the script need not think of the network: `image` copies the pixels and returns; a thread of the publisher sends them,
keeps them until they are acknowledged, and sends them again after a reconnect. If the daemon is behind, `image` waits;
if it is not to be reached, `image` raises `DisconnectedError` after `timeout_s`.

There are three ways to send (`mode`):

========  ==============================  ======================================================================
`ack`     the daemon's `ingest.ack`       every message is acknowledged when it is safe; the recommended way
`push`    the daemon's `ingest.pull`      one way; `image` waits while the daemon is behind
`pub`     an endpoint that we bind and    one way; what a subscriber is too slow for is lost, and the daemon
          the daemon's `ingest.sub` names reports it
========  ==============================  ======================================================================

A script that died can go on with its run: note what `start` returned and give it to `resume`, or to `start(run=…)`, on
the acknowledged path. A run stays open until `end`, also when the `with` block is left by an exception: the daemon
calls it idle after a while, and it can still be resumed.

How the conversation goes is in PROTOCOL section 2; which message is next and what became of it is decided in `window`;
the thread and the socket are in `courier`. This module makes messages out of what a script has, and waits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from . import checks
from .courier import LARGEST_SEQ, AcknowledgedCourier, Courier, OneWayCourier, Outbox
from .errors import DisconnectedError, TilecastError
from .messages import (
    DTYPES,
    Buffer,
    End,
    Event,
    Hello,
    Image,
    PublisherMessage,
    RunState,
    Stage,
    Start,
    Welcome,
    crc32,
    new_boot,
    new_run,
)
from .sockets import CurveKeys
from .window import Rejected, SendWindow

Mode: TypeAlias = Literal["ack", "push", "pub"]

ONE_WAY_IMAGES: Final = 2
"""Images that may wait for a one-way socket, beside what its own queue holds."""

MAX_LINGER_S: Final = 24 * 3600.0
"""Longest time that closing waits for a one-way socket, also where the publisher may wait for ever."""


class RejectedError(TilecastError):
    """The daemon refused messages.

    Parameters
    ----------
    rejected : sequence of Rejected
        What was refused and why, as far as it is remembered.
    n_rejected : int
        How many there were.
    """

    def __init__(self, rejected: Sequence[Rejected], n_rejected: int) -> None:
        more = f" (and {n_rejected - 1} more, see .rejected)" if n_rejected > 1 else ""
        super().__init__(f"{rejected[0]}{more}")
        self.rejected = tuple(rejected)
        self.n_rejected = n_rejected


@dataclass(slots=True)
class _CallersRun:
    """A run as the caller sees it: `start` is None where it was resumed without."""

    start: Start | None
    next_frame: int


class Publisher:
    """One source of messages, on one socket.

    Any thread may call it. Times are UTC in nanoseconds, positions in µm, waiting times in seconds.

    Parameters
    ----------
    endpoint : str
        `tcp://host:port` or `ipc:///path`; see `mode` in the module's description.
    instrument, stream : str
        Which microscope, and which source on it.
    src : str, optional
        Name of this publisher; the stream's if it is left out. Two publishers of a stream need different names.
    mode : {"ack", "push", "pub"}
        How to send.
    curve : CurveKeys, optional
        Keys for an encrypted connection. With `pub` we are the server, and whoever knows our public key may listen.
    codec : {"raw", "pzf"}
        How `image` sends pixels: as they are, or losslessly compressed (which takes a few ms per frame here, spares
        the network, and spares the daemon the work).
    timeout_s : float
        How long a call may wait before it raises; `math.inf` waits for ever.
    heartbeat_s : float
        Time between heartbeats.
    silence_s : float
        On the acknowledged path: after so long without a word from the daemon the connection is made anew.
    queue_bytes, frame_bytes : int
        On one-way sockets: how much may wait in the socket's queue, and how large a frame is, about; ZeroMQ counts
        messages, not bytes.
    on_rejected : callable, optional
        Called with each `Rejected`, from the publisher's thread, for which it must not wait; without it, `flush`, and
        leaving the `with`, raise `RejectedError`.

    Attributes
    ----------
    instrument, stream, src, boot : str
        Who we are; `boot` is new for each publisher.

    Raises
    ------
    MalformedError
        A name that PROTOCOL does not allow.
    ValueError
        An endpoint that is none.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        instrument: str,
        stream: str,
        src: str | None = None,
        mode: Mode = "ack",
        curve: CurveKeys | None = None,
        codec: Literal["raw", "pzf"] = "raw",
        timeout_s: float = 30.0,
        heartbeat_s: float = 1.0,
        silence_s: float = 5.0,
        queue_bytes: int = 256 * 1024 * 1024,
        frame_bytes: int = 8 * 1024 * 1024,
        on_rejected: Callable[[Rejected], None] | None = None,
    ) -> None:
        if mode not in ("ack", "push", "pub"):
            raise ValueError(f"mode must be 'ack', 'push' or 'pub'; got {mode!r}")
        self.boot = new_boot()
        who = Hello(
            instrument=instrument, stream=stream, src=stream if src is None else src, boot=self.boot, next_seq=0
        )
        self.instrument, self.stream, self.src = who.instrument, who.stream, who.src
        self.mode: Mode = mode
        self.codec = codec
        self.timeout_s = timeout_s
        self._raises_rejections = on_rejected is None
        self._n_told = 0  # of the rejections, how many were raised
        self._runs: dict[str, _CallersRun] = {}
        self._current: str | None = None
        self._closed = False
        window = SendWindow(acknowledged=mode == "ack", credit=0 if mode == "ack" else ONE_WAY_IMAGES)
        self._outbox = Outbox(window, on_rejected)
        self._courier: Courier
        if mode == "ack":
            self._courier = AcknowledgedCourier(
                self._outbox, endpoint, who, curve=curve, heartbeat_s=heartbeat_s, silence_s=silence_s
            )
        else:
            self._courier = OneWayCourier(
                self._outbox,
                endpoint,
                who,
                curve=curve,
                heartbeat_s=heartbeat_s,
                publish=mode == "pub",
                hwm=max(2, queue_bytes // frame_bytes),
            )
        self._courier.start()

    # ---- what a script calls --------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        *,
        shape: tuple[int, int],
        dtype: DTypeLike,
        px_um: tuple[float, float],
        run: str | None = None,
        affine: tuple[tuple[float, float], tuple[float, float]] | None = None,
        n_expected: int | None = None,
        channels: Sequence[Mapping[str, Any]] | None = None,
        planes: Mapping[str, int] | None = None,
        extent_um: tuple[tuple[float, float], tuple[float, float]] | None = None,
        pos_src: Literal["frame", "stage"] | None = None,
        stage_stream: str | None = None,
        dark: str | None = None,
        flat: str | None = None,
        parts: Sequence[Buffer] = (),
        blend: str | None = None,
        group: str | None = None,
        resume_of: str | None = None,
        replay_of: str | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> str:
        """Begin a run; on the acknowledged path, wait until the daemon has it.

        Parameters
        ----------
        name : str
            What people call it.
        shape : (int, int)
            Rows and columns of every frame.
        dtype : str or dtype
            `uint8`, `uint16` or `float32`, in any spelling of numpy.
        px_um : (float, float)
            Size of a pixel along x (columns) and y (rows), in µm.
        run : str, optional
            Uuid of the run; a new one if it is left out. With the uuid of a run that the daemon knows, the run goes on
            (frame numbers too); everything else must then be as it was.
        dark, flat : str, optional
            Name of a calibration, or `part:<n>` for `parts[n]`.
        parts : sequence of bytes, optional
            Payload that `dark` and `flat` refer to; the publisher adds their SHA-256.
        affine, n_expected, channels, planes, extent_um, pos_src, stage_stream, blend, group, resume_of, replay_of, user
            As in PROTOCOL section 1.

        Returns
        -------
        str
            Uuid of the run.

        Raises
        ------
        MalformedError
            A value that PROTOCOL does not allow.
        RejectedError
            The daemon refuses the run.
        DisconnectedError
            No daemon answers.
        """
        message = Start(
            **self._envelope(),
            run=new_run() if run is None else run,
            name=name,
            shape=shape,
            dtype=_wire_dtype(dtype),
            px_um=px_um,
            affine=affine,
            n_expected=n_expected,
            channels=None if channels is None else tuple(dict(channel) for channel in channels),
            planes=None if planes is None else dict(planes),
            extent_um=extent_um,
            pos_src=pos_src,
            stage_stream=stage_stream,
            dark=dark,
            flat=flat,
            blend=blend,
            group=group,
            resume_of=resume_of,
            replay_of=replay_of,
            nbytes=tuple(len(memoryview(part).cast("B")) for part in parts) or None,
            sha256=tuple(hashlib.sha256(part).hexdigest() for part in parts) or None,
            user=dict(user or {}),
            parts=tuple(bytes(part) for part in parts),
        )
        self._start(message)
        return message.run

    def resume(self, run: str) -> RunState:
        """Go on with a run that an earlier publisher of this stream began and that the daemon knows.

        Where the script still has what it gave to `start`, `start(run=…)` is better: frames are then checked against
        it, and a daemon that has lost the run can be told it again.

        Parameters
        ----------
        run : str
            What `start` returned.

        Returns
        -------
        RunState
            `next_frame` is the number that the next image gets; `received` are the ranges [first, last] of frames
            that the daemon has. Those missing in between may be sent again with `image(…, frame=…)`.

        Raises
        ------
        ValueError
            The daemon knows no such run of this stream; or this is a one-way socket, where nobody can tell how far the
            run came.
        DisconnectedError
            No daemon answers.
        """
        if self.mode != "ack":
            raise ValueError(f"resume() needs mode='ack'; with mode={self.mode!r} call start(run=…) and give frame=…")
        wanted = checks.uuid(run, "run")
        self.wait_connected()
        runs = self._known_runs()
        if wanted not in runs:
            raise ValueError(
                f"the daemon at {self.endpoint} knows no run {run} of {self.instrument}/{self.stream}; "
                f"it knows: {', '.join(runs) or 'none'}"
            )
        with self._outbox.changed:
            self._runs[wanted] = _CallersRun(None, runs[wanted].next_frame)
            self._current = wanted
        return runs[wanted]

    def image(
        self,
        pixels: ArrayLike,
        *,
        pos_um: Sequence[float] | None = None,
        t0_ns: int | None = None,
        t1_ns: int | None = None,
        tcz: tuple[int, int, int] = (0, 0, 0),
        frame: int | None = None,
        set_um: Sequence[float] | None = None,
        moving: bool | None = None,
        status: int = 0,
        run: str | None = None,
        user: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Send one frame. The pixels are copied: the camera may overwrite them when this returns.

        Parameters
        ----------
        pixels : array_like, 2-D
            Rows and columns, of the shape and pixel type that the run was started with.
        pos_um : sequence of 2 or 3 float, optional
            Measured stage position of the centre of the image, µm. Left out, the image is joined to the stage stream.
        t0_ns, t1_ns : int, optional
            Start and end of the exposure.
        tcz : (int, int, int)
            The plane.
        frame : int, optional
            Its number in the run; one more than the last if it is left out.
        set_um : sequence of float, optional
            Commanded position, µm.
        moving : bool, optional
            Whether the stage moved during the exposure.
        status : int
            0 good, 1 incomplete, 2 repeated, 3 saturated.
        run : str, optional
            Which run, where several are open; the one begun last if it is left out.
        user : mapping, optional
            Whatever should be kept with the frame.
        timeout_s : float, optional
            In place of the publisher's.

        Returns
        -------
        int
            The frame's number.

        Raises
        ------
        ValueError
            No run is open, or the pixels are not of its shape and type (MalformedError is one too).
        DisconnectedError
            The daemon took nothing for `timeout_s`; the frame was not queued and may be given again.
        """
        run, known = self._open_run(run)
        array = _checked(np.asarray(pixels), known.start)
        values = {
            **self._envelope(),
            "run": run,
            "codec": self.codec,
            "tcz": tcz,
            "t0_ns": t0_ns,
            "t1_ns": t1_ns,
            "pos_um": _position(pos_um),
            "set_um": _position(set_um),
            "moving": moving,
            "status": status,
            "user": dict(user or {}),
        }
        with self._room_for_image(timeout_s):
            payload = self._encoded(array)
            values |= {"nbytes": payload.nbytes, "crc32": crc32(payload), "parts": (payload,)}
            with self._outbox.changed:
                number = known.next_frame if frame is None else frame
                self._outbox.put(Image(frame=number, **values))
                known.next_frame = max(known.next_frame, number + 1)
        return number

    def stage(
        self,
        pos_um: Sequence[float],
        *,
        t_ns: int | None = None,
        moving: bool | None = None,
        set_um: Sequence[float] | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a stage position.

        Parameters
        ----------
        pos_um : sequence of 2 or 3 float
            x, y (and z), µm.
        t_ns : int, optional
            When it was read; now if it is left out.
        moving, set_um, user
            As in `image`.

        Raises
        ------
        MalformedError
            A value that PROTOCOL does not allow.
        DisconnectedError
            Too many messages wait for the daemon already.
        """
        self._put_small(
            Stage(
                **self._envelope(t_ns),
                pos_um=tuple(pos_um),
                moving=moving,
                set_um=_position(set_um),
                user=dict(user or {}),
            )
        )

    def event(self, name: str, *, run: str | None = None, user: Mapping[str, Any] | None = None) -> None:
        """Send anything worth keeping: focus lost, shutter, a person's note. Raises as `stage`."""
        self._put_small(Event(**self._envelope(), name=name, run=run, user=dict(user or {})))

    def end(
        self,
        reason: Literal["done", "abort", "error"] = "done",
        *,
        run: str | None = None,
        n_sent: int | None = None,
        n_camera_dropped: int | None = None,
        user: Mapping[str, Any] | None = None,
    ) -> None:
        """End a run. Does not wait; `flush` does, and leaving the `with`.

        Parameters
        ----------
        reason : {"done", "abort", "error"}
            Why.
        run : str, optional
            Which; the one begun last if it is left out.
        n_sent : int, optional
            How many frames there were, if not all that were numbered have been given to `image`: those after the last
            one are then reported missing, too.
        n_camera_dropped : int, optional
            Frames that the camera or its driver is known to have lost.
        user : mapping, optional
            Whatever should be kept with it.

        Raises
        ------
        ValueError
            No run is open.
        DisconnectedError
            Too many messages wait for the daemon already.
        """
        run, known = self._open_run(run)
        self._put_small(
            End(
                **self._envelope(),
                run=run,
                reason=reason,
                n_sent=known.next_frame if n_sent is None else n_sent,
                n_camera_dropped=n_camera_dropped,
                user=dict(user or {}),
            )
        )
        self._forget(run)

    def send(self, message: PublisherMessage, *, timeout_s: float | None = None) -> None:
        """Send a message that was built or recorded elsewhere, as one of ours: all but who sends it stays as it is.

        Its `instrument`, `src`, `boot` and `seq` are replaced, and its `stream` unless it is of a stage; its time is
        kept. An image without a checksum gets one. A `start` is waited for as in `start`; an image waits for room as
        in `image`.

        Raises
        ------
        RejectedError, DisconnectedError
            As `start` and `image`.
        """
        stream = message.stream if isinstance(message, Stage) else self.stream
        message = replace(
            message, instrument=self.instrument, stream=stream, src=self.src, boot=self.boot, seq=LARGEST_SEQ
        )
        if isinstance(message, Start):
            self._start(message)
        elif isinstance(message, Image):
            if message.crc32 is None and message.parts:
                message = replace(message, crc32=crc32(message.parts[0]))
            with self._room_for_image(timeout_s), self._outbox.changed:
                self._outbox.put(message)
                known = self._runs.get(message.run)
                if known is not None:
                    known.next_frame = max(known.next_frame, message.frame + 1)
        else:
            self._put_small(message)
            if isinstance(message, End):
                self._forget(message.run)

    def wait_connected(self, timeout_s: float | None = None) -> None:
        """Wait until the other side is there: the daemon has welcomed us, takes what we push, or has subscribed.

        Raises
        ------
        DisconnectedError
            It was not there in time; says what was seen instead.
        """
        self._wait(lambda: self._outbox.connected, timeout_s, self._why_unreachable)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything sent so far is settled (on one-way sockets: has been taken by the socket).

        Raises
        ------
        RejectedError
            The daemon refused something since the last time it was told, and there is no `on_rejected`.
        DisconnectedError
            Something was not settled in time; it is kept, and still sent if the daemon comes back.
        """
        with self._outbox.changed:
            last = self._outbox.last_ticket
            self._wait(lambda: self._outbox.all_settled(last), timeout_s, self._why_unsettled)
            if self._raises_rejections and self.n_rejected > self._n_told:
                n_new, self._n_told = self.n_rejected - self._n_told, self.n_rejected
                raise RejectedError(self.rejected[-n_new:], n_new)

    def close(self, timeout_s: float | None = None) -> None:
        """Flush, then close. Calling it again does nothing.

        Raises
        ------
        RejectedError, DisconnectedError
            As `flush`; closed it is all the same.
        """
        if self._closed:
            return
        self._closed = True
        deadline_s = time.monotonic() + self._patience(timeout_s)
        try:
            self.flush(timeout_s)
        finally:
            self._courier.stop(linger_s=min(max(0.0, deadline_s - time.monotonic()), MAX_LINGER_S))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close(min(self.timeout_s, 2.0))
        except TilecastError as second:  # the first error is the one to raise; this one must not be silent either
            error.add_note(f"Also, while the publisher was closed: {second}")

    # ---- what it can say of itself --------------------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """Where we are connected to; for `pub`, the address that was bound."""
        return self._courier.endpoint

    @property
    def connected(self) -> bool:
        """Whether the other side is there, as far as is known."""
        return self._outbox.connected

    @property
    def n_unsettled(self) -> int:
        """Messages that are not settled."""
        with self._outbox.changed:
            return self._outbox.window.n_messages

    @property
    def n_unsettled_images(self) -> int:
        """How many of them are images: the last ones that were given."""
        with self._outbox.changed:
            return self._outbox.window.n_images

    @property
    def rejected(self) -> list[Rejected]:
        """The latest rejections (at most 1,000), oldest first; without those that `start` raised."""
        with self._outbox.changed:
            return list(self._outbox.rejected)

    @property
    def n_rejected(self) -> int:
        """How many messages the daemon has refused, without those that `start` raised."""
        return self._outbox.n_rejected

    @property
    def welcome(self) -> Welcome | None:
        """What the daemon said when it greeted us last; None before, and on one-way sockets."""
        return self._outbox.welcome

    # ---- inside: messages -----------------------------------------------------------------------------------------

    def _envelope(self, t_ns: int | None = None) -> dict[str, Any]:
        return {
            "instrument": self.instrument,
            "stream": self.stream,
            "src": self.src,
            "boot": self.boot,
            "seq": LARGEST_SEQ,
            "t_ns": time.time_ns() if t_ns is None else t_ns,
        }

    def _encoded(self, array: NDArray[Any]) -> memoryview:
        """The payload, in memory of our own."""
        if self.codec == "pzf":
            from .pzf import encode_image  # brings the compiler along: only for those who want it

            return memoryview(encode_image(np.ascontiguousarray(array))).cast("B")
        return np.array(array, order="C", copy=True).data.cast("B")

    def _start(self, message: Start) -> None:
        if self.mode != "pub":
            self.wait_connected()
        mine = self._runs.get(message.run)
        daemons = self._known_runs().get(message.run)
        known = _CallersRun(message, mine.next_frame if mine else daemons.next_frame if daemons else 0)
        ticket = self._put_small(message, awaited=self.mode == "ack")
        if self.mode == "ack":
            try:
                self._wait(lambda: self._outbox.is_settled(ticket), None, self._why_unsettled)
            finally:
                refused = self._outbox.outcome(ticket)
            if refused is not None:
                raise RejectedError([refused], 1)
        with self._outbox.changed:
            self._runs[message.run] = known
            self._current = message.run

    def _known_runs(self) -> dict[str, RunState]:
        """What the daemon said it has of this stream when it greeted us."""
        welcome = self._outbox.welcome
        return {} if welcome is None else {state.run: state for state in welcome.runs}

    def _open_run(self, run: str | None) -> tuple[str, _CallersRun]:
        with self._outbox.changed:
            wanted = self._current if run is None else checks.uuid(run, "run")
            if wanted is None or wanted not in self._runs:
                raise ValueError("no run is open: call start() first" if run is None else f"run {run} is not open here")
            return wanted, self._runs[wanted]

    def _forget(self, run: str) -> None:
        with self._outbox.changed:
            self._runs.pop(run, None)
            if self._current == run:
                self._current = None

    # ---- inside: waiting ------------------------------------------------------------------------------------------

    def _put_small(self, message: PublisherMessage, *, awaited: bool = False) -> int:
        with self._outbox.changed:
            self._wait(lambda: self._outbox.has_room(for_image=False), None, self._why_full)
            return self._outbox.put(message, awaited=awaited)

    @contextmanager
    def _room_for_image(self, timeout_s: float | None) -> Iterator[None]:
        """Room for one image, kept free while it is encoded."""
        with self._outbox.changed:
            self._wait(lambda: self._outbox.has_room(for_image=True), timeout_s, self._why_full)
            self._outbox.reserved_images += 1
        try:
            yield
        finally:
            with self._outbox.changed:
                self._outbox.reserved_images -= 1
                self._outbox.changed.notify_all()

    def _patience(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else timeout_s

    def _wait(self, condition: Callable[[], bool], timeout_s: float | None, why_not: Callable[[], str]) -> None:
        patience_s = self._patience(timeout_s)
        with self._outbox.changed:
            met = self._outbox.changed.wait_for(
                lambda: self._outbox.failure is not None or condition(),
                None if math.isinf(patience_s) else patience_s,
            )
            if self._outbox.failure is not None:
                raise DisconnectedError(
                    f"this publisher sends no more: {self._outbox.failure}; make a new one"
                ) from self._outbox.failure
            if not met:
                raise DisconnectedError(f"{why_not()} (waited {patience_s:g} s)")

    def _why_unreachable(self) -> str:
        trouble = self._outbox.trouble
        if self.mode == "pub":
            return f"nobody has subscribed to {self.endpoint}; the daemon's option ingest.sub must name it"
        option = "ingest.ack" if self.mode == "ack" else "ingest.pull"
        return (
            f"no tilecast daemon is to be reached at {self.endpoint}{': ' + trouble if trouble else ''}. "
            f"Is it running (tilecast run), and is this the endpoint of its option {option}?"
        )

    def _why_full(self) -> str:
        if not self.connected:
            return self._why_unreachable()
        ack = self._outbox.ack
        said = f"; it says: state {ack.state}, {ack.free_bytes / 1e9:.1f} GB free" if ack is not None else ""
        return f"the daemon at {self.endpoint} takes nothing more at present{said}"

    def _why_unsettled(self) -> str:
        window = self._outbox.window
        what = f"{window.n_messages} messages, {window.n_images} of them images, are not settled"
        if not self.connected:
            return f"{what}: {self._why_unreachable()}"
        return f"{what}, though the daemon at {self.endpoint} is there"


def _position(pos_um: Iterable[float] | None) -> tuple[float, ...] | None:
    """A position from whatever a stage library gives, arrays included."""
    return None if pos_um is None else tuple(pos_um)


def _wire_dtype(dtype: DTypeLike) -> str:
    """The pixel type as PROTOCOL writes it; raises ValueError for others."""
    name = np.dtype(dtype).newbyteorder("<").str
    if name not in DTYPES:
        raise ValueError(f"frames must be uint8, uint16 or float32; {np.dtype(dtype)} cannot be sent")
    return name


def _checked(pixels: NDArray[Any], start: Start | None) -> NDArray[Any]:
    """Pixels of the shape and type of their run, little-endian; raises ValueError for others."""
    name = _wire_dtype(pixels.dtype)
    if pixels.ndim != 2:
        raise ValueError(f"a frame has rows and columns; got an array of shape {pixels.shape}")
    if start is not None and (pixels.shape != start.shape or name != start.dtype):
        raise ValueError(
            f"the run was started with frames of {start.shape[0]} × {start.shape[1]} {start.dtype}; "
            f"got {pixels.shape[0]} × {pixels.shape[1]} {name}"
        )
    return pixels.astype(name, copy=False)
