"""`kill -9` of a daemon at random instants of a scan, again and again: nothing acknowledged is lost, ever.

One scan, one publisher on the acknowledged path, one viewer; the daemon is killed at random instants while frames come
in, and in its recovery from the death before. In the end every frame is there once, a whole check finds nothing, the
tiles are bit for bit those of the reference (and so of a scan that nobody disturbed), and the picture that the viewer
put together from notifications and queries is what is stored.

A dozen deaths are part of the tests; two hundred take a few minutes:

    uv run pytest tests/faults -m slow
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from faults.nursery import Nursery
from integration.conftest import IMPATIENT
from integration.scanning import assert_holds, endpoints, pictures, serpentine
from integration.stored import stored_mosaic
from integration.talking import PX_UM, SHAPE, centre_um
from tilecast.service.fsck import check_run
from tilecast_protocol.client import Client, Resync, TileRef, TileUpdate
from tilecast_protocol.errors import DisconnectedError, QueryError
from tilecast_protocol.publisher import Publisher

FRAMES_PER_LIFE = 12
LIFE_S = 0.2
"""A daemon is killed within so much of being ready: about as long as it needs for the frames of a life."""
IN_RECOVERY = 0.3
"""Share of the lives that end before the daemon is ready."""
PATIENCE_S = 60.0

Picture = dict[TileRef, tuple[NDArray[Any], NDArray[np.bool_]]]


class Viewer(threading.Thread):
    """Follows one run as a viewer does, and holds its picture; a daemon that is away is waited for.

    Attributes
    ----------
    picture : dict of TileRef to (pixels, coverage)
    trouble : list of str
        What must not happen to a viewer.
    """

    def __init__(self, ends: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.picture: Picture = {}
        self.trouble: list[str] = []
        self._wanted: set[TileRef] = set()
        self._everything = False
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._shown: tuple[int, int] = (0, 0)
        self._client = Client(ends["notify"], ends["query"], timeout_s=1.0)

    def run(self) -> None:
        try:
            with self._client:
                while not self._stopping.is_set():
                    self._step()
        except Exception as error:  # noqa: BLE001  (a thread's: the test looks at it)
            self.trouble.append(repr(error))

    def wait_shown(self, epoch: int, rev: int) -> None:
        """Wait until the picture is that of this rev."""
        with self._changed:
            shown = self._changed.wait_for(lambda: self._shown >= (epoch, rev) or not self.is_alive(), PATIENCE_S)
        assert shown, f"the viewer is at {self._shown}, the store at {(epoch, rev)}: {self.trouble}"

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self.join(PATIENCE_S)
        assert self.trouble == []

    def _step(self) -> None:
        try:
            update = self._client.next_update(0.1)
            if isinstance(update, Resync):
                self._everything = True
            elif isinstance(update, TileUpdate):
                self._wanted |= set(update.tiles)
                for tile in update.gone:
                    self._wanted.discard(tile)
                    self.picture.pop(tile, None)
            if update is not None:
                self._run, self._at = update.run, (update.epoch, update.rev)
            elif not self._wanted and not self._everything:
                return
            self._fetch()
        except DisconnectedError:
            return  # what is wanted is wanted still
        except QueryError as error:
            if error.code not in ("unknown-run", "busy", "unavailable"):
                raise

    def _fetch(self) -> None:
        if self._everything:
            snapshot = self._client.snapshot(self._run)
            self.picture = {}
            self._wanted = set(snapshot.tiles)
            self._everything = False
        for ref in sorted(self._wanted):
            tile = self._client.tile(self._run, ref)
            if tile is None:
                self.picture.pop(ref, None)
            else:
                self.picture[ref] = (tile.pixels, tile.coverage)
            self._wanted.discard(ref)
        with self._changed:
            self._shown = self._at
            self._changed.notify_all()


def check_scan_survives(nursery: Nursery, root: Path, *, n_kills: int, seed: int) -> None:
    """A scan during which the daemon is killed so often."""
    luck = random.Random(seed)
    sent = pictures(seed, FRAMES_PER_LIFE * (n_kills + 1))
    with endpoints() as ends:
        settings = IMPATIENT | ends
        daemon = nursery.daemon(root, settings)
        daemon.wait_logged("ready")
        viewer = Viewer(ends)
        viewer.start()
        with Publisher(ends["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S) as publisher:
            run = publisher.start("killed", shape=SHAPE, dtype="<u2", px_um=PX_UM)
            is_young = False
            for life in range(n_kills + 1):
                for frame in range(FRAMES_PER_LIFE * life, FRAMES_PER_LIFE * (life + 1)):
                    publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))
                if life == n_kills:
                    break
                if not is_young:
                    publisher.wait_connected()
                time.sleep(luck.uniform(0, LIFE_S))  # the instant is random: there is no event to wait for
                daemon.kill()
                daemon = nursery.daemon(root, settings)
                is_young = luck.random() < IN_RECOVERY
                if not is_young:
                    daemon.wait_logged("ready")
            daemon.wait_logged("ready")
            publisher.end()
            publisher.flush()
            assert publisher.rejected == []
        daemon.wait_logged("run report", run=run)
        with Client(None, ends["query"]) as client:
            while (info := client.run(run))["frames"] < len(sent):
                viewer.wait_shown(info["epoch"], info["rev"] + 1)
        viewer.wait_shown(info["epoch"], info["rev"])
        viewer.stop()
        assert daemon.stop() == 0, daemon.log[-10:]
    folder = root / run
    assert_holds(folder, sent)
    assert check_run(folder) == []
    stored = {TileRef(*plane, *key): tile for (plane, key), tile in stored_mosaic(folder).items()}
    assert viewer.picture.keys() == stored.keys()
    for ref, (pixels, coverage) in viewer.picture.items():
        np.testing.assert_array_equal(coverage, stored[ref][1])
        np.testing.assert_array_equal(pixels[coverage], stored[ref][0][coverage])


def test_a_scan_survives_a_dozen_deaths(nursery: Nursery, tmp_path: Path) -> None:
    check_scan_survives(nursery, tmp_path / "runs", n_kills=12, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_a_scan_survives_twenty_deaths(nursery: Nursery, tmp_path: Path, seed: int) -> None:
    check_scan_survives(nursery, tmp_path / "runs", n_kills=20, seed=seed)
