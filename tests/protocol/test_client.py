"""Client against scripted notifications and queries over real sockets: nothing that the daemon did may be missed."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import zmq

from scripted_peers import PATIENCE_S, ScriptedNotifications, ScriptedQueries
from tilecast_protocol import pzf
from tilecast_protocol.client import (
    MAX_ATTEMPTS,
    Client,
    Lag,
    PlacedFrame,
    Resync,
    TileRef,
    TileUpdate,
    Unchanged,
)
from tilecast_protocol.errors import DisconnectedError, MalformedError, PZFError, QueryError
from tilecast_protocol.messages import DaemonHeartbeat, RunNotice, RunRev, Tiles, new_run
from tilecast_protocol.queries import make_reply
from tilecast_protocol.sockets import CurveKeys

RUN = "0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f"
OTHER = "11111111-2222-4333-8444-555555555555"
TILE = TileRef(0, 1, 0, 2, -3, 4)
Key = tuple[int, ...]
MOMENT_S = 0.05
"""How long a test listens for what must not come."""


def tiles(rev: int, *, run: str = RUN, epoch: int = 0, stream: str = "cam", **values: Any) -> Tiles:
    """The notification of one commit, of one tile whose column is its rev."""
    values = {"tiles": ((0, 0, 0, 0, 0, rev),), "t_commit_ns": 1000 + rev} | values
    return Tiles(instrument="scope", stream=stream, run=run, epoch=epoch, rev=rev, **values)


def heartbeat(*revs: tuple[str, int, int]) -> DaemonHeartbeat:
    """(run, epoch, rev) of each."""
    return DaemonHeartbeat(instrument="scope", state="ready", runs=tuple(itertools.starmap(RunRev, revs)))


def said(updates: list[Any]) -> list[tuple[Any, ...]]:
    """(rev, columns of the tiles) of updates, (rev, reason) of resyncs."""
    return [(u.rev, u.reason) if isinstance(u, Resync) else (u.rev, [tile.col for tile in u.tiles]) for u in updates]


class Store:
    """A run as the query socket tells of it: which tiles were last written, or removed, by which commit."""

    def __init__(self, queries: ScriptedQueries, *, page: int = 3) -> None:
        self.epoch = 0
        self.rev = 0
        self.epoch_rev = 0
        self.page = page
        self.tiles: dict[Key, int] = {}
        self.gone: dict[Key, int] = {}
        self.deleted = False
        queries.answers |= {"run": self.answer_run, "changes": self.answer_changes, "snapshot": self.answer_snapshot}

    def commit(self, *written: Key, gone: tuple[Key, ...] = (), new_epoch: bool = False) -> Tiles:
        self.rev += 1
        if new_epoch:
            self.epoch, self.epoch_rev = self.epoch + 1, self.rev
        for tile in written:
            self.tiles[tile] = self.rev
            self.gone.pop(tile, None)
        for tile in gone:
            del self.tiles[tile]
            self.gone[tile] = self.rev
        return tiles(self.rev, epoch=self.epoch, tiles=written, gone=gone)

    def commit_each(self, n: int) -> list[Tiles]:
        """n commits of one tile each, whose column is the rev."""
        return [self.commit((0, 0, 0, 0, 0, self.rev + 1)) for _ in range(n)]

    def check(self, query: dict[str, Any]) -> None:
        if self.deleted or query["run"] != RUN:
            raise QueryError("unknown-run", "there is no such run here")

    def answer_run(self, query: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        self.check(query)
        info = {"run": RUN, "epoch": self.epoch, "rev": self.rev, "tile_size": 8, "dtype": "<u2"}
        return {"run": info}, []

    def answer_changes(self, query: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        self.check(query)
        if query["epoch"] != self.epoch or not self.epoch_rev <= query["since"] <= self.rev:
            return {"resync": True, "epoch": self.epoch}, []
        upto = min(self.rev, query["since"] + self.page)

        def changed(which: dict[Key, int]) -> list[list[int]]:
            found = [[*tile, rev] for tile, rev in which.items() if query["since"] < rev <= upto]
            return sorted(found, key=lambda row: row[-1])

        answer = {
            "epoch": self.epoch,
            "tiles": changed(self.tiles),
            "gone": changed(self.gone),
            "upto": upto,
            "more": upto < self.rev,
        }
        return answer, []

    def answer_snapshot(self, query: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        self.check(query)
        after = tuple(query["after"] or (-1,))
        rows = [[*tile, rev] for tile, rev in sorted(self.tiles.items()) if tile > after]
        more = len(rows) > self.page
        return {"epoch": self.epoch, "rev": self.rev, "tiles": rows[: self.page], "more": more}, []


@pytest.fixture
def queries() -> Iterator[ScriptedQueries]:
    with ScriptedQueries({}) as queries:
        yield queries


@pytest.fixture
def store(queries: ScriptedQueries) -> Store:
    return Store(queries)


@pytest.fixture
def notifications() -> Iterator[ScriptedNotifications]:
    with ScriptedNotifications() as notifications:
        yield notifications


@pytest.fixture
def client(notifications: ScriptedNotifications, queries: ScriptedQueries) -> Iterator[Client]:
    with Client(notifications.endpoint, queries.endpoint, timeout_s=PATIENCE_S) as client:
        notifications.wait_subscribed("tc1/")
        yield client


def take(client: Client, n: int) -> list[Any]:
    """The next n updates, and no more."""
    found = [client.next_update(PATIENCE_S) for _ in range(n)]
    assert None not in found
    return found


def nothing_more(client: Client, notifications: ScriptedNotifications) -> bool:
    """Whether nothing comes of what was sent: a run that nobody knows is announced behind it, and comes first."""
    marker = new_run()
    notifications.send(tiles(1, run=marker))
    (update,) = take(client, 1)
    return bool(update.run == marker)


# ---- following ------------------------------------------------------------------------------------------------------


def test_updates_come_as_they_were_sent(client: Client, notifications: ScriptedNotifications) -> None:
    box = ((0.0, 1.0), (2.0, 3.0))
    first = tiles(1, tiles=(tuple(TILE),), gone=((0, 0, 0, 0, 5, 6),), t_recv_ns=7, bbox_um=box)
    notifications.send(first, tiles(2), tiles(3, tiles=()))
    assert take(client, 3) == [
        TileUpdate(RUN, 0, 1, (TILE,), (TileRef(0, 0, 0, 0, 5, 6),), t_recv_ns=7, t_commit_ns=1001, bbox_um=box),
        TileUpdate(RUN, 0, 2, (TileRef(0, 0, 0, 0, 0, 2),), t_commit_ns=1002),
        TileUpdate(RUN, 0, 3, (), t_commit_ns=1003),
    ]
    assert TILE.tcz == (0, 1, 0)
    assert client.next_update(MOMENT_S) is None
    notifications.send(tiles(4))
    assert said(list(client.updates(MOMENT_S))) == [(4, [4])]
    notifications.send(tiles(5))
    assert next(iter(client)).run == RUN


def test_a_hole_is_healed_page_by_page(client: Client, notifications: ScriptedNotifications, store: Store) -> None:
    sent = store.commit_each(10)
    notifications.send(sent[0], sent[8], sent[9])
    updates = take(client, 4)
    assert said(updates) == [(1, [1]), (4, [2, 3, 4]), (7, [5, 6, 7]), (10, [8, 9, 10])]
    assert [update.healed for update in updates] == [False, True, True, True]
    assert updates[1].t_commit_ns == sent[8].t_commit_ns
    assert nothing_more(client, notifications)


def test_a_truncated_notification_is_filled_in(
    client: Client, notifications: ScriptedNotifications, store: Store
) -> None:
    store.commit_each(1)
    (second,) = store.commit_each(1)
    notifications.send(tiles(1), tiles(2, tiles=None, truncated=True, t_commit_ns=second.t_commit_ns))
    assert said(take(client, 2)) == [(1, [1]), (2, [2])]
    assert nothing_more(client, notifications)


def test_tiles_that_went_meanwhile_are_told(client: Client, notifications: ScriptedNotifications, store: Store) -> None:
    first = store.commit((0, 0, 0, 0, 0, 1), (0, 0, 0, 0, 0, 2))
    store.commit(gone=((0, 0, 0, 0, 0, 1),))
    third = store.commit((0, 0, 0, 0, 0, 3))
    notifications.send(first, third)
    _, healed = take(client, 2)
    assert (healed.tiles, healed.gone) == ((TileRef(0, 0, 0, 0, 0, 3),), (TileRef(0, 0, 0, 0, 0, 1),))


def test_who_comes_late_begins_from_a_snapshot(
    client: Client, notifications: ScriptedNotifications, store: Store
) -> None:
    *_, last = store.commit_each(7)
    notifications.send(last)
    assert take(client, 1) == [Resync(RUN, 0, 7, "joined")]
    snapshot = client.snapshot(RUN)
    assert (snapshot.epoch, snapshot.rev, len(snapshot.tiles)) == (0, 7, 7)
    assert snapshot.tiles[TileRef(0, 0, 0, 0, 0, 5)] == 5
    notifications.send(*store.commit_each(1))
    assert said(take(client, 1)) == [(8, [8])]


def test_a_run_that_is_named_is_looked_at_before_anything_is_notified(
    notifications: ScriptedNotifications, queries: ScriptedQueries, store: Store
) -> None:
    with Client(notifications.endpoint, queries.endpoint, run=RUN.upper()) as client:
        notifications.wait_subscribed("tc1/")
        store.deleted = True  # it has not begun
        assert client.next_update(MOMENT_S) is None
    store.deleted = False
    with Client(notifications.endpoint, queries.endpoint, run=RUN) as client:
        notifications.wait_subscribed("tc1/")
        assert client.next_update(MOMENT_S) is None  # it has begun, and has no tiles
        notifications.send(tiles(1, run=OTHER), *store.commit_each(1))
        assert said(take(client, 1)) == [(1, [1])]
    with Client(notifications.endpoint, queries.endpoint, run=RUN) as client:
        assert client.next_update(MOMENT_S) == Resync(RUN, 0, 1, "joined")


def test_a_lost_tail_shows_in_the_heartbeat(client: Client, notifications: ScriptedNotifications, store: Store) -> None:
    first, *_ = store.commit_each(3)
    notifications.send(first, heartbeat((RUN, 0, 1), (OTHER, 0, 0)), heartbeat((RUN, 0, 3)))
    assert said(take(client, 2)) == [(1, [1]), (3, [2, 3])]
    assert client.heartbeat is not None
    assert client.heartbeat.runs == (RunRev(RUN, 0, 3),)
    notifications.send(heartbeat((RUN, 0, 3)))
    assert nothing_more(client, notifications)


def test_open_runs_are_found_by_the_heartbeat(client: Client, notifications: ScriptedNotifications) -> None:
    notifications.send(heartbeat((RUN, 2, 5), (OTHER, 0, 0)))
    assert take(client, 1) == [Resync(RUN, 2, 5, "joined")]
    notifications.send(tiles(1, run=OTHER))
    assert take(client, 1)[0].run == OTHER


def test_a_heartbeat_that_is_ahead_of_the_store_is_believed_later(
    client: Client, notifications: ScriptedNotifications, store: Store
) -> None:
    (first,) = store.commit_each(1)
    notifications.send(first, heartbeat((RUN, 0, 2)))
    assert said(take(client, 1)) == [(1, [1])]
    assert nothing_more(client, notifications)
    notifications.send(*store.commit_each(1))
    assert said(take(client, 1)) == [(2, [2])]


def test_another_epoch_is_a_resync(client: Client, notifications: ScriptedNotifications, store: Store) -> None:
    old = store.commit_each(2)
    notifications.send(*old, store.commit((0, 0, 0, 0, 0, 3), new_epoch=True), *store.commit_each(1))
    assert said(take(client, 4)) == [(1, [1]), (2, [2]), (3, "epoch"), (4, [4])]
    notifications.send(*old, tiles(9, epoch=0), heartbeat((RUN, 0, 9)))  # of an epoch that is over
    assert nothing_more(client, notifications)


def test_another_epoch_is_found_while_a_hole_is_healed(
    client: Client, notifications: ScriptedNotifications, store: Store
) -> None:
    first, _, third = store.commit_each(3)
    store.commit((0, 0, 0, 0, 0, 3), new_epoch=True)
    notifications.send(first, third)
    assert take(client, 2)[1] == Resync(RUN, 1, 4, "epoch")
    notifications.send(*store.commit_each(1))
    assert said(take(client, 1)) == [(5, [5])]


def test_a_run_that_was_deleted_ends_quietly(
    client: Client, notifications: ScriptedNotifications, store: Store
) -> None:
    first, *_, last = store.commit_each(5)
    store.deleted = True
    notifications.send(first, last)
    assert said(take(client, 1)) == [(1, [1])]
    assert nothing_more(client, notifications)


def test_a_daemon_that_does_not_answer_now_is_asked_again(
    client: Client, notifications: ScriptedNotifications, queries: ScriptedQueries, store: Store
) -> None:
    first, _, third, fourth = store.commit_each(4)
    client.timeout_s = MOMENT_S
    queries.silent = True
    notifications.send(first, third)
    assert said(take(client, 1)) == [(1, [1])]
    with pytest.raises(DisconnectedError, match="no answer from the tilecast daemon"):
        client.next_update(PATIENCE_S)
    client.timeout_s = PATIENCE_S
    queries.silent = False
    notifications.send(fourth)
    assert said(take(client, 1)) == [(4, [2, 3, 4])]


def test_a_daemon_that_restarted_is_followed_on(
    client: Client, notifications: ScriptedNotifications, store: Store
) -> None:
    notifications.send(*store.commit_each(2))
    take(client, 2)
    notifications.stop()
    store.commit_each(2)
    notifications.start()
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take, client, 1)  # a socket connects anew while somebody waits on it
        notifications.wait_subscribed("tc1/")
        notifications.send(*store.commit_each(1))
        assert said(taking.result()) == [(5, [3, 4, 5])]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_lost_the_picture_is_right_in_the_end(
    client: Client, notifications: ScriptedNotifications, store: Store, seed: int
) -> None:
    chance = random.Random(seed)
    shown: dict[TileRef, int] = {}
    revs = [0]

    def show(update: Any) -> None:
        if isinstance(update, Resync):
            snapshot = client.snapshot(RUN)
            shown.clear()
            shown.update(snapshot.tiles)
            revs.append(update.rev)
            return
        assert update.rev > revs[-1], "revs rise"
        revs.append(update.rev)
        for tile in update.gone:
            shown.pop(tile, None)
        for tile in update.tiles:
            shown[tile] = store.tiles.get(tuple(tile), -1)  # as a viewer that fetches it would see

    for _ in range(60):
        written = {(0, 0, 0, 0, chance.randrange(4), chance.randrange(4)) for _ in range(chance.randrange(4))}
        gone = {tile for tile in store.tiles if chance.random() < 0.05} - written
        commit = store.commit(*written, gone=tuple(gone), new_epoch=chance.random() < 0.05)
        if chance.random() < 0.5:
            notifications.send(commit)
        if chance.random() < 0.1:
            notifications.send(heartbeat((RUN, store.epoch, store.rev)))
        if chance.random() < 0.2:
            for update in client.updates(0.001):
                show(update)
    notifications.send(heartbeat((RUN, store.epoch, store.rev)))
    while revs[-1] < store.rev:
        show(take(client, 1)[0])
    assert {tile for tile, rev in shown.items() if rev > 0} == {TileRef(*tile) for tile in store.tiles}
    assert nothing_more(client, notifications)


def test_without_queries_a_hole_is_a_resync(notifications: ScriptedNotifications) -> None:
    with Client(notifications.endpoint, None, run=RUN) as client:
        notifications.wait_subscribed("tc1/")
        notifications.send(tiles(1), tiles(4), tiles(5))
        assert said(take(client, 3)) == [(1, [1]), (4, "hole"), (5, [5])]
        with pytest.raises(ValueError, match="without query_endpoint"):
            client.runs()


def test_without_notifications_there_is_nothing_to_follow(queries: ScriptedQueries) -> None:
    with Client(None, queries.endpoint) as client:
        with pytest.raises(ValueError, match="without notify_endpoint"):
            client.next_update()
        with pytest.raises(ValueError, match="without notify_endpoint"):
            client.wait_connected()


def test_only_what_was_asked_for_is_followed(notifications: ScriptedNotifications, queries: ScriptedQueries) -> None:
    with Client(notifications.endpoint, queries.endpoint, instrument="scope") as client:
        notifications.wait_subscribed("tc1/scope/")
        elsewhere = Tiles(instrument="other", stream="cam", run=OTHER, epoch=0, rev=1, tiles=(), t_commit_ns=1)
        notifications.send(elsewhere, tiles(1))
        assert take(client, 1)[0].run == RUN
    with Client(notifications.endpoint, queries.endpoint, instrument="scope", stream="cam") as client:
        notifications.wait_subscribed("tc1/scope/cam/")
        notifications.wait_subscribed("tc1/scope/daemon/hb")
        notifications.send(heartbeat((OTHER, 0, 5)), tiles(1, run=OTHER, stream="other"), tiles(1))
        assert take(client, 1)[0].run == RUN
    with pytest.raises(ValueError, match="needs its instrument"):
        Client(notifications.endpoint, None, stream="cam")


def test_notices_come_to_those_who_want_them(notifications: ScriptedNotifications, queries: ScriptedQueries) -> None:
    notice = RunNotice(instrument="scope", stream="cam", run=RUN, kind="gap", detail={"frames": [[3, 4]]})
    with (
        Client(notifications.endpoint, queries.endpoint, notices=True) as curious,
        Client(notifications.endpoint, queries.endpoint) as other,
    ):
        for client in (curious, other):
            notifications.wait_subscribed("tc1/")  # once for each
            client.wait_connected(PATIENCE_S)
        notifications.send(notice, tiles(1))
        assert take(curious, 1) == [notice]
        assert isinstance(take(curious, 1)[0], TileUpdate)


def test_what_cannot_be_read_is_counted_and_passed_over(client: Client, notifications: ScriptedNotifications) -> None:
    notifications.send_raw(b"tc1/scope/cam/tiles", b"\xc1")
    notifications.send_raw(b"tc1/scope/cam/tiles")
    notifications.send(tiles(1))
    assert said(take(client, 1)) == [(1, [1])]
    assert client.n_malformed == 2


def test_lag_counts_what_was_not_handed_out(client: Client, notifications: ScriptedNotifications, store: Store) -> None:
    sent = store.commit_each(3)
    assert client.lag(RUN) == Lag(3, 0)  # never followed
    notifications.send(sent[0])
    take(client, 1)
    lag = client.lag(RUN)
    assert lag.revs == 2
    assert lag.ns > 10**18, "since 1970, when the scripted commit was made"
    notifications.send(*sent[1:])
    take(client, 2)
    assert client.lag(RUN) == Lag(0, 0)
    store.commit((0, 0, 0, 0, 0, 4), new_epoch=True)
    assert client.lag(RUN).revs == 4


def test_nobody_there_says_what_to_do(notifications: ScriptedNotifications, queries: ScriptedQueries) -> None:
    with Client(notifications.endpoint, queries.endpoint, timeout_s=MOMENT_S) as client:
        client.wait_connected(PATIENCE_S)
    gone = ScriptedNotifications()
    with gone:
        pass
    with Client(gone.endpoint, gone.endpoint, timeout_s=0.5) as client:
        with pytest.raises(DisconnectedError, match=r"within 0\.5 s: nobody listens there.*its option notify"):
            client.wait_connected()
        with pytest.raises(DisconnectedError, match=r"nobody listens there.*its option query"):
            client.runs()
    with pytest.raises(ValueError, match="an endpoint looks like"):
        Client("5572", None)


# ---- asking ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def asking(queries: ScriptedQueries) -> Iterator[Client]:
    with Client(None, queries.endpoint, timeout_s=PATIENCE_S) as client:
        yield client


def run_of(dtype: str, size: int = 8) -> Any:
    return lambda query: ({"run": {"run": query["run"], "tile_size": size, "dtype": dtype}}, [])


def test_a_late_answer_is_not_taken_for_another(queries: ScriptedQueries, asking: Client) -> None:
    numbers = itertools.count(1)
    queries.answers["stats"] = lambda _: ({"stats": {"n": next(numbers)}}, [])
    with queries.changed, pytest.raises(DisconnectedError):  # it is busy, and answers afterwards
        asking.ask("stats", timeout_s=MOMENT_S)
    queries.wait_for(lambda: len(queries.asked) == 1)
    assert asking.stats() == {"n": 2}


def test_an_answer_to_another_question_is_passed_over(queries: ScriptedQueries, asking: Client) -> None:
    queries.answers["stats"] = lambda _: ({"stats": {"n": 1}}, [])
    queries.before = [make_reply(999, stats={"n": 2}), make_reply(None, stats={"n": 3})]
    assert asking.stats() == {"n": 1}


def test_refusals_are_errors_with_a_code(queries: ScriptedQueries, asking: Client) -> None:
    def refuse(_: dict[str, Any]) -> Any:
        raise QueryError("not-allowed", "only operators may delete")

    queries.answers["delete"] = refuse
    with pytest.raises(QueryError, match="only operators") as caught:
        asking.delete(RUN)
    assert caught.value.code == "not-allowed"
    queries.answers["run"] = run_of("<u2")
    with pytest.raises(QueryError, match="tile: level"):
        asking.tile(RUN, (0, 0, 0, -1, 0, 0))
    with pytest.raises(QueryError, match="no command"):
        asking.ask("dance")
    assert {query["cmd"] for query in queries.asked} == {"delete", "run"}


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<f4"])
def test_a_tile_comes_with_its_coverage(queries: ScriptedQueries, asking: Client, dtype: str) -> None:
    pixels = np.arange(64).reshape(8, 8).astype(dtype)
    mask = np.random.default_rng(0).random((8, 8)) < 0.5
    payload = [bytes(pzf.encode_image(pixels))]
    queries.answers |= {"run": run_of(dtype), "tile": lambda _: ({"rev": 7, "coverage": "full"}, payload)}
    tile = asking.tile(RUN, TILE)
    assert tile is not None
    assert (tile.rev, tile.pixels.dtype, tile.coverage.all()) == (7, np.dtype(dtype), True)
    np.testing.assert_array_equal(tile.pixels, pixels)
    masked = [*payload, np.packbits(mask).tobytes()]
    queries.answers["tile"] = lambda _: ({"rev": 8, "coverage": "mask"}, masked)
    tile = asking.tile(RUN, tuple(TILE))
    assert tile is not None
    np.testing.assert_array_equal(tile.coverage, mask)
    asked = queries.asked[-1]
    assert [asked[key] for key in ("run", "tcz", "level", "row", "col", "if_newer")] == [RUN, (0, 1, 0), 2, -3, 4, None]
    assert sum(query["cmd"] == "run" for query in queries.asked) == 1, "what does not change is asked once"


def test_a_tile_may_be_absent_or_unchanged(queries: ScriptedQueries, asking: Client) -> None:
    queries.answers |= {"run": run_of("<u2"), "tile": lambda _: ({"absent": True}, [])}
    assert asking.tile(RUN, TILE) is None
    queries.answers["tile"] = lambda query: ({"not_modified": True, "rev": query["if_newer"]}, [])
    assert asking.tile(RUN, TILE, if_newer=5) == Unchanged(5)


def record(shape: tuple[int, int] = (8, 8), dtype: str = "<u2") -> bytes:
    """A tile's bytes."""
    return bytes(pzf.encode_image(np.zeros(shape, dtype)))


