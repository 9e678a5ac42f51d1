"""A ruined run is made good while the others go on; and one process at a time writes a run, whatever happens to it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from damaged_store import change_bits, spoil_tiles
from integration.conftest import IMPATIENT, StartDaemon
from integration.scanning import assert_holds, endpoints, pictures, serpentine, tilecast
from integration.stored import assert_same, stored_mosaic
from integration.talking import PX_UM, SHAPE, Watcher, centre_um, new_uuid
from recordings import TILE, Recording
from reference.mosaic_reference import Mosaic
from tilecast.commands._daemon import daemon_of
from tilecast.errors import RunLockedError
from tilecast.geometry import TileKey
from tilecast.process import DaemonProcess
from tilecast.service import runs
from tilecast.service.config import load
from tilecast.service.rebuild import rebuild_run
from tilecast.store.folders import list_runs
from tilecast.store.lock import RunLock, holder
from tilecast.store.sqlite_connection import TILES_NAME
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client
from tilecast_protocol.journal import Journal
from tilecast_protocol.messages import DaemonHeartbeat
from tilecast_protocol.publisher import Publisher

SETTINGS = {"blend.tile_size": str(TILE), "ingest.idle_end_s": "600", "log.flood_s": "0"}


class Old(NamedTuple):
    """A run from before the daemon: its folder, and what it shows."""

    folder: Path
    mosaic: Mosaic

    @property
    def run(self) -> str:
        """Its uuid."""
        return self.folder.name

    @property
    def tiles(self) -> Path:
        """Its store."""
        return self.folder / TILES_NAME


def old_run(root: Path, *, ended: bool = True) -> Old:
    """A sound run; one that has not ended was left by a daemon that died."""
    made = Recording(root, run_id=new_uuid())
    made.images()
    if ended:
        made.end()
    folder = made.close(finished=ended)
    rebuild_run(folder)
    return Old(folder, stored_mosaic(folder))


def test_ruined_runs_are_made_good_while_the_others_go_on(start_daemon: StartDaemon, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    names = ("sound", "junk", "missing", "torn", "frozen", "frame", "journal")
    olds = {name: old_run(root) for name in names}
    olds["active"] = old_run(root, ended=False)
    for name in ("junk", "active"):
        olds[name].tiles.write_bytes(b"no database" * 10_000)
    olds["missing"].tiles.unlink()
    data = bytearray(olds["torn"].tiles.read_bytes())
    data[:4096] = bytes(4096)
    olds["torn"].tiles.write_bytes(data)
    (olds["frozen"].folder / runs.FROZEN_NAME).write_text("{")
    segment = {name: olds[name].folder / runs.JOURNAL_NAME / "000000.tcj" for name in ("frame", "journal")}
    with Journal.open(segment["frame"].parent, readonly=True) as journal:
        end_lsn = journal.written_lsn
    data = bytearray(segment["frame"].read_bytes())
    data[end_lsn - 20] ^= 1  # in the last record, which opening looks at
    segment["frame"].write_bytes(data[:-30])
    segment["journal"].write_bytes(b"nothing" * 1000)
    segment["journal"].with_suffix(".tci").unlink()

    daemon = start_daemon(**SETTINGS)
    with Watcher(daemon.endpoints["notify"]) as watch, Client(None, daemon.endpoints["query"]) as client:
        client.end(olds["active"].run)
        watch.report(olds["active"].run)
        for name in ("junk", "missing", "torn"):
            daemon.wait_logged("repaired", run=olds[name].run)
            info = client.run(olds[name].run)
            assert (info["state"], info["epoch"] > 10**9) == ("ended", True)
        for name in ("sound", "junk", "missing", "torn", "active", "frozen", "frame", "journal"):
            assert_same(stored_mosaic(olds[name].folder), olds[name].mosaic)
        assert client.run(olds["active"].run)["epoch"] > 10**9, "viewers must not take it for what they knew"
        for name in ("junk", "torn", "active"):
            assert len(list(olds[name].folder.glob(f"{TILES_NAME}.damaged-*"))) == 1
        lines = {line["run"]: line for line in client.runs()}
        assert {name for name in olds if "error" in lines[olds[name].run]} == {"frame", "journal"}
        problems = " ".join(client.health()["problems"])
        assert {name for name in olds if olds[name].run in problems} == {"frame", "journal"}
        assert client.health()["ready"]
        # What the daemon does not come across by itself is repaired when it is told to.
        answer = client.repair(olds["frozen"].run)
        assert answer["left"] == []
        assert "frozen.json" in answer["done"][0]
    assert daemon.stop() == 0


@pytest.fixture
def held(start_daemon: StartDaemon, tmp_path: Path) -> tuple[DaemonProcess, Old]:
    """A daemon that has a run open, one tile of which has decayed since."""
    old = old_run(tmp_path / "runs", ended=False)
    daemon = start_daemon(**SETTINGS)
    daemon.wait_logged("run loaded", run=old.run)
    spoil_tiles(old.folder, [TileKey(0, 0, 0)])
    return daemon, old


def test_nobody_else_writes_a_run_that_the_daemon_has_open(held: tuple[DaemonProcess, Old], tmp_path: Path) -> None:
    daemon, old = held
    root = old.folder.parent
    assert f"process {daemon.pid} on" in holder(old.folder)
    with pytest.raises(RunLockedError, match=f"process {daemon.pid} on"):
        RunLock(old.folder)
    assert "not checked" in tilecast("fsck", "--repair", old.run, "--set", "query=", store=root, code=2)
    for query in ("", "ipc:///nonexistent/socket"):
        settings = load(overrides=[f"store.path={root}", f"query={query}"], environ={})
        with (
            pytest.raises(RunLockedError, match=str(daemon.pid)),
            daemon_of(settings, old.folder, RunLockedError(holder(old.folder)), answers_within_s=0.1),
        ):
            pytest.fail("there is no daemon that could be asked")
    with (
        pytest.raises(RunLockedError, match="of another"),
        daemon_of(
            load(overrides=[f"query={daemon.endpoints['query']}"], environ={}),
            tmp_path / "elsewhere" / old.run,
            RunLockedError("of another"),
        ),
    ):
        pytest.fail("that daemon has other runs")
    # Asked for, the daemon does it itself, and tells viewers.
    here = ("--set", f"query={daemon.endpoints['query']}")
    with Watcher(daemon.endpoints["notify"]) as watch, Client(None, daemon.endpoints["query"]) as client:
        before = client.run(old.run)
        said = tilecast("fsck", "--repair", old.run, *here, store=root)
        assert "tiles were made anew" in said
        assert "clean" in said
        told = watch.placed(old.run, before["rev"] + 1)
        assert told.tiles is not None
        assert (told.epoch, told.bbox_um is not None) == (before["epoch"], True)
        assert_same(stored_mosaic(old.folder), old.mosaic)
        tilecast("rebuild", old.run, *here, store=root)
        after = client.run(old.run)
        assert (after["epoch"], after["state"]) == (before["epoch"] + 1, before["state"])
        assert watch.placed(old.run, after["rev"]).bbox_um == told.bbox_um
    assert_same(stored_mosaic(old.folder), old.mosaic)


def test_a_writer_that_is_killed_holds_nothing(held: tuple[DaemonProcess, Old]) -> None:
    daemon, old = held
    daemon.kill()
    assert holder(old.folder) == ""
    assert "clean" in tilecast("fsck", "--repair", old.run, store=old.folder.parent)
    assert_same(stored_mosaic(old.folder), old.mosaic)


def spoil_pixels(folder: Path) -> None:
    """Change two bits in each tile: most can be read all the same, and would show other pixels."""
    with SqliteReader(folder) as reader:
        keys = [stamp.key for stamp in reader.snapshot().tiles]
    for key in keys:
        change_bits(folder, key)


@pytest.mark.parametrize("decay", [spoil_tiles, spoil_pixels])
def test_a_run_that_meets_damage_is_repaired_and_goes_on(
    start_daemon: StartDaemon, tmp_path: Path, decay: Callable[[Path], None]
) -> None:
    sent = pictures(7, 12)
    with endpoints() as fixed:
        daemon = start_daemon(**(IMPATIENT | fixed))
        with (
            Watcher(fixed["notify"]) as watch,
            Publisher(fixed["ingest.ack"], instrument="scope", stream="cam") as publisher,
        ):
            run = publisher.start("decaying", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")
            folder = tmp_path / "runs" / run
            for frame in range(11):
                publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
            publisher.flush()
            assert daemon.stop() == 0
            decay(folder)
            daemon.start()
            started_ns = time.time_ns()
            watch.until(lambda m: isinstance(m, DaemonHeartbeat) and m.t_ns > started_ns, "a word of the new daemon")
            publisher.image(sent[11], frame=11, pos_um=centre_um(*serpentine(11)))
            publisher.flush()
            daemon.wait_logged("the mosaic of a run is stuck; its frames are kept", run=run)
            daemon.wait_logged("repaired", run=run)
            publisher.end()
            publisher.flush()
            watch.report(run)
    assert_holds(folder, sent)
    assert daemon.stop() == 0


_HOLDER = """
import sys
import time
from tilecast.store.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_whose_mosaic_is_being_made_is_said_to_be(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.images()
    folder = made.close()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        [found] = list_runs(tmp_path)
        assert found.making
        assert f"being made, by process {other.pid}" in found.error
        assert "being made" in tilecast("runs", store=tmp_path)
        other.kill()
    [found] = list_runs(tmp_path)
    assert not found.making
    assert "tilecast rebuild" in found.error


def test_another_process_and_the_daemon_never_write_one_run(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """A run that a command holds is not loaded by the daemon, which serves the rest."""
    old = old_run(tmp_path / "runs", ended=False)
    other = old_run(tmp_path / "runs")
    with RunLock(old.folder):
        daemon = start_daemon(**SETTINGS)
        with Client(None, daemon.endpoints["query"]) as client:
            assert client.health()["runs"] == []
            assert client.run(other.run)["state"] == "ended"
            with SqliteReader(old.folder) as reader:
                assert reader.info().run == old.run
    assert daemon.stop() == 0
