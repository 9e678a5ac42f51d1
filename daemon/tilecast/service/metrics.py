"""What the daemon tells a monitoring system: the numbers of `stats`, in the terms of Prometheus.

Nothing is counted here. A scrape asks for `stats` and `health`, as a viewer does, and translates; so the numbers are
those that everybody else sees. Names and units follow the rules of Prometheus: base units, `_total` for what only
rises.

Not known here: sockets, threads, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tilecast.ingest.verdicts import DropReason
from tilecast_protocol.messages import REJECT_REASONS

STATES: Final = ("starting", "catching-up", "ready", "stopping", "failed")
HARMLESS: Final = (DropReason.RESENT, DropReason.REPEATED_START)
"""Drops that lose nothing: a publisher that was cut off says again what had come already."""
_LOST: Final = "lost-before-start"


class StatsCollector(Collector):
    """Asks at each scrape.

    Parameters
    ----------
    instrument, version : str
    stats, health : callable
        As the queries of these names answer.
    """

    def __init__(
        self,
        instrument: str,
        version: str,
        *,
        stats: Callable[[], Mapping[str, Any]],
        health: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._info = {"instrument": instrument, "version": version}
        self._stats = stats
        self._health = health

    def collect(self) -> Iterator[Metric]:
        """All metrics, as of now."""
        yield _labelled(GaugeMetricFamily, "tilecast_info", "Which daemon this is; always 1.", self._info, 1)
        yield from families(self._stats(), self._health())

    def describe(self) -> list[Metric]:
        """Nothing: a registry must not ask for numbers before the daemon has any."""
        return []


def families(stats: Mapping[str, Any], health: Mapping[str, Any]) -> Iterator[Metric]:
    """Metrics from the answers to `stats` and `health`."""
    ingest, store, disk, plugins = stats["ingest"], stats["store"], stats["disk"], stats["plugins"]
    yield _by("tilecast_state", "1 for the state that the daemon is in.", "state",
              {state: float(state == stats["state"]) for state in STATES}, gauge=True)  # fmt: skip
    yield _gauge("tilecast_takes_start", "1 if a run can be begun now, as /readyz.", float(not health["no_start"]))
    yield _gauge("tilecast_problems", "How many sentences of `health` say that something is wrong.",
                 len(health["problems"]))  # fmt: skip
    yield _gauge("tilecast_uptime_seconds", "Since the start of the daemon.", stats["uptime_s"])
    yield _gauge("tilecast_resident_memory_bytes", "Memory of the process.", stats["rss_bytes"])
    yield _by("tilecast_cpu_seconds", "Processor time by stage.", "stage", stats["cpu_s_by_stage"])

    yield _counter("tilecast_messages", "Messages that came in, of every kind.", ingest.get("messages", 0))
    yield _counter("tilecast_frames", "Images that were recorded.", ingest.get("images", 0))
    yield _counter("tilecast_frame_bytes", "Bytes of these images, as sent.", ingest.get("image_bytes", 0))
    yield _counter("tilecast_frames_blended", "Images that were blended, also after a restart.",
                   stats["blend"]["n_frames"])  # fmt: skip
    yield _by("tilecast_drops", "Messages that were not kept, by the cause; also those that had come already.",
              "cause", drops(ingest))  # fmt: skip
    held = ingest.get("held", {})
    if isinstance(held, Mapping):
        yield _gauge("tilecast_held_bytes", "Images that wait for the start of their run.", held.get("nbytes", 0))

    queues = stats["queues"]
    for slot, name, text in (
        ("nbytes", "tilecast_queue_bytes", "What waits between two threads."),
        ("depth", "tilecast_queue_items", "The same in items."),
        ("max_bytes", "tilecast_queue_limit_bytes", "How much may wait."),
        ("high_water_bytes", "tilecast_queue_high_water_bytes", "The most that ever waited."),
    ):
        yield _by(name, text, "queue", {queue: values[slot] for queue, values in queues.items()}, gauge=True)
    yield _by("tilecast_queue_waited_seconds", "How long those that fill the queue waited for room.", "queue",
              {queue: values["waited_s"] for queue, values in queues.items()})  # fmt: skip

    yield latency(stats["latency_s_by_stage"])
    yield _counter("tilecast_commits", "Transactions of the stores.", store["n_commits"])
    yield _counter("tilecast_commit_retries", "Commits that found the store locked by somebody else.",
                   store["n_retries"])  # fmt: skip
    yield _counter("tilecast_tiles", "Tiles that were written.", store["n_tiles"])
    yield _counter("tilecast_tile_bytes", "Bytes of these tiles, encoded.", store["n_bytes"])
    yield _gauge("tilecast_wal_bytes", "SQLite's write-ahead logs of all open runs.", store["wal_bytes"])
    notify = stats["notify"]
    yield _counter("tilecast_notifications", "Messages to viewers.", notify["n_sent"])
    yield _counter("tilecast_notification_bytes", "Bytes of these messages.", notify["n_bytes"])

    yield _gauge("tilecast_disk_free_bytes", "Free room on the disk of the runs.", disk["free_bytes"])
    yield _gauge("tilecast_disk_total_bytes", "Size of that disk.", disk["total_bytes"])
    yield _gauge("tilecast_disk_warn_below_bytes", "With less free room there are warnings.", disk["warn_below_bytes"])
    yield _gauge("tilecast_disk_stop_below_bytes", "With less free room no run is begun, and no mosaic written.",
                 disk["stop_below_bytes"])  # fmt: skip
    yield _by("tilecast_disk_room", "1 for how short room is.", "room",
              {room: float(room == disk["room"]) for room in ("ok", "warn", "stop", "full")}, gauge=True)  # fmt: skip
    yield _gauge("tilecast_disk_trouble", "1 after a write that failed for another reason than want of room.",
                 float(bool(disk["trouble"])))  # fmt: skip
    yield _gauge("tilecast_disk_fill_bytes_per_second", "How fast the disk fills.", disk["lost_bytes_per_s"])
    full = GaugeMetricFamily("tilecast_disk_full_in_seconds", "Until no mosaic is written; absent if that is far away.")
    if disk["full_in_s"] is not None:
        full.add_metric([], disk["full_in_s"])
    yield full

    yield _by("tilecast_plugin_failures", "Calls of a plugin that failed or took too long.", "plugin",
              dict.fromkeys(plugins["names"], 0.0) | plugins["errors"])  # fmt: skip
    yield _by("tilecast_plugin_left_out", "1 for a plugin that could not be loaded.", "plugin",
              dict.fromkeys(plugins["failed"], 1.0), gauge=True)  # fmt: skip
    yield _by("tilecast_plugin_disabled", "1 for a plugin that is not called any more.", "plugin",
              dict.fromkeys(plugins["disabled"], 1.0), gauge=True)  # fmt: skip
    yield _counter("tilecast_plugin_missed_commits", "Commits that plugins were too slow to be told of.",
                   plugins["n_missed_commits"])  # fmt: skip
    yield from runs(stats["runs"])


def drops(ingest: Mapping[str, Any]) -> dict[str, float]:
    """Messages that were not kept, by the cause. All causes are there from the start: who watches for a rise from 0
    to 1 must have seen the 0."""
    found: dict[str, float] = dict.fromkeys((*REJECT_REASONS, *DropReason, _LOST), 0.0)
    for name, count in ingest.items():
        kind, _, cause = name.partition("_")
        if kind in ("rejected", "dropped"):
            found[cause] = found.get(cause, 0.0) + count
    found["malformed"] += ingest.get("malformed", 0)  # messages that could not be read at all
    del found[DropReason.NOT_KEPT]  # heartbeats, and what else nobody keeps
    held = ingest.get("held")
    found[_LOST] += held["n_lost"] if isinstance(held, Mapping) else 0
    return {str(cause): count for cause, count in sorted(found.items())}


def latency(by_stage: Mapping[str, Mapping[str, Any]]) -> Metric:
    """Histograms of `stats` as one metric with a label."""
    found = HistogramMetricFamily(
        "tilecast_latency_seconds",
        "From the arrival of a frame until it is recorded (journal), blended (blend), committed (commit); of an fsync "
        "(sync) and a notification (notify), from being due to being done.",
        labels=["stage"],
    )
    for stage, histogram in by_stage.items():
        buckets, below = [], 0
        for bound, count in zip([*map(str, histogram["le_s"]), "+Inf"], histogram["counts"], strict=True):
            below += count
            buckets.append((bound, float(below)))
        found.add_metric([stage], buckets, histogram["sum_s"])
    return found


def runs(progress: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    """How each loaded run is going. A run that nobody has loaded is told by nobody."""
    labels = ["run", "name", "stream"]
    info = GaugeMetricFamily("tilecast_run_open", "1 while a run goes on, 0 while it is idle or has just ended.",
                             labels=labels)  # fmt: skip
    counts = {
        key: GaugeMetricFamily(f"tilecast_run_{key}", text, labels=["run"])
        for key, text in (
            ("planned_frames", "How many frames the run is to have; absent if its start does not say."),
            ("received_frames", "Frames that are recorded."),
            ("placed_frames", "Frames that have a place in the mosaic."),
            ("missing_frames", "Frames that were sent and have not come."),
        )
    }
    for run, values in progress.items():
        info.add_metric([run, values["name"], values["stream"]], float(values["state"] == "open"))
        for key, family in counts.items():
            if values[key.removesuffix("_frames")] is not None:
                family.add_metric([run], values[key.removesuffix("_frames")])
    yield info
    yield from counts.values()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _by(name: str, text: str, label: str, values: Mapping[str, float], *, gauge: bool = False) -> Metric:
    found = (GaugeMetricFamily if gauge else CounterMetricFamily)(name, text, labels=[label])
    for key, value in values.items():
        found.add_metric([key], value)
    return found


def _labelled(family: Any, name: str, text: str, labels: Mapping[str, str], value: float) -> Metric:
    found: Metric = family(name, text, labels=list(labels))
    found.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]
    return found
