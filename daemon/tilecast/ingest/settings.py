"""The options of the ingest machine, as it uses them.

One frozen object, so that the machine can be made and tested without a configuration file. Options that decide where
pixels go are frozen into each run when it opens (`placing_rules`); the others may differ after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilecast_protocol.messages import STATUS_GOOD, STATUS_SATURATED

from .joining import MAX_SAMPLES, MAX_WAITING, PlacingRules


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestSettings:
    """Options of the ingest machine.

    Attributes
    ----------
    idle_end_s : float
        A run that has been silent for this long is idle.
    reorder_tolerance_ms : float
        How long a number may be overtaken by higher ones before it counts as missing.
    gap_report_ms : float
        News of one run (gaps, late images, refusals, frames without a place) are gathered for this long, and said once.
    hold_bytes : int
        Images that came before the start of their run, on sockets that cannot be answered, are held up to this size.
    hold_s : float
        And for this long.
    join_max_gap_ms, allow_moving, blend_status, skip_after_move
        See `PlacingRules`.
    join_timeout_ms : float
        When an image without a place is reported. It is still placed when its bracket comes.
    unload_after_s : float
        A run that has ended, and been silent for this long, is forgotten until something comes for it.
    max_idle_loaded : int
        Idle runs that are kept loaded; beyond that the one silent for longest is forgotten, as after its end.
    max_stage_samples, max_waiting_images : int
        Bounds of each run's joiner.
    """

    idle_end_s: float = 30.0
    reorder_tolerance_ms: float = 500.0
    gap_report_ms: float = 1000.0
    hold_bytes: int = 64 * 1024 * 1024
    hold_s: float = 10.0
    join_max_gap_ms: float = 250.0
    join_timeout_ms: float = 2000.0
    allow_moving: bool = False
    blend_status: frozenset[int] = frozenset({STATUS_GOOD, STATUS_SATURATED})
    skip_after_move: int = 0
    unload_after_s: float = 60.0
    max_idle_loaded: int = 32
    max_stage_samples: int = MAX_SAMPLES
    max_waiting_images: int = MAX_WAITING

    @property
    def placing_rules(self) -> PlacingRules:
        """What a run that opens now is placed by for good."""
        return PlacingRules(self.join_max_gap_ms, self.allow_moving, self.blend_status, self.skip_after_move)

    @property
    def idle_end_ns(self) -> int:
        """`idle_end_s` in ns."""
        return round(self.idle_end_s * 1e9)

    @property
    def reorder_tolerance_ns(self) -> int:
        """`reorder_tolerance_ms` in ns."""
        return round(self.reorder_tolerance_ms * 1e6)

    @property
    def gap_report_ns(self) -> int:
        """`gap_report_ms` in ns."""
        return round(self.gap_report_ms * 1e6)

    @property
    def hold_ns(self) -> int:
        """`hold_s` in ns."""
        return round(self.hold_s * 1e9)

    @property
    def join_timeout_ns(self) -> int:
        """`join_timeout_ms` in ns."""
        return round(self.join_timeout_ms * 1e6)

    @property
    def unload_after_ns(self) -> int:
        """`unload_after_s` in ns."""
        return round(self.unload_after_s * 1e9)