@pytest.mark.parametrize(
    ("values", "payload", "error", "says"),
    [
        ({"rev": 1, "coverage": "full"}, [], MalformedError, "no pixels"),
        ({"rev": 1, "coverage": "full"}, [b"BD" + bytes(80)], PZFError, "."),
        ({"rev": 1, "coverage": "full"}, [record((8, 9))], PZFError, "."),
        ({"rev": 1, "coverage": "full"}, [record(dtype="|u1")], PZFError, "."),
        (
            {"rev": 1, "coverage": "mask"},
            [record()],
            MalformedError,
            "no cover",
        ),
        (
            {"rev": 1, "coverage": "mask"},
            [record(), bytes(9)],
            MalformedError,
            "64 pixels has 8 bytes; 9 came",
        ),
        ({"rev": 1}, [record()], MalformedError, "full or mask; got None"),
        ({"coverage": "full"}, [record()], MalformedError, "lacks rev"),
    ],
)
def test_a_tile_that_is_not_what_it_must_be_is_refused(
    queries: ScriptedQueries,
    asking: Client,
    values: dict[str, Any],
    payload: list[bytes],
    error: type[Exception],
    says: str,
) -> None:
    queries.answers |= {"run": run_of("<u2"), "tile": lambda _: (values, payload)}
    with pytest.raises(error, match=says):
        asking.tile(RUN, TILE)


