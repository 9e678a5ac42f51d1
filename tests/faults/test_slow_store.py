"""A store that is ten times too slow for a while: who can wait is made to wait, who cannot loses, and by number.

The shim makes everything but the journals slow. Three cameras send at once, on the three kinds of sockets, each as fast
as it may. Nothing of the acknowledged and the pushed frames may be lost, and memory may not grow, however long that is.
"""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import psutil
import pytest

from faults.nursery import Disk, Nursery
from integration.conftest import IMPATIENT
from integration.scanning import assert_holds, endpoints, info
from integration.talking import Watcher, centre_um, picture
from tilecast.service.fsck import check_run
from tilecast_protocol.client import Client
from tilecast_protocol.messages import RunNotice
from tilecast_protocol.publisher import Mode, Publisher

MIB = 1 << 20
SHAPE = (256, 256)
FRAME_NBYTES = 2 * SHAPE[0] * SHAPE[1]
RATE_HZ = 24.0
"""Of each camera, where it is not made to wait."""
PATIENCE_S = 120.0
BUDGETS = {
    "ingest.credit_bytes": "1MiB",
    "ingest.queue_bytes": "1MiB",
    "blend.queue_bytes": "2MiB",
    "blend.budget_bytes": "16MiB",
    "store.queue_bytes": "2MiB",
    "store.wal_limit_bytes": "8MiB",
}
MODES: dict[str, Mode] = {"acknowledged": "ack", "pushed": "push", "published": "pub"}


def corner(frame: int, n: int) -> tuple[int, int]:
    """The upper left pixel of one of so many frames, in a square: of a long strip the reference would have to make
    whole planes of 65536 × 32768 pixels, most of them empty."""
    row, col = divmod(frame, math.ceil(math.sqrt(n)))
    return 190 * row, 190 * col


@pytest.mark.parametrize(
    "slow_s", [4, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(600)])], ids=["moment", "minute"]
)
def test_who_can_wait_waits_and_what_is_lost_is_named(
    shimmed: Nursery, tmp_path: Path, slow_s: int, caplog: pytest.LogCaptureFixture
) -> None:
    root, n = tmp_path / "runs", round(RATE_HZ * (slow_s + 1))
    # A tenth of what the tiles of three cameras take: noise becomes two thirds as PZF.
    disk = Disk(folder=str(root), slow_bytes_s=round(3 * RATE_HZ * FRAME_NBYTES / 15), slow_s=slow_s + 2)
    frames = [picture(number, SHAPE) for number in range(8)]
    runs: dict[str, str] = {}
    waited_s: dict[str, float] = {}
    begun = threading.Barrier(len(MODES) + 1)
    over = threading.Event()

    def scan(name: str, endpoint: str) -> None:
        with Publisher(
            endpoint, instrument="scope", stream=name, mode=MODES[name], timeout_s=PATIENCE_S, heartbeat_s=0.2,
            queue_bytes=4 * FRAME_NBYTES, frame_bytes=FRAME_NBYTES,
        ) as camera:  # fmt: skip
            camera.wait_connected()
            runs[name] = camera.start(name, shape=SHAPE, dtype="<u2", px_um=(0.5, 0.25))
            begun.wait(PATIENCE_S)
            waited_s[name] = 0.0
            for frame in range(n):
                began_s = time.monotonic()
                camera.image(frames[frame % 8], frame=frame, pos_um=centre_um(*corner(frame, n), SHAPE))
                took_s = time.monotonic() - began_s
                waited_s[name] += max(0.0, took_s - 1 / RATE_HZ)  # by so much the next frame comes late
                time.sleep(max(0.0, 1 / RATE_HZ - took_s))  # a camera has a rate of its own
            if MODES[name] == "pub":
                over.wait(PATIENCE_S)  # or its end would be lost, too
            camera.end()

    with endpoints() as ends:
        published = ends["notify"].replace("notify", "camera")
        settings = IMPATIENT | ends | BUDGETS | {"ingest.sub": published, "blend.tile_size": "64"}
        daemon = shimmed.daemon(root, settings, disk=disk)
        daemon.wait_logged("ready")
        process = psutil.Process(daemon.pid)
        where = {"acknowledged": ends["ingest.ack"], "pushed": ends["ingest.pull"], "published": published}
        cameras = [threading.Thread(target=scan, args=item, daemon=True) for item in where.items()]
        with Watcher(ends["notify"]) as watch, Client(None, ends["query"], timeout_s=PATIENCE_S) as client:
            for camera in cameras:
                camera.start()
            begun.wait(PATIENCE_S)
            before, most = process.memory_info().rss, 0
            slowest_ms = 0.0
            while len([camera for camera in cameras if camera.is_alive()]) > 1:
                most = max(most, process.memory_info().rss)
                slowest_ms = max(slowest_ms, client.stats()["latency_ms"]["max"] or 0.0)
            for name in ("acknowledged", "pushed"):
                watch.notice(runs[name], "report")
            over.set()
            reports = {name: watch.notice(run, "report")["report"] for name, run in runs.items()}
            watch.until(
                lambda _: all(client.run(run)["frames"] == reports[name]["received"] for name, run in runs.items()),
                "all that came is in the mosaics",
            )
            stats = client.stats()
            gaps = [
                pair
                for message in watch.notices(runs["published"])
                if isinstance(message, RunNotice) and message.kind == "gap" and message.detail["what"] == "frames"
                for pair in message.detail["missing"]
            ]
        assert daemon.stop() == 0, daemon.log[-10:]

    # Who can wait has waited, and lost nothing; who cannot has not, and what was lost is named.
    for name in ("acknowledged", "pushed"):
        assert (reports[name]["received"], reports[name]["missing"]) == (n, []), name
        assert waited_s[name] > slow_s / 4, waited_s
    assert "lost the daemon" not in caplog.text, "while they wait they hear of it, and need not send anything again"
    assert reports["acknowledged"]["resent"] == 0
    lost = reports["published"]["missing"]
    assert waited_s["published"] < 0.5
    assert reports["published"]["n_missing"] == sum(last - first + 1 for first, last in lost) > 0
    assert reports["published"]["received"] == n - reports["published"]["n_missing"]
    assert numbers_in(gaps) == numbers_in(lost), "it was said while it happened"
    daemon.wait_logged("gap", run=runs["published"], what="frames")
    assert info(runs["published"], root)["report"]["missing"] == lost
    # The delay is there to be seen, and queues and memory keep to their budgets.
    assert slowest_ms > 1e3 * slow_s / 4
    assert stats["queues"]["store"]["waited_s"] > slow_s / 4
    for name, queue in stats["queues"].items():
        # A batch is at most half of the store's queue and what one frame changes, which here is less than the other
        # half: 25 tiles of 12 KiB, and as many above them. So nothing is ever let in beyond the bound.
        assert queue["high_water_bytes"] <= queue["max_bytes"], (name, queue)
    assert most - before < 160 * MIB, f"{before / MIB:.0f} to {most / MIB:.0f} MiB"
    for name, run in runs.items():
        assert check_run(root / run) == []
        missing = numbers_in(reports[name]["missing"])
        came = [frame for frame in range(n) if frame not in missing]
        assert_holds(root / run, {k: frames[k % 8] for k in came}, {k: corner(k, n) for k in came})


def numbers_in(ranges: list[list[int]]) -> set[int]:
    """All numbers in ranges [first, last]."""
    return {number for first, last in ranges for number in range(first, last + 1)}
