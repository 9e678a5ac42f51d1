"""`tilecast doctor`: each thing that may be wrong is made wrong, and must be found, with advice."""

from __future__ import annotations

import json
import resource
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tilecast import cli
from tilecast.bench.limits import FileSystem
from tilecast.commands import _checkup
from tilecast.commands._checkup import Camera, Finding, Verdict
from tilecast.process import DaemonProcess
from tilecast.service.config import Config, load

FREE = [f"{name}=tcp://127.0.0.1:*" for name in ("ingest.ack", "ingest.pull", "notify", "query")]
CAMERA = Camera(frame_nbytes=8 << 20, fps=20.0)


def config(store: Path, *overrides: str) -> Config:
    return load(overrides=[*FREE, f"store.path={store}", *overrides], environ={})


def found(check: Any, config: Config, camera: Camera | None = None) -> Finding:
    """The only finding of a check; whoever does not say ok says what to do."""
    [finding] = check(config, camera)
    assert isinstance(finding, Finding)
    assert bool(finding.advice) == (finding.verdict is not Verdict.OK), finding
    return finding


def doctor(store: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    overrides = [word for override in (*FREE, f"store.path={store}") for word in ("--set", override)]
    result = CliRunner().invoke(cli.main, ["doctor", "--json", *overrides, *arguments], env={"TILECAST_CONFIG": None})
    assert result.output.startswith("{"), result.output
    return result.exit_code, json.loads(result.output)


def test_it_looks_at_everything_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checkup, "_WRITE_BYTES", 16 << 20)
    code, answer = doctor(tmp_path / "runs")
    by_check = {finding["check"]: finding for finding in answer["findings"]}
    assert by_check.keys() == _checkup.CHECKS.keys()
    assert by_check["daemon"]["verdict"] == "ok", by_check["daemon"]
    assert "showed 4 frames as they were sent" in by_check["daemon"]["found"]
    assert "can be made" in by_check["permissions"]["found"]
    worst = max((finding["verdict"] for finding in answer["findings"]), key=["ok", "warn", "fail"].index)
    assert answer["verdict"] == worst
    assert code == (worst == "fail")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checkup, "CHECKS", {"disk speed": _checkup.check_disk_speed})
    monkeypatch.setattr(_checkup, "_WRITE_BYTES", 16 << 20)
    code, answer = doctor(tmp_path, "--fps", "1000000")
    assert (code, answer["verdict"]) == (1, "fail")
    code, answer = doctor(tmp_path, "--fps", "0.01", "--shape", "64x64", "--dtype", "u1")
    assert (code, answer["verdict"]) == (0, "ok")


def test_people_read_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checkup, "CHECKS", {"permissions": _checkup.check_permissions})
    result = CliRunner().invoke(cli.main, ["doctor", "--set", "store.path=/proc/tilecast"])
    assert result.exit_code == 1
    assert "fail  permissions" in result.output
    assert "→ run this as the user of the daemon" in result.output
    assert "0 in order, 0 to look at, 1 to be repaired" in result.output
    assert CliRunner().invoke(cli.main, ["doctor", "--shape", "big"]).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_config: Config, _camera: Camera | None) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(_checkup, "CHECKS", {"clock": broken, "Python": _checkup.check_python})
    first, second = _checkup.examine(config(tmp_path), None)
    assert (first.check, first.verdict) == ("clock", Verdict.FAIL)
    assert "could not be checked: [Errno 5]" in first.found
    assert second.verdict is Verdict.OK


def test_kernels_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(_checkup.check_kernels, config(tmp_path)).verdict is Verdict.OK
    monkeypatch.setattr(_checkup, "_can_write", lambda _folder: False)  # root may write anywhere
    finding = found(_checkup.check_kernels, config(tmp_path))
    assert finding.verdict is Verdict.WARN
    assert "NUMBA_CACHE_DIR" in finding.advice


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [("ext4", Verdict.OK), ("nfs4", Verdict.FAIL), ("cifs", Verdict.FAIL), ("tmpfs", Verdict.WARN)],
)
def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, verdict: Verdict) -> None:
    monkeypatch.setattr(_checkup, "file_system_of", lambda _folder: FileSystem(kind=kind, device="server:/data"))
    finding = found(_checkup.check_file_system, config(tmp_path))
    assert finding.verdict is verdict
    assert f"{kind} on server:/data" in finding.found


def test_permissions(tmp_path: Path) -> None:
    assert found(_checkup.check_permissions, config(tmp_path)).verdict is Verdict.OK
    assert "can be made" in found(_checkup.check_permissions, config(tmp_path / "a" / "b")).found
    tmp_path.chmod(0o777)
    finding = found(_checkup.check_permissions, config(tmp_path))
    assert (finding.verdict, finding.advice) == (Verdict.WARN, f"chmod o-w {tmp_path}")
    assert found(_checkup.check_permissions, config(Path("/proc/tilecast"))).verdict is Verdict.FAIL