@pytest.mark.parametrize("codec", ["raw", "pzf"])
def test_a_region_comes_as_an_array_with_its_coverage(queries: ScriptedQueries, asking: Client, codec: Any) -> None:
    pixels = np.arange(15, dtype="<f4").reshape(3, 5)
    mask = pixels % 2 == 0
    payload = [bytes(pzf.encode_image(pixels)) if codec == "pzf" else pixels.tobytes(), np.packbits(mask).tobytes()]
    queries.answers |= {"run": run_of("<f4"), "region": lambda _: ({"coverage": "mask"}, payload)}
    array, coverage = asking.region(RUN, 1, (-1, -2, 2, 3), codec=codec, fill=float("nan"))
    np.testing.assert_array_equal(array, pixels)
    np.testing.assert_array_equal(coverage, mask)
    array[:] = 0  # it is the caller's
    asked = queries.asked[-1]
    assert (asked["level"], asked["bounds"], asked["codec"]) == (1, (-1, -2, 2, 3), codec)
    assert np.isnan(asked["fill"])
    with pytest.raises((PZFError, MalformedError)):
        asking.region(RUN, 1, (0, 0, 3, 6), codec=codec)


def test_a_snapshot_is_read_in_pages(queries: ScriptedQueries, asking: Client, store: Store) -> None:
    store.commit_each(8)
    snapshot = asking.snapshot(RUN, tcz=(0, 0, 0), level=0)
    assert snapshot.tiles == {TileRef(*tile): rev for tile, rev in store.tiles.items()}
    pages = [query for query in queries.asked if query["cmd"] == "snapshot"]
    assert [query["after"] and query["after"][-1] for query in pages] == [None, 3, 6]
    assert {(query["tcz"], query["level"]) for query in pages} == {((0, 0, 0), 0)}


