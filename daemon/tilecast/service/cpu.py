"""Processor time of this process by stage: which part of the daemon the processor works for.

The system counts the time of each thread; here threads are told apart by their names. What cannot be told apart, such
as the threads that answer queries, is `other`, so that the stages always add up to the whole process.

>>> stage_of("tilecast-encode-1"), stage_of("checkpointer 0190a5a8"), stage_of("ZMQbg/IO/0"), stage_of("plugins")
('encode', 'checkpoint', 'zmq', 'other')
"""

from __future__ import annotations

import threading
from collections import defaultdict
from pathlib import Path
from typing import Final

import psutil

OTHER: Final = "other"
_STAGE_BY_PREFIX: Final = {
    "tilecast-ingest": "ingest",
    "tilecast-encode": "encode",
    "tilecast-blend": "blend",
    "tilecast-store": "store",
    "tilecast-write": "store",
    "checkpointer": "checkpoint",
    "tilecast-sync": "fsync",
    "MainThread": "main",
    "ZMQ": "zmq",
}
STAGES: Final = (*dict.fromkeys(_STAGE_BY_PREFIX.values()), OTHER)
"""All stages, in the order of the data's way."""


def stage_of(thread_name: str) -> str:
    """The stage to which a thread of this name belongs."""
    return next((stage for prefix, stage in _STAGE_BY_PREFIX.items() if thread_name.startswith(prefix)), OTHER)


class StageCpu:
    """Adds up the processor time of this process by stage; any thread may ask.

    The time of a thread that has ended stays with its stage, as far as it had got when it was last asked.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._lock = threading.Lock()
        self._running: dict[int, tuple[str, float]] = {}  # by number of the thread
        self._ended: defaultdict[str, float] = defaultdict(float)

    def seconds(self) -> dict[str, float]:
        """Processor time, user and system, of each stage in seconds since the process began."""
        with self._lock:
            running = self._read()
            for number, (stage, used_s) in self._running.items():
                now = running.get(number)
                # Of another stage, or less than before: another thread has been given the number.
                if now is None or now[0] != stage or now[1] < used_s:
                    self._ended[stage] += used_s
            self._running = running
            by_stage: dict[str, float] = dict.fromkeys(STAGES, 0.0) | self._ended
            for stage, used_s in running.values():
                by_stage[stage] += used_s
            total_s = sum(self._process.cpu_times()[:2])
            known_s = sum(by_stage.values()) - by_stage[OTHER]
            return by_stage | {OTHER: max(0.0, total_s - known_s)}

    def _read(self) -> dict[int, tuple[str, float]]:
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        found = {}
        for thread in self._process.threads():
            stage = stage_of(names.get(thread.id) or _native_name(thread.id))
            if stage != OTHER:
                found[thread.id] = stage, thread.user_time + thread.system_time
        return found


def _native_name(number: int) -> str:
    """What the system calls a thread that is none of Python's; empty if it does not say."""
    try:
        return Path(f"/proc/self/task/{number}/comm").read_text()
    except OSError:
        return ""
