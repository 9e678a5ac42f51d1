"""A daemon whose disk fails for a while in the midst of a scan, at one call after the other.

Whatever it does about that, frames that it has acknowledged are there in the end, and those that it refused are named.
"""

from __future__ import annotations

import contextlib
import errno
import time
from pathlib import Path

import numpy as np
import pytest

from faults.nursery import Disk, Nursery
from integration.conftest import IMPATIENT
from integration.scanning import assert_holds, endpoints, pictures, serpentine
from integration.stored import journalled_frames
from integration.talking import PX_UM, SHAPE, centre_um
from tilecast.service.fsck import check_run
from tilecast_protocol.client import Client
from tilecast_protocol.errors import DisconnectedError
from tilecast_protocol.messages import new_run
from tilecast_protocol.publisher import Publisher, Rejected, RejectedError

N = 24
N_FAIL = 6
FIRST = {1: 60, 2: 95, 3: 75, 4: 110, 5: 130, 6: 85, 7: 160, 8: 50, 9: 40}
"""Which call fails first, by the number of the attempt; the first forty or so make the folder and the run."""
WAIT_S = 3.0


@pytest.mark.parametrize("attempt", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 10))])
def test_acknowledged_frames_outlive_a_failing_disk(shimmed: Nursery, tmp_path: Path, attempt: int) -> None:
    root, sent, run = tmp_path / "runs", pictures(attempt, N), new_run()
    number = (errno.ENOSPC, errno.EIO, errno.EROFS)[attempt % 3]
    refused: set[str] = set()
    with endpoints() as ends:
        settings = IMPATIENT | ends
        first = FIRST[attempt]
        disk = Disk(folder=str(root), first=first, last=first + N_FAIL, errno=number)
        daemon = shimmed.daemon(root, settings, disk=disk)
        daemon.wait_logged("ready")
        publisher = Publisher(
            ends["ingest.ack"],
            instrument="scope",
            stream="cam",
            timeout_s=20.0,
            on_rejected=lambda rejected: refused.add(rejected.reason),
        )
        with publisher:
            with contextlib.suppress(RejectedError):
                publisher.start("fails", run=run, shape=SHAPE, dtype="<u2", px_um=PX_UM)
            publisher.start("fails", run=run, shape=SHAPE, dtype="<u2", px_um=PX_UM)
            for frame in range(N):
                publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
            with contextlib.suppress(DisconnectedError):
                publisher.flush(WAIT_S)
            daemon.kill()
            daemon = shimmed.daemon(root, settings)
            daemon.wait_logged("ready")
            publisher.end()
            publisher.flush()
            n_refused = publisher.n_rejected
        daemon.wait_logged("run report", run=run)
        assert daemon.stop() == 0, daemon.log[-10:]
    kept = journalled_frames(root / run)
    assert len(kept) >= N - n_refused, (sorted(kept), refused)
    for frame, pixels in kept.items():
        np.testing.assert_array_equal(pixels, sent[frame])
    assert [found for found in check_run(root / run) if "could be placed" not in found.what] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_disk_that_refuses_for_a_while_needs_nobody(shimmed: Nursery, tmp_path: Path) -> None:
    """As if it was read-only: the daemon says so, stays, and goes on by itself when it can write again."""
    root, sent, run = tmp_path / "runs", pictures(20, N), new_run()
    refused: list[int] = []

    def note(rejected: Rejected) -> None:
        assert rejected.frame is not None
        refused.append(rejected.frame)

    with endpoints() as ends:
        daemon = shimmed.daemon(
            root, IMPATIENT | ends, disk=Disk(folder=str(root), first=60, last=66, errno=errno.EROFS)
        )
        with (
            Publisher(
                ends["ingest.ack"], instrument="scope", stream="cam", timeout_s=60.0, on_rejected=note
            ) as publisher,
            Client(None, ends["query"], timeout_s=30.0) as client,
        ):
            publisher.start("goes on", run=run, shape=SHAPE, dtype="<u2", px_um=PX_UM)
            left = list(range(N))
            troubled = False
            while left:
                for frame in left:
                    publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
                    publisher.flush()  # so that each is written, and synced, by itself
                troubled |= bool(refused)
                left, refused[:] = list(refused), []
                if left:
                    time.sleep(1.0)  # a disk that refuses is not asked without end
            assert troubled, daemon.log
            assert any("Read-only file system" in str(line) for line in daemon.log)
            publisher.end()
        daemon.wait_logged("run report", run=run)
        with Client(None, ends["query"], timeout_s=30.0) as client:
            deadline_s = time.monotonic() + 60
            while client.run(run)["frames"] < N or client.health()["problems"]:
                assert time.monotonic() < deadline_s, (client.run(run), client.health())
                time.sleep(0.1)
        assert daemon.stop() == 0, daemon.log[-10:]
    assert check_run(root / run) == []
    assert_holds(root / run, sent)
