"""The command line: that it starts quickly, says what is wrong in a sentence, and shows what is in the store."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from reference.mosaic_reference import Frame, box_of, level_count, mosaic
from tilecast import cli
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.service.config import options, to_markdown
from tilecast.store.coverage import coverage_pack
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, NewRun, TileRow
from tilecast_protocol.pzf import encode_image

RUNS = ("0190a5a8-1111-7000-8000-000000000001", "0190a5a8-2222-7000-8000-000000000002")
TILE = 32
FRAMES = [
    Frame(0, 0, 0, (0, 0, 0), -40, -10, np.random.default_rng(0).integers(0, 3000, (60, 90)).astype("<u2")),
    Frame(1, 0, 1, (0, 0, 0), -30, 70, np.random.default_rng(1).integers(0, 3000, (60, 90)).astype("<u2")),
    Frame(2, 0, 2, (0, 1, 0), 0, 0, np.random.default_rng(2).integers(0, 3000, (60, 90)).astype("<u2")),
]
LEVELS = level_count([box_of(frame) for frame in FRAMES], TILE)


def make_run(folder: Path, run: str, name: str) -> None:
    """A store as the daemon would leave it, with the mosaic of FRAMES."""
    start = {"name": name, "shape": [60, 90], "dtype": "<u2", "px_um": [0.5, 0.25]}
    tiles = [
        TileRow(PlaneKey(*plane), TileKey(*key), bytes(encode_image(pixels)), coverage_pack(covered))
        for (plane, key), (pixels, covered) in mosaic(FRAMES, "newest", "<u2", TILE).items()
    ]
    placements = [
        Placement(frame.number, 0, PlaneKey(*frame.plane), frame.row, frame.col, 60, 90, "stage", frame.index)
        for frame in FRAMES
    ]
    boxes = {PlaneKey(): Rect(-40, -10, 30, 160), PlaneKey(0, 1, 0): Rect(0, 0, 60, 90)}
    new = NewRun(
        run=run, name=name, instrument="scope", stream="cam", start=msgpack.packb(start), settings={"tile_size": TILE}
    )
    with SqliteStore.create(folder / run, new) as store:
        store.commit(Commit(tiles=tiles, placements=placements, levels=LEVELS, bboxes=boxes))
        store.add_note("focus drifted")
        report: dict[str, Any] = {"expected": 4, "received": 3, "missing": [[3, 3]], "n_missing": 1, "planned": None}
        report |= {"placed": 3, "n_unplaced": 0, "unplaced": {}, "malformed": 0, "rejected": {}, "joined": None}
        store.set_report(1, report)
        store.set_state("ended")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("runs")
    for run, name in zip(RUNS, ("liver", "kidney 2"), strict=True):
        make_run(folder, run, name)
    broken = folder / "0190a5a8-3333-7000-8000-000000000003"
    broken.mkdir()
    (broken / "tiles.sqlite").write_bytes(b"not a database" * 100)
    return folder


def tilecast(*args: object, store: Path | None = None, code: int = 0, **environ: str | None) -> Result:
    """Run the command in this process, and check its exit code."""
    where = ["--set", f"store.path={store}"] if store else []
    result = CliRunner().invoke(cli.main, [*where, *map(str, args)], env={"TILECAST_CONFIG": None} | environ)
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def read_png(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        assert image.mode == "L"
        return np.asarray(image)


def timed(code: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """What came of a program of its own, and the time of the processor that it took, s."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    after = os.times()
    return done, sum(after[2:4]) - sum(before[2:4])


