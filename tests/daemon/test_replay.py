"""A recording is played back as it came, or made worse by numbers that a seed decides."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest_harness import OTHER_RUN, RUN, T0
from recordings import Recording, record
from tilecast import calibration as cal
from tilecast.replay import Nastiness, Replayed, replay
from tilecast.service import runs
from tilecast_protocol import pzf
from tilecast_protocol.journal import Journal
from tilecast_protocol.messages import Image, Limits, PublisherMessage, Stage, Start, encode, parse


def played(folder: Path, **options: Any) -> tuple[Replayed, list[Any]]:
    """What a replay sends, as fast as it goes."""
    sent: list[PublisherMessage] = []
    with Journal.open(folder / "journal", readonly=True) as journal:
        result = replay(journal, sent.append, **({"speed": None} | options))
    return result, sent


def frames(messages: list[Any]) -> list[int]:
    """The numbers of the images, in the order in which they were sent."""
    return [message.frame for message in messages if isinstance(message, Image)]


@pytest.fixture
def mixed(tmp_path: Path) -> Recording:
    """Stage messages before the start, between the frames and after them; an event; an end."""
    made = Recording(tmp_path)
    for number in range(40):
        made.stage(number * 10, (0, number))
        made.image(number, t0_ns=T0 + number, t1_ns=T0 + number + 5, status=number % 4, user={"lamp": 0.5})
    made.again(made.camera.event(run=RUN, user={"note": "focus"}))
    made.again(made.camera.event(run=None))
    made.end()
    made.close()
    return made


def test_everything_is_sent_once_in_order_as_a_new_run(mixed: Recording) -> None:
    result, sent = played(mixed.folder)
    assert result.run != RUN
    assert (result.n_images, result.n_stage, result.dropped, result.duplicated, result.damaged) == (40, 40, [], [], [])
    kinds = [message.TYPE for message in sent]
    assert kinds == ["start", *["stage", "image"] * 40, "event", "event", "end"]
    assert [message.run for message in sent if not isinstance(message, Stage)] == [result.run] * 42 + [None, result.run]
    start = sent[0]
    assert start == replace(mixed.start, run=result.run, replay_of=RUN)
    images = [message for message in sent if isinstance(message, Image)]
    assert frames(sent) == list(range(40))
    for frame, image in enumerate(images):
        assert (image.t0_ns, image.t1_ns, image.status, image.user) == (
            T0 + frame,
            T0 + frame + 5,
            frame % 4,
            {"lamp": 0.5},
        )
        assert (pzf.decode_image(image.parts[0]) == mixed.pixels[frame]).all()
    assert [message.t_ns for message in sent if isinstance(message, Stage)] == [T0 + 10_000_000 * n for n in range(40)]


def test_what_is_sent_passes_every_check_of_a_daemon(tmp_path: Path) -> None:
    made = record(tmp_path, dark=np.ones((24, 30), np.float32))
    _, sent = played(made.folder, calibration=runs.frozen_images(made.folder))
    for message in sent:
        again = parse(encode(message), Limits())
        assert again.TYPE == message.TYPE


def test_a_start_need_not_be_the_first_and_counts_once(tmp_path: Path) -> None:
    """The stage messages of the last moments stand before it, and a calibration may have come after it."""
    made = Recording(tmp_path)
    start = made.start
    other = Recording(tmp_path, run_id=OTHER_RUN)
    other.close()
    folder = tmp_path / "journal of a run with a prelude"
    with Journal.create(folder / "journal", RUN) as journal:
        for message in (made.stages.at(T0, 1.0), start, made.camera.image(0), replace(start, seq=9)):
            parts = (bytes(pzf.encode_image(np.zeros((24, 30), np.uint16))),) if isinstance(message, Image) else ()
            journal.append(
                runs.RecordKind[type(message).__name__.upper()],
                topic=message.topic,
                header=bytes(encode(message)[1]),
                parts=parts,
                t_recv_ns=1,
                frame=0 if isinstance(message, Image) else None,
                pzf=True,
            )
    made.close()
    _, sent = played(folder)
    assert [message.TYPE for message in sent] == ["stage", "start", "image"]


def test_a_replay_can_be_replayed(tmp_path: Path) -> None:
    made = record(tmp_path, changes={"replay_of": OTHER_RUN})
    _, sent = played(made.folder)
    assert sent[0].replay_of == RUN
    assert len(frames(sent)) == 7


def test_calibration_and_blend_mode_travel_with_the_start(tmp_path: Path) -> None:
    dark, flat = (cal.dump_npy(np.full((24, 30), value, np.float32)) for value in (3, 2))
    made = record(tmp_path, changes={"blend": None})
    _, [start, *_] = played(made.folder, mode="nearest", calibration={"flat": flat, "dark": dark})
    assert isinstance(start, Start)
    assert start.blend == "nearest"
    assert (start.dark, start.flat) == ("part:0", "part:1")
    assert start.parts == (dark, flat)
    parse(encode(start), Limits())
    _, [only, *_] = played(made.folder, calibration={"flat": flat})
    assert (only.dark, only.flat, only.parts) == (None, "part:0", (flat,))
    said = record(tmp_path / "said", blend="max")
    _, [start, *_] = played(said.folder, mode="nearest")
    assert start.blend == "max", "what the start says stands"


def test_the_parts_of_a_start_are_sent_again(tmp_path: Path) -> None:
    made = record(tmp_path, dark=np.ones((24, 30), np.float32))
    _, [start, *_] = played(made.folder)
    assert start.parts[0] == made.start.parts[0]
    assert (start.dark, start.sha256) == ("part:0", made.start.sha256)


NASTY = Nastiness(drop=0.2, duplicate=0.3, reorder=5, seed=3)


def test_the_same_seed_does_the_same(mixed: Recording) -> None:
    first, sent = played(mixed.folder, nastiness=NASTY)
    again, sent_again = played(mixed.folder, nastiness=NASTY)
    assert frames(sent) == frames(sent_again)
    assert (first.dropped, first.duplicated) == (again.dropped, again.duplicated)
    _, other = played(mixed.folder, nastiness=replace(NASTY, seed=4))
    assert frames(other) != frames(sent)


def test_what_was_done_is_told(mixed: Recording) -> None:
    result, sent = played(mixed.folder, nastiness=NASTY)
    numbers = frames(sent)
    assert result.dropped
    assert result.duplicated
    assert sorted(set(numbers)) == sorted(set(range(40)) - set(result.dropped))
    assert sorted(frame for frame in set(numbers) if numbers.count(frame) == 2) == sorted(result.duplicated)
    assert max(map(numbers.count, numbers)) == 2
    assert result.n_images == 40 - len(result.dropped)
    assert len(numbers) == result.n_images + len(result.duplicated)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_shares_are_met(tmp_path: Path, share: float) -> None:
    made = Recording(tmp_path, shape=(8, 8))
    for frame in range(600):
        made.image(frame)
    made.close()
    for what in ("drop", "duplicate"):
        counts = []
        for seed in range(3):
            result, _ = played(made.folder, nastiness=Nastiness(**{what: share}, seed=seed))
            counts.append(len(result.dropped if what == "drop" else result.duplicated))
        # Three standard deviations of a binomial distribution.
        bound = 3 * (600 * share * (1 - share)) ** 0.5
        assert all(abs(count - 600 * share) < bound for count in counts)
        assert len(set(counts)) > 1


def test_all_or_nothing(mixed: Recording) -> None:
    result, sent = played(mixed.folder, nastiness=Nastiness(drop=1.0))
    assert (frames(sent), result.dropped) == ([], list(range(40)))
    result, sent = played(mixed.folder, nastiness=Nastiness(duplicate=1.0))
    assert frames(sent) == sorted([*range(40), *range(40)])


@pytest.mark.parametrize("window", [1, 4, 30])
def test_an_image_is_overtaken_by_no_more_than_allowed(mixed: Recording, window: int) -> None:
    for seed in range(20):
        _, sent = played(mixed.folder, nastiness=Nastiness(reorder=window, seed=seed))
        order = frames(sent)
        assert sorted(order) == list(range(40))
        for place, frame in enumerate(order):
            overtaken_by = sum(later > frame for later in order[:place])
            assert overtaken_by <= window
        assert sent[-1].TYPE == "end"
    assert order != list(range(40))


def test_stage_messages_are_never_touched(mixed: Recording) -> None:
    _, sent = played(mixed.folder, nastiness=replace(NASTY, drop=0.9, reorder=20))
    positions = [message.t_ns for message in sent if isinstance(message, Stage)]
    assert positions == sorted(positions)
    assert len(positions) == 40


def test_nonsense_is_refused() -> None:
    for wrong in ({"drop": 1.1}, {"duplicate": -0.1}, {"reorder": -1}, {"delay_ms": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Nastiness(**wrong)  # type: ignore[arg-type]


def test_progress_is_told_of_every_record_also_of_what_is_left_out(mixed: Recording) -> None:
    steps: list[None] = []
    played(mixed.folder, nastiness=Nastiness(drop=0.5, reorder=3), on_message=lambda: steps.append(None))
    assert len(steps) == 1 + 80 + 2 + 1


def test_what_cannot_be_read_is_left_out_and_told(mixed: Recording) -> None:
    segment = mixed.folder / "journal" / "000000.tcj"
    with Journal.open(segment.parent, readonly=True) as journal:
        lsn = journal.image(11).lsn
    data = bytearray(segment.read_bytes())
    data[lsn - 20] ^= 1
    segment.write_bytes(data)
    result, sent = played(mixed.folder)
    assert result.damaged == [11]
    assert frames(sent) == [frame for frame in range(40) if frame != 11]


def test_speed_and_delay(tmp_path: Path) -> None:
    made = Recording(tmp_path, shape=(8, 8))
    for frame in range(5):
        made.image(frame, t_ns=T0 + frame * 50_000_000)  # 50 ms apart
    made.close()
    for speed, expected_s in ((1.0, 0.2), (4.0, 0.05)):
        began = time.monotonic()
        played(made.folder, speed=speed)
        assert expected_s <= time.monotonic() - began
    began = time.monotonic()
    played(made.folder, nastiness=Nastiness(delay_ms=20, seed=1))
    assert time.monotonic() - began >= 0.02
