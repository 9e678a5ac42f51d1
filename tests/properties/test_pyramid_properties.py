"""Whatever the stage does, however memory runs out, wherever it crashes: the mosaic equals the reference.

A state machine adds, moves, flushes, commits, starves and crashes a pyramid at will; after every flush all tiles are
compared with the mosaic made from scratch. Beside it two laws that need no machine: the order of integer frames is
free, and a rebuild in journal order makes the same tiles.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reference.live_mosaic import AMPLE, TINY, LiveMosaic, noise, placed
from tilecast.blending import BLEND_MODES
from tilecast.geometry import Placement, PlaneKey

TILE = 8
DTYPES = st.sampled_from(["|u1", "<u2", "<f4"])
MODES = st.sampled_from(BLEND_MODES)
BUDGETS = st.sampled_from([AMPLE, AMPLE, TINY, 4_000, 20_000])
#: Mostly near one another, now and then far out, and often on a tile's border.
COORDINATES = st.one_of(st.integers(-20, 20), st.integers(-3, 3).map(lambda n: n * TILE), st.integers(-200, 200))
SIZES = st.one_of(st.integers(1, 20), st.sampled_from([TILE, 2 * TILE]))
PLANES = st.sampled_from([PlaneKey(), PlaneKey(), PlaneKey(0, 1, 0), PlaneKey(2, 0, 1)])


@st.composite
def scans(draw: st.DrawFn, least: int = 1, most: int = 8) -> list[Placement]:
    """Frames in journal order, numbered in another."""
    count = draw(st.integers(least, most))
    numbers = draw(st.permutations(range(count)))
    return [
        placed(
            numbers[i],
            draw(COORDINATES),
            draw(COORDINATES),
            (draw(SIZES), draw(SIZES)),
            index=i,
            plane=draw(PLANES),
        )
        for i in range(count)
    ]


def blended(mosaic: LiveMosaic, scan: list[Placement]) -> dict[object, tuple[bytes, bytes]]:
    """The bits of all tiles of a scan."""
    for placement in scan:
        pixels = noise(placement.frame, (placement.height, placement.width), mosaic.settings.dtype)
        mosaic.add(placement, pixels)
    mosaic.flush()
    return {address: (pixels.tobytes(), mask.tobytes()) for address, (pixels, mask) in mosaic.tiles().items()}


@given(scans(), MODES, DTYPES, BUDGETS)
def test_any_scan_equals_the_reference_after_every_flush(
    scan: list[Placement], mode: str, dtype: str, budget: int
) -> None:
    mosaic = LiveMosaic(dtype, mode, TILE, budget_bytes=budget)
    for placement in scan:
        mosaic.add(placement, noise(placement.frame, (placement.height, placement.width), dtype))
        mosaic.flush()
        mosaic.check()


@given(st.data(), MODES, DTYPES)
def test_the_order_in_which_frames_are_placed_is_never_seen(data: st.DataObject, mode: str, dtype: str) -> None:
    """Not even in newest and in float sums, whose order is the journal's, however late a frame is placed."""
    scan = data.draw(scans(least=2))
    other = data.draw(st.permutations(scan))
    once = blended(LiveMosaic(dtype, mode, TILE), scan)
    assert blended(LiveMosaic(dtype, mode, TILE, budget_bytes=TINY), list(other)) == once


@given(st.data(), st.sampled_from(["feather", "mean", "max", "min", "nearest"]), st.sampled_from(["|u1", "<u2"]))
def test_the_order_of_the_journal_is_free_for_integer_frames(data: st.DataObject, mode: str, dtype: str) -> None:
    scan = data.draw(scans(least=2))
    order = data.draw(st.permutations(range(len(scan))))
    other = [replace(placement, index=index) for placement, index in zip(scan, order, strict=True)]
    assert blended(LiveMosaic(dtype, mode, TILE), scan) == blended(LiveMosaic(dtype, mode, TILE), other)


class AnyLife(RuleBasedStateMachine):
    """One run, from its start through all that can happen to it."""

    @initialize(dtype=DTYPES, mode=MODES, budget=BUDGETS)
    def start(self, dtype: str, mode: str, budget: int) -> None:
        self.mosaic = LiveMosaic(dtype, mode, TILE, budget_bytes=budget)
        self.count = 0
        self.unplaced: list[int] = []

    @rule(row=COORDINATES, col=COORDINATES, height=SIZES, width=SIZES, plane=PLANES, give=st.booleans())
    def add(self, row: int, col: int, height: int, width: int, plane: PlaneKey, give: bool) -> None:
        self._add(self.count, row, col, (height, width), plane, give)
        self.count += 1

    @rule()
    def receive_without_a_place(self) -> None:
        self.unplaced.append(self.count)
        self.count += 1

    @precondition(lambda self: self.unplaced)
    @rule(row=COORDINATES, col=COORDINATES, height=SIZES, width=SIZES, plane=PLANES)
    def place_late(self, row: int, col: int, height: int, width: int, plane: PlaneKey) -> None:
        self._add(self.unplaced.pop(0), row, col, (height, width), plane, True)

    def _add(self, number: int, row: int, col: int, shape: tuple[int, int], plane: PlaneKey, give: bool) -> None:
        placement = placed(number, row, col, shape, plane=plane)
        assert self.mosaic.add(placement, noise(number, shape, self.mosaic.settings.dtype), give=give)

    @precondition(lambda self: self.mosaic.placements)
    @rule(data=st.data())
    def add_again(self, data: st.DataObject) -> None:
        known = data.draw(st.sampled_from(list(self.mosaic.placements.values())))
        assert not self.mosaic.pyramid.add(known, self.mosaic.sources.frames[known.id])

    @precondition(lambda self: self.mosaic.placements)
    @rule(data=st.data(), row=COORDINATES, col=COORDINATES, plane=PLANES)
    def move(self, data: st.DataObject, row: int, col: int, plane: PlaneKey) -> None:
        frame, view = data.draw(st.sampled_from(list(self.mosaic.placements)))
        self.mosaic.move(frame, view, row=row, col=col, plane=plane)

    @precondition(lambda self: self.mosaic.placements)
    @rule(data=st.data(), rows=st.integers(-3, 3), cols=st.integers(-3, 3))
    def nudge(self, data: st.DataObject, rows: int, cols: int) -> None:
        there = data.draw(st.sampled_from(list(self.mosaic.placements.values())))
        self.mosaic.move(*there.id, row=there.row + rows, col=there.col + cols)

    @rule(commit=st.booleans())
    def flush(self, commit: bool) -> None:
        self.mosaic.flush(commit=commit)
        self.mosaic.check()

    @rule()
    def commit(self) -> None:
        self.mosaic.commit()

    @rule()
    def crash(self) -> None:
        self.mosaic.crash()

    @rule(budget=BUDGETS)
    def give_or_take_memory(self, budget: int) -> None:
        self.mosaic.pyramid.budget_bytes = budget

    @invariant()
    def memory_holds(self) -> None:
        stats = self.mosaic.pyramid.stats()
        weights = self.mosaic.pyramid._blender.nbytes
        assert stats.nbytes <= max(stats.budget_bytes, stats.pinned_bytes + weights)

    def teardown(self) -> None:
        if hasattr(self, "mosaic"):
            self.mosaic.flush()
            self.mosaic.check()


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(max_examples=40, stateful_step_count=30)
