"""Missing numbers, and what is settled of a publisher."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tilecast.ingest.sequences import MAX_SOURCES, MAX_YOUNG_GAPS, AckTracker, GapWatch, News
from tilecast_protocol.messages import Rejection

CAM = ("cam", "boot-1")


class TestGapWatch:
    def test_a_number_that_was_only_overtaken_is_never_called_missing(self) -> None:
        watch = GapWatch(tolerance_ns=100)
        for now, number in enumerate((0, 2, 3, 1, 4)):
            assert watch.add(number, now)
        assert watch.take_news(1000) == News([], [])

    def test_a_gap_is_called_missing_once_and_only_what_is_missing_of_it(self) -> None:
        watch = GapWatch(tolerance_ns=100)
        watch.add(0, 0)
        watch.add(6, 10)
        watch.add(3, 20)
        assert not watch.has_news(109)
        assert watch.take_news(109) == News([], [])
        assert watch.take_news(110) == News([(1, 2), (4, 5)], [])
        assert watch.take_news(500) == News([], [])
        assert watch.missing() == [(1, 2), (4, 5)]

    def test_what_comes_after_all_is_said_to_have_healed(self) -> None:
        watch = GapWatch(tolerance_ns=0)
        watch.add(4, 0)
        assert watch.take_news(0) == News([(0, 3)], [])
        assert watch.add(2, 1)
        assert watch.add(1, 2)
        assert watch.has_news(2)
        assert watch.take_news(2) == News([], [(1, 2)])
        assert not watch.add(2, 3)
        assert watch.take_news(3) == News([], [])

    def test_a_tail_is_missing_once_it_is_known_to_have_been_sent(self) -> None:
        watch = GapWatch(tolerance_ns=10)
        watch.add(0, 0)
        watch.expect(4, 5)
        watch.expect(3, 6)
        assert watch.take_news(15) == News([(1, 3)], [])

    def test_numbers_before_the_first_are_not_missed_and_welcome(self) -> None:
        watch = GapWatch(tolerance_ns=0, first=7)
        watch.add(7, 0)
        assert watch.add(5, 0)
        watch.add(9, 0)
        assert watch.take_news(0) == News([(8, 8)], [])
        assert watch.missing() == [(8, 8)]

    def test_a_flood_of_gaps_takes_bounded_memory_and_loses_none(self) -> None:
        watch = GapWatch(tolerance_ns=100)
        n = 3 * MAX_YOUNG_GAPS
        for number in range(0, 2 * n, 2):
            watch.add(number, 0)
        assert len(watch._young) <= MAX_YOUNG_GAPS
        assert watch.take_news(100).missing == [(k, k) for k in range(1, 2 * n - 2, 2)]

    @given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20), st.booleans())), st.integers(0, 30))
    def test_what_was_said_adds_up_to_what_is_missing(
        self, arrivals: list[tuple[int, int, bool]], tolerance_ns: int
    ) -> None:
        watch = GapWatch(tolerance_ns)
        missing: set[int] = set()
        seen: set[int] = set()
        now = 0

        def listen() -> None:
            news = watch.take_news(now)
            said = {n for first, last in news.missing for n in range(first, last + 1)}
            healed = {n for first, last in news.healed for n in range(first, last + 1)}
            assert not said & seen
            assert not said & missing
            assert healed <= missing & seen
            missing.update(said)
            missing.difference_update(healed)

        for number, wait_ns, is_asked in arrivals:
            now += wait_ns
            assert watch.add(number, now) == (number not in seen)
            seen.add(number)
            if is_asked:
                listen()
        now += tolerance_ns
        listen()
        assert missing == set(range(max(seen, default=-1) + 1)) - seen


class TestAckTracker:
    def test_a_message_is_settled_when_its_record_is_durable(self) -> None:
        acks = AckTracker()
        for seq in range(3):
            acks.journalled(*CAM, seq, [("run", 100 * (seq + 1))])
        assert acks.upto_seq(*CAM) == -1
        assert acks.n_unsettled(*CAM) == 3
        assert acks.durable("run", 199) == {CAM}
        assert acks.upto_seq(*CAM) == 0
        assert acks.durable("run", 300) == {CAM}
        assert acks.upto_seq(*CAM) == 2
        assert acks.durable("run", 300) == set()

    def test_upto_seq_is_cumulative(self) -> None:
        acks = AckTracker()
        acks.journalled(*CAM, 0, [("a", 100)])
        acks.journalled(*CAM, 1, [("b", 100)])
        acks.settled(*CAM, 2)
        assert acks.durable("b", 100) == set()
        assert acks.upto_seq(*CAM) == -1
        assert acks.durable("a", 100) == {CAM}
        assert acks.upto_seq(*CAM) == 2

    def test_a_message_in_several_journals_waits_for_all(self) -> None:
        acks = AckTracker()
        acks.journalled(*CAM, 0, [("a", 10), ("b", 20)])
        acks.durable("a", 10)
        assert acks.upto_seq(*CAM) == -1
        acks.durable("b", 20)
        assert acks.upto_seq(*CAM) == 0

    def test_a_message_in_no_journal_and_one_that_is_durable_already_are_settled_at_once(self) -> None:
        acks = AckTracker()
        acks.journalled(*CAM, 0, [])
        acks.durable("run", 500)
        acks.journalled(*CAM, 1, [("run", 500)])
        assert acks.upto_seq(*CAM) == 1

    def test_a_repeat_of_what_is_on_its_way_to_the_disk_does_not_settle_it(self) -> None:
        acks = AckTracker()
        acks.journalled(*CAM, 0, [("run", 100)])
        acks.journalled(*CAM, 0, [("run", 100)])
        acks.settled(*CAM, 0)
        assert acks.upto_seq(*CAM) == -1
        acks.journalled(*CAM, 1, [("run", 100)])  # the same frame under a new seq
        acks.durable("run", 100)
        assert acks.upto_seq(*CAM) == 1

    def test_a_refusal_settles_and_is_told_once_and_again_after_a_hello(self) -> None:
        acks = AckTracker()
        acks.hello(*CAM)
        acks.rejected(*CAM, 0, "malformed", "no")
        assert acks.upto_seq(*CAM) == 0
        assert acks.take_rejected(*CAM) == [Rejection(0, "malformed", "no")]
        assert acks.take_rejected(*CAM) == []
        assert acks.hello(*CAM) == 0
        assert acks.take_rejected(*CAM) == [Rejection(0, "malformed", "no")]

    def test_a_hole_is_never_guessed_away(self) -> None:
        """What a DEALER had queued overtakes what the broken connection swallowed: 4 and 5 must come again."""
        acks = AckTracker()
        acks.hello(*CAM, connection=b"one")
        for seq in range(4):
            acks.received(*CAM, seq, b"one")
            acks.settled(*CAM, seq)
        for seq in (6, 7):
            acks.received(*CAM, seq, b"two")
            acks.settled(*CAM, seq)
        assert acks.hello(*CAM, connection=b"two") == 3
        acks.received(*CAM, 7, b"one")  # left over from the old connection: says nothing of the window
        acks.settled(*CAM, 7)
        assert acks.upto_seq(*CAM) == 3
        for seq in (4, 5):
            acks.received(*CAM, seq, b"two")
            acks.settled(*CAM, seq)
        assert acks.upto_seq(*CAM) == 7

    def test_the_first_message_after_a_hello_shows_where_the_window_begins(self) -> None:
        acks = AckTracker()
        assert acks.hello(*CAM, connection=b"one") == -1
        acks.received(*CAM, 5, b"one")
        acks.journalled(*CAM, 5, [("run", 10)])
        assert acks.upto_seq(*CAM) == 4
        acks.durable("run", 10)
        assert acks.upto_seq(*CAM) == 5
        acks.received(*CAM, 8, b"one")
        acks.settled(*CAM, 8)
        assert acks.upto_seq(*CAM) == 5

    def test_what_cannot_be_read_lies_behind_the_last_that_could(self) -> None:
        acks = AckTracker()
        acks.hello(*CAM, connection=b"one")
        acks.received(*CAM, 0, b"one")
        acks.settled(*CAM, 0)
        assert acks.unreadable(*CAM, "malformed", "rubbish", b"one") == 1
        assert acks.unreadable(*CAM, "malformed", "rubbish", b"one") == 2
        assert acks.unreadable(*CAM, "malformed", "rubbish", b"other") is None
        acks.received(*CAM, 3, b"one")
        acks.settled(*CAM, 3)
        assert acks.upto_seq(*CAM) == 3
        assert [rejection.seq for rejection in acks.take_rejected(*CAM)] == [1, 2]

    def test_what_cannot_be_read_after_a_hello_is_what_the_welcome_asked_for(self) -> None:
        acks = AckTracker()
        acks.recovered(*CAM, 7, 6)
        acks.hello(*CAM, connection=b"one")
        assert acks.unreadable(*CAM, "malformed", "rubbish", b"one") == 8
        assert acks.upto_seq(*CAM) == 8

    def test_it_goes_on_where_the_journal_ends(self) -> None:
        acks = AckTracker()
        for seq, acked in ((3, -1), (4, 2), (9, 4)):
            acks.recovered(*CAM, seq, acked)
        assert acks.upto_seq(*CAM) == 4
        acks.settled(*CAM, 5)
        assert acks.upto_seq(*CAM) == 5

    def test_a_journal_that_is_closed_was_synced(self) -> None:
        acks = AckTracker()
        acks.journalled(*CAM, 0, [("run", 10)])
        acks.close_run("run")
        assert acks.upto_seq(*CAM) == 0
        acks.journalled(*CAM, 1, [("run", 5)])
        assert acks.upto_seq(*CAM) == 0  # the lsn of a journal that is opened again counts from its own

    def test_sources_are_bounded_and_those_with_something_open_stay(self) -> None:
        acks = AckTracker()
        acks.journalled(*CAM, 0, [("run", 10)])
        for number in range(MAX_SOURCES + 50):
            acks.settled("other", str(number), 0)
        assert len(acks._sources) <= MAX_SOURCES
        acks.durable("run", 10)
        assert acks.upto_seq(*CAM) == 0

    @given(st.permutations(range(12)), st.lists(st.integers(0, 12), max_size=6), st.sets(st.integers(0, 11)))
    def test_upto_seq_never_passes_what_is_not_settled(
        self, order: list[int], syncs: list[int], not_kept: set[int]
    ) -> None:
        acks = AckTracker()
        lsns: dict[int, int] = {}
        durable = 0
        steps = [("message", seq) for seq in order]
        for at, lsn in enumerate(syncs):
            steps.insert(min(2 * at + 1, len(steps)), ("sync", lsn))
        for kind, number in steps:
            if kind == "sync":
                durable = max(durable, min(number, len(lsns)))
                acks.durable("run", durable)
            elif number in not_kept:
                acks.settled(*CAM, number)
                lsns[number] = 0
            else:
                lsns[number] = len(lsns) + 1
                acks.journalled(*CAM, number, [("run", lsns[number])])
            expected = -1
            while lsns.get(expected + 1, 99) <= durable:
                expected += 1
            assert acks.upto_seq(*CAM) == expected


class TestLostJournals:
    """A journal could not be synced, and was read again."""

    def test_what_was_found_is_settled_and_what_was_not_is_refused(self) -> None:
        tracker = AckTracker()
        for seq in range(4):
            tracker.journalled("cam", "boot", seq, [("run", 10 * seq)])
        tracker.durable("run", 0)
        tracker.recovered("cam", "boot", 0, -1)
        tracker.recovered("cam", "boot", 2, -1)
        assert tracker.upto_seq("cam", "boot") == 0
        tracker.lose_run("run", "disk-reserve", "gone")
        assert tracker.upto_seq("cam", "boot") == 3
        assert tracker.take_rejected("cam", "boot") == [
            Rejection(1, "disk-reserve", "gone"),
            Rejection(3, "disk-reserve", "gone"),
        ]
        assert tracker.n_unsettled("cam", "boot") == 0

    def test_a_message_in_two_journals_is_refused_when_one_is_lost(self) -> None:
        tracker = AckTracker()
        tracker.journalled("stage", "boot", 0, [("lost", 10), ("sound", 10)])
        tracker.lose_run("lost", "disk-reserve", "gone")
        tracker.durable("sound", 10)
        assert tracker.upto_seq("stage", "boot") == 0
        assert [refused.seq for refused in tracker.take_rejected("stage", "boot")] == [0]

    def test_the_journal_that_was_opened_anew_counts_from_there(self) -> None:
        tracker = AckTracker()
        tracker.durable("run", 100)
        tracker.lose_run("run", "disk-reserve", "gone")
        tracker.journalled("cam", "boot", 0, [("run", 50)])
        assert tracker.upto_seq("cam", "boot") == -1
        tracker.durable("run", 50)
        assert tracker.upto_seq("cam", "boot") == 0
