"""Scans of noise at places that the test chose, and whether a run's folder holds exactly what was sent.

Nothing is taken from the store that the test knows itself: frames and their places come from here.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faults.nursery import shared
from integration.stored import assert_same, journalled_frames, reference_mosaic, stored_mosaic
from integration.talking import picture
from tilecast.store.sqlite_reader import SqliteReader

Corners = dict[int, tuple[int, int]]
Pixels = dict[int, NDArray[Any]]


def serpentine(frame: int) -> tuple[int, int]:
    """Upper left pixel of a frame of a scan, eight to a row, that overlap and grow to the upper left."""
    row, col = divmod(frame, 8)
    return -20 * row, -25 * (col if row % 2 == 0 else 7 - col)


def pictures(seed: int, n: int) -> Pixels:
    """Frames of noise."""
    return {frame: picture(1000 * seed + frame) for frame in range(n)}


def assert_holds(
    folder: Path, sent: Pixels, corners: Mapping[int, tuple[int, int]] | None = None, *, blended: Pixels | None = None
) -> None:
    """A run's journal has exactly these frames, its store these places, and the tiles are the reference's.

    Parameters
    ----------
    sent : dict
        Pixels by frame number, as the camera gave them.
    corners : mapping, optional
        Where they belong; the serpentine's places if it is left out.
    blended : dict, optional
        What is to be blended of them, if that is something else: calibrated frames.
    """
    places = {frame: serpentine(frame) for frame in sent} if corners is None else dict(corners)
    kept = journalled_frames(folder)
    assert sorted(kept) == sorted(sent)
    for frame, pixels in sent.items():
        np.testing.assert_array_equal(kept[frame], pixels)
    assert stored_corners(folder) == places
    assert_same(stored_mosaic(folder), reference_mosaic(folder, blended or sent, places))


def stored_corners(folder: Path) -> Corners:
    """Where each frame lies, by the store."""
    with SqliteReader(folder) as reader:
        rows = [row.placement for row in reader.placements()]
    assert len({row.frame for row in rows}) == len(rows)
    return {row.frame: (row.row, row.col) for row in rows}


def numbers(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of frames that came, or did not."""
    names = ("expected", "received", "missing", "duplicate", "resent", "malformed", "rejected", "late", "n_unplaced")
    return {name: report[name] for name in names}


def exactly(n: int, **others: Any) -> dict[str, Any]:
    """What `numbers` gives when all went well, but for what is named."""
    fine: dict[str, Any] = dict.fromkeys(("duplicate", "resent", "malformed", "late", "n_unplaced"), 0)
    return {"expected": n, "received": n, "missing": [], "rejected": {}} | fine | others


@contextmanager
def endpoints() -> Iterator[dict[str, str]]:
    """Endpoints that a daemon finds again when it is started anew."""
    # Not below pytest's own folder: the path of an ipc socket may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="tilecast-") as folder:
        yield {name: f"ipc://{folder}/{name}" for name in ("ingest.ack", "ingest.pull", "notify", "query")}


def tilecast(*arguments: str, store: Path, code: int = 0) -> str:
    """Run a command as a person would; gives what it says on standard output."""
    done = shared().run(*arguments, "--set", f"store.path={store}")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def info(run: str, store: Path) -> dict[str, Any]:
    """What `tilecast info` says of a run."""
    found: dict[str, Any] = json.loads(tilecast("info", run, "--json", store=store))
    return found
