"""`tilecast bench`: the real command with its daemon, held against what it left in the store; and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tilecast import cli
from tilecast.bench.figures import Outcome, make_figures
from tilecast.bench.limits import FileSystem, Limits, Machine
from tilecast.bench.plot import save_plot
from tilecast.bench.scan import Scan
from tilecast.commands.bench import _checker, save_picture
from tilecast.geometry import TileKey
from tilecast.service.config import Config
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.tile_file import disk_nbytes
from tilecast_protocol import pzf
from tilecast_protocol.errors import DisconnectedError
from tilecast_protocol.journal import Journal

N = 30
TILE_SIZE = 64  # not what a daemon takes of itself
OUTCOME = Outcome(
    acked_s=1.0,
    seconds=1.0,
    behind_s=0.0,
    t_s=[0.0, 0.5],
    latency_ms=[5.0, 50.0],
    cpu_s=0.5,
    sender_cpu_s=0.1,
    cpu_s_by_stage={"store": 0.5},
    rss_bytes=1 << 20,
    written_bytes=None,
    journal_bytes=1,
    store_bytes=1,
)
FIGURES = make_figures(
    Scan(shape=(10, 10), dtype="<u2", overlap=0.1, n_frames=2, columns=2),
    OUTCOME,
    Limits(memcpy_ms=1.0, pzf_encode_gb_s=1.0, disk_write_mb_s=1.0),
    Machine(cpu="a processor", cores=1, memory_gib=1.0),
    FileSystem(kind="ext4", device="/dev/sda1"),
    fps=None,
    paced=False,
    version="1",
)


class Bench(NamedTuple):
    """A benchmark that is over."""

    said: str
    figures: dict[str, Any]
    folder: Path
    plot: Path


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["bench", *map(str, arguments)], env={"TILECAST_CONFIG": None})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    plot, figures = folder / "latency.png", folder / "bench.json"
    result = bench(
        "--shape", "256x256", "--overlap", "0.1", "--frames", N, "--columns", 8, "--fps", 60, "--folder", folder,
        "--json", figures, "--plot", plot, "--keep", "--set", f"blend.tile_size={TILE_SIZE}",
    )  # fmt: skip
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return Bench(result.stdout, json.loads(figures.read_text()), folder, plot)


def run_folder(finished: Bench) -> Path:
    (folder,) = finished.folder.glob("tilecast-bench-*/runs/*-*")
    return folder


def test_every_frame_was_sent_and_counts(finished: Bench) -> None:
    folder = run_folder(finished)
    with SqliteReader(folder) as reader:
        info = reader.info()
        corners = {row.placement.frame: (row.placement.row, row.placement.col) for row in reader.placements()}
    assert sorted(corners) == list(range(N))
    assert (corners[7], corners[8]) == ((0, 7 * 230), (230, 7 * 230))
    assert info.state == "ended"
    assert info.report is not None
    assert (info.report["reason"], info.report["received"], info.report["n_missing"]) == ("done", N, 0)
    assert (finished.figures["frames"], finished.figures["latencies"]) == (N, N)


def test_figures_agree_with_each_other_and_with_the_store(finished: Bench) -> None:
    found = finished.figures
    assert found["sustained_fps"] == pytest.approx(N / found["seconds"])
    assert found["sustained_mb_s"] == pytest.approx(found["sustained_fps"] * 256 * 256 * 2 / 1e6)
    assert (N - 1) / 60 <= found["acknowledged_s"] <= found["seconds"]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"] < 1e4
    assert found["cpu_ms_per_frame"] > 0
    assert sum(found["cpu_ms_by_stage"].values()) == pytest.approx(found["cpu_ms_per_frame"], rel=0.2, abs=2)
    assert {"ingest", "blend", "store", "checkpoint", "fsync", "main", "zmq", "other"} <= found[
        "cpu_ms_by_stage"
    ].keys()
    assert found["sender_cpu_ms_per_frame"] > 0
    assert found["rss_mib"] > 30
    folder = run_folder(finished)
    with Journal.open(folder / "journal", readonly=True) as journal:
        assert found["journal_bytes_per_frame"] * N >= journal.n_bytes
    assert found["store_bytes_per_frame"] == sum(disk_nbytes(path) for path in folder.glob("tiles*")) / N
    assert found["disk_bytes_per_frame"] > found["journal_bytes_per_frame"]
    assert set(found["limits"]) == {"memcpy_ms", "pzf_encode_gb_s", "disk_write_mb_s"}
    assert all(value > 0 for value in found["limits"].values())
    assert (found["shape"], found["dtype"], found["overlap"], found["fps_asked"]) == ([256, 256], "u2", 0.1, 60.0)
    assert found["bottleneck"]


def test_it_answers_in_words_and_shows_a_table(finished: Bench) -> None:
    lines = finished.said.splitlines()
    assert lines[0] == f"The store lies in {finished.folder}: {finished.figures['file_system']}."
    assert finished.figures["verdict"] in lines
    assert re.match(r"Yes, as far as 0.5 s can tell: |No: |No verdict: ", finished.figures["verdict"])
    names = (
        "Frames",
        "Sustained",
        "Latency",
        "Processor",
        "by stage",
        "Memory",
        "Disk",
        "Bottleneck",
        "Limits",
        "Machine",
    )
    for name in names:
        assert any(line.startswith(f"{name}  ") for line in lines), name
    assert f"Kept: {run_folder(finished).parents[1]}" in lines


def test_the_options_of_the_command_line_reach_the_daemon(finished: Bench) -> None:
    assert Config().blend.tile_size != TILE_SIZE
    with SqliteReader(run_folder(finished)) as reader:
        info = reader.info()
        (plane,) = info.bboxes
        tile = reader.tile(plane, TileKey(0, 0, 0))
    assert info.settings["tile_size"] == TILE_SIZE
    assert tile is not None
    assert pzf.decode_image(tile.pzf).shape == (TILE_SIZE, TILE_SIZE)


def test_the_picture(finished: Bench) -> None:
    with Image.open(finished.plot) as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300


class TestPlot:
    def test_shows_each_frame(self, tmp_path: Path) -> None:
        for name, latency_ms in (("few", [5.0, 50.0]), ("many", [5.0, 50.0, *range(10, 40)])):
            t_s = [n / 10 for n in range(len(latency_ms))]
            save_plot(tmp_path / f"{name}.png", t_s, latency_ms, {"p50": 20.0, "p99": 50.0}, "frames")
        with Image.open(tmp_path / "few.png") as few, Image.open(tmp_path / "many.png") as many:
            assert self.blue(many) > 5 * self.blue(few)

    @staticmethod
    def blue(picture: Image.Image) -> int:
        """Number of pixels in the colour of the dots."""
        red, _, blue = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
        return int(np.count_nonzero((blue > 150) & (red < 100)))


def test_without_matplotlib_it_says_how_to_come_by_it_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save_picture(tmp_path / "a.png", OUTCOME, FIGURES)
    said = capsys.readouterr()
    assert said.err == "No picture: matplotlib is missing. Install it with: pip install 'tilecast[plots]'\n"
    assert not (tmp_path / "a.png").exists()


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--shape", "2048"), "expected ROWSxCOLUMNS, as 2048x2048, got '2048'"),
            (("--shape", "0x5"), "expected ROWSxCOLUMNS"),
            (("--overlap", "100%"), "expected a share below 1, as 10% or 0.1, got '100%'"),
            (("--overlap", "ten"), "expected a share below 1"),
            (("--overlap", "-1%"), "expected a share below 1"),
            (("--json", "no/such/file"), "there is no folder no/such"),
            (("--plot", "no/such/file"), "there is no folder no/such"),
            (("--fps", "0"), "0.0 is not in the range"),
            (("--dtype", "i4"), "'i4' is not one of"),
        ],
    )
    def test_what_cannot_be_measured(self, arguments: tuple[str, ...], said: str) -> None:
        result = bench(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr

    def test_a_daemon_that_dies_is_told_of(self) -> None:
        log = [{"level": "info", "event": "ready"}, {"level": "critical", "event": "thread failed", "error": "no disk"}]
        daemon: Any = SimpleNamespace(running=True, log=log)
        check = _checker(threading.Event(), daemon)
        check()
        daemon.running = False
        with pytest.raises(DisconnectedError, match="ended in the middle of the scan: no disk"):
            check()

    def test_a_signal_ends_it(self) -> None:
        stop = threading.Event()
        stop.set()
        with pytest.raises(click.Abort):
            _checker(stop, SimpleNamespace(running=True, log=[]))()  # type: ignore[arg-type]

    def test_too_little_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 << 20))
        result = bench("--folder", tmp_path)
        assert result.exit_code == 2
        assert "5.0 MiB free: choose another folder with --folder, or fewer frames with --frames" in result.stderr
        assert list(tmp_path.iterdir()) == []
