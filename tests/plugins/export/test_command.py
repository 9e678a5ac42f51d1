"""What a person gets wrong, and what becomes of the files when things go wrong."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from faults.nursery import shared
from plugins.export.conftest import Bench
from terminal import Terminal
from tilecast_plugins.export import finishing
from viewer_scans import Scan


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (("--region=5,5,5,9",), "the region is empty"),
        (
            ("--region=5000,0,5100,100",),
            "nothing is covered in the region 5000,0,5100,100; the run covers -35,-25,198,230",
        ),
        (("--region=1,2,3",), "expected TOP,LEFT,BOTTOM,RIGHT, got '1,2,3'"),
        (("--region-um=a,b,c,d",), "expected X0,Y0,X1,Y1 as numbers"),
        (("--region-um=0,0,nan,9",), "expected X0,Y0,X1,Y1 as numbers"),
        (("--region=0,0,9,9", "--region-um=0,0,9,9"), "give one of them"),
        (("--channels=DAPY",), "--channels: expected numbers as in 0,2-5; got 'DAPY'"),
        (("--times=1",), "--times: the run has 0 to 0"),
        (("--slices=0,0",), "each to be named once"),
        (("--slices=3-1",), "--slices: expected numbers as in 0,2-5; got '3-1'"),
        (("--times=0-999999999",), "--times: the run has 0 to 0"),
        (("--fill=300",), "whole numbers from 0 to 255; got 300"),
        (("--fill=1.5",), "whole numbers from 0 to 255; got 1.5"),
        (("--fill=nan",), "whole numbers from 0 to 255; got nan"),
        (("--tile-size=100",), "TIFF wants a multiple of 16; got 100"),
        (("--format=tiff",), "'tiff' is not one of"),
        (("--as-recorded",), "--as-recorded is for --frames"),
        (("--frames", "--fill=1"), "--fill is for mosaics"),
        (("--frames", "--format=pyme"), "leave out --format"),
    ],
)
def test_mistakes_are_explained(bench: Bench, grey: Scan, tmp_path: Path, options: tuple[str, ...], hint: str) -> None:
    said = bench.export(grey.run, tmp_path / "made", *options, code=2)
    assert hint in " ".join(said.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_an_unknown_run(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    assert "there is no run 'ffff'" in bench.export("ffff", tmp_path / "made", code=2)
    assert grey.run


def test_nothing_is_overwritten_unless_asked(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    path = tmp_path / "made.ome.tif"
    path.write_text("dear to somebody")
    said = bench.export(grey.run, path, code=2)
    assert "is there already: --force replaces it" in said
    assert path.read_text() == "dear to somebody"
    bench.export(grey.run, path, "--force")
    assert path.read_bytes()[:2] == b"II"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_folder_that_no_export_made_is_never_deleted(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    folder = tmp_path / "thesis.zarr"
    folder.mkdir()
    (folder / "chapter 1").write_text("…")
    assert "is a folder that no export made" in bench.export(grey.run, folder, "--force", code=2)
    assert (folder / "chapter 1").exists()
    (folder / "chapter 1").rename(folder / "zarr.json")
    bench.export(grey.run, folder, "--force")
    assert (folder / "zarr.json").stat().st_size > 100
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


def test_a_file_without_a_name(bench: Bench, grey: Scan) -> None:
    assert "is a folder, not the name of what is to be written" in bench.export(grey.run, "..", code=2)


def test_a_folder_that_is_not_there(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    assert "there is no folder" in bench.export(grey.run, tmp_path / "a" / "b.tif", code=2)


def test_a_disk_without_room(bench: Bench, grey: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is the one thing here that is feigned."""

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(finishing.shutil, "disk_usage", lambda _: Usage(1000))
    assert "make room" in bench.export(grey.run, tmp_path / "made", code=2)
    assert "make room" in bench.export(grey.run, tmp_path / "made", "--frames", code=2)
    monkeypatch.undo()
    assert shutil.disk_usage(tmp_path).free > 1000
    assert not list(tmp_path.iterdir())


def test_names_and_formats_follow_the_file(
    bench: Bench, grey: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.export(grey.run, tmp_path / "made.zarr")
    assert (tmp_path / "made.zarr" / "zarr.json").is_file()
    monkeypatch.chdir(tmp_path)
    done = shared().run("export", grey.run, "--set", f"store.path={bench.root}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grey.ome.tif").is_file()
    # Where there is no terminal, one line says it all.
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_a_terminated_export_leaves_nothing(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    """It is ended where it waits: opening a pipe in the place of the file that it begins to write."""
    program = (
        "import os, sys\n"
        "from tilecast_plugins.export import writing\n"
        "from tilecast import cli\n"
        "def stopped(picture, path, *args, **kwargs):\n"
        "    path.write_text('half')\n"
        "    print('half', flush=True)\n"
        "    sys.stdin.read()\n"
        "writing.write_ome_tiff = stopped\n"
        "cli.main(sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program,
            "export",
            grey.run,
            str(tmp_path / "made.tif"),
            "--set",
            f"store.path={bench.root}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "half\n"
        assert any(entry.name.endswith(".part") for entry in tmp_path.iterdir())
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    assert not list(tmp_path.iterdir())


def test_a_terminal_shows_how_far_it_is_and_a_pipe_one_line(bench: Bench, grey: Scan, tmp_path: Path) -> None:
    arguments = ["--frames", "--set", f"store.path={bench.root}"]
    command = [sys.executable, "-m", "tilecast", "export", grey.run, str(tmp_path / "seen"), *arguments]
    written = Terminal(command).read_all()
    assert re.search(r"writing frames.*━.*7/7", written, re.S), written
    said = bench.export(grey.run, tmp_path / "piped", "--frames")
    assert said.splitlines() == [f"{tmp_path / 'piped'}: 7 frames, as recorded, and positions.csv"]
