"""The mosaic as a whole: after every flush it equals the reference from scratch, values and coverage, bit for bit."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reference import mosaic_reference
from reference.live_mosaic import AMPLE, TINY, LiveMosaic, noise, parents_of, placed
from reference.scans import SCANS, Corner, scattered, serpentine, shuffled
from tilecast import kernels, pyramid, reduction
from tilecast.blending import BLEND_MODES
from tilecast.geometry import Placement, PlaneKey, Rect, TileKey
from tilecast.pyramid import Batch, Pyramid, PyramidSettings, RenderedTile
from tilecast.testing.memory_sources import MemorySources

DTYPES = ("|u1", "<u2", "<f4")
#: For tiles of 16 pixels of u2: everything, a few tiles, nothing.
BUDGETS = {"ample": AMPLE, "small": 20_000, "tiny": TINY}


def run(mosaic: LiveMosaic, shape: Corner, corners: list[Corner], dtype: str = "<u2") -> None:
    """Add frame after frame, and compare after each."""
    for i, (row, col) in enumerate(corners):
        mosaic.add(placed(i, row, col, shape), noise(i, shape, dtype))
        mosaic.flush()
        mosaic.check()


class TestAgainstTheReference:
    @pytest.mark.parametrize("budget", BUDGETS)
    @pytest.mark.parametrize("scan", SCANS)
    def test_every_way_the_stage_can_go(self, scan: str, budget: str) -> None:
        shape, corners = SCANS[scan]
        run(LiveMosaic(budget_bytes=BUDGETS[budget]), shape, corners)

    @pytest.mark.parametrize("budget", ["ample", "tiny"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mode", BLEND_MODES)
    def test_every_mode_and_pixel_type(self, mode: str, dtype: str, budget: str) -> None:
        shape, corners = SCANS["scattered"]
        run(LiveMosaic(dtype, mode, budget_bytes=BUDGETS[budget]), shape, corners, dtype)

    @pytest.mark.parametrize("scan", SCANS)
    def test_floats_wherever_the_stage_goes(self, scan: str) -> None:
        shape, corners = SCANS[scan]
        run(LiveMosaic("<f4", budget_bytes=BUDGETS["small"]), shape, corners, "<f4")

    @pytest.mark.parametrize("scan", SCANS)
    def test_after_every_batch_each_upper_tile_is_the_reduction_of_its_children(self, scan: str) -> None:
        shape, corners = SCANS[scan]
        mosaic = LiveMosaic(tile_size=8)
        for i, (row, col) in enumerate(corners):
            mosaic.add(placed(i, row, col, shape), noise(i, shape))
            mosaic.flush()
            tiles = mosaic.tiles()
            upper = {address: tile for address, tile in tiles.items() if address[1][0] > 0}
            assert not mosaic_reference.differences(upper, parents_of(tiles))
            children = {(plane, TileKey(*key)) for plane, key in tiles}
            top = mosaic.pyramid.levels - 1
            assert all((plane, key.parent()) in children for plane, key in children if key.level < top)

    def test_two_frames_to_the_left_of_each_other(self) -> None:
        """Frames at x = 192 and then x = 64 with 64-pixel tiles, where PYME ends with two stale tiles."""
        for shape in ((64, 64), (64, 100), (200, 128)):
            mosaic = LiveMosaic(tile_size=64)
            run(mosaic, shape, [(0, 192), (0, 64)])

    @pytest.mark.parametrize("in_flight", [1, 3])
    def test_many_frames_in_a_batch_and_many_batches_on_their_way(self, in_flight: int) -> None:
        shape, corners = SCANS["revisits"]
        mosaic = LiveMosaic(budget_bytes=TINY)
        for i, (row, col) in enumerate(corners):
            mosaic.add(placed(i, row, col, shape), noise(i, shape))
            if i % 2:
                mosaic.flush(commit=i % (2 * in_flight) == 1)
                mosaic.check()

    def test_planes_in_t_c_and_z_share_their_levels(self) -> None:
        shape = (20, 20)
        planes = [PlaneKey(0, 0, 0), PlaneKey(0, 1, 0), PlaneKey(3, 0, 2)]
        mosaic = LiveMosaic(budget_bytes=BUDGETS["small"])
        for i, (row, col) in enumerate(scattered(24, 60, seed=9)):
            # The last plane stays where it was while the others grow, and must get their levels all the same.
            plane = planes[i % 3] if i < 6 else planes[i % 2]
            mosaic.add(placed(i, row * (1 + i // 8), col, shape, plane=plane), noise(i, shape))
            mosaic.flush()
            mosaic.check()
        assert mosaic.pyramid.levels >= 3
        top = mosaic.pyramid.levels - 1
        assert {plane for plane, key in mosaic.tiles() if key[0] == top} == {tuple(plane) for plane in planes}

    def test_views_of_one_frame_are_placed_each_on_its_own(self) -> None:
        mosaic = LiveMosaic(mode="nearest")
        for i, view in itertools.product(range(4), range(2)):
            each = placed(i, 7 * i, 11 * view, (20, 20), view=view, index=i)
            mosaic.add(each, noise(2 * i + view, (20, 20)))
            mosaic.flush()
            mosaic.check()

    def test_frames_of_several_sizes(self) -> None:
        mosaic = LiveMosaic(budget_bytes=BUDGETS["small"])
        for i, (row, col) in enumerate(scattered(14, 30, seed=3)):
            shape = 3 + 5 * (i % 7), 40 - 5 * (i % 6)
            mosaic.add(placed(i, row, col, shape), noise(i, shape))
            mosaic.flush()
            mosaic.check()

    @pytest.mark.parametrize("step", [(72, 88), (64, 80), (59, 83)])
    def test_frames_of_many_tiles_when_nothing_stays_in_memory(self, step: tuple[int, int]) -> None:
        """Which upper tiles there are is then told by the frames around; next to, at and over the borders of tiles."""
        mosaic = LiveMosaic(budget_bytes=TINY)
        corners = [(row * step[0], (col if row % 2 else 3 - col) * step[1]) for row in range(3) for col in range(4)]
        run(mosaic, (64, 80), [*corners, (step[0] // 2, step[1] // 2), corners[0]])

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mode", BLEND_MODES)
    def test_a_stage_parked_under_a_running_camera(self, mode: str, dtype: str) -> None:
        """Two places side by side, visited 700 times, through the promotion of the sums at 258 visits."""
        shape = (10, 9)
        mosaic = LiveMosaic(dtype, mode, tile_size=8)
        for i in range(700):
            pixels = noise(i, shape, dtype)
            if dtype != "<f4":
                pixels |= pixels.dtype.type(np.iinfo(dtype).max // 16 * 15)  # bright, so that the sums are as large
            mosaic.add(placed(i, 3 * (i % 2), -2, shape), pixels)
            mosaic.flush()
            if i in (256, 257, 258, 513, 514, 515, 516, 517, 699):
                mosaic.check()

    def test_promotion_after_eviction_is_the_same(self) -> None:
        """A tile with 600 visits is rebuilt from its frames, and so promoted again, for every further one."""
        mosaic = LiveMosaic(tile_size=8)
        for i in range(600):
            mosaic.add(placed(i, 0, 0, (8, 8)), noise(i, (8, 8)))
        mosaic.flush()
        mosaic.crash()
        for i in range(600, 603):
            mosaic.add(placed(i, 0, 0, (8, 8)), noise(i, (8, 8)))
            mosaic.flush()
            mosaic.check()
        assert mosaic.pyramid.stats().rebuilds == 1


class TestPixels:
    @pytest.mark.parametrize("mode", BLEND_MODES)
    def test_a_pixel_covered_once_is_the_frames(self, mode: str) -> None:
        shape = (40, 40)
        mosaic = LiveMosaic(mode=mode, tile_size=32)
        corners = serpentine(2, 3, (36, 36), (-11, 5))
        once = np.zeros((120, 160), np.int64)
        for i, (row, col) in enumerate(corners):
            mosaic.add(placed(i, row, col, shape), noise(i, shape))
            once[row + 32 : row + 72, col : col + 40] += 1
        mosaic.flush()
        tiles = mosaic.tiles()
        seen = 0
        for i, (row, col) in enumerate(corners):
            frame = noise(i, shape)
            for r, c in itertools.product(range(40), range(40)):
                if once[row + 32 + r, col + c] == 1:
                    key = (0, (row + r) // 32, (col + c) // 32)
                    assert tiles[(0, 0, 0), key][0][(row + r) % 32, (col + c) % 32] == frame[r, c]
                    seen += 1
        assert seen > 6000

    @pytest.mark.parametrize(("dtype", "value"), [("|u1", 255), ("|u1", 1), ("<u2", 65535), ("<f4", 0.1)])
    def test_a_constant_field_is_constant_to_its_edge_at_every_level(self, dtype: str, value: float) -> None:
        shape = (23, 31)
        mosaic = LiveMosaic(dtype, tile_size=8)
        for i, (row, col) in enumerate(serpentine(5, 5, (20, 27), (-33, 14))):
            mosaic.add(placed(i, row, col, shape), np.full(shape, value, dtype))
        mosaic.flush()
        assert mosaic.pyramid.levels >= 4
        for pixels, covered in mosaic.tiles().values():
            assert (pixels[covered] == np.dtype(dtype).type(value)).all()
            if dtype != "<f4":
                assert not pixels[~covered].any()
            else:
                assert np.isnan(pixels[~covered]).all()

    @pytest.mark.parametrize("dtype", ["|u1", "<u2"])
    def test_a_dim_field_does_not_drift_over_eight_levels(self, dtype: str) -> None:
        rng = np.random.default_rng(7)
        mosaic = LiveMosaic(dtype, tile_size=32)
        for i in range(8):
            field = rng.poisson(3, (2048, 1024)).astype(dtype)
            mosaic.add(placed(i, 2048 * i, 0, field.shape), field)
        batch = mosaic.flush()
        assert batch is not None
        assert batch.levels >= 9
        means = []
        for level in range(9):
            tiles = [tile for (_, key), tile in batch.tiles.items() if key.level == level]
            total = sum(int(tile.pixels.sum(dtype=np.int64)) for tile in tiles)
            covered = sum(tile.pixels.size if tile.coverage is None else int(tile.coverage.sum()) for tile in tiles)
            means.append(total / covered)
        assert max(abs(mean - means[0]) for mean in means) < 0.05

    def test_what_is_not_covered_has_no_part_in_a_mean(self) -> None:
        mosaic = LiveMosaic(tile_size=8)
        mosaic.add(placed(0, 3, 5, (1, 40)), np.full((1, 40), 1000, np.uint16))
        mosaic.flush()
        assert {int(value) for pixels, covered in mosaic.tiles().values() for value in pixels[covered]} == {1000}


class TestOrder:
    @pytest.mark.parametrize("budget", ["ample", "tiny"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mode", BLEND_MODES)
    def test_a_frame_placed_late_takes_its_place(self, mode: str, dtype: str, budget: str) -> None:
        """Every third frame comes only at the end, as if its stage bracket had been missing."""
        shape = (18, 18)
        mosaic = LiveMosaic(dtype, mode, budget_bytes=BUDGETS[budget])
        places = list(enumerate(serpentine(3, 4, (11, 12))))
        for i, (row, col) in [*(p for p in places if p[0] % 3), *(p for p in places if not p[0] % 3)]:
            mosaic.add(placed(i, row, col, shape), noise(i, shape, dtype))
            mosaic.flush()
            mosaic.check()

    @pytest.mark.parametrize("mode", ["feather", "mean", "max", "min", "nearest"])
    def test_integer_frames_may_come_in_any_order(self, mode: str) -> None:
        shape = (18, 18)
        places = list(enumerate(serpentine(3, 4, (11, 12))))
        results = []
        for seed in range(3):
            mosaic = LiveMosaic(mode=mode)
            for i, (row, col) in places if seed == 0 else shuffled(places, seed):  # type: ignore[arg-type]
                mosaic.add(placed(i, row, col, shape), noise(i, shape))
            mosaic.flush()
            results.append(
                {address: (pixels.tobytes(), mask.tobytes()) for address, (pixels, mask) in mosaic.tiles().items()}
            )
        assert results[0] == results[1] == results[2]


class TestBatches:
    def test_nothing_new_is_no_batch(self) -> None:
        mosaic = LiveMosaic()
        assert mosaic.flush() is None
        mosaic.add(placed(0, 0, 0, (4, 4)), noise(0, (4, 4)))
        assert mosaic.flush() is not None
        assert mosaic.flush() is None

    def test_a_batch_says_what_changed_and_no_more(self) -> None:
        mosaic = LiveMosaic()
        first = placed(0, 0, 0, (16, 16))
        mosaic.add(first, noise(0, (16, 16)))
        batch = mosaic.flush()
        assert batch is not None
        assert (batch.number, batch.placements, batch.levels) == (1, (first,), 1)
        assert batch.bboxes == {PlaneKey(): Rect(0, 0, 16, 16)}
        assert batch.gone == ()
        assert batch.nbytes == 16 * 16 * 2
        for i, (row, col) in enumerate(serpentine(4, 4, (16, 16)), start=1):
            mosaic.add(placed(i, row, col, (16, 16)), noise(i, (16, 16)))
        mosaic.flush()
        mosaic.add(placed(50, 17, 17, (3, 3)), noise(50, (3, 3)))
        batch = mosaic.flush()
        assert batch is not None
        assert batch.number == 3
        assert batch.bboxes == {}
        assert set(batch.tiles) == {(PlaneKey(), TileKey(0, 1, 1)), (PlaneKey(), TileKey(1, 0, 0))}

    def test_what_the_next_batch_holds_is_told_before(self) -> None:
        """Exactly, where no tile is covered wholly: tiles of all levels, each once, with the levels there will be."""
        mosaic = LiveMosaic()
        assert mosaic.pyramid.pending_nbytes == 0
        corners = [(0, 0), (3, 3), (70, 90), (-130, 14), (71, 91), (8, 9)]
        for i, (row, col) in enumerate(corners):
            mosaic.add(placed(i, row, col, (5, 5)), noise(i, (5, 5)))
            if i < 2 or i > 4:
                tiles = {0: 1, 1: 1, 5: 1 + 4}[i]  # on its own; in the same tile again; with the four above it
                assert mosaic.pyramid.pending_nbytes == tiles * 16 * 16 * 3
            if i >= 3:
                pending_nbytes = mosaic.pyramid.pending_nbytes
                batch = mosaic.flush()
                assert batch is not None
                assert batch.nbytes == pending_nbytes == len(batch.tiles) * 16 * 16 * 3
                assert batch.levels == 5
        assert mosaic.pyramid.pending_nbytes == 0

    def test_a_full_tile_has_no_mask(self) -> None:
        mosaic = LiveMosaic()
        for i, (row, col) in enumerate(serpentine(3, 3, (20, 20))):
            mosaic.add(placed(i, row, col, (22, 22)), noise(i, (22, 22)))
            mosaic.flush()
        whole = [address for address, tile in mosaic.sources.tiles.items() if tile.coverage is None]
        assert len([key for _, key in whole if key.level == 0]) == 9  # 62 × 62 pixels from (0, 0)
        assert [key for _, key in whole if key.level == 1] == [TileKey(1, 0, 0)]

    def test_a_leap_reads_few_tiles(self) -> None:
        """Levels grow by ten at once: of the old top level there are four tiles, however far the new frame lies."""
        mosaic = LiveMosaic()
        run(mosaic, (20, 20), [(0, 0)])
        reads = mosaic.sources.reads
        mosaic.add(placed(1, 2**25, -(2**25), (20, 20)), noise(1, (20, 20)))
        batch = mosaic.flush()
        assert batch is not None
        assert batch.levels == 22
        assert mosaic.sources.reads - reads < 100

    def test_lower_levels_come_first(self) -> None:
        mosaic = LiveMosaic()
        mosaic.add(placed(0, 0, 0, (100, 100)), noise(0, (100, 100)))
        batch = mosaic.flush()
        assert batch is not None
        levels = [key.level for _, key in batch.tiles]
        assert levels == sorted(levels)
        assert max(levels) == batch.levels - 1 == 2

    def test_what_was_handed_out_never_changes(self) -> None:
        for mode, dtype in itertools.product(BLEND_MODES, DTYPES):
            mosaic = LiveMosaic(dtype, mode)
            copies: list[tuple[RenderedTile, bytes, bytes]] = []
            for i, (row, col) in enumerate(scattered(12, 25, seed=4)):
                mosaic.add(placed(i, row, col, (12, 19)), noise(i, (12, 19), dtype))
                batch = mosaic.flush(commit=i % 3 == 0)
                assert batch is not None
                for tile in batch.tiles.values():
                    assert not tile.pixels.flags.writeable
                    assert tile.coverage is None or not tile.coverage.flags.writeable
                    mask = b"" if tile.coverage is None else tile.coverage.tobytes()
                    copies.append((tile, tile.pixels.tobytes(), mask))
            for tile, pixels, mask in copies:
                assert tile.pixels.tobytes() == pixels
                assert tile.coverage is None or tile.coverage.tobytes() == mask

    def test_a_batch_that_was_not_made_cannot_be_committed(self) -> None:
        mosaic = LiveMosaic()
        with pytest.raises(ValueError, match="has not been made"):
            mosaic.pyramid.committed(1)

    def test_a_later_commit_includes_the_earlier_ones(self) -> None:
        mosaic = LiveMosaic(budget_bytes=TINY)
        for i in range(3):
            mosaic.add(placed(i, 5 * i, 0, (16, 16)), noise(i, (16, 16)))
            mosaic.flush(commit=False)
        assert mosaic.pyramid.stats().pinned_bytes > 0
        for batch in mosaic.in_flight:
            mosaic.sources.commit(batch)
        mosaic.pyramid.committed(3)
        assert mosaic.pyramid.stats().pinned_bytes == 0


class TestAgain:
    """A frame that comes twice."""

    @pytest.mark.parametrize("commit", [False, True])
    def test_it_is_blended_once(self, commit: bool) -> None:
        mosaic = LiveMosaic()
        first = placed(0, 0, 0, (20, 20))
        assert mosaic.add(first, noise(0, (20, 20)))
        mosaic.flush(commit=commit)
        assert not mosaic.pyramid.add(first, noise(1, (20, 20)))
        assert not mosaic.pyramid.add(placed(0, 500, 500, (20, 20)), noise(1, (20, 20)))
        assert mosaic.flush(commit=True) is None
        mosaic.check()

    def test_it_is_known_after_a_crash(self) -> None:
        mosaic = LiveMosaic()
        mosaic.add(placed(0, 0, 0, (20, 20)), noise(0, (20, 20)))
        mosaic.flush()
        mosaic.crash()
        assert not mosaic.pyramid.add(placed(0, 0, 0, (20, 20)), noise(0, (20, 20)))


class TestMoves:
    def test_a_frame_comes_next_to_where_another_has_just_left(self) -> None:
        """The tiles above the place that was left are gone, though no frame tells of them any more."""
        mosaic = LiveMosaic(budget_bytes=TINY)
        shape = (64, 64)
        for i, (row, col) in enumerate([(0, 0), (400, 400), (0, 64)]):
            mosaic.add(placed(i, row, col, shape), noise(i, shape))
            mosaic.flush()
        mosaic.move(2, 0, row=300, col=300)
        mosaic.add(placed(3, 64, 64, shape), noise(3, shape))
        mosaic.flush()
        mosaic.check()

    @pytest.mark.parametrize("budget", ["ample", "small"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mode", BLEND_MODES)
    def test_frames_that_registration_moves(self, mode: str, dtype: str, budget: str) -> None:
        shape = (18, 18)
        mosaic = LiveMosaic(dtype, mode, budget_bytes=BUDGETS[budget])
        run(mosaic, shape, serpentine(3, 3, (14, 15)), dtype)
        for i, (row, col) in enumerate(scattered(9, 40, seed=6)):
            there = mosaic.placements[i, 0]
            mosaic.move(i, 0, row=there.row + row % 7 - 3, col=there.col + col % 7 - 3)  # as registration does
            mosaic.flush(commit=i % 2 == 0)
            mosaic.check()
            mosaic.move(i, 0, row=row, col=col)  # as nothing should
            mosaic.flush(commit=i % 3 == 0)
            mosaic.check()
        mosaic.commit()
        mosaic.check()

    def test_tiles_that_nothing_covers_any_more_are_gone(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (16, 16), serpentine(1, 9, (16, 16)))
        mosaic.move(8, 0, row=0, col=0)
        batch = mosaic.flush()
        assert batch is not None
        assert (PlaneKey(), TileKey(0, 0, 8)) in batch.gone
        assert (PlaneKey(), TileKey(1, 0, 4)) in batch.gone
        assert not set(batch.gone) & set(batch.tiles)
        mosaic.check()
        mosaic.move(8, 0, row=0, col=8 * 16)
        mosaic.flush()
        mosaic.check()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_gone_and_back_while_nothing_is_committed(self, dtype: str) -> None:
        mosaic = LiveMosaic(dtype)
        run(mosaic, (16, 16), serpentine(1, 9, (16, 16)), dtype)
        for col in (0, 128, 40, 128, 200):
            mosaic.move(8, 0, row=0, col=col)
            mosaic.flush(commit=False)
            mosaic.check()
        mosaic.commit()
        mosaic.check()

    def test_a_frame_moved_before_its_first_flush_leaves_nothing(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (16, 16), [(0, 0)])
        mosaic.add(placed(1, 0, 160, (16, 16)), noise(1, (16, 16)))
        mosaic.move(1, 0, row=0, col=16)
        batch = mosaic.flush()
        assert batch is not None
        assert batch.gone == ()
        assert [each.col for each in batch.placements] == [16]
        assert (PlaneKey(), TileKey(0, 0, 10)) not in batch.tiles

    def test_to_another_plane(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (20, 20), serpentine(2, 2, (15, 15)))
        mosaic.move(3, 0, plane=PlaneKey(0, 1, 0))
        mosaic.flush()
        mosaic.check()

    def test_floats_without_a_finite_pixel_come_and_go(self) -> None:
        mosaic = LiveMosaic("<f4", budget_bytes=TINY)
        mosaic.add(placed(0, 0, 0, (16, 16)), np.full((16, 16), np.nan, np.float32))
        batch = mosaic.flush()
        assert batch is not None
        assert (batch.tiles, batch.gone) == ({}, ())
        mosaic.add(placed(1, 0, 4, (16, 16)), noise(1, (16, 16), "<f4"))
        mosaic.flush()
        mosaic.check()
        mosaic.move(1, 0, row=100, col=100)
        mosaic.flush()
        mosaic.check()
        mosaic.move(0, 0, row=30, col=30)
        batch = mosaic.flush()
        assert batch is not None
        assert batch.gone == ()
        mosaic.check()

    def test_only_a_frame_that_lies_there_can_be_moved(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (16, 16), [(0, 0), (0, 20)])
        there = mosaic.placements[1, 0]
        with pytest.raises(ValueError, match="does not lie at"):
            mosaic.pyramid.move(placed(1, 5, 5, (16, 16)), placed(1, 9, 9, (16, 16)))
        with pytest.raises(ValueError, match="a move keeps"):
            mosaic.pyramid.move(there, placed(0, 9, 9, (16, 16)))
        mosaic.check()


class TestCrash:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("mode", BLEND_MODES)
    def test_a_fresh_process_goes_on_where_the_store_is(self, mode: str, dtype: str) -> None:
        shape, corners = SCANS["scattered"]
        mosaic = LiveMosaic(dtype, mode)
        for i, (row, col) in enumerate(corners):
            mosaic.add(placed(i, row, col, shape), noise(i, shape, dtype))
            if i % 2 == 0:
                mosaic.flush(commit=i % 4 == 0)
            if i % 5 == 3:
                mosaic.crash()
                mosaic.flush()
                mosaic.check()
        mosaic.crash()
        mosaic.flush()
        mosaic.check()

    def test_a_rebuild_in_journal_order_makes_the_same_tiles(self) -> None:
        shape, corners = SCANS["random"]
        for mode, dtype in itertools.product(BLEND_MODES, DTYPES):
            mosaic = LiveMosaic(dtype, mode)
            for i, (row, col) in enumerate(corners):
                mosaic.add(placed(i, row, col, shape, index=len(corners) - i), noise(i, shape, dtype))
                mosaic.flush()
            rebuilt = LiveMosaic(dtype, mode)
            for each in sorted(mosaic.placements.values(), key=lambda each: each.order):
                rebuilt.add(each, mosaic.sources.frames[each.id])
            rebuilt.flush()
            assert not mosaic_reference.differences(rebuilt.tiles(), mosaic.tiles())

    def test_levels_that_grow_after_a_restart_have_all_tops(self) -> None:
        mosaic = LiveMosaic()
        for c in range(3):
            mosaic.add(placed(c, 0, 0, (10, 10), plane=PlaneKey(0, c, 0)), noise(c, (10, 10)))
        mosaic.flush()
        mosaic.crash()
        mosaic.add(placed(3, 300, -300, (10, 10)), noise(3, (10, 10)))
        mosaic.flush()
        mosaic.check()


class TestMemory:
    def test_the_budget_holds_once_everything_is_committed(self) -> None:
        for mode, dtype in itertools.product(BLEND_MODES, DTYPES):
            mosaic = LiveMosaic(dtype, mode, budget_bytes=100_000)
            for i, (row, col) in enumerate(serpentine(8, 8, (20, 20))):
                mosaic.add(placed(i, row, col, (24, 24)), noise(i, (24, 24), dtype))
                stats = mosaic.pyramid.stats()
                assert stats.nbytes <= 100_000 + stats.pinned_bytes
                mosaic.flush()
                assert mosaic.pyramid.stats().nbytes <= 100_000
                assert mosaic.pyramid.stats().pinned_bytes == 0
            assert mosaic.pyramid.stats().evictions > 0
            mosaic.check()

    def test_what_the_next_row_will_touch_stays_in_memory(self) -> None:
        """Of a row of frames: what is inside it, and above that, goes first; else each frame waits for the disk."""
        outside, shape, step, columns = MemorySources(), (256, 256), 230, 25
        settings = PyramidSettings("<u2", "feather", tile_size=32, feather_px=10)
        pyramid = Pyramid(settings, budget_bytes=4 << 20, placements=outside, frames=outside, tiles=outside)
        pixels = noise(0, shape)
        of_the_first_row = 0
        for i in range(3 * columns):
            row, col = divmod(i, columns)
            pyramid.add(placed(i, step * row, step * (col if row % 2 == 0 else columns - 1 - col), shape), pixels)
            batch = pyramid.flush()
            assert batch is not None
            outside.commit(batch)
            pyramid.committed(batch.number)
            if i == columns:
                of_the_first_row = outside.reads
        assert pyramid.stats().evictions > 0
        assert outside.reads - of_the_first_row < 2 * columns * 2  # it was seven for each frame

    def test_what_is_counted_is_what_is_held(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (24, 24), serpentine(3, 3, (20, 20)))
        stats = mosaic.pyramid.stats()
        tiles = mosaic.pyramid._tiles
        arrays = 0
        for tile in tiles.values():
            assert tile.pixels is not None
            arrays += tile.pixels.nbytes
            arrays += 0 if tile.mask is None else tile.mask.nbytes
            arrays += 0 if tile.state is None else tile.state.nbytes
        assert stats.nbytes == arrays + 1024 * len(tiles) + 24 * 24  # and the weights of one shape of frame
        mosaic.pyramid.budget_bytes = 0
        assert mosaic.pyramid.stats().nbytes == 24 * 24

    @pytest.mark.parametrize("shape", [(16, 16), (40, 40), (16, 32)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_frames_are_not_kept(self, dtype: str, shape: Corner) -> None:
        mosaic = LiveMosaic(dtype)
        kept = []
        for i in range(3):
            frame = noise(i, shape, dtype)
            kept.append(weakref.ref(frame))
            mosaic.pyramid.add(placed(i, 0, 0, shape), frame)
            del frame
        gc.collect()
        assert [ref() for ref in kept] == [None] * 3

    def test_neither_memory_nor_work_grows_with_the_mosaic(self) -> None:
        """What frame 1,000 asks of the outside, and what is held then, is what it was for frame 100."""
        mosaic = LiveMosaic(tile_size=8, budget_bytes=60_000)
        corners = serpentine(100, 10, (10, 10))
        asked, held = [], []
        for i, (row, col) in enumerate(corners):
            before = (mosaic.sources.queries, mosaic.sources.loads, mosaic.sources.reads)
            mosaic.add(placed(i, row, col, (12, 12)), noise(i, (12, 12)))
            batch = mosaic.flush()
            assert batch is not None
            after = (mosaic.sources.queries, mosaic.sources.loads, mosaic.sources.reads)
            asked.append(
                [b - a for a, b in zip(before, after, strict=True)] + [sum(key.level == 0 for _, key in batch.tiles)]
            )
            held.append(mosaic.pyramid.stats().nbytes)
        early, late = np.array(asked[100:300]), np.array(asked[800:1000])
        assert (late.max(axis=0) <= early.max(axis=0) + 2).all()  # a level more is a read or two
        assert late[:, 0].max() <= 1  # one query per frame, not per tile
        assert max(held) <= 60_000
        assert len(mosaic.pyramid._uncommitted) == len(mosaic.pyramid._batches) == 0
        mosaic.check()

    def test_a_tile_under_one_frame_needs_no_frame_again(self) -> None:
        """With nothing in memory, the neighbour's tiles come from the store; frames are loaded only where two meet."""
        mosaic = LiveMosaic(budget_bytes=TINY)
        run(mosaic, (20, 20), [(0, 0), (0, 16)])
        assert mosaic.sources.loads == 0
        run_loads = mosaic.sources.loads
        mosaic.add(placed(2, 0, 60, (20, 20)), noise(2, (20, 20)))  # touches neither
        mosaic.flush()
        assert mosaic.sources.loads == run_loads
        mosaic.add(placed(3, 8, 16, (4, 4)), noise(3, (4, 4)))  # in a tile under both
        mosaic.flush()
        assert mosaic.sources.loads == 2
        mosaic.check()

    def test_a_loaded_frame_serves_its_neighbours(self) -> None:
        mosaic = LiveMosaic()
        for i in range(2):
            mosaic.add(placed(i, i, i, (60, 60)), noise(i, (60, 60)))
        mosaic.flush()
        mosaic.crash()
        for i in range(2, 6):
            mosaic.add(placed(i, 16 * (i - 2), 0, (16, 16)), noise(i, (16, 16)))
            mosaic.flush()
            mosaic.check()
        assert mosaic.sources.loads == 2

    def test_the_state_of_a_tile_on_its_way_can_be_dropped(self) -> None:
        mosaic = LiveMosaic(budget_bytes=TINY)
        for i in range(6):
            mosaic.add(placed(i, i, 2 * i, (16, 16)), noise(i, (16, 16)))
            mosaic.flush(commit=False)
            mosaic.check()
        assert mosaic.pyramid.stats().rebuilds > 0
        mosaic.commit()
        mosaic.check()

    def test_coming_back_is_a_hit(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (16, 16), [(0, 0)])
        before = mosaic.pyramid.stats()
        mosaic.add(placed(1, 0, 0, (16, 16)), noise(1, (16, 16)))
        after = mosaic.pyramid.stats()
        assert (after.hits - before.hits, after.misses - before.misses) == (1, 0)


