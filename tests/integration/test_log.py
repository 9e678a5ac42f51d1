"""What a real daemon says of a run at the normal level: a line when it starts, one when it ends, and none per frame."""

from __future__ import annotations

from typing import Any

import pytest

from integration.conftest import IMPATIENT, StartDaemon
from integration.scanning import exactly, pictures, serpentine
from integration.talking import PX_UM, SHAPE, centre_um
from tilecast_protocol.publisher import Publisher


@pytest.mark.parametrize("n_frames", [2, 60])
def test_a_run_is_a_line_at_its_start_and_one_at_its_end(start_daemon: StartDaemon, n_frames: int) -> None:
    daemon = start_daemon(**IMPATIENT)
    sent = pictures(61, n_frames)
    with Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher:
        run = publisher.start("liver, slice 12", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        for frame in range(n_frames):
            publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
        publisher.end()
        publisher.flush()
    daemon.wait_logged("run report", run=run)
    assert daemon.stop() == 0
    said: list[dict[str, Any]] = [line for line in daemon.log if line.get("run") == run]
    assert [line["event"] for line in said] == ["run started", "run report"], "whatever the number of frames"
    started, report = said
    assert started["name"] == "liver, slice 12"
    numbers = {name: value for name, value in exactly(n_frames).items() if isinstance(value, int)}
    assert {name: report[name] for name in numbers} == numbers
    assert len(daemon.log) < 12, "and nothing else that grows with them"
