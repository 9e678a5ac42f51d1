"""What the ingest machine answers: a verdict on each message, and effects for others to carry out.

Plain immutable values, no behaviour: the machine makes them, the ingest thread acts on them, tests compare them.

A *verdict* answers `screen`: what is to be done with a message before it may change anything. An *effect* follows
from a message that has been journalled, or from time that has passed: something to blend, store, publish or load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeAlias

from tilecast.geometry import Placement
from tilecast_protocol.messages import End, Event, Heartbeat, Image, Stage, Start

from .joining import PlacingRules

Input: TypeAlias = Start | Image | Stage | Event | End | Heartbeat
"""The numbered messages of publishers: everything but `hello`, which is a matter of the socket."""


class IngestPath(StrEnum):
    """The way a message came: on `ack` its publisher can be answered; `sub` may lose messages."""

    ACK = "ack"
    PULL = "pull"
    SUB = "sub"


class RunPhase(StrEnum):
    """Where a run is in its life."""

    OPEN = "open"
    IDLE = "idle"
    ENDED = "ended"
    SEALED = "sealed"


NO_LONGER: Final = ("rebuild", "replay", "late frames", "another blend mode", "registration")
"""What a sealed run is past, because it needs the journal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is kept of a run beside its journal: enough to answer for it, or to load it.

    Attributes
    ----------
    start : Start
        As it was accepted first.
    phase : RunPhase
    revision : int
        Number of run reports issued.
    rules : PlacingRules
        Options that decide about placing, frozen when the run was opened.
    stage_stream : str or None
        The stage stream it is joined to, frozen when it was known; None: the first that comes.
    held : bool
        Its calibration is missing: images are journalled, not placed.
    counts : mapping
        What `IngestMachine.counts` said last: the counts that the journal cannot tell. To be kept at every
        `PhaseChange` and `Report`, and as often besides as is cheap: what was counted after that is lost in a crash.
    """

    start: Start
    phase: RunPhase = RunPhase.OPEN
    revision: int = 0
    rules: PlacingRules = field(default_factory=PlacingRules)
    stage_stream: str | None = None
    held: bool = False
    counts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """Uuid of the run."""
        return self.start.run


# --- Verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """A journal that a message goes into, and the stage messages that go before it."""

    run: str
    prelude: tuple[Stage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Append the message to the journals of `targets` (there may be none), then say `accepted`; or say `refused`.

    Attributes
    ----------
    message : Input
    path : IngestPath
    now_ns : int
        When it was received.
    targets : tuple of Target
        For each run: `prelude` is appended first.
    opens : RunRecord or None
        The run does not exist yet: make it, with what is said here.
    start : Start or None
        For an image, the start of its run, to check its payload against.
    corner : (row, col) or None
        For an image with a position of its own that counts: where it lies.
    """

    message: Input
    path: IngestPath
    now_ns: int
    targets: tuple[Target, ...] = ()
    opens: RunRecord | None = None
    start: Start | None = None
    corner: tuple[int, int] | None = None


class DropReason(StrEnum):
    """Why a message needs nothing to be done."""

    RESENT = "resent"
    DUPLICATE = "duplicate"
    REPEATED_START = "repeated-start"
    NOT_KEPT = "not-kept"


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing is to be done. What repeats a message of `run` is only as durable as that run's journal is."""

    reason: DropReason
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer with `reason` and `message` where there is a way to answer. It has been counted."""

    reason: str
    message: str
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """The machine keeps the message until its run starts; it comes back in a `Release`, or is counted as lost."""


@dataclass(frozen=True, slots=True)
class NeedsRun:
    """The run is known and not loaded: `recover` it from its journal, then screen the message again."""

    run: str


Verdict: TypeAlias = Accept | Drop | Reject | Hold | NeedsRun


# --- Effects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Blend an image of the journal at its place; `t_recv_ns` says since when it waits."""

    run: str
    placement: Placement
    t_recv_ns: int


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """The run is now in `phase`: store it, with the machine's `counts`, and publish the notice `kind`."""

    run: str
    phase: RunPhase

    @property
    def kind(self) -> str:
        """The word for the notice."""
        return "started" if self.phase is RunPhase.OPEN else self.phase.value


@dataclass(frozen=True, slots=True)
class Report:
    """Store and publish a run report."""

    run: str
    revision: int
    report: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Notice:
    """Publish something about a run, known to us or not: gap, late, warning, calibration-missing."""

    instrument: str
    stream: str
    run: str
    kind: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Release:
    """Screen these messages again, in this order: what they waited for is there."""

    messages: tuple[tuple[Input, IngestPath], ...]


@dataclass(frozen=True, slots=True)
class Reload:
    """A calibration that the run lacked is there: freeze it, take its `record`, `forget` it, `recover` it, not held."""

    run: str


@dataclass(frozen=True, slots=True)
class Unload:
    """The machine has forgotten this run, which is quiet: keep its counts, close its journal and store until needed."""

    run: str
    counts: dict[str, Any]


Effect: TypeAlias = Place | PhaseChange | Report | Notice | Release | Reload | Unload
