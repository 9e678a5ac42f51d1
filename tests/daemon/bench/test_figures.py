"""Figures, bottleneck and verdict, from made-up runs with numbers that can be worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest

from tilecast.bench.figures import Figures, Load, Outcome, bottleneck, growth_ms, kept_up, make_figures, percentile
from tilecast.bench.limits import FileSystem, Limits, Machine
from tilecast.bench.scan import Scan

SCAN = Scan(shape=(1000, 1000), dtype="<u2", overlap=0.1, n_frames=100, columns=10)
LIMITS = Limits(memcpy_ms=0.5, pzf_encode_gb_s=2.0, disk_write_mb_s=1000.0)
MACHINE = Machine(cpu="a processor", cores=4, memory_gib=16.0)
DISK = FileSystem(kind="ext4", device="/dev/sda1")
RAN = Outcome(
    acked_s=4.75,
    seconds=5.0,
    behind_s=0.002,
    t_s=[n / 20 for n in range(100)],
    latency_ms=[float(n + 1) for n in range(100)],
    cpu_s=6.0,
    sender_cpu_s=1.0,
    cpu_s_by_stage={"ingest": 1.0, "store": 4.5, "other": 0.5},
    rss_bytes=300 << 20,
    written_bytes=1_500_000_000,
    journal_bytes=150_000_000,
    store_bytes=200_000_000,
    full_share={"blend": 0.0, "store": 0.25},
    queues={"blend": {"depth": 0}},
    busy_share=0.45,
    disk_wait_share=0.125,
)
QUIET = Load(disk=0.1, cores=0.5, busy=0.5, stages={"blend": 0.3, "store": 0.2}, sender=0.1, full={})


def figures(outcome: Outcome = RAN, *, fps: float | None = None, paced: bool = False, on: FileSystem = DISK) -> Figures:
    return make_figures(SCAN, outcome, LIMITS, MACHINE, on, fps=fps, paced=paced, version="1")


class TestPercentile:
    @pytest.mark.parametrize(
        ("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (0.991, 100.0), (1.0, 100.0), (0.0, 1.0)]
    )
    def test_is_one_of_the_values(self, share: float, expected: float) -> None:
        assert percentile([float(n) for n in range(100, 0, -1)], share) == expected

    def test_of_one_and_of_none(self) -> None:
        assert percentile([7.0], 0.5) == percentile([7.0], 0.99) == 7.0
        assert math.isnan(percentile([], 0.5))


class TestFigures:
    def test_every_number(self) -> None:
        found = figures()
        assert found.sustained_fps == 20.0
        assert found.sustained_mb_s == 40.0
        assert found.latency_ms == {"p50": 50.0, "p99": 99.0, "max": 100.0}
        assert found.cpu_ms_per_frame == 60.0
        assert found.cpu_ms_by_stage == {"ingest": 10.0, "store": 45.0, "other": 5.0}
        assert found.sender_cpu_ms_per_frame == 10.0
        assert found.rss_mib == 300.0
        assert found.disk_bytes_per_frame == 15_000_000
        assert (found.journal_bytes_per_frame, found.store_bytes_per_frame) == (1_500_000, 2_000_000)
        assert found.limits == {"memcpy_ms": 0.5, "pzf_encode_gb_s": 2.0, "disk_write_mb_s": 1000.0}
        assert found.ratios == {
            "frame_time_per_memcpy": 100.0,  # 50 ms
            "cpu_per_memcpy": 120.0,
            "cpu_per_pzf_encode": 60.0,  # 1 ms for 2 MB
            "disk_bytes_per_pixel_byte": 7.5,
        }
        assert found.used == pytest.approx(
            {
                "disk": 0.3,
                "disk_wait": 0.125,
                "cores": 0.35,
                "cores_others": 0.1,
                "blend_queue_full": 0.0,
                "store_queue_full": 0.25,
            }
        )
        assert (found.frames, found.latencies, found.dtype, found.file_system) == (100, 100, "u2", "ext4 on /dev/sda1")
        assert (found.acknowledged_s, found.seconds, found.behind_ms) == (4.75, 5.0, 2.0)

    def test_what_the_system_does_not_tell_is_at_least_what_stays(self) -> None:
        found = figures(replace(RAN, written_bytes=None))
        assert found.disk_bytes_per_frame == 3_500_000
        assert found.used["disk"] == pytest.approx(0.07)

    def test_it_is_json(self) -> None:
        assert json.loads(json.dumps(asdict(figures()), allow_nan=False))["shape"] == [1000, 1000]


class TestBottleneck:
    @pytest.mark.parametrize(
        ("load", "expected"),
        [
            (QUIET, "unknown"),
            (replace(QUIET, disk=0.8), "disk"),
            (replace(QUIET, disk=0.79), "unknown"),
            (replace(QUIET, stages={"blend": 0.85, "store": 0.7}), "blend"),
            (replace(QUIET, stages={"blend": 0.86, "store": 0.87}), "store"),
            (replace(QUIET, stages={"blend": 0.84, "encode": 1.7, "other": 0.9}), "unknown"),
            (replace(QUIET, busy=0.9), "cpu"),
            (replace(QUIET, sender=0.85), "sender"),
            (replace(QUIET, disk_wait=0.5), "disk"),
            (replace(QUIET, full={"blend": 0.5, "store": 0.1}), "blend"),
            (replace(QUIET, full={"blend": 0.9, "store": 0.5}), "store"),
        ],
    )
    def test_names_what_is_at_its_end(self, load: Load, expected: str) -> None:
        assert bottleneck(load) == expected

    def test_what_comes_first_when_several_are(self) -> None:
        full = {"blend": 1.0, "store": 1.0}
        load = Load(disk=1.0, cores=1.0, busy=1.0, stages={"blend": 1.0}, sender=1.0, full=full, disk_wait=1.0)
        found = []
        for calm in ({"disk": 0.0}, {"stages": {"blend": 0.0}}, {"busy": 0.0}, {"sender": 0.0}, {"disk_wait": 0.0}):
            found.append(bottleneck(load))
            load = replace(load, **calm)  # type: ignore[arg-type]
        assert [*found, bottleneck(load)] == ["disk", "blend", "cpu", "sender", "disk", "store"]

    def test_nothing_bounds_what_keeps_up(self) -> None:
        assert bottleneck(replace(QUIET, disk=1.0), keeps_up=True) == "none"


class TestKeepingUp:
    def test_latency_that_grows_is_measured_from_the_second_quarter_to_the_last(self) -> None:
        assert growth_ms([100.0] * 100) == 0.0
        assert growth_ms([float(n) for n in range(100)]) == 50.0
        assert growth_ms([500.0] * 25 + [10.0] * 75) == 0.0, "the first quarter is the warming-up"
        assert growth_ms([10.0] * 99 + [900.0]) == 0.0, "one slow frame is no growth"
        assert growth_ms([1.0, 9.0, 9.0]) == 0.0

    def test_on_schedule(self) -> None:
        calm = replace(RAN, latency_ms=[30.0] * 100)
        assert kept_up(replace(calm, acked_s=9.95 + 0.49), 200, 20.0)
        assert not kept_up(replace(calm, acked_s=9.95 + 0.51), 200, 20.0)
        assert kept_up(replace(calm, acked_s=99.0 + 1.9), 100, 1.0), "two frames are allowed where those last longer"
        assert not kept_up(replace(calm, acked_s=99.0 + 2.1), 100, 1.0)

    def test_of_a_short_run_less_is_allowed(self) -> None:
        calm = replace(RAN, latency_ms=[30.0] * 100)
        assert kept_up(replace(calm, acked_s=0.99 + 0.09), 100, 100.0)
        assert not kept_up(replace(calm, acked_s=0.99 + 0.11), 100, 100.0)
        # 0.495 s between the quarters.
        assert kept_up(replace(RAN, acked_s=1.0, latency_ms=[0.98 * n for n in range(100)]), 100, 100.0)
        assert not kept_up(replace(RAN, acked_s=1.0, latency_ms=[1.0 * n for n in range(100)]), 100, 100.0)

    def test_a_daemon_a_little_too_slow_is_found_by_its_latency(self) -> None:
        def outcome(growth_ms_per_frame: float) -> Outcome:
            return replace(RAN, acked_s=14.95, latency_ms=[30 + growth_ms_per_frame * n for n in range(300)])

        # 150 frames lie between the quarters: 7.5 s, of which 2 % are 150 ms.
        assert kept_up(outcome(0.99), 300, 20.0)
        assert not kept_up(outcome(1.01), 300, 20.0)


class TestVerdict:
    def test_without_a_rate_it_is_what_was_found(self) -> None:
        found = figures(replace(RAN, cpu_s_by_stage={"ingest": 1.0, "store": 4.5}))
        assert found.keeps_up is None
        assert found.verdict == (
            "This machine sustains 20.0 frames/s. The bound is the stage store: its thread is busy 90% of the time."
        )

    def test_paced(self) -> None:
        calm = replace(RAN, acked_s=5.0, latency_ms=[30.0] * 100)
        found = figures(calm, fps=20.0, paced=True)
        assert (found.keeps_up, found.bottleneck) == (True, "none")
        assert found.verdict == (
            "Yes: 20 frames/s are kept up with, using 35% of the processor and 30% of the disk's rate."
        )
        short = figures(replace(calm, acked_s=2.0), fps=50.0, paced=True)
        assert short.verdict.startswith("Yes, as far as 2.0 s can tell: 50 frames/s are kept up with, ")
        late = figures(replace(calm, acked_s=9.0), fps=20.0, paced=True)
        assert (late.keeps_up, late.bottleneck) == (False, "store")
        assert late.verdict.startswith("No: 20 frames/s are too fast for this machine. The bound is the stage store")

    @pytest.mark.parametrize(
        ("fps", "keeps_up", "word"), [(10.0, True, "Yes"), (20.0, True, "Yes"), (25.0, False, "No")]
    )
    def test_the_maximum_against_a_camera(self, fps: float, keeps_up: bool, word: str) -> None:
        found = figures(fps=fps)
        assert found.keeps_up is keeps_up
        share = f"{fps / 20:.0%}"
        assert found.verdict.startswith(
            f"{word}: this machine sustains 20.0 frames/s; the {fps:g} of the camera are {share} of that. "
        )

    def test_where_the_disk_is_the_bound_it_says_by_how_much(self) -> None:
        found = figures(replace(RAN, written_bytes=4_500_000_000))
        assert found.bottleneck == "disk"
        assert "The disk is the bound: 90% of its sequential rate is used" in found.verdict

    def test_other_programs_are_named(self) -> None:
        found = figures(replace(RAN, busy_share=0.95, cpu_s_by_stage={"store": 1.0}))
        assert found.bottleneck == "cpu"
        assert "all cores together are busy 95% of the time, 60% with other programs." in found.verdict

    @pytest.mark.parametrize("paced", [True, False])
    def test_memory_is_no_disk(self, paced: bool) -> None:
        found = figures(fps=1.0, paced=paced, on=FileSystem(kind="tmpfs", device="tmpfs"))
        assert found.keeps_up is None
        assert found.verdict.startswith("No verdict: tmpfs is memory")
        assert found.sustained_fps == 20.0

    @pytest.mark.parametrize(
        "load", [QUIET, replace(QUIET, sender=0.9), replace(QUIET, full={"store": 0.6}), replace(QUIET, disk_wait=0.7)]
    )
    def test_every_bound_is_put_into_words(self, load: Load) -> None:
        from tilecast.bench.figures import verdict

        text = verdict(
            None,
            n_frames=9,
            sustained_fps=5.0,
            fps=None,
            paced=False,
            bottleneck=bottleneck(load),
            load=load,
            file_system=DISK,
        )
        assert text.startswith("This machine sustains 5.0 frames/s. ")
        assert text.endswith(".")
