from __future__ import annotations

from tilecast.service.watch import Stage, Watch


def test_a_stage_hangs_when_it_stands_still_for_too_long() -> None:
    watch = Watch(patience_s=10)
    assert watch.hanging([Stage("blend", 7), Stage("store", 1)], 0) == []
    assert watch.hanging([Stage("blend", 7), Stage("store", 2)], 10) == []
    assert watch.hanging([Stage("blend", 7), Stage("store", 3)], 10.1) == ["blend"]


def test_a_stage_that_moves_again_does_not_hang() -> None:
    watch = Watch(patience_s=10)
    watch.hanging([Stage("blend", 7)], 0)
    assert watch.hanging([Stage("blend", 7)], 20) == ["blend"]
    assert watch.hanging([Stage("blend", 8)], 21) == []
    assert watch.hanging([Stage("blend", 8)], 31) == []


def test_waiting_is_no_hanging_and_the_clock_begins_after_it() -> None:
    watch = Watch(patience_s=10)
    for now_s in range(0, 100, 5):
        assert watch.hanging([Stage("ingest", 1, waits=True)], now_s) == []
    assert watch.hanging([Stage("ingest", 1)], 104) == []
    assert watch.hanging([Stage("ingest", 1)], 106) == ["ingest"]
