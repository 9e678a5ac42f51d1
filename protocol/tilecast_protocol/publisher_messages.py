"""The messages that publishers send: start, image, stage, event, end, hb, and hello.

Each class lists its keys; rules between keys stand in its `_check`. `protocol/README.md` is the contract. Pixels are
not decoded here; `check_payload` compares what a payload says of itself with what its run was started as.
"""

from __future__ import annotations

import hashlib
import itertools
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from isal import isal_zlib

from . import checks
from .errors import MalformedError, PZFError
from .headers import pack_header
from .message_base import DEFAULT_LIMITS, Buffer, Key, Limits, Message, nbytes_of
from .topics import DAEMON_STREAM
from .vocabulary import (
    BLEND_MODES,
    CODECS,
    DTYPES,
    END_REASONS,
    ITEMSIZE,
    MAX_POSITION_PX,
    POSITION_SOURCES,
    STATUS_GOOD,
    STATUS_SATURATED,
)


def crc32(buffer: Buffer) -> int:
    """CRC-32 of bytes, as zlib and PNG define it (ISO-HDLC, polynomial 0x04C11DB7), by the fastest means at hand."""
    result: int = isal_zlib.crc32(buffer)
    return result


_ENVELOPE: Final = (
    Key("src", checks.label, required=True),
    Key("boot", checks.uuid, required=True),
    Key("seq", checks.unsigned, required=True),
    Key("t", checks.unsigned, "t_ns", required=True),
)
_NBYTES: Final = Key("nbytes", checks.byte_counts)
_USER: Final = Key("user", checks.mapping, default={})


