"""Drops, doubles, disorder and a cut-off tail at once: the same exact numbers wherever a person may look."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from integration.conftest import IMPATIENT, StartDaemon
from integration.scanning import assert_holds, exactly, info, numbers, pictures, tilecast
from integration.talking import SHAPE, RawPublisher, Watcher, centre_um, new_uuid
from tilecast_protocol.client import Client
from tilecast_protocol.messages import RunNotice

N_SENT = 16
CAME = (0, 1, 2, 5, 6, 8, 7, 9, 11)
"""In this order; 3, 4 and 10 are dropped, and from 12 on all is cut off, `end` too."""
MISSING = [[3, 4], [10, 10], [12, 15]]


def corner(frame: int) -> tuple[int, int]:
    return 0, SHAPE[1] * frame


def test_the_log_the_notices_the_report_the_command_and_the_mosaic_agree(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    sent, run = pictures(13, N_SENT), new_uuid()
    daemon = start_daemon(**IMPATIENT)

    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Client(None, daemon.endpoints["query"]) as client,
        RawPublisher(daemon.endpoints["ingest.ack"]) as camera,
    ):

        def image(frame: int) -> list[bytes]:
            pixels = sent[frame].tobytes()
            return camera.message(
                "image",
                pixels,
                run=run,
                frame=frame,
                codec="raw",
                nbytes=len(pixels),
                pos_um=list(centre_um(*corner(frame))),
            )

        camera.hello()
        camera.start(run)
        for frame in CAME:
            parts = image(frame)
            seq = camera.send_parts(parts)
        camera.wait_settled(seq)
        camera.socket.send_multipart(parts)  # the very same message
        camera.wait_settled(camera.send_parts(image(6)))  # one under a new number
        camera.send("hb", state="acquiring", run=run, n_sent=N_SENT)

        # While it happens: what has healed meanwhile is said, too.
        said: set[int] = set()
        for message in watch.messages():
            if isinstance(message, RunNotice) and (message.run, message.kind) == (run, "gap"):
                said |= numbers_in(message.detail.get("missing", [])) - numbers_in(message.detail.get("healed", []))
                said -= numbers_in(message.detail.get("healed", []))
            if said == numbers_in(MISSING):
                break
        assert client.report(run)["report"]["missing"] == MISSING
        logged = daemon.wait_logged("gap", run=run, what="frames")
        assert logged["level"] == "warning"
        client.end(run)
        report = watch.report(run)
        found = client.region(run, 0, (0, 0, SHAPE[0], SHAPE[1] * N_SENT))
    expected = exactly(N_SENT, received=len(CAME), missing=MISSING, duplicate=1, resent=1)
    assert numbers(report) == expected
    assert report["n_missing"] == 7
    line = daemon.wait_logged("run report", run=run)
    assert (line["expected"], line["received"], line["n_missing"]) == (N_SENT, len(CAME), 7)
    assert (line["duplicate"], line["resent"]) == (1, 1)
    root = tmp_path / "runs"
    assert numbers(info(run, root)["report"]) == expected
    shown = tilecast("info", run, store=root)
    assert re.search(rf"^  missing +{re.escape(str(MISSING))}$", shown, re.MULTILINE), shown
    assert max(map(len, shown.splitlines())) < 200
    for frame in range(N_SENT):
        part = np.s_[:, SHAPE[1] * frame : SHAPE[1] * (frame + 1)]
        assert found.coverage[part].all() == (frame in CAME), frame
        assert found.coverage[part].any() == (frame in CAME), frame
    assert daemon.stop() == 0
    assert_holds(root / run, {frame: sent[frame] for frame in CAME}, {frame: corner(frame) for frame in CAME})


def numbers_in(ranges: list[list[int]]) -> set[int]:
    """All numbers in ranges [first, last]."""
    return {number for first, last in ranges for number in range(first, last + 1)}
