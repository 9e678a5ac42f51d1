"""A scan under every kind of nastiness: the run report is exact, joins follow the journal, a restart changes nothing.

A scan is made from a seed: images with or without positions of their own, stage messages, heartbeats, events, on any
of the paths. What arrives of it is dropped, doubled, sent again under new numbers, delayed, damaged, cut off at the
end, and interrupted by a daemon that is killed. A model of a page (`Model`), which shares nothing with the machine but
the messages, says what the report must be.

A few hundred seeds are part of the tests. For more:

    uv run python tests/properties/test_ingest_properties.py --seeds 10000
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":  # pytest finds these by its configuration
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingest_harness import MS, PULL, RUN, SUB, T0, Camera, S, StageSource, Thread
from reference.slow_joiner import Exposure, Sample, SlowJoiner
from tilecast.geometry import place_centre
from tilecast.ingest.settings import IngestSettings
from tilecast.ingest.verdicts import IngestPath, Input, RunPhase
from tilecast_protocol.errors import MalformedError
from tilecast_protocol.messages import End, Heartbeat, Image, Stage, Start

HOUR_MS = 3_600_000.0
N_SEEDS = 250


@dataclass(frozen=True)
class Arrival:
    """Something that arrives: a message, one whose payload was damaged, or bytes that are no message at all."""

    message: Input | None
    wait_ms: float
    damaged: bool = False


@dataclass
class Scan:
    """What a seed makes."""

    path: IngestPath
    settings: IngestSettings
    is_joined: bool
    arrivals: list[Arrival]


def scan_of(seed: int) -> Scan:
    """A scan and what becomes of it on the way."""
    rng = random.Random(seed)
    path = rng.choice(list(IngestPath))
    settings = IngestSettings(
        idle_end_s=HOUR_MS / 1e3,
        hold_s=HOUR_MS / 1e3,
        join_max_gap_ms=rng.choice([12.0, 30.0, 250.0]),
        join_timeout_ms=50,
        allow_moving=rng.random() < 0.5,
        reorder_tolerance_ms=rng.choice([0.0, 20.0, 500.0]),
        gap_report_ms=20,
        unload_after_s=2 * HOUR_MS / 1e3,
    )
    camera, stage = Camera(), StageSource(boot=7)
    n = rng.randrange(1, 30)
    is_joined = rng.random() < 0.5
    stage_ahead_ns = rng.choice([0, 0, 3 * MS, -15 * MS])
    # The start's time is that of a repeat, so that what a stage said before is no other's.
    begin: dict[str, Any] = {"t_ns": T0 + S, "pos_src": rng.choice([None, "stage"]) if is_joined else None}
    sent: list[Input] = [camera.start(**begin)]
    for frame in range(n):
        t_ns = T0 + frame * 10 * MS
        for k in range(2):
            moving = rng.choice([None, False, True])
            at_ns = t_ns + k * 5 * MS + rng.randrange(-MS, MS)
            sent.append(stage.at(at_ns + stage_ahead_ns, 100.0 * frame + 50 * k, float(frame), moving=moving))
        status = rng.choice([0, 0, 0, 0, 1, 2, 3])
        position = None if is_joined else (8.0 * frame, 3.0)
        moving = rng.choice([None, None, False, True])
        sent.append(camera.image(frame, t_ns, pos_um=position, status=status, moving=moving))
        if rng.random() < 0.1:
            sent.append(camera.heartbeat(t_ns, n_sent=frame + 1))
            sent.append(camera.start(**begin))
        if rng.random() < 0.1:
            sent.append(camera.event(t_ns))
    sent.append(camera.end(n, n_camera_dropped=rng.choice([None, 0, 3])))
    return Scan(path, settings, is_joined, _mistreated(sent, rng))


def _mistreated(sent: list[Input], rng: random.Random) -> list[Arrival]:
    drop, again, anew, damage, rubbish = (rng.choice([0.0, 0.0, 0.05, 0.3]) for _ in range(5))
    disorder = rng.choice([0.0, 0.0, 2.0, 15.0])
    if rng.random() < 0.2:
        del sent[-rng.randrange(1, len(sent)) :]  # the tail is cut off
    timed: list[tuple[float, int, Arrival]] = []

    def arrives(at: float, message: Input | None, *, damaged: bool = False) -> None:
        late = rng.expovariate(1 / disorder) if disorder and rng.random() < 0.3 else 0.0
        timed.append((at + late, len(timed), Arrival(message, rng.choice([0.0, 1.0, 10.0]), damaged)))

    renumbered = 0
    for at, message in enumerate(sent):
        is_image = isinstance(message, Image)
        if rng.random() >= drop:
            arrives(at, message, damaged=is_image and rng.random() < damage)
        while rng.random() < again:
            arrives(at + rng.uniform(0, 5), message, damaged=is_image and rng.random() < damage)
        if is_image and rng.random() < anew:
            renumbered += 1
            copy = Camera(boot=100 + renumbered).image(
                message.frame, message.t_ns, pos_um=message.pos_um, status=message.status, moving=message.moving
            )
            arrives(at + rng.uniform(-3, 5), copy)
        if rng.random() < rubbish:
            arrives(at, None)
    return [arrival for _, _, arrival in sorted(timed, key=lambda one: one[:2])]


@dataclass
class Model:
    """What the report must say, by counting."""

    path: IngestPath
    started: bool = False
    ended: bool = False
    end: End | None = None
    n_said: int = 0
    seen: dict[int, Image] = field(default_factory=dict)
    kept: set[tuple[str, int]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    held: list[Arrival] = field(default_factory=list)

    def arrive(self, arrival: Arrival) -> None:
        """One thing more."""
        message = arrival.message
        if message is None:
            self.counts["malformed"] += self.started
        elif isinstance(message, Start):
            if not self.started:
                self.started = True
                for early in self.held:
                    self.arrive(early)
        elif isinstance(message, Heartbeat):
            if self.started:
                self.n_said = max(self.n_said, message.n_sent or 0)
        elif isinstance(message, Image | End) and not self.started:
            if self.path in (PULL, SUB):
                self.held.append(arrival)
            else:
                self.rejected["unknown-run"] += 1
        elif isinstance(message, End):
            self.end = message
            self.ended = True
        elif isinstance(message, Image):
            self._image(message, damaged=arrival.damaged)

    def _image(self, message: Image, *, damaged: bool) -> None:
        if message.frame in self.seen:
            self.counts["resent" if (message.boot, message.seq) in self.kept else "duplicate"] += 1
        elif damaged:
            self.rejected["bad-payload"] += 1
        else:
            self.seen[message.frame] = message
            self.kept.add((message.boot, message.seq))
            self.counts["late"] += self.ended

    def report(self) -> dict[str, Any]:
        """The part of the report that is counted."""
        sent = self.end.n_sent if self.end is not None else self.n_said
        expected = max([sent, *(frame + 1 for frame in self.seen)])
        status = Counter(image.status for image in self.seen.values())
        return {
            "run": RUN,
            "state": "ended" if self.ended else "idle",
            "reason": "done" if self.ended else None,
            "planned": None,
            "expected": expected,
            "received": len(self.seen),
            "missing": [frame for frame in range(expected) if frame not in self.seen],
            "n_missing": expected - len(self.seen),
            "duplicate": self.counts["duplicate"],
            "resent": self.counts["resent"],
            "malformed": self.counts["malformed"],
            "rejected": dict(self.rejected),
            "lost_before_start": 0,
            "late": self.counts["late"],
            "by_status": {
                name: status[code] for code, name in enumerate(("good", "incomplete", "repeated", "saturated"))
            },
            "camera_dropped": self.end.n_camera_dropped if self.end is not None else None,
        }


def numbers(ranges: list[list[int]]) -> list[int]:
    """All numbers in [first, last] ranges."""
    return [number for first, last in ranges for number in range(first, last + 1)]


class Play:
    """A scan as the machine sees it, with the daemon killed now and then."""

    def __init__(self, scan: Scan, kill: random.Random | None = None) -> None:
        self.scan = scan
        self.kill = kill
        self.thread = Thread(scan.settings)
        self.missing: set[int] = set()

    def run(self) -> Thread:
        """Play it to the end, and let so much time pass that everything has been said."""
        for arrival in self.scan.arrivals:
            self._arrive(arrival)
            if self.kill is not None and self.kill.random() < 0.1:
                self._restart()
        self.thread.settle()
        for wait_ms in (HOUR_MS, 1000.0, 60_000.0):
            self.thread.tick(wait_ms)
        self._listen()
        return self.thread

    def _arrive(self, arrival: Arrival) -> None:
        thread = self.thread
        thread.tick(arrival.wait_ms)
        if arrival.message is None:
            thread.machine.malformed(MalformedError("rubbish", topic="tc1/scope/cam/image"), thread.now_ns)
            thread.keep()
            return
        thread.send(arrival.message, self.scan.path, damaged=arrival.damaged)

    def _restart(self) -> None:
        thread = self.thread
        if RUN not in thread.records or thread.machine.stats()["held"]["n"]:
            return
        if self.scan.is_joined and thread.records[RUN].phase is not RunPhase.OPEN:
            return  # what a stage says while no run is open is in no journal, and a late frame may have needed it
        self._listen()
        assert self.kill is not None
        n_placed = self.kill.randrange(len(thread.placed.get(RUN, {})) + 1)
        before = thread.placed
        self.thread = thread.killed(n_placed=n_placed)
        if RUN not in self.thread.machine.loaded():
            self.thread._load(RUN)
        assert self.thread.placed.get(RUN, {}) == before.get(RUN, {})

    def _listen(self) -> None:
        for said in self.thread.said("gap"):
            if said.get("all"):
                self.missing = set(numbers(said["missing"]))
            elif said["what"] == "frames":
                self.missing.update(numbers(said.get("missing", [])))
                self.missing.difference_update(numbers(said.get("healed", [])))
        self.thread.notices.clear()


def joined_slowly(thread: Thread) -> dict[int, tuple[int, int]]:
    """Where the journal, read from the beginning, puts every frame."""
    record = thread.records[RUN]
    slow = SlowJoiner(round(record.rules.join_max_gap_ms * MS), record.rules.allow_moving)
    corners = {}
    for item in thread.journals[RUN]:
        message = item.message
        if isinstance(message, Stage):
            slow.add(Sample(message.t_ns, message.pos_um[0], message.pos_um[1], message.moving))
        elif isinstance(message, Image) and message.status in (0, 3):
            if record.start.pos_src != "stage" and message.pos_um is not None:
                corners[message.frame] = place_centre(message.pos_um, ((1, 0), (0, 1)), (8, 8))
            else:
                slow.add(Exposure(message.frame, message.t_mid_ns, message.moving))
    return corners | {
        frame: place_centre(position, ((1, 0), (0, 1)), (8, 8)) for frame, position in slow.placed.items()
    }


def check(seed: int) -> None:
    """Everything that is promised of the scan of one seed."""
    scan = scan_of(seed)
    model = Model(scan.path)
    for arrival in scan.arrivals:
        model.arrive(arrival)
    play = Play(scan)
    thread = play.run()
    if not model.started:
        assert thread.reports == {}
        return
    report = thread.report()
    expected = model.report()
    assert {key: report[key] for key in expected} | {"missing": numbers(report["missing"])} == expected
    assert play.missing == set(expected["missing"])
    assert thread.machine.report(RUN) == report, "something has changed that no report has told"

    assert thread.corners() == joined_slowly(thread)
    unplaced = numbers([one for ranges in report["unplaced"].values() for one in ranges])
    assert sorted(unplaced) == sorted(set(model.seen) - set(thread.corners()))
    assert report["placed"] == len(thread.corners())
    journalled = [(item.message.src, item.message.boot, item.message.seq) for item in thread.journals[RUN]]
    assert len(set(journalled)) == len(journalled)

    again = Play(scan, kill=random.Random(seed))
    interrupted = again.run()
    assert interrupted.report() | {"revision": 0} == report | {"revision": 0}
    assert interrupted.placed == thread.placed
    assert interrupted.journals == thread.journals
    assert again.missing == play.missing


@pytest.mark.parametrize("block", range(10))
def test_the_report_is_exact_whatever_happens_on_the_way(block: int) -> None:
    size = N_SEEDS // 10
    for seed in range(block * size, (block + 1) * size):
        try:
            check(seed)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise


def test_the_scans_are_nasty_enough() -> None:
    """Every kind of trouble is met by some seed: else the test above proves little."""
    met: Counter[str] = Counter()
    for seed in range(N_SEEDS):
        scan = scan_of(seed)
        model = Model(scan.path)
        for arrival in scan.arrivals:
            model.arrive(arrival)
        report = model.report()
        met.update(key for key in ("missing", "duplicate", "resent", "malformed", "late") if report[key])
        met.update(f"rejected {reason}" for reason in report["rejected"])
        met.update([f"path {scan.path}", f"state {report['state']}", "held" if model.held else "nothing held"])
        met.update(["not started"] if not model.started else [])
    assert len(met) == 15
    assert min(met.values()) >= 5, met


def main() -> None:
    """Check many seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    for seed in range(args.first, args.first + args.seeds):
        try:
            check(seed)
        except AssertionError:
            print(f"seed {seed}", file=sys.stderr)
            raise
    print(f"{args.seeds} scans, every report exact")


if __name__ == "__main__":
    main()
