"""The messages that the daemon sends: welcome and ack to publishers; tiles, run and hb to viewers.

Each class lists its keys; `protocol/README.md` is the contract. This module does not know when they are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

from . import checks
from .errors import MalformedError
from .message_base import Key, Message
from .topics import DAEMON_STREAM
from .vocabulary import DURABILITIES, MAX_NOTIFIED_TILES


class Rejection(NamedTuple):
    """One message that the daemon refused."""

    seq: int
    reason: str
    message: str


class RunState(NamedTuple):
    """What the daemon has of one run: its state, the frame it expects next, and the ranges [first, last] it has."""

    run: str
    state: str
    next_frame: int
    received: tuple[tuple[int, int], ...]


def _record(value: Any, what: str, table: tuple[Key, ...]) -> dict[str, Any]:
    """A map in a list, or one of our tuples, checked key by key."""
    fields = value._asdict() if hasattr(value, "_asdict") else checks.mapping(value, what)
    result = {}
    for row in table:
        item = fields.get(row.key)
        if item is None:
            raise MalformedError(f"{what}: the key {row.key} is missing")
        result[row.key] = row.check(item, f"{what}.{row.key}")
    return result


_REJECTION_KEYS: Final = (
    Key("seq", checks.unsigned),
    Key("reason", checks.label),
    Key("message", checks.prose),
)
_RANGES: Final = checks.list_of(checks.list_of(checks.unsigned, 2, 2), 0, 1 << 20)
_RUN_STATE_KEYS: Final = (
    Key("run", checks.uuid),
    Key("state", checks.label),
    Key("next_frame", checks.unsigned),
    Key("received", _RANGES),
)


def _rejection(value: Any, what: str) -> Rejection:
    return Rejection(**_record(value, what, _REJECTION_KEYS))


def _run_state(value: Any, what: str) -> RunState:
    return RunState(**_record(value, what, _RUN_STATE_KEYS))


def _records_as_maps(records: Sequence[Any]) -> list[dict[str, Any]]:
    return [record._asdict() for record in records]


_DAEMON_ENVELOPE: Final = (
    Key("src", checks.label),
    Key("boot", checks.uuid),
    Key("seq", checks.unsigned),
    Key("t", checks.unsigned, "t_ns"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonMessage(Message):
    """What all messages of the daemon have: who sent it and when, as far as it says so."""

    src: str | None = None
    boot: str | None = None
    seq: int | None = None
    t_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(DaemonMessage):
    """The daemon's answer to `hello`."""

    TYPE: ClassVar[str] = "welcome"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_DAEMON_ENVELOPE,
        Key("credit", checks.unsigned, required=True),
        Key("upto_seq", checks.unsigned_or_none_yet, required=True),
        Key("max_frame_bytes", checks.unsigned, required=True),
        Key("durability", checks.one_of(*DURABILITIES), required=True),
        Key("state", checks.label, required=True),
        Key("runs", checks.list_of(_run_state, 0, 1 << 20), required=True, plain=_records_as_maps),
    )

    credit: int
    upto_seq: int
    max_frame_bytes: int
    durability: str
    state: str
    runs: tuple[RunState, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack(DaemonMessage):
    """Everything up to `upto_seq` is settled; `rejected` says which of it was refused, and why."""

    TYPE: ClassVar[str] = "ack"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_DAEMON_ENVELOPE,
        Key("upto_seq", checks.unsigned_or_none_yet, required=True),
        Key("credit", checks.unsigned, required=True),
        Key("rejected", checks.list_of(_rejection, 0, 1 << 20), required=True, plain=_records_as_maps),
        Key("state", checks.label, required=True),
        Key("free_bytes", checks.unsigned, required=True),
    )

    upto_seq: int
    credit: int
    state: str
    free_bytes: int
    rejected: tuple[Rejection, ...] = ()