class TestHelp:
    def test_starts_quickly_and_imports_nothing_heavy(self) -> None:
        code = (
            "import sys, tilecast.cli\n"
            "try: tilecast.cli.main(['--help'])\n"
            "except SystemExit: pass\n"
            "heavy = {'numpy', 'numba', 'zmq', 'pydantic', 'rich', 'sqlite3', 'structlog', 'PIL'} & set(sys.modules)\n"
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        took_s = []
        for _ in range(3):
            done, cpu_s = timed(code)
            took_s.append(cpu_s)
            assert done.returncode == 0, done.stderr
        assert "export-png" in done.stdout
        # Time of the processor, against an interpreter that only starts: so a busy machine does not decide.
        _, empty_s = timed("")
        assert min(took_s) < 0.3 + 5 * empty_s

    def test_every_command_has_help_and_the_common_options(self) -> None:
        shown = tilecast("--help").output
        for name, (_, summary) in cli.COMMANDS.items():
            assert re.search(rf"^  {name} +{re.escape(summary[:30])}", shown, re.MULTILINE), name
            page = tilecast(name, "--help").output
            assert len(page.splitlines()) > 8, name
            for option in ("--config", "--set", "--debug"):
                assert option in page, f"{name} {option}"
            first = re.sub(r"\s+", " ", page.split("\n\n")[1].strip())
            assert first[0].isupper(), name

    def test_commands_of_plugins_are_listed_with_the_others(self) -> None:
        assert re.search(r"^  web +Show mosaics in a browser", tilecast("--help").output, re.MULTILINE)
        page = tilecast("web", "--help").output
        assert all(option in page for option in ("--listen", "--config", "--set", "--debug"))
        assert "did you mean 'web'?" in tilecast("wep", code=2).output

    def test_a_plugins_command_that_fails_is_named_and_the_others_go_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entries = [
            EntryPoint("broken", "tilecast_no_such_module:command", cli.ENTRY_POINT_GROUP),
            EntryPoint("wrong", "json:dumps", cli.ENTRY_POINT_GROUP),
            EntryPoint("run", "tilecast_no_such_module:command", cli.ENTRY_POINT_GROUP),
        ]
        monkeypatch.setattr(cli, "entry_points", lambda **_: entries)
        assert cli.guest_names() == ["broken", "wrong"]  # ours cannot be replaced
        shown = tilecast("--help").output
        assert "export-png" in shown
        assert "tilecast_no_such_module" in shown
        assert "No module named" in tilecast("broken", code=1).output
        assert "should be a click.Command" in tilecast("wrong", code=1).output

    def test_the_version(self) -> None:
        assert re.fullmatch(r"tilecast, version \d+\.\d+\.\d+\n", tilecast("--version").output)

    def test_mistyped_commands_and_options(self) -> None:
        assert "there is no command 'exprot-png': did you mean 'export-png'?" in tilecast("exprot-png", code=2).output
        assert "lists the commands" in tilecast("qqq", code=2).output
        assert "--leve" in tilecast("export-png", "--leve", "3", code=2).output


class TestErrors:
    def test_are_one_sentence_and_no_traceback(self, store: Path) -> None:
        result = tilecast("info", "nothing", store=store, code=2)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line == f"tilecast: there is no run 'nothing' in {store}; `tilecast runs` lists them"

    def test_are_red_in_a_terminal(self, store: Path) -> None:
        result = CliRunner().invoke(cli.main, ["info", "nothing", "--set", f"store.path={store}"], color=True)
        assert result.stderr.startswith("\x1b[31m")

    def test_show_where_they_came_from_if_asked(self, store: Path) -> None:
        result = CliRunner().invoke(cli.main, ["--debug", "--set", f"store.path={store}", "info", "nothing"])
        assert result.exit_code == 1
        assert type(result.exception).__name__ == "StoreError"

    def test_of_the_system_are_sentences_too(self, store: Path, tmp_path: Path) -> None:
        target = tmp_path / "no" / "such" / "folder.png"
        assert f"{target}: No such file or directory" in tilecast(
            "export-png", "liver", target, store=store, code=2
        ).stderr  # fmt: skip


class TestConfig:
    def test_shows_every_option_with_its_value_and_source(self, tmp_path: Path) -> None:
        file = tmp_path / "my.toml"
        file.write_text('[blend]\nmode = "max"\n')
        shown = tilecast(
            "--config", file, "config", "--set", "ingest.idle_end_s=7", TILECAST_JOURNAL_DURABILITY="os"
        ).output  # fmt: skip
        rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
        for info in options():
            assert info.name in rows, info.name
        assert '"max"' in rows["blend.mode"]
        assert "my.toml" in shown
        assert re.search(r"7 +s +--set", rows["ingest.idle_end_s"])
        assert re.search(r'"os" +TILECAST_JOURNAL_DURABILITY', rows["journal.durability"])
        assert re.search(r'"320MiB" +bytes +default', rows["blend.budget_bytes"])

    def test_set_stands_before_or_after_the_command_and_the_last_wins(self) -> None:
        result = tilecast("--set", "blend.mode=max", "config", "--set", "blend.mode=min", "--toml")
        assert 'mode = "min"' in result.output

    def test_the_file_can_be_named_by_a_variable(self, tmp_path: Path) -> None:
        file = tmp_path / "my.toml"
        file.write_text('[blend]\nmode = "max"\n')
        assert 'mode = "max"' in tilecast("config", "--toml", TILECAST_CONFIG=str(file)).output

    def test_the_printed_file_can_be_used(self, tmp_path: Path) -> None:
        file = tmp_path / "my.toml"
        file.write_text(tilecast("config", "--toml", "--set", "blend.tile_size=64").output)
        assert re.search(r"blend.tile_size +64 +px", tilecast("config", "--config", file).output)

    def test_the_table_for_the_documentation(self) -> None:
        assert tilecast("config", "--markdown").output == to_markdown()

    def test_mistakes_are_explained(self) -> None:
        shown = tilecast("config", "--set", "blend.mod=max", code=2).stderr
        assert shown == "tilecast: --set: there is no option blend.mod: did you mean blend.mode?\n"
        assert "there is no configuration file" in tilecast("config", "--config", "/nowhere.toml", code=2).stderr


class TestRuns:
    def test_lists_all_even_the_unreadable(self, store: Path) -> None:
        shown = tilecast("runs", store=store).output
        assert re.search(r"0190a5a8 +liver +ended .* 3 +170 × 100", shown)
        assert "kidney 2" in shown
        assert "unreadable" in shown

    def test_for_programs(self, store: Path) -> None:
        rows = [json.loads(line) for line in tilecast("runs", "--json", store=store).output.splitlines()]
        assert [row["run"] for row in rows[:2]] == list(RUNS)
        assert rows[0]["n_frames"] == 3
        assert rows[0]["bbox"] == [-40, -10, 60, 160]
        assert "error" in rows[2]

    def test_an_empty_store(self, tmp_path: Path) -> None:
        assert f"There are no runs in {tmp_path / 'x'}." in tilecast("runs", store=tmp_path / "x").output


class TestInfo:
    @pytest.mark.parametrize("named", ["0190a5a8-1111", RUNS[0], RUNS[0].upper(), "liver", "folder"])
    def test_a_run_is_found_by_id_name_or_folder(self, store: Path, named: str) -> None:
        text = str(store / RUNS[0]) if named == "folder" else named
        assert RUNS[0] in tilecast("info", text, store=store).output

    def test_last_is_the_newest(self, store: Path) -> None:
        assert RUNS[1] in tilecast("info", "last", store=store).output

    def test_tells_what_there_is(self, store: Path) -> None:
        shown = tilecast("info", "kidney 2", store=store).output
        for text in ("kidney 2", "ended", "170 × 100 px, columns -10 to 160, rows -40 to 60", "0.085 × 0.025 mm",
                     "focus drifted", "  missing     [[3, 3]]", "3 of 4 frames arrived", "  dtype  <u2"):  # fmt: skip
            assert text in shown, shown
        facts = json.loads(tilecast("info", "kidney 2", "--json", store=store).output)
        assert facts["report"]["missing"] == [[3, 3]]
        assert facts["planes"]["t0 c1 z0"] == [0, 0, 60, 90]

    def test_mistakes_are_explained(self, store: Path, tmp_path: Path) -> None:
        assert "may be any of 3 runs" in tilecast("info", "0190a5a8", store=store, code=2).stderr
        assert "cannot be read" in tilecast("info", "0190a5a8-3333", store=store, code=2).stderr
        assert f"there are no runs in {tmp_path}" in tilecast("info", "last", store=tmp_path, code=2).stderr


class TestExportPng:
    def expected(self, level: int, rect: Rect, low: float, high: float, plane: tuple[int, int, int]) -> NDArray[Any]:
        """The picture, pixel by pixel from the reference's tiles."""
        tiles = mosaic(FRAMES, "newest", "<u2", TILE)
        picture = np.zeros((rect.height, rect.width), np.uint8)
        for row in range(rect.row0, rect.row1):
            for col in range(rect.col0, rect.col1):
                tile = tiles.get((plane, (level, row // TILE, col // TILE)))
                if tile is not None and tile[1][row % TILE, col % TILE]:
                    grey = (float(tile[0][row % TILE, col % TILE]) - low) * 255 / (high - low)
                    picture[row - rect.row0, col - rect.col0] = round(min(max(grey, 0), 255))
        return picture

    @pytest.mark.parametrize(
        ("arguments", "level", "rect", "plane"),
        [
            ([], 0, Rect(-40, -10, 30, 160), (0, 0, 0)),
            (["--level", "1"], 1, Rect(-20, -5, 15, 80), (0, 0, 0)),
            (["--level", "0", "--region", "-50,-20,5,33"], 0, Rect(-50, -20, 5, 33), (0, 0, 0)),
            (["--level", "1", "--region", "-7,3,9,12"], 1, Rect(-4, 1, 5, 6), (0, 0, 0)),
            (["--region-um=-5,-10,30,0.5"], 0, Rect(-40, -10, 2, 60), (0, 0, 0)),
            (["--plane", "0,1,0"], 0, Rect(0, 0, 60, 90), (0, 1, 0)),
        ],
    )
    def test_any_region_and_level(
        self, store: Path, tmp_path: Path, arguments: list[str], level: int, rect: Rect, plane: tuple[int, int, int]
    ) -> None:
        path = tmp_path / "out.png"
        shown = tilecast("export-png", "liver", path, *arguments, "--range", "100,2900", store=store).output
        assert f"{rect.width} × {rect.height} pixels of level {level}" in shown
        difference = np.abs(read_png(path).astype(int) - self.expected(level, rect, 100, 2900, plane))
        assert difference.max() <= 1  # float32 against float64 at a tie
        assert (difference == 0).mean() > 0.99

    def test_contrast_is_found(self, store: Path, tmp_path: Path) -> None:
        path = tmp_path / "out.png"
        shown = tilecast("export-png", "liver", path, "--plane", "0,1,0", store=store).output
        low, high = np.percentile(FRAMES[2].pixels, (0.1, 99.9))
        assert f"grey levels {low:g} (black) to {high:g} (white)" in shown
        assert read_png(path).min() == 0
        assert read_png(path).max() == 255

    def test_the_overview_has_a_name_of_its_own(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        tilecast("export-png", "liver", store=store)
        assert read_png(tmp_path / "overview-0190a5a8.png").shape == (70, 170)

    def test_large_mosaics_are_shown_at_a_level_that_fits(
        self, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tilecast.commands.export_png.OVERVIEW_PX", 100)
        assert "of level 1" in tilecast("export-png", "liver", tmp_path / "a.png", store=store).output
        monkeypatch.setattr("tilecast.commands.export_png.OVERVIEW_PX", 3)
        assert f"of level {LEVELS - 1}" in tilecast("export-png", "liver", tmp_path / "a.png", store=store).output
        monkeypatch.setattr("tilecast.commands.export_png.MAX_PIXELS", 99)
        message = tilecast("export-png", "liver", tmp_path / "a.png", "--level", "0", store=store, code=2).stderr
        assert "would have 11,900 pixels, more than 99: use a higher --level" in message

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--level", "9"], f"has levels 0 to {LEVELS - 1}, not 9"),
            (["--plane", "1,0,0"], "no frames in plane 1,0,0; it has: 0,0,0, 0,1,0"),
            (["--region", "5,5,5,9"], "the region is empty"),
            (["--region", "1,2,3"], "expected TOP,LEFT,BOTTOM,RIGHT, got '1,2,3'"),
            (["--region", "a,b,c,d"], "expected TOP,LEFT,BOTTOM,RIGHT as numbers"),
            (["--range", "9,9"], "LOW must be the smaller"),
            (["--region", "0,0,9,9", "--region-um", "0,0,9,9"], "give one of them"),
        ],
    )
    def test_mistakes_are_explained(self, store: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
        assert message in tilecast("export-png", "liver", tmp_path / "a.png", *arguments, store=store, code=2).stderr
        assert not (tmp_path / "a.png").exists()

    def test_a_copied_folder_can_be_read_where_it_is(self, store: Path, tmp_path: Path) -> None:
        shutil.copytree(store / RUNS[0], tmp_path / "copy")
        path = tmp_path / "out.png"
        tilecast("export-png", tmp_path / "copy", path, store=tmp_path / "elsewhere")
        assert read_png(path).shape == (70, 170)
