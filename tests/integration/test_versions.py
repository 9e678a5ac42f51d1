"""A daemon among runs of other versions: older ones are brought up to date, newer ones refused, the others go on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from zlib import crc32

import pytest

from integration.conftest import IMPATIENT, StartDaemon
from integration.scanning import assert_holds, pictures, serpentine
from integration.stored import assert_same, stored_mosaic
from integration.talking import PX_UM, SHAPE, RawPublisher, Watcher, centre_um
from old_store import downgrade
from recordings import Recording, record
from tilecast.service import runs
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import rebuild_run
from tilecast.store.migrations import SCHEMA_VERSION
from tilecast.store.sqlite_store import SqliteStore
from tilecast_protocol.client import Client
from tilecast_protocol.publisher import Publisher

NEWER = ("store", "journal", "frozen")


def made_by_this_version(root: Path, number: int, state: str = "ended") -> Recording:
    """A run that is closed in good order."""
    made = record(root, run_id=f"0190a5a8-0000-7000-8000-{number:012}", name=f"run {number}")
    rebuild_run(made.folder)
    with SqliteStore.open(made.folder) as store:
        store.set_state(state)
    return made


def make_newer(folder: Path, what: str) -> None:
    """Let one part of a run say that a later version wrote it."""
    match what:
        case "store":
            with closing(sqlite3.connect(folder / "tiles.sqlite")) as connection:
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
                connection.execute(
                    "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('tilecast', 'later', '')"
                )
                connection.commit()
        case "journal":
            for path in folder.glob("journal/*.tc?"):
                data = bytearray(path.read_bytes())
                data[4:6] = (2).to_bytes(2, "little")
                data[60:64] = crc32(data[:60]).to_bytes(4, "little")
                path.write_bytes(data)
        case "frozen":
            path = folder / "frozen.json"
            path.write_text(
                json.dumps(json.loads(path.read_text()) | {"version": runs.FROZEN_VERSION + 1, "warp": "thin-plate"})
            )


def contents(folder: Path) -> dict[str, str]:
    """What lies in a run's folder, but for what says who has it open."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("lock", "active") and not path.name.endswith(("-shm", "-wal"))
    }


@pytest.mark.parametrize("was_open", [False, True], ids=["closed", "open when the last daemon died"])
def test_newer_runs_are_refused_and_the_others_go_on(start_daemon: StartDaemon, tmp_path: Path, was_open: bool) -> None:
    root = tmp_path / "runs"
    newer = {what: made_by_this_version(root, n, "open" if was_open else "ended") for n, what in enumerate(NEWER)}
    for what, made in newer.items():
        make_newer(made.folder, what)
        if was_open:
            (made.folder / "active").touch()
    old = made_by_this_version(root, 8)
    expected = stored_mosaic(old.folder)
    downgrade(old.folder)
    before = {what: contents(made.folder) for what, made in newer.items()}

    daemon = start_daemon(**IMPATIENT)
    daemon.wait_logged("run brought up to date: an older tilecast wrote it", run=old.run_id)
    sent = pictures(41, 4)
    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Client(None, daemon.endpoints["query"]) as client,
        Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher,
    ):
        for made in newer.values():
            daemon.wait_logged("a newer tilecast wrote this run; it is left alone, the others go on", run=made.run_id)
        assert client.health()["ready"]
        run = publisher.start("new", shape=SHAPE, dtype="<u2", px_um=PX_UM)
        for frame in range(4):
            publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
        publisher.end()
        publisher.flush()
        assert watch.report(run)["received"] == 4
        # Whoever sends more of a newer run is told, too.
        for what, made in newer.items():
            with RawPublisher(daemon.endpoints["ingest.ack"], stream=f"late-{what}") as camera:
                camera.hello()
                seq = camera.image(made.run_id, 99, sent[0], pos_um=[0.0, 0.0])
                assert "newer tilecast" in camera.wait_rejected(seq).message
        rows = {row["run"]: row for row in client.runs()}
        assert rows[old.run_id]["state"] == "ended"
        assert "a newer tilecast wrote it" in rows[newer["store"].run_id]["error"]
        problems = " ".join(client.health()["problems"])
        for what, made in newer.items():
            assert f"run {made.run_id} is left alone: " in problems, f"{what}: {problems}"
    assert daemon.stop() == 0
    assert_holds(root / run, sent)
    assert_same(stored_mosaic(old.folder), expected)
    assert check_run(old.folder) == []
    assert {what: contents(made.folder) for what, made in newer.items()} == before
    for made in newer.values():
        assert any("newer tilecast" in finding.what for finding in check_run(made.folder))
