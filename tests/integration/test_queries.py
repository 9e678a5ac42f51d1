"""Every command of the query socket, asked of a real daemon about runs whose mosaic the test knows.

What is asked is written, and what is answered compared, without the project's own client wherever the answer's form is
in question; values are the reference's.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
import psutil
import pytest
import zmq
from numpy.typing import NDArray

from faults.nursery import ForkedDaemon
from integration.conftest import Station
from integration.scanning import Corners, Pixels, assert_holds
from integration.stored import assert_same, journalled_frames, stored_mosaic
from integration.talking import PX_UM, SHAPE, RawPublisher, Watcher, centre_um, new_uuid, picture
from reference import mosaic_reference
from tilecast.process import DaemonProcess
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_protocol import pzf
from tilecast_protocol.client import Client
from tilecast_protocol.errors import QueryError
from tilecast_protocol.publisher import Publisher
from tilecast_protocol.queries import Reply

README = Path(__file__).resolve().parents[2] / "protocol" / "README.md"
TILE = 32
Plane = tuple[int, int, int]

#: Where each frame of the run lies: two islands, another plane, a block that overlaps itself, yet another plane.
CORNERS: Corners = {
    0: (-100, 40),
    1: (70, 90),
    2: (10, -70),
    3: (-34, -34),
    4: (-34, -10),
    5: (-14, -34),
    6: (-14, -10),
    7: (0, 0),
}
PLANES: dict[int, Plane] = {2: (1, 0, 2), 7: (0, 1, 0)}


class Scan(NamedTuple):
    """A run that is known by heart.

    Attributes
    ----------
    expected : Mosaic
        Its tiles, by the reference.
    """

    run: str
    publisher: Publisher
    sent: Pixels
    expected: mosaic_reference.Mosaic


def plane_of(frame: int) -> Plane:
    return PLANES.get(frame, (0, 0, 0))


def reference(sent: Pixels, mode: str = "feather", dtype: str = "<u2") -> mosaic_reference.Mosaic:
    """The mosaic of frames at `CORNERS`, with nothing taken from a store."""
    frames = [
        mosaic_reference.Frame(frame, 0, frame, plane_of(frame), *CORNERS[frame], pixels)
        for frame, pixels in sent.items()
    ]
    return mosaic_reference.mosaic(frames, mode, dtype, TILE)


def scan_of(station: Station, dtype: str, stream: str, **fields: Any) -> Iterator[Scan]:
    """An open run with all its frames in the mosaic, but for the last, which says nothing of its position."""
    with station.publisher(stream, instrument="queries") as publisher:
        run = publisher.start(stream, shape=SHAPE, dtype=dtype, px_um=PX_UM, pos_src="frame", **fields)
        sent = {frame: picture(40 + frame, dtype=dtype) for frame in CORNERS}
        for frame, pixels in sent.items():
            publisher.image(pixels, pos_um=centre_um(*CORNERS[frame]), tcz=plane_of(frame))
            station.watch.placed(run, frame + 1)  # a commit for each
        publisher.image(picture(60, dtype=dtype))
        publisher.flush()
        yield Scan(run, publisher, sent, reference(sent, dtype=dtype))


@pytest.fixture(scope="module")
def scan(station: Station) -> Iterator[Scan]:
    yield from scan_of(
        station,
        "<u2",
        "ints",
        channels=[{"name": "DAPI", "color": "0000ff"}, {"name": "GFP", "emission_nm": 509}],
        planes={"t": 2, "c": 2, "z": 3},
        n_expected=10,
        user={"sample": "liver"},
    )


@pytest.fixture(scope="module")
def floats(station: Station) -> Iterator[Scan]:
    yield from scan_of(station, "<f4", "floats")


def ask(station: Station, cmd: str, **arguments: Any) -> dict[str, Any]:
    """The header of an answer, without its envelope."""
    header = station.client.ask(cmd, **arguments).header
    assert (header.pop("v"), header.pop("ok"), type(header.pop("id"))) == (1, True, int)
    return header


def refusal(client: Client, cmd: str, **arguments: Any) -> str:
    """The code with which something is refused."""
    with pytest.raises(QueryError) as caught:
        client.ask(cmd, **arguments)
    assert caught.value.message
    return caught.value.code


# ---- the form of the answers -----------------------------------------------------------------------------------------


def documented(cmd: str) -> set[str]:
    """The keys that protocol/README.md lists for the answer to a command."""
    section = README.read_text(encoding="utf-8").split("## 7. Answers, key by key")[1]
    part = section.split(f"### `{cmd}`")[1].split("###")[0]
    return set(re.findall(r"^\| `([^`]+)`", part, re.MULTILINE))


def keys(values: dict[str, Any], depth: int, prefix: str = "") -> set[str]:
    """The keys of an answer, those of maps inside it as `map.key`, of a list of maps as `list[].key`."""
    found = set()
    for key, value in values.items():
        inner: Any = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and depth > 1:
            found |= keys(inner, depth - 1, f"{prefix}{key}{'[]' if inner is not value else ''}.")
        else:
            found.add(prefix + key)
    return found


def test_the_answers_have_the_keys_that_the_contract_lists(station: Station, scan: Scan) -> None:
    run, at = scan.run, {"run": scan.run, "tcz": (0, 0, 0), "level": 0}
    rev = station.client.run(run)["rev"]
    region = {"bounds": (-200, -200, 200, 200)} | at
    answers = {
        "hello": [(ask(station, "hello"), 2)],
        "runs": [({"runs": [line]}, 2) for line in ask(station, "runs")["runs"] if line["state"] != "damaged"],
        "run": [(ask(station, "run", run=run), 2)],
        "snapshot": [(ask(station, "snapshot", run=run), 1)],
        "tile": [
            (ask(station, "tile", row=0, col=0, **at), 1),
            (ask(station, "tile", row=0, col=0, if_newer=rev, **at), 1),
            (ask(station, "tile", row=9, col=9, **at), 1),
        ],
        "region": [(ask(station, "region", **region), 1)],
        "changes": [
            (ask(station, "changes", run=run, epoch=station.client.run(run)["epoch"], since=rev), 1),
            (ask(station, "changes", run=run, epoch=0, since=0), 1),
        ],
        "placements": [(ask(station, "placements", run=run), 2), (ask(station, "placements", run=run, limit=1), 2)],
        "report": [(ask(station, "report", run=run), 2)],
        "stats": [(ask(station, "stats"), 2)],
        "health": [(ask(station, "health"), 2)],
    }
    for cmd, some in answers.items():
        # Frames of this run are not corrected, so no pixel was clipped that could be told of.
        told = documented(cmd) - {"report.clipped"}
        assert set().union(*(keys(values, depth) for values, depth in some)) == told, cmd


def test_the_id_comes_back_whatever_it_is_and_req_sockets_are_served(station: Station) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.linger = 0
    socket.connect(station.daemon.endpoints["query"])
    try:
        for number in (7, -3, "a name", None, 2**63 - 1):
            socket.send(msgpack.packb({"v": 1, "id": number, "cmd": "health", "unknown": {"argument": 1}}))
            assert socket.poll(30_000)
            header = msgpack.unpackb(socket.recv())
            assert (header["id"], header["ok"]) == (number, True)
    finally:
        socket.close()
        context.term()


def test_who_asks_too_much_at_once_is_told_and_gets_the_rest(station: Station) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(station.daemon.endpoints["query"])
    n = 400
    try:
        for number in range(n):
            socket.send(msgpack.packb({"v": 1, "id": number, "cmd": "runs"}))
        assert station.client.health()["state"] == "ready"  # another viewer is answered meanwhile
        answered, busy = set(), set()
        while len(answered) + len(busy) < n:
            assert socket.poll(30_000)
            header = msgpack.unpackb(socket.recv())
            if header["ok"]:
                answered.add(header["id"])
            else:
                assert header["error"]["code"] == "busy"
                busy.add(header["id"])
        assert len(answered) >= 64
        assert not answered & busy
    finally:
        socket.close()
        context.term()


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_hello(station: Station) -> None:
    hello = ask(station, "hello")
    assert (hello["protocol"], hello["instrument"]) == (1, "microscope")
    assert hello["endpoints"] == station.daemon.endpoints
    assert hello["limits"] == {"max_region_pixels": 1 << 25, "max_tiles": 4000, "max_frame_bytes": 1 << 20}


def test_runs_and_run_say_how_a_run_stands(station: Station, scan: Scan) -> None:
    [line] = [line for line in ask(station, "runs")["runs"] if line["run"] == scan.run]
    details = ask(station, "run", run=scan.run.upper())["run"]
    n_bytes = line.pop("bytes")
    assert line == {key: details[key] for key in line}
    assert n_bytes > sum(pixels.nbytes for pixels in scan.sent.values()) / 2
    assert (line["name"], line["instrument"], line["stream"], line["state"]) == ("ints", "queries", "ints", "open")
    assert (line["shape"], line["dtype"], line["px_um"], line["tile_size"]) == ([24, 30], "<u2", list(PX_UM), TILE)
    assert sorted(line["planes"]) == [[0, 0, 0], [0, 1, 0], [1, 0, 2]]
    assert line["bbox"] == [-100, -70, 94, 120]
    assert line["levels"] == 1 + max(key[0] for _, key in scan.expected)
    assert (line["frames"], line["replay_of"]) == (8, None)
    assert line["rev"] == 8

    assert sorted(details["bboxes"]) == [
        [[0, 0, 0], [-100, -34, 94, 120]],
        [[0, 1, 0], [0, 0, 24, 30]],
        [[1, 0, 2], [10, -70, 34, -40]],
    ]
    start = details["start"]
    assert (start["name"], start["user"], start["planes"]) == ("ints", {"sample": "liver"}, {"t": 2, "c": 2, "z": 3})
    assert (start["channels"][1]["name"], start["n_expected"], start["pos_src"]) == ("GFP", 10, "frame")
    assert details["settings"] == {
        "mode": "feather",
        "tile_size": TILE,
        "calibration": "",
        "join_max_gap_ms": 250.0,
        "allow_moving": False,
        "blend_status": [0, 3],
    }
    row0, col0, row1, col1 = details["canvas"]["bounds"]
    assert row0 <= -100 < 94 <= row1
    assert col0 <= -70 < 120 <= col1
    top = TILE << (details["canvas"]["levels"] - 1)
    assert [edge % top for edge in (row0, col0, row1, col1)] == [0, 0, 0, 0]
    assert (details["report"], details["revision"]) == (None, 0)


def test_an_unknown_run_is_unknown_to_every_command(station: Station) -> None:
    run, tcz = new_uuid(), (0, 0, 0)
    arguments: dict[str, dict[str, Any]] = {
        "run": {},
        "snapshot": {},
        "tile": {"tcz": tcz, "level": 0, "row": 0, "col": 0},
        "region": {"tcz": tcz, "level": 0, "bounds": (0, 0, 1, 1)},
        "changes": {"epoch": 0, "since": 0},
        "placements": {},
        "report": {},
        "end": {},
        "rebuild": {},
        "repair": {},
        "rename": {"name": "x"},
        "note": {"text": "x"},
        "delete": {},
        "seal": {},
    }
    assert {cmd: refusal(station.client, cmd, run=run, **more) for cmd, more in arguments.items()} == dict.fromkeys(
        arguments, "unknown-run"
    )


def test_stats_count_what_happens(station: Station, scan: Scan) -> None:
    before = ask(station, "stats")["stats"]
    assert before["state"] == "ready"
    assert before["ingest"]["runs"]["open"] >= 1
    assert before["blend"]["pyramids"].keys() >= {scan.run}
    for queue in before["queues"].values():
        assert 0 <= queue["nbytes"] <= queue["high_water_bytes"]
        assert queue["n_put"] > 0
    assert before["latency_ms"]["n"] > 0
    assert 0 < before["latency_ms"]["p50"] <= before["latency_ms"]["p99"] <= before["latency_ms"]["max"]
    with RawPublisher(station.ack, instrument="queries", stream="counted") as publisher:
        publisher.hello()
        run = new_uuid()
        publisher.start(run)
        publisher.wait_settled(publisher.image(run, 0, picture(1), pos_um=[0.0, 0.0]))
        publisher.wait_settled(publisher.image(run, 0, picture(1), pos_um=[0.0, 0.0]))
        station.watch.placed(run, 1)
        after = ask(station, "stats")["stats"]
        publisher.wait_settled(publisher.send("end", run=run, reason="done", n_sent=1))
    for group, counter, more in (
        ("ingest", "images", 1),
        ("ingest", "image_bytes", 24 * 30 * 2),
        ("ingest", "dropped_duplicate", 1),
        ("ingest", "loaded_runs", 1),
        ("ingest", "publishers", 1),
        ("blend", "n_frames", 1),
        ("store", "n_commits", 1),
        ("notify", "n_sent", 2),
    ):
        assert after[group].get(counter, 0) - before[group].get(counter, 0) >= more, counter
    assert after["store"]["free_bytes"] > 0
    assert after["rss_bytes"] > 0
    health = ask(station, "health")["health"]
    assert (health["state"], health["ready"], health["problems"]) == ("ready", True, [])
    assert scan.run in health["runs"]


# ---- tiles -----------------------------------------------------------------------------------------------------------


def test_a_snapshot_lists_every_tile(station: Station, scan: Scan) -> None:
    whole = ask(station, "snapshot", run=scan.run)
    listed = [((t, c, z), (level, row, col)) for t, c, z, level, row, col, _ in whole["tiles"]]
    assert sorted(listed) == sorted(scan.expected)
    assert not whole["more"]
    assert max(tile[-1] for tile in whole["tiles"]) == whole["rev"] == station.client.run(scan.run)["rev"]
    for tcz, level in itertools.product([None, (0, 0, 0), (0, 1, 0), (5, 5, 5)], [None, 0, 1, 9]):
        part = ask(station, "snapshot", run=scan.run, tcz=tcz, level=level)
        assert part["tiles"] == [
            tile
            for tile in whole["tiles"]
            if (tcz is None or tuple(tile[:3]) == tcz) and (level is None or tile[3] == level)
        ]
        assert not part["more"]
    pages: list[list[int]] = []
    page = ask(station, "snapshot", run=scan.run, limit=7)
    while True:
        assert (page["epoch"], page["rev"]) == (whole["epoch"], whole["rev"])
        assert len(page["tiles"]) == 7 or not page["more"]
        pages += page["tiles"]
        if not page["more"]:
            break
        page = ask(station, "snapshot", run=scan.run, limit=7, after=page["tiles"][-1][:6])
    assert pages == whole["tiles"]


@pytest.mark.parametrize("kind", ["scan", "floats"])
def test_tiles_are_the_references_with_their_coverage(
    station: Station, kind: str, request: pytest.FixtureRequest
) -> None:
    scan: Scan = request.getfixturevalue(kind)
    n_full = 0
    for (tcz, (level, row, col)), (pixels, covered) in scan.expected.items():
        tile = {"run": scan.run, "tcz": tcz, "level": level, "row": row, "col": col}
        reply = station.client.ask("tile", **tile)
        found = pzf.decode_image(reply.payload[0])
        np.testing.assert_array_equal(found.view("u1"), pixels.view("u1"))
        if covered.all():
            n_full += 1
            assert (reply.header["coverage"], len(reply.payload)) == ("full", 1)
        else:
            assert reply.header["coverage"] == "mask"
            bits = np.unpackbits(np.frombuffer(reply.payload[1], np.uint8))
            np.testing.assert_array_equal(bits.reshape(TILE, TILE), covered)
        rev = reply.header["rev"]
        assert ask(station, "tile", if_newer=rev, **tile) == {"not_modified": True, "rev": rev}
        assert ask(station, "tile", if_newer=rev - 1, **tile)["rev"] == rev
    assert n_full >= 1


@pytest.mark.parametrize(
    "where",
    [
        {"row": 5, "col": 0},
        {"row": 0, "col": 0, "tcz": (0, 0, 1)},
        {"row": 0, "col": 0, "level": 31},
        {"row": -(2**31), "col": 2**31 - 1},
    ],
    ids=["a hole", "another plane", "above the top", "the end of the world"],
)
@pytest.mark.parametrize("if_newer", [None, 0])
def test_a_tile_that_is_not_there_is_absent(
    station: Station, scan: Scan, where: dict[str, Any], if_newer: int | None
) -> None:
    reply = station.client.ask("tile", run=scan.run, if_newer=if_newer, **({"tcz": (0, 0, 0), "level": 0} | where))
    assert (reply.header["absent"], reply.payload) == (True, ())


def assembled(scan: Scan, tcz: Plane, level: int, bounds: tuple[int, int, int, int], fill: float) -> Any:
    """What a region must be: pixels and coverage, pixel by pixel from the reference's tiles."""
    row0, col0, row1, col1 = bounds
    dtype = next(iter(scan.sent.values())).dtype
    pixels = np.full((row1 - row0, col1 - col0), fill, dtype)
    covered = np.zeros(pixels.shape, bool)
    for row, col in itertools.product(range(row0, row1), range(col0, col1)):
        tile = scan.expected.get((tcz, (level, row // TILE, col // TILE)))
        if tile is not None and tile[1][row % TILE, col % TILE]:
            pixels[row - row0, col - col0] = tile[0][row % TILE, col % TILE]
            covered[row - row0, col - col0] = True
    return pixels, covered


def region_of(reply: Reply) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Pixels and coverage of the answer to `region`, read by its header alone."""
    header = reply.header
    shape = tuple(header["shape"])
    if header["codec"] == "raw":
        pixels = np.frombuffer(reply.payload[0], header["dtype"]).reshape(shape)
    else:
        pixels = pzf.decode_image(reply.payload[0], shape=shape, dtype=header["dtype"])
    if header["coverage"] == "full":
        assert len(reply.payload) == 1
        return pixels, np.ones(shape, bool)
    bits = np.unpackbits(np.frombuffer(reply.payload[1], np.uint8), count=pixels.size)
    return pixels, bits.reshape(shape).astype(bool)


REGIONS: dict[str, tuple[Plane, int, tuple[int, int, int, int]]] = {
    "everything": ((0, 0, 0), 0, (-130, -40, 130, 140)),
    "across tile borders": ((0, 0, 0), 0, (-5, -7, 23, 29)),
    "one pixel": ((0, 0, 0), 0, (-1, -1, 0, 0)),
    "one covered tile and a bit of a hole": ((0, 0, 0), 0, (60, 80, 100, 130)),
    "wholly in a hole": ((0, 0, 0), 0, (30, 200, 40, 210)),
    "another plane": ((1, 0, 2), 0, (0, -80, 40, -30)),
    "a plane that is not there": ((9, 9, 9), 0, (0, 0, 5, 5)),
    "level 1": ((0, 0, 0), 1, (-60, -30, 60, 70)),
    "the top": ((0, 0, 0), 2, (-30, -20, 30, 33)),
}


@pytest.mark.parametrize("codec", ["raw", "pzf"])
@pytest.mark.parametrize("name", REGIONS)
def test_a_region_is_assembled_from_tiles(station: Station, scan: Scan, name: str, codec: str) -> None:
    tcz, level, bounds = REGIONS[name]
    ask_for = {"run": scan.run, "tcz": tcz, "level": level, "bounds": bounds, "codec": codec}
    for fill, filled in ((None, 0), (777, 777), (1e9, 65535), (-5, 0), (float("nan"), 0)):
        reply = station.client.ask("region", **ask_for, fill=fill)
        pixels, covered = region_of(reply)
        right, right_covered = assembled(scan, tcz, level, bounds, filled)
        np.testing.assert_array_equal(pixels, right)
        np.testing.assert_array_equal(covered, right_covered)
        assert reply.header["codec"] == codec
        assert (reply.header["rev"] > 0) == right_covered.any()


def test_a_region_of_floats_is_filled_with_nan(station: Station, floats: Scan) -> None:
    bounds = (-30, -30, 40, 40)
    for codec, (fill, filled) in itertools.product(("raw", "pzf"), ((None, np.nan), (0, 0.0), (-2.5, -2.5))):
        reply = station.client.ask(
            "region", run=floats.run, tcz=(0, 0, 0), level=0, bounds=bounds, codec=codec, fill=fill
        )
        pixels, covered = region_of(reply)
        right, right_covered = assembled(floats, (0, 0, 0), 0, bounds, filled)
        np.testing.assert_array_equal(pixels, right)
        np.testing.assert_array_equal(covered, right_covered)


def test_a_region_that_cannot_be_is_refused(station: Station, scan: Scan) -> None:
    plain = {"run": scan.run, "tcz": (0, 0, 0), "level": 0, "bounds": (0, 0, 10, 10)}
    assert refusal(station.client, "region", **plain | {"level": 3}) == "malformed"
    assert refusal(station.client, "region", **plain | {"bounds": (0, 0, 8192, 4097)}) == "too-large"
    assert refusal(station.client, "region", **plain | {"bounds": (-(2**31), -(2**31), 2**31 - 1, 2**31 - 1)}) == (
        "too-large"
    )


def test_changes_tell_each_tile_once(station: Station, scan: Scan) -> None:
    info = station.client.run(scan.run)
    epoch, rev = info["epoch"], info["rev"]
    snapshot = ask(station, "snapshot", run=scan.run)["tiles"]
    since = station.watch.until(
        lambda message: getattr(message, "run", None) == scan.run and getattr(message, "epoch", 0) == epoch,
        "a commit of this epoch",
    ).rev
    newer = sorted(tile for tile in snapshot if tile[-1] > since)
    whole = ask(station, "changes", run=scan.run, epoch=epoch, since=since)
    assert sorted(whole["tiles"]) == newer
    assert (whole["resync"], whole["epoch"], whole["upto"], whole["more"], whole["gone"]) == (
        False,
        epoch,
        rev,
        False,
        [],
    )
    told: list[list[int]] = []
    page = ask(station, "changes", run=scan.run, epoch=epoch, since=since, limit=1)
    while True:
        assert {tile[-1] for tile in page["tiles"]} <= set(range(since + 1, page["upto"] + 1))
        told += page["tiles"]
        if not page["more"]:
            break
        since = page["upto"]
        page = ask(station, "changes", run=scan.run, epoch=epoch, since=since, limit=1)
    assert sorted(told) == newer
    assert ask(station, "changes", run=scan.run, epoch=epoch, since=rev)["tiles"] == []
    for other_epoch, other_since in ((epoch + 1, rev), (epoch - 1, 0), (epoch, rev + 1)):
        answer = ask(station, "changes", run=scan.run, epoch=other_epoch, since=other_since)
        assert (answer["resync"], answer["epoch"]) == (True, epoch)


def test_placements_say_where_each_frame_lies(station: Station, scan: Scan) -> None:
    whole = ask(station, "placements", run=scan.run)
    assert [row[:-1] for row in whole["placements"]] == [
        [frame, 0, *plane_of(frame), *corner, *SHAPE, "stage", frame] for frame, corner in CORNERS.items()
    ]
    assert whole["unplaced"] == [{"why": "no-position", "frames": [[8, 8]]}]
    assert not whole["more"]
    assert whole["rev"] == whole["placements"][-1][-1] == station.client.run(scan.run)["rev"]
    pages: list[list[Any]] = []
    after = None
    while True:
        page = ask(station, "placements", run=scan.run, limit=3, after=after)
        pages += page["placements"]
        if not page["more"]:
            assert page["unplaced"] == whole["unplaced"]
            break
        assert len(page["placements"]) == 3
        after = (page["placements"][-1][-1], *page["placements"][-1][:2])
    assert pages == whole["placements"]
    middle = pages[4][-1]
    since = ask(station, "placements", run=scan.run, since=middle)["placements"]
    assert since == [row for row in pages if row[-1] > middle]
    found = station.client.placements(scan.run)
    assert [list(one) for one in found.placed] == pages
    assert found.unplaced == tuple(whole["unplaced"])


def test_the_report_of_an_open_run_is_how_it_stands(station: Station, scan: Scan) -> None:
    answer = ask(station, "report", run=scan.run)
    assert (answer["final"], answer["revision"]) == (False, 0)
    report = answer["report"]
    assert (report["run"], report["state"], report["reason"]) == (scan.run, "open", None)
    assert (report["planned"], report["expected"], report["received"], report["placed"]) == (10, 9, 9, 8)
    assert report["unplaced"] == {"no-position": [[8, 8]]}
    assert report["by_status"] == {"good": 9, "incomplete": 0, "repeated": 0, "saturated": 0}


# ---- orders ----------------------------------------------------------------------------------------------------------


def test_a_run_is_renamed_and_noted(station: Station, floats: Scan) -> None:
    before = ask(station, "run", run=floats.run)["run"]
    assert ask(station, "rename", run=floats.run, name="liver, slice 12") == {"run": floats.run}
    assert ask(station, "note", run=floats.run, text="focus lost\nin the lower left") == {"run": floats.run}
    details = ask(station, "run", run=floats.run)["run"]
    assert (details["name"], details["start"]["name"]) == ("liver, slice 12", "floats")
    changed = {"name", "bytes"}
    assert {k: v for k, v in details.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }
    with SqliteReader(station.folder(floats.run)) as reader:
        events = {event.name: event.detail for event in reader.events()}
    assert events["note"] == {"text": "focus lost\nin the lower left"}
    assert events["rename"] == {"from": "floats", "to": "liver, slice 12"}


def test_an_open_run_is_rebuilt_and_goes_on(station: Station, floats: Scan) -> None:
    before = station.client.run(floats.run)
    assert ask(station, "rebuild", run=floats.run, blend="max") == {"run": floats.run}
    after = station.client.run(floats.run)
    assert (after["epoch"], after["rev"]) == (before["epoch"] + 1, before["rev"] + 1)
    assert after["settings"] == before["settings"] | {"mode": "max"}
    assert (after["state"], after["name"], after["frames"]) == ("open", before["name"], 8)
    assert_same(stored_mosaic(station.folder(floats.run)), reference(floats.sent, "max", "<f4"))
    told = station.watch.placed(floats.run, after["rev"])
    assert (told.epoch, told.rev, told.truncated, told.tiles) == (after["epoch"], after["rev"], True, None)
    # It goes on in the new mode.
    sent = floats.sent | {9: picture(99, dtype="<f4")}
    floats.publisher.image(sent[9], pos_um=centre_um(-15, -15))
    floats.publisher.flush()
    station.watch.placed(floats.run, after["rev"] + 1)
    folder = station.folder(floats.run)
    frames = [
        mosaic_reference.Frame(frame, 0, frame, plane_of(frame), *(CORNERS | {9: (-15, -15)})[frame], pixels)
        for frame, pixels in sent.items()
    ]
    for number, frame in enumerate(frames):
        if frame.number == 9:  # the one without a position lies before it in the journal
            frames[number] = mosaic_reference.Frame(9, 0, 9, (0, 0, 0), -15, -15, frame.pixels)
    assert_same(stored_mosaic(folder), mosaic_reference.mosaic(frames, "max", "<f4", TILE))
    assert refusal(station.client, "rebuild", run=floats.run, blend="magic") == "malformed"


def test_an_operator_ends_a_run(station: Station) -> None:
    with station.publisher("ended", instrument="queries") as publisher:
        run = publisher.start("ended", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")
        sent = {0: picture(0), 1: picture(1)}
        for frame, pixels in sent.items():
            publisher.image(pixels, pos_um=centre_um(*CORNERS[frame]))
        publisher.flush()
        assert ask(station, "end", run=run) == {"run": run}
        report = station.watch.report(run)
        assert (report["state"], report["reason"], report["received"]) == ("ended", "abort", 2)
        station.watch.notice(run, "ended")
        answer = ask(station, "report", run=run)
        assert (answer["final"], answer["revision"], answer["report"]) == (True, 1, report)
        details = ask(station, "run", run=run)["run"]
        assert (details["state"], details["report"], details["revision"]) == ("ended", report, 1)
        assert refusal(station.client, "end", run=run) == "conflict"
        ask(station, "rebuild", run=run, rejoin=True)
        assert_holds(station.folder(run), sent, {frame: CORNERS[frame] for frame in sent})
        # The publisher has not heard of it, and what it still sends is late.
        sent[2] = picture(2)
        publisher.image(sent[2], pos_um=centre_um(*CORNERS[2]))
        publisher.end()
        publisher.flush()
        station.watch.notice(run, "late")
        late = station.watch.report(run, revision=2)
        assert (late["received"], late["late"]) == (3, 1)
        assert_holds(station.folder(run), sent, {frame: CORNERS[frame] for frame in sent})


# ---- runs that nobody has open ---------------------------------------------------------------------------------------


class Shelf(NamedTuple):
    """A daemon over a store with runs of long ago."""

    daemon: DaemonProcess
    client: Client
    root: Path
    config_file: Path
    runs: dict[str, str]
    sent: Pixels


@pytest.fixture(scope="module")
def shelf(station: Station, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Four runs that have ended and a recording, in a daemon that was started after them."""
    root = tmp_path_factory.mktemp("shelf") / "runs"
    root.mkdir()
    runs: dict[str, str] = {}
    sent = {frame: picture(80 + frame) for frame in range(3)}
    for name in ("kept", "rebuilt", "deleted", "damaged", "recorded"):
        with station.publisher(name, instrument="shelf") as publisher:
            runs[name] = run = publisher.start(name, shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")
            for frame, pixels in sent.items():
                publisher.image(pixels, pos_um=centre_um(*CORNERS[frame]), tcz=plane_of(frame))
            publisher.image(picture(60))
            publisher.end()
            publisher.flush()
            station.watch.report(run)
        with SqliteReader(station.folder(run)) as reader:
            assert reader.info().n_placements == 3
        shutil.copytree(station.folder(run), root / run)
        (root / run / "active").unlink()
    for name in ("tiles.sqlite", "tiles.sqlite-wal", "tiles.sqlite-shm"):
        (root / runs["recorded"] / name).unlink()
    for name in ("tiles.sqlite-wal", "tiles.sqlite-shm"):
        (root / runs["damaged"] / name).unlink()
    (root / runs["damaged"] / "tiles.sqlite").write_bytes(b"not a database" * 100)
    config_file = root.parent / "tilecast.toml"
    config_file.write_text("[blend]\ntile_size = 32\n")
    settings = {"query": "tcp://0.0.0.0:*", "allow_plaintext": '["query"]'}
    daemon = ForkedDaemon(root, settings=settings, arguments=["--config", str(config_file)])
    with daemon, Client(None, daemon.endpoints["query"].replace("0.0.0.0", "127.0.0.1")) as client:
        yield Shelf(daemon, client, root, config_file, runs, sent)


def test_a_run_of_long_ago_answers_as_ever(shelf: Shelf) -> None:
    run, client = shelf.runs["kept"], shelf.client
    assert run not in client.health()["runs"]
    expected = reference(shelf.sent)
    snapshot = client.snapshot(run)
    assert sorted((tile[:3], tile[3:]) for tile in snapshot.tiles) == sorted(expected)
    for tile in snapshot.tiles:
        found = client.tile(run, tile)
        assert found is not None
        pixels, covered = expected[tile[:3], tile[3:]]
        np.testing.assert_array_equal(found.pixels, pixels)
        np.testing.assert_array_equal(found.coverage, covered)
    placements = client.placements(run)
    assert [(one.frame, one.row, one.col) for one in placements.placed] == [
        (frame, *CORNERS[frame]) for frame in shelf.sent
    ]
    assert placements.unplaced == ({"why": "no-position", "frames": [[3, 3]]},)
    report = client.report(run)
    assert (report["final"], report["report"]["received"], report["report"]["placed"]) == (True, 4, 3)
    assert refusal(client, "end", run=run) == "conflict"
    client.rename(run, "of long ago")
    client.note(run, "found again")
    assert client.run(run)["name"] == "of long ago"
    with SqliteReader(shelf.root / run) as reader:
        assert [event.detail["text"] for event in reader.events() if event.name == "note"] == ["found again"]


def test_a_run_of_long_ago_is_rebuilt(shelf: Shelf) -> None:
    run, client = shelf.runs["rebuilt"], shelf.client
    before = client.run(run)
    with Watcher(shelf.daemon.endpoints["notify"]) as watch:
        client.rebuild(run, blend="newest")
        after = client.run(run)
        assert (after["epoch"], after["rev"]) == (before["epoch"] + 1, before["rev"] + 1)
        assert watch.placed(run, after["rev"]).epoch == after["epoch"]
    assert (after["state"], after["report"]["received"]) == ("ended", 4)
    assert_same(stored_mosaic(shelf.root / run), reference(shelf.sent, "newest"))


@pytest.mark.parametrize("name", ["recorded", "damaged"])
def test_a_recording_and_a_ruined_run_get_their_mosaic_from_the_daemon(shelf: Shelf, name: str) -> None:
    run, client = shelf.runs[name], shelf.client
    shelf.daemon.wait_logged("repaired", run=run)
    details = client.run(run)
    assert (details["state"], details["frames"]) == ("ended", 3)
    assert details["epoch"] > 10**9
    assert_same(stored_mosaic(shelf.root / run), reference(shelf.sent))
    client.rebuild(run)
    assert client.run(run)["epoch"] == details["epoch"] + 1
    assert client.repair(run) == {"run": run, "done": [], "left": []}


def test_a_run_is_deleted(shelf: Shelf) -> None:
    run, client = shelf.runs["deleted"], shelf.client
    assert client.run(run)["name"] == "deleted"
    client.delete(run)
    assert not (shelf.root / run).exists()
    assert run not in [line["run"] for line in client.runs()]
    assert refusal(client, "run", run=run) == "unknown-run"
    assert refusal(client, "delete", run=run) == "unknown-run"
    # Its frames are not forgotten by those who sent them: it may begin again.
    with Publisher(shelf.daemon.endpoints["ingest.ack"], instrument="shelf", stream="deleted") as publisher:
        publisher.start("deleted", run=run, shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")
        publisher.image(shelf.sent[0], pos_um=centre_um(*CORNERS[0]))
        publisher.end()
    assert list(journalled_frames(shelf.root / run)) == [0]


def test_reload_says_what_has_changed(shelf: Shelf) -> None:
    assert shelf.client.reload() == {"changed": [], "applied": [], "needs_restart": []}
    shelf.config_file.write_text("[ingest]\nidle_end_s = 7\nhold_s = 7\n")
    found = shelf.client.reload()
    assert found["changed"] == ["ingest.idle_end_s", "blend.tile_size", "ingest.hold_s"]
    assert found["applied"] == ["ingest.idle_end_s", "blend.tile_size"]
    assert found["needs_restart"] == ["ingest.hold_s"]
    shelf.config_file.write_text("[blend]\ntile_sise = 7\n")
    with pytest.raises(QueryError, match=r"blend\.tile_size"):
        shelf.client.reload()
    assert "blend.tile_size" in shelf.client.health()["problems"][0]
    shelf.config_file.write_text("[blend]\ntile_size = 32\n")
    assert shelf.client.reload()["applied"] == ["ingest.idle_end_s", "blend.tile_size"]
    assert shelf.client.reload() == {"changed": [], "applied": [], "needs_restart": []}
    assert shelf.client.health()["problems"] == []


def test_only_operators_give_orders(shelf: Shelf) -> None:
    addresses = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name == "AF_INET" and not address.address.startswith("127.")
    ]
    if not addresses:
        pytest.skip("this machine has no address that is not its own loopback")
    port = shelf.daemon.endpoints["query"].rsplit(":", 1)[1]
    run = shelf.runs["kept"]
    with Client(None, f"tcp://{addresses[0]}:{port}") as stranger:
        assert stranger.run(run)["run"] == run
        orders: dict[str, dict[str, Any]] = {
            "end": {"run": run},
            "rebuild": {"run": run},
            "repair": {"run": run},
            "rename": {"run": run, "name": "mine"},
            "note": {"run": run, "text": "mine"},
            "delete": {"run": run},
            "seal": {"run": run},
            "reload": {},
        }
        assert {cmd: refusal(stranger, cmd, **arguments) for cmd, arguments in orders.items()} == dict.fromkeys(
            orders, "not-allowed"
        )
    assert shelf.client.run(run)["name"] != "mine"
    assert json.dumps(shelf.client.health()["runs"])
