"""The golden messages are read as their manifest says, and their script still writes the same bytes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tilecast_protocol import messages, queries
from tilecast_protocol.errors import MalformedError, QueryError
from tilecast_protocol.headers import unpack_header

FOLDER = Path(__file__).resolve().parents[2] / "protocol" / "vectors"
VECTORS: list[dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["vectors"]
BY_NAME = {vector["name"]: vector for vector in VECTORS}


def parts_of(name: str) -> list[bytes]:
    data = (FOLDER / f"{name}.bin").read_bytes()
    parts = []
    for size in BY_NAME[name]["part_bytes"]:
        parts.append(data[:size])
        data = data[size:]
    assert not data
    return parts


def some(kind: str, *, valid: bool) -> list[Any]:
    chosen = [vector for vector in VECTORS if vector["kind"] == kind and vector["valid"] is valid]
    assert chosen
    return [pytest.param(vector, id=vector["name"]) for vector in chosen]


def start_of(name: str) -> messages.Start:
    start = messages.parse(parts_of(name))
    assert isinstance(start, messages.Start)
    return start


def image_of(name: str) -> messages.Image:
    image = messages.parse(parts_of(name))
    assert isinstance(image, messages.Image)
    return image


def parse_any(vector: dict[str, Any]) -> messages.Message:
    parts = parts_of(vector["name"])
    return messages.parse(parts) if vector["sent_by"] == "publisher" else messages.parse_from_daemon(parts)


@pytest.mark.parametrize("vector", some("message", valid=True))
def test_a_valid_message_says_what_its_manifest_says(vector: dict[str, Any]) -> None:
    message = parse_any(vector)
    assert message.topic == vector["topic"]
    expected = vector.get("read_as", vector["header"])
    if expected is not None:
        assert json.loads(json.dumps(message.header())) == expected


@pytest.mark.parametrize("vector", some("message", valid=True))
def test_a_valid_message_is_sent_on_as_it_came(vector: dict[str, Any]) -> None:
    assert messages.encode(parse_any(vector)) == parts_of(vector["name"])


@pytest.mark.parametrize("vector", some("message", valid=True))
def test_what_we_would_write_is_read_as_the_same_message(vector: dict[str, Any]) -> None:
    message = parse_any(vector)
    rebuilt = type(message)(
        **{field.name: getattr(message, field.name) for field in dataclasses.fields(message) if field.init}
    )
    read = messages.parse if vector["sent_by"] == "publisher" else messages.parse_from_daemon
    assert read(messages.encode(rebuilt)) == message


@pytest.mark.parametrize("vector", some("message", valid=False))
def test_an_invalid_message_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    if "start" in vector:  # the message itself is sound: its payload alone is refused
        image = image_of(vector["name"])
        with pytest.raises(MalformedError) as caught:
            messages.check_payload(image, start_of(vector["start"]))
    else:
        with pytest.raises(MalformedError) as caught:
            messages.parse(parts_of(vector["name"]))
        identity = {"src": caught.value.src, "boot": caught.value.boot, "seq": caught.value.seq}
        assert identity == vector["identity"]
    assert caught.value.reason == vector["reason"]


@pytest.mark.parametrize("vector", [case for case in some("message", valid=True) if "start" in case.values[0]])
def test_a_sound_payload_passes(vector: dict[str, Any]) -> None:
    messages.check_payload(image_of(vector["name"]), start_of(vector["start"]))


@pytest.mark.parametrize("vector", some("query", valid=True))
def test_a_valid_query_is_read_and_written(vector: dict[str, Any]) -> None:
    part = parts_of(vector["name"])[0]
    query = queries.parse_query(part)
    said = json.loads(json.dumps(query))
    assert said.items() >= vector["header"].items()
    known = {argument.name for argument in queries.COMMANDS[query["cmd"]].arguments}
    assert known <= query.keys()
    arguments = {name: query[name] for name in known}
    assert queries.parse_query(queries.make_query(query["cmd"], query["id"], **arguments)).items() <= query.items()


@pytest.mark.parametrize("vector", some("query", valid=False))
def test_an_invalid_query_is_refused_and_can_be_answered(vector: dict[str, Any]) -> None:
    part = parts_of(vector["name"])[0]
    with pytest.raises(QueryError) as caught:
        queries.parse_query(part)
    assert caught.value.code == vector["code"]
    assert queries.query_id(part) == vector["id"]


@pytest.mark.parametrize("vector", some("reply", valid=True))
def test_a_reply_is_read(vector: dict[str, Any]) -> None:
    parts = parts_of(vector["name"])
    reply = queries.parse_reply(parts)
    assert reply.header == vector["header"]
    assert list(reply.payload) == parts[1:]


def test_every_message_type_has_valid_and_invalid_vectors() -> None:
    def types(*, valid: bool) -> set[str]:
        names = [v["name"] for v in VECTORS if v["kind"] == "message" and v["valid"] is valid]
        return {parts_of(name)[0].rpartition(b"/")[2].decode("ascii", "replace") for name in names}

    publisher = {"start", "image", "stage", "event", "end", "hb", "hello"}
    assert publisher | {"welcome", "ack", "tiles", "run"} <= types(valid=True)
    assert publisher <= types(valid=False)


def test_every_command_has_a_vector() -> None:
    asked = {v["header"]["cmd"] for v in VECTORS if v["kind"] == "query" and v["valid"]}
    assert asked == set(queries.COMMANDS)


def test_the_script_writes_these_vectors(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(FOLDER / "make_vectors.py"), str(tmp_path)], check=True)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in FOLDER.iterdir() if path.suffix in (".bin", ".json")}
    assert written == kept


def test_the_script_imports_nothing_of_tilecast() -> None:
    assert "import tilecast" not in (FOLDER / "make_vectors.py").read_text(encoding="utf-8")
    assert "from tilecast" not in (FOLDER / "make_vectors.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("other", "same"), [("start-same-but-envelope", True), ("start-other-shape", False)])
def test_which_starts_say_the_same(other: str, same: bool) -> None:
    assert messages.same_start(start_of("start-minimal"), start_of(other)) is same


def test_a_repeat_without_its_parts_says_the_same() -> None:
    first, repeat = start_of("start-calibration-parts"), start_of("start-repeat")
    assert first.parts
    assert not repeat.parts
    assert messages.same_start(first, repeat)


def test_headers_of_valid_messages_need_no_more_than_the_limits() -> None:
    for vector in VECTORS:
        if vector["kind"] == "message" and vector["valid"] and vector["sent_by"] == "publisher":
            unpack_header(parts_of(vector["name"])[1], max_bytes=64 * 1024, max_depth=4)
