"""`tilecast seal` asks, checks, and then drops the recording; `tilecast info` says what is past."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ingest_harness import RUN
from recordings import Recording, record
from tilecast import cli
from tilecast.service.rebuild import rebuild_run
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_store import SqliteStore


def tilecast(root: Path, *args: str, code: int = 0, answer: str | None = None) -> Result:
    """Run the command in this process, and check its exit code."""
    settings = ["--set", f"store.path={root}", "--set", "query="]
    result = CliRunner().invoke(cli.main, [*settings, *args], input=answer, env={"TILECAST_CONFIG": None})
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


@pytest.fixture
def made(tmp_path: Path) -> Recording:
    made = record(tmp_path)
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    return made


def journal_is_there(made: Recording) -> bool:
    return (made.folder / "journal").is_dir()


def test_it_asks_first(made: Recording) -> None:
    asked = tilecast(made.root, "seal", "last", code=1, answer="n\n")
    assert "no longer possible then: rebuild, replay, late frames, another blend mode, registration" in asked.output
    assert journal_is_there(made)
    done = tilecast(made.root, "seal", "last", answer="y\n")
    assert f"sealed {RUN}: " in done.output
    assert not journal_is_there(made)


def test_info_says_what_is_past(made: Recording) -> None:
    assert json.loads(tilecast(made.root, "info", "last", "--json").output)["no longer possible"] == []
    tilecast(made.root, "seal", RUN[:8], "--yes")
    facts = json.loads(tilecast(made.root, "info", "last", "--json").output)
    assert (facts["state"], facts["sealed because of"]) == ("sealed", "operator")
    assert facts["no longer possible"] == [
        "rebuild", "replay", "late frames", "another blend mode", "registration"
    ]  # fmt: skip
    shown = tilecast(made.root, "info", "last").output
    assert "no longer possible" in shown
    assert "rebuild, replay, late frames" in shown
    assert "sealed already" in tilecast(made.root, "seal", "last", "--yes", code=2).output


def test_what_a_check_finds_keeps_the_recording_unless_forced(made: Recording) -> None:
    with SqliteStore.open(made.folder) as store:
        store._open_connection().execute("DELETE FROM tiles WHERE level = 0")
    refused = tilecast(made.root, "seal", "last", "--yes", code=2)
    assert f"the journal of run {RUN} is kept: " in refused.output
    assert journal_is_there(made)
    tilecast(made.root, "seal", "last", "--yes", "--force")
    assert not journal_is_there(made)


def test_a_run_that_somebody_writes_is_left_alone(made: Recording) -> None:
    with RunLock(made.folder):
        refused = tilecast(made.root, "seal", "last", "--yes", "--force", code=2)
    assert "is being written by" in refused.output
    assert journal_is_there(made)
