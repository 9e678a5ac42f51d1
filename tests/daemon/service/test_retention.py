"""Journals are kept unless somebody says otherwise; what is dropped was checked, and a run is whole or sealed."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest_harness import OTHER_RUN, RUN
from integration.stored import assert_same, stored_mosaic
from recordings import Recording, config, record
from tilecast.errors import RunLockedError, StoreError
from tilecast.ingest.verdicts import NO_LONGER, RunPhase
from tilecast.plugins import Plugins
from tilecast.service import retention
from tilecast.service.fsck import check_run
from tilecast.service.keeper import Keeper
from tilecast.service.rebuild import rebuild_run
from tilecast.service.retention import Policy, Recorded, Retention, choose, finish, look, seal, why_not
from tilecast.store.lock import RunLock
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import RunInfo
from tilecast_protocol.errors import QueryError

DAY_NS = 86_400 * 10**9
NOW_NS = 100 * DAY_NS
PATIENCE_S = 20.0
DROP = Policy(drop_checked=True)


# ---- what may be dropped ---------------------------------------------------------------------------------------------


def a_run(name: str, age_days: float, *, state: str = "ended", nbytes: int = 100, is_active: bool = False) -> Recorded:
    return Recorded(
        run=name, state=state, updated_ns=NOW_NS - round(age_days * DAY_NS), nbytes=nbytes, is_active=is_active
    )


RUNS = [
    a_run("young", 1),
    a_run("open", 90, state="open"),
    a_run("old", 50),
    a_run("silent", 6, state="idle"),
    a_run("long-silent", 8, state="idle", is_active=True),
    a_run("broken", 60, is_active=True),
]


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (Policy(), []),
        (DROP, ["old", "long-silent", "young"]),
        (Policy(drop_checked=True, seal_after_ns=DAY_NS), ["old", "long-silent", "silent", "young"]),
        (Policy(max_age_ns=7 * DAY_NS), ["old", "long-silent"]),
        (Policy(max_bytes=600), []),
        (Policy(max_bytes=599), ["old"]),
        (Policy(max_bytes=450), ["old", "long-silent"]),
        (Policy(max_bytes=1), ["old", "long-silent", "young"]),
        (Policy(max_bytes=450, max_age_ns=49 * DAY_NS), ["old", "long-silent"]),
    ],
)
def test_what_is_chosen(policy: Policy, chosen: list[str]) -> None:
    assert [one.run for one, _ in choose(RUNS, policy, NOW_NS)] == chosen


def test_why_it_is_chosen() -> None:
    policy = Policy(max_bytes=1, max_age_ns=40 * DAY_NS)
    assert {one.run: why for one, why in choose(RUNS, policy, NOW_NS)} == {
        "old": "retention.max_age_days",
        "long-silent": "retention.max_bytes",
        "young": "retention.max_bytes",
    }
    assert {why for _, why in choose(RUNS, DROP, NOW_NS)} == {"retention.journals"}


def test_why_it_may_not_be_dropped() -> None:
    sentences = {one.run: why_not(one, DROP, NOW_NS) for one in RUNS}
    assert sentences["open"] == "run open is open; end it first"
    assert "another 1.0 days" in sentences["silent"]
    assert "start the daemon" in sentences["broken"]
    assert {run for run, why in sentences.items() if not why} == {"young", "old", "long-silent"}


def test_the_options(tmp_path: Path) -> None:
    assert Policy.of(config(tmp_path)) == Policy()
    assert not Policy().drops
    made = Policy.of(
        config(
            tmp_path,
            "retention.journals=drop-checked",
            "retention.max_bytes=5GiB",
            "retention.max_age_days=30",
            "retention.seal_after_days=0.5",
        )
    )
    assert made == Policy(drop_checked=True, max_bytes=5 << 30, max_age_ns=30 * DAY_NS, seal_after_ns=DAY_NS // 2)
    assert all(policy.drops for policy in (DROP, Policy(max_bytes=1), Policy(max_age_ns=1)))


# ---- sealing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Recording:
    """A run that has ended, whole and sound."""
    return finished(record(tmp_path))


def finished(made: Recording) -> Recording:
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state("ended")
    return made


def info_of(folder: Path) -> RunInfo:
    with SqliteReader(folder) as reader:
        return reader.info()


def events_of(folder: Path, name: str) -> list[dict[str, Any]]:
    with SqliteReader(folder) as reader:
        return [dict(event.detail) for event in reader.events() if event.name == name]


def test_a_sealed_run_can_be_viewed_and_nothing_else(made: Recording) -> None:
    before = stored_mosaic(made.folder)
    nbytes = sum(path.stat().st_size for path in (made.folder / "journal").iterdir())
    assert seal(made.folder, "operator") == nbytes
    assert not list(made.folder.glob("journal*"))
    assert info_of(made.folder).state == "sealed"
    assert events_of(made.folder, "sealed") == [
        {"reason": "operator", "journal_bytes": nbytes, "no_longer": list(NO_LONGER)}
    ]
    assert_same(stored_mosaic(made.folder), before)
    assert check_run(made.folder) == []
    keeper = Keeper(config(made.root), Plugins())
    record = keeper.lookup(RUN)
    assert record is not None
    assert record.phase is RunPhase.SEALED
    with pytest.raises(StoreError, match="is sealed since"):
        rebuild_run(made.folder)
    assert_same(stored_mosaic(made.folder), before)


def test_nothing_is_dropped_of_a_run_that_somebody_writes_or_that_has_changed(made: Recording) -> None:
    seen = look(made.folder, info_of(made.folder))
    with RunLock(made.folder), pytest.raises(RunLockedError):
        seal(made.folder, "x")
    with SqliteStore.open(made.folder) as store:
        store.rename("another")
    with pytest.raises(StoreError, match="changed meanwhile"):
        seal(made.folder, "x", seen=seen)
    assert info_of(made.folder).state == "ended"
    assert (made.folder / "journal" / "000000.tcj").exists()


@pytest.mark.parametrize("step", ["state", "rename", "delete"])
def test_a_kill_leaves_it_whole_or_sealed(made: Recording, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any, **__: Any) -> Any:
        raise Killed

    before = stored_mosaic(made.folder)
    with monkeypatch.context() as patch:
        match step:
            case "state":
                patch.setattr(SqliteStore, "set_state", die)
            case "rename":
                patch.setattr(Path, "rename", die)
            case "delete":
                patch.setattr(shutil, "rmtree", die)
        with pytest.raises(Killed):
            seal(made.folder, "x")
    info = info_of(made.folder)
    is_sealed = step != "state"
    assert (info.state == "sealed") is is_sealed
    assert finish(made.folder, info) is is_sealed
    assert finish(made.folder, info) is False
    assert (made.folder / "journal").is_dir() is not is_sealed
    assert not (made.folder / "journal.dropped").exists()
    assert check_run(made.folder) == []
    assert_same(stored_mosaic(made.folder), before)


def test_what_cannot_be_deleted_now_is_deleted_later(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        with pytest.raises(StoreError, match="Input/output error"):
            seal(made.folder, "x")
        Retention(made.root, Policy()).pass_once()
    assert (made.folder / "journal.dropped").exists()
    Retention(made.root, Policy()).pass_once()
    assert not (made.folder / "journal.dropped").exists()


# ---- passes ----------------------------------------------------------------------------------------------------------


class Pass:
    """A `Retention` whose thread is the test's own, and what it said."""

    def __init__(self, root: Path, policy: Policy, **options: Any) -> None:
        self.sealed: list[tuple[str, int]] = []
        self.let_go: list[str] = []
        self.retention = Retention(
            root,
            policy,
            on_sealed=lambda info, freed: self.sealed.append((info.run, freed)),
            let_go=self.let_go.append,
            **options,
        )


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were checked."""
    done: list[str] = []

    def check(folder: Path, **options: Any) -> Any:
        done.append(folder.name)
        return check_run(folder, **options)

    monkeypatch.setattr(retention, "check_run", check)
    return done


def test_journals_are_kept_for_ever_unless_somebody_says_otherwise(made: Recording, checks: list[str]) -> None:
    passed = Pass(made.root, Policy())
    passed.retention.pass_once()
    assert (passed.sealed, checks) == ([], [])
    assert info_of(made.folder).state == "ended"


def test_a_run_that_has_ended_and_is_sound_is_sealed(made: Recording, checks: list[str]) -> None:
    going_on = Recording(made.root, run_id=OTHER_RUN)
    going_on.images()
    passed = Pass(made.root, DROP)
    passed.retention.pass_once()
    [(run, freed)] = passed.sealed
    assert (run, freed > 0) == (RUN, True)
    assert passed.let_go == [RUN, RUN]
    assert passed.retention.stats() == {"n_sealed": 1, "freed_bytes": freed}
    assert events_of(made.folder, "sealed")[0]["reason"] == "retention.journals"
    passed.retention.pass_once()
    assert (len(passed.sealed), checks) == (1, [RUN])
    going_on.close()
    assert (going_on.folder / "journal").is_dir(), "a recording without a mosaic is never touched"


def test_what_a_check_finds_keeps_the_journal_and_is_not_looked_for_again(made: Recording, checks: list[str]) -> None:
    with SqliteStore.open(made.folder) as store:
        store._open_connection().execute("DELETE FROM tiles WHERE level = 0")
    passed = Pass(made.root, DROP)
    for _ in range(2):
        passed.retention.pass_once()
    assert (passed.sealed, checks) == ([], [RUN])
    assert json.loads((made.folder / "checked.json").read_text())["objections"]
    rebuild_run(made.folder)
    passed.retention.pass_once()
    assert checks == [RUN, RUN]
    assert [run for run, _ in passed.sealed] == [RUN]
    assert not (made.folder / "checked.json").exists()


def test_frames_without_a_place_keep_the_journal(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.images()
    made.image(7)  # waits for a stage that never came
    made.image(9, (3, 3), status=1)
    made.end()
    made.close()
    finished(made)
    assert check_run(made.folder) == []
    passed = Pass(tmp_path, DROP)
    passed.retention.pass_once()
    assert passed.sealed == []
    with pytest.raises(QueryError) as refused:
        passed.retention.seal(RUN)
    assert refused.value.code == "conflict"
    assert "2 frames have no place in the mosaic" in str(refused.value)
    assert "the first is 7" in str(refused.value)
    passed.retention.seal(RUN, force=True)
    assert info_of(made.folder).state == "sealed"


def test_a_run_that_is_in_use_is_left_for_next_time(made: Recording) -> None:
    passed = Pass(made.root, DROP)
    with RunLock(made.folder):
        passed.retention.pass_once()
    assert passed.sealed == []

    def refuse(_run: str) -> None:
        raise QueryError("conflict", "it is open")

    Retention(made.root, DROP, let_go=refuse).pass_once()
    assert info_of(made.folder).state == "ended"
    Retention(made.root, DROP, may_check=lambda: False).pass_once()
    assert info_of(made.folder).state == "ended"
    passed.retention.pass_once()
    assert len(passed.sealed) == 1


def test_a_check_gives_way_to_whoever_needs_the_run(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on = threading.Event(), threading.Event()

    def check(folder: Path, *, progress: Callable[..., None]) -> list[Any]:
        with RunLock(folder):
            began.set()
            assert go_on.wait(PATIENCE_S)
            progress("checking", 0, 1)
        return []

    monkeypatch.setattr(retention, "check_run", check)
    passed = Pass(made.root, DROP)
    passed.retention.start()
    assert began.wait(PATIENCE_S)
    passed.retention.give_way(OTHER_RUN)  # which is not being checked
    asker = threading.Thread(target=passed.retention.give_way, args=(RUN,))
    asker.start()
    while not passed.retention._unwanted:
        pass
    assert asker.is_alive()
    go_on.set()
    asker.join(PATIENCE_S)
    RunLock(made.folder).release()
    passed.retention.stop()
    assert passed.sealed == []
    assert not (made.folder / "checked.json").exists()


def test_the_end_breaks_off_a_check(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def check(_folder: Path, *, progress: Callable[..., None]) -> list[Any]:
        began.set()
        while True:
            progress("checking", 0, 1)

    monkeypatch.setattr(retention, "check_run", check)
    passed = Pass(made.root, DROP)
    passed.retention.start()
    assert began.wait(PATIENCE_S)
    passed.retention.stop()
    assert passed.sealed == []


def test_a_pass_that_fails_is_no_reason_to_stop(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    list_runs = retention.list_runs

    def fail(_root: Path) -> Any:
        monkeypatch.setattr(retention, "list_runs", list_runs)
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(retention, "list_runs", fail)
    thread = Retention(made.root, DROP, on_sealed=lambda *_: done.set(), interval_s=0.01)
    thread.start()
    assert done.wait(PATIENCE_S)
    thread.stop()


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_a_run_is_sealed_by_hand(made: Recording) -> None:
    passed = Pass(made.root, Policy())
    freed = passed.retention.seal(RUN)
    assert passed.sealed == [(RUN, freed)]
    with pytest.raises(QueryError, match="sealed already"):
        passed.retention.seal(RUN)


def test_what_was_begun_is_finished_by_hand(made: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retention, "_remove_journal", lambda _: None)
        seal(made.folder, "x")
    assert (made.folder / "journal").is_dir()
    Retention(made.root, Policy()).seal(RUN)
    assert not (made.folder / "journal").exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("state", "why"), [("open", "end it first"), ("idle", "retention.seal_after_days")])
def test_a_run_that_may_go_on_is_not_sealed_by_hand_either(made: Recording, state: str, why: str, force: bool) -> None:
    with SqliteStore.open(made.folder) as store:
        store.set_state(state)
    with pytest.raises(QueryError, match=why):
        Retention(made.root, Policy()).seal(RUN, force=force)
    assert (made.folder / "journal").is_dir()


def test_a_run_that_is_written_is_not_sealed_by_hand(made: Recording) -> None:
    (made.folder / "active").touch()
    with RunLock(made.folder), pytest.raises(RunLockedError):
        Retention(made.root, Policy()).seal(RUN)
    with pytest.raises(QueryError, match="start the daemon"):
        Retention(made.root, Policy()).seal(RUN)
