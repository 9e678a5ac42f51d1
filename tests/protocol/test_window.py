"""What a publisher sends next and what has become of it, without sockets: case by case, then by random histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tilecast_protocol.messages import (
    Ack,
    End,
    Event,
    Heartbeat,
    Image,
    PublisherMessage,
    Rejection,
    RunState,
    Start,
    Welcome,
    new_boot,
    parse,
)
from tilecast_protocol.window import MAX_ATTEMPTS, OWN, Rejected, SendWindow, Settled

RUN = "0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f"
ENVELOPE: dict[str, Any] = {
    "instrument": "scope",
    "stream": "cam",
    "src": "cam",
    "boot": new_boot(),
    "seq": 2**63 - 1,
    "t_ns": 1,
}


def start(run: str = RUN) -> Start:
    return Start(**ENVELOPE, run=run, name="liver", shape=(1, 2), dtype="|u1", px_um=(1, 1))


def image(frame: int, run: str = RUN) -> Image:
    return Image(**ENVELOPE, run=run, frame=frame, codec="raw", nbytes=2, parts=(bytes([frame % 256, 0]),))


def end(n_sent: int) -> End:
    return End(**ENVELOPE, run=RUN, reason="done", n_sent=n_sent)


def welcome(credit: int = 10, upto_seq: int = -1, *, n_received: int | None = 100) -> Welcome:
    """With a run of which the daemon has the first images, or which it does not know (None)."""
    runs = () if n_received is None else (RunState(RUN, "open", n_received, ((0, n_received - 1),)),)
    return Welcome(
        instrument="scope",
        stream="cam",
        credit=credit,
        upto_seq=upto_seq,
        max_frame_bytes=1 << 20,
        durability="fsync",
        state="ready",
        runs=runs,
    )


def ack(upto_seq: int, credit: int = 10, **rejected: str) -> Ack:
    """`_3="unknown-run"` rejects number 3."""
    return Ack(
        instrument="scope",
        stream="cam",
        upto_seq=upto_seq,
        credit=credit,
        state="ready",
        free_bytes=1,
        rejected=tuple(Rejection(int(seq[1:]), reason, "for a reason") for seq, reason in rejected.items()),
    )


def drain(window: SendWindow) -> list[PublisherMessage]:
    """Send all that may go out."""
    out = []
    while (head := window.head()) is not None:
        message = parse(head.parts)
        assert message.seq == head.seq
        out.append(message)
        window.sent()
    return out


def said(messages: list[Any]) -> list[tuple[Any, ...]]:
    """(seq, type, frame) of each."""
    return [(m.seq, m.TYPE, getattr(m, "frame", None)) for m in messages]


@pytest.fixture
def window() -> SendWindow:
    """Greeted, and with a run whose start and three images are out: numbers 0 to 3."""
    window = SendWindow(acknowledged=True)
    window.greeted(welcome())
    window.put(start(), ticket=1)
    for frame in range(3):
        window.put(image(frame), ticket=2 + frame)
    drain(window)
    return window


def test_nothing_goes_out_before_the_welcome() -> None:
    window = SendWindow(acknowledged=True)
    window.put(start(), ticket=1)
    assert window.head() is None
    window.greeted(welcome())
    assert said(drain(window)) == [(0, "start", None)]


def test_no_more_images_are_out_than_the_credit_and_none_overtakes() -> None:
    window = SendWindow(acknowledged=True)
    window.greeted(welcome(credit=2))
    for frame in range(4):
        window.put(image(frame), ticket=frame + 1)
    window.put(Event(**ENVELOPE, name="shutter"), ticket=9)
    assert said(drain(window)) == [(0, "image", 0), (1, "image", 1)]
    assert window.acknowledged(ack(0, credit=2)) == Settled((1,), ())
    assert said(drain(window)) == [(2, "image", 2)]
    window.acknowledged(ack(2, credit=0))
    assert drain(window) == []
    window.acknowledged(ack(2, credit=1))
    assert said(drain(window)) == [(3, "image", 3), (4, "event", None)]


def test_what_is_not_settled_comes_again_in_order_byte_for_byte(window: SendWindow) -> None:
    window.acknowledged(ack(0))
    before = [list(item.parts) for item in window._numbered]
    window.put(image(3), ticket=5)
    window.disconnected()
    assert window.head() is None
    assert window.first_unsettled_seq == 1
    assert window.greeted(welcome(upto_seq=1)) == Settled((2,), ())
    again = []
    while (head := window.head()) is not None:
        again.append(list(head.parts))
        window.sent()
    assert again[:2] == before[1:]
    assert [parse(parts).seq for parts in again] == [2, 3, 4]


def test_a_smaller_credit_after_a_reconnect_holds_for_what_comes_again(window: SendWindow) -> None:
    window.disconnected()
    window.greeted(welcome(credit=1))
    assert said(drain(window)) == [(0, "start", None), (1, "image", 0)]
    window.acknowledged(ack(1, credit=1))
    assert said(drain(window)) == [(2, "image", 1)]


def test_a_second_welcome_on_a_connection_sends_nothing_twice(window: SendWindow) -> None:
    assert window.greeted(welcome(credit=3, upto_seq=1)) == Settled((1, 2), ())
    assert drain(window) == []
    assert window.credit == 3


def test_a_head_that_the_socket_does_not_take_stays_the_head() -> None:
    window = SendWindow(acknowledged=True)
    window.greeted(welcome())
    window.put(start(), ticket=1)
    head = window.head()
    window.put_own([Heartbeat(**ENVELOPE, state="idle")])
    assert window.head() is head


def test_own_messages_pass_what_waits_for_credit() -> None:
    window = SendWindow(acknowledged=True)
    window.greeted(welcome(credit=0))
    window.put(image(0), ticket=1)
    window.put_own([Heartbeat(**ENVELOPE, state="idle")])
    assert window.has_own_waiting
    assert said(drain(window)) == [(0, "hb", None)]
    assert not window.has_own_waiting
    assert window.acknowledged(ack(0, credit=1)) == Settled()
    assert said(drain(window)) == [(1, "image", 0)]


def test_an_unknown_run_is_told_once_and_its_images_come_under_new_numbers(window: SendWindow) -> None:
    window.put(end(3), ticket=5)
    assert window.acknowledged(ack(1, _1="unknown-run")) == Settled((1,), ())
    assert window.acknowledged(ack(3, _2="unknown-run", _3="unknown-run")) == Settled()
    # What was refused comes before what has not been sent.
    assert said(drain(window)) == [
        (4, "start", None),
        (5, "image", 0),
        (6, "image", 1),
        (7, "image", 2),
    ]
    assert window.acknowledged(ack(7)) == Settled((2, 3, 4), ())
    assert said(drain(window)) == [(8, "end", None)]
    assert window.acknowledged(ack(8)) == Settled((5,), ())
    assert window.n_messages == window.n_images == 0


def test_a_start_that_is_out_already_is_not_sent_a_third_time(window: SendWindow) -> None:
    window.acknowledged(ack(2, _1="unknown-run"))
    assert said(drain(window)) == [(4, "start", None), (5, "image", 0)]
    window.acknowledged(ack(3, _3="unknown-run"))
    assert said(drain(window)) == [(6, "image", 2)]


def test_a_run_that_is_forgotten_again_is_told_again(window: SendWindow) -> None:
    window.acknowledged(ack(3, _3="unknown-run"))
    assert said(drain(window)) == [(4, "start", None), (5, "image", 2)]
    window.acknowledged(ack(5))
    window.put(image(3), ticket=5)
    assert said(drain(window)) == [(6, "image", 3)]
    window.acknowledged(ack(6, _6="unknown-run"))
    assert said(drain(window)) == [(7, "start", None), (8, "image", 3)]


def test_a_daemon_that_never_knows_the_run_is_not_asked_for_ever(window: SendWindow) -> None:
    window.acknowledged(ack(2))
    refused: list[Rejected] = []
    seq = 3
    for _ in range(MAX_ATTEMPTS):
        settled = window.acknowledged(ack(seq, **{f"_{seq}": "unknown-run"}))
        refused += settled.rejected
        assert settled.tickets == ()
        drain(window)
        seq = window.next_seq - 1
    assert [(r.reason, r.frame, r.ticket) for r in refused] == [("unknown-run", 2, 4)]
    assert window.n_images == 0


def test_an_image_of_a_run_that_we_did_not_start_is_not_sent_anew(window: SendWindow) -> None:
    other = "11111111-2222-4333-8444-555555555555"
    window.put(image(7, run=other), ticket=5)
    drain(window)
    (rejected,) = window.acknowledged(ack(4, _4="unknown-run")).rejected
    assert (rejected.run, rejected.frame, rejected.type) == (other, 7, "image")


def test_other_rejections_say_what_was_refused(window: SendWindow) -> None:
    settled = window.acknowledged(ack(3, _2="disk-reserve"))
    assert settled.tickets == (1, 2, 4)
    assert settled.rejected == (Rejected("disk-reserve", "for a reason", "image", RUN, 1, 2, 3),)
    assert str(settled.rejected[0]) == "image 1 was rejected (disk-reserve): for a reason"
    assert window.n_images == 0


def test_a_rejection_before_its_turn_keeps_its_number_in_the_row(window: SendWindow) -> None:
    # Refused at once, while those before it wait for the disk; after a reconnect the row must have no hole.
    (rejected,) = window.acknowledged(ack(0, _3="busy")).rejected
    assert rejected.frame == 2
    window.disconnected()
    window.greeted(welcome(upto_seq=0))
    assert said(drain(window)) == [(1, "image", 0), (2, "image", 1), (3, "image", 2)]
    # Refused again, under the same number: this has been told.
    assert window.acknowledged(ack(3, _3="busy")) == Settled((2, 3), ())


def test_a_rejection_that_the_welcome_settled_is_still_told(window: SendWindow) -> None:
    window.disconnected()
    assert window.greeted(welcome(upto_seq=3)).tickets == (1, 2, 3, 4)  # it lists them as received
    (rejected,) = window.acknowledged(ack(3, _2="bad-payload")).rejected
    assert (rejected.seq, rejected.reason, rejected.frame) == (2, "bad-payload", None)
    assert str(rejected).startswith("message 2 was rejected (bad-payload)")


def test_an_image_whose_rejection_was_lost_with_the_connection_comes_again(window: SendWindow) -> None:
    window.disconnected()
    assert window.greeted(welcome(upto_seq=3, n_received=2)).tickets == (1, 2, 3)
    assert said(drain(window)) == [(4, "image", 2)]
    (rejected,) = window.acknowledged(ack(4, _4="bad-payload")).rejected
    assert (rejected.frame, rejected.ticket, rejected.reason) == (2, 4, "bad-payload")
    assert window.n_images == 0


def test_a_run_whose_rejection_was_lost_with_the_connection_comes_again(window: SendWindow) -> None:
    window.disconnected()
    assert window.greeted(welcome(upto_seq=3, n_received=None)) == Settled()
    assert said(drain(window)) == [(4, "start", None), (5, "image", 0), (6, "image", 1), (7, "image", 2)]
    assert window.acknowledged(ack(7)) == Settled((1, 2, 3, 4), ())


def test_a_daemon_that_forgot_the_run_is_told_it_before_its_images(window: SendWindow) -> None:
    window.acknowledged(ack(1))
    window.disconnected()
    window.greeted(welcome(upto_seq=2, n_received=None))
    assert said(drain(window)) == [(3, "image", 2), (4, "start", None), (5, "image", 1)]
    window.acknowledged(ack(3, _3="unknown-run"))
    assert said(drain(window)) == [(6, "image", 2)]
    assert window.acknowledged(ack(6)) == Settled((3, 4), ())


def test_an_image_that_is_settled_and_never_kept_is_told(window: SendWindow) -> None:
    told: list[Rejected] = []
    for _ in range(MAX_ATTEMPTS):
        drain(window)
        window.disconnected()
        told += window.greeted(welcome(upto_seq=window.next_seq - 1, n_received=2)).rejected
    assert [(r.reason, r.frame, r.ticket) for r in told] == [("lost", 2, 4)]
    assert window.n_images == 0


def test_a_refused_start_leaves_no_open_run() -> None:
    window = SendWindow(acknowledged=True)
    window.greeted(welcome())
    window.put(start(), ticket=1)
    drain(window)
    assert [run.start.run for run in window.open_runs()] == [RUN]
    (rejected,) = window.acknowledged(ack(0, _0="run-conflict")).rejected
    assert (rejected.type, rejected.run) == ("start", RUN)
    assert window.open_runs() == []


def test_an_acknowledgement_of_what_was_never_out_settles_nothing() -> None:
    window = SendWindow(acknowledged=True)
    window.greeted(welcome())
    window.put(start(), ticket=1)
    assert window.head() is not None  # numbered, and then the socket takes nothing
    assert window.acknowledged(ack(5)) == Settled()
    assert window.n_messages == 1


def test_open_runs_count_what_is_out_until_the_end_is_out(window: SendWindow) -> None:
    window.put(image(3), ticket=5)
    assert [run.n_sent for run in window.open_runs()] == [3]
    drain(window)
    assert [run.n_sent for run in window.open_runs()] == [4]
    window.put(end(4), ticket=6)
    assert len(window.open_runs()) == 1
    drain(window)
    assert len(window.open_runs()) == 1
    window.acknowledged(ack(4))
    drain(window)
    assert window.open_runs() == []


def test_an_end_does_not_overtake_images_that_come_again(window: SendWindow) -> None:
    window.put(end(3), ticket=5)
    assert drain(window) == []
    window.acknowledged(ack(1))
    assert drain(window) == []
    assert window.acknowledged(ack(3, _2="unknown-run", _3="unknown-run")) == Settled()
    assert said(drain(window)) == [(4, "start", None), (5, "image", 1), (6, "image", 2)]
    window.acknowledged(ack(5))
    assert drain(window) == []
    assert window.acknowledged(ack(6)) == Settled((4,), ())
    assert said(drain(window)) == [(7, "end", None)]


def test_an_end_waits_for_no_image_that_is_refused_for_good_nor_of_another_run(window: SendWindow) -> None:
    other = "11111111-2222-4333-8444-555555555555"
    window.put(image(0, run=other), ticket=5)
    window.put(end(3), ticket=6)
    drain(window)
    window.acknowledged(ack(2, _3="disk-reserve"))  # which upto_seq does not cover yet
    assert said(drain(window)) == [(5, "end", None)]


def test_an_end_that_was_out_when_the_connection_was_lost_comes_again_at_once(window: SendWindow) -> None:
    window.acknowledged(ack(3))
    window.put(end(3), ticket=5)
    drain(window)
    window.disconnected()
    window.greeted(welcome(upto_seq=3))
    assert said(drain(window)) == [(4, "end", None)]


def test_one_way_an_end_follows_its_images_at_once() -> None:
    window = SendWindow(acknowledged=False, credit=4)
    window.put(image(0), ticket=1)
    window.put(end(1), ticket=2)
    assert said(drain(window)) == [(0, "image", 0), (1, "end", None)]


def test_one_way_everything_is_settled_when_the_socket_has_it() -> None:
    window = SendWindow(acknowledged=False, credit=2)
    window.put(start(), ticket=1)
    window.put(image(0), ticket=2)
    assert window.n_images == 1
    tickets = []
    while window.head() is not None:
        tickets += window.sent().tickets
    assert tickets == [1, 2]
    assert window.n_messages == window.n_images == 0


class AnyHistory(RuleBasedStateMachine):
    """A publisher's window against a daemon that loses connections, acknowledgements, and whole runs.

    Whatever happens: numbers come in order and without holes, the same number always as the same bytes, never more
    images than the credit; and in the end every message has been settled exactly once, and every image is kept or its
    rejection was told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.window = SendWindow(acknowledged=True)
        self.connected = False
        self.in_flight: list[Any] = []
        self.answers: list[Ack] = []
        self.bytes_of: dict[int, tuple[bytes, ...]] = {}
        self.upto_seq = -1
        self.known_runs: set[str] = set()
        self.kept: set[int] = set()
        self.told: set[int] = set()
        self.credit = 0
        self.settled: list[int] = []
        self.ticket = OWN
        self.n_frames = 0
        self.has_finished = False  # the caller
        self.has_ended = False  # as far as the daemon knows
        self._put(start())

    def _put(self, message: PublisherMessage) -> None:
        self.ticket += 1
        self.window.put(message, self.ticket)

    def _settle(self, settled: Settled) -> None:
        self.settled += settled.tickets
        self.settled += [rejected.ticket for rejected in settled.rejected]
        self.told.update(rejected.frame for rejected in settled.rejected if rejected.frame is not None)

    @precondition(lambda self: not self.has_finished)
    @rule()
    def snap(self) -> None:
        self._put(image(self.n_frames))
        self.n_frames += 1

    @precondition(lambda self: not self.has_finished and self.n_frames > 2)
    @rule()
    def finish(self) -> None:
        self._put(end(self.n_frames))
        self.has_finished = True

    @rule()
    def note(self) -> None:
        self._put(Event(**ENVELOPE, name="note", run=RUN))

    @precondition(lambda self: self.connected)
    @rule()
    def beat(self) -> None:
        self.window.put_own([Heartbeat(**ENVELOPE, state="idle")])

    @precondition(lambda self: not self.connected)
    @rule(credit=st.integers(0, 4))
    def connect(self, credit: int) -> None:
        assert self.window.first_unsettled_seq <= self.upto_seq + 1, "the daemon would wait for what never comes"
        runs = tuple(
            RunState(run, "open", 0, tuple((frame, frame) for frame in sorted(self.kept))) for run in self.known_runs
        )
        self._settle(self.window.greeted(replace(welcome(credit, self.upto_seq), runs=runs)))
        self.connected, self.credit = True, credit
        self.next_seq = self.upto_seq + 1

    @precondition(lambda self: self.connected)
    @rule()
    def lose_connection(self) -> None:
        self.window.disconnected()
        self.connected = False
        self.in_flight.clear()
        self.answers.clear()

    @precondition(lambda self: self.connected)
    @rule()
    def forget_run(self) -> None:
        self.known_runs.clear()

    @precondition(lambda self: self.connected)
    @rule()
    def send(self) -> None:
        head = self.window.head()
        if head is None:
            return
        message = parse(head.parts)
        parts = tuple(bytes(part) for part in head.parts)
        assert message.seq == self.next_seq
        self.next_seq += 1
        assert self.bytes_of.setdefault(message.seq, parts) == parts
        self.window.sent()
        self.in_flight.append(message)
        out = [*self.in_flight, *(m for m in self._unacknowledged())]
        if isinstance(message, Image):
            assert sum(isinstance(m, Image) for m in out) <= self.credit

    def _unacknowledged(self) -> list[Any]:
        """Messages that the daemon has and whose acknowledgement has not been heard."""
        heard = self.window.first_unsettled_seq
        return [parse(list(self.bytes_of[seq])) for seq in range(heard, self.upto_seq + 1)]

    @precondition(lambda self: self.in_flight)
    @rule(refuse=st.booleans(), credit=st.integers(0, 4))
    def take(self, refuse: bool, credit: int) -> None:
        message = self.in_flight.pop(0)
        self.upto_seq = message.seq
        rejected = {}
        if isinstance(message, Start):
            self.known_runs.add(message.run)
        elif getattr(message, "run", None) is not None and message.run not in self.known_runs:
            rejected = {f"_{message.seq}": "unknown-run"}
        elif isinstance(message, Image) and refuse:
            rejected = {f"_{message.seq}": "busy"}
        elif isinstance(message, Image):
            assert not self.has_ended or message.frame in self.kept, "the end has overtaken an image"
            self.kept.add(message.frame)
        elif isinstance(message, End):
            self.has_ended = True
        self.answers.append(ack(self.upto_seq, credit, **rejected))

    @precondition(lambda self: self.answers)
    @rule()
    def answer(self) -> None:
        message = self.answers.pop(0)
        self.credit = message.credit
        self._settle(self.window.acknowledged(message))

    @invariant()
    def counts_are_right(self) -> None:
        queues = (self.window._numbered, self.window._own, self.window._again, self.window._waiting)
        items = [item for queue in queues for item in queue]
        assert self.window.n_messages == len(items)
        assert self.window.n_images == sum(isinstance(item.message, Image) for item in items)
        assert len(set(self.settled)) == len(self.settled)

    def teardown(self) -> None:
        if not self.connected:
            self.connect(4)
        for _ in range(10_000):  # far more than it takes
            if not self.window.n_messages:
                break
            if self.answers:
                self.answer()
            elif self.in_flight:
                self.take(refuse=False, credit=4)
            else:
                self.window.credit = self.credit = max(self.credit, 1)
                self.send()
        assert self.window.n_messages == 0
        assert sorted(self.settled) == list(range(1, self.ticket + 1))
        assert self.kept | self.told == set(range(self.n_frames)), "an image was lost and nobody was told"


AnyHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAnyHistory = AnyHistory.TestCase
