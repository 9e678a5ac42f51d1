"""An ingest thread without sockets, files or clocks, for tests of the machine that decides.

`Thread` does by hand what the real one does around `IngestMachine`: journals what is accepted (in lists), carries out
the effects, keeps beside the journal what the journal cannot tell, and can be killed and started again at any moment.
`Camera` and `StageSource` number their messages as a publisher does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tilecast.geometry import Placement
from tilecast.ingest.journalled import Journalled
from tilecast.ingest.machine import IngestMachine
from tilecast.ingest.settings import IngestSettings
from tilecast.ingest.verdicts import (
    Accept,
    Effect,
    Hold,
    IngestPath,
    Input,
    NeedsRun,
    Notice,
    PhaseChange,
    Place,
    Release,
    Reload,
    Report,
    RunPhase,
    RunRecord,
    Unload,
    Verdict,
)
from tilecast_protocol.messages import End, Event, Heartbeat, Image, Stage, Start
from tilecast_protocol.ranges import RangeSet

MS = 1_000_000
S = 1_000_000_000
T0 = 1_790_000_000 * S
RUN = "0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f"
OTHER_RUN = "11111111-2222-4333-8444-555555555555"
ACK, PULL, SUB = IngestPath.ACK, IngestPath.PULL, IngestPath.SUB


def boot_of(number: int) -> str:
    """A boot uuid for each number."""
    return f"00000000-0000-4000-8000-{number:012x}"


class Source:
    """A publisher: numbers its messages."""

    def __init__(self, stream: str, *, instrument: str = "scope", boot: int = 0, src: str = "") -> None:
        self.common: dict[str, Any] = {
            "instrument": instrument,
            "stream": stream,
            "src": src or stream,
            "boot": boot_of(boot),
        }
        self.seq = -1

    def _next(self, t_ns: int) -> dict[str, Any]:
        self.seq += 1
        return self.common | {"seq": self.seq, "t_ns": t_ns}


class Camera(Source):
    """A camera of frames of 8 × 8 pixels of 1 µm."""

    def __init__(self, stream: str = "cam", run: str = RUN, **source: Any) -> None:
        super().__init__(stream, **source)
        self.run = run

    def start(self, t_ns: int = T0, **changes: Any) -> Start:
        """The start of its run."""
        what = {"run": self.run, "name": "scan", "shape": (8, 8), "dtype": "|u1", "px_um": (1.0, 1.0)}
        return Start(**self._next(t_ns), **(what | changes))

    def image(self, frame: int, t_ns: int = T0, **changes: Any) -> Image:
        """A frame; without a position unless it is given one."""
        what = {"run": self.run, "frame": frame, "codec": "raw", "nbytes": 1, "parts": (b"x",)}
        return Image(**self._next(t_ns), **(what | changes))

    def end(self, n_sent: int, t_ns: int = T0, **changes: Any) -> End:
        """The end of its run."""
        return End(**self._next(t_ns), **({"run": self.run, "reason": "done", "n_sent": n_sent} | changes))

    def heartbeat(self, t_ns: int = T0, **changes: Any) -> Heartbeat:
        """A sign of life."""
        return Heartbeat(**self._next(t_ns), **({"state": "sending", "run": self.run} | changes))

    def event(self, t_ns: int = T0, **changes: Any) -> Event:
        """Something worth keeping."""
        return Event(**self._next(t_ns), **({"name": "shutter"} | changes))


class StageSource(Source):
    """A stage."""

    def __init__(self, stream: str = "stage", **source: Any) -> None:
        super().__init__(stream, **source)

    def at(self, t_ns: int, x_um: float, y_um: float = 0.0, **changes: Any) -> Stage:
        """Where it is."""
        return Stage(**self._next(t_ns), pos_um=(x_um, y_um), **changes)


class Thread:
    """The ingest thread of one machine.

    Attributes
    ----------
    journals : dict of str to list of Journalled
    records : dict of str to RunRecord
        What is kept beside the journals.
    placed : dict of str to dict of int to Placement
        What was handed on to be blended, by run and frame.
    reports : dict of str to list of dict
        All that were issued, by run.
    notices : list of Notice
    phases : list of (run, phase)
    """

    def __init__(self, settings: IngestSettings | None = None) -> None:
        self.settings = settings or IngestSettings()
        self.journals: dict[str, list[Journalled]] = {}
        self.records: dict[str, RunRecord] = {}
        self.placed: dict[str, dict[int, Placement]] = {}
        self.reports: dict[str, list[dict[str, Any]]] = {}
        self.notices: list[Notice] = []
        self.phases: list[tuple[str, RunPhase]] = []
        self.unloaded: list[str] = []
        self._held: list[tuple[Input, bool]] = []
        self.now_ns = T0
        self.machine = IngestMachine(self.settings, self.records.get)

    def send(self, message: Input, path: IngestPath = ACK, *, damaged: bool = False) -> Verdict:
        """One message, with a payload that fails its checks if it is damaged."""
        verdict = self.machine.screen(message, path, self.now_ns)
        if isinstance(verdict, NeedsRun):
            self._load(verdict.run)
            verdict = self.machine.screen(message, path, self.now_ns)
        match verdict:
            case Accept() if damaged:
                self.machine.refused(verdict, "bad-payload", "its checksum is wrong")
            case Accept():
                self._accept(verdict)
            case Hold():
                self._held.append((message, damaged))
        self.keep()
        return verdict

    def _accept(self, verdict: Accept) -> None:
        if verdict.opens is not None:
            self.journals[verdict.opens.run] = []
            self.records[verdict.opens.run] = verdict.opens
        index = None
        for target in verdict.targets:
            for stage in target.prelude:
                self._append(target.run, stage)
            index = self._append(target.run, verdict.message)
        self._do(self.machine.accepted(verdict, index))

    def tick(self, after_ms: float = 0.0) -> None:
        """Let time pass."""
        self.now_ns += round(after_ms * MS)
        self._do(self.machine.tick(self.now_ns))
        self.keep()

    def settle(self) -> None:
        """Let so much time pass that all has been said, without a run going idle for it."""
        for _ in range(40):
            self.tick(100)

    def keep(self) -> None:
        """Keep of all loaded runs what their journals cannot tell."""
        for run in self.machine.loaded():
            self.records[run] = self.machine.record(run)

    def killed(self, *, n_placed: int | None = None) -> Thread:
        """A new process after this one was killed: the journals are there, and the first `n_placed` placements."""
        new = Thread(self.settings)
        new.now_ns = self.now_ns
        new.journals = {run: list(items) for run, items in self.journals.items()}
        new.records.update(self.records)
        new.placed = {run: dict(list(placed.items())[:n_placed]) for run, placed in self.placed.items()}
        new.reports = {run: list(reports) for run, reports in self.reports.items()}
        for run, record in self.records.items():
            if record.phase in (RunPhase.OPEN, RunPhase.IDLE):
                new._load(run)
        return new

    def report(self, run: str = RUN) -> dict[str, Any]:
        """The latest report that was issued."""
        return self.reports[run][-1]

    def said(self, kind: str) -> list[dict[str, Any]]:
        """The details of all notices of a kind."""
        return [notice.detail for notice in self.notices if notice.kind == kind]

    def corners(self, run: str = RUN) -> dict[int, tuple[int, int]]:
        """(row, col) of every placed frame."""
        return {frame: (placement.row, placement.col) for frame, placement in self.placed.get(run, {}).items()}

    def kinds(self, run: str = RUN) -> list[str]:
        """The types of the messages in a journal, in order."""
        return [item.message.TYPE for item in self.journals[run]]

    def _append(self, run: str, message: Any) -> int | None:
        index = None
        if isinstance(message, Image):
            index = sum(isinstance(item.message, Image) for item in self.journals[run])
        self.journals[run].append(Journalled(replace(message, parts=(), **_no_bytes(message)), self.now_ns, index))
        return index

    def _load(self, run: str) -> None:
        placed = RangeSet(self.placed.get(run, {}))
        self._do(list(self.machine.recover(self.records[run], self.journals[run], placed, self.now_ns)))

    def _do(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Place(run, placement):
                    placed = self.placed.setdefault(run, {})
                    assert placement.frame not in placed, f"frame {placement.frame} was placed twice"
                    placed[placement.frame] = placement
                case PhaseChange(run, phase):
                    self.phases.append((run, phase))
                case Report(run, revision, report):
                    assert report["revision"] == revision == len(self.reports.get(run, [])) + 1
                    self.reports.setdefault(run, []).append(report)
                case Notice():
                    self.notices.append(effect)
                case Release(messages):
                    for message, path in messages:
                        at = next(n for n, (held, _) in enumerate(self._held) if held is message)
                        self.send(message, path, damaged=self._held.pop(at)[1])
                case Reload(run):
                    self.keep()
                    self.machine.forget(run)
                    self.records[run] = replace(self.records[run], held=False)
                    self._load(run)
                case Unload(run, counts):
                    self.records[run] = replace(self.records[run], counts=counts)
                    self.unloaded.append(run)


def _no_bytes(message: Any) -> dict[str, Any]:
    return {"nbytes": 0} if isinstance(message, Image) else {}