class TestWhatMayCome:
    @pytest.mark.parametrize(
        "pixels",
        [
            np.zeros((4, 5), np.uint16),
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4), ">u2"),
            np.zeros((4, 4, 1), np.uint16),
            np.zeros((4, 8), np.uint16)[:, ::2],
        ],
    )
    def test_a_frame_that_does_not_fit_is_refused_and_nothing_happens(self, pixels: NDArray[Any]) -> None:
        mosaic = LiveMosaic()
        with pytest.raises(ValueError, match="frame 0 should be"):
            mosaic.pyramid.add(placed(0, 0, 0, (4, 4)), pixels)
        assert mosaic.flush() is None
        mosaic.add(placed(0, 0, 0, (4, 4)), noise(0, (4, 4)))
        mosaic.flush()
        mosaic.check()

    def test_a_frame_without_pixels_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one pixel"):
            LiveMosaic().pyramid.add(placed(0, 0, 0, (0, 4)), np.zeros((0, 4), np.uint16))

    def test_pixels_are_asked_for_if_not_given(self) -> None:
        mosaic = LiveMosaic()
        mosaic.add(placed(0, 3, 3, (20, 20)), noise(0, (20, 20)), give=False)
        mosaic.flush()
        mosaic.check()
        assert mosaic.pyramid.stats().frames_loaded == 1

    @pytest.mark.parametrize(
        "wrong",
        [{"dtype": "<u4"}, {"mode": "median"}, {"tile_size": 33}, {"tile_size": 0}, {"feather_px": 0}],
    )
    def test_settings_that_make_no_mosaic_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            PyramidSettings(**{"dtype": "<u2", **wrong})

    def test_after_a_failure_midway_nothing_more_is_done(self) -> None:
        class Torn(MemorySources):
            torn = False

            def load(self, placement: Placement) -> NDArray[Any]:
                if self.torn:
                    raise OSError("the journal is torn here")
                return super().load(placement)

        sources = Torn()
        mosaic = Pyramid(
            PyramidSettings("<u2", tile_size=16), budget_bytes=TINY, placements=sources, frames=sources, tiles=sources
        )
        for i in range(3):
            sources.frames[i, 0] = noise(i, (20, 20))
            if i < 2:
                mosaic.add(placed(i, i, i, (20, 20)), sources.frames[i, 0])
                batch = mosaic.flush()
                assert batch is not None
                sources.commit(batch)
                mosaic.committed(batch.number)
        sources.torn = True
        with pytest.raises(OSError, match="torn"):
            mosaic.add(placed(2, 4, 4, (20, 20)), sources.frames[2, 0])
        for call in (mosaic.flush, lambda: mosaic.add(placed(3, 0, 0, (20, 20)), sources.frames[2, 0])):
            with pytest.raises(RuntimeError, match="new Pyramid"):
                call()

    def test_a_stored_tile_of_another_size_is_refused(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (16, 16), [(0, 0)])
        mosaic.sources.tiles[PlaneKey(), TileKey(0, 0, 0)] = RenderedTile(np.zeros((8, 8), np.uint16), None)
        mosaic.crash()
        with pytest.raises(ValueError, match="16 pixels square"):
            mosaic.add(placed(1, 0, 0, (16, 16)), noise(1, (16, 16)))

    def test_stored_tiles_may_be_read_only(self) -> None:
        mosaic = LiveMosaic()
        run(mosaic, (20, 20), [(0, 0), (4, 30)])
        for address, tile in mosaic.sources.tiles.items():
            pixels = np.frombuffer(tile.pixels.tobytes(), np.uint16).reshape(16, 16)
            mosaic.sources.tiles[address] = RenderedTile(pixels, tile.coverage)
        mosaic.crash()
        before = len(kernels.reduce_full.signatures)  # type: ignore[attr-defined]
        mosaic.add(placed(2, -4, 10, (20, 20)), noise(2, (20, 20)))
        mosaic.flush()
        mosaic.check()
        assert len(kernels.reduce_full.signatures) == before  # type: ignore[attr-defined]


