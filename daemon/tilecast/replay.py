"""Plays a recording back: the journal of a run becomes messages again, for a daemon to take in as if they were new.

A replay is a new run (`replay_of` names the old one). It keeps the original times and the order of images and stage
messages, and the frozen calibration and blend mode travel with its `start`, so the daemon must end with the same tiles,
bit for bit, however fast it is played. To be nasty, images can be left out, doubled, moved behind later ones, or
delayed; stage messages are never touched, because a frame's place depends on which two of them bracket it.

This module knows journals and messages; what sends them is handed in.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tilecast.ingest.journalled import read_record
from tilecast_protocol.journal import Journal, Record, RecordKind
from tilecast_protocol.messages import End, Image, PublisherMessage, Stage, Start, crc32, new_run

Send = Callable[[PublisherMessage], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nastiness:
    """What is done to the images of a replay.

    Attributes
    ----------
    drop, duplicate : float
        Share of the images that are left out, or sent twice (the second time under a new number).
    reorder : int
        An image may be overtaken by up to this many later ones.
    delay_ms : float
        Longest random wait before a message.
    seed : int
        The same seed does the same to the same recording.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: int = 0
    delay_ms: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("drop", "duplicate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1; got {getattr(self, name)}")
        if self.reorder < 0 or self.delay_ms < 0:
            raise ValueError("reorder and delay_ms cannot be negative")


@dataclass(slots=True)
class Replayed:
    """What a replay sent.

    Attributes
    ----------
    run : str
        The new run.
    n_images, n_stage : int
        Messages sent, doubles not counted.
    dropped, duplicated : list of int
        Frames left out, and frames sent twice.
    damaged : list of int
        Frames that could not be read, because the journal is damaged there.
    """

    run: str
    n_images: int
    n_stage: int
    dropped: list[int]
    duplicated: list[int]
    damaged: list[int]


def replay(
    journal: Journal,
    send: Send,
    *,
    speed: float | None = 1.0,
    mode: str | None = None,
    calibration: dict[str, bytes] | None = None,
    nastiness: Nastiness | None = None,
    on_message: Callable[[], None] = lambda: None,
) -> Replayed:
    """Send every message of a journal.

    Parameters
    ----------
    journal : Journal
    send : callable
        Takes one message; its sender, numbers and instrument are the business of whoever sends.
    speed : float or None
        1 is as fast as it was recorded; None is as fast as it goes.
    mode : str, optional
        Blend mode of the run, if its start does not name one.
    calibration : dict of str to bytes, optional
        For `dark` and `flat`: the NPY files that were frozen in the run.
    nastiness : Nastiness, optional
    on_message : callable
        Called at each message of the journal.

    Returns
    -------
    Replayed
    """
    nasty = Nastiness() if nastiness is None else nastiness
    chance = random.Random(nasty.seed)
    result = Replayed(new_run(), 0, 0, [], [], [])
    began_s, first_ns, started = time.monotonic(), None, False
    records = journal.records(on_damage=lambda damage: result.damaged.extend(damage.frames))
    for record in _reordered(records, nasty.reorder, chance):
        on_message()
        if first_ns is None:
            first_ns = record.t_recv_ns
        message = _renewed(record, result.run)
        if isinstance(message, Start):
            if started:
                continue  # it brought a calibration, which the first one has by now
            started = True
            message = _self_contained(replace(message, replay_of=journal.run), mode, calibration or {})
        if speed is not None:
            _wait_until(began_s + (record.t_recv_ns - first_ns) / 1e9 / speed)
        if nasty.delay_ms:
            time.sleep(chance.uniform(0, nasty.delay_ms) / 1e3)
        if isinstance(message, Image):
            if chance.random() < nasty.drop:
                result.dropped.append(message.frame)
                continue
            result.n_images += 1
            if chance.random() < nasty.duplicate:
                result.duplicated.append(message.frame)
                send(message)
        elif isinstance(message, Stage):
            result.n_stage += 1
        send(message)
    return result


def _renewed(record: Record, run: str) -> PublisherMessage:
    """The message of a record, as part of another run, with the payload as it lies in the journal."""
    message = read_record(record).message
    match message:
        case Image():
            payload = record.parts[0]
            codec = "pzf" if record.pzf else message.codec
            return replace(message, run=run, codec=codec, nbytes=len(payload), crc32=crc32(payload), parts=(payload,))
        case Start():
            nbytes = record.part_nbytes or None
            return replace(message, run=run, parts=record.parts, nbytes=nbytes)
        case End():
            return replace(message, run=run)
        case Stage():
            return message
        case _:
            return replace(message, run=run if message.run is not None else None)


def _self_contained(start: Start, mode: str | None, calibration: dict[str, bytes]) -> Start:
    """A start that needs nothing of the daemon that made the recording."""
    if start.blend is None and mode is not None:
        start = replace(start, blend=mode)
    if not calibration:
        return start
    roles = sorted(calibration)
    parts = tuple(calibration[role] for role in roles)
    names = {role: f"part:{number}" for number, role in enumerate(roles)}
    return replace(
        start,
        dark=names.get("dark"),
        flat=names.get("flat"),
        parts=parts,
        nbytes=tuple(len(part) for part in parts),
        sha256=tuple(hashlib.sha256(part).hexdigest() for part in parts),
    )


def _reordered(records: Iterator[Record], window: int, chance: random.Random) -> Iterator[Record]:
    """Records in order, but for images, which may each be overtaken by up to `window` later ones."""
    # (behind which image it is due, of those due at once the latest first, image)
    waiting: list[tuple[int, int, Record]] = []
    n_images = 0
    for number, record in enumerate(records):
        if record.kind is RecordKind.IMAGE and window:
            heapq.heappush(waiting, (n_images + chance.randint(0, window), -number, record))
            n_images += 1
        elif record.kind is RecordKind.END:
            while waiting:
                yield heapq.heappop(waiting)[2]
            yield record
        else:
            yield record
        while waiting and waiting[0][0] < n_images:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def _wait_until(due_s: float) -> None:
    left = due_s - time.monotonic()
    if left > 0:
        time.sleep(left)
