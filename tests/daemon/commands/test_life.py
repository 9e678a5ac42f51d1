"""`end`, `rename`, `note`, `delete`, `copy`, `archive`, `unarchive`, and `runs`, where there is no daemon."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from recordings import Recording, record
from tilecast import cli
from tilecast.commands.runs import parse_since
from tilecast.service import copying
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import rebuild_run
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore

RUNS = tuple(f"0190a5a8-{n}{n}{n}{n}-7000-8000-000000000001" for n in range(1, 4))
HOUR_NS = 3600 * 10**9


@pytest.fixture(autouse=True)
def polite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process, whose priority is to stay."""
    monkeypatch.setattr(copying, "step_back", lambda: None)


def tilecast(root: Path, *args: object, code: int = 0, answer: str | None = None) -> Result:
    """Run the command in this process, and check its exit code."""
    settings = ["--set", f"store.path={root}", "--set", "query="]
    result = CliRunner().invoke(cli.main, [*settings, *map(str, args)], input=answer, env={"TILECAST_CONFIG": None})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


@pytest.fixture
def made(tmp_path: Path) -> Recording:
    made = record(tmp_path / "runs")
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    return made


def test_a_run_is_renamed_and_noted(made: Recording) -> None:
    tilecast(made.root, "rename", "last", "liver 12")
    tilecast(made.root, "note", "liver 12", "a bubble\nat the left")
    tilecast(made.root, "note", "last", "-", answer="from a pipe\n")
    with SqliteReader(made.folder) as reader:
        assert reader.info().name == "liver 12"
        assert [one.detail for one in reader.events() if one.name == "rename"] == [{"from": "scan", "to": "liver 12"}]
        notes = [one.detail["text"] for one in reader.events() if one.name == "note"]
    assert notes == ["a bubble\nat the left", "from a pipe"]
    assert "a bubble" in tilecast(made.root, "info", "last").output
    assert "control" in tilecast(made.root, "rename", "last", "two\nlines", code=2).output
    with RunLock(made.folder):
        assert "is being written by" in tilecast(made.root, "rename", "last", "x", code=2).output


def test_only_a_daemon_ends_a_run(made: Recording) -> None:
    refused = tilecast(made.root, "end", "last", code=2)
    assert "no daemon that has the runs in" in refused.output
    assert "start it (tilecast run)" in refused.output


def test_deletion_asks_first_and_is_logged(made: Recording) -> None:
    asked = tilecast(made.root, "delete", "last", code=1, answer="n\n")
    assert f"{made.run_id} ('scan', ended, {len(made.pixels)} frames, " in asked.output
    assert "delete it for good?" in asked.output
    assert check_run(made.folder) == []
    assert "Nothing was deleted" in tilecast(made.root, "runs", "--deleted").output
    assert f"deleted {made.run_id}" in tilecast(made.root, "delete", "last", answer="y\n").output
    assert not made.folder.exists()
    assert "scan" in tilecast(made.root, "runs", "--deleted").output
    [entry] = [json.loads(line) for line in tilecast(made.root, "runs", "--deleted", "--json").output.splitlines()]
    assert (entry["run"], entry["why"]) == (made.run_id, "operator")
    tilecast(made.root, "delete", made.run_id, "--yes", code=2)


def test_an_open_run_is_not_deleted_and_not_archived(made: Recording, tmp_path: Path) -> None:
    with SqliteStore.open(made.folder) as store:
        store.set_state("open")
    assert "is open; end it first" in tilecast(made.root, "delete", "last", "--yes", code=2).output
    archived = tilecast(made.root, "archive", "last", tmp_path / "x.tar", "--remove", "--yes", code=2)
    assert "end it first, or copy it" in archived.output
    assert made.folder.exists()
    assert not (tmp_path / "x.tar").exists()


def test_a_run_is_copied(made: Recording, tmp_path: Path) -> None:
    said = tilecast(made.root, "copy", "last", tmp_path / "copies").output
    assert f"copied {made.run_id}: " in said
    assert f"info {made.run_id[:8]} --set store.path=" in said
    assert check_run(tmp_path / "copies" / made.run_id) == []
    assert "already" in tilecast(made.root, "copy", "last", tmp_path / "copies", code=2).output
    assert "already" in tilecast(made.root, "copy", "last", made.root, code=2).output


