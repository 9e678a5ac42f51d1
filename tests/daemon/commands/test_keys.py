"""`tilecast keys`: makes pairs that a daemon takes, and shows who may connect."""

from __future__ import annotations

import stat
from pathlib import Path

from click.testing import CliRunner, Result

from tilecast.cli import main
from tilecast_protocol.key_files import read_public, read_secret


def run(*arguments: str | Path) -> Result:
    return CliRunner(env={"TILECAST_CONFIG": ""}).invoke(main, [str(argument) for argument in arguments])


def test_a_pair_is_made_and_its_use_shown(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    result = run("keys", "new", "camera-pc", folder)
    assert result.exit_code == 0
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    pair = read_secret(folder / "camera-pc.key_secret")
    assert pair.secret is not None
    assert pair.secret.decode() not in result.output
    assert f'secret_key = "{folder / "camera-pc.key_secret"}"' in result.output
    assert 'CurveKeys.load("camera-pc.key_secret", server="daemon.key")' in result.output
    again = run("keys", "new", "camera-pc", folder)
    assert again.exit_code == 2
    assert "there is" in again.output
    assert read_secret(folder / "camera-pc.key_secret") == pair
    assert run("keys", "new", "../up", folder).exit_code == 2
    assert not list(tmp_path.glob("up*"))


def test_who_may_connect_is_shown(tmp_path: Path) -> None:
    assert "the daemon has no key" in run("keys", "show").output
    for name, folder in (("daemon", "own"), ("viewer", "clients"), ("boss", "operators")):
        assert run("keys", "new", name, tmp_path / folder).exit_code == 0
    options = {
        "query": "tcp://0.0.0.0:*",
        "notify": "tcp://0.0.0.0:*",
        "allow_plaintext": "notify",
        "curve.secret_key": tmp_path / "own" / "daemon.key_secret",
        "curve.clients": tmp_path / "clients",
        "curve.operators": tmp_path / "operators",
    }
    settings = [part for name, value in options.items() for part in ("--set", f"{name}={value}")]
    shown = run("keys", "show", *settings).output
    for folder, name, may in (("clients", "viewer", "connect"), ("operators", "boss", "connect, and order")):
        [line] = [line for line in shown.splitlines() if line.startswith(name)]
        assert read_public(tmp_path / folder / f"{name}.key").decode() in line
        assert f" {may} " in line
    assert read_public(tmp_path / "own" / "daemon.key").decode() in shown
    assert "sockets with keys: query\n" in shown
    assert "whoever reaches them: notify" in shown
    (tmp_path / "clients").chmod(0o777)
    refused = run("keys", "show", *settings)
    assert refused.exit_code == 2
    assert "chmod go-w" in refused.output
