"""Messages of NDPluginZMQ: what is read, what is refused and with what words, and that no bytes do harm."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.streams import detectors
from tilecast_plugins.streams.areadetector import ArrayFrame, ArrayKeys, parse
from tilecast_plugins.streams.pixels import StreamError

KEYS = ArrayKeys(x="StageX", y="StageY", unit_um=1000.0, exposure="Exposure", run="Scan")
PLAIN: dict[str, Any] = {"htype": ["array-1.0"], "type": "uint16", "shape": [3, 2], "frame": 5}
PIXELS = np.arange(6, dtype="<u2")


def message(payload: bytes = PIXELS.tobytes(), **changes: Any) -> list[bytes]:
    header = {key: value for key, value in (PLAIN | changes).items() if value is not ...}
    return [json.dumps(header).encode(), payload]


def test_a_message_as_the_plugin_writes_it() -> None:
    found = parse(detectors.array_message(4), KEYS)
    np.testing.assert_array_equal(found.pixels, detectors.frame(4))
    assert found.pos_um == pytest.approx(detectors.centre_um(4))
    assert (found.unique_id, found.run_key, found.tcz, found.exact) == (104, "A, 1", (0, 0, 0), True)
    assert found.t0_ns == (631_152_000 + 1_100_000_004) * 10**9 + 250_000_000
    assert found.t1_ns == found.t0_ns + 250_000_000
    assert found.attributes["Temperature"] is None


def test_columns_come_first_unless_told_otherwise() -> None:
    assert parse(message(), ArrayKeys()).pixels.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert parse(message(), ArrayKeys(), shape_order="rows-first").pixels.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert parse(message(PIXELS.astype(">u2").tobytes(), endianess="big"), ArrayKeys()).pixels[1].tolist() == [3, 4, 5]


def test_types_that_a_run_cannot_have_become_floats() -> None:
    found = parse(message(np.array([-1, 2**24, 3, 4, 5, 6], "<i4").tobytes(), type="int32"), ArrayKeys())
    assert (found.pixels.dtype.str, found.pixels[0, 0], found.exact) == ("<f4", -1.0, True)
    found = parse(message(np.array([0, 2**24 + 1, 3, 4, 5, 6], "<u4").tobytes(), type="uint32"), ArrayKeys())
    assert not found.exact


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([b"{}"], "two parts"),
        ([b"{", b""], "not JSON"),
        ([b'{"a":"C:\\q"}', b""], "does not escape"),
        ([b"\xff", b""], "UTF-8"),
        ([b"[1]", b""], "JSON map"),
        ([b" " * 300_000, b""], "at most 262144"),
        (message(htype="dimage-1.0"), "htype"),
        (message(type="complex64"), "type must be one of"),
        (message(shape=[3, 2, 3]), "NDPluginColorConvert"),
        (message(shape=[3, -2]), "shape must be a whole number"),
        (message(shape=[2**20, 2**20]), "at most"),
        (message(b"x"), "the second part has 1"),
        (message(frame=...), "frame must be a whole number"),
        (message(frame=True), "frame must be a whole number"),
        (message(frame=10**400), "a huge one"),
        (message(encoding="blosc"), "Compressor of the NDCodec"),
        (message(ndattr=[1]), "ndattr must be a map"),
        (message(timeStamp="now"), "timeStamp must be a number"),
    ],
)
def test_what_is_wrong_is_named(parts: list[bytes], words: str) -> None:
    with pytest.raises(StreamError, match=words):
        parse(parts, ArrayKeys())


def test_a_missing_attribute_is_named_with_those_there_are() -> None:
    with pytest.raises(StreamError, match="no value for 'StageX'; it has: 'Temperature'"):
        parse(message(ndattr={"Temperature": 4}), ArrayKeys(x="StageX", y="StageY"))
    with pytest.raises(StreamError, match=r"ndattr\.StageX must be a number"):
        parse(message(ndattr={"StageX": "4", "StageY": 1, "Exposure": 0, "Scan": 1}), KEYS)


def harmless(parts: list[bytes]) -> None:
    """Either it is read, or it is a StreamError."""
    try:
        found: object = parse(parts, KEYS, max_frame_bytes=1 << 20)
    except StreamError as error:
        found = str(error)
    assert isinstance(found, ArrayFrame) or 10 < len(str(found)) < 1000


@given(st.lists(st.binary(max_size=300), max_size=3))
def test_any_bytes_do_no_harm(parts: list[bytes]) -> None:
    harmless(parts)


@given(st.data())
def test_damaged_messages_do_no_harm(data: st.DataObject) -> None:
    header, payload = detectors.array_message(0)
    damaged = bytearray(header)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4)) or b"0"
    harmless([bytes(damaged), payload[: data.draw(st.sampled_from([0, 1, len(payload) - 1, len(payload)]))]])


@given(
    st.dictionaries(
        st.sampled_from(["htype", "type", "shape", "frame", "timeStamp", "encoding", "ndattr", "endianness"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["StageX", "Scan"]), inner),
            max_leaves=5,
        ),
    )
)
def test_any_values_do_no_harm(changes: dict[str, Any]) -> None:
    harmless(message(**changes))
