"""The example of a plugin (tests/example_plugin), installed as a package and used by real daemons."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from faults.nursery import shared
from integration.talking import PATIENCE_S, built_in_plugins
from tilecast.reading import open_run
from tilecast.testing.fixtures import DaemonUnderTest, StartDaemon
from tilecast.testing.frames import read
from tilecast.testing.microscope import TestScan
from tilecast_protocol.publisher import RejectedError

EXAMPLE = Path(__file__).resolve().parents[1] / "example_plugin"
SCAN = TestScan(grid=(1, 3), shape=(64, 64))
HALVES = {"plugins.example.split": "true", "plugins.example.offset": "7"}


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the example is installed; nothing is fetched for it."""
    target = tmp_path_factory.mktemp("example")
    uv = os.environ.get("UV", "uv")
    how = ["--offline", "--no-deps", "--no-build-isolation", "--python", sys.executable, "--target", str(target)]
    subprocess.run([uv, "pip", "install", "-q", *how, str(EXAMPLE)], check=True, timeout=100)
    return {"PYTHONPATH": str(target)}


@pytest.fixture
def start(forked_tilecast_daemon: StartDaemon, example: dict[str, str]) -> StartDaemon:
    """Start a daemon in whose environment the example is installed."""
    return lambda **options: forked_tilecast_daemon(environ=example, **options)


def tilecast(example: dict[str, str], *arguments: object, code: int = 0) -> str:
    """What a command says."""
    found = shared().run(*map(str, arguments), environ={**os.environ, **example})
    assert found.returncode == code, found.stdout + found.stderr
    return found.stdout + found.stderr


def scanned(daemon: DaemonUnderTest, scan: TestScan = SCAN) -> str:
    with daemon.publisher() as publisher:
        return scan.send(publisher)


def test_frames_are_split_by_what_was_frozen_and_so_they_are_rebuilt(
    start: StartDaemon, example: dict[str, str]
) -> None:
    daemon = start(**HALVES)
    run = scanned(daemon)
    with daemon.client() as client:
        told = client.stats()["plugins"]
    daemon.wait_logged("example saw the end", run=run, state="ended", received=3, timeout_s=PATIENCE_S)
    daemon.wait_logged("example saw a commit", run=run)
    daemon.finish()
    costs = {cost["hook"]: cost for cost in told["costs"] if cost["plugin"] == "example"}
    assert costs["tilecast_run_starting"]["n_calls"] == costs["tilecast_make_images"]["n_calls"] == 1
    assert told["last_errors"] == {}

    def expect() -> None:
        left, corner = daemon.mosaic(run, channel=0)
        right, other = daemon.mosaic(run, channel=1)
        assert corner == other == (0, 16)  # both lie about the stage's position
        for frame in range(SCAN.n_frames):
            pixels, at = SCAN.frame(frame), slice(64 * frame, 64 * frame + 32)
            np.testing.assert_array_equal(left[:, at], pixels[:, :32])
            np.testing.assert_array_equal(right[:, at], pixels[:, 32:] + 7)

    expect()
    [array] = (daemon.root / run).glob("step-*.npy")
    assert array.name == "step-example-offset.npy"
    store = ["--set", f"store.path={daemon.root}"]
    tilecast(example, "fsck", run, *store)
    # Other options, even none: what is frozen holds.
    tilecast(example, "rebuild", run, *store, "--set", "plugins.example.offset=100")
    expect()
    # Without the plugin nothing is made up, and what there is stays.
    assert "the plugin example, which cannot be used" in tilecast({}, "rebuild", run, *store, code=2)
    expect()


def test_a_run_is_refused_with_the_reason_of_the_plugin(start: StartDaemon) -> None:
    daemon = start(**HALVES)
    with pytest.raises(RejectedError, match=r"the plugin example refuses the run: a frame of 63 columns has no halves"):
        scanned(daemon, TestScan(shape=(64, 63)))
    daemon.finish()


@pytest.mark.parametrize("fail", ["start", "frame", "hang"])
def test_one_that_fails_harms_its_own_runs_alone_and_their_frames_are_kept(start: StartDaemon, fail: str) -> None:
    daemon = start(**HALVES, **{"plugins.example.fail": fail, "plugins.timeout_s": "0.5"})
    if fail == "start":
        with pytest.raises(RejectedError, match=r"the plugin example failed when .* a mistake at the start; mend it"):
            scanned(daemon)
    else:
        run = scanned(daemon)
        daemon.wait_logged("the mosaic of a run is stuck; its frames are kept", run=run, timeout_s=PATIENCE_S)
        with daemon.client() as client:
            assert client.report(run)["report"]["received"] == SCAN.n_frames
            told = client.stats()["plugins"]
        assert "frames: " in told["last_errors"]["example"]
        assert told["errors"]["example"] >= 1
    daemon.kill()


