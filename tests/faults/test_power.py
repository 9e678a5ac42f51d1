"""The power fails: what is left is what each file was at its last sync, or anything between that and what was written.

A daemon takes in a scan and is killed; the shim has kept every file as it was when it was last synced. From that, three
disks are made, each as bad as a real one can be: nothing but what was synced; the store as it was written, but of the
journal only what was synced (so no tile may claim a frame whose record is gone); and the store's log cut at any byte.
Whatever is found: all acknowledged frames are there, and the next daemon makes of it a run without a flaw.

(`tests/properties/test_journal_properties.py` does the same with the journal's every page.)
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from faults.nursery import Disk, Nursery
from integration.conftest import IMPATIENT
from integration.scanning import endpoints, pictures, serpentine
from integration.stored import journalled_frames
from integration.talking import PX_UM, SHAPE, centre_um
from tilecast.errors import StoreError
from tilecast.service.fsck import check_run
from tilecast.store.sqlite_connection import TILES_NAME, wal_path
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol.client import Client
from tilecast_protocol.errors import DisconnectedError, QueryError
from tilecast_protocol.publisher import Publisher

PATIENCE_S = 20.0
N_ACKED = 30
N_SENT = 50


def restored(durable: Path, root: Path) -> None:
    """Make the folder of the runs as it was on the disk."""
    for kept in durable.iterdir():
        path = root / kept.name.replace("\\", "/")
        if kept.suffix != ".unborn":
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, path)


def disks(durable: Path, written: Path, run: str, into: Path, luck: random.Random) -> Iterator[tuple[str, Path]]:
    """What may be found when the power is back; each with what it is."""
    synced = into / "synced"
    restored(durable, synced)
    yield "what was synced", synced
    for number in range(2):
        ahead = into / f"ahead{number}"
        restored(durable, ahead)
        for name in (TILES_NAME, f"{TILES_NAME}-wal"):
            shutil.copyfile(written / run / name, ahead / run / name)
        what = "the store is ahead"
        if number:
            log = wal_path(ahead / run / TILES_NAME)
            old = synced / run / log.name
            synced_nbytes = old.stat().st_size if old.exists() else 0
            data = log.read_bytes()
            cut = luck.randint(min(synced_nbytes, len(data)), len(data))
            log.write_bytes(data[:cut])
            what = f"the store's log is cut at {cut} of {len(data)} bytes"
        yield what, ahead


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_what_was_acknowledged_survives_a_power_failure(shimmed: Nursery, tmp_path: Path, seed: int) -> None:
    luck = random.Random(seed)
    root, durable = tmp_path / "runs", tmp_path / "durable"
    durable.mkdir()
    n_acked = N_ACKED if seed == 1 else luck.randrange(1, N_SENT)
    sent = pictures(seed, N_SENT)
    with endpoints() as ends:
        # A log that is soon too long is carried over while frames come in: then synced states are of any age.
        settings = IMPATIENT | ends | {"store.wal_limit_bytes": "8MiB"}
        daemon = shimmed.daemon(root, settings, disk=Disk(folder=str(root), durable=str(durable)))
        daemon.wait_logged("ready")
        camera = Publisher(ends["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S)
        with pytest.raises(DisconnectedError), camera as publisher:  # noqa: PT012  (what it cannot deliver any more)
            run = publisher.start("power", shape=SHAPE, dtype="<u2", px_um=PX_UM)
            for frame in range(N_SENT):
                publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
                if frame == n_acked - 1:
                    publisher.flush(PATIENCE_S)
                    if seed % 2:  # else the power may fail before there is a store at all
                        wait_placed(ends, run, n_acked)
            daemon.kill()
            publisher.image(sent[0], frame=N_SENT)  # so that something is left to be delivered, however quick it was
            publisher.close(timeout_s=0.1)
        for what, found in disks(durable, root, run, tmp_path, luck):
            check_journal_leads(found / run, what)
            daemon = shimmed.daemon(found, settings)
            daemon.wait_logged("ready")
            wait_placed(ends, run, len(journalled_frames(found / run)))
            assert daemon.stop() == 0, (what, daemon.log[-10:])
            kept = journalled_frames(found / run)
            assert set(kept) >= set(range(n_acked)), what
            for frame, pixels in kept.items():
                np.testing.assert_array_equal(pixels, sent[frame])
            assert check_run(found / run) == [], what


def wait_placed(ends: dict[str, str], run: str, n: int) -> None:
    """Wait until so many frames are in the mosaic."""
    with Client(ends["notify"], ends["query"]) as client:
        while (frames := n_placed(client, run)) < n:
            assert client.next_update(PATIENCE_S) is not None, f"{frames} of {n} frames are in the mosaic"


def n_placed(client: Client, run: str) -> int:
    """How many frames are in the mosaic; none as long as its store is being made."""
    try:
        frames: int = client.run(run)["frames"]
    except QueryError:
        return 0
    return frames


def check_journal_leads(folder: Path, what: str) -> None:
    """No placement is of a frame whose record is gone."""
    frames = journalled_frames(folder)
    copy = folder.with_name("looked-at")
    shutil.copytree(folder, copy)
    try:
        with SqliteReader(copy) as reader:
            placed = {row.placement.frame for row in reader.placements()}
    except StoreError:
        return  # of its store nothing was durable yet
    finally:
        shutil.rmtree(copy)
    assert placed <= set(frames), what
