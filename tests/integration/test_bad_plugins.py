"""Plugins that raise, hang, and end threads, in a real daemon: they are named and given up, and frames go their way."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from faults.nursery import ForkedDaemon
from integration.scanning import assert_holds, serpentine
from integration.talking import PATIENCE_S, PX_UM, SHAPE, Watcher, built_in_plugins, centre_um, picture
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client
from tilecast_protocol.publisher import Publisher, RejectedError

GUESTS = {
    "raises": """
        @hookimpl
        def tilecast_committed():
            raise SystemExit("a guest's mistake")
        """,
    "hangs": """
        @hookimpl
        def tilecast_committed():
            threading.Event().wait()
        """,
    "waits": """
        @hookimpl
        def tilecast_find_calibration(name):
            if name == "hang":
                threading.Event().wait()
        """,
    "sources": """
        class Source:
            name = "rubbish"
            def run(self, feed, stop):
                with zmq.Context() as context, context.socket(zmq.DEALER) as door:
                    door.connect(feed.endpoint)
                    door.send_multipart([b"rubbish"])
                    door.send_multipart([b"tc1/scope/guest/image", bytes(100)])
                    door.send_multipart(["no bytes"])
        @hookimpl
        def tilecast_message_sources():
            return [Source()]
        """,
    "unimportable": "raise SystemExit(3)",
}


def install(folder: Path, guests: dict[str, str]) -> None:
    """Put modules into a folder as an installed distribution that announces them."""
    entries = ["[tilecast.plugins]"]
    for name, text in guests.items():
        lines = text.strip("\n").splitlines()
        margin = len(lines[0]) - len(lines[0].lstrip())
        body = "\n".join(line[margin:] for line in lines)
        imports = "import threading\nimport zmq\nfrom tilecast.hookspecs import hookimpl\n"
        (folder / f"guest_{name}.py").write_text(f"{imports}{body}\n")
        entries.append(f"{name} = guest_{name}")
    about = folder / "guests-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: guests\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("\n".join(entries) + "\n")


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    guests = tmp_path / "guests"
    guests.mkdir()
    install(guests, GUESTS)
    settings = {
        "plugins.timeout_s": "0.3",
        "plugins.max_failures": "3",
        "blend.tile_size": "32",
        "store.commit_interval_ms": "0",
        "log.flood_s": "0",
        "metrics.listen": "127.0.0.1:0",
    }
    daemon = ForkedDaemon(tmp_path / "runs", settings=settings, environ={"PYTHONPATH": str(guests)})
    yield daemon.start()
    daemon.kill()


def test_they_are_named_and_given_up_and_frames_go_their_way(daemon: DaemonProcess) -> None:
    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Client(None, daemon.endpoints["query"]) as client,
        Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as camera,
    ):
        run = camera.start("goes on", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        for frame in range(5):
            camera.image(picture(frame), pos_um=centre_um(0, 20 * frame))
            watch.placed(run, frame + 1)
        camera.end()
        camera.flush()
        with (
            Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="other") as other,
            pytest.raises(RejectedError, match="the plugin waits failed"),
        ):
            other.start("names what hangs", shape=SHAPE, dtype="<u2", px_um=PX_UM, flat="hang")
        for name in ("raises", "hangs", "waits"):
            daemon.wait_logged("plugin disabled", plugin=name, timeout_s=PATIENCE_S)
        daemon.wait_logged("message source failed and is over", plugin="sources")
        plugins = client.stats()["plugins"]
        assert plugins["names"] == sorted(built_in_plugins() | {"hangs", "raises", "sources", "waits"})
        assert "SystemExit" in plugins["failed"]["unimportable"]
        assert plugins["disabled"].keys() == {"raises", "hangs", "waits"}
        assert plugins["errors"]["raises"] == 3
        with urllib.request.urlopen(daemon.endpoints["metrics"] + "/metrics", timeout=PATIENCE_S) as scrape:
            lines = scrape.read().decode().splitlines()
        for name, kind, n in (
            ("raises", "failures_total", 3),
            ("raises", "disabled", 1),
            ("unimportable", "left_out", 1),
        ):
            (line,) = [line for line in lines if line.startswith(f"tilecast_plugin_{kind}{{") and f'"{name}"' in line]
            assert float(line.split()[-1]) == n, line
        assert client.health()["ready"]
        assert client.report(run)["report"]["received"] == 5
    assert daemon.stop() == 0


GLUTTON = """
    eaten = []
    @hookimpl
    def tilecast_committed():
        eaten.append(bytearray(64 << 20))
        if len(eaten) > 100:
            print("100 of them, and no limit", file=__import__("sys").stderr)
    """
ROOM = 400 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux bounds the memory of a process at work")
def test_one_that_eats_memory_meets_the_bound_of_its_process_and_is_named(tmp_path: Path) -> None:
    """Nothing inside a process can tell whose memory it is; with a bound from outside, who asks for too much fails."""
    install(tmp_path, {"glutton": GLUTTON})
    settings = {"plugins.max_failures": "3", "store.commit_interval_ms": "0", "log.flood_s": "0"}
    sent = {frame: picture(frame) for frame in range(24)}
    with ForkedDaemon(tmp_path / "runs", settings=settings, environ={"PYTHONPATH": str(tmp_path)}) as daemon:
        process = psutil.Process(daemon.pid)
        with (
            Watcher(daemon.endpoints["notify"]) as watch,
            Client(None, daemon.endpoints["query"]) as client,
            Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as camera,
        ):
            run = camera.start("goes on", shape=SHAPE, dtype="<u2", px_um=PX_UM)
            for frame, pixels in sent.items():
                if frame == 2:  # all its threads have their stacks
                    bound = process.memory_info().vms + ROOM
                    process.rlimit(psutil.RLIMIT_AS, (bound, bound))
                camera.image(pixels, pos_um=centre_um(*serpentine(frame)))
                watch.placed(run, frame + 1)
                if frame > 2 and "glutton" in client.stats()["plugins"]["disabled"]:
                    break
            line = daemon.wait_logged("plugin disabled", plugin="glutton", timeout_s=PATIENCE_S)
            assert "MemoryError" in str(line) or any("MemoryError" in str(other) for other in daemon.log)
            camera.end()
            camera.flush()
            report = watch.report(run)
            assert (report["received"], report["n_missing"]) == (frame + 1, 0)
            assert client.health()["ready"]
    assert_holds(tmp_path / "runs" / run, {number: sent[number] for number in range(frame + 1)})
