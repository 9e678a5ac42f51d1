"""Placing frames, tiles and their parents, levels, and the canvas that viewers are shown."""

from __future__ import annotations

import math
import random

import pytest

from tilecast.geometry import (
    Canvas,
    Placement,
    PlaneKey,
    Rect,
    TileKey,
    canvas_for,
    extent_rect,
    level_count,
    place_centre,
    rect_at_level,
    tile_span,
    tiles_in,
    union_levels,
    union_of,
)

SQUARE = ((1.0, 0.0), (0.0, 1.0))


class TestPlacing:
    def test_a_position_is_that_of_the_centre(self) -> None:
        assert place_centre((0.0, 0.0), SQUARE, (100, 200)) == (-50, -100)

    def test_x_is_along_columns_and_y_along_rows(self) -> None:
        assert place_centre((1000.0, 10.0), ((2.0, 0.0), (0.0, 0.5)), (4, 4)) == (18, 498)

    def test_a_z_position_takes_no_part(self) -> None:
        assert place_centre((7.0, 9.0, 1e9), SQUARE, (2, 2)) == place_centre((7.0, 9.0), SQUARE, (2, 2))

    @pytest.mark.parametrize(
        ("affine", "expected"),
        [
            (((-1.0, 0.0), (0.0, 1.0)), (20, -10)),  # mirrored left to right
            (((1.0, 0.0), (0.0, -1.0)), (-20, 10)),  # y of the stage points up
            (((0.0, 1.0), (1.0, 0.0)), (10, 20)),  # axes swapped
            (((0.0, -1.0), (1.0, 0.0)), (-10, 20)),  # turned by a quarter
        ],
    )
    def test_the_affine_carries_the_stage_into_the_camera(
        self, affine: tuple[tuple[float, float], tuple[float, float]], expected: tuple[int, int]
    ) -> None:
        # The centre lies at stage (10, 20); a frame of no size is placed by its centre alone.
        assert place_centre((10.0, 20.0), affine, (0, 0)) == expected

    def test_a_feature_in_two_frames_meets_itself(self) -> None:
        """pos_um + affine · (dx, dy) of one feature, seen in two frames, must be one pixel of the mosaic."""
        angle = math.radians(3)
        px = 0.5
        affine = ((px * math.cos(angle), -px * math.sin(angle)), (px * math.sin(angle), px * math.cos(angle)))
        feature_um = (1234.5, -777.25)
        found = []
        for dx, dy in ((-40, 31), (55, -12)):
            pos_um = (
                feature_um[0] - affine[0][0] * dx - affine[0][1] * dy,
                feature_um[1] - affine[1][0] * dx - affine[1][1] * dy,
            )
            row, col = place_centre(pos_um, affine, (128, 256))
            found.append((row + 64 + dy, col + 128 + dx))
        assert abs(found[0][0] - found[1][0]) <= 1
        assert abs(found[0][1] - found[1][1]) <= 1

    @pytest.mark.parametrize("px_um", [0.65, 0.1, 1 / 3, 3.45 / 40])
    def test_what_a_publisher_multiplied_comes_back(self, px_um: float) -> None:
        rng = random.Random(px_um)
        for _ in range(500):
            shape = rng.randint(1, 3000), rng.randint(1, 3000)
            row, col = rng.randint(-(10**6), 10**6), rng.randint(-(10**6), 10**6)
            centre = (col + shape[1] / 2) * px_um, (row + shape[0] / 2) * px_um
            assert place_centre(centre, ((px_um, 0.0), (0.0, px_um)), shape) == (row, col)

    def test_half_pixels_round_up_towards_positive(self) -> None:
        assert place_centre((0.5, -0.5), SQUARE, (0, 0)) == (0, 1)
        assert place_centre((0.0, 0.0), SQUARE, (1, 3)) == (0, -1)

    @pytest.mark.parametrize("position", [(math.nan, 0.0), (0.0, math.inf), (2.0**31, 0.0), (0.0, -(2.0**31))])
    def test_a_place_that_is_no_place_is_refused(self, position: tuple[float, float]) -> None:
        with pytest.raises(ValueError, match="position"):
            place_centre(position, SQUARE, (4, 4))

    def test_an_overflow_is_refused(self) -> None:
        with pytest.raises(ValueError, match="beyond"):
            place_centre((1e308, 0.0), ((1e-308, 0.0), (0.0, 1.0)), (4, 4))

    @pytest.mark.parametrize("affine", [((0.0, 0.0), (0.0, 1.0)), ((1.0, 2.0), (2.0, 4.0))])
    def test_an_affine_without_inverse_is_refused(
        self, affine: tuple[tuple[float, float], tuple[float, float]]
    ) -> None:
        with pytest.raises(ValueError, match="inverted"):
            place_centre((1.0, 1.0), affine, (4, 4))

    def test_extent_is_whole_pixels_whatever_the_axes(self) -> None:
        swapped_and_flipped = ((0.0, -0.5), (0.5, 0.0))
        assert extent_rect(((0.0, 0.0), (100.0, 50.0)), ((0.5, 0.0), (0.0, 0.5))) == Rect(0, 0, 100, 200)
        assert extent_rect(((100.0, 50.0), (0.0, 0.0)), swapped_and_flipped) == Rect(-200, 0, 0, 100)