def test_a_run_is_archived_removed_and_brought_back(made: Recording, tmp_path: Path) -> None:
    (tmp_path / "tape").mkdir()
    path = tmp_path / "tape" / f"{made.run_id}.tar"
    tilecast(made.root, "archive", "last", tmp_path / "tape", "--remove", code=1, answer="n\n")
    assert not path.exists()
    said = tilecast(made.root, "archive", "last", tmp_path / "tape", "--remove", "--yes").output
    assert "read again and checked" in said
    assert not made.folder.exists()
    [entry] = [json.loads(line) for line in tilecast(made.root, "runs", "--deleted", "--json").output.splitlines()]
    assert entry["why"] == f"archived as {path}"
    assert f"run {made.run_id}" in tilecast(made.root, "unarchive", path, "--check").output
    assert f"brought back {made.run_id}" in tilecast(made.root, "unarchive", path).output
    assert check_run(made.folder) == []
    tilecast(made.root, "delete", "last", "--yes")  # the same run again
    assert len(tilecast(made.root, "runs", "--deleted", "--json").output.splitlines()) == 2
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    tilecast(made.root, "unarchive", path, code=2)
    assert not made.folder.exists()


def test_an_archive_that_came_too_late_keeps_the_run(made: Recording, tmp_path: Path) -> None:
    with RunLock(made.folder):
        refused = tilecast(made.root, "archive", "last", tmp_path / "x.tar", "--remove", "--yes", code=2)
    assert "the archive is complete, and the run was not deleted: " in refused.output
    assert (tmp_path / "x.tar").exists()
    assert made.folder.exists()


class TestRuns:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        """Three runs: the first is the largest, the last is open."""
        template = record(tmp_path / "template")
        root = tmp_path / "store"
        for number, (run, name, state) in enumerate(
            zip(RUNS, ("Liver 1", "kidney", "liver 2"), ("sealed", "ended", "open"), strict=True)
        ):
            made = record(root, run_id=run, name=name)
            now_ns = 1_700_000_000 * 10**9 + number * HOUR_NS
            rebuild_run(made.folder)
            with SqliteStore.open(made.folder) as store:
                store._open_connection().execute("UPDATE run SET created_ns = ?", (now_ns,))
                store.set_state(state)
            (made.folder / "ballast").write_bytes(bytes((3 - number) * 1_000_000))
        shutil.rmtree(template.root)
        return root

    def names(self, root: Path, *args: str) -> list[str]:
        lines = tilecast(root, "runs", "--json", *args).output.splitlines()
        return [json.loads(line)["name"] for line in lines]

    def test_are_sorted(self, root: Path) -> None:
        assert self.names(root) == ["Liver 1", "kidney", "liver 2"]
        assert self.names(root, "--sort", "size") == ["liver 2", "kidney", "Liver 1"]
        assert self.names(root, "--sort", "name") == ["kidney", "Liver 1", "liver 2"]
        assert self.names(root, "--sort", "state") == ["liver 2", "kidney", "Liver 1"]
        assert self.names(root, "--sort", "date", "--reverse") == ["liver 2", "kidney", "Liver 1"]

    def test_are_filtered(self, root: Path) -> None:
        assert self.names(root, "--state", "open") == ["liver 2"]
        assert self.names(root, "--state", "open", "--state", "ended") == ["kidney", "liver 2"]
        assert self.names(root, "--name", "LIVER") == ["Liver 1", "liver 2"]
        assert self.names(root, "--name", "liver*2") == ["liver 2"]
        assert self.names(root, "--name", "liver?") == []
        assert self.names(root, "--since", "2023-11-14 23:00+00:00") == ["kidney", "liver 2"]
        assert self.names(root, "--since", "1h") == []
        assert len(self.names(root, "--since", "5200w")) == 3
        assert "a date such as" in tilecast(root, "runs", "--since", "yesterday", code=2).output

    def test_sizes_are_summed(self, root: Path) -> None:
        (root / "not-a-run").mkdir()
        shown = tilecast(root, "runs", "--state", "ended").output
        assert re.search(r"^1 of 3 runs, (1\.9|2\.\d) MiB, in ", shown, re.MULTILINE)
        assert "3 runs, " in tilecast(root, "runs").output
        assert "0 of 3 runs, 0 B, in " in tilecast(root, "runs", "--name", "nobody").output

    def test_one_that_cannot_be_read_is_there(self, root: Path) -> None:
        (root / RUNS[1] / "tiles.sqlite").write_bytes(b"not a database" * 100)
        rows = [json.loads(line) for line in tilecast(root, "runs", "--json", "--sort", "size").output.splitlines()]
        assert [row["state"] for row in rows] == ["open", "damaged", "sealed"]
        damaged = tilecast(root, "runs", "--json", "--state", "damaged").output.splitlines()
        assert [json.loads(line)["run"] for line in damaged] == [RUNS[1]]


def test_moments_are_dates_or_ages() -> None:
    assert parse_since("90m", 10_000.0) == (10_000 - 5400) * 10**9
    assert parse_since("1.5h", 10_000.0) == (10_000 - 5400) * 10**9
    assert parse_since("2w", 2e9) == (2_000_000_000 - 14 * 86_400) * 10**9
    assert parse_since("2001-09-09T01:46:40+00:00", 0.0) == 10**18