def _refuse_daemon_stream(message: Message) -> None:
    if message.stream == DAEMON_STREAM:
        raise MalformedError(f"the stream name {DAEMON_STREAM} is reserved for the daemon; call the stream otherwise")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherMessage(Message):
    """What all numbered messages of a publisher have.

    Attributes
    ----------
    src : str
        The publisher's name.
    boot : str
        Uuid of the publisher's process.
    seq : int
        +1 for every message of this `src` and `boot`.
    t_ns : int
        When it was sent or read, UTC, nanoseconds.
    nbytes : int or tuple of int, optional
        Sizes of the payload parts.
    user : dict
        Whatever the publisher wants kept.
    """

    src: str
    boot: str
    seq: int
    t_ns: int
    nbytes: int | tuple[int, ...] | None = None
    user: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        _refuse_daemon_stream(self)
        self._check_nbytes()

    def numbered(self, seq: int) -> Self:
        """The same message with another number; nothing else is checked again.

        Raises
        ------
        MalformedError
            If it is no number of a message.
        """
        message = copy(self)
        object.__setattr__(message, "seq", checks.unsigned(seq, f"{self.TYPE}: seq"))
        return message

    def _check_nbytes(self) -> None:
        """`nbytes` against the parts that are there."""
        if self.nbytes is None or not self.parts:
            return
        announced = self.nbytes if isinstance(self.nbytes, tuple) else (self.nbytes,)
        came = tuple([nbytes_of(part) for part in self.parts])
        if announced != came:
            raise MalformedError(
                f"{self.TYPE}: nbytes announces {checks.show(announced)} and parts of {checks.show(came)} bytes came",
                reason="bad-payload",
            )

    def check_complete(self) -> None:
        """That the payload which `nbytes` announces is there.

        Raises
        ------
        MalformedError
            `bad-payload`: no part came and `nbytes` announces some.
        """
        if not self.parts and self.nbytes not in (None, 0, ()):
            raise MalformedError(
                f"{self.TYPE}: nbytes announces {checks.show(self.nbytes)} and no payload came", reason="bad-payload"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(PublisherMessage):
    """The beginning of a run, and all that holds for the whole of it.

    Attributes
    ----------
    run : str
        Uuid of the run.
    name : str
        What people call it.
    shape : (int, int)
        Rows and columns of every frame.
    dtype : str
        `|u1`, `<u2` or `<f4`.
    px_um : (float, float)
        Size of a pixel along x (columns) and y (rows), in µm.
    affine : ((a, b), (c, d)), optional
        From pixels (right, down) to stage µm.
    extent_um : ((x0, y0), (x1, y1)), optional
        Outer edges of where the scan is planned to go, in µm.
    dark, flat : str, optional
        Name of a calibration, or `part:<n>`: payload part n, counted from 0, whose SHA-256 is `sha256[n]`.
    sha256 : tuple of str, optional
        Of each payload part.
    """

    TYPE: ClassVar[str] = "start"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_ENVELOPE,
        Key("run", checks.uuid, required=True),
        Key("name", checks.text(0, 500), required=True),
        Key("shape", checks.shape, required=True),
        Key("dtype", checks.one_of(*DTYPES), required=True),
        Key("px_um", checks.pixel_size, required=True),
        Key("affine", checks.affine),
        Key("n_expected", checks.unsigned),
        Key("channels", checks.channels),
        Key("planes", checks.planes),
        Key("extent_um", checks.extent),
        Key("pos_src", checks.one_of(*POSITION_SOURCES)),
        Key("stage_stream", checks.name),
        Key("dark", checks.calibration),
        Key("flat", checks.calibration),
        Key("blend", checks.one_of(*BLEND_MODES)),
        Key("group", checks.label),
        Key("resume_of", checks.uuid),
        Key("replay_of", checks.uuid),
        _NBYTES,
        Key("sha256", checks.sha256_of_parts),
        _USER,
    )

    run: str
    name: str
    shape: tuple[int, int]
    dtype: str
    px_um: tuple[float, float]
    affine: tuple[tuple[float, float], tuple[float, float]] | None = None
    n_expected: int | None = None
    channels: tuple[dict[str, Any], ...] | None = None
    planes: dict[str, int] | None = None
    extent_um: tuple[tuple[float, float], tuple[float, float]] | None = None
    pos_src: str | None = None
    stage_stream: str | None = None
    dark: str | None = None
    flat: str | None = None
    blend: str | None = None
    group: str | None = None
    resume_of: str | None = None
    replay_of: str | None = None
    sha256: tuple[str, ...] | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of one pixel."""
        return ITEMSIZE[self.dtype]

    @property
    def frame_nbytes(self) -> int:
        """Bytes of one frame's pixels."""
        return self.shape[0] * self.shape[1] * self.itemsize

    @property
    def effective_affine(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """`affine`, or diag(px_um) where there is none."""
        return self.affine or ((self.px_um[0], 0.0), (0.0, self.px_um[1]))

    def check_complete(self) -> None:
        """That the parts are there and have their SHA-256. A repeat leaves them out and carries `sha256` alone.

        Raises
        ------
        MalformedError
            `bad-payload`.
        """
        if self.sha256 is None:
            PublisherMessage.check_complete(self)
            return
        for n, (part, expected) in enumerate(zip(self.parts, self.sha256, strict=False)):
            if hashlib.sha256(part).hexdigest() != expected:
                raise MalformedError(f"start: payload part {n} does not have its SHA-256", reason="bad-payload")

    def _check(self) -> None:
        known_parts = len(self.sha256) if self.sha256 is not None else 0
        for key, value in (("dark", self.dark), ("flat", self.flat)):
            n = checks.calibration_part(value)
            if n is None:
                continue
            if n >= known_parts:
                raise MalformedError(f"start: {key} is {value}, which needs the SHA-256 of payload part {n} in sha256")
        if self.parts and self.sha256 is not None and len(self.parts) != known_parts:
            raise MalformedError(
                f"start: {known_parts} SHA-256 came for {len(self.parts)} payload parts", reason="bad-payload"
            )
        if self.channels is not None and self.planes is not None and len(self.channels) != self.planes["c"]:
            raise MalformedError(
                f"start contradicts itself: {len(self.channels)} channels are described, planes.c is {self.planes['c']}"
            )
        if self.stage_stream == DAEMON_STREAM:
            raise MalformedError(f"start: stage_stream may not be {DAEMON_STREAM}, which is reserved for the daemon")
        corners_um = itertools.product(*zip(*self.extent_um, strict=True)) if self.extent_um is not None else ()
        if not all(map(self._is_near, corners_um)):
            raise MalformedError(
                f"start: extent_um reaches further than {MAX_POSITION_PX} pixels from stage (0, 0); "
                "are extent_um, px_um and affine in µm?"
            )

    def _is_near(self, corner_um: tuple[float, ...]) -> bool:
        (a, b), (c, d) = self.effective_affine
        x_um, y_um = corner_um
        determinant = a * d - b * c
        x_px, y_px = (d * x_um - b * y_um) / determinant, (a * y_um - c * x_um) / determinant
        return max(abs(x_px), abs(y_px)) <= MAX_POSITION_PX


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(PublisherMessage):
    """One frame.

    Attributes
    ----------
    run : str
        Uuid of its run.
    frame : int
        From 0, +1 per image of the run.
    codec : str
        `raw` (row-major pixels) or `pzf`.
    nbytes : int
        Size of the payload.
    tcz : (int, int, int)
        The plane.
    t0_ns, t1_ns : int, optional
        Start and end of the exposure, UTC, nanoseconds.
    pos_um, set_um : tuple of 2 or 3 float, optional
        Stage position of the centre of the image, measured and commanded, in µm.
    status : int
        0 good, 1 incomplete, 2 repeated, 3 saturated.
    crc32 : int, optional
        Of the payload.
    """

    TYPE: ClassVar[str] = "image"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_ENVELOPE,
        Key("run", checks.uuid, required=True),
        Key("frame", checks.unsigned, required=True),
        Key("codec", checks.one_of(*CODECS), required=True),
        _NBYTES._replace(required=True),
        Key("tcz", checks.plane_index, default=(0, 0, 0)),
        Key("t0", checks.unsigned, "t0_ns"),
        Key("t1", checks.unsigned, "t1_ns"),
        Key("pos_um", checks.position),
        Key("set_um", checks.position),
        Key("moving", checks.boolean),
        Key("status", checks.whole(STATUS_GOOD, STATUS_SATURATED), default=STATUS_GOOD),
        Key("crc32", checks.crc32),
        _USER,
    )

    run: str
    frame: int
    codec: str
    tcz: tuple[int, int, int] = (0, 0, 0)
    t0_ns: int | None = None
    t1_ns: int | None = None
    pos_um: tuple[float, ...] | None = None
    set_um: tuple[float, ...] | None = None
    moving: bool | None = None
    status: int = STATUS_GOOD
    crc32: int | None = None

    @property
    def t_mid_ns(self) -> int:
        """Middle of the exposure; `t_ns` unless both its ends are known."""
        if self.t0_ns is None or self.t1_ns is None:
            return self.t_ns
        return (self.t0_ns + self.t1_ns) // 2

    def _check(self) -> None:
        if self.t0_ns is not None and self.t1_ns is not None and self.t1_ns < self.t0_ns:
            raise MalformedError(f"image: the exposure ends (t1 {self.t1_ns}) before it begins (t0 {self.t0_ns})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(PublisherMessage):
    """A stage position in µm, read at `t_ns`."""

    TYPE: ClassVar[str] = "stage"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_ENVELOPE,
        Key("pos_um", checks.position, required=True),
        Key("moving", checks.boolean),
        Key("set_um", checks.position),
        _NBYTES,
        _USER,
    )

    pos_um: tuple[float, ...]
    moving: bool | None = None
    set_um: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(PublisherMessage):
    """Anything worth keeping: focus lost, shutter, a person's note."""

    TYPE: ClassVar[str] = "event"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_ENVELOPE,
        Key("name", checks.label, required=True),
        Key("run", checks.uuid),
        _NBYTES,
        _USER,
    )

    name: str
    run: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class End(PublisherMessage):
    """The end of a run: why, and how many images were sent, so that a lost tail shows."""

    TYPE: ClassVar[str] = "end"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_ENVELOPE,
        Key("run", checks.uuid, required=True),
        Key("reason", checks.one_of(*END_REASONS), required=True),
        Key("n_sent", checks.unsigned, required=True),
        Key("n_camera_dropped", checks.unsigned),
        _NBYTES,
        _USER,
    )

    run: str
    reason: str
    n_sent: int
    n_camera_dropped: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(PublisherMessage):
    """Sent every second, so that silence means trouble; `queues` are depths by name."""

    TYPE: ClassVar[str] = "hb"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_ENVELOPE,
        Key("state", checks.label, required=True),
        Key("run", checks.uuid),
        Key("n_sent", checks.unsigned),
        Key("queues", checks.counts),
        _NBYTES,
        _USER,
    )

    state: str
    run: str | None = None
    n_sent: int | None = None
    queues: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """A publisher on the acknowledged path says who it is and which `seq` comes next; consumes no `seq`."""

    TYPE: ClassVar[str] = "hello"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        Key("src", checks.label, required=True),
        Key("boot", checks.uuid, required=True),
        Key("next_seq", checks.unsigned, required=True),
    )

    src: str
    boot: str
    next_seq: int

    def _check(self) -> None:
        _refuse_daemon_stream(self)


