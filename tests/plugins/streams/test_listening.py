"""Simulated detectors in processes of their own, through `tilecast listen` or a source inside, into a real daemon.

Between the good messages come bad ones, and some frames never come: the mosaic is the specimen all the same, where
there is any, and the report says what was lost.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from click.testing import CliRunner

from plugins.streams import detectors
from tilecast import cli
from tilecast_plugins.streams.options import AreaDetectorOptions, DectrisOptions, StreamOptions

PATIENCE_S = 60.0
ALL = list(range(9))
SOME = [0, 1, 4, 5, 7, 8]  # 2, 3 and 6 are lost on the way

AREADETECTOR = {
    "x": "StageX",
    "y": "StageY",
    "unit_um": "1000",
    "px_um": "0.5",
    "exposure": "Exposure",
    "run": "Scan",
    "idle_end_s": "1",
}


@contextmanager
def running(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process, and the first line that it says."""
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        assert line, process.stderr.read() if process.stderr else ""
        yield process, line
    finally:
        process.kill()
        process.communicate()


def detector(kind: str, how: str, endpoint: str, numbers: list[int]) -> Any:
    return running(str(Path(detectors.__file__)), kind, how, endpoint, *map(str, numbers))


def flags(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]


def assert_shows(daemon: Any, run: str, numbers: list[int]) -> None:
    """That the mosaic is the specimen where these frames were, and nothing elsewhere."""
    pixels, (row, col) = daemon.mosaic(run)
    specimen = detectors.specimen()
    covered = np.zeros(specimen.shape, bool)
    for number in numbers:
        top, left = (number // 3) * detectors.STEP[0], (number % 3) * detectors.STEP[1]
        covered[top : top + detectors.SHAPE[0], left : left + detectors.SHAPE[1]] = True
    expected = np.where(covered, specimen, 0)
    found = np.zeros(specimen.shape, np.uint16)
    assert row <= 0
    assert col <= 0
    part = pixels[-row : -row + specimen.shape[0], -col : -col + specimen.shape[1]]
    found[: part.shape[0], : part.shape[1]] = part
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def endpoint() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        yield f"ipc://{folder}/socket"


@pytest.mark.parametrize("numbers", [ALL, SOME], ids=["all frames", "with losses"])
def test_areadetector_by_the_command(tilecast_daemon: Callable[..., Any], numbers: list[int]) -> None:
    daemon = tilecast_daemon()
    with (
        detector("areadetector", "pub", "tcp://127.0.0.1:*", numbers) as (_, source),
        running(
            *("-m", "tilecast", "listen", "areadetector", "--from", source, "--ack", daemon.endpoints["ingest.ack"]),
            *("--instrument", "scope", *flags(AREADETECTOR)),
        ) as (listener, said),
    ):
        assert said == f"tilecast listen: {source} to {daemon.endpoints['ingest.ack']}"
        report = daemon.wait_logged("run report", PATIENCE_S)
        listener.terminate()
        _, log = listener.communicate(timeout=PATIENCE_S)
    with daemon.client() as client:
        [run] = client.runs()
        found = client.report(run["run"])["report"]
    assert report is not None
    assert (found["received"], found["n_missing"], found["reason"]) == (len(numbers), 0, "done")
    assert found["camera_dropped"] == numbers[-1] + 1 - numbers[0] - len(numbers)
    assert run["name"] == "scan A, 1"
    assert "messages of tcp://" in log
    assert "were bad" in log
    daemon.finish()
    assert_shows(daemon, run["run"], numbers)


def test_areadetector_inside_the_daemon_hears_a_push(tilecast_daemon: Callable[..., Any], endpoint: str) -> None:
    options = AREADETECTOR | {"endpoint": endpoint, "socket": "pull", "bind": "true"}
    daemon = tilecast_daemon(**{f"plugins.areadetector.{name}": value for name, value in options.items()})
    with detector("areadetector", "push", endpoint, SOME):
        daemon.wait_logged("run report", PATIENCE_S)
    with daemon.client() as client:
        [run] = client.runs()
        found = client.report(run["run"])["report"]
        assert [source["state"] for source in client.stats()["plugins"]["sources"]] == ["running"]
    assert (found["received"], found["camera_dropped"]) == (6, 3)
    daemon.finish()
    assert_shows(daemon, run["run"], SOME)


def test_a_series_of_dectris_by_the_command(tilecast_daemon: Callable[..., Any]) -> None:
    pytest.importorskip("cbor2", reason="uv sync --group microscopes")
    pytest.importorskip("imagecodecs", reason="uv sync --group microscopes")
    daemon = tilecast_daemon()
    with (
        detector("dectris", "push-bind", "tcp://127.0.0.1:*", SOME) as (_, source),
        running(
            *("-m", "tilecast", "listen", "dectris", "--from", source, "--ack", daemon.endpoints["ingest.ack"]),
            *("--px-um", "0.5", "--x", "x", "--y", "y", "--instrument", "scope"),
        ) as (listener, _),
    ):
        daemon.wait_logged("run report", PATIENCE_S)
        listener.terminate()
        listener.communicate(timeout=PATIENCE_S)
    with daemon.client() as client:
        [listed] = client.runs()  # which may say no more than that it is being made
        run = client.run(listed["run"])
        found = client.report(run["run"])["report"]
    assert (found["received"], found["planned"], found["camera_dropped"], found["reason"]) == (6, 9, 3, "done")
    assert (run["name"], run["start"]["channels"][0]["name"]) == ("scan 7", "threshold_1")
    daemon.finish()
    assert_shows(daemon, run["run"], SOME)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["areadetector"], "there is nothing to listen to"),
        (["areadetector", "--from", "tcp://a:1"], "how large a pixel is"),
        (["areadetector", "--from", "tcp://a:1", "--px-um", "x"], "--px-um: "),
        (["areadetector", "--from", "tcp://a:1", "--px-um", "-1"], "above 0"),
        (["areadetector", "--from", "tcp://a:1", "--px-um", "1", "--x", "X"], "x and y are given together"),
        (["areadetector", "--from", "tcp://a:1", "--px-um", "1", "--affine", "1,2"], "four numbers"),
        (["areadetector", "--from", "here", "--px-um", "1"], "--from: "),
        (["areadetector", "--from", "tcp://a:1", "--socket", "dealer"], "--socket: "),
        (["areadetector", "--from", "ipc:///no/such/folder/x", "--bind", "true", "--px-um", "1"], "cannot bind"),
    ],
)
def test_what_a_user_gets_wrong_is_named(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(cli.main, ["listen", *arguments])
    assert done.exit_code == 2
    assert words in done.output


def test_without_the_extra_areadetector_works_and_dectris_says_what_to_install() -> None:
    code = """
import sys
sys.modules["cbor2"] = sys.modules["imagecodecs"] = None
from tilecast_plugins.streams.options import AreaDetectorOptions, DectrisOptions
from tilecast_plugins.streams.source import areadetector_source, dectris_source
areadetector_source(AreaDetectorOptions(endpoint="tcp://a:1", px_um=(1.0,)))
try:
    dectris_source(DectrisOptions(endpoint="tcp://a:1"))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert "pip install 'tilecast[dectris]'" in done.stdout


@pytest.mark.parametrize("options", [AreaDetectorOptions, DectrisOptions])
def test_every_option_is_explained_in_the_readme(options: type[StreamOptions]) -> None:
    text = (Path(__file__).parents[3] / "plugins/tilecast_plugins/streams/README.md").read_text()
    for name in options.model_fields:
        assert f"`{name}`" in text, f"plugins/tilecast_plugins/streams/README.md does not explain {name}"


def test_a_pull_beside_another_takes_its_messages_away() -> None:
    """Why the documents warn of it."""
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.setsockopt(zmq.IMMEDIATE, 1)
        port = push.bind_to_random_port("tcp://127.0.0.1")
        pulls = [context.socket(zmq.PULL) for _ in range(2)]
        try:
            for pull in pulls:
                pull.connect(f"tcp://127.0.0.1:{port}")
            heard = set()
            number = 0
            while len(heard) < 2:  # until both are connected
                push.send(b"%d" % number)
                number += 1
                assert zmq.select(pulls, [], [], 5)[0]
                heard |= {pulls.index(pull) for pull in zmq.select(pulls, [], [], 5)[0] if pull.recv()}
            for number in range(10):
                push.send(b"%d" % number)
            for pull in pulls:
                assert len([pull.recv() for _ in range(5)]) == 5
        finally:
            for pull in pulls:
                pull.close(0)
