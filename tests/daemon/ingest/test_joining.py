"""Joining frames to a stage stream: rule by rule, the accuracy that is promised, and a slow joiner to compare with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.slow_joiner import Exposure, Sample, SlowJoiner
from tilecast.geometry import PlaneKey, place_centre
from tilecast.ingest import joining
from tilecast.ingest.joining import BracketStats, Joined, Joiner, PlacingRules, StageTrack, Unjoined

MS = 1_000_000


def image(frame: int, t_ms: float, **more: object) -> Unjoined:
    return Unjoined(frame=frame, image_index=frame, t_mid_ns=round(t_ms * MS), **more)  # type: ignore[arg-type]


def stage(joiner: Joiner, t_ms: float, x_um: float, y_um: float = 0.0, moving: bool | None = None) -> list[int]:
    return [joined.image.frame for joined in joiner.add_stage(round(t_ms * MS), (x_um, y_um), moving)]


def why(joiner: Joiner, frame: int, t_ms: float) -> str | None:
    return joiner.why(frame, round(t_ms * MS))


def test_a_position_is_interpolated_at_mid_exposure() -> None:
    joiner = Joiner(100)
    stage(joiner, 0, 10, 100)
    assert joiner.add_image(image(0, 5)) is None
    assert why(joiner, 0, 5) == joining.NO_LATER
    [joined] = joiner.add_stage(20 * MS, (14, 80))
    assert joined == Joined(image(0, 5), (11.0, 95.0), 20 * MS)
    assert why(joiner, 0, 5) is None
    assert joiner.add_image(image(1, 10)) == Joined(image(1, 10), (12.0, 90.0), 20 * MS)


def test_what_waits_comes_back_as_it_was_given() -> None:
    joiner = Joiner(100, allow_moving=True)
    given_images = [
        Unjoined(7, 3, 4 * MS, PlaneKey(1, 2, 3), None, 99),
        Unjoined(8, 4, 5 * MS, PlaneKey(0, 0, 2), True, 98),
        Unjoined(9, 5, 3 * MS, PlaneKey(5, 0, 0), False, 97),
    ]
    stage(joiner, 0, 0)
    for one in given_images:
        assert joiner.add_image(one) is None
    assert sorted((joined.image for joined in joiner.add_stage(9 * MS, (9, 0))), key=lambda i: i.frame) == given_images


def test_a_sample_exactly_at_mid_exposure_is_the_position_and_needs_no_other() -> None:
    joiner = Joiner(100)
    stage(joiner, 7, 3, 4)
    assert joiner.add_image(image(0, 7)) == Joined(image(0, 7), (3.0, 4.0), 0)
    assert joiner.add_image(image(1, 9)) is None
    assert stage(joiner, 9, 5) == [1]
    assert joiner.brackets.max_ns == 0


def test_a_bracket_of_just_the_maximal_width_places_and_a_wider_one_does_not() -> None:
    joiner = Joiner(20)
    stage(joiner, 0, 0)
    joiner.add_image(image(0, 5))
    joiner.add_image(image(1, 25))
    assert stage(joiner, 20, 2) == [0]
    assert joiner.add_stage(40 * MS + 1, (4, 0)) == []
    assert why(joiner, 1, 25) == joining.GAP
    assert joiner.n_waiting_for_later == 0


def test_a_sample_that_comes_late_closes_a_gap() -> None:
    joiner = Joiner(20)
    stage(joiner, 0, 0)
    for frame, t_ms in enumerate((5, 15, 25)):
        joiner.add_image(image(frame, t_ms))
    assert stage(joiner, 30, 30) == []
    assert joiner.unplaced() == {joining.GAP: [(0, 2)]}
    assert stage(joiner, 18, 18) == [0, 1, 2]
    assert joiner.unplaced() == {}


def test_samples_in_any_order_give_the_same_track() -> None:
    samples = [(t, float(t % 7)) for t in range(50)]
    shuffled = samples.copy()
    random.Random(3).shuffle(shuffled)
    tracks = []
    for order in (samples, shuffled):
        track = StageTrack()
        for t, x in order:
            assert track.add(t, (x, -x)) is not None
        tracks.append((list(track.t_ns), list(track.x_um), list(track.y_um)))
    assert tracks[0] == tracks[1]


def test_of_two_samples_of_one_time_the_first_stands() -> None:
    joiner = Joiner(100)
    stage(joiner, 0, 0)
    stage(joiner, 10, 10)
    assert stage(joiner, 10, 1000) == []
    found = joiner.add_image(image(0, 5))
    assert found is not None
    assert found.pos_um == (5.0, 0.0)


def test_an_image_from_before_the_first_sample_waits_for_an_earlier_one() -> None:
    joiner = Joiner(100)
    stage(joiner, 10, 10)
    assert joiner.add_image(image(0, 5)) is None
    assert why(joiner, 0, 5) == joining.NO_EARLIER
    assert stage(joiner, 20, 20) == []
    assert stage(joiner, 0, 0) == [0]


@pytest.mark.parametrize("allow_moving", [False, True])
@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize(
    ("before", "after"), [(None, None), (False, False), (True, False), (False, True), (None, True)]
)
def test_the_image_says_whether_the_stage_moved_else_either_sample_does(
    before: bool | None, after: bool | None, said: bool | None, allow_moving: bool
) -> None:
    moved = said if said is not None else bool(before or after)
    joiner = Joiner(100, allow_moving)
    stage(joiner, 0, 0, moving=before)
    joiner.add_image(image(0, 5, moving=said))
    assert stage(joiner, 10, 10, moving=after) == ([0] if allow_moving or not moved else [])
    assert why(joiner, 0, 5) == (joining.MOVING if moved and not allow_moving else None)


def test_unplaced_frames_are_ranges_by_reason() -> None:
    joiner = Joiner(10)
    for frame, t_ms in enumerate((-3, -2, 21, 22, 23, 5, 90, 91, -1)):
        joiner.add_image(image(frame, t_ms))
    assert joiner.unplaced() == {joining.NO_LATER: [(0, 8)]}
    stage(joiner, 0, 0)
    stage(joiner, 10, 0)
    stage(joiner, 40, 0)
    assert joiner.unplaced() == {
        joining.NO_EARLIER: [(0, 1), (8, 8)],
        joining.GAP: [(2, 4)],
        joining.NO_LATER: [(6, 7)],
    }
    assert len(joiner) == 8
    assert joiner.n_waiting_for_later == 2


class TestMemory:
    def test_samples_are_bounded_and_the_oldest_go(self) -> None:
        track = StageTrack(max_samples=800)
        for t in range(5000):
            track.add(t, (t, 0))
            assert len(track) <= 800
        assert track.t_ns[-1] == 4999
        assert track.t_ns[0] >= 4999 - 800
        assert all(x == t for t, x in zip(track.t_ns, track.x_um, strict=True))

    def test_a_sample_older_than_all_that_are_left_makes_no_false_bracket(self) -> None:
        joiner = Joiner(1e9, max_samples=80)
        for t_ms in range(85):
            stage(joiner, t_ms, t_ms)
        assert len(joiner.track) < 80
        joiner.add_image(image(0, 5.5))
        assert why(joiner, 0, 5.5) == joining.NO_EARLIER
        assert stage(joiner, 1, -1000) == []
        assert why(joiner, 0, 5.5) == joining.NO_EARLIER

    def test_an_inserted_sample_keeps_its_neighbours_when_old_ones_go(self) -> None:
        joiner = Joiner(1e9, max_samples=8)
        for t_ms in range(0, 16, 2):
            stage(joiner, t_ms, t_ms)
        joiner.add_image(image(0, 15))
        joiner.add_image(image(1, 8.5))
        assert stage(joiner, 9, 9) == []  # frame 1 had its bracket already
        assert stage(joiner, 16, 16) == [0]
        found = joiner.add_image(image(2, 8.75))
        assert found is not None
        assert found.pos_um == (8.75, 0)
        assert found.bracket_ns == 1 * MS

    def test_images_that_find_no_room_are_named(self) -> None:
        joiner = Joiner(100, max_waiting=3)
        for frame in range(5):
            joiner.add_image(image(frame, frame))
        assert joiner.unplaced() == {joining.NO_LATER: [(0, 2)], joining.NOT_KEPT: [(3, 4)]}
        assert why(joiner, 4, 4) == joining.NOT_KEPT
        assert len(joiner) == 5

    def test_a_placed_image_leaves_nothing(self) -> None:
        joiner = Joiner(100)
        stage(joiner, 0, 0)
        for frame in range(5000):
            joiner.add_image(image(frame, frame + 0.5))
            assert stage(joiner, frame + 1, 0) == [frame]
        assert len(joiner) == 0
        assert max(len(column) for column in joiner._columns) == 0

    def test_images_that_wait_long_are_swept_out_as_they_are_placed(self) -> None:
        joiner = Joiner(100)
        stage(joiner, 0, 0)
        for frame in range(3000):
            joiner.add_image(image(frame, frame + 0.5))
        for frame in range(3000):
            assert stage(joiner, frame + 1, 0) == [frame]
            n_left = 2999 - frame
            assert len(joiner) == joiner.n_waiting_for_later == n_left
            assert len(joiner._columns[0]) <= max(128, 2 * n_left + 64)


class TestBracketStats:
    def test_a_steady_stage_has_an_exact_median(self) -> None:
        stats = BracketStats()
        for width_ms in (20, 20, 20, 40):
            stats.add(width_ms * MS, 0.5, 1.0)
        assert (stats.median_ns, stats.max_ns, stats.n) == (20 * MS, 40 * MS, 4)

    @given(st.lists(st.integers(0, 10**12), min_size=1, max_size=60))
    def test_the_median_is_never_far_off(self, widths: list[int]) -> None:
        stats = BracketStats()
        for width in widths:
            stats.add(width, 0.5, 1.0)
        ordered = sorted(widths)
        low, high = ordered[(len(widths) - 1) // 2], ordered[len(widths) // 2]
        assert 0.989 * (low + high) / 2 <= stats.median_ns <= 1.011 * (low + high) / 2
        assert stats.max_ns == max(widths)

    def test_the_bound_is_the_longer_part_of_the_way(self) -> None:
        stats = BracketStats()
        stats.add(20 * MS, 0.25, 8.0)
        assert stats.max_bound_um == 6.0
        assert stats.max_speed_um_s == pytest.approx(400.0)
        stats.add(0, 0.0, 0.0)
        assert stats.median_ns == 10 * MS

    def test_nothing_joined_is_nothing(self) -> None:
        assert BracketStats().median_ns == 0.0


PX_UM = 0.5
SPEED_UM_S = 1000.0
ROW_S, N_ROWS = 1.0, 4


def scan_position(t_s: float) -> tuple[float, float]:
    """A serpentine at 1 mm/s: rows of one second, 50 µm apart, the stage turning between them."""
    row = min(int(t_s / ROW_S), N_ROWS - 1)
    along = (t_s - row * ROW_S) * SPEED_UM_S
    return (along if row % 2 == 0 else ROW_S * SPEED_UM_S - along), 50.0 * row


def exposures() -> Iterator[float]:
    """Mid-exposures, 25 per second, away from the turns of the stage, where it does not have its speed."""
    for row in range(N_ROWS):
        for k in range(23):
            yield row * ROW_S + 0.05 + 0.04 * k


def simulated_errors_px(clock_error_s: Callable[[], float], seed: int) -> tuple[list[float], Joiner]:
    """How far, in pixels, frames of a moving stage are placed from where they were taken."""
    rng = random.Random(seed)
    affine = ((PX_UM, 0.0), (0.0, -PX_UM))
    shape = 64, 48
    joiner = Joiner(max_gap_ms=100, allow_moving=True)
    n_samples = int(50 * ROW_S * N_ROWS) + 4
    events: list[tuple[float, str, float]] = [(k * 0.02 + 0.0031, "stage", k * 0.02) for k in range(n_samples)]
    events += [(t_s + rng.uniform(0, 0.1), "image", t_s) for t_s in exposures()]
    errors = []
    truth = {}
    for frame, (_, kind, t_s) in enumerate(sorted(events)):
        t_ns = round((t_s + clock_error_s()) * 1e9) + 10**18
        placed = []
        if kind == "stage":
            placed = joiner.add_stage(t_ns, scan_position(t_s), True)
        else:
            truth[frame] = place_centre(scan_position(t_s), affine, shape)
            found = joiner.add_image(Unjoined(frame, frame, t_ns))
            placed = [found] if found is not None else []
        for joined in placed:
            row, col = place_centre(joined.pos_um, affine, shape)
            true_row, true_col = truth[joined.image.frame]
            errors.append(max(abs(row - true_row), abs(col - true_col)))
    assert len(errors) == 23 * N_ROWS
    return [float(error) for error in errors], joiner


@pytest.mark.parametrize("seed", range(20))
def test_at_1_mm_s_with_jitter_of_1_ms_on_both_clocks_every_frame_is_within_2_um_and_a_pixel(seed: int) -> None:
    rng = random.Random(seed + 1000)
    errors_px, joiner = simulated_errors_px(lambda: rng.uniform(-1e-3, 1e-3), seed)
    assert max(errors_px) <= 2.0 / PX_UM + 1
    assert max(errors_px) > 1  # else the jitter was not there
    assert 18 * MS <= joiner.brackets.median_ns <= 22 * MS
    assert joiner.brackets.max_ns <= 22 * MS


@pytest.mark.parametrize("seed", range(5))
def test_without_jitter_every_frame_is_within_a_pixel(seed: int) -> None:
    errors_px, joiner = simulated_errors_px(lambda: 0.0, seed)
    assert max(errors_px) <= 1
    assert joiner.brackets.median_ns == pytest.approx(20 * MS, abs=200)
    assert joiner.brackets.max_speed_um_s == pytest.approx(SPEED_UM_S, rel=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_holds_for_a_stage_that_starts_and_stops(seed: int) -> None:
    """A stage that goes in steps, read at a rate that catches it anywhere in between."""
    rng = random.Random(seed)

    def position(t_s: float) -> tuple[float, float]:
        step, part = divmod(t_s, 0.1)
        return (step + min(1.0, part / 0.03)) * 100.0, 0.0

    joiner = Joiner(max_gap_ms=1000, allow_moving=True)
    for k in range(200):
        joiner.add_stage(k * 17 * MS, position(k * 0.017))
    worst = 0.0
    for frame in range(300):
        t_ns = rng.randrange(199 * 17 * MS)
        joined = joiner.add_image(Unjoined(frame, frame, t_ns))
        assert joined is not None
        worst = max(worst, abs(joined.pos_um[0] - position(t_ns * 1e-9)[0]))
    assert 0 < worst <= joiner.brackets.max_bound_um <= 100


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stage", "image"]),
            st.integers(0, 60),
            st.integers(-5, 5),
            st.sampled_from([None, True, False]),
        ),
        max_size=60,
    ),
    st.integers(1, 40),
    st.booleans(),
)
def test_it_joins_as_a_slow_and_obvious_joiner_does(
    drawn: list[tuple[str, int, int, bool | None]], max_gap: int, allow_moving: bool
) -> None:
    joiner, slow = Joiner(max_gap / 1e6, allow_moving), SlowJoiner(max_gap, allow_moving)
    placed: dict[int, tuple[float, float]] = {}
    for number, (kind, t, value, moving) in enumerate(drawn):
        if kind == "stage":
            found = joiner.add_stage(t, (value, 2 * value), moving)
            slow.add(Sample(t, value, 2 * value, moving))
        else:
            one = joiner.add_image(Unjoined(number, number, t, moving=moving))
            found = [one] if one is not None else []
            slow.add(Exposure(number, t, moving))
        placed |= {joined.image.frame: joined.pos_um for joined in found}
        assert placed == {frame: pytest.approx(position) for frame, position in slow.placed.items()}
    frames = {number for number, call in enumerate(drawn) if call[0] == "image"}
    left = [n for ranges in joiner.unplaced().values() for first, last in ranges for n in range(first, last + 1)]
    assert sorted(left) == sorted(frames - set(placed))
    assert joiner.brackets.n == len(placed)
    assert joiner.n_waiting_for_later == sum(
        last - first + 1 for first, last in joiner.unplaced().get(joining.NO_LATER, [])
    )


def test_placing_rules_survive_being_stored() -> None:
    rules = PlacingRules(12.5, True, frozenset({0, 1}))
    assert PlacingRules.from_dict(rules.to_dict()) == rules


class TestMoveWatch:
    def test_the_first_frames_after_each_move_are_left_out(self) -> None:
        watch = joining.MoveWatch(2)
        corners = [(0, 0)] * 4 + [(0, 50)] * 5 + [(50, 50)] * 2 + [(90, 50)] * 4
        skipped = [number for number, corner in enumerate(corners) if watch.skips(corner, number)]
        assert skipped == [4, 5, 9, 10, 11, 12]

    def test_a_stage_that_rests_may_be_read_a_little_otherwise(self) -> None:
        watch = joining.MoveWatch(1)
        assert not any(watch.skips(corner, t) for t, corner in enumerate([(0, 0), (2, -2), (0, 0), (1, 2), (-1, 1)]))
        assert watch.skips((2, 1), 9)  # three rows from the one before

    def test_a_stage_that_said_it_moved_has_moved_though_it_came_back(self) -> None:
        track = joining.StageTrack()
        for t, moving in ((0, False), (10, True), (20, False), (30, False)):
            track.add(t, (0.0, 0.0), moving)
        watch = joining.MoveWatch(1)
        assert [watch.skips((0, 0), t, track) for t in (5, 15, 17, 25)] == [False, True, False, False]
        camera = joining.MoveWatch(1)
        camera.skips((0, 0), 5)
        camera.moving(7)
        assert [camera.skips((0, 0), t) for t in (9, 11)] == [True, False]

    def test_without_the_rule_nothing_is_left_out(self) -> None:
        watch = joining.MoveWatch(0)
        watch.moving(0)
        assert not any(watch.skips((100 * t, 0), t) for t in range(5))

    @given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=40).map(lambda sites: [0, *sites]))
    def test_as_counted_by_hand(self, n_skipped: int, sites: list[int]) -> None:
        watch = joining.MoveWatch(n_skipped)
        found = [watch.skips((100 * site, 0), t) for t, site in enumerate(sites)]
        moves = [t for t in range(1, len(sites)) if sites[t] != sites[t - 1]]
        assert found == [any(t - n_skipped < move <= t for move in moves) for t in range(len(sites))]
