"""The process: bursts, one write for each answer, workers, and the command without its libraries."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from click.testing import CliRunner

from integration.talking import PATIENCE_S
from plugins.web.conftest import WebProcess, WebStation, running_web
from tilecast import cli


def tile_of(web_station: WebStation, fmt: str = "jpg") -> str:
    epoch = web_station.client.run(web_station.scan)["epoch"]
    return f"/api/v1/runs/{web_station.scan}/tiles/{epoch}/0/0/0/0/-1/0.{fmt}"


def address_of(web: WebProcess) -> tuple[str, int]:
    parts = urlsplit(web.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


async def burst(web: WebProcess, path: str, n: int) -> list[bytes]:
    """So many connections, all opened before the first is answered."""
    host, port = address_of(web)
    connections = await asyncio.gather(*(asyncio.open_connection(host, port) for _ in range(n)))
    for _, writer in connections:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answers = await asyncio.gather(*(reader.read() for reader, _ in connections))
    for _, writer in connections:
        writer.close()
    return answers


def test_bursts_of_a_hundred_connections(web_station: WebStation) -> None:
    answers = asyncio.run(asyncio.wait_for(burst(web_station.web, tile_of(web_station), 100), PATIENCE_S))
    assert len(answers) == 100
    assert len(set(answers)) == 1
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert b"\xff\xd8\xff" in answers[0]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_answer_is_one_write(web_station: WebStation, tmp_path: Path) -> None:
    log = tmp_path / "calls"
    command = ["strace", "-f", "-qq", "-e", "trace=sendto,sendmsg,write,writev", "-s", "40", "-o", str(log)]
    tracer = subprocess.Popen([*command, "-p", str(web_station.web.process.pid)], stderr=subprocess.PIPE, text=True)
    try:
        assert httpx.get(web_station.web.url + tile_of(web_station)).status_code == 200
        with httpx.Client(base_url=web_station.web.url) as client:
            for fmt in ("png", "pzf", "raw"):
                assert client.get(tile_of(web_station, fmt)).status_code == 200
    finally:
        tracer.terminate()
        tracer.communicate(timeout=PATIENCE_S)
    calls = log.read_text()
    if "HTTP/1.1 200" not in calls:
        pytest.skip("this machine does not let strace look")
    beginnings = re.findall(r"\w+\((\d+), .*HTTP/1.1 200.*= (\d+)$", calls, re.MULTILINE)
    assert beginnings
    assert all(int(nbytes) > 400 for _, nbytes in beginnings), calls  # headers alone are shorter


def test_several_workers_answer_at_one_address(web_station: WebStation) -> None:
    with running_web("--store", str(web_station.root), "--daemon", *web_station.endpoints, "--workers", "2") as web:
        answers = asyncio.run(asyncio.wait_for(burst(web, tile_of(web_station), 20), PATIENCE_S))
        assert len(set(answers)) == 1
        assert answers[0].startswith(b"HTTP/1.1 200")
        assert web.stop() == 0


def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = CliRunner().invoke(cli.main, ["web", "--listen", where, "--store", str(tmp_path)])
    assert done.exit_code == 2
    assert f"cannot listen on {where}" in done.output


@pytest.mark.parametrize("where", ["8750", "127.0.0.1:http", "127.0.0.1:99999", ""])
def test_an_address_that_is_none(where: str) -> None:
    done = CliRunner().invoke(cli.main, ["web", "--listen", where])
    assert done.exit_code == 2
    assert "HOST:PORT" in done.output


def test_without_its_libraries_it_says_which_to_install(tmp_path: Path) -> None:
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    done = subprocess.run(
        [sys.executable, "-m", "tilecast", "web", "--store", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode != 0
    assert "pip install 'tilecast[web]'" in done.stderr
    assert "Traceback" not in done.stderr
