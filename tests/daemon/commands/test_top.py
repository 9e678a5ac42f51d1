"""`tilecast top`: a real daemon on one screen, in a real terminal and in a pipe, also when the daemon is silent."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from terminal import Terminal
from tilecast import cli
from tilecast.commands._overview import Overview, Screen
from tilecast.process import DaemonProcess
from tilecast_protocol.client import Client
from tilecast_protocol.key_files import make_pair
from tilecast_protocol.publisher import Publisher

PATIENCE_S = 30.0


@dataclass
class Scanning:
    """A daemon with a run that goes on: four of six frames have come, one is missing."""

    daemon: DaemonProcess
    run: str
    overview: Overview

    @property
    def query(self) -> str:
        return self.daemon.endpoints["query"]


@pytest.fixture(scope="module")
def scanning(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanning]:
    settings = {"blend.tile_size": "32", "store.commit_interval_ms": "20", "ingest.idle_end_s": "600"}
    pixels = np.random.default_rng(5).integers(0, 4000, (48, 64)).astype("<u2")
    with (
        DaemonProcess(tmp_path_factory.mktemp("top") / "runs", settings=settings) as daemon,
        Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher,
        Client(daemon.endpoints["notify"], daemon.endpoints["query"]) as client,
    ):
        client.wait_connected()
        run = publisher.start("liver [3] slice", shape=(48, 64), dtype="<u2", px_um=(0.5, 0.5), n_expected=6)
        for frame in (0, 1, 2, 4):
            publisher.image(pixels, pos_um=(16.0 * frame, 0.0), frame=frame)
        publisher.flush(PATIENCE_S)
        for _ in client.updates(PATIENCE_S):
            if client.run(run)["frames"] == 4:
                break
        yield Scanning(
            daemon,
            run,
            Overview(
                endpoint=daemon.endpoints["query"], hello=client.hello(), stats=client.stats(), health=client.health()
            ),
        )


def drawn(overview: Overview, width: int, height: int) -> list[str]:
    """The lines that a terminal of this size is given."""
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    out.print(Screen(overview, hint="q ends this view"))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def changed(overview: Overview, **parts: Any) -> Overview:
    return replace(overview, **parts)


def many(overview: Overview, n: int) -> dict[str, Any]:
    """The same numbers with so many runs."""
    [values] = overview.stats["runs"].values()
    runs = {f"{number:08}-1111-7000-8000-000000000001": values | {"name": f"run {number}"} for number in range(n)}
    return dict(overview.stats) | {"runs": runs}


def test_what_is_asked_for_is_there(scanning: Scanning) -> None:
    result = CliRunner().invoke(cli.main, ["top", "--once", "--endpoint", scanning.query])
    assert result.exit_code == 0, result.output
    said = result.output
    for pattern in (
        r"State +ready: takes a start",
        r"Rate +\d+\.\d frames/s, \d+\.\d MB/s in",
        r"Latency +p50 \d+ ms, p99 \d+ ms",
        r"to blend .* of 64 MiB",
        r"at most \d+%",
        r"Disk +\S+ [GTM]iB of \S+ [GT]iB free",
        r"liver \[3\] slice +open +4 of 6",
        r"Plugins +.*\bcalibration\b",
    ):
        assert re.search(pattern, said), f"{pattern}\n{said}"
    row = next(line for line in said.splitlines() if "liver" in line)
    assert re.search(r"\b1\b +\d+\.\d/s", row), f"one frame is missing: {row}"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60)])
@pytest.mark.parametrize("n_runs", [0, 1, 100])
def test_it_fits_the_screen(scanning: Scanning, width: int, height: int, n_runs: int) -> None:
    lines = drawn(changed(scanning.overview, stats=many(scanning.overview, n_runs)), width, height)
    assert len(lines) < height
    assert max(len(line) for line in lines) <= width
    assert lines[-1].strip() == "q ends this view"
    if n_runs == 100:
        shown = sum("run " in line for line in lines) - 1
        [more] = [int(found) for line in lines for found in re.findall(r"… and (\d+) more", line)]
        assert shown + more == 100


def test_problems_the_forecast_and_silence_come_first(scanning: Scanning) -> None:
    health = dict(scanning.overview.health) | {
        "problems": ["the disk is about to be full"],
        "forecast": "full in 2 h 10 min at this rate",
        "full_in_s": 7800.0,
    }
    lines = drawn(changed(scanning.overview, health=health, silent="nobody listens there", silent_s=7.2), 100, 30)
    assert "does not answer for 7 s" in lines[1]
    assert "! the disk is about to be full" in lines[2]
    assert any("full in 2 h 10 min at this rate" in line for line in lines)


def test_before_the_first_answer_it_says_whom_it_asks() -> None:
    lines = drawn(Overview(endpoint="tcp://scope:5573", silent="nobody listens there"), 80, 24)
    assert "tcp://scope:5573" in lines[0]
    assert "The daemon does not answer: nobody listens there" in lines[1]


def test_a_daemon_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tilecast.commands.top._ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    result = CliRunner().invoke(cli.main, ["top", "--once", "--endpoint", endpoint])
    assert result.exit_code == 2
    assert endpoint in result.output


@pytest.mark.parametrize("keys", [["--key", "me.key_secret"], ["--server-key", "daemon.key"]])
def test_half_a_pair_of_keys_is_refused(keys: list[str]) -> None:
    result = CliRunner().invoke(cli.main, ["top", "--once", "--endpoint", "tcp://127.0.0.1:1", *keys])
    assert result.exit_code == 2
    assert "belong together" in result.output


@dataclass
class Locked:
    """A daemon that answers only those whose keys it knows: `me` is one, `stranger` is not."""

    endpoint: str
    folder: Path

    def top(self, key: str = "", *, server: str = "daemon") -> Result:
        keys = ["--key", f"{self.folder}/{key}.key_secret", "--server-key", f"{self.folder}/{server}.key"]
        command = ["top", "--once", "--endpoint", self.endpoint, *(keys if key else [])]
        return CliRunner().invoke(cli.main, command)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    folder = tmp_path_factory.mktemp("locked")
    for name in ("daemon", "me", "stranger"):
        make_pair(folder, name)
    (folder / "clients").mkdir()
    shutil.copy(folder / "me.key", folder / "clients")
    settings = {
        "query": "tcp://0.0.0.0:*",
        "curve.secret_key": f"{folder}/daemon.key_secret",
        "curve.clients": f"{folder}/clients",
    }
    with DaemonProcess(folder / "runs", settings=settings) as daemon:
        yield Locked(daemon.endpoints["query"].replace("0.0.0.0", "127.0.0.1"), folder)


def test_a_daemon_that_asks_for_keys(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    found = locked.top("me")
    assert found.exit_code == 0, found.output
    assert re.search(r"State +ready: takes a start", found.output)
    monkeypatch.setattr("tilecast.commands.top._ANSWER_S", 0.5)
    for refused in (locked.top(), locked.top("stranger"), locked.top("me", server="stranger")):
        assert refused.exit_code == 2
        assert "CURVE" in refused.output, "it says what may be the cause"
        assert "State" not in refused.output


@pytest.fixture
def terminal(scanning: Scanning) -> Iterator[Terminal]:
    """The view, in a terminal."""
    command = [sys.executable, "-m", "tilecast", "top", "--endpoint", scanning.query, "--interval", "0.2"]
    found = Terminal(command)
    yield found
    if found.process.poll() is None:
        found.process.kill()
        found.process.wait()


def test_in_a_terminal_q_ends_it_and_the_terminal_is_as_before(terminal: Terminal) -> None:
    before = terminal.attributes()
    terminal.read_until("liver")
    assert terminal.attributes() != before, "keys are read one by one"
    terminal.type("x")
    terminal.type("\x1b[A")
    terminal.type("q")
    terminal.read_until(r"\x1b\[\?1049l")
    terminal.process.wait(PATIENCE_S)
    assert terminal.attributes() == before
    written = terminal.read_all()
    assert terminal.process.returncode == 0, written
    assert "Traceback" not in written


def test_ctrl_c_ends_it_too(terminal: Terminal) -> None:
    terminal.read_until("liver")
    terminal.type("\x03")
    written = terminal.read_all()
    assert terminal.process.returncode == 0, written
    assert "\x1b[?1049l" in written
    assert "Traceback" not in written


def test_a_silent_daemon_is_told_of_and_found_again(scanning: Scanning, terminal: Terminal) -> None:
    terminal.read_until("liver")
    os.kill(scanning.daemon.pid, signal.SIGSTOP)
    try:
        terminal.read_until(r"does not answer for \d+ s")
    finally:
        os.kill(scanning.daemon.pid, signal.SIGCONT)
    terminal.written = ""
    terminal.read_until(r"(?s)tilecast top(?:(?!does not answer|tilecast top).)*State")
    terminal.type("q")
    terminal.read_all()
    assert terminal.process.returncode == 0


def test_what_is_no_terminal_gets_it_once(scanning: Scanning, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tilecast", "top", "--endpoint", scanning.query]
    with (tmp_path / "out").open("w") as file:
        subprocess.run(command, stdout=file, stdin=subprocess.DEVNULL, check=True, timeout=PATIENCE_S)
    said = (tmp_path / "out").read_text()
    assert said.count("State") == 1
    assert "\x1b" not in said


@pytest.mark.parametrize("width", [80, 120, 200])
def test_names_of_runs_have_the_room_that_is_left(scanning: Scanning, width: int) -> None:
    stats = many(scanning.overview, 2)
    names = "a name of 24 letters ...", "x" * 300
    for values, name in zip(stats["runs"].values(), names, strict=True):
        values["name"] = name
    lines = drawn(changed(scanning.overview, stats=stats), width, 40)
    [head] = [line for line in lines if line.startswith("run ")]
    rows = [line for line in lines if re.match(r"\d{8} ", line)]
    assert any(names[0] in row for row in rows), rows
    assert all(line.rstrip()[-1] not in "…" for line in rows), "a number was cut off"
    [long] = [row for row in rows if "xx…" in row]
    assert len(long.rstrip()) >= width - 12, "room is left over beside a name that was cut"
    assert "left" in head


def test_seconds_are_written_as_milliseconds(scanning: Scanning) -> None:
    stats = dict(scanning.overview.stats)
    slow = {"le_s": [1.0, 2.0, 4.0], "counts": [0, 0, 100, 0], "sum_s": 300.0}
    stats["latency_s_by_stage"] = dict.fromkeys(stats["latency_s_by_stage"], slow)
    [line] = [one for one in drawn(changed(scanning.overview, stats=stats), 120, 40) if "p99 ever" in one]
    assert re.search(r"recorded \d,\d{3}, on disk \d,\d{3}, blended \d,\d{3}, committed \d,\d{3}", line), line
