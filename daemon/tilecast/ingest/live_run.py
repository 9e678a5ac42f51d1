"""One run while it is loaded: which frames it has, where they lie, what it lacks, and where it is in its life.

All that is decided about a run's messages once they are in its journal is decided here, the same way whether they come
from a socket or are read again from the journal after a restart (`replay`). Nothing is kept per placed frame but its
number, in ranges.

Not known here: other runs, what comes before the journal (`machine` screens that), clocks, files.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any, Final

from tilecast.geometry import Placement, PlaneKey, Rect, extent_rect, place_centre
from tilecast_protocol.messages import End, Event, Heartbeat, Image, Stage, Start
from tilecast_protocol.messages import RunState as WelcomeRun
from tilecast_protocol.ranges import RangeSet

from . import joining
from .joining import Joined, Joiner, MoveWatch, Unjoined
from .journalled import Journalled
from .runreport import RunCounts, make_report, n_in
from .sequences import GapWatch, Ranges
from .settings import IngestSettings
from .verdicts import Effect, Notice, PhaseChange, Place, Report, RunPhase, RunRecord

BAD_STATUS: Final = "status"
NO_POSITION: Final = "no-position"
CALIBRATION: Final = "calibration-missing"

UNPLACED_BECAUSE: Final = {
    joining.NO_LATER: "no stage message has come since their exposure; they are placed when one comes",
    joining.NO_EARLIER: "no stage message from before their exposure is known",
    joining.GAP: "the stage messages around their exposure are too far apart; join.max_gap_ms decides",
    joining.MOVING: "the stage was moving; join.allow_moving decides",
    joining.AFTER_MOVE: "they are the first after a move of the stage; join.skip_after_move decides",
    joining.NOT_KEPT: "too many frames wait for stage messages; `tilecast rebuild` can place them",
    BAD_STATUS: "the camera marked them as incomplete or repeated; ingest.blend_status decides",
    NO_POSITION: "they carry no pos_um and the run's start says pos_src frame",
    CALIBRATION: "the run's dark or flat image is not there; send a start with its payload parts",
}
"""For each reason why a frame has no place, the sentence for a person."""

MAX_NOTICE_RANGES: Final = 1000
"""Ranges in one notice; the report has all."""

_MAX_REPORT_WAIT: Final = 30
_ORDER: Final = (RunPhase.OPEN, RunPhase.IDLE, RunPhase.ENDED, RunPhase.SEALED)


class LiveRun:
    """The state of one run.

    Parameters
    ----------
    record : RunRecord
        What is known of it beside its journal.
    settings : IngestSettings
    now_ns : int

    Attributes
    ----------
    start : Start
        Without its payload.
    phase : RunPhase
    revision : int
        Number of reports issued.
    frames : GapWatch
        Frames that are journalled.
    placed : RangeSet
        Those of them that have a place.
    outside_extent : RangeSet
        Those of them whose centre does not lie where `extent_um` of its start said.
    heard_ns : int
        When its publisher was last heard.
    report_due_ns : int or None
        When the next report is to be issued.
    """

    def __init__(self, record: RunRecord, settings: IngestSettings, now_ns: int) -> None:
        self.start: Start = replace(record.start, parts=())
        self.rules = record.rules
        self.stage_stream = record.stage_stream
        self.held = record.held
        self.phase = RunPhase.OPEN
        self.revision = record.revision
        self.counts = RunCounts.from_dict(record.counts)
        self.frames = GapWatch(settings.reorder_tolerance_ns)
        self.placed = RangeSet()
        self.outside_extent = RangeSet()
        self.heard_ns = now_ns
        self.report_due_ns: int | None = None
        self._report_waits = False
        extent_um = self.start.extent_um
        self._extent = None if extent_um is None else extent_rect(extent_um, self.start.effective_affine)
        self._settings = settings
        self._recorded_phase = record.phase
        self._n_counted: int = record.counts.get("n_images", 0)
        self._n_images = 0
        self._seqs: dict[tuple[str, str], RangeSet] = {}
        self._by_status = [0, 0, 0, 0]
        self._end: End | None = None
        self._n_placed_kept: int = record.counts.get("n_placed", 0)
        self._report_was_due: bool = record.counts.get("report_due", False)
        self._end_reason: str | None = record.counts.get("end_reason")
        self._gaps_said: bool = record.counts.get("gaps_said", False)
        self._joiner = Joiner(
            self.rules.join_max_gap_ms,
            self.rules.allow_moving,
            max_samples=settings.max_stage_samples,
            max_waiting=settings.max_waiting_images,
        )
        self._moves = MoveWatch(self.rules.skip_after_move)
        self._unplaceable: dict[str, RangeSet] = {}
        self._linger_until_ns = now_ns
        # What is said of it next, once gap_report_ms have passed since it was last spoken of.
        self._next_notice_ns = now_ns
        self._late_news = RangeSet()
        self._refusal_news: dict[str, int] = {}
        self._refusal_sentence = ""
        self._without_place: deque[tuple[int, int, int]] = deque()  # (t_recv_ns, t_mid_ns, frame)

    @property
    def run(self) -> str:
        """Uuid of the run."""
        return self.start.run

    @property
    def key(self) -> tuple[str, str]:
        """(instrument, stream)."""
        return self.start.instrument, self.start.stream

    # --- questions ----------------------------------------------------------------------------------------------------

    def has(self, message: Image | Stage | Event | End | Start) -> bool:
        """Whether its journal holds this very message, by `src`, `boot` and `seq`."""
        seqs = self._seqs.get((message.src, message.boot))
        return seqs is not None and message.seq in seqs

    def takes_stage(self, now_ns: int) -> bool:
        """Whether stage messages go into its journal: while it is open, and after that while an image waits for one."""
        return self.phase is RunPhase.OPEN or (self._joiner.n_waiting_for_later > 0 and now_ns < self._linger_until_ns)

    def joins(self, message: Image) -> bool:
        """Whether an image gets its position from the stage stream."""
        return self.start.pos_src == "stage" or (self.start.pos_src is None and message.pos_um is None)

    def corner(self, pos_um: tuple[float, ...]) -> tuple[int, int]:
        """The upper left pixel (row, col) of a frame at a stage position; ValueError beyond ±2**30 pixels."""
        return place_centre(pos_um, self.start.effective_affine, self.start.shape)

    def reaches(self, message: Stage) -> bool:
        """Whether a stage message may be joined to: of another stream, or at a position that can be a frame's."""
        if self.start.pos_src == "frame" or self.stage_stream not in (None, message.stream):
            return True
        try:
            self.corner(message.pos_um)
        except ValueError:
            return False
        return True

    def unplaced(self) -> dict[str, Ranges]:
        """Journalled frames that have no place, as ranges, by the reason."""
        by_reason = self._joiner.unplaced()
        for why, frames in self._unplaceable.items():
            by_reason[why] = frames.ranges()
        result = {}
        for why, ranges in by_reason.items():
            left = [hole for first, last in ranges for hole in self.placed.missing(last + 1, first)]
            if left:
                result[why] = left
        return result

    def report(self) -> dict[str, Any]:
        """The run report as of now; `revision` is that of the last one issued."""
        end = self._end
        return make_report(
            run=self.run,
            revision=self.revision,
            phase=self.phase.value,
            reason=self._end_reason,
            planned=self.start.n_expected,
            n_sent=end.n_sent if end is not None else None,
            received=self.frames.seen,
            placed=self.placed,
            outside_extent=self.outside_extent,
            by_status=(self._by_status[0], self._by_status[1], self._by_status[2], self._by_status[3]),
            unplaced=self.unplaced(),
            camera_dropped=end.n_camera_dropped if end is not None else None,
            counts=self.counts,
            brackets=self._joiner.brackets,
        )

    def progress(self) -> dict[str, Any]:
        """How far it is, in a few numbers that cost nothing; `planned` is None if its start does not say."""
        end = self._end
        seen = self.frames.seen
        said = end.n_sent if end is not None else self.counts.n_sent
        expected = max(said, 0 if seen.last is None else seen.last + 1)
        return {
            "name": self.start.name,
            "instrument": self.start.instrument,
            "stream": self.start.stream,
            "state": self.phase.value,
            "planned": self.start.n_expected,
            "received": len(seen),
            "placed": len(self.placed),
            "missing": expected - len(seen),
        }

    def counts_to_keep(self) -> dict[str, Any]:
        """What the journal cannot tell, as plain values, and how many images it speaks of."""
        return self.counts.to_dict() | {
            "n_images": self._n_images,
            "end_reason": self._end_reason,
            "gaps_said": self._gaps_said,
            "n_placed": len(self.placed),
            "report_due": self.report_due_ns is not None,
        }

    def welcome(self) -> WelcomeRun:
        """Where a publisher that comes back goes on."""
        last = self.frames.seen.last
        return WelcomeRun(self.run, self.phase.value, 0 if last is None else last + 1, tuple(self.frames.seen.ranges()))

    # --- messages that are in its journal -----------------------------------------------------------------------------

    def take_start(self, message: Start) -> None:
        """Its own start, or one that brings what the first lacked."""
        self._note(message)

    def take_event(self, message: Event) -> None:
        """An event."""
        self._note(message)

    def take_stage(self, message: Stage, now_ns: int) -> list[Place]:
        """A stage message; returns what it places."""
        self._note(message)
        if self.start.pos_src == "frame":
            return []
        if self.stage_stream is None:
            self.stage_stream = message.stream
        if message.stream != self.stage_stream or not self.reaches(message):
            return []
        n_news = self._joiner.n_news
        joined = self._joiner.add_stage(message.t_ns, message.pos_um, message.moving)
        if self._joiner.n_news > n_news and self.phase is not RunPhase.OPEN:
            self.changed(now_ns)
            if self._report_waits and not self._joiner.n_waiting_for_later:
                self._report_soon(now_ns)
        return [place for one in joined for place in self._place_joined(one)]

    def take_image(
        self, message: Image, index: int, corner: tuple[int, int] | None, t_recv_ns: int, *, late: bool
    ) -> list[Place]:
        """An image; returns its place, if it has one already.

        Parameters
        ----------
        message : Image
        index : int
            Ordinal among the images of the journal.
        corner : (row, col) or None
            Where its own position puts it, for an image that is not joined.
        t_recv_ns : int
        late : bool
            Whether it is to be counted, and spoken of, as late.
        """
        self._note(message)
        self.frames.add(message.frame, t_recv_ns)
        self._n_images = max(self._n_images, index + 1)
        self._by_status[message.status] += 1
        if late:
            self.counts.late += 1
            self._late_news.add(message.frame)
            self._linger_until_ns = t_recv_ns + self._settings.idle_end_ns
            self.changed(t_recv_ns)
        plane = PlaneKey(*message.tcz)
        if message.moving:
            self._moves.moving(message.t_mid_ns)
        if self.held:
            why = CALIBRATION
        elif message.status not in self.rules.blend_status:
            why = BAD_STATUS
        elif self.joins(message):
            image = Unjoined(message.frame, index, message.t_mid_ns, plane, message.moving, t_recv_ns)
            joined = self._joiner.add_image(image)
            if joined is not None:
                return self._place_joined(joined)
            self._wait(message, t_recv_ns)
            return []
        elif corner is not None:
            if self._moves.skips(corner, message.t_mid_ns):
                return self._leave_out(message.frame)
            return [self._place(message.frame, index, plane, corner, "stage", t_recv_ns)]
        else:
            why = NO_POSITION
        self._unplaceable.setdefault(why, RangeSet()).add(message.frame)
        self._wait(message, t_recv_ns)
        return []

    def take_end(self, message: End, now_ns: int) -> list[Effect]:
        """The end of the run, or one more word on it; the last one counts."""
        self._note(message)
        self._end = message
        self._end_reason = message.reason
        self.frames.expect(message.n_sent, now_ns)
        return self.move_to(RunPhase.ENDED, now_ns)

    def take_heartbeat(self, message: Heartbeat, now_ns: int) -> None:
        """A heartbeat that speaks of this run: not journalled, but it says how many images were sent."""
        if message.n_sent is not None and message.n_sent > self.counts.n_sent:
            self.counts.n_sent = message.n_sent
            self.frames.expect(message.n_sent, now_ns)

    def replay(self, item: Journalled) -> list[Place]:
        """The next message of its journal, after a restart."""
        message, t_recv_ns, index = item
        match message:
            case Image():
                after_end = self.phase is not RunPhase.OPEN
                after_last_word = self._n_counted > 0 and self._recorded_phase is not RunPhase.OPEN
                late = index is not None and index >= self._n_counted and (after_end or after_last_word)
                corner = None if message.pos_um is None or self.joins(message) else self.corner(message.pos_um)
                return self.take_image(message, index or 0, corner, t_recv_ns, late=late)
            case Stage():
                return self.take_stage(message, t_recv_ns)
            case End():
                self.take_end(message, t_recv_ns)
            case Event():
                self.take_event(message)
            case Start():
                self.take_start(message)
        return []

    def replayed(self, placed: RangeSet, now_ns: int) -> list[Effect]:
        """Its journal has been read to the end: go on as before the restart.

        `placed` are the frames that the store has a place for, whatever the journal says of them today.
        """
        for first, last in placed.ranges():
            self.placed.add_range(first, last)
        self.frames.expect(self.counts.n_sent, now_ns)
        self.report_due_ns = None
        effects: list[Effect] = []
        missing = self.frames.call_all()
        if missing or self._gaps_said:
            # What was said before may have healed since, and that it did was not said any more: this replaces it all.
            effects.append(self._gap_notice(missing=missing, all_of_it=True))
        if _ORDER.index(self.phase) > _ORDER.index(self._recorded_phase):
            effects.append(PhaseChange(self.run, self.phase))
        else:
            self.phase = self._recorded_phase
        if self.phase is not RunPhase.OPEN:
            self._linger_until_ns = now_ns + self._settings.idle_end_ns
            # What was kept last, and the report issued before it, speak of less than there is.
            has_moved = self.phase is not self._recorded_phase
            has_grown = self._n_images > self._n_counted or len(self.placed) != self._n_placed_kept
            if not self.revision or has_moved or has_grown or self._report_was_due:
                self._report_soon(now_ns)
        return effects

    # --- its life -----------------------------------------------------------------------------------------------------

    def hear(self, now_ns: int) -> None:
        """Its publisher is there."""
        self.heard_ns = max(self.heard_ns, now_ns)

    def changed(self, now_ns: int) -> None:
        """Something that the report states is no longer so: it is issued again if it has been issued.

        News are gathered, for longer with each revision up to a limit: a scan that goes on in a run that was idle does
        not issue a report for each of its frames.
        """
        if self.phase is not RunPhase.OPEN and self.report_due_ns is None:
            self.report_due_ns = now_ns + self._settings.gap_report_ns * min(max(1, self.revision), _MAX_REPORT_WAIT)

    def refuse(self, reason: str, sentence: str, now_ns: int) -> None:
        """Count a message of this run that was refused."""
        self.counts.refuse(reason)
        self._refusal_news[reason] = self._refusal_news.get(reason, 0) + 1
        self._refusal_sentence = sentence
        self.changed(now_ns)

    def drop(self, *, resent: bool, now_ns: int) -> None:
        """Count an image that is there already."""
        if resent:
            self.counts.resent += 1
        else:
            self.counts.duplicate += 1
        self.changed(now_ns)

    def move_to(self, phase: RunPhase, now_ns: int, reason: str | None = None) -> list[Effect]:
        """Go idle, or end; a report follows. An ended run can end again, and is never idle."""
        if reason is not None:
            self._end_reason = reason
        effects: list[Effect] = []
        if _ORDER.index(phase) > _ORDER.index(self.phase):
            self.phase = phase
            effects.append(PhaseChange(self.run, phase))
        self._linger_until_ns = now_ns + self._settings.idle_end_ns
        self._report_soon(now_ns)
        return effects

    def tick(self, now_ns: int) -> list[Effect]:
        """What time brings: silence, news that have been gathered, a report that is due."""
        effects: list[Effect] = []
        if self.phase is RunPhase.OPEN and now_ns - self.heard_ns > self._settings.idle_end_ns:
            effects += self.move_to(RunPhase.IDLE, now_ns)
        report_is_due = self.report_due_ns is not None and now_ns >= self.report_due_ns
        if report_is_due or now_ns >= self._next_notice_ns:
            effects += self._take_notices(now_ns)
        if report_is_due:
            effects += self.take_report()
        return effects

    def take_report(self) -> list[Effect]:
        """Issue a report now."""
        self.report_due_ns = None
        self._report_waits = False
        self.revision += 1
        return [Report(self.run, self.revision, self.report())]

    def notice(self, kind: str, detail: dict[str, Any]) -> Notice:
        """A notice about this run."""
        return Notice(self.start.instrument, self.start.stream, self.run, kind, detail)

    # --- inner --------------------------------------------------------------------------------------------------------

    def _note(self, message: Image | Stage | Event | End | Start) -> None:
        self._seqs.setdefault((message.src, message.boot), RangeSet()).add(message.seq)

    def _wait(self, message: Image, t_recv_ns: int) -> None:
        """To be reported if it still has no place when join_timeout_ms have passed."""
        while self._without_place and self._without_place[0][2] in self.placed:
            self._without_place.popleft()
        self._without_place.append((t_recv_ns, message.t_mid_ns, message.frame))

    def _place_joined(self, joined: Joined) -> list[Place]:
        image, corner = joined.image, self.corner(joined.pos_um)
        if self._moves.skips(corner, image.t_mid_ns, self._joiner.track):
            return self._leave_out(image.frame)
        return [self._place(image.frame, image.image_index, image.plane, corner, "joined", image.t_recv_ns)]

    def _leave_out(self, frame: int) -> list[Place]:
        """One of the first after a move: listed, and no news, since it was asked for."""
        self._unplaceable.setdefault(joining.AFTER_MOVE, RangeSet()).add(frame)
        return []

    def _place(
        self, frame: int, index: int, plane: PlaneKey, corner: tuple[int, int], source: str, t_recv_ns: int
    ) -> Place:
        self.placed.add(frame)
        (row, col), (height, width) = corner, self.start.shape
        # By their centres: at its edges a scan is a few pixels beyond what was planned.
        centre = Rect(row + height // 2, col + width // 2, row + height // 2 + 1, col + width // 2 + 1)
        if self._extent is not None and not self._extent.contains(centre):
            self.outside_extent.add(frame)
        return Place(self.run, Placement(frame, 0, plane, row, col, height, width, source, index), t_recv_ns)

    def _report_soon(self, now_ns: int) -> None:
        """Issue a report at once, unless images wait for the stage message that comes next: then a little later."""
        self._report_waits = self._joiner.n_waiting_for_later > 0
        self.report_due_ns = now_ns + (self._settings.join_timeout_ns if self._report_waits else 0)

    def _take_notices(self, now_ns: int) -> list[Effect]:
        notices: list[Effect] = []
        if self.frames.has_news(now_ns):
            missing, healed = self.frames.take_news(now_ns)
            if missing or healed:
                notices.append(self._gap_notice(missing=missing, healed=healed))
        if self._late_news:
            ranges = self._late_news.ranges()
            notices.append(self.notice("late", {"frames": shown(ranges), "n": n_in(ranges)}))
            self._late_news = RangeSet()
        if self._refusal_news:
            detail: dict[str, Any] = {
                "what": "rejected",
                "reasons": self._refusal_news,
                "message": self._refusal_sentence,
            }
            notices.append(self.notice("warning", detail))
            self._refusal_news = {}
        for why, frames in self._overdue(now_ns).items():
            detail = {"what": "unplaced", "why": why, "frames": shown(frames.ranges()), "n": len(frames)}
            notices.append(self.notice("warning", detail | {"message": UNPLACED_BECAUSE[why]}))
        if notices:
            self._next_notice_ns = now_ns + self._settings.gap_report_ns
        return notices

    def _gap_notice(self, *, missing: Ranges, healed: Ranges | None = None, all_of_it: bool = False) -> Notice:
        """Which frames are missing, or have come after all; `all` says that nothing else is."""
        self._gaps_said = True
        detail: dict[str, Any] = {"what": "frames"} | gap_detail(missing, healed or [])
        if all_of_it:
            detail |= {"missing": shown(missing), "n_missing": n_in(missing), "all": True}
        return self.notice("gap", detail)

    def _overdue(self, now_ns: int) -> dict[str, RangeSet]:
        """The frames that have been without a place for join_timeout_ms, by the reason; each is given once."""
        overdue: dict[str, RangeSet] = {}
        waiting = self._without_place
        while waiting and waiting[0][0] + self._settings.join_timeout_ns <= now_ns:
            _, t_mid_ns, frame = waiting.popleft()
            if frame in self.placed:
                continue
            why = next((name for name, frames in self._unplaceable.items() if frame in frames), None)
            why = why or self._joiner.why(frame, t_mid_ns)
            if why is not None:
                overdue.setdefault(why, RangeSet()).add(frame)
        return overdue


def gap_detail(missing: Ranges, healed: Ranges) -> dict[str, Any]:
    """What there is to say of numbers that are missing, and of those that have come after all."""
    detail: dict[str, Any] = {}
    for name, ranges in (("missing", missing), ("healed", healed)):
        if ranges:
            detail |= {name: shown(ranges), f"n_{name}": n_in(ranges)}
    return detail


def shown(ranges: Ranges) -> list[list[int]]:
    """Ranges for a notice: not more than fit."""
    return [list(one) for one in ranges[:MAX_NOTICE_RANGES]]
