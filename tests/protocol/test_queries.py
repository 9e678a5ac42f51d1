"""Queries: one table says what each command takes; server and client are held to it alike."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tilecast_protocol import messages, queries
from tilecast_protocol.errors import MalformedError, QueryError
from wire_messages import RUN

README = Path(__file__).resolve().parents[2] / "protocol" / "README.md"

GOOD: dict[str, Any] = {
    "run": RUN,
    "tcz": [0, 1, 2],
    "level": 3,
    "row": -5,
    "col": 7,
    "if_newer": 4,
    "bounds": [0, 0, 10, 20],
    "codec": "pzf",
    "fill": 0,
    "epoch": 0,
    "since": 1,
    "limit": 10,
    "after": [0, 0, 0, 0, 0, 0],
    "blend": "max",
    "dark": "dark.tif",
    "flat": "none",
    "steps": True,
    "rejoin": True,
    "layout": "registered",
    "registration": True,
    "name": "liver",
    "text": "a note",
    "force": True,
    "if_seen": [5, 6],
    "why": "archived as /mnt/tape/liver.tar",
}


def arguments_of(cmd: str) -> dict[str, Any]:
    good = GOOD | ({"after": [8, 7, 0]} if cmd == "placements" else {})
    return {argument.name: good[argument.name] for argument in queries.COMMANDS[cmd].arguments}


def refused(request: Any) -> QueryError:
    part = request if isinstance(request, bytes) else msgpack.packb(request)
    with pytest.raises(QueryError) as caught:
        queries.parse_query(part)
    return caught.value


def test_the_commands_are_those_of_the_contract() -> None:
    section = README.read_text(encoding="utf-8").split("## 4. Queries")[1].split("## 5.")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    told = [word for cell in first_cells for word in re.findall(r"`(\w+)`", cell)]
    assert set(told) == set(queries.COMMANDS)
    assert len(told) == len(set(told))


def test_the_arguments_are_those_of_the_contract() -> None:
    section = README.read_text(encoding="utf-8").split("## 4. Queries")[1].split("## 5.")[0]
    for cmd in ("run", "snapshot", "tile", "region", "changes", "placements"):
        row = next(line for line in section.splitlines() if line.startswith(f"| `{cmd}` |"))
        cell = re.sub(r"\[[^]]*\]", "", row.split("|")[2])
        told = {name: bool(mark) for name, mark in re.findall(r"`(\w+)`(\?)?", cell)}
        here = {argument.name: not argument.required for argument in queries.COMMANDS[cmd].arguments}
        # those that the reading "query-pages" adds
        added = dict.fromkeys(("after", "limit"), True) if cmd in ("snapshot", "placements") else {}
        # the contract gives these a default or puts them in brackets, rather than marking them with "?"
        told |= {name: True for name in ("if_newer", "codec", "fill", "limit") if name in told}
        assert here == told | added


@pytest.mark.parametrize("cmd", queries.COMMANDS)
def test_every_command_goes_round(cmd: str) -> None:
    arguments = arguments_of(cmd)
    query = queries.parse_query(queries.make_query(cmd, "q-1", **arguments))
    assert (query["v"], query["cmd"], query["id"]) == (1, cmd, "q-1")
    for name, value in arguments.items():
        assert query[name] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("cmd", queries.COMMANDS)
def test_every_required_argument_is_needed_and_every_other_is_not(cmd: str) -> None:
    for argument in queries.COMMANDS[cmd].arguments:
        rest = {name: value for name, value in arguments_of(cmd).items() if name != argument.name}
        request = {"v": 1, "id": 1, "cmd": cmd} | rest
        if argument.required:
            for without in (request, request | {argument.name: None}):
                error = refused(without)
                assert error.code == "malformed"
                assert argument.name in error.message
            with pytest.raises(QueryError):
                queries.make_query(cmd, **rest)
        else:
            assert queries.parse_query(msgpack.packb(request))[argument.name] == argument.default
            assert (
                queries.parse_query(msgpack.packb(request | {argument.name: None}))[argument.name] == argument.default
            )


@pytest.mark.parametrize("cmd", queries.COMMANDS)
def test_no_argument_accepts_a_value_of_the_wrong_kind(cmd: str) -> None:
    for argument in queries.COMMANDS[cmd].arguments:
        wrong: Any
        for wrong in ([[]], {"a": 1}, b"bytes"):
            changed = arguments_of(cmd) | {argument.name: wrong}
            error = refused({"v": 1, "id": 1, "cmd": cmd} | changed)
            assert error.code == "malformed"
            assert f"{cmd}: {argument.name}" in error.message
            with pytest.raises(QueryError):
                queries.make_query(cmd, **changed)


def test_unknown_commands_are_named_with_the_known_ones() -> None:
    for wrong in ("shutdown", "", 5, None, ["runs"]):
        error = refused({"v": 1, "id": 1, "cmd": wrong})
        assert error.code == "unknown-command"
        assert "snapshot" in error.message
    with pytest.raises(QueryError, match="no command"):
        queries.make_query("shutdown")
    assert refused({"v": 1, "id": 1}).code == "malformed"


def test_what_is_not_a_request_is_refused() -> None:
    for wrong in (b"", b"GET / HTTP/1.1", msgpack.packb([1]), msgpack.packb({"v": 2, "cmd": "runs"})):
        assert refused(wrong).code == "malformed"
        assert queries.query_id(wrong) is None
    for version in (None, True, 1.0, "1", 0):
        assert refused({"v": version, "id": 9, "cmd": "runs"}).code == "malformed"
    deep = {"v": 1, "id": 9, "cmd": "runs", "x": [[[[1]]]]}
    assert "nested" in refused(deep).message
    assert queries.query_id(msgpack.packb(deep)) == 9
    large = {"v": 1, "id": 9, "cmd": "runs", "x": "x" * 70_000}
    assert refused(large).code == "malformed"
    assert queries.query_id(msgpack.packb(large)) == 9
    with pytest.raises(QueryError, match="nested"):
        queries.parse_query(msgpack.packb({"v": 1, "cmd": "runs", "x": [1]}), messages.Limits(max_depth=1))


def test_a_request_that_msgpack_cannot_carry_is_refused_before_it_is_sent() -> None:
    with pytest.raises(QueryError):
        queries.make_query("runs", 2**70)
    with pytest.raises(QueryError):
        queries.make_query("runs", 1.5)  # type: ignore[arg-type]
    with pytest.raises(QueryError):
        queries.make_query("runs", colour=object())


def test_a_reply_goes_round() -> None:
    deep = {"runs": [{"run": RUN, "planes": [{"bbox": [[0, 0], [1, 1]]}]}]}
    parts = queries.make_reply("q-1", (b"pixels", memoryview(b"mask")), **deep, rev=5)
    reply = queries.parse_reply(parts)
    assert reply.header == {"v": 1, "id": "q-1", "ok": True, "rev": 5} | deep
    assert [bytes(part) for part in reply.payload] == [b"pixels", b"mask"]
    assert reply.id == "q-1"
    reply.raise_for_error()


def test_a_reply_may_be_longer_than_a_request() -> None:
    tiles = [[0, 0, 0, 0, row, col, 100_000] for row in range(100) for col in range(100)]
    assert queries.parse_reply(queries.make_reply(1, tiles=tiles)).header["tiles"] == tiles
    with pytest.raises(MalformedError):
        queries.make_reply(1, pad=b"x" * (16 * 1024 * 1024))


def test_replies_that_are_none_are_refused() -> None:
    for wrong in ([], [b""], [b"\xc0"], [msgpack.packb({"v": 2, "ok": True})], [msgpack.packb({"ok": True})]):
        with pytest.raises(MalformedError):
            queries.parse_reply(wrong)
    for header in ({"v": 1}, {"v": 1, "ok": False}, {"v": 1, "ok": 1}, {"v": 1, "ok": False, "error": {}}):
        with pytest.raises(QueryError) as caught:
            queries.parse_reply([msgpack.packb(header)]).raise_for_error()
        assert caught.value.code == "failed"
