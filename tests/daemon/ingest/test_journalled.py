"""Messages read again from a real journal, whose payloads are not those that their headers speak of."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_harness import ACK, RUN, T0, Camera, StageSource
from tilecast.ingest.journalled import Journalled, read_record
from tilecast.ingest.machine import IngestMachine, IngestSettings
from tilecast.ingest.verdicts import Accept, Place, RunRecord
from tilecast_protocol.errors import MalformedError
from tilecast_protocol.journal import Journal, Record, RecordKind
from tilecast_protocol.messages import Image, encode, parse
from tilecast_protocol.ranges import RangeSet

KINDS = {kind.name.lower(): kind for kind in RecordKind}


def test_a_message_is_read_without_its_payload(tmp_path: Path) -> None:
    camera, stage, dark = Camera(), StageSource(), b"dark image"
    digest = hashlib.sha256(dark).hexdigest()
    messages = [
        stage.at(T0 - 5, 1.5, moving=True, user={"axis": "xy"}),
        camera.start(dark="part:0", sha256=(digest,), parts=(dark,), nbytes=len(dark)),
        camera.image(7, codec="raw", parts=(bytes(64),), nbytes=64, pos_um=(1.0, 2.0), extra={"gain": 3}),
        camera.event(run=RUN),
        camera.end(8),
    ]
    with Journal.create(tmp_path / "journal", RUN) as journal:
        for at, message in enumerate(messages):
            parsed = parse(encode(message))
            is_image = isinstance(message, Image)
            journal.append(
                KINDS[message.TYPE],
                topic=parsed.topic,
                header=parsed.raw_header or b"",
                parts=(b"encoded otherwise",) if is_image else message.parts,
                t_recv_ns=T0 + at,
                frame=7 if is_image else None,
            )
        items = [read_record(record) for record in journal.records(with_parts=False)]
    for at, (message, item) in enumerate(zip(messages, items, strict=True)):
        assert item.t_recv_ns == T0 + at
        assert item.message.header() | {"nbytes": None} == message.header() | {"nbytes": None}
        assert item.message.topic == message.topic
        assert item.message.parts == ()
    assert [item.image_index for item in items] == [None, None, 0, None, None]


def test_what_is_no_message_is_an_error() -> None:
    record = Record(RecordKind.IMAGE, "tc1/scope/cam/image", b"\x80", (), (), T0, 0, 0, -1, False, 100)
    with pytest.raises(MalformedError, match="is missing"):
        read_record(record)


def test_effects_of_a_long_journal_come_one_by_one() -> None:
    """Nothing is gathered: each image can be blended before the next record is read."""
    camera = Camera()
    start = camera.start()
    n_read = 0

    def records() -> Iterator[Journalled]:
        nonlocal n_read
        yield Journalled(start, T0)
        for frame in range(100):
            n_read += 1
            yield Journalled(camera.image(frame, pos_um=(0.0, 0.0)), T0, frame)

    machine = IngestMachine(IngestSettings())
    placed = RangeSet([random.Random(1).randrange(100) for _ in range(30)])
    frames = []
    for effect in machine.recover(RunRecord(start=start), records(), placed, T0):
        assert isinstance(effect, Place)
        assert effect.placement.frame == n_read - 1
        assert RUN not in machine.loaded()
        frames.append(effect.placement.frame)
    assert frames == [frame for frame in range(100) if frame not in placed]
    assert machine.loaded() == (RUN,)
    assert isinstance(machine.screen(camera.image(100), ACK, T0), Accept)