TileIndex: TypeAlias = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles(DaemonMessage):
    """One commit of a run, sent after it.

    Attributes
    ----------
    epoch, rev : int
        The history it belongs to, and its number there: +1 per commit of the run.
    tiles : tuple of (t, c, z, level, row, col), or None
        Tiles that were written; None if `truncated`.
    gone : tuple of (t, c, z, level, row, col)
        Tiles that are no more; empty if `truncated`.
    truncated : bool
        More than 4,000 tiles, written and gone together, are not named: ask `changes`.
    t_recv_ns : int, optional
        When the oldest frame in this commit arrived, UTC, nanoseconds; None if it holds no new frame.
    t_commit_ns : int
        When it was committed.
    bbox_um : ((x0, y0), (x1, y1)), optional
        What the mosaic covers so far, in stage µm.
    """

    TYPE: ClassVar[str] = "tiles"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_DAEMON_ENVELOPE,
        Key("run", checks.uuid, required=True),
        Key("epoch", checks.unsigned, required=True),
        Key("rev", checks.unsigned, required=True),
        Key("tiles", checks.tile_indices),
        Key("gone", checks.tile_indices),
        Key("truncated", checks.boolean),
        Key("t_recv", checks.unsigned, "t_recv_ns"),
        Key("t_commit", checks.unsigned, "t_commit_ns", required=True),
        Key("bbox_um", checks.extent),
    )

    run: str
    epoch: int
    rev: int
    tiles: tuple[TileIndex, ...] | None = None
    gone: tuple[TileIndex, ...] = ()
    truncated: bool = False
    t_recv_ns: int | None = None
    t_commit_ns: int
    bbox_um: tuple[tuple[float, float], tuple[float, float]] | None = None

    def _check(self) -> None:
        if self.truncated != (self.tiles is None) or (self.truncated and self.gone):
            raise MalformedError("tiles: exactly when truncated is true, tiles is null and gone is empty")
        if len(self.tiles or ()) + len(self.gone) > MAX_NOTIFIED_TILES:
            raise MalformedError(f"tiles: more than {MAX_NOTIFIED_TILES} tiles are not named; truncated is true then")

    def header(self) -> dict[str, Any]:
        """The header; what is not known is null here rather than left out."""
        return dict.fromkeys(("t_recv", "tiles", "bbox_um")) | DaemonMessage.header(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNotice(DaemonMessage):
    """Something about a run that a person may want to know.

    `kind` is one of `vocabulary.NOTICE_KINDS`, or one of a later version; `detail` depends on it.
    """

    TYPE: ClassVar[str] = "run"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_DAEMON_ENVELOPE,
        Key("run", checks.uuid, required=True),
        Key("kind", checks.name, required=True),
        Key("detail", checks.mapping),
    )

    run: str
    kind: str
    detail: dict[str, Any] = field(default_factory=dict)


class RunRev(NamedTuple):
    """The latest commit of an open run."""

    run: str
    epoch: int
    rev: int


_RUN_REV_KEYS: Final = (Key("run", checks.uuid), Key("epoch", checks.unsigned), Key("rev", checks.unsigned))


def _run_rev(value: Any, what: str) -> RunRev:
    return RunRev(**_record(value, what, _RUN_REV_KEYS))


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonHeartbeat(DaemonMessage):
    """The daemon, every second, on the stream `daemon`."""

    TYPE: ClassVar[str] = "hb"
    _KEYS: ClassVar[tuple[Key, ...]] = (
        *_DAEMON_ENVELOPE,
        Key("state", checks.label, required=True),
        Key("runs", checks.list_of(_run_rev, 0, 1 << 20), required=True, plain=_records_as_maps),
        Key("wal_bytes", checks.unsigned),
        Key("free_bytes", checks.unsigned),
    )

    stream: str = DAEMON_STREAM
    state: str
    runs: tuple[RunRev, ...] = ()
    wal_bytes: int | None = None
    free_bytes: int | None = None

    def _check(self) -> None:
        if self.stream != DAEMON_STREAM:
            raise MalformedError(f"hb: the daemon speaks of itself on the stream {DAEMON_STREAM}, not {self.stream}")
