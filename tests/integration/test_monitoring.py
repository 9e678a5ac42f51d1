"""The port for monitoring of a real daemon, asked by a real HTTP client, and the files made for it in `systemd/`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from faults.nursery import ForkedDaemon
from integration.conftest import IMPATIENT, StartDaemon
from integration.scanning import Pixels, assert_holds, endpoints, pictures, serpentine
from integration.talking import PX_UM, SHAPE, Watcher, centre_um
from tilecast.errors import ConfigError
from tilecast.process import DaemonProcess
from tilecast.service.config import load
from tilecast_protocol.client import Client
from tilecast_protocol.messages import DaemonHeartbeat
from tilecast_protocol.publisher import Publisher

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
MONITORED = IMPATIENT | {"metrics.listen": "127.0.0.1:0"}
PATIENCE_S = 20.0


def get(daemon: DaemonProcess, path: str) -> tuple[int, str]:
    """Status and text."""
    try:
        with urllib.request.urlopen(daemon.endpoints["metrics"] + path, timeout=PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scrape(daemon: DaemonProcess) -> dict[str, float]:
    """Samples by name and labels, as Prometheus writes them."""
    status, text = get(daemon, "/metrics")
    assert status == 200, text
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def until(ask: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is not false."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (found := ask()):
        assert time.monotonic() < deadline_s, what
    return found


def test_a_scan_shows_in_the_metrics(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(**MONITORED)
    assert get(daemon, "/healthz") == (200, "ok\n")
    assert get(daemon, "/readyz") == (200, "ok\n")
    before = scrape(daemon)
    assert before["tilecast_frames_total"] == 0
    assert before["tilecast_state{state=ready}"] == 1
    pixels = np.random.default_rng(3).integers(0, 4000, (48, 64)).astype("<u2")
    with Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher:
        run = publisher.start('li"ver', shape=(48, 64), dtype="<u2", px_um=(0.5, 0.5), n_expected=5)
        for frame in range(4):
            publisher.image(pixels, pos_um=(16.0 * frame, 0.0))
        publisher.flush(PATIENCE_S)
        until(lambda: scrape(daemon)[f"tilecast_run_placed_frames{{run={run}}}"] == 4, "four frames placed")
        until(lambda: scrape(daemon)["tilecast_latency_seconds_count{stage=blend}"] == 4, "four frames blended")
        until(lambda: scrape(daemon)["tilecast_latency_seconds_count{stage=commit}"] >= 1, "a commit")
        after = scrape(daemon)
        publisher.end()
    assert after["tilecast_frames_total"] == 4
    assert after["tilecast_frame_bytes_total"] >= 4 * 1000
    assert after[f"tilecast_run_planned_frames{{run={run}}}"] == 5
    assert after[f"tilecast_run_missing_frames{{run={run}}}"] == 0
    assert after['tilecast_run_open{name=li"ver}' + f"{{run={run}}}{{stream=cam}}"] == 1
    for stage in ("journal", "sync", "blend", "commit", "notify"):
        assert after[f"tilecast_latency_seconds_count{{stage={stage}}}"] >= 1, stage
        assert 0 < after[f"tilecast_latency_seconds_sum{{stage={stage}}}"] < 60, stage
    with Client(None, daemon.endpoints["query"]) as client:
        stats = client.stats()
    assert after["tilecast_tiles_total"] <= stats["store"]["n_tiles"]
    assert after["tilecast_disk_total_bytes"] == stats["disk"]["total_bytes"]
    assert after["tilecast_resident_memory_bytes"] > 10e6


def test_a_message_that_is_refused_is_a_drop_with_its_cause(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(**MONITORED)
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(daemon.endpoints["ingest.pull"])
        push.send_multipart([b"tc1/scope/cam/image", b"not msgpack"])
        until(lambda: scrape(daemon)["tilecast_drops_total{cause=malformed}"] == 1, "a malformed message")


def test_whoever_is_rude_to_the_port_hurts_nobody(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(**MONITORED)
    where = urlsplit(daemon.endpoints["metrics"])
    assert where.hostname is not None
    silent = [socket.create_connection((where.hostname, where.port or 0), PATIENCE_S) for _ in range(30)]
    try:
        silent[0].sendall(b"\x00\xff nonsense\r\n\r\n")
        with Client(None, daemon.endpoints["query"]) as client:
            assert client.health()["ready"]
            pixels = np.zeros((48, 64), "<u2")
            with Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher:
                publisher.start("quiet", shape=(48, 64), dtype="<u2", px_um=(0.5, 0.5))
                publisher.image(pixels, pos_um=(0.0, 0.0))
                publisher.flush(PATIENCE_S)
            threads = len(list(Path(f"/proc/{daemon.pid}/task").iterdir()))
    finally:
        for one in silent:
            one.close()
    until(lambda: _answers(daemon), "the port answers again")
    assert get(daemon, "/etc/passwd")[0] == 404
    assert threads < 60
    assert daemon.stop() == 0


def _answers(daemon: DaemonProcess) -> bool:
    try:
        return get(daemon, "/healthz")[0] == 200
    except OSError:
        return False


def test_a_disk_below_its_reserve_is_alive_and_not_ready(start_daemon: StartDaemon) -> None:
    whole_disk = {"disk.warn_percent": "100", "disk.stop_percent": "100"}
    huge = {"disk.warn_bytes": "1000TiB", "disk.stop_bytes": "1000TiB"}
    daemon = start_daemon(**MONITORED, **whole_disk, **huge)
    status, why = get(daemon, "/readyz")
    assert status == 503
    assert "no run is begun" in why
    assert get(daemon, "/healthz")[0] == 200
    assert scrape(daemon)["tilecast_takes_start"] == 0
    with Client(None, daemon.endpoints["query"]) as client:
        health = client.health()
    assert "no run is begun" in health["no_start"][0]
    assert (health["full_in_s"], health["forecast"]) == (0.0, "full")


@contextmanager
def written_by_another(folder: Path) -> Iterator[None]:
    """Somebody's own tool keeps the store of a run locked for writing, so that no tile gets into it."""
    with closing(sqlite3.connect(folder / "tiles.sqlite", isolation_level=None, timeout=PATIENCE_S)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


#: One item at a time goes from thread to thread: what cannot be written waits, and all behind it.
SHORT_QUEUES = {"blend.queue_bytes": "1", "store.queue_bytes": "1"}


def scan(publisher: Publisher, sent: Pixels, frames: range) -> None:
    for frame in frames:
        publisher.image(sent[frame], frame=frame, pos_um=centre_um(*serpentine(frame)))


def begun(publisher: Publisher, daemon: DaemonProcess, sent: Pixels) -> str:
    """A run whose first frame is in its mosaic."""
    run = publisher.start("waits", shape=SHAPE, dtype="<u2", px_um=PX_UM)
    scan(publisher, sent, range(1))
    publisher.flush()
    until(lambda: scrape(daemon)[f"tilecast_run_placed_frames{{run={run}}}"] == 1, "the first frame is placed")
    until(lambda: scrape(daemon)["tilecast_commits_total"] > 0, "and committed")
    return run


def test_who_asks_while_it_stops_is_told_and_what_waits_is_finished(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = start_daemon(**MONITORED)
    sent = pictures(51, 12)
    with (
        Watcher(daemon.endpoints["notify"]) as watch,
        Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher,
    ):
        run = begun(publisher, daemon, sent)
        with written_by_another(tmp_path / "runs" / run):
            scan(publisher, sent, range(1, 12))
            publisher.flush()
            os.kill(daemon.pid, signal.SIGTERM)
            daemon.wait_logged("stopping")
            assert get(daemon, "/readyz") == (503, "the daemon is stopping\n")
            assert get(daemon, "/healthz") == (200, "ok\n"), "it is alive, and is given time"
            assert scrape(daemon)["tilecast_state{state=stopping}"] == 1
        watch.until(lambda said: isinstance(said, DaemonHeartbeat) and said.state == "stopping", "its last words")
    assert daemon.stop() == 0
    assert_holds(tmp_path / "runs" / run, sent)


def test_who_asks_while_it_catches_up_is_told_and_it_does(start_daemon: StartDaemon, tmp_path: Path) -> None:
    sent = pictures(52, 24)
    with endpoints() as ends:
        daemon = start_daemon(**MONITORED | ends)
        with Publisher(ends["ingest.ack"], instrument="scope", stream="cam", timeout_s=PATIENCE_S) as publisher:
            run = begun(publisher, daemon, sent)
            with written_by_another(tmp_path / "runs" / run):
                scan(publisher, sent, range(1, 20))
                publisher.flush()
                daemon.kill()
                daemon = start_daemon(**MONITORED | ends | SHORT_QUEUES)
                with Client(None, ends["query"], timeout_s=PATIENCE_S) as client, Watcher(ends["notify"]) as watch:
                    assert get(daemon, "/readyz") == (503, "the daemon is catching-up\n")
                    assert get(daemon, "/healthz") == (200, "ok\n")
                    health = client.health()
                    assert (health["state"], health["ready"]) == ("catching-up", False)
                    assert health["no_start"] == ["the daemon is catching-up"]
                    assert "the daemon is catching-up" in health["problems"]
                    now = scrape(daemon)
                    assert (now["tilecast_state{state=catching-up}"], now["tilecast_takes_start"]) == (1, 0)
                    assert {beat.state for beat in watch.heard if isinstance(beat, DaemonHeartbeat)} == {"catching-up"}
            until(lambda: get(daemon, "/readyz") == (200, "ok\n"), "it has caught up")
            with Client(None, ends["query"]) as client:
                health = client.health()
            assert (health["state"], health["ready"], health["no_start"]) == ("ready", True, [])
            scan(publisher, sent, range(20, 24))
            publisher.end()
            publisher.flush()
        assert daemon.stop() == 0
    assert_holds(tmp_path / "runs" / run, sent)


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = ForkedDaemon(tmp_path / "runs", settings={"metrics.listen": listen})
        with pytest.raises(Exception, match=r"metrics\.listen = .* cannot be bound"):
            daemon.start()


def test_other_machines_are_let_in_only_if_that_is_said() -> None:
    with pytest.raises(ConfigError, match="asks for no password"):
        load(overrides=["metrics.listen=0.0.0.0:5574"], environ={})
    load(overrides=["metrics.listen=0.0.0.0:5574", "allow_plaintext=metrics.listen"], environ={})
    load(overrides=["metrics.listen=[::1]:5574"], environ={})
    with pytest.raises(ConfigError, match=r"looks like '127.0.0.1:5574'"):
        load(overrides=["metrics.listen=5574"], environ={})


# ---- the files that are made for it ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all metrics that a real daemon tells, with the endings of their samples."""
    folder = tmp_path_factory.mktemp("told")
    with ForkedDaemon(folder / "runs", settings=MONITORED) as daemon:
        _, text = get(daemon, "/metrics")
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    return names


def test_whatever_a_facility_asks_for_is_told(told: set[str]) -> None:
    """Also what no panel shows."""
    wanted = {"frames_total", "frame_bytes_total", "drops_total", "queue_bytes", "latency_seconds_bucket"}
    wanted |= {"commits_total", "tiles_total", "disk_free_bytes", "disk_total_bytes", "resident_memory_bytes"}
    wanted |= {"plugin_failures_total", "disk_full_in_seconds", "run_planned_frames", "run_placed_frames"}
    assert {f"tilecast_{name}" for name in wanted} <= told


def expressions(value: Any) -> list[str]:
    """Everything under a key `expr`."""
    if isinstance(value, dict):
        own = [value["expr"]] if isinstance(value.get("expr"), str) else []
        return own + [found for inner in value.values() for found in expressions(inner)]
    return [found for inner in value for found in expressions(inner)] if isinstance(value, list) else []


def test_every_metric_of_the_dashboard_exists(told: set[str]) -> None:
    dashboard = json.loads((SYSTEMD / "grafana-dashboard.json").read_text())
    used = {name for text in expressions(dashboard) for name in re.findall(r"\btilecast_\w+", text)}
    assert len(used) > 15
    assert used <= told
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_every_metric_of_the_alerts_exists(told: set[str]) -> None:
    text = (SYSTEMD / "alerts.rules.yml").read_text()
    used = set(re.findall(r"\btilecast_\w+", "\n".join(re.findall(r"expr: (.*)", text))))
    assert len(used) > 5
    assert used <= told


def program(name: str) -> str:
    """A program of the package prometheus."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} (package prometheus) is not here")
    return found


def panels() -> list[str]:
    """What the dashboard asks, for all instances, as Grafana would ask it."""
    found = expressions(json.loads((SYSTEMD / "grafana-dashboard.json").read_text()))
    return [text.replace("$instance", ".*").replace("$__rate_interval", "4s") for text in found]


def check_rules(file: Path) -> None:
    done = subprocess.run([program("promtool"), "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_alerts() -> None:
    check_rules(SYSTEMD / "alerts.rules.yml")


def test_prometheus_accepts_what_the_dashboard_asks(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, text in enumerate(panels())]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    check_rules(tmp_path / "rules.json")


#: Of a daemon to which nothing has happened these are empty.
ONLY_IN_TROUBLE = ("drops_total", "plugin_failures_total", "plugin_missed_commits_total", "run_planned_frames")
#: Not of a disk to which little is written.
ONLY_IF_IT_FILLS = ("disk_full_in_seconds",)


def test_a_prometheus_that_scrapes_a_daemon_fills_every_panel(start_daemon: StartDaemon, tmp_path: Path) -> None:
    prometheus = program("prometheus")
    daemon = start_daemon(**MONITORED)
    target = urlsplit(daemon.endpoints["metrics"]).netloc
    with socket.create_server(("127.0.0.1", 0)) as free:
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    scrape_config = {"job_name": "tilecast", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    rules = str(SYSTEMD / "alerts.rules.yml")
    config = {"rule_files": [rules], "scrape_configs": [scrape_config], "global": {"evaluation_interval": "1s"}}
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    command = [prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb"]

    def ask(path: str, **arguments: str) -> Any:
        with urllib.request.urlopen(f"http://{listen}/api/v1/{path}?{urlencode(arguments)}", timeout=PATIENCE_S) as got:
            return json.loads(got.read())["data"]

    def is_up() -> bool:
        try:
            return any(one["value"][1] == "1" for one in ask("query", query="up")["result"])
        except OSError:
            return False

    with (
        (tmp_path / "prometheus.log").open("w") as log,
        subprocess.Popen([*command, f"--web.listen-address={listen}"], stdout=log, stderr=log) as process,
        Publisher(daemon.endpoints["ingest.ack"], instrument="scope", stream="cam") as publisher,
    ):
        try:
            until(is_up, "Prometheus scrapes the daemon")
            publisher.start("watched", shape=(48, 64), dtype="<u2", px_um=(0.5, 0.5), n_expected=5)
            publisher.image(np.zeros((48, 64), "<u2"), pos_um=(0.0, 0.0))
            publisher.flush()
            for text in panels():
                if not any(name in text for name in (*ONLY_IN_TROUBLE, *ONLY_IF_IT_FILLS)):
                    until(lambda text=text: ask("query", query=text)["result"], f"the panel of {text} shows something")
                else:
                    ask("query", query=text)  # no error
            found = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
            assert len(found) > 5
            until(
                lambda: all(rule["health"] == "ok" for group in ask("rules")["groups"] for rule in group["rules"]),
                "all alerts are evaluated",
            )
            firing = [rule["name"] for rule in found if rule["state"] == "firing"]
            assert firing == [], "nothing is wrong with it"
        finally:
            process.terminate()
