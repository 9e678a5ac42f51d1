"""What does it cost to decide about a message, and to join a frame to the stage stream?

Not a test: run it by hand, on the machine that is to be judged.

    uv run python tests/benchmarks/bench_join.py

`joiner` is the joining alone, after the stage's memory is full; `machine` is all that is decided about a message
(screening, gaps, duplicates, the joining), without parsing and without the journal. The share is that of a camera at
100 frames/s beside a stage that is read at 1 kHz.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ingest_harness import ACK, MS, RUN, T0, Camera, StageSource
from tilecast.ingest.joining import Joiner, Unjoined
from tilecast.ingest.machine import IngestMachine, IngestSettings
from tilecast.ingest.verdicts import Accept

STAGE_PER_FRAME = 10


def joiner(n_frames: int, n_waiting: int) -> tuple[float, float]:
    """Seconds for all stage samples, and for all frames; `n_waiting` frames have no bracket from the beginning."""
    joins = Joiner(max_gap_ms=250.0)
    for k in range(1 << 18):
        joins.add_stage(T0 - (1 << 18) * MS + k * MS, (0.0, 0.0))
    for frame in range(n_waiting):
        joins.add_image(Unjoined(frame, frame, T0 - (1 << 20) * MS + frame))
    stage_s = frame_s = 0.0
    n_placed = 0
    for frame in range(n_frames):
        t_ns = T0 + frame * STAGE_PER_FRAME * MS
        began = time.perf_counter()
        found = joins.add_image(Unjoined(n_waiting + frame, frame, t_ns + MS // 2))
        frame_s += time.perf_counter() - began
        n_placed += found is not None
        began = time.perf_counter()
        for k in range(STAGE_PER_FRAME):
            n_placed += len(joins.add_stage(t_ns + k * MS, (float(k), 0.0)))
        stage_s += time.perf_counter() - began
    assert n_placed == n_frames
    return stage_s, frame_s


def machine(n_frames: int) -> tuple[float, float]:
    """Seconds for all stage messages, and for all frames."""
    decides, camera, stage = IngestMachine(IngestSettings()), Camera(), StageSource()
    start = decides.screen(camera.start(), ACK, T0)
    assert isinstance(start, Accept)
    decides.accepted(start)
    stage_s = frame_s = 0.0
    for frame in range(n_frames):
        t_ns = T0 + frame * STAGE_PER_FRAME * MS
        image = camera.image(frame, t_ns + MS // 2)
        samples = [stage.at(t_ns + k * MS, float(k)) for k in range(STAGE_PER_FRAME)]
        began = time.perf_counter()
        verdict = decides.screen(image, ACK, t_ns)
        assert isinstance(verdict, Accept)
        decides.accepted(verdict, frame)
        frame_s += time.perf_counter() - began
        began = time.perf_counter()
        for sample in samples:
            verdict = decides.screen(sample, ACK, t_ns)
            assert isinstance(verdict, Accept)
            decides.accepted(verdict)
        stage_s += time.perf_counter() - began
    assert decides.report(RUN)["received"] == n_frames
    return stage_s, frame_s


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=5000)
    args = parser.parse_args()
    cases: list[tuple[str, Callable[[], tuple[float, float]]]] = [
        ("joiner", lambda: joiner(args.frames, 0)),
        ("joiner, 100,000 frames unplaced", lambda: joiner(args.frames, 100_000)),
        ("machine", lambda: machine(args.frames)),
    ]
    for name, measure in cases:
        stage_s, frame_s = measure()
        stage_us, frame_us = stage_s / args.frames / STAGE_PER_FRAME * 1e6, frame_s / args.frames * 1e6
        share = (stage_us * 1000 + frame_us * 100) / 1e6
        print(f"{name:32} {stage_us:6.1f} µs/stage message {frame_us:6.1f} µs/frame  {share:6.1%} of a core")


if __name__ == "__main__":
    main()