class TestRect:
    def test_union_ignores_the_empty(self) -> None:
        rect = Rect(5, 6, 7, 8)
        assert rect.union(Rect(0, 0, 0, 0)) == Rect(0, 0, 0, 0).union(rect) == rect
        assert rect.union(Rect(-1, 7, 6, 20)) == Rect(-1, 6, 7, 20)
        assert union_of([]).empty

    def test_edges_that_touch_do_not_meet(self) -> None:
        assert Rect(0, 0, 4, 4).intersect(Rect(0, 4, 4, 8)).empty
        assert not Rect(0, 0, 4, 5).intersect(Rect(0, 4, 4, 8)).empty

    def test_sizes(self) -> None:
        assert (Rect(1, 2, 4, 9).height, Rect(1, 2, 4, 9).width) == (3, 7)
        assert Rect(4, 4, 1, 1).height == 0
        assert Rect(0, 0, 2, 2).shifted(3, -1) == Rect(3, -1, 5, 1)

    def test_contains(self) -> None:
        assert Rect(0, 0, 4, 4).contains(Rect(0, 0, 4, 4))
        assert not Rect(0, 0, 4, 4).contains(Rect(0, 0, 4, 5))
        assert Rect(0, 0, 4, 4).contains(Rect(9, 9, 9, 9))


class TestTiles:
    def test_parents_of_negative_tiles(self) -> None:
        assert TileKey(0, -1, -2).parent() == TileKey(1, -1, -1)
        assert TileKey(3, -3, 3).parent() == TileKey(4, -2, 1)

    def test_children_know_their_parent(self) -> None:
        key = TileKey(2, -2, 5)
        assert all(child.parent() == key for child in key.children())
        assert len(set(key.children())) == 4
        with pytest.raises(ValueError, match="no children"):
            TileKey(0, 0, 0).children()

    def test_a_frame_on_the_border_does_not_touch_the_next_tile(self) -> None:
        assert list(tiles_in(Rect(0, -64, 64, 64), 0, 64)) == [TileKey(0, 0, -1), TileKey(0, 0, 0)]
        assert list(tiles_in(Rect(0, 0, 0, 0), 0, 64)) == []

    def test_levels_of_a_rect_agree_with_its_tiles(self) -> None:
        rng = random.Random(3)
        for _ in range(300):
            row, col = rng.randint(-5000, 5000), rng.randint(-5000, 5000)
            rect = Rect(row, col, row + rng.randint(1, 900), col + rng.randint(1, 900))
            for level in range(6):
                at_level = rect_at_level(rect, level)
                assert tile_span(rect, level, 16) == tile_span(at_level, 0, 16)
                assert {key.parent() for key in tiles_in(rect, level, 16)} == set(tiles_in(rect, level + 1, 16))

    def test_a_tile_knows_its_pixels(self) -> None:
        assert TileKey(3, -1, 2).rect(64) == Rect(-64, 128, 0, 192)


class TestLevels:
    @pytest.mark.parametrize(
        ("rect", "levels"),
        [
            (Rect(0, 0, 0, 0), 0),
            (Rect(0, 0, 1, 1), 1),
            (Rect(-1, -1, 1, 1), 1),  # four tiles around the origin
            (Rect(0, 0, 128, 128), 1),
            (Rect(0, 0, 129, 1), 2),
            (Rect(-65, 0, 64, 1), 2),
            (Rect(0, 0, 64 * 16, 1), 4),
        ],
    )
    def test_up_to_two_by_two_tiles(self, rect: Rect, levels: int) -> None:
        assert level_count(rect, 64) == levels

    def test_planes_share_their_levels(self) -> None:
        assert union_levels([Rect(0, 0, 64, 64), Rect(0, 640, 64, 704)], 64) == 4


class TestCanvas:
    def test_a_planned_extent_is_fixed_for_the_run(self) -> None:
        canvas = canvas_for(Rect(0, 0, 10, 10), 1, 64, extent=Rect(-10, 5, 500, 700))
        assert canvas == Canvas(Rect(-512, 0, 512, 1024), 4, 64, fixed=True)
        assert canvas.grown(Rect(-9999, 0, 1, 1)) is canvas
        assert not canvas.contains(Rect(-9999, 0, 1, 1))

    def test_without_a_plan_there_is_one_spare_level(self) -> None:
        bbox = Rect(0, 0, 200, 200)
        canvas = canvas_for(bbox, level_count(bbox, 64), 64)
        assert canvas == Canvas(Rect(0, 0, 256, 256), 3, 64, fixed=False)
        assert canvas.grown(Rect(0, 0, 256, 256)) is canvas
        grown = canvas.grown(Rect(-1, 0, 256, 256))
        assert grown is not canvas
        assert grown.contains(Rect(-1, 0, 256, 256))

    def test_floor_and_ceiling_of_every_level_agree(self) -> None:
        rng = random.Random(4)
        for _ in range(200):
            row, col = rng.randint(-9999, 9999), rng.randint(-9999, 9999)
            bbox = Rect(row, col, row + rng.randint(1, 4000), col + rng.randint(1, 4000))
            for extent in (None, bbox):
                canvas = canvas_for(bbox, level_count(bbox, 16), 16, extent)
                assert canvas.contains(bbox)
                for level in range(canvas.levels):
                    size = canvas.at_level(level)
                    assert size.height << level == canvas.rect.height
                    assert size.width << level == canvas.rect.width
                    assert size.row0 % 16 == size.col0 % 16 == 0
                with pytest.raises(ValueError, match="levels"):
                    canvas.at_level(canvas.levels)

    def test_nothing_has_no_canvas(self) -> None:
        with pytest.raises(ValueError, match="empty"):
            canvas_for(Rect(0, 0, 0, 0), 0, 64)


def test_a_placement_knows_its_pixels_and_its_order() -> None:
    placement = Placement(3, 1, PlaneKey(0, 2, 0), -4, 7, 10, 20, "joined", 5)
    assert placement.rect == Rect(-4, 7, 6, 27)
    assert (placement.id, placement.order) == ((3, 1), (5, 1))
