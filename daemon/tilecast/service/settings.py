"""What ingest and plugins are told of the configuration: the same for the daemon and for a recorder."""

from __future__ import annotations

from tilecast.ingest.ingester import IngesterOptions
from tilecast.ingest.settings import IngestSettings
from tilecast.plugins import Plugins
from tilecast.service.config import Config
from tilecast_protocol.messages import Limits


def ingest_settings(config: Config) -> IngestSettings:
    """The options of the ingest machine."""
    return IngestSettings(
        idle_end_s=config.ingest.idle_end_s,
        reorder_tolerance_ms=config.ingest.reorder_tolerance_ms,
        gap_report_ms=config.ingest.gap_report_ms,
        hold_bytes=config.ingest.hold_bytes,
        hold_s=config.ingest.hold_s,
        join_max_gap_ms=config.join.max_gap_ms,
        join_timeout_ms=config.join.timeout_ms,
        allow_moving=config.join.allow_moving,
        skip_after_move=config.join.skip_after_move,
        blend_status=frozenset(config.ingest.blend_status),
    )


def ingester_options(config: Config, *, recent_bytes: int) -> IngesterOptions:
    """The options of the ingest thread; `recent_bytes` of pixels are kept for frames that wait for a position."""
    return IngesterOptions(
        limits=Limits(max_frame_bytes=config.ingest.max_frame_bytes),
        credit_bytes=config.ingest.credit_bytes,
        recent_bytes=recent_bytes,
        durability=config.journal.durability,
        fsync_interval_s=config.journal.fsync_interval_ms / 1e3,
    )


def load_plugins(config: Config) -> Plugins:
    """The plugins that are installed and enabled, each with its options."""
    return Plugins.load(
        timeout_s=config.plugins.timeout_s,
        max_failures=config.plugins.max_failures,
        options_of=config.of_plugin,
        trace=config.plugins.trace,
    )
