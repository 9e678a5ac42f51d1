"""One moment of a run that goes on: whatever is committed meanwhile, what is exported was once the mosaic."""

from __future__ import annotations

import re
import threading
import tracemalloc
import uuid
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import tifffile

from integration.talking import PX_UM, centre_um, picture
from plugins.export.conftest import Bench
from plugins.export.expected import levels
from plugins.export.test_ome_tiff import corner_of
from reference import mosaic_reference
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.reading import open_folder
from tilecast.store.sqlite_store import SqliteStore
from tilecast.store.tile_store import Commit, NewRun, TileRow
from tilecast_plugins.export.errors import ExportError
from tilecast_plugins.export.moment import copy_moment, moment_of
from tilecast_plugins.export.spool import spooled
from tilecast_plugins.export.writing import Request, write
from tilecast_protocol import pzf
from viewer_scans import SHAPE, TILE, Scan

P0 = PlaneKey()


def new_store(folder: Path, tile_size: int = 64, dtype: str = "|u1") -> SqliteStore:
    """A run in a store of its own, without a daemon."""
    start = {"shape": [tile_size, tile_size], "dtype": dtype, "px_um": [0.5, 0.5], "name": "made"}
    new = NewRun(
        run=str(uuid.uuid4()),
        name="made",
        instrument="scope",
        stream="cam",
        start=msgpack.packb(start),
        settings={"tile_size": tile_size, "mode": "feather"},
    )
    folder.mkdir()
    return SqliteStore.create(folder, new)


def numbered(rev: int, size: int = 64) -> bytes:
    return bytes(pzf.encode_image(np.full((size, size), rev, np.uint8)))


def commit(store: SqliteStore, rev: int, n: int = 8) -> None:
    """All n × n tiles of one commit show its rev: two commits mixed would show."""
    tiles = [TileRow(P0, TileKey(0, row, col), numbered(rev % 251)) for row in range(n) for col in range(n)]
    placement = Placement(rev, 0, P0, 0, 0, 64 * n, 64 * n, "stage", rev)
    result = store.commit(
        Commit(tiles=tiles, placements=[placement], levels=3, bboxes={P0: Rect(0, 0, 64 * n, 64 * n)})
    )
    assert result.rev == rev


def test_a_copy_is_of_one_commit(tmp_path: Path) -> None:
    """Another thread commits all tiles anew, again and again, while they are copied."""
    with new_store(tmp_path / "run") as store:
        commit(store, 1)
        store.set_state("open")
        done = threading.Event()
        copied = threading.Event()
        failures: list[BaseException] = []

        def copy() -> None:
            try:
                with open_folder(tmp_path / "run") as reader:
                    for _ in range(5):
                        with spooled(tmp_path) as spool:
                            info = copy_moment(reader, spool, None, lambda *_: copied.set())
                            keys = [TileKey(0, row, col) for row in range(8) for col in range(8)]
                            blobs = [spool.get(P0, key) for key in keys]
                        assert {blob and blob.rev for blob in blobs} == {info.rev}
                        shown = {
                            int(pzf.decode_image(blob.pzf, shape=(64, 64), dtype="|u1")[0, 0]) for blob in blobs if blob
                        }
                        assert shown == {info.rev % 251}
            except BaseException as error:  # noqa: BLE001  (told to the test)
                failures.append(error)
            finally:
                done.set()

        thread = threading.Thread(target=copy)
        thread.start()
        rev = 1
        while not done.is_set():
            copied.wait(30)
            copied.clear()
            rev += 1
            commit(store, rev)
        thread.join()
    assert not failures, failures
    assert rev > 5
    assert not [entry for entry in tmp_path.iterdir() if entry.name != "run"]


def test_an_ended_run_that_changes_all_the_same_is_refused(tmp_path: Path) -> None:
    with new_store(tmp_path / "run") as store:
        commit(store, 1)
        store.set_state("ended")
        with open_folder(tmp_path / "run") as reader, moment_of(reader, tmp_path, None, lambda *_: None) as moment:
            assert moment.tile(moment.run, P0, TileKey(0, 0, 0)) is not None
            moment.check()
            commit(store, 2)
            with pytest.raises(ExportError, match="changed while it was exported"):
                moment.tile(moment.run, P0, TileKey(0, 0, 0))
            with pytest.raises(ExportError, match="changed while it was exported"):
                moment.check()


