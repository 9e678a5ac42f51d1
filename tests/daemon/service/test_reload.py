from __future__ import annotations

from tilecast.service.config import Config, load, options
from tilecast.service.reload import LIVE, reloaded


def config(*values: str) -> Config:
    return load(overrides=values, environ={})


def test_nothing_changes_where_nothing_has_changed() -> None:
    assert reloaded(config(), config())[1:] == ([], [])


def test_what_can_be_is_applied_and_the_rest_is_named() -> None:
    then = config("disk.stop_bytes=1GiB", "blend.mode=mean", "blend.queue_bytes=1MiB", "ingest.ack=ipc:///x")
    found = reloaded(config(), then)
    assert found.applied == ["blend.mode", "disk.stop_bytes"]
    assert found.needs_restart == ["ingest.ack", "blend.queue_bytes"]
    assert found.config.disk.stop_bytes == 1 << 30
    assert found.config.blend.mode == "mean"
    assert found.config.blend.queue_bytes == config().blend.queue_bytes
    assert found.config.ingest == config().ingest


def test_what_was_applied_is_not_applied_again() -> None:
    then = config("disk.stop_bytes=1GiB", "ingest.ack=ipc:///x")
    found = reloaded(reloaded(config(), then).config, then)
    assert (found.applied, found.needs_restart) == ([], ["ingest.ack"])


def test_live_options_exist() -> None:
    assert {info.name for info in options()} >= LIVE
