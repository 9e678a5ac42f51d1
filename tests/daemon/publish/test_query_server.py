"""Who is answered when, and who is told to wait: the query server with viewers and operations of the test's own."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import msgpack
import zmq
import zmq.asyncio

from tilecast.publish.query_server import QueryServer, Viewer


class Unread:
    """Stands for libzmq's word that an answer has left."""

    done = False


class TestViewer:
    def test_it_may_ask_so_much_in_a_second_and_again_in_the_next(self) -> None:
        viewer = Viewer(10.0, 0.0)
        assert [viewer.ask(0.0) >= 0 for _ in range(12)] == [True] * 10 + [False] * 2
        assert viewer.ask(0.5) >= 0, "five have come back, two are owed"
        assert not viewer.is_over(0.5)
        assert viewer.is_over(100.0)

    def test_who_goes_on_is_not_worth_an_answer_and_owes_a_second_at_most(self) -> None:
        viewer = Viewer(10.0, 0.0)
        tokens = [viewer.ask(0.0) for _ in range(1000)]
        assert sum(-10 < left < 0 for left in tokens) == 9
        assert tokens[-1] == -10
        assert viewer.ask(1.2) >= 0

    def test_what_it_has_not_read_is_counted_in_bytes_and_in_order(self) -> None:
        viewer, answers = Viewer(10.0, 0.0), [Unread(), Unread()]
        for answer in answers:
            viewer.sent(answer, 100)  # type: ignore[arg-type]
        assert (viewer.look(), viewer.is_over(100.0)) == (200, False)
        answers[0].done = True
        assert viewer.look() == 100
        answers[1].done = True
        assert (viewer.look(), viewer.is_over(100.0)) == (0, True)


class Slow:
    """Operations of which the first waits until the test lets it go on; tells in which order they were asked."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.order: list[str] = []

    def _asked(self, name: str) -> dict[str, Any]:
        self.order.append(name)
        self.begun.set()
        assert self.go_on.wait(30)
        return {}

    def hello(self) -> dict[str, Any]:
        return self._asked("first")

    def health(self) -> dict[str, Any]:
        return self._asked("second")

    def stats(self) -> dict[str, Any]:
        return self._asked("third")


def test_viewers_take_turns_and_too_much_at_once_is_refused(tmp_path: Path) -> None:
    async def conversation() -> tuple[list[str], list[str]]:
        context: Any = zmq.asyncio.Context()
        router = context.socket(zmq.ROUTER)
        router.bind("inproc://queries")
        slow = Slow()
        server = QueryServer(
            router,
            root=tmp_path,
            operations=slow,  # type: ignore[arg-type]
            is_operator=lambda _: False,
            threads=1,
            max_region_pixels=1,
            max_tiles=1,
            max_in_flight=3,
            max_per_s=100,
            max_unread_nbytes=1 << 20,
            max_unread_nbytes_of_all=1 << 20,
        )
        serving = asyncio.ensure_future(server.serve())
        viewers = [context.socket(zmq.DEALER) for _ in range(3)]
        for viewer in viewers:
            viewer.connect("inproc://queries")

        async def ask(number: int, cmd: str) -> None:
            await viewers[number].send(msgpack.packb({"v": 1, "id": 0, "cmd": cmd}))

        async def answered(number: int) -> str:
            header = msgpack.unpackb((await viewers[number].recv_multipart())[0])
            return "ok" if header["ok"] else str(header["error"]["code"])

        refused = []
        for number, cmd in enumerate(("hello", "health", "stats")):
            for _ in range(4):
                await ask(number, cmd)
            refused.append(await answered(number))  # so the other three are in flight
        slow.go_on.set()
        found = [await answered(number) for number in (0, 1, 2) for _ in range(3)]
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        context.destroy(0)
        assert found == ["ok"] * 9
        return slow.order, refused

    order, refused = asyncio.run(conversation())
    assert refused == ["busy"] * 3
    assert order == ["first", *["first", "second", "third"] * 2, "second", "third"]