def test_a_snapshot_begins_anew_if_the_run_is_rebuilt_meanwhile(
    queries: ScriptedQueries, asking: Client, store: Store
) -> None:
    store.commit_each(8)
    pages = itertools.count()

    def rebuilt_once(query: dict[str, Any]) -> Any:
        if next(pages) == 1:
            store.commit((0, 0, 0, 0, 0, 1), new_epoch=True)
        return store.answer_snapshot(query)

    queries.answers["snapshot"] = rebuilt_once
    snapshot = asking.snapshot(RUN)
    assert (snapshot.epoch, snapshot.rev, len(snapshot.tiles)) == (1, 9, 8)

    def rebuilt_always(query: dict[str, Any]) -> Any:
        store.epoch += 1
        return store.answer_snapshot(query)

    queries.answers["snapshot"] = rebuilt_always
    with pytest.raises(QueryError, match=f"rebuilt {MAX_ATTEMPTS} times"):
        asking.snapshot(RUN)


def test_what_is_told_of_runs_and_of_the_daemon(queries: ScriptedQueries, asking: Client) -> None:
    queries.answers |= {
        "hello": lambda _: ({"version": "1.2"}, []),
        "runs": lambda _: ({"runs": [{"run": RUN}]}, []),
        "run": lambda query: ({"run": {"run": query["run"], "name": "liver"}}, []),
        "report": lambda _: ({"report": {"received": 3}, "revision": 2, "final": True}, []),
        "health": lambda _: ({"health": {"state": "ready"}}, []),
    }
    assert asking.hello() == {"version": "1.2"}
    assert asking.runs() == [{"run": RUN}]
    assert asking.run(RUN)["name"] == "liver"
    assert asking.report(RUN) == {"report": {"received": 3}, "revision": 2, "final": True}
    assert asking.health() == {"state": "ready"}