class TestPlantedBugs:
    """The reference must see each of these; a comparison that lets one pass proves nothing."""

    def problems(self, mosaic: LiveMosaic, scan: str = "scattered") -> list[str]:
        shape, corners = SCANS[scan]
        found: list[str] = []
        for i, (row, col) in enumerate(corners):
            mosaic.add(placed(i, row, col, shape), noise(i, shape))
            mosaic.flush()
            found += mosaic.problems()
        return found

    def test_without_a_bug_there_are_no_problems(self) -> None:
        assert self.problems(LiveMosaic()) == []

    def test_a_stale_parent(self) -> None:
        class StaleParent(Pyramid):
            """Forgets the parents of changed tiles of level 1 that have been reduced before."""

            def flush(self) -> Batch | None:
                batch = super().flush()
                if batch is not None:
                    for address in [a for a in batch.tiles if a[1].level == 2 and self._source.read(*a) is not None]:
                        del batch.tiles[address]
                return batch

        problems = self.problems(LiveMosaic(pyramid_class=StaleParent))
        assert problems
        assert all(", (2, " in problem for problem in problems)

    def test_a_wrong_tie(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = reduction.reduce_families

        def half_up(families: Sequence[reduction.Family], dtype: Any, tile_size: int) -> None:
            original(families, dtype, tile_size)
            for family in families:
                for child in family.children:
                    assert child.pixels is not None
                    if family.pixels is not None and child.mask is None:
                        wide = child.pixels.astype(np.int64)
                        part = reduction.quadrant(child.row_half, child.col_half, tile_size)
                        sums = wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2]
                        family.pixels[part] = (sums + 2) >> 2

        monkeypatch.setattr(pyramid.reduction, "reduce_families", half_up)
        problems = self.problems(LiveMosaic(), "tile by tile")
        assert problems
        assert not any(", (0, " in problem for problem in problems)

    def test_a_lost_mask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = reduction.reduce_families

        def maskless(families: Sequence[reduction.Family], dtype: Any, tile_size: int) -> None:
            for family in families:
                family.children = [dataclasses.replace(child, mask=None) for child in family.children]
            original(families, dtype, tile_size)

        monkeypatch.setattr(pyramid.reduction, "reduce_families", maskless)
        problems = self.problems(LiveMosaic())
        assert any("coverage" in problem for problem in problems)
        assert any("pixels differ" in problem for problem in problems)

    def test_a_placement_off_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = pyramid.blending.window_of

        def shifted(placement: Placement, key: TileKey, tile_size: int) -> Any:
            window = original(placement, key, tile_size)
            if placement.col < 0 and window.dcol > 0:  # as truncation instead of a floor would
                return window._replace(dcol=window.dcol - 1)
            return window

        monkeypatch.setattr(pyramid.blending, "window_of", shifted)
        assert self.problems(LiveMosaic())

    def test_float_sums_in_any_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sixth: without it, the tests of late frames would show nothing."""
        monkeypatch.setattr(pyramid.blending._FloatSum, "ordered", False)
        mosaic = LiveMosaic("<f4", "mean")
        for i in (1, 2, 0):
            mosaic.add(placed(i, i, i, (40, 40)), noise(i, (40, 40), "<f4"))
        mosaic.flush()
        assert mosaic.problems()

    def test_a_rounding_that_changes_on_promotion(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def truncating(
            total: NDArray[Any], weight: NDArray[Any], old: NDArray[Any], out: NDArray[Any], frame: NDArray[Any],
            weights: NDArray[Any], row0: int, row1: int, col0: int, col1: int, drow: int, dcol: int,
        ) -> None:  # fmt: skip
            out[...] = old
            part = slice(row0, row1), slice(col0, col1)
            there = slice(row0 + drow, row1 + drow), slice(col0 + dcol, col1 + dcol)
            total[part] += frame[there].astype(np.uint64) * weights[there]
            weight[part] += weights[there]
            out[part] = total[part] // weight[part]

        monkeypatch.setattr(kernels, "add_wide_sum", truncating)
        mosaic = LiveMosaic(tile_size=8)
        for i in range(258):
            mosaic.add(placed(i, 0, 0, (8, 8)), noise(i, (8, 8)))
            mosaic.flush()
            if i == 256:
                assert mosaic.problems() == []
        assert mosaic.problems()


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_pyramid_that_nobody_has_any_more_leaves_no_pixel_in_memory(budget: str) -> None:
    """At once, not when Python next looks for circles: a daemon would hold a whole budget for each run that ended."""
    outside = MemorySources()
    mosaic = Pyramid(
        PyramidSettings("<u2", "feather", 16),
        budget_bytes=BUDGETS[budget],
        placements=outside,
        frames=outside,
        tiles=outside,
    )
    gc.collect()
    gc.disable()
    try:
        for i, (row, col) in enumerate(serpentine(3, 3, (20, 25))):
            frame = placed(i, row, col, (24, 30))
            outside.frames[frame.id] = noise(i, (24, 30), "<u2")
            mosaic.add(frame, outside.frames[frame.id])
            batch = mosaic.flush()
            assert batch is not None
            outside.commit(batch)
            mosaic.committed(batch.number)
        del batch
        tiles = [weakref.ref(tile.pixels) for tile in mosaic._tiles.values() if tile.pixels is not None]
        held, outside = weakref.ref(mosaic), MemorySources()
        del mosaic
        assert held() is None
        assert [tile for tile in tiles if tile() is not None] == []
    finally:
        gc.enable()
