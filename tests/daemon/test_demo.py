"""`tilecast demo`: the real command, with its daemon and microscope, and how a run is shown and told of."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from rich.console import Console

from terminal import Terminal
from tilecast import cli
from tilecast.commands import demo
from tilecast.commands._live import LiveView, Panel, as_line, resample
from tilecast.commands._watch import Picture, QueueFill, Status
from tilecast.commands._words import call_again, describe_losses, describe_notice, describe_report
from tilecast.geometry import Rect
from tilecast.ingest.joining import MOVING, NO_LATER, BracketStats
from tilecast.ingest.runreport import RunCounts, make_report
from tilecast.service.config import load
from tilecast.simulate import FrameEvent, Microscope
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.ranges import RangeSet

SMALL = ("--grid", "3x4", "--shape", "96x120", "--seed", "5", "--no-browser")
FREE = tuple(f"--set={name}=tcp://127.0.0.1:*" for name in ("ingest.ack", "ingest.pull", "notify", "query"))


class Demo(NamedTuple):
    """A demonstration that is over: what it wrote, and where."""

    said: str
    out: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    out = tmp_path_factory.mktemp("demo") / "made" / "here"
    command = [
        sys.executable,
        "-m",
        "tilecast",
        "demo",
        *SMALL,
        *FREE,
        "--fps",
        "10",
        "--scans",
        "1",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return Demo(done.stdout, out)


def run_folder(out: Path) -> Path:
    (folder,) = (path for path in (out / "runs").iterdir() if path.is_dir())
    return folder


class TestAtWork:
    def test_every_frame_lies_where_the_microscope_was(self, finished: Demo) -> None:
        scope = Microscope(shape=(96, 120), grid=(3, 4), seed=5)
        truth = {
            event.frame: ("joined", event.row, event.col)
            for event in scope.events(fps=10)
            if isinstance(event, FrameEvent)
        }
        with SqliteReader(run_folder(finished.out)) as reader:
            found = {
                row.placement.frame: (row.placement.source, row.placement.row, row.placement.col)
                for row in reader.placements()
            }
            info = reader.info()
        assert found == truth
        assert (info.name, info.state) == ("simulated scan", "ended")

    def test_it_tells_how_it_goes_and_how_it_ended(self, finished: Demo) -> None:
        # On a busy machine loading kernels takes as long as compiling them on another, and is spoken of.
        lines = [line for line in finished.said.splitlines() if not line.startswith("Compiled in ")]
        assert "compiled" in lines[0]
        assert re.fullmatch(r"The live page: http://127\.0\.0\.1:\d+/", lines.pop(1))
        assert re.search(r"ingest\.ack tcp://127\.0\.0\.1:\d+, notify tcp://.*, query tcp://", lines[1])
        assert lines[2] == "tilecast demo: 3 × 4 frames of 96 × 120 px, 10 frames/s"
        last = [line for line in lines if line.startswith("12 of 12 frames in the mosaic; ")][-1]
        for text in (" frames/s, ", " MB/s", "latency p50 ", " tiles written", " mm, ", " level", "0 to acknowledge",
                     "0 to blend", "0 to write", " write-ahead log", " free"):  # fmt: skip
            assert text in last, last
        assert any(line.endswith("the run has started") for line in lines)
        report = next(line for line in lines if line.startswith("All 12 frames"))
        assert report == (
            "All 12 frames arrived and are in the mosaic. Each position was found in the stage stream, between two "
            "readings 10 ms apart while the stage stood still."
        )

    def test_the_picture_is_of_the_mosaic(self, finished: Demo) -> None:
        with SqliteReader(run_folder(finished.out)) as reader:
            bbox = reader.info().bbox
        with Image.open(finished.out / "overview.png") as picture:
            assert picture.size == (bbox.width, bbox.height)
            assert np.asarray(picture).std() > 10
        assert f"{finished.out / 'overview.png'} ({bbox.width} × {bbox.height} px)" in finished.said

    def test_the_commands_that_it_shows_work(self, finished: Demo, tmp_path: Path) -> None:
        shown = finished.said.partition("To look at it again:\n")[2].splitlines()
        lines = [shlex.split(line) for line in shown if line.startswith("  ")]
        commands = [words[words.index("tilecast") + 1 :] for words in lines]  # `uv run` stands before it where it did
        assert [words[0] for words in commands] == ["info", "export-png"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            for words in commands:
                result = CliRunner().invoke(cli.main, words)
                assert result.exit_code == 0, result.output
        assert (tmp_path / "detail.png").exists()
        assert "the folder " + str(finished.out) in shown[-1]


def test_ctrl_c_in_a_terminal_ends_everything_in_good_order(tmp_path: Path) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" >> "{opened}"\n')
    browser.chmod(0o755)
    small = [option for option in SMALL if option != "--no-browser"]
    command = [sys.executable, "-m", "tilecast", "demo", *small, *FREE, "--fps", "2", "--out", str(tmp_path)]
    terminal = Terminal(command, {"BROWSER": str(browser), "DISPLAY": ":0"})
    terminal.read_until(r"\b[2-9] of 12 frames")
    terminal.type("\x03")
    written = terminal.read_all()
    assert terminal.process.returncode == 0, written
    assert "▀" in written
    assert "\x1b[2J" not in written, "the screen is never cleared: it would flicker"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    address = re.search(r"The live page: (http://\S+)", plain)
    assert address is not None
    assert opened.read_text().split() == [address[1]], "the page is opened once, in the browser that there is"
    said = re.search(r"The scan was stopped after (\d+) of 12 frames; all \1 frames", plain)
    assert said, plain
    with SqliteReader(run_folder(tmp_path)) as reader:
        info = reader.info()
    assert info.report is not None
    assert (info.report["reason"], info.report["received"]) == ("abort", int(said[1]))
    assert info.n_placements == int(said[1])
    assert '"event": "stopped"' in (tmp_path / "daemon.log").read_text()


def test_it_scans_until_it_is_stopped_and_its_page_shows_the_runs(tmp_path: Path) -> None:
    """The first scan is over, the second begins by itself; the page lists both, and ends with the command."""
    command = [sys.executable, "-m", "tilecast", "demo", *SMALL, *FREE, "--fps", "20", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address, n_started = "", 0
    for line in process.stdout:
        found = re.search(r"The live page: (http://\S+)", line)
        address = found[1] if found else address
        n_started += line.rstrip().endswith("the run has started")
        if n_started == 2:
            break
    with urllib.request.urlopen(f"{address}api/v1/runs") as answer:
        names = [run["name"] for run in json.load(answer)["runs"]]
    # Newest first; on a slow machine the third may have begun by now.
    assert len(names) >= 2
    assert names == [*(f"simulated scan {n}" for n in range(len(names), 1, -1)), "simulated scan"]
    with urllib.request.urlopen(address) as answer:
        assert b"<title>tilecast</title>" in answer.read()
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert len(children) == 2
    assert not any(child.is_running() for child in children)


def test_a_scan_from_disk_instead(tmp_path: Path) -> None:
    frames = np.arange(4 * 64 * 64, dtype="<u2").reshape(4, 64, 64)
    np.savez(tmp_path / "scan.npz", frames=frames)
    (tmp_path / "positions.csv").write_text("x_px,y_px\n0,0\n50,0\n0,50\n50,50\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tilecast", "demo", "--scan", str(tmp_path / "scan.npz"), "--scans", "1", *FREE]
    command += ["--no-browser", "--fps", "20", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All 4 frames arrived and are in the mosaic." in done.stdout
    with SqliteReader(run_folder(out)) as reader:
        info = reader.info()
    assert (info.name, info.n_placements) == ("scan.npz", 4)
    assert (info.bbox.height, info.bbox.width) == (114, 114)


def test_a_daemon_that_dies_is_told_of(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tilecast", "demo", *SMALL, *FREE, "--fps", "2", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"[1-9] of 12 frames", line):
            break
    (daemon,) = (child for child in psutil.Process(process.pid).children() if "run" in child.cmdline())
    daemon.kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the daemon has ended in the middle of the scan" in said
    assert "What it had acknowledged is safe" in said


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["demo", *SMALL, *map(str, arguments)])


class TestErrors:
    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        result = invoke("--out", tmp_path / "file" / "below")
        assert result.exit_code == 2
        assert "cannot be written (Not a directory): choose another folder with --out" in result.stderr

    def test_too_little_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
        result = invoke("--out", tmp_path)
        assert result.exit_code == 2
        assert re.search(r"needs about 30\d MiB, and the disk of .* has 5.0 MiB free: choose another", result.stderr)

    def test_a_port_that_was_chosen_and_is_taken(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            result = invoke("--out", tmp_path, *FREE, "--set", f"query={endpoint}")
        assert result.exit_code == 2
        assert f"query = {endpoint} (--set) is taken; is another tilecast running?" in result.stderr
        assert "Choose another port with --set query=" in result.stderr

    def test_default_ports_that_are_taken_are_replaced(self) -> None:
        config = load(overrides=["query=tcp://127.0.0.1:17"], environ={})
        assert demo._choose_endpoints(config, is_free=lambda _: True) == {
            "ingest.ack": "tcp://127.0.0.1:5570",
            "ingest.pull": "tcp://127.0.0.1:5571",
            "notify": "tcp://127.0.0.1:5572",
            "query": "tcp://127.0.0.1:17",
        }
        one_taken = demo._choose_endpoints(config, is_free=lambda endpoint: not endpoint.endswith(":5571"))
        assert one_taken == dict.fromkeys(("ingest.ack", "ingest.pull", "notify"), "tcp://127.0.0.1:*") | {
            "query": "tcp://127.0.0.1:17"
        }

    def test_whether_a_port_is_free(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            assert not demo._port_is_free(endpoint)
        assert demo._port_is_free(endpoint)

    def test_a_socket_that_is_switched_off(self, tmp_path: Path) -> None:
        result = invoke("--out", tmp_path, "--set", "notify=")
        assert result.exit_code == 2
        assert "notify is switched off (--set): the demonstration needs it" in result.stderr

    @pytest.mark.parametrize("text", ["3", "0x4", "3x", "axb"])
    def test_a_grid_that_is_none(self, text: str) -> None:
        result = CliRunner().invoke(cli.main, ["demo", "--grid", text])
        assert result.exit_code == 2
        assert "expected ROWSxCOLUMNS, as 10x18" in result.stderr

    @pytest.mark.parametrize("n", [1, 2, 7, 180, 1000])
    def test_at_least_so_many_frames(self, n: int) -> None:
        rows, cols = demo._grid_of(n)
        assert n <= rows * cols < n + cols


def report(**changes: Any) -> dict[str, Any]:
    """A run report as the daemon makes it: of 10 frames, all there, unless something else is said."""
    values: dict[str, Any] = {
        "run": "r",
        "revision": 1,
        "phase": "ended",
        "reason": "done",
        "planned": 10,
        "n_sent": 10,
        "received": RangeSet(range(10)),
        "placed": RangeSet(range(10)),
        "outside_extent": RangeSet(),
        "by_status": (10, 0, 0, 0),
        "unplaced": {},
        "camera_dropped": None,
        "counts": RunCounts(),
        "brackets": None,
    }
    return make_report(**values | changes)


class TestWords:
    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({}, "All 10 frames arrived and are in the mosaic."),
            ({"planned": None}, "All 10 frames arrived and are in the mosaic."),
            (
                {"n_sent": 4, "received": RangeSet(range(4)), "placed": RangeSet(range(4))},
                "The scan was stopped after 4 of 10 frames; all 4 frames arrived and are in the mosaic.",
            ),
            (
                {"n_sent": 1, "received": RangeSet([0]), "placed": RangeSet([0])},
                "The scan was stopped after 1 of 10 frames; 1 frame arrived and is in the mosaic.",
            ),
            ({"n_sent": 0, "received": RangeSet(), "placed": RangeSet()}, "No frame was sent."),
            (
                {"received": RangeSet([0, 1, 5, 6, 7, 9]), "placed": RangeSet([0, 1, 5, 6, 7, 9])},
                "6 of 10 frames arrived and are in the mosaic, 4 are missing (2-4, 8).",
            ),
            (
                {"placed": RangeSet(range(8)), "unplaced": {MOVING: [(8, 9)]}},
                "All 10 frames arrived; 8 are in the mosaic, 2 have no place (8-9: the stage was moving; "
                "join.allow_moving decides).",
            ),
            (
                {"received": RangeSet(range(9)), "placed": RangeSet(range(8)), "unplaced": {MOVING: [(8, 8)]}},
                "9 of 10 frames arrived; 8 are in the mosaic, 1 has no place (8: the stage was moving; "
                "join.allow_moving decides), 1 is missing (9).",
            ),
            ({"received": RangeSet(), "placed": RangeSet()}, "0 of 10 frames arrived, 10 are missing (0-9)."),
            (
                {"counts": RunCounts(malformed=1, rejected={"too-large": 2})},
                "All 10 frames arrived and are in the mosaic. 3 messages were refused.",
            ),
        ],
    )
    def test_of_a_report(self, changes: dict[str, Any], sentence: str) -> None:
        assert describe_report(report(**changes)) == sentence

    @pytest.mark.parametrize(
        ("brackets", "sentence"),
        [
            ([(20, 0.0)], "between two readings 20 ms apart while the stage stood still."),
            ([(20, 3.0), (20, 3.0), (50, 0.0)], "between two readings 20 ms apart (at most 50 ms), so that none is "
             "wrong by more than 1.5 µm."),
        ],
    )  # fmt: skip
    def test_of_joined_positions(self, brackets: list[tuple[int, float]], sentence: str) -> None:
        stats = BracketStats()
        for width_ms, distance_um in brackets:
            stats.add(width_ms * 1_000_000, 0.5, distance_um)
        said = describe_report(report(brackets=stats))
        assert said.endswith(f"Each position was found in the stage stream, {sentence}")

    def test_of_losses(self) -> None:
        assert describe_losses(report()) == ""
        assert describe_losses(report(unplaced={NO_LATER: [(9, 9)]})) == "", "it is on its way"
        lost = report(
            received=RangeSet([0, 9]), unplaced={MOVING: [(9, 9)]}, counts=RunCounts(duplicate=3, malformed=1)
        )
        assert describe_losses(lost) == "8 missing, 1 without a place, 1 refused, 3 sent twice"

    @pytest.mark.parametrize(
        ("kind", "detail", "line"),
        [
            ("started", {"name": "x"}, "the run has started"),
            ("gap", {"what": "frames", "missing": [[3, 4]], "n_missing": 2}, "2 frames are missing: 3-4"),
            ("gap", {"what": "frames", "healed": [[3, 4]], "n_healed": 2}, "2 frames that were missing have come"),
            ("warning", {"what": "unplaced", "n": 2, "message": "because"}, "2 frames have no place: because"),
            ("warning", {"text": "outside"}, "outside"),
            ("late", {"n": 2}, "2 frames came after the end of the run"),
            ("something new", {}, "something new"),
        ],
    )
    def test_of_notices(self, kind: str, detail: dict[str, Any], line: str) -> None:
        assert describe_notice(kind, detail) == line

    def test_how_to_call_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
        assert call_again("info", "last", store_path=Path("my runs")) == "tilecast info last --set 'store.path=my runs'"
        monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
        assert call_again("runs") == "uv run tilecast runs"


PICTURE = Picture(
    pixels=np.arange(64, dtype=np.uint16).reshape(8, 8),
    coverage=np.ones((8, 8), bool),
    rect=Rect(0, 0, 800, 800),
    extent=Rect(0, 0, 800, 1600),
)
BUSY = Status(
    state="ready",
    n_placed=1200,
    n_expected=12000,
    frames_per_s=9.96,
    bytes_per_s=20.9e6,
    p50_ms=118.2,
    p99_ms=160.4,
    size_px=(123_456, 98_765),
    px_um=(0.5, 0.5),
    levels=9,
    n_tiles=1_234_567,
    n_commits=54_321,
    n_unacknowledged=3,
    queues=(
        QueueFill(name="blend", depth=12, nbytes=32 << 20, high_water_bytes=40 << 20, max_bytes=64 << 20),
        QueueFill(name="store", depth=0, nbytes=0, high_water_bytes=1, max_bytes=64 << 20),
    ),
    wal_bytes=250 << 20,
    run_bytes=145 << 30,
    free_bytes=812 << 30,
    losses="3 missing",
    notice="02:31:04 3 frames are missing: 17-19",
    picture=PICTURE,
)


def rendered(status: Status, width: int, height: int, **how: Any) -> list[str]:
    """The lines of the live view on a terminal of this size."""
    options: dict[str, Any] = {"force_terminal": True, "color_system": "truecolor"} | how
    out = Console(file=io.StringIO(), width=width, height=height, **options)
    return [
        "".join(segment.text for segment in line)
        for line in out.render_lines(Panel("tilecast demo", "Ctrl-C stops", status), pad=False)
    ]


class TestLiveView:
    @pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 32), (60, 16), (200, 60)])
    def test_fits_any_terminal(self, width: int, height: int) -> None:
        lines = rendered(BUSY, width, height)
        assert len(lines) < height
        assert max(map(len, lines)) <= width

    def test_every_number_has_its_unit(self) -> None:
        lines = rendered(BUSY, 80, 24)
        shown = {line.split()[0]: line for line in lines if line.split()}
        assert lines[2].endswith("1,200 of 12,000 frames   18:04 left  ".rstrip()) or "18:04 left" in lines[2]
        assert "10.0 frames/s, 20.9 MB/s" in shown["Rate"]
        assert "p50 118 ms, p99 160 ms  (frame arrived → in the mosaic)" in shown["Latency"]
        assert "123,456 × 98,765 px, 61.73 × 49.38 mm, 9 levels" in shown["Mosaic"]
        assert "1,234,567 written in 54,321 commits" in shown["Tiles"]
        assert "3 to acknowledge · 12 to blend (50% full) · 0 to write" in shown["Queues"]
        assert "145 GiB this run, 250 MiB write-ahead log, 812 GiB free" in shown["Disk"]
        assert "3 missing" in shown["Lost"]
        assert "ready · 02:31:04 3 frames are missing: 17-19" in shown["Daemon"]
        assert "Ctrl-C stops" in lines[-1]

    def test_long_news_leave_the_rest_alone(self) -> None:
        lines = rendered(replace(BUSY, notice=50 * "long news "), 80, 24)
        assert max(map(len, lines)) <= 80
        assert [line for line in lines if line.startswith("Latency   p50")]

    def test_before_the_first_frame_nothing_is_claimed(self) -> None:
        lines = rendered(Status(n_expected=9), 80, 24)
        shown = {line.split()[0]: line.split()[1:] for line in lines if line.split()}
        assert "0 of 9 frames" in lines[2]
        for name in ("Rate", "Latency", "Mosaic", "Tiles", "Disk"):
            assert shown[name] == ["–"], name

    def test_the_mosaic_is_shown_where_there_is_room_and_colour(self) -> None:
        assert any("▀" in line for line in rendered(BUSY, 80, 24))
        assert not any("▀" in line for line in rendered(BUSY, 80, 15))
        assert not any("▀" in line for line in rendered(BUSY, 80, 24, color_system=None))

    def test_the_picture_is_means_of_what_is_covered(self) -> None:
        grey = resample(PICTURE, 2, 4)
        assert (grey[:, 2:] == -1).all(), "not scanned yet"
        assert grey[0, 0] < grey[0, 1] < grey[1, 0] < grey[1, 1] == 63
        coverage = np.ones((8, 8), bool)
        coverage[:4, :4] = False
        coverage[4, 4] = False
        holes = Picture(pixels=PICTURE.pixels, coverage=coverage, rect=PICTURE.rect, extent=PICTURE.extent)
        assert resample(holes, 2, 4)[0, 0] == -1
        assert (resample(holes, 2, 4)[1, :2] >= 0).all()
        assert (resample(holes, 2, 4)[:, 2:] == -1).all()

    def test_one_line_now_and_then_where_nobody_watches(self) -> None:
        written = io.StringIO()
        with LiveView("a title", "a hint", out=Console(file=written, width=1000)) as view:
            for n in range(50):
                view.show(Status(n_expected=50, n_placed=n + 1, notice="12:00:00 the run has started"))
        lines = written.getvalue().splitlines()
        assert lines[:2] == ["a title", "12:00:00 the run has started"]
        assert lines[2].startswith("1 of 50 frames in the mosaic; 0.0 frames/s")
        assert lines[-1].startswith("50 of 50 frames")
        assert len(lines) < 10
        assert "a hint" not in written.getvalue()

    def test_no_notice_is_left_out_where_several_came_at_once(self) -> None:
        written = io.StringIO()
        with LiveView("a title", out=Console(file=written, width=1000)) as view:
            view.show(Status(notice="12:00:01 ended", notices_before=("12:00:00 the run has started",)))
            view.show(Status(notice="12:00:01 ended", notices_before=("12:00:00 the run has started",)))
        assert written.getvalue().splitlines()[1:3] == ["12:00:00 the run has started", "12:00:01 ended"]
        assert written.getvalue().count("ended") == 1

    def test_a_line_shouts_of_losses(self) -> None:
        assert as_line(BUSY).startswith("1200 of 12000 frames in the mosaic; LOST: 3 missing; 10.0 frames/s")