_NOT_OF_THE_RUN: Final = frozenset({"boot", "seq", "t", "nbytes"})


def same_start(a: Start, b: Start) -> bool:
    """Whether two `start` say the same of the run: everything but `boot`, `seq`, `t` and the payload parts.

    `boot` is left out because a publisher that died and came back goes on with the same run; `nbytes` because it
    describes the parts, which a repeat leaves out. `sha256` counts: it stands for what the parts held.
    """

    def said(start: Start) -> Any:
        header = {key: value for key, value in start.header().items() if key not in _NOT_OF_THE_RUN}
        return start.topic, pack_header(_sorted(header))  # as bytes: NaN in `user` is then the same as itself

    return bool(said(a) == said(b))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value


def check_payload(image: Image, start: Start, limits: Limits = DEFAULT_LIMITS) -> None:
    """An image's payload against what its run was started as, before anything is decoded.

    For `pzf` only its header is looked at; decoding is the last check, and the daemon's.

    Raises
    ------
    MalformedError
        `too-large`, or `bad-payload`: not one part, wrong checksum, wrong size, other shape or pixel type.
    """
    if len(image.parts) != 1:
        raise MalformedError(f"image: one payload part is needed; {len(image.parts)} came", reason="bad-payload")
    part = image.parts[0]
    size = nbytes_of(part)
    if size > limits.max_part_bytes or start.frame_nbytes > limits.max_frame_bytes:
        raise MalformedError(
            f"image: the payload has {size} bytes; frames may have {limits.max_frame_bytes}", reason="too-large"
        )
    rows, columns = start.shape
    if image.codec == "raw":
        if size != start.frame_nbytes:
            raise MalformedError(
                f"image: raw pixels of {rows} × {columns} {start.dtype} have {start.frame_nbytes} bytes; {size} came",
                reason="bad-payload",
            )
    else:
        _check_pzf_header(part, start)
    if image.crc32 is not None and crc32(part) != image.crc32:
        raise MalformedError(
            "image: the payload does not have the checksum that its header gives; it was damaged on the way",
            reason="bad-payload",
        )


def _check_pzf_header(part: Buffer, start: Start) -> None:
    from . import pzf  # the codec is loaded by the first frame that needs it, not by everyone who imports messages

    try:
        header = pzf.load_header(part)
    except PZFError as error:
        raise MalformedError(f"image: {error}", reason="bad-payload") from error
    shape = (int(header["Width"]), int(header["Height"]), int(header["Depth"]))
    if shape != (*start.shape, 1):
        raise MalformedError(
            f"image: the PZF record has shape {shape} and the run's frames have {start.shape}", reason="bad-payload"
        )
    dtype = DTYPES[int(header["DataFormat"])]
    if dtype != start.dtype:
        raise MalformedError(
            f"image: the PZF record holds {dtype} and the run's frames are {start.dtype}", reason="bad-payload"
        )
