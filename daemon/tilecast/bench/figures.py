"""From what was seen during a benchmark to figures, the name of the bottleneck, and a verdict. Arithmetic only.

A machine *keeps up* with a camera if the daemon has acknowledged the last frame on schedule, and frames did not become
older on their way while the scan went on. Both are needed: queues of a few dozen frames hide a daemon that is a little
too slow for some seconds, but not from the latency.

>>> percentile([4.0, 1.0, 3.0, 2.0], 0.5), percentile([4.0, 1.0, 3.0, 2.0], 0.99)
(2.0, 4.0)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tilecast.bench.limits import FileSystem, Limits, Machine
from tilecast.bench.scan import Scan

NONE: Final = "none"
DISK: Final = "disk"
CPU: Final = "cpu"
SENDER: Final = "sender"
UNKNOWN: Final = "unknown"

_DISK_BOUND: Final = 0.8  # of what the disk takes sequentially
_STAGE_BOUND: Final = 0.85  # of one core
_CPU_BOUND: Final = 0.9  # of all cores
OTHERS_SHARE: Final = 0.1
"""From this share of the processor on, it is said that other programs use it."""
_WAITING: Final = 0.5  # of the time
_LATE_S: Final = 0.5
_GREW_S: Final = 0.1
_GREW_SHARE: Final = 0.02  # of the time in which it grew: what a daemon 2 % too slow loses
_NOISE_SHARE: Final = 0.1  # of a short time; in half a second nothing may be half a second late
_SHORT_S: Final = 5.0  # queues may hide until then what is too slow
_READ_BY: Final = {"blend": "blend", "store": "store"}  # the stage that empties a queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen during one run.

    Attributes
    ----------
    acked_s, seconds : float
        From the first frame sent until the last was acknowledged; until all were committed and announced, and the
        write-ahead log was carried over into the database.
    behind_s : float
        How far sending was behind the schedule at most; 0 if there is none.
    t_s, latency_ms : sequence of float
        For each frame, in the order of their arrival: when the daemon received it, seconds after the first; and how
        long after that a viewer received the notification of the commit that contains it.
    cpu_s, sender_cpu_s : float
        Processor time of the daemon; and of this process, which sends and listens.
    cpu_s_by_stage : mapping
        Of the daemon.
    rss_bytes : int
        Most memory that the daemon was seen to use.
    written_bytes : int or None
        What the daemon had the system write to disk; None where the system does not tell.
    journal_bytes, store_bytes : int
        What lies there in the end.
    full_share : mapping
        Of each queue between stages: share of the time in which it was seen full (nine tenths of its limit).
    queues : mapping
        As in the daemon's last `stats`.
    busy_share : float
        Share of the time in which the machine's cores were busy, whoever kept them so.
    disk_wait_share : float or None
        Share of the time in which everything on the machine that had work waited for the disk, as the system says.
    """

    acked_s: float
    seconds: float
    behind_s: float
    t_s: Sequence[float]
    latency_ms: Sequence[float]
    cpu_s: float
    sender_cpu_s: float
    cpu_s_by_stage: Mapping[str, float]
    rss_bytes: int
    written_bytes: int | None
    journal_bytes: int
    store_bytes: int
    full_share: Mapping[str, float] = field(default_factory=dict)
    queues: Mapping[str, Any] = field(default_factory=dict)
    busy_share: float = 0.0
    disk_wait_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How much of what there is was used, as shares; what decides where the bottleneck is.

    Attributes
    ----------
    disk : float
        Bytes written per second, of what the disk takes sequentially.
    cores, busy : float
        Processor time of daemon and sender, of all cores; and of everybody.
    stages : mapping
        Processor time of each stage, of one core.
    sender : float
        Processor time of the sender, of one core.
    full : mapping
        Of each queue between stages: time in which it was full.
    disk_wait : float
        Time in which everything waited for the disk.
    """

    disk: float
    cores: float
    busy: float
    stages: Mapping[str, float]
    sender: float
    full: Mapping[str, float]
    disk_wait: float = 0.0

    @property
    def others(self) -> float:
        """Processor time of other programs, of all cores."""
        return max(0.0, self.busy - self.cores)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that is not exceeded by at least this share of them; NaN if there are none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def load_of(outcome: Outcome, limits: Limits, machine: Machine) -> Load:
    """How much of the machine a run used."""
    cores = (outcome.cpu_s + outcome.sender_cpu_s) / outcome.seconds / machine.cores
    return Load(
        disk=_written_bytes(outcome) / 1e6 / outcome.seconds / limits.disk_write_mb_s,
        cores=cores,
        busy=max(cores, outcome.busy_share),
        stages={stage: used_s / outcome.seconds for stage, used_s in outcome.cpu_s_by_stage.items()},
        sender=outcome.sender_cpu_s / outcome.seconds,
        full=outcome.full_share,
        disk_wait=outcome.disk_wait_share or 0.0,
    )


def bottleneck(load: Load, *, keeps_up: bool | None = None) -> str:
    """Name what bounds the rate.

    In this order: `none` if the daemon keeps up with what is asked; `disk` if it writes at four fifths of what the disk
    takes sequentially; the stage that keeps a core busy, because more cores would not help it; `cpu` if all cores are
    busy, be it with other programs; `sender` if this process is at its end; `disk` if most of the time everything waits
    for it, however little is written; the stage behind a queue that is full most of the time; else `unknown`.
    """
    if keeps_up:
        return NONE
    if load.disk >= _DISK_BOUND:
        return DISK
    # Several threads may share the work of `encode`; when they are at their end, so is the processor.
    busiest = max((stage for stage in load.stages if stage not in ("encode", "other")), key=load.stages.__getitem__)
    if load.stages[busiest] >= _STAGE_BOUND:
        return busiest
    if load.busy >= _CPU_BOUND:
        return CPU
    if load.sender >= _STAGE_BOUND:
        return SENDER
    if load.disk_wait >= _WAITING:
        return DISK
    # The queue nearest to the end of the way: those before it are full because it is.
    for name in ("store", "blend"):
        if load.full.get(name, 0.0) >= _WAITING:
            return _READ_BY[name]
    return UNKNOWN


def growth_ms(latency_ms: Sequence[float]) -> float:
    """How much older frames became between the second and the last quarter of a run: the difference of the medians.

    Not of the slowest: one slow fsync would then decide.
    """
    quarter = len(latency_ms) // 4
    if not quarter:
        return 0.0
    return statistics.median(latency_ms[-quarter:]) - statistics.median(latency_ms[quarter : 2 * quarter])


def kept_up(outcome: Outcome, n_frames: int, fps: float) -> bool:
    """Whether a run that was sent by a clock was kept up with.

    The last frame must have been acknowledged half a second after it was due at the latest; and the median latency of
    the last quarter of the frames may be above that of the second quarter by 100 ms, or 2 % of the time that lies
    between them, at most. Of a run that is so short that this is more than a tenth of it, a tenth; but two frames may
    always be on their way.
    """
    due_s = (n_frames - 1) / fps
    on_schedule = outcome.acked_s <= due_s + max(2 / fps, min(_LATE_S, _NOISE_SHARE * due_s))
    between_s = due_s / 2
    allowed_s = max(_GREW_SHARE * between_s, min(_GREW_S, _NOISE_SHARE * between_s))
    return on_schedule and growth_ms(outcome.latency_ms) <= 1e3 * allowed_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What `--json` writes; rates and memory as their names say, shares from 0 to 1, bytes per frame."""

    verdict: str
    keeps_up: bool | None
    bottleneck: str
    sustained_fps: float
    sustained_mb_s: float
    latency_ms: dict[str, float]
    cpu_ms_per_frame: float
    cpu_ms_by_stage: dict[str, float]
    sender_cpu_ms_per_frame: float
    rss_mib: float
    disk_bytes_per_frame: float
    journal_bytes_per_frame: float
    store_bytes_per_frame: float
    limits: dict[str, float]
    ratios: dict[str, float]
    used: dict[str, float]
    frames: int
    latencies: int
    seconds: float
    acknowledged_s: float
    behind_ms: float
    fps_asked: float | None
    paced: bool
    shape: tuple[int, int]
    dtype: str
    overlap: float
    columns: int
    file_system: str
    machine: dict[str, Any]
    queues: dict[str, Any]
    version: str