@pytest.mark.parametrize("state", ["ended", "open"])
def test_a_rebuild_meanwhile(tmp_path: Path, state: str) -> None:
    """A new history begins after the tiles were copied: an open run is copied anew, an ended one refused."""
    with new_store(tmp_path / "run") as store:
        commit(store, 1)
        store.set_state(state)
        happened = []

        def progress(what: str, done: int, total: int) -> None:  # noqa: ARG001
            if not happened and (state == "open" or what == "writing"):
                happened.append(what)
                commit(store, 2)
                store.bump_epoch("for the test")

        request = Request(folder=tmp_path / "run", target=tmp_path / "made.tif", tile_size=64)
        if state == "ended":
            with pytest.raises(ExportError, match="changed while it was exported"):
                write(request, progress)
            assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
        else:
            assert write(request, progress).endswith("as of rev 2")
            assert (tifffile.imread(tmp_path / "made.tif") == 2).all()
        assert happened


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Of a mosaic several times as large as what may be used, all levels."""
    n, size = 32, 256
    with new_store(tmp_path / "run", tile_size=size) as store:
        rng = np.random.default_rng(3)
        blobs = [bytes(pzf.encode_image(rng.integers(0, 250, (size, size), np.uint8))) for _ in range(3)]
        for row in range(n):
            tiles = [TileRow(P0, TileKey(0, row, col), blobs[(row + col) % 3]) for col in range(n)]
            box = Rect(0, 0, size * (row + 1), size * n)
            store.commit(Commit(tiles=tiles, levels=5, bboxes={P0: box}))
        store.set_state("ended")
    nbytes = (n * size) ** 2
    for form, compression in (("ome-tiff", "none"), ("ome-tiff", "zlib"), ("ome-zarr", "zlib")):
        target = tmp_path / f"{form}-{compression}"
        request = Request(folder=tmp_path / "run", target=target, form=form, compression=compression)
        tracemalloc.start()
        try:
            write(request, lambda *_: None)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 28 << 20 < nbytes / 2, f"{form}: {peak / (1 << 20):.1f} MiB"


def test_a_run_is_exported_while_frames_arrive(bench: Bench, tmp_path: Path) -> None:
    """What is written is the mosaic of the frames that were placed by the rev it names."""
    corners = [(row, col) for row in range(-60, 200, 40) for col in range(-50, 200, 32)]
    frames: list[mosaic_reference.Frame] = []
    going = threading.Event()
    stop = threading.Event()
    with bench.show.publisher("going-on") as publisher:
        run = publisher.start("going on", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")

        def scan() -> None:
            for number in range(4000):
                corner = corners[number % len(corners)]
                pixels = picture(number, SHAPE)
                frames.append(mosaic_reference.Frame(number, 0, number, (0, 0, 0), *corner, pixels))
                publisher.image(pixels, pos_um=centre_um(*corner, SHAPE))
                if number == 10:
                    publisher.flush()
                    going.set()
                if stop.wait(0.01):
                    break

        camera = threading.Thread(target=scan)
        camera.start()
        try:
            assert going.wait(60)
            said = [bench.export(run, tmp_path / f"{number}.ome.tif") for number in range(2)]
            n_sent_then = len(frames)
        finally:
            stop.set()
            camera.join()
        publisher.end(run=run)
        publisher.flush()
    bench.show.watch.report(run)
    revs = [int(re.search(r"as of rev (\d+)", one)[1]) for one in said]  # type: ignore[index]
    assert revs[0] < revs[1], "the run should go on between two exports"
    with open_folder(bench.root / run) as reader:
        rev_of = {row.placement.frame: row.rev for row in reader.placements()}
    assert max(rev_of.values()) > revs[1]
    for number, rev in enumerate(revs):
        so_far = [frame for frame in frames if rev_of[frame.number] <= rev]
        assert 10 < len(so_far) < n_sent_then + 1
        expected: Any = Scan(run, "<u2", mosaic_reference.mosaic(so_far, "feather", "<u2", TILE))
        with tifffile.TiffFile(tmp_path / f"{number}.ome.tif") as tiff:
            row0, col0 = corner_of(tiff)
            found = [level.asarray() for level in tiff.series[0].levels]
        bounds = (row0, col0, row0 + found[0].shape[0], col0 + found[0].shape[1])
        for level, canvas in enumerate(levels(expected, bounds, len(found))):
            np.testing.assert_array_equal(found[level], canvas.values)
