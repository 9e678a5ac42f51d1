from __future__ import annotations

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tilecast.service.journald import Journal, entry, field_name, stream_is_journal

PATIENCE_S = 30.0


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(f"{tmp_path}/journal")
        found.settimeout(PATIENCE_S)
        yield found


def fields_of(data: bytes) -> dict[str, str]:
    """Read an entry as the journal does."""
    stream, found = io.BytesIO(data), {}
    while line := stream.readline():
        name, equals, value = line[:-1].partition(b"=")
        if not equals:
            value = stream.read(struct.unpack("<Q", stream.read(8))[0])
            assert stream.read(1) == b"\n"
        found[name.decode()] = value.decode()
    return found


def test_an_entry_has_its_fields(listener: socket.socket, tmp_path: Path) -> None:
    journal = Journal(f"{tmp_path}/journal")
    journal.send("run report", "warning", {"run": "0190", "frame": 7, "exception": "one\ntwo\n", "none": None})
    journal.close()
    assert fields_of(listener.recv(65536)) == {
        "MESSAGE": "run report",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "tilecast",
        "RUN": "0190",
        "FRAME": "7",
        "EXCEPTION": "one\ntwo\n",
    }


def test_an_entry_that_is_too_large_is_sent_as_a_file(listener: socket.socket, tmp_path: Path) -> None:
    journal = Journal(f"{tmp_path}/journal")
    journal.send("large", "info", {"text": "x" * (8 << 20)})
    journal.close()
    data, descriptors, _, _ = socket.recv_fds(listener, 65536, 1)
    assert data == b""
    with os.fdopen(descriptors[0], "rb") as file:
        file.seek(0)
        assert len(fields_of(file.read())["TEXT"]) == 8 << 20


@pytest.mark.parametrize("name", ["run", "ingest.ack", "_SYSTEMD_UNIT", "7th", "", "größe", "x" * 100, "message"])
def test_names_are_such_as_the_journal_takes(name: str) -> None:
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", field_name(name))
    assert field_name(name) not in ("MESSAGE", "PRIORITY")


def test_text_that_is_no_text_is_sent_all_the_same() -> None:
    assert fields_of(entry("a \udcff name", "info", {}))["MESSAGE"] == "a \\udcff name"


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        status = os.fstat(file.fileno())
        right = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert stream_is_journal(file.fileno(), right)
        assert not stream_is_journal(file.fileno(), {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not stream_is_journal(file.fileno(), {})
    assert not stream_is_journal(10_000, right)


LOGS = """
import structlog, sys
from tilecast.service import journald, logging
journald.Journal.__init__.__defaults__ = (sys.argv[1],)
logging.configure()
structlog.get_logger().info("run started", run="0190", name="liver, slice 12")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().error("thread failed", exc_info=True)
"""


def test_what_is_logged_goes_to_the_journal_where_standard_error_does(listener: socket.socket, tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    with log.open("w") as stream:
        status = os.fstat(stream.fileno())
        environ = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        command = [sys.executable, "-c", LOGS, f"{tmp_path}/journal"]
        subprocess.run(command, stderr=stream, env=environ, check=True)
        started, failed = fields_of(listener.recv(65536)), fields_of(listener.recv(65536))
        assert started["MESSAGE"] == "run started  run=0190  name='liver, slice 12'"
        assert (started["RUN"], started["NAME"], started["PRIORITY"]) == ("0190", "liver, slice 12", "6")
        assert failed["PRIORITY"] == "3"
        assert "ZeroDivisionError" in failed["EXCEPTION"]
        assert failed["MESSAGE"].startswith("thread failed\nTraceback")
        assert log.read_text() == ""
        # A journal that does not take it loses nothing.
        listener.close()
        (tmp_path / "journal").unlink()
        subprocess.run(command, stderr=stream, env=environ, check=True)
        assert json.loads(log.read_text().splitlines()[0])["run"] == "0190"