def test_a_source_feeds_the_acknowledged_path(tilecast_daemon: StartDaemon, example: dict[str, str]) -> None:
    """Also where no socket is open to anybody; and with the very fixture that authors of plugins use."""
    daemon = tilecast_daemon(example, **{"plugins.example.n_frames": "4", "ingest.ack": "", "ingest.pull": ""})
    daemon.wait_logged("example has sent all", timeout_s=PATIENCE_S)
    with daemon.client() as client:
        assert client.stats()["plugins"]["sources"][0]["state"] == "running"
    daemon.finish()
    [folder] = [path for path in daemon.root.iterdir() if path.is_dir()]
    with open_run(daemon.root, folder.name) as reader:
        assert (reader.info().state, reader.info().name) == ("ended", "from the example")
    pixels, _ = daemon.mosaic(folder.name)
    assert {sighting.frame for sighting in read(pixels)} == {0, 1, 2, 3}
    assert pixels.shape == (48, 4 * 64)


def test_a_source_that_fails_is_named(start: StartDaemon) -> None:
    daemon = start(**{"plugins.example.n_frames": "4", "plugins.example.fail": "source"})
    line = daemon.wait_logged("plugin failed", plugin="example", timeout_s=PATIENCE_S)
    assert "the camera is gone" in str(line)
    with daemon.client() as client:
        told = client.stats()["plugins"]
        assert told["sources"][0]["state"] == "failed: OSError: the camera is gone"
        assert client.health()["ready"]
    daemon.finish()


def test_options_are_checked_like_all_others(example: dict[str, str], tmp_path: Path) -> None:
    shown = tilecast(example, "config", "--set", "plugins.example.chunk_bytes=2MiB")
    assert "plugins.example.chunk_bytes" in shown
    assert '"2MiB"' in shown
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[plugins.example]\noffset = -1\nsplitt = true\n[plugins.exampel]\nsplit = true\n")
    said = tilecast(example | {"TILECAST_PLUGINS_EXAMPLE_FAIL": "often"}, "config", "--config", wrong, code=2)
    assert (
        f"plugins.example.offset ({wrong}): expected whole number in grey levels, at least 0 and at most 1000" in said
    )
    assert "there is no option plugins.example.splitt: did you mean plugins.example.split?" in said
    assert "no plugin exampel is installed: did you mean plugins.example?" in said
    assert "plugins.example.fail (TILECAST_PLUGINS_EXAMPLE_FAIL): expected never | start | frame" in said
    # The table in our own documents does not change with what is installed.
    assert "plugins.example" not in tilecast(example, "config", "--markdown")
    assert "# An example: splits frames" in tilecast(example, "config", "--toml")


def test_its_command_and_tilecast_plugins(example: dict[str, str], start: StartDaemon) -> None:
    said = tilecast(example, "example", "--set", "plugins.example.n_frames=3")
    assert said == "splits: False, sends 3 frames, chunks of 1048576 bytes\n"
    nobody = ["--set", "query="]
    found = json.loads(tilecast(example, "plugins", "--json", *nobody, "--set", "plugins.example.enabled=false"))
    states = {plugin["name"]: plugin["state"] for plugin in found["plugins"]}
    assert states == dict.fromkeys(built_in_plugins(), "enabled") | {"example": "off"}
    assert not found["daemon"]
    daemon = start(**{"plugins.trace": "true"})
    run = scanned(daemon)
    line = daemon.wait_logged("plugin call", plugin="example", hook="tilecast_run_ended", timeout_s=PATIENCE_S)
    assert run[:8] in line["with_"]
    assert line["ms"] >= 0
    found = json.loads(tilecast(example, "plugins", "--json", "--set", f"query={daemon.endpoints['query']}"))
    [plugin] = [plugin for plugin in found["plugins"] if plugin["name"] == "example"]
    assert (found["daemon"], plugin["state"], plugin["version"]) == (True, "enabled", "1.2.3")
    [cost] = [cost for cost in plugin["hooks"] if cost["hook"] == "tilecast_run_ended"]
    assert cost["n_calls"] == 1
    assert cost["n_failures"] == 0
    assert "example" in tilecast(example, "plugins", "--set", f"query={daemon.endpoints['query']}")
    daemon.finish()
