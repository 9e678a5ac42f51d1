"""The query socket: checks what is asked, has it answered by reader threads, sends what they answer.

The socket belongs to the asyncio loop; every answer is worked out in a small pool of threads, each with read-only
connections of its own, so that no question, however large, makes another wait for long, and none touches ingest.
Viewers take turns: each has one question answered, then the next has. A viewer may have so many questions in flight, so
many in a second, and so many bytes of answers that it has not read; above that it is told `busy`, one that goes on
regardless is not even told, and the others do not notice.

Where a question is about the daemon rather than a store, or is an order of an operator, it is handed to `Operations`,
which the service implements.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import structlog
import zmq
import zmq.asyncio

from tilecast.publish import answers
from tilecast.publish.answers import Answer
from tilecast.publish.open_readers import OpenReaders
from tilecast.store.folders import RunList, folder_nbytes, run_folder
from tilecast.store.sqlite_reader import SqliteReader
from tilecast.store.tile_store import StoreUnfinishedError
from tilecast_protocol.errors import QueryError, TilecastError
from tilecast_protocol.messages import Buffer
from tilecast_protocol.queries import COMMANDS, QueryId, make_error, make_reply, parse_query, query_id

log = structlog.get_logger()

_MAX_IN_FLIGHT_OF_ALL = 1024
_MAX_OPEN_READERS = 32
_MAX_ORDERS = 8
_LARGE_NBYTES = 1 << 16  # answers that are kept an eye on until they have left; smaller ones the socket's mark bounds
_MANY_VIEWERS = 256  # above it, those that have nothing to do with us any more are forgotten


class Operations(Protocol):
    """What only the running daemon can answer or do. Called in threads of the pool."""

    def hello(self) -> dict[str, Any]:
        """Version, instrument, limits."""
        ...

    def stats(self) -> dict[str, Any]:
        """Queues, rates, latencies, counters, disk, write-ahead log."""
        ...

    def health(self) -> dict[str, Any]:
        """State, and why not ready."""
        ...

    def damaged(self) -> dict[str, str]:
        """Runs of which something is wrong that could not be repaired, and what."""
        ...

    def unplaced(self, run: str) -> dict[str, Any] | None:
        """Frames of a loaded run that have no place yet, as ranges by the reason; None if it is not loaded."""
        ...

    def live_report(self, run: str) -> dict[str, Any] | None:
        """The report of a loaded run as it would be written now; None if it is not loaded."""
        ...

    def await_store(self, run: str) -> bool:
        """Wait for the store of a run whose start may have been acknowledged a moment ago; False if nobody makes it.

        Raises
        ------
        QueryError
            `busy`, if it takes long.
        """
        ...

    def operate(self, query: dict[str, Any]) -> dict[str, Any]:
        """Carry out an operator's order; raises QueryError. Called in threads for orders, and may take long."""
        ...


class _Order(NamedTuple):
    """What an operator wants done, and the number of the question."""

    number: QueryId
    query: dict[str, Any]