def test_placements_are_read_page_by_page(queries: ScriptedQueries, asking: Client) -> None:
    rows = [
        [3, 0, 0, 1, 0, -10, 20, 100, 200, "joined", 4, 8],
        [5, 1, 0, 1, 0, -10, 20, 100, 200, "stage", 2, 9],
        [3, 0, 0, 1, 0, -11, 21, 100, 200, "registered", 4, 10, "a key of a later version"],
    ]
    unplaced = [{"why": "stage-gap", "frames": [[6, 8]]}]
    epochs = iter([1, 2, 2, 2, 2])

    def answer(query: dict[str, Any]) -> Any:
        at = 0 if query["after"] is None else [(row[11], row[0], row[1]) for row in rows].index(query["after"]) + 1
        last = {} if at < 2 else {"unplaced": unplaced}
        values = {"epoch": next(epochs), "rev": 9 + at, "placements": rows[at : at + 1], "more": at < 2}
        return values | last, []

    queries.answers["placements"] = answer
    placements = asking.placements(RUN, since=7)
    assert {query["since"] for query in queries.asked} == {7}
    assert placements.placed == (
        PlacedFrame(3, 0, 0, 1, 0, -11, 21, 100, 200, "registered", 4, 10),
        PlacedFrame(5, 1, 0, 1, 0, -10, 20, 100, 200, "stage", 2, 9),
    )
    assert (placements.unplaced, placements.epoch, placements.rev) == (tuple(unplaced), 2, 9)


