"""Queues between threads: bounded in bytes, they push back, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tilecast.queues import ByteQueue

PATIENCE_S = 20.0


class Worker:
    """A call in a thread of its own, and what it returned."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.result = self._call()

    def returned(self) -> Any:
        """What it returned, once it has."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "it still waits"
        return self.result


def test_items_come_out_in_order() -> None:
    queue: ByteQueue[int] = ByteQueue("q", 100)
    for number in range(5):
        assert queue.put(number, 20)
    assert [queue.get() for _ in range(5)] == [0, 1, 2, 3, 4]
    assert queue.get(timeout_s=0) is None


def test_bytes_are_the_limit_not_items() -> None:
    queue: ByteQueue[str] = ByteQueue("q", 100)
    assert queue.put("a", 60)
    assert queue.put("b", 40)
    assert queue.has_room_for(0)
    assert not queue.has_room_for(1)
    assert queue.put("weighs nothing", 0)
    assert not queue.put("c", 1, timeout_s=0)
    queue.get()
    assert queue.has_room_for(60)
    assert not queue.has_room_for(61)
    assert queue.put("c", 60, timeout_s=0)
    assert not queue.put("d", 1, timeout_s=0)


def test_one_item_is_let_in_however_heavy() -> None:
    queue: ByteQueue[str] = ByteQueue("q", 100)
    assert queue.has_room_for(10_000)
    assert queue.put("huge", 10_000, timeout_s=0)
    assert not queue.put("small", 1, timeout_s=0)
    assert queue.get() == "huge"
    assert queue.put("small", 1, timeout_s=0)


def test_a_full_queue_makes_its_producer_wait() -> None:
    queue: ByteQueue[str] = ByteQueue("q", 10)
    queue.put("a", 10)
    assert not queue.put("b", 10, timeout_s=0)
    waiting = Worker(lambda: queue.put("b", 10))
    assert queue.get() == "a"
    assert waiting.returned() is True
    assert queue.get(timeout_s=0) == "b"


def test_what_was_waited_for_is_told() -> None:
    queue: ByteQueue[str] = ByteQueue("blend", 10)
    queue.put("a", 8)
    queue.put("b", 3, timeout_s=0.01)
    queue.get()
    queue.put("c", 2)
    stats = queue.stats()
    assert (stats.depth, stats.nbytes, stats.max_bytes, stats.high_water_bytes, stats.n_put) == (1, 2, 10, 8, 2)
    assert stats.waited_s >= 0.01


def test_who_waits_for_room_is_counted() -> None:
    queue: ByteQueue[str] = ByteQueue("blend", 10)
    queue.put("a", 8)
    assert queue.n_waiting == 0
    putting = threading.Thread(target=queue.put, args=("b", 8))
    putting.start()
    while queue.n_waiting == 0:
        assert putting.is_alive()
    queue.get()
    putting.join()
    assert queue.n_waiting == 0


def test_a_closed_queue_gives_what_it_has_and_takes_no_more() -> None:
    queue: ByteQueue[str] = ByteQueue("q", 10)
    queue.put("a", 1)
    queue.close()
    assert not queue.put("b", 1)
    assert not queue.drained
    assert queue.get() == "a"
    assert queue.drained
    assert queue.get() is None


def test_closing_releases_all_who_wait() -> None:
    full: ByteQueue[str] = ByteQueue("full", 1)
    full.put("a", 1)
    empty: ByteQueue[str] = ByteQueue("empty", 1)
    producers = [Worker(lambda: full.put("b", 1)) for _ in range(2)]
    consumers = [Worker(empty.get) for _ in range(2)]
    full.close()
    empty.close()
    assert [worker.returned() for worker in producers] == [False, False]
    assert [worker.returned() for worker in consumers] == [None, None]


@pytest.mark.parametrize("before", [True, False], ids=["before it waits", "while it waits"])
def test_waking_is_never_lost(before: bool) -> None:
    queue: ByteQueue[str] = ByteQueue("q", 1)
    if before:
        queue.wake()
    worker = Worker(queue.get)
    if not before:
        queue.wake()
    assert worker.returned() is None


def test_waking_takes_nothing_away() -> None:
    queue: ByteQueue[str] = ByteQueue("q", 10)
    queue.put("a", 1)
    queue.wake()
    assert queue.get() == "a"
    # That `get` was the one that had to return: the next one waits again.
    assert queue.get(timeout_s=0.01) is None
    queue.put("b", 1)
    assert queue.get() == "b"


def test_many_threads_lose_nothing_and_never_pass_the_limit() -> None:
    queue: ByteQueue[tuple[int, int]] = ByteQueue("q", 50)
    taken: list[list[tuple[int, int]]] = [[], []]

    def produce(who: int) -> None:
        for number in range(300):
            assert queue.put((who, number), 1 + (7 * number) % 30)

    def consume(mine: list[tuple[int, int]]) -> None:
        while (item := queue.get()) is not None:
            mine.append(item)

    consumers = [Worker(lambda mine=mine: consume(mine)) for mine in taken]  # type: ignore[misc]
    producers = [Worker(lambda who=who: produce(who)) for who in range(3)]  # type: ignore[misc]
    for worker in producers:
        worker.returned()
    queue.close()
    for worker in consumers:
        worker.returned()
    assert sorted(taken[0] + taken[1]) == [(who, number) for who in range(3) for number in range(300)]
    for mine in taken:
        for who in range(3):
            numbers = [number for whose, number in mine if whose == who]
            assert numbers == sorted(numbers)
    assert queue.stats().high_water_bytes <= 50
