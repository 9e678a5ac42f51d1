"""Which tiles are expected not to be touched again."""

from __future__ import annotations

import numpy as np
import pytest

from reference.live_mosaic import LiveMosaic, noise, placed
from tilecast import surroundings
from tilecast.geometry import Rect, TileKey, tiles_in
from tilecast.surroundings import block, enclosed, reach

TILE = 64


def frame_at(row: int, col: int, size: int = 512) -> Rect:
    return Rect(row, col, row + size, col + size)


def found(frame: Rect, others: list[Rect]) -> dict[tuple[int, int], bool]:
    keys = list(tiles_in(frame, 0, TILE))
    return {
        (key.row, key.col): told for key, told in zip(keys, enclosed(frame, others, keys, TILE).tolist(), strict=True)
    }


def reference(frame: Rect, others: list[Rect], key: TileKey, margin: int) -> bool:
    """Pixel by pixel: is all covered that lies within `margin` of a tile?"""
    box = frame
    for other in others:
        box = box.union(other)
    pad = margin + TILE
    covered = np.zeros((box.height + 2 * pad, box.width + 2 * pad), bool)
    for rect in (frame, *others):
        covered[
            rect.row0 - box.row0 + pad : rect.row1 - box.row0 + pad,
            rect.col0 - box.col0 + pad : rect.col1 - box.col0 + pad,
        ] = True
    tile = key.rect(TILE)
    rows = slice(tile.row0 - box.row0 + pad - margin, tile.row1 - box.row0 + pad + margin)
    cols = slice(tile.col0 - box.col0 + pad - margin, tile.col1 - box.col0 + pad + margin)
    return bool(covered[rows, cols].all())


def test_a_lone_frame_encloses_its_inner_tiles() -> None:
    told = found(frame_at(0, 0), [])
    assert {key for key, is_enclosed in told.items() if not is_enclosed} == {
        (row, col) for row in range(8) for col in range(8) if row in (0, 7) or col in (0, 7)
    }


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_pixels_say(seed: int) -> None:
    """On a grid of whole cells, where nothing is rounded."""
    rng = np.random.default_rng(seed)
    frame = frame_at(4 * int(rng.integers(-99, 99)), 4 * int(rng.integers(-99, 99)))
    overlap = 4 * int(rng.integers(8, 40))
    step = 512 - overlap
    sides = [(-step, 0), (step, 0), (0, -step), (0, step), (-step, -step), (step, step), (-step, step), (step, -step)]
    chosen = [sides[i] for i in rng.choice(8, int(rng.integers(1, 9)), replace=False)]
    others = [frame_at(frame.row0 + row, frame.col0 + col) for row, col in chosen]
    for (row, col), told in found(frame, others).items():
        assert told == reference(frame, others, TileKey(0, row, col), overlap + 4)


def test_what_lies_at_the_open_side_of_a_row_is_not_enclosed() -> None:
    """The second frame of a row, with a row above: only what the next row and the next frame will touch is open."""
    above = [frame_at(-448, 0), frame_at(-448, 448), frame_at(-448, 896)]
    told = found(frame_at(0, 448), [frame_at(0, 0), *above])
    assert told[0, 7], "the seam to the frame before, under the row above"
    assert told[0, 10]
    assert not told[7, 10], "the lower edge"
    assert not told[3, 14], "the right edge"


def test_whoever_is_asked_for_is_in_reach() -> None:
    frame = Rect(10, -30, 40, 20)
    assert block(frame, TILE) == Rect(0, -64, 64, 64)
    assert reach(frame, TILE).contains(block(frame, TILE))
    assert reach(frame_at(0, 0), TILE) == Rect(-256, -256, 768, 768)


def test_no_tile_to_tell_of() -> None:
    assert enclosed(frame_at(0, 0), [], [], TILE).tolist() == []


def grid(mosaic: LiveMosaic, rows: int, cols: int) -> None:
    """A serpentine scan of 64² frames, 8 pixels of overlap, tiles of 16; committed frame by frame."""
    for i in range(rows * cols):
        row, col = divmod(i, cols)
        col = cols - 1 - col if row % 2 else col
        mosaic.add(placed(i, 56 * row, 56 * col, (64, 64)), noise(i, (64, 64)))
        mosaic.flush()
        mosaic.commit()


def test_the_open_side_of_a_scan_is_what_memory_is_kept_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No frame has to be read again, in half of the memory in which many must without that knowledge."""
    mosaic = LiveMosaic(tile_size=16, budget_bytes=230_000)
    grid(mosaic, 4, 10)
    assert mosaic.pyramid.stats().evictions > 500
    assert mosaic.pyramid.stats().frames_loaded == 0
    mosaic.check()

    monkeypatch.setattr(surroundings, "enclosed", lambda _frame, _others, keys, _size: np.zeros(len(keys), np.bool_))
    without = LiveMosaic(tile_size=16, budget_bytes=460_000)
    grid(without, 4, 10)
    assert without.pyramid.stats().frames_loaded > 0


def test_a_visit_that_was_not_expected_is_blended_all_the_same() -> None:
    mosaic = LiveMosaic(tile_size=16)
    grid(mosaic, 3, 3)
    mosaic.add(placed(9, 60, 50, (64, 64)), noise(9, (64, 64)))
    mosaic.flush()
    assert mosaic.pyramid.stats().rebuilds > 0, "tiles that had been given up had to be made anew"
    mosaic.check()