def test_orders_of_an_operator(queries: ScriptedQueries, asking: Client) -> None:
    orders = ("end", "rebuild", "repair", "rename", "note", "delete", "seal", "reload")
    queries.answers |= {order: lambda query: ({"done": query["cmd"]}, []) for order in orders}
    queries.answers["seal"] = lambda query: ({"freed_bytes": 7 + query["force"]}, [])
    asking.end(RUN)
    asking.rebuild(RUN, blend="max", rejoin=True)
    assert asking.repair(RUN) == {"done": "repair"}
    asking.rename(RUN, "kidney")
    asking.note(RUN, "two\nlines")
    asking.delete(RUN)
    assert asking.seal(RUN, force=True) == 8
    assert asking.reload() == {"done": "reload"}
    assert tuple(query["cmd"] for query in queries.asked) == orders
    _, rebuild, _, rename, note, *_ = queries.asked
    assert (rebuild["blend"], rebuild["rejoin"]) == ("max", True)
    assert (rename["name"], note["text"]) == ("kidney", "two\nlines")


def test_curve_keys() -> None:
    servers, mine = CurveKeys(*zmq.curve_keypair()), CurveKeys(*zmq.curve_keypair())
    with ScriptedQueries({"hello": lambda _: ({"version": "1"}, [])}, keys=servers) as queries:
        with Client(None, queries.endpoint, curve=mine._replace(server=servers.public)) as client:
            assert client.hello() == {"version": "1"}
        with (
            Client(None, queries.endpoint, timeout_s=0.5) as client,
            pytest.raises(DisconnectedError, match="CURVE"),
        ):
            client.hello()


def test_ids_are_text_as_well(queries: ScriptedQueries, asking: Client) -> None:
    queries.answers["run"] = run_of("<u2")
    asking.run(uuid.UUID(RUN).hex)
    assert queries.asked[-1]["run"] == RUN