def make_figures(
    scan: Scan,
    outcome: Outcome,
    limits: Limits,
    machine: Machine,
    file_system: FileSystem,
    *,
    fps: float | None,
    paced: bool,
    version: str,
) -> Figures:
    """All figures of a run.

    Parameters
    ----------
    fps : float or None
        What the camera delivers, if that was asked.
    paced : bool
        Whether frames were sent at that rate; else as fast as they were acknowledged.
    version : str
        Of tilecast.
    """
    n = scan.n_frames
    sustained_fps = n / outcome.seconds
    load = load_of(outcome, limits, machine)
    keeps_up: bool | None = None
    if fps is not None and not file_system.in_memory:
        keeps_up = kept_up(outcome, n, fps) if paced else sustained_fps >= fps
    name = bottleneck(load, keeps_up=paced and fps is not None and kept_up(outcome, n, fps))
    frame_mb = scan.frame_nbytes / 1e6
    cpu_ms = 1e3 * outcome.cpu_s / n
    return Figures(
        verdict=verdict(
            keeps_up,
            n_frames=n,
            sustained_fps=sustained_fps,
            fps=fps,
            paced=paced,
            bottleneck=name,
            load=load,
            file_system=file_system,
        ),
        keeps_up=keeps_up,
        bottleneck=name,
        sustained_fps=sustained_fps,
        sustained_mb_s=sustained_fps * frame_mb,
        latency_ms={
            "p50": percentile(outcome.latency_ms, 0.5),
            "p99": percentile(outcome.latency_ms, 0.99),
            "max": percentile(outcome.latency_ms, 1.0),
        },
        cpu_ms_per_frame=cpu_ms,
        cpu_ms_by_stage={stage: 1e3 * used_s / n for stage, used_s in outcome.cpu_s_by_stage.items()},
        sender_cpu_ms_per_frame=1e3 * outcome.sender_cpu_s / n,
        rss_mib=outcome.rss_bytes / (1 << 20),
        disk_bytes_per_frame=_written_bytes(outcome) / n,
        journal_bytes_per_frame=outcome.journal_bytes / n,
        store_bytes_per_frame=outcome.store_bytes / n,
        limits={
            "memcpy_ms": limits.memcpy_ms,
            "pzf_encode_gb_s": limits.pzf_encode_gb_s,
            "disk_write_mb_s": limits.disk_write_mb_s,
        },
        ratios={
            "frame_time_per_memcpy": 1e3 / sustained_fps / limits.memcpy_ms,
            "cpu_per_memcpy": cpu_ms / limits.memcpy_ms,
            "cpu_per_pzf_encode": cpu_ms * limits.pzf_encode_gb_s / frame_mb,
            "disk_bytes_per_pixel_byte": _written_bytes(outcome) / n / scan.frame_nbytes,
        },
        used={"disk": load.disk, "disk_wait": load.disk_wait, "cores": load.cores, "cores_others": load.others}
        | {f"{queue}_queue_full": share for queue, share in load.full.items()},
        frames=n,
        latencies=len(outcome.latency_ms),
        seconds=outcome.seconds,
        acknowledged_s=outcome.acked_s,
        behind_ms=1e3 * outcome.behind_s,
        fps_asked=fps,
        paced=paced,
        shape=scan.shape,
        dtype=scan.dtype[1:],
        overlap=scan.overlap,
        columns=scan.columns,
        file_system=str(file_system),
        machine={"cpu": machine.cpu, "cores": machine.cores, "memory_gib": machine.memory_gib},
        queues=dict(outcome.queues),
        version=version,
    )