def test_free_disk(tmp_path: Path) -> None:
    nothing = ("disk.warn_bytes=0", "disk.stop_bytes=0")
    assert found(_checkup.check_free_disk, config(tmp_path, *nothing)).verdict is Verdict.OK
    assert "at this rate" in found(_checkup.check_free_disk, config(tmp_path, *nothing), CAMERA).found
    warn = ("disk.warn_bytes=1000TiB", "disk.warn_percent=100", "disk.stop_bytes=0")
    assert found(_checkup.check_free_disk, config(tmp_path, *warn)).verdict is Verdict.WARN
    stop = ("disk.stop_bytes=1000TiB", "disk.stop_percent=100")
    assert found(_checkup.check_free_disk, config(tmp_path, *stop)).verdict is Verdict.FAIL


@pytest.mark.parametrize(("mb_s", "verdict"), [(2000, Verdict.OK), (400, Verdict.WARN), (100, Verdict.FAIL)])
def test_disk_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mb_s: float, verdict: Verdict) -> None:
    monkeypatch.setattr(_checkup, "write_mb_s", lambda _folder, _n_bytes: mb_s)
    finding = found(_checkup.check_disk_speed, config(tmp_path), CAMERA)
    assert finding.verdict is verdict
    assert "336 MB/s" in finding.found


def test_memory(tmp_path: Path) -> None:
    assert found(_checkup.check_memory, config(tmp_path, "viewers.unread_bytes_of_all=1MiB")).check == "memory"
    finding = found(_checkup.check_memory, config(tmp_path, "blend.budget_bytes=1000TiB"))
    assert finding.verdict is Verdict.WARN


def test_the_clock_of_this_machine_is_told() -> None:
    try:
        synchronised, error_s = _checkup.clock_state()
    except PermissionError:
        pytest.skip("this sandbox does not let the clock be asked")
    assert isinstance(synchronised, bool)
    assert 0 <= error_s < 3600


@pytest.mark.parametrize(
    ("state", "verdict", "words"),
    [
        ((True, 0.004), Verdict.OK, "to 4.0 ms"),
        ((True, 0.4), Verdict.WARN, "wrong by 400 ms"),
        ((False, 16.0), Verdict.WARN, "not synchronised"),
    ],
)
def test_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: tuple[bool, float], verdict: Verdict, words: str
) -> None:
    monkeypatch.setattr(_checkup, "clock_state", lambda: state)
    finding = found(_checkup.check_clock, config(tmp_path))
    assert finding.verdict is verdict
    assert words in finding.found


@pytest.mark.parametrize(("limit", "verdict"), [(1024, Verdict.OK), (900, Verdict.WARN), (200, Verdict.FAIL)])
def test_open_files(tmp_path: Path, limit: int, verdict: Verdict) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        assert found(_checkup.check_open_files, config(tmp_path)).verdict is verdict
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_socket_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(_checkup.check_socket_buffers, config(tmp_path)).check == "socket buffers"
    monkeypatch.setattr(_checkup, "_TCP_BUFFER_BYTES", 1 << 40)
    finding = found(_checkup.check_socket_buffers, config(tmp_path))
    assert finding.verdict is Verdict.WARN
    assert "sysctl -w net.ipv4.tcp_rmem=" in finding.advice


def test_keys(tmp_path: Path) -> None:
    assert found(_checkup.check_keys, config(tmp_path)).verdict is Verdict.OK
    plain = config(tmp_path, "query=tcp://0.0.0.0:5573", "allow_plaintext=query")
    assert found(_checkup.check_keys, plain).verdict is Verdict.WARN
    (tmp_path / "clients").mkdir()
    paths = (f"curve.secret_key={tmp_path / 'daemon.key_secret'}", f"curve.clients={tmp_path / 'clients'}")
    missing = config(tmp_path, "query=tcp://0.0.0.0:5573", *paths)
    finding = found(_checkup.check_keys, missing)
    assert finding.verdict is Verdict.FAIL
    assert "daemon.key_secret" in finding.found


def test_the_daemon_that_runs_is_asked(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "runs") as daemon:
        here = (f"query={daemon.endpoints['query']}",)
        finding = found(_checkup.check_daemon, config(tmp_path / "runs", *here))
        assert finding.verdict is Verdict.OK
        assert "is ready; it takes a start" in finding.found
        other = found(_checkup.check_daemon, config(tmp_path / "other", *here))
        assert other.verdict is Verdict.WARN
        assert "--config" in other.advice


def test_a_port_that_another_program_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_checkup, "_ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as other:
        endpoint = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        finding = next(iter(_checkup.check_daemon(config(tmp_path, f"query={endpoint}"), None)))
    assert finding.verdict is Verdict.FAIL
    assert f"query = {endpoint}" in finding.found


def test_a_daemon_that_cannot_start_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILECAST_BLEND_TILE_SIZE", "31")
    finding = found(_checkup.check_daemon, config(tmp_path))
    assert finding.verdict is Verdict.FAIL
    assert "multiple of 8" in finding.found