class Viewer:
    """What one connection has asked and not read yet, and how fast it asks. Of the loop's thread alone.

    Parameters
    ----------
    per_s : float
        Questions that it may ask per second, as many at once as in one second.
    now_s : float
        A monotonic clock.
    """

    def __init__(self, per_s: float, now_s: float) -> None:
        self._per_s = per_s
        self._tokens = per_s
        self._at_s = now_s
        self._unread: deque[tuple[zmq.MessageTracker, int]] = deque()
        self.n_in_flight = 0
        self.unread_nbytes = 0

    def ask(self, now_s: float) -> float:
        """Take note of a question; below 0, it is one too many, and at minus `per_s` it is not worth an answer."""
        self._tokens = min(self._per_s, self._tokens + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        self._tokens = max(-self._per_s, self._tokens - 1)
        return self._tokens

    def sent(self, tracker: zmq.MessageTracker, nbytes: int) -> None:
        """Take note of an answer that has not left yet."""
        self._unread.append((tracker, nbytes))
        self.unread_nbytes += nbytes

    def look(self) -> int:
        """Bytes of answers that have not left yet, roughly."""
        while self._unread and self._unread[0][0].done:
            self.unread_nbytes -= self._unread.popleft()[1]
        return self.unread_nbytes

    def is_over(self, now_s: float) -> bool:
        """Whether forgetting it changes nothing."""
        return (
            not self.n_in_flight
            and not self.look()
            and self._tokens + (now_s - self._at_s) * self._per_s >= self._per_s
        )


class _Question(NamedTuple):
    """A request on its way to a thread."""

    envelope: list[bytes]
    parts: list[zmq.Frame]


class QueryServer:
    """Answers queries.

    Orders of operators, which may take as long as a rebuild takes, have threads of their own.

    Parameters
    ----------
    socket : zmq.asyncio.Socket
        ROUTER, bound already.
    root : Path
        The folder of the runs.
    operations : Operations
    is_operator : callable
        Tells from the first frame of a request whether its sender may give orders.
    threads : int
        Size of the pool.
    max_region_pixels, max_tiles : int
        Limits of `region`, and of a page.
    max_in_flight : int
        Questions of one viewer that may wait.
    max_per_s : float
        Questions that one viewer may ask per second.
    max_unread_nbytes, max_unread_nbytes_of_all : int
        Answers that one viewer, or all together, have not read; above that they get no more.
    """

    def __init__(
        self,
        socket: zmq.asyncio.Socket,
        *,
        root: Path,
        operations: Operations,
        is_operator: Callable[[zmq.Frame], bool],
        threads: int,
        max_region_pixels: int,
        max_tiles: int,
        max_in_flight: int,
        max_per_s: float,
        max_unread_nbytes: int,
        max_unread_nbytes_of_all: int,
    ) -> None:
        self._socket = socket
        self._root = root
        self._list = RunList(root)
        self._operations = operations
        self._is_operator = is_operator
        self._max_region_pixels = max_region_pixels
        self._max_tiles = max_tiles
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tilecast-read")
        self._order_pool = ThreadPoolExecutor(_MAX_ORDERS, thread_name_prefix="tilecast-order")
        self._readers = OpenReaders(self._open_run, _MAX_OPEN_READERS)
        self._max_in_flight = max_in_flight
        self._max_per_s = max_per_s
        self._max_unread_nbytes = max_unread_nbytes
        self._max_unread_nbytes_of_all = max_unread_nbytes_of_all
        self._viewers: dict[bytes, Viewer] = {}
        self._waiting: OrderedDict[bytes, deque[_Question]] = OrderedDict()  # by viewer, whose turn it is first
        self._n_idle = threads
        self._tasks: set[asyncio.Task[None]] = set()
        self.n_queries: Counter[str] = Counter()
        self.n_errors: Counter[str] = Counter()

    async def serve(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                frames = await self._socket.recv_multipart(copy=False)
                self._accept(frames)
        finally:
            for task in self._tasks:
                task.cancel()
            for pool in (self._pool, self._order_pool):
                pool.shutdown(wait=False, cancel_futures=True)
            self._readers.close()

    def _accept(self, frames: list[zmq.Frame]) -> None:
        """Begin to answer one request; a REQ socket puts an empty frame before it, a DEALER does not."""
        identity, *rest = frames
        envelope = [identity.bytes]
        if len(rest) > 1 and len(rest[0]) == 0:
            envelope.append(b"")
            rest = rest[1:]
        if not rest:
            return
        viewer = self._viewer(envelope[0])
        tokens = viewer.ask(time.monotonic())
        if tokens <= -self._max_per_s:
            self.n_errors["unanswered"] += 1
        elif tokens < 0:
            self._busy(envelope, rest[0], f"you ask more than {self._max_per_s:g} questions per second")
        elif viewer.n_in_flight >= self._max_in_flight:
            self._busy(envelope, rest[0], f"{self._max_in_flight} of your questions wait already")
        elif sum(map(len, self._waiting.values())) >= _MAX_IN_FLIGHT_OF_ALL:
            self._busy(envelope, rest[0], f"{_MAX_IN_FLIGHT_OF_ALL} questions wait already")
        else:
            viewer.n_in_flight += 1
            self._waiting.setdefault(envelope[0], deque()).append(_Question(envelope, rest))
            self._hand_out()

    def _viewer(self, identity: bytes) -> Viewer:
        now_s = time.monotonic()
        if identity not in self._viewers and len(self._viewers) >= _MANY_VIEWERS:
            self._viewers = {known: viewer for known, viewer in self._viewers.items() if not viewer.is_over(now_s)}
        return self._viewers.setdefault(identity, Viewer(self._max_per_s, now_s))

    def _busy(self, envelope: list[bytes], request: zmq.Frame, why: str) -> None:
        log.warning("viewer asks too much", address=_address(request), why=why)
        busy = QueryError("busy", f"{why}; ask when one is answered")
        self._begin(self._send(envelope, self._refuse(query_id(request), busy)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hand_out(self) -> None:
        """Give questions to threads that are idle, one of each viewer in turn."""
        while self._n_idle and self._waiting:
            identity, questions = self._waiting.popitem(last=False)
            question = questions.popleft()
            if questions:
                self._waiting[identity] = questions
            self._n_idle -= 1
            self._begin(self._answer(question))

    def _too_much_unread(self, viewer: Viewer) -> str:
        """Why a viewer gets no more answers for now, if it does not."""
        if viewer.look() > self._max_unread_nbytes:
            return "you have not read the answers to your questions; read them"
        of_all = sum(one.look() for one in self._viewers.values())
        if viewer.unread_nbytes and of_all > self._max_unread_nbytes_of_all:
            return "viewers, you among them, have not read their answers; read them"
        return ""

    async def _answer(self, question: _Question) -> None:
        envelope, request = question
        viewer = self._viewer(envelope[0])
        try:
            loop = asyncio.get_running_loop()
            try:
                if why := self._too_much_unread(viewer):
                    self._busy(envelope, request[0], why)
                    return
                operator = self._is_operator(request[0])
                reply = await loop.run_in_executor(self._pool, self._reply, request, operator)
            finally:
                self._n_idle += 1
                self._hand_out()
            if isinstance(reply, _Order):
                reply = await loop.run_in_executor(self._order_pool, self._carry_out, reply)
            await self._send(envelope, reply)
        finally:
            viewer.n_in_flight -= 1

    async def _send(self, envelope: list[bytes], reply: list[Buffer]) -> None:
        frames: list[Any] = [*envelope, *reply]
        viewer = self._viewer(envelope[0])
        for number, part in enumerate(reply, len(envelope)):
            nbytes = memoryview(part).nbytes
            if nbytes >= _LARGE_NBYTES:
                frames[number] = frame = zmq.Frame(part, track=True, copy=False)
                assert frame.tracker is not None, "it was asked for"
                viewer.sent(frame.tracker, nbytes)
        try:
            await self._socket.send_multipart(frames, copy=False, flags=zmq.DONTWAIT)
        except zmq.ZMQError:
            # It does not read its answers (EAGAIN), or has gone (EHOSTUNREACH): it will ask again, or not.
            self.n_errors["unsent"] += 1

    def _reply(self, request: list[zmq.Frame], operator: bool) -> list[Buffer] | _Order:
        """The whole answer to one request, or the order that it is; in a thread of the pool."""
        number = None
        try:
            if len(request) != 1:
                raise QueryError("malformed", f"a request is one part; {len(request)} came")
            number = query_id(request[0])
            query = parse_query(request[0])
        except QueryError as error:
            return self._refuse(number, error)
        cmd = query["cmd"]
        self.n_queries[cmd] += 1
        if not COMMANDS[cmd].operator:
            return self._answered(number, query, self._answer_query)
        if not operator:
            refusal = QueryError("not-allowed", f"{cmd} is for operators: on this machine, or with a key")
            return self._refuse(number, refusal)
        return _Order(number, query)

    def _carry_out(self, order: _Order) -> list[Buffer]:
        """The answer to an order; in a thread for orders."""
        return self._answered(order.number, order.query, lambda query: Answer(self._operations.operate(query)))

    def _answered(
        self, number: QueryId, query: dict[str, Any], answer: Callable[[dict[str, Any]], Answer]
    ) -> list[Buffer]:
        """The reply with this answer, or with why there is none."""
        try:
            found = answer(query)
            return make_reply(number, found.payload, **found.values)
        except QueryError as error:
            refusal = error
        except TilecastError as error:
            refusal = QueryError("failed", str(error))
        except Exception as error:
            log.error("query failed", error=repr(error), exc_info=error)
            refusal = QueryError("failed", "the daemon failed to answer this; its log says why")
        return self._refuse(number, refusal)

    def _refuse(self, number: QueryId, refusal: QueryError) -> list[Buffer]:
        self.n_errors[refusal.code] += 1
        return make_error(number, refusal)

    def _answer_query(self, query: dict[str, Any]) -> Answer:
        operations = self._operations
        match query["cmd"]:
            case "hello":
                return Answer(operations.hello())
            case "runs":
                return Answer({"runs": self._runs()})
            case "stats":
                return Answer({"stats": operations.stats()})
            case "health":
                return Answer({"health": operations.health()})
            case "report":
                return Answer(self._report(query["run"]))
            case "placements":
                unplaced = operations.unplaced(query["run"])
                with self._reading(query["run"]) as reader:
                    return answers.placements(reader, query, unplaced, self._max_tiles)
        with self._reading(query["run"]) as reader:
            match query["cmd"]:
                case "run":
                    folder = run_folder(self._root, query["run"])
                    return Answer({"run": answers.run_details(reader.info(), folder_nbytes(folder))})
                case "snapshot":
                    return answers.snapshot(reader, query, self._max_tiles)
                case "changes":
                    return answers.changes(reader, query, self._max_tiles)
                case "tile":
                    return answers.tile(reader, query)
                case "region":
                    return answers.region(reader, query, self._max_region_pixels, self._max_tiles)
                case cmd:
                    raise QueryError("unknown-command", f"nothing is known of {cmd}")

    def _runs(self) -> list[dict[str, Any]]:
        damaged = self._operations.damaged()
        rows = []
        for found in self._list.runs():
            if found.info is None:
                is_making = found.making and found.run not in damaged
                row = {"run": found.run, "state": "making" if is_making else "damaged", "error": found.error}
            else:
                row = answers.run_summary(found.info, folder_nbytes(found.folder))
                if found.run in damaged:
                    row["error"] = damaged[found.run]
            rows.append(row)
        return rows

    def _report(self, run: str) -> dict[str, Any]:
        live = self._operations.live_report(run)
        with self._reading(run) as reader:
            info = reader.info()
        # A run that has ended a moment ago has no written report yet.
        if live is not None and (info.state == "open" or info.report is None):
            return {"report": live, "revision": info.revision, "final": False}
        return {"report": info.report, "revision": info.revision, "final": info.report is not None}

    def _reading(self, run: str) -> AbstractContextManager[SqliteReader]:
        """A read-only view of a run, which all threads of the pool share."""
        if not run_folder(self._root, run).is_dir():
            self._readers.forget(run)
            raise QueryError("unknown-run", f"there is no run {run} here; `runs` lists those that are")
        return self._readers.reading(run)

    def _open_run(self, run: str) -> SqliteReader:
        folder = run_folder(self._root, run)
        try:
            return SqliteReader(folder)
        except StoreUnfinishedError:
            if not self._operations.await_store(run):
                raise
            return SqliteReader(folder)

    def forget(self, run: str) -> None:
        """Close what is open of a run; it is about to be deleted."""
        self._readers.forget(run)


def _address(frame: zmq.Frame) -> str:
    """Where a request came from; empty for this machine's files."""
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return ""
