"""A run is there whole or gone whole, whenever a deletion is killed; what is gone is in the log, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recordings import Recording, record
from tilecast.errors import RunLockedError, StoreError
from tilecast.service import deletion
from tilecast.service.deletion import delete_run, deletions, finish_begun, partial_folder, seen
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import rebuild_run
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_store import SqliteStore
from tilecast_protocol.errors import QueryError
from tilecast_protocol.journal import Journal, RecordKind

NOW_NS = 1_800_000_000 * 10**9


@pytest.fixture
def made(tmp_path: Path) -> Recording:
    """A run that has ended."""
    made = record(tmp_path)
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    return made


def test_a_run_is_gone_and_the_log_says_what_it_was(made: Recording) -> None:
    entry = delete_run(made.folder, "operator", clock_ns=lambda: NOW_NS)
    assert sorted(path.name for path in made.root.iterdir()) == ["deletions.jsonl"]
    assert deletions(made.root) == [entry]
    assert (entry["run"], entry["name"], entry["state"], entry["why"], entry["t_ns"]) == (
        made.run_id, "scan", "ended", "operator", NOW_NS
    )  # fmt: skip
    assert entry["n_frames"] == len(made.pixels)
    assert entry["nbytes"] > 1000
    assert list(finish_begun(made.root)) == []


def test_an_open_run_is_never_touched(made: Recording) -> None:
    with SqliteStore.open(made.folder) as store:
        store.set_state("open")
    with pytest.raises(QueryError, match="is open; end it first") as refused:
        delete_run(made.folder, "operator")
    assert refused.value.code == "conflict"
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    with RunLock(made.folder), pytest.raises(RunLockedError):
        delete_run(made.folder, "operator")
    assert check_run(made.folder) == []
    assert deletions(made.root) == []


def test_what_cannot_be_read_may_be_open_if_a_daemon_left_it_so(made: Recording) -> None:
    (made.folder / "tiles.sqlite").write_bytes(b"not a database" * 100)
    (made.folder / "active").touch()
    with pytest.raises(QueryError, match="may be open"):
        delete_run(made.folder, "operator")
    (made.folder / "active").unlink()
    assert "state" not in delete_run(made.folder, "operator")


def test_a_run_into_which_something_came_is_kept(made: Recording) -> None:
    before = seen(made.folder)
    with Journal.open(made.folder / "journal") as journal:
        journal.append(RecordKind.EVENT, topic="tc1/scope/cam/event", header=b"\x80", parts=[], t_recv_ns=1)
    with pytest.raises(QueryError, match="something has come into run"):
        delete_run(made.folder, "operator", if_seen=before)
    before = seen(made.folder)
    with SqliteStore.open(made.folder, clock_ns=lambda: NOW_NS * 2) as store:
        store.rename("another")
    with pytest.raises(QueryError, match="something has come into run"):
        delete_run(made.folder, "operator", if_seen=before)
    delete_run(made.folder, "operator", if_seen=seen(made.folder))
    assert not made.folder.exists()


class Killed(BaseException):
    """Stands for the end of the process."""


def die(*_: Any, **__: Any) -> Any:
    raise Killed


@pytest.mark.parametrize("step", ["note", "rename", "log", "unlink", "remove", "half removed"])
def test_a_kill_leaves_it_whole_or_to_be_finished(made: Recording, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    rmtree = shutil.rmtree

    def half(folder: Path, *_: Any, **__: Any) -> None:
        rmtree(folder / "journal")
        raise Killed

    with monkeypatch.context() as patch:
        match step:
            case "note":
                patch.setattr(deletion, "write_durably", die)
            case "rename":
                patch.setattr(Path, "rename", die)
            case "log":
                patch.setattr(deletion, "_append", die)
            case "unlink":
                patch.setattr(Path, "unlink", die)
            case "remove":
                patch.setattr(shutil, "rmtree", die)
            case "half removed":
                patch.setattr(shutil, "rmtree", half)
        with pytest.raises(Killed):
            delete_run(made.folder, "operator")
    if step in ("note", "rename"):
        assert check_run(made.folder) == []
        assert list(finish_begun(made.root)) == []
        assert made.folder.is_dir()
        assert deletions(made.root) == []
        delete_run(made.folder, "operator")
    else:
        assert not made.folder.exists()
        assert list(finish_begun(made.root)) == [(f"the deletion of run {made.run_id}", None)]
    assert [path.name for path in made.root.iterdir()] == ["deletions.jsonl"]
    assert [entry["run"] for entry in deletions(made.root)] == [made.run_id]
    assert list(finish_begun(made.root)) == []


def test_what_a_living_process_works_on_is_left_alone(made: Recording) -> None:
    partial = partial_folder(made.root, made.run_id)
    partial.mkdir()
    (partial / "tiles.sqlite").write_bytes(b"half")
    with RunLock(partial):
        assert list(finish_begun(made.root)) == []
        assert partial.exists()
    assert list(finish_begun(made.root)) == [(f"an unfinished copy of run {made.run_id}", None)]
    assert [path.name for path in made.root.iterdir()] == [made.run_id]


def test_only_what_is_ours_is_removed(tmp_path: Path) -> None:
    for name in ("notes.deleted", "x.partial", "0190a5a8-1111-7000-8000-000000000001.old"):
        (tmp_path / name).mkdir()
    (tmp_path / "0190a5a8-1111-7000-8000-000000000001.partial").write_bytes(b"a file")
    before = sorted(tmp_path.iterdir())
    assert list(finish_begun(tmp_path)) == []
    assert sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_removed_is_told_and_tried_again(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(StoreError, match="remove what is left"):
            delete_run(made.folder, "operator")
        [(name, error)] = finish_begun(made.root)
        assert name == f"{made.run_id}.deleted"
        assert "Input/output error" in str(error) or "disk failed" in str(error)
    assert [error for _, error in finish_begun(made.root)] == [None]
    assert len(deletions(made.root)) == 1


def test_a_line_that_was_cut_short_spoils_no_other(made: Recording) -> None:
    log = made.root / "deletions.jsonl"
    log.write_text(json.dumps({"run": "a"}) + "\n" + '{"run": "cut')
    delete_run(made.folder, "operator")
    assert [entry["run"] for entry in deletions(made.root)] == ["a", made.run_id]