def verdict(
    keeps_up: bool | None,
    *,
    n_frames: int,
    sustained_fps: float,
    fps: float | None,
    paced: bool,
    bottleneck: str,
    load: Load,
    file_system: FileSystem,
) -> str:
    """The answer in one or two sentences, with no more than was measured."""
    if file_system.in_memory:
        return f"No verdict: {file_system.kind} is memory, no disk. Choose a folder on a disk with --folder."
    bound = _describe_bound(bottleneck, load)
    if fps is None:
        return f"This machine sustains {sustained_fps:.1f} frames/s. {bound}"
    if paced and keeps_up:
        seconds = n_frames / fps
        yes = "Yes" if seconds >= _SHORT_S else f"Yes, as far as {seconds:.1f} s can tell"
        return (
            f"{yes}: {fps:g} frames/s are kept up with, using {load.cores:.0%} of the processor and {load.disk:.0%} of "
            "the disk's rate."
        )
    if paced:
        return f"No: {fps:g} frames/s are too fast for this machine. {bound}"
    answer = "Yes" if keeps_up else "No"
    return (
        f"{answer}: this machine sustains {sustained_fps:.1f} frames/s; the {fps:g} of the camera are "
        f"{fps / sustained_fps:.0%} of that. {bound}"
    )


def _describe_bound(name: str, load: Load) -> str:
    match name:
        case "disk":
            text = f"The disk is the bound: {load.disk:.0%} of its sequential rate is used"
            return f"{text}, and everything waits for it {load.disk_wait:.0%} of the time."
        case "cpu":
            text = f"The processor is the bound: all cores together are busy {load.busy:.0%} of the time"
            return f"{text}, {load.others:.0%} with other programs." if load.others >= OTHERS_SHARE else f"{text}."
        case "sender":
            return "The bound is the simulated camera, not the daemon: sending takes all that one core can do."
        case "unknown":
            return (
                f"Nothing is at its end (processor {load.busy:.0%}, disk {load.disk:.0%} of its sequential rate): "
                "stages wait for each other, or for the disk to answer."
            )
        case stage if load.stages.get(stage, 0.0) >= _STAGE_BOUND:
            return f"The bound is the stage {stage}: its thread is busy {load.stages[stage]:.0%} of the time."
        case stage:
            return f"The bound is the stage {stage}: its queue is full {load.full.get(stage, 0.0):.0%} of the time."


def _written_bytes(outcome: Outcome) -> int:
    """What was written; where the system does not tell, at least what is there in the end."""
    if outcome.written_bytes is None:
        return outcome.journal_bytes + outcome.store_bytes
    return outcome.written_bytes
