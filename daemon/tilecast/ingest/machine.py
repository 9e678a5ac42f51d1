"""Decides what becomes of every message: the state of all runs, as a pure function of messages and time.

The ingest thread owns the sockets and the journals and asks here; nothing in this module touches a socket, a file or a
clock. For each message, one at a time:

1. `screen` it. The verdict says whether it is to be journalled and where, or dropped, refused, held back, or whether
   its run must be loaded first. Nothing has changed yet but counts.
2. If it is to be journalled, check its payload and append it; then say `accepted`, or, if it fails, `refused`.
3. Carry out the effects that come back: images to blend, reports and notices to publish.

and every few milliseconds `tick`. After a restart `recover` rebuilds a run from its journal; what follows is as if
nothing had happened. Given the same calls the answers are the same, always.

>>> machine = IngestMachine(IngestSettings())
>>> start = Start(instrument="scope", stream="cam", src="cam", boot="0b" * 16, seq=0, t_ns=0, name="demo",
...               run="01" * 16, shape=(64, 64), dtype="|u1", px_um=(1.0, 1.0))
>>> verdict = machine.screen(start, IngestPath.ACK, now_ns=0)
>>> [target.run[:8] for target in verdict.targets]
['01010101']
>>> machine.accepted(verdict)
[PhaseChange(run='01010101-0101-0101-0101-010101010101', phase=<RunPhase.OPEN: 'open'>)]
>>> image = Image(instrument="scope", stream="cam", src="cam", boot="0b" * 16, seq=1, t_ns=0, run="01" * 16, frame=0,
...               codec="raw", nbytes=1, parts=(b"x",), pos_um=(32.0, 32.0))
>>> [effect] = machine.accepted(machine.screen(image, IngestPath.ACK, now_ns=0), image_index=0)
>>> effect.placement.rect
Rect(row0=0, col0=0, row1=64, col1=64)

Readings of the protocol that are chosen here
---------------------------------------------
* Of the instrument's stage streams those count that were heard within `idle_end_s` (or, if none was, all that are
  remembered). A `start` that may need one, names none and finds several is refused as `malformed`: a key is missing
  that it needs. If there is none yet, the first stage message binds its stream. The choice is frozen.
* Besides the runs that are open, stage messages go into the journal of an idle or ended run while one of its images
  waits for a later one: the last frame of a scan is placed although `end` comes before the stage does.
* A run that went idle stays idle when images come again: they are accepted and `late`, as the protocol says. The report
  is issued again for several at once.
* The first report waits for the bracket of the last images, at most `join_timeout_ms`.
* A `start` without the calibration that it means: refused on the acknowledged path; elsewhere the run is opened and its
  images journalled, and placed when a `start` brings what was missing.
* `event` and `end` of an unknown run are treated as images are. An `event` without a run goes to all open runs of its
  instrument; without any, it and stage messages are settled and not kept. An `event` for a run may come from any stream
  of its instrument: notes are made by other programs than the camera's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from tilecast_protocol.checks import calibration_part
from tilecast_protocol.errors import MalformedError
from tilecast_protocol.messages import End, Event, Heartbeat, Image, Stage, Start, same_start
from tilecast_protocol.messages import RunState as WelcomeRun
from tilecast_protocol.ranges import RangeSet
from tilecast_protocol.topics import parse_topic

from .holding import MAX_RUNS, HeldMessages
from .journalled import Journalled
from .live_run import LiveRun, gap_detail, shown
from .runreport import n_in
from .sequences import MAX_SOURCES, GapWatch, Ranges, Source
from .settings import IngestSettings
from .stage_history import StageHistory
from .verdicts import (
    Accept,
    Drop,
    DropReason,
    Effect,
    Hold,
    IngestPath,
    Input,
    NeedsRun,
    Notice,
    PhaseChange,
    Reject,
    Release,
    Reload,
    RunPhase,
    RunRecord,
    Target,
    Unload,
    Verdict,
)

__all__ = ["IngestMachine", "IngestSettings"]

_NOT_KEPT: Final = Drop(DropReason.NOT_KEPT)


class _OneWaySource:
    """A publisher on a socket that cannot be answered: which of its messages are missing."""

    __slots__ = ("instrument", "next_notice_ns", "stream", "watch")

    def __init__(self, message: Input, settings: IngestSettings) -> None:
        self.instrument, self.stream = message.instrument, message.stream
        # Whoever connects late has missed nothing that it could know of.
        self.watch = GapWatch(settings.reorder_tolerance_ns, first=message.seq)
        self.next_notice_ns = 0


def lacks_parts(start: Start) -> bool:
    """Whether a `start` means calibrations of its own payload, and left them out, as repeats do."""
    numbers = [n for n in (calibration_part(start.dark), calibration_part(start.flat)) if n is not None]
    return any(n >= len(start.parts) for n in numbers)


class IngestMachine:
    """The state of all runs.

    Only runs that are open, idle or still of interest are loaded; the others are asked of `lookup_run`, and loaded when
    a message needs them. Not thread-safe.

    Parameters
    ----------
    settings : IngestSettings
    lookup_run : callable
        What is kept of a run that is not loaded, by its uuid; None if there is no such run.
    """

    def __init__(
        self, settings: IngestSettings, lookup_run: Callable[[str], RunRecord | None] = lambda _: None
    ) -> None:
        self.settings = settings
        self._lookup_run = lookup_run
        self._runs: dict[str, LiveRun] = {}
        self._held = HeldMessages(settings.hold_bytes, settings.hold_ns)
        self._stages = StageHistory(round(settings.join_max_gap_ms * 1e6))
        self._sources: dict[Source, _OneWaySource] = {}
        self._refused: dict[str, int] = {}
        self._refused_starts: dict[str, Notice] = {}
        self._next_notice_ns = 0

    # --- messages -----------------------------------------------------------------------------------------------------

    def screen(self, message: Input, path: IngestPath, now_ns: int) -> Verdict:
        """What is to be done with a message.

        The next message may be screened once `accepted` or `refused` has been said of one that is to be journalled.

        Parameters
        ----------
        message : Start, Image, Stage, Event, End or Heartbeat
        path : IngestPath
            The way it came.
        now_ns : int
            When it was received.
        """
        if path is not IngestPath.ACK:
            self._watch(message, now_ns)
        match message:
            case Image():
                return self._screen_image(message, path, now_ns)
            case Stage():
                return self._screen_stage(message, path, now_ns)
            case Start():
                verdict = self._screen_start(message, path, now_ns)
                if isinstance(verdict, Reject) and message.run not in self._runs:
                    self._say_refused(message, verdict.reason, verdict.message)
                return verdict
            case Event():
                return self._screen_event(message, path, now_ns)
            case End():
                return self._screen_end(message, path, now_ns)
            case Heartbeat():
                return self._screen_heartbeat(message, now_ns)

    def accepted(self, verdict: Accept, image_index: int | None = None, *, held: bool = False) -> list[Effect]:
        """The message lies in the journals of all its targets.

        Parameters
        ----------
        verdict : Accept
        image_index : int, optional
            For an image: its ordinal among the images of its journal.
        held : bool
            For a `start`: a calibration that it names is not there, so its images are not to be placed yet.
        """
        message, now_ns = verdict.message, verdict.now_ns
        effects: list[Effect] = []
        if verdict.opens is not None:
            record = replace(verdict.opens, held=held or verdict.opens.held)
            self._runs[record.run] = LiveRun(record, self.settings, now_ns)
            effects.append(PhaseChange(record.run, RunPhase.OPEN))
        if isinstance(message, Stage):
            self._stages.add(message, now_ns, keep_all=self._held.waits_for(message.instrument))
        for target in verdict.targets:
            run = self._runs.get(target.run)
            if run is None:
                continue  # its journal failed meanwhile, and the thread has let go of it
            for stage in target.prelude:
                effects += run.take_stage(stage, now_ns)
            match message:
                case Image():
                    if image_index is None:
                        raise ValueError("an image that was journalled has an image_index; none was given")
                    late = run.phase is not RunPhase.OPEN
                    effects += run.take_image(message, image_index, verdict.corner, now_ns, late=late)
                case Stage():
                    effects += run.take_stage(message, now_ns)
                case Event():
                    run.take_event(message)
                case End():
                    effects += run.take_end(message, now_ns)
                    if run.report_due_ns == now_ns:
                        effects += run.tick(now_ns)
                case Start():
                    run.take_start(message)
                    effects += self._started(run, opened=verdict.opens is not None)
        return effects

    def refused(self, verdict: Accept, reason: str, sentence: str) -> None:
        """A message was not journalled after all: its payload is bad, the disk is full, a calibration is not there.

        It has not been seen, and may come again.
        """
        self._count_refusal(reason)
        for target in verdict.targets:
            run = self._runs.get(target.run)
            if run is not None:
                run.refuse(reason, sentence, verdict.now_ns)
        if verdict.opens is not None:
            self._say_refused(verdict.opens.start, reason, sentence)

    def malformed(self, error: MalformedError, now_ns: int) -> None:
        """Something came that is no message; it is counted for the run of its stream, if it names one that is open."""
        self._count_refusal(error.reason)
        if error.topic is None:
            return
        try:
            topic = parse_topic(error.topic)
        except MalformedError:
            return
        runs = [run for run in self._runs.values() if run.key == (topic.instrument, topic.stream)]
        if runs:
            newest = max(runs, key=lambda run: (run.phase is RunPhase.OPEN, run.heard_ns))
            newest.refuse(error.reason, str(error), now_ns)

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> list[Effect]:
        """What follows from time alone; to be called every few milliseconds."""
        self._held.expire(now_ns)
        effects: list[Effect] = self._lost_notices(now_ns)
        for run in self._runs.values():
            effects += run.tick(now_ns)
        effects += self._source_notices(now_ns)
        return effects + self._unload_quiet(now_ns)

    def close(self, now_ns: int) -> list[Effect]:
        """The daemon stops: what is held is lost, and what has been gathered is said."""
        self._held.lose_all()
        self._next_notice_ns = now_ns
        effects = self._lost_notices(now_ns)
        for run in self._runs.values():
            # A report that waits for more would never be issued: nobody looks at a run that was given back.
            effects += run.tick(max(now_ns, run.report_due_ns or 0))
        return effects

    # --- runs ---------------------------------------------------------------------------------------------------------

    def recover(
        self, record: RunRecord, journal: Iterable[Journalled], placed: RangeSet, now_ns: int
    ) -> Iterator[Effect]:
        """Load a run: rebuild its state from its journal.

        The run is loaded when the iteration has ended; effects can be carried out while it goes on, so that a long
        journal needs no memory.

        Parameters
        ----------
        record : RunRecord
        journal : iterable of Journalled
            All its records, in order.
        placed : RangeSet
            Frames that the store has a placement for: those are not placed again.
        now_ns : int

        Yields
        ------
        Effect
            `Place` for every image that can be placed and is not; what became due in the meantime.
        """
        run = LiveRun(record, self.settings, now_ns)
        for item in journal:
            if isinstance(item.message, Stage) and record.phase is RunPhase.OPEN:
                self._stages.recall(item.message, item.t_recv_ns)
            for effect in run.replay(item):
                if effect.placement.frame not in placed:
                    yield effect
        effects = run.replayed(placed, now_ns)
        self._runs[record.run] = run
        yield from effects
        held, early = self._held.release(record.run)
        if early is not None:
            run.counts.lost_before_start += len(early.lost_frames)
        if held:
            yield Release(held)

    def forget(self, run: str) -> None:
        """Let go of a run: it was deleted or sealed, its journal failed, or it is to be loaded anew."""
        self._runs.pop(run, None)

    def end_run(self, run: str, reason: str, now_ns: int) -> list[Effect]:
        """An operator ends a loaded run whose publisher will not; KeyError if it is not loaded."""
        live = self._runs[run]
        return [*live.move_to(RunPhase.ENDED, now_ns, reason), *live.tick(now_ns)]

    def let_go(self, run: str, now_ns: int) -> list[Effect]:
        """Unload a loaded run that is not open, now; KeyError if it is not loaded."""
        live = self._runs.pop(run)
        # A report that is due would never be issued.
        effects = live.tick(max(now_ns, live.report_due_ns or 0))
        return [*effects, Unload(run, live.counts_to_keep())]

    def calibrated(self, run: str) -> list[Effect]:
        """A calibration that a loaded run lacked is there now; KeyError if it is not loaded."""
        return [Reload(run)] if self._runs[run].held else []

    # --- questions ----------------------------------------------------------------------------------------------------

    def loaded(self) -> tuple[str, ...]:
        """The runs that are loaded."""
        return tuple(self._runs)

    def record(self, run: str) -> RunRecord:
        """What is to be kept of a loaded run beside its journal, as of now; KeyError if it is not loaded."""
        live = self._runs[run]
        return RunRecord(
            start=live.start,
            phase=live.phase,
            revision=live.revision,
            rules=live.rules,
            stage_stream=live.stage_stream,
            held=live.held,
            counts=live.counts_to_keep(),
        )

    def counts(self, run: str) -> dict[str, Any] | None:
        """What the journal of a run cannot tell, as plain values to be kept beside it; None if it is not loaded."""
        live = self._runs.get(run)
        return None if live is None else live.counts_to_keep()

    def report(self, run: str) -> dict[str, Any]:
        """The run report as of now, of a loaded run; KeyError if it is not loaded."""
        return self._runs[run].report()

    def unplaced(self, run: str) -> dict[str, Ranges]:
        """Frames without a place, by the reason, of a loaded run; KeyError if it is not loaded."""
        return self._runs[run].unplaced()

    def welcome(self, instrument: str, stream: str) -> tuple[WelcomeRun, ...]:
        """The loaded runs of a stream, for the `welcome` of its publisher."""
        return tuple(run.welcome() for run in self._runs.values() if run.key == (instrument, stream))

    def stats(self) -> dict[str, Any]:
        """How much is loaded and held, and what was lost or refused since the machine was made, as plain values."""
        return {
            "progress": {run.run: run.progress() for run in self._runs.values()},
            "runs": {phase.value: sum(run.phase is phase for run in self._runs.values()) for phase in RunPhase},
            "held": {"n": len(self._held), "nbytes": self._held.nbytes, "n_lost": self._held.n_lost},
            "refused": dict(sorted(self._refused.items())),
            "stages": [
                {
                    "instrument": stage.instrument,
                    "stream": stage.stream,
                    "pos_um": list(stage.pos_um),
                    "t_ns": stage.t_ns,
                    "moving": stage.moving,
                }
                for stage in self._stages.latest()
            ],
            "one_way_sources": [
                {
                    "src": src,
                    "boot": boot,
                    "instrument": source.instrument,
                    "stream": source.stream,
                    "received": len(source.watch.seen),
                    "missing": n_in(source.watch.missing()),
                }
                for (src, boot), source in self._sources.items()
            ],
        }

    # --- screening ----------------------------------------------------------------------------------------------------

    def _screen_start(self, message: Start, path: IngestPath, now_ns: int) -> Verdict:
        run = self._runs.get(message.run)
        known = run or self._lookup_run(message.run)
        if known is not None:
            elsewhere = self._not_here(message, known, now_ns)
            if elsewhere is not None:
                return elsewhere
            if not same_start(known.start, message):
                first = f"{known.start.name!r} of {known.start.t_ns / 1e9:.0f} s UTC"
                sentence = f"run {message.run} was started otherwise ({first}), and that stands; take a new run uuid"
                return self._reject("run-conflict", sentence, now_ns, run=message.run)
            if run is not None:
                run.hear(now_ns)
                if run.held and not lacks_parts(message) and lacks_parts(run.start) and not run.has(message):
                    return Accept(message=message, path=path, now_ns=now_ns, targets=(Target(run.run),))
            return Drop(DropReason.REPEATED_START, message.run)
        stage_stream = message.stage_stream
        if message.pos_src != "frame" and stage_stream is None:
            streams = self._stages.streams(message.instrument, now_ns, self.settings.idle_end_ns)
            if len(streams) > 1:
                sentence = (
                    f"start: {message.instrument} has {len(streams)} stage streams ({', '.join(streams[:8])}); name "
                    "one as stage_stream, or say pos_src frame if every image carries pos_um"
                )
                return self._reject("malformed", sentence, now_ns)
            stage_stream = streams[0] if streams else None
        held = lacks_parts(message)
        if held and path is IngestPath.ACK:
            sentence = (
                f"start: the payload parts of dark or flat are needed once; send start of run {message.run} whole"
            )
            return self._reject("calibration-missing", sentence, now_ns)
        record = RunRecord(start=message, rules=self.settings.placing_rules, stage_stream=stage_stream, held=held)
        # A stage whose clock is ahead of the run by more than a bracket was another one's: a replay's, or one from
        # before the clock was set.
        latest_ns = max(message.t_ns, self._held.latest_t_ns(message.run)) + round(self.settings.join_max_gap_ms * 1e6)
        prelude = tuple(stage for stage in self._stages.recent(message.instrument) if stage.t_ns <= latest_ns)
        return Accept(message=message, path=path, now_ns=now_ns, targets=(Target(message.run, prelude),), opens=record)

    def _screen_image(self, message: Image, path: IngestPath, now_ns: int) -> Verdict:
        run = self._find(message, message.run, path, now_ns)
        if not isinstance(run, LiveRun):
            return run
        if message.frame in run.frames.seen:
            resent = run.has(message)
            run.drop(resent=resent, now_ns=now_ns)
            return Drop(DropReason.RESENT if resent else DropReason.DUPLICATE, run.run)
        corner = None
        if message.pos_um is not None:
            try:
                corner = run.corner(message.pos_um)
            except ValueError as error:
                return self._reject("malformed", f"image: {error}", now_ns, run=run.run)
        prelude: tuple[Stage, ...] = ()
        if run.joins(message):
            corner = None
            if not run.takes_stage(now_ns):
                prelude = tuple(stage for stage in self._stages.recent(message.instrument) if not run.has(stage))
        return Accept(
            message=message,
            path=path,
            now_ns=now_ns,
            targets=(Target(run.run, prelude),),
            start=run.start,
            corner=corner,
        )

    def _screen_stage(self, message: Stage, path: IngestPath, now_ns: int) -> Verdict:
        runs = [run for run in self._runs.values() if run.key[0] == message.instrument and run.takes_stage(now_ns)]
        # A run that was started with a wrong pixel size must not keep the stage from the others.
        reached = [run for run in runs if run.reaches(message)]
        lacking = [run for run in reached if not run.has(message)]
        if not lacking and (reached or message in self._stages):
            return Drop(DropReason.RESENT, reached[0].run if reached else None)
        sentence = ""
        for run in runs:
            if run not in reached:
                sentence = f"stage: {message.pos_um} µm is beyond ±2**30 pixels of run {run.run}; check its unit"
                run.refuse("malformed", sentence, now_ns)
        if sentence and not reached:
            self._count_refusal("malformed")
            return Reject("malformed", sentence, runs[0].run)
        targets = tuple(Target(run.run) for run in lacking)
        return Accept(message=message, path=path, now_ns=now_ns, targets=targets)

    def _screen_event(self, message: Event, path: IngestPath, now_ns: int) -> Verdict:
        if message.run is not None:
            run = self._find(message, message.run, path, now_ns)
            if not isinstance(run, LiveRun):
                return run
            runs = [run]
        else:
            runs = [
                run for run in self._runs.values() if run.key[0] == message.instrument and run.phase is RunPhase.OPEN
            ]
        lacking = tuple(Target(run.run) for run in runs if not run.has(message))
        if runs and not lacking:
            return Drop(DropReason.RESENT, runs[0].run)
        return Accept(message=message, path=path, now_ns=now_ns, targets=lacking)

    def _screen_end(self, message: End, path: IngestPath, now_ns: int) -> Verdict:
        run = self._find(message, message.run, path, now_ns)
        if not isinstance(run, LiveRun):
            return run
        if run.has(message):
            return Drop(DropReason.RESENT, run.run)
        return Accept(message=message, path=path, now_ns=now_ns, targets=(Target(run.run),))

    def _screen_heartbeat(self, message: Heartbeat, now_ns: int) -> Verdict:
        for run in self._runs.values():
            if run.key == (message.instrument, message.stream) and message.run in (None, run.run):
                run.hear(now_ns)
                if message.run is not None:
                    run.take_heartbeat(message, now_ns)
        return _NOT_KEPT

    def _find(
        self, message: Image | Event | End, run: str, path: IngestPath, now_ns: int
    ) -> LiveRun | Reject | Hold | NeedsRun:
        """The run of a message, or what is to be done without it."""
        live = self._runs.get(run)
        known = live or self._lookup_run(run)
        if known is None:
            if path is IngestPath.ACK:
                self._held.refused(message, run)
                sentence = f"no start of run {run} has been seen; send it, then this message under a new seq"
                return self._reject("unknown-run", sentence, now_ns)
            self._held.hold(message, run, path, now_ns)
            return Hold()
        elsewhere = self._not_here(message, known, now_ns)
        if elsewhere is not None:
            return elsewhere
        if live is None:
            return NeedsRun(run)
        live.hear(now_ns)
        return live

    def _not_here(self, message: Start | Image | Event | End, known: LiveRun | RunRecord, now_ns: int) -> Reject | None:
        """The refusal, if a message is for a run of another stream, or one that takes no more."""
        here = known.start.instrument, known.start.stream
        run = known.run
        # A note on a run may come from any program of the instrument; the run's own messages may not.
        wrong = (
            message.instrument != here[0]
            if isinstance(message, Event)
            else (message.instrument, message.stream) != here
        )
        if wrong:
            sentence = f"run {run} belongs to {here[0]}/{here[1]}, not to {message.instrument}/{message.stream}"
            return self._reject("run-elsewhere", sentence, now_ns, run=run)
        if known.phase is RunPhase.SEALED:
            sentence = f"run {run} is sealed: its recording has been dropped, nothing can be added; start a new run"
            return self._reject("run-sealed", sentence, now_ns, run=run)
        return None

    def _reject(self, reason: str, sentence: str, now_ns: int, *, run: str | None = None) -> Reject:
        self._count_refusal(reason)
        live = self._runs.get(run) if run is not None else None
        if live is not None:
            live.refuse(reason, sentence, now_ns)
        return Reject(reason, sentence, run)

    def _count_refusal(self, reason: str) -> None:
        self._refused[reason] = self._refused.get(reason, 0) + 1

    # --- inner --------------------------------------------------------------------------------------------------------

    def _started(self, run: LiveRun, *, opened: bool) -> list[Effect]:
        """What follows when a `start` has been journalled."""
        if not opened:
            return [Reload(run.run)]
        effects: list[Effect] = []
        if run.held:
            sentence = "the run's dark or flat image is not there; its images are kept, and placed when it comes"
            effects.append(run.notice("calibration-missing", {"message": sentence}))
        held, early = self._held.release(run.run)
        if early is not None:
            run.counts.lost_before_start += len(early.lost_frames)
            if early.n_refused:
                run.counts.refuse("unknown-run", early.n_refused)
        if held:
            effects.append(Release(held))
        return effects

    def _watch(self, message: Input, now_ns: int) -> None:
        key = (message.src, message.boot)
        source = self._sources.pop(key, None) or _OneWaySource(message, self.settings)
        self._sources[key] = source  # the one heard last lies last
        if len(self._sources) > MAX_SOURCES:
            del self._sources[next(iter(self._sources))]
        source.watch.add(message.seq, now_ns)

    def _say_refused(self, start: Start, reason: str, sentence: str) -> None:
        """A run could not be opened. On a one-way socket nobody is told but whoever watches."""
        kind = "calibration-missing" if reason == "calibration-missing" else "warning"
        detail = {"what": "rejected", "reasons": {reason: 1}, "message": sentence}
        self._refused_starts[start.run] = Notice(start.instrument, start.stream, start.run, kind, detail)
        if len(self._refused_starts) > MAX_RUNS:
            del self._refused_starts[next(iter(self._refused_starts))]

    def _lost_notices(self, now_ns: int) -> list[Effect]:
        """What there is to say of runs that have not started."""
        if now_ns < self._next_notice_ns:
            return []
        refused, self._refused_starts = list(self._refused_starts.values()), {}
        sentence = "images came before the start of their run and could not be kept until it came"
        notices: list[Effect] = [
            *refused,
            *(
                Notice(
                    early.instrument,
                    early.stream,
                    run,
                    "warning",
                    {
                        "what": "unknown-run",
                        "frames": shown(early.lost_frames.ranges()),
                        "n": len(early.lost_frames),
                        "message": sentence,
                    },
                )
                for run, early in self._held.take_news()
            ),
        ]
        if notices:
            self._next_notice_ns = now_ns + self.settings.gap_report_ns
        return notices

    def _source_notices(self, now_ns: int) -> list[Effect]:
        notices: list[Effect] = []
        for (src, _), source in self._sources.items():
            if now_ns < source.next_notice_ns or not source.watch.has_news(now_ns):
                continue
            missing, healed = source.watch.take_news(now_ns)
            if not missing and not healed:
                continue
            source.next_notice_ns = now_ns + self.settings.gap_report_ns
            detail = {"what": "messages", "src": src, "stream": source.stream} | gap_detail(missing, healed)
            notices += [
                run.notice("gap", detail)
                for run in self._runs.values()
                if run.key[0] == source.instrument and run.phase is RunPhase.OPEN
            ]
        return notices

    def _unload_quiet(self, now_ns: int) -> list[Effect]:
        quiet = [
            run
            for run in self._runs.values()
            if run.report_due_ns is None and not run.takes_stage(now_ns) and run.phase is not RunPhase.OPEN
        ]
        idle = sorted((run for run in quiet if run.phase is RunPhase.IDLE), key=lambda run: run.heard_ns)
        gone = idle[: max(0, len(idle) - self.settings.max_idle_loaded)]
        gone += [
            run
            for run in quiet
            if run.phase is RunPhase.ENDED and now_ns - run.heard_ns > self.settings.unload_after_ns
        ]
        for run in gone:
            del self._runs[run.run]
        return [Unload(run.run, run.counts_to_keep()) for run in gone]
