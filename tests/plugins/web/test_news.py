"""Listening to a daemon: what may well go wrong is one line of the log, and is tried again."""

from __future__ import annotations

import asyncio
import threading

import pytest
import structlog
from structlog.testing import capture_logs

from integration.talking import PATIENCE_S
from tilecast_plugins.web import news
from tilecast_plugins.web.news import Newsroom


def test_what_cannot_be_connected_to_is_said_in_a_line_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "_AGAIN_S", 0.01)
    monkeypatch.setattr(news, "log", structlog.get_logger())
    tried = threading.Semaphore(0)
    client = news.Client

    def counted(*arguments: object, **more: object) -> object:
        tried.release()
        return client(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(news, "Client", counted)

    async def listen() -> bool:
        room = Newsroom("nonsense://127.0.0.1:1")
        room.start()
        try:
            return all([await asyncio.to_thread(tried.acquire, timeout=PATIENCE_S) for _ in range(3)])
        finally:
            room.stop()

    with pytest.raises(ValueError, match="cannot connect"), client("nonsense://127.0.0.1:1", None, notices=True):
        pass
    with capture_logs() as lines:
        assert asyncio.run(listen())
    assert len(lines) >= 2
    for line in lines:
        assert line["event"] == "the daemon cannot be heard; trying again"
        assert line["log_level"] == "warning"
        assert line["notify"] == "nonsense://127.0.0.1:1"
        assert "exc_info" not in line
