"""Logging: who gets which form, and that floods are summed up."""

from __future__ import annotations

import io
import json
import logging as stdlib_logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from tilecast.service import logging as tc_logging

RUN = "0190a5a8-0000-7000-8000-000000000001"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root = stdlib_logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    structlog.reset_defaults()
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the one item of a list: moved by hand."""
    now = [100.0]
    monkeypatch.setattr(
        tc_logging, "FloodSummary", lambda window_s, make=tc_logging.FloodSummary: make(window_s, clock=lambda: now[0])
    )
    return now


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_where_nobody_watches() -> None:
    stream = io.StringIO()
    tc_logging.configure(stream=stream)
    structlog.get_logger().bind(run=RUN).warning("frame unplaced", frame=7)
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {"event": "frame unplaced", "run": RUN, "frame": 7, "level": "warning"}


def test_a_line_for_people_in_a_terminal() -> None:
    stream = Terminal()
    tc_logging.configure(stream=stream)
    structlog.get_logger().info("run started", run=RUN, frame=7)
    text = stream.getvalue()
    assert "run started" in text
    assert "\x1b[" in text
    assert "0190a5a8" in text
    assert RUN not in text


@pytest.mark.parametrize(
    ("format_", "stream", "is_json"), [("json", Terminal(), True), ("console", io.StringIO(), False)]
)
def test_the_form_can_be_forced(format_: str, stream: io.StringIO, is_json: bool) -> None:
    tc_logging.configure("info", format_, stream=stream)
    structlog.get_logger().info("run started")
    assert stream.getvalue().startswith("{") is is_json


def test_the_level_decides() -> None:
    stream = io.StringIO()
    tc_logging.configure("warning", stream=stream)
    structlog.get_logger().info("detail")
    structlog.get_logger().error("trouble")
    assert [line["event"] for line in lines(stream)] == ["trouble"]


def test_standard_error_is_looked_up_for_each_line(capsys: pytest.CaptureFixture[str]) -> None:
    tc_logging.configure("info", "json")
    structlog.get_logger().info("here")
    assert json.loads(capsys.readouterr().err)["event"] == "here"


def test_exceptions_and_libraries_are_shown() -> None:
    stream = io.StringIO()
    tc_logging.configure(stream=stream)
    try:
        raise RuntimeError("the stage is gone")
    except RuntimeError:
        structlog.get_logger().exception("source failed")
        stdlib_logging.getLogger("asyncio").warning("slow %s", "callback")
    failed, slow = lines(stream)
    assert "RuntimeError: the stage is gone" in failed["exception"]
    assert failed["level"] == "error"
    assert (slow["event"], slow["logger"], slow["level"]) == ("slow callback", "asyncio", "warning")


def test_configuring_twice_does_not_say_things_twice() -> None:
    stream = io.StringIO()
    tc_logging.configure(stream=stream)
    tc_logging.configure(stream=stream)
    stdlib_logging.getLogger("asyncio").warning("slow callback")
    assert len(lines(stream)) == 1


class TestFloods:
    def test_are_summed_up_with_the_last_fields(self, clock: list[float]) -> None:
        stream = io.StringIO()
        tc_logging.configure(stream=stream)
        log = structlog.get_logger().bind(run=RUN)
        for frame in range(434):
            log.warning("frame unplaced", frame=frame)
        assert [line["frame"] for line in lines(stream)] == [0, 1, 2]
        clock[0] += 9.9
        tc_logging.summarise_floods()
        assert len(lines(stream)) == 3
        clock[0] += 0.1
        tc_logging.summarise_floods()
        summary = lines(stream)[3]
        assert summary["event"] == "frame unplaced … 431 more in 10 s"
        assert (summary["repeated"], summary["frame"], summary["run"]) == (431, 433, RUN)
        assert summary["level"] == "warning"
        tc_logging.summarise_floods(final=True)
        assert len(lines(stream)) == 4

    def test_are_told_with_the_next_message_too(self, clock: list[float]) -> None:
        stream = io.StringIO()
        tc_logging.configure(stream=stream)
        for _ in range(5):
            structlog.get_logger().info("again")
        clock[0] += 20
        structlog.get_logger().info("something else")
        assert [line["event"] for line in lines(stream)[3:]] == ["again … 2 more in 20 s", "something else"]
        structlog.get_logger().info("again")
        assert lines(stream)[-1]["event"] == "again"

    def test_nothing_is_held_back_at_the_end(self, clock: list[float]) -> None:  # noqa: ARG002 - time stands still
        stream = io.StringIO()
        tc_logging.configure(stream=stream)
        for _ in range(4):
            structlog.get_logger().info("again")
        tc_logging.summarise_floods(final=True)
        assert lines(stream)[-1]["repeated"] == 1

    @pytest.mark.parametrize(
        "say",
        [
            lambda log, n: log.info("run started", run=f"{n}"),
            lambda log, n: log.info(f"message {n}"),
            lambda log, n: log.warning("message refused", reason=f"reason {n}"),
            lambda log, n: (log.info, log.warning, log.error)[n % 3]("message"),
        ],
        ids=["runs", "texts", "reasons", "levels"],
    )
    def test_what_differs_is_not_a_flood(self, say: Callable[[Any, int], None]) -> None:
        stream = io.StringIO()
        tc_logging.configure(stream=stream)
        for n in range(9):
            say(structlog.get_logger(), n)
        assert len(lines(stream)) == 9

    def test_can_be_let_through(self) -> None:
        stream = io.StringIO()
        tc_logging.configure(flood_s=0, stream=stream)
        for _ in range(50):
            structlog.get_logger().info("again")
        assert len(lines(stream)) == 50

    def test_memory_is_bounded(self) -> None:
        floods = tc_logging.FloodSummary(max_kinds=10)
        for n in range(100):
            floods(None, "info", {"event": f"message {n}", "level": "info"})
        assert len(floods._floods) == 10

    def test_nothing_is_lost_between_threads(self) -> None:
        stream = io.StringIO()
        tc_logging.configure(stream=stream)

        def say() -> None:
            for _ in range(200):
                structlog.get_logger().info("again")

        threads = [threading.Thread(target=say) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tc_logging.summarise_floods(final=True)
        shown = lines(stream)
        assert sum(line.get("repeated", 1) for line in shown) == 800
        assert len(shown) == 4


class Gone(io.StringIO):
    """A pipe that nobody reads any more, or a file on a full disk."""

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_log_that_cannot_be_written_is_no_reason_to_stop() -> None:
    tc_logging.configure("info", "json", stream=Gone())
    structlog.get_logger().info("said to nobody")
