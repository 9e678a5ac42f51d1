"""Key files: what is made can be read, by ZeroMQ's own reader too, and what others could read or change is refused."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import zmq
import zmq.auth

from tilecast_protocol.key_files import make_pair, read_public, read_secret
from tilecast_protocol.sockets import CurveKeys


def test_a_pair_is_made_and_read(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        public, secret = make_pair(tmp_path, "camera-pc")
    finally:
        os.umask(before)
    assert (public.name, secret.name) == ("camera-pc.key", "camera-pc.key_secret")
    assert (stat.S_IMODE(public.stat().st_mode), stat.S_IMODE(secret.stat().st_mode)) == (0o644, 0o600)
    pair = read_secret(secret)
    assert pair.secret is not None
    assert zmq.curve_public(pair.secret) == pair.public == read_public(public)
    assert zmq.auth.load_certificate(secret) == pair
    assert CurveKeys.load(secret) == (*pair, None)
    assert CurveKeys.load(secret, public).server == pair.public


def test_files_of_others_are_read(tmp_path: Path) -> None:
    public, secret = map(Path, zmq.auth.create_certificates(tmp_path, "theirs", {"host": "camera-pc"}))
    public.chmod(0o644)
    secret.chmod(0o600)
    assert (read_public(public), None) == zmq.auth.load_certificate(public)
    assert read_secret(secret) == zmq.auth.load_certificate(secret)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    public, secret = make_pair(tmp_path, "one")
    kept = public.read_bytes(), secret.read_bytes()
    with pytest.raises(FileExistsError):
        make_pair(tmp_path, "one")
    assert kept == (public.read_bytes(), secret.read_bytes())
    secret.unlink()
    with pytest.raises(FileExistsError):
        make_pair(tmp_path, "one")
    assert [path.name for path in tmp_path.iterdir()] == ["one.key"], "nor is a secret left that fits nothing"


@pytest.mark.parametrize("name", ["", "../x", "/etc/x", "a/b", ".hidden", "a\0", "a\n", "ä", "x" * 65, "a b"])
def test_names_that_are_paths_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a key's name has"):
        make_pair(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_can_touch_is_none(mode: int, tmp_path: Path) -> None:
    _, secret = make_pair(tmp_path, "one")
    secret.chmod(mode)
    with pytest.raises(ValueError, match=f"chmod 600 {secret}"):
        read_secret(secret)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_public_key_that_others_can_change_is_none(mode: int, tmp_path: Path) -> None:
    public, _ = make_pair(tmp_path, "one")
    public.chmod(mode)
    with pytest.raises(ValueError, match=f"chmod go-w {public}"):
        read_public(public)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "curve\n",
        'public-key = "short"\n',
        'public-key = "' + "~" * 40 + '"\n',
        'public-key = "' + "#" * 40 + '"\n',  # more than 32 bytes can say
        'public-key = "' + "0" * 45 + '"\n',
        'secret-key = "' + "0" * 40 + '"\n',
        "\0" * 100_000,
    ],
)
def test_what_is_no_key(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="holds no key"):
        read_public(path)


def test_a_pair_must_be_one(tmp_path: Path) -> None:
    public, secret = make_pair(tmp_path, "one")
    public.chmod(0o600)
    with pytest.raises(ValueError, match="holds no secret key"):
        read_secret(public)
    other = read_public(make_pair(tmp_path, "two").public)
    secret.write_bytes(secret.read_bytes().replace(read_public(public), other))
    with pytest.raises(ValueError, match="do not belong together"):
        read_secret(secret)


def test_a_secret_that_the_service_manager_keeps_may_be_readable_by_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = make_pair(tmp_path, "one")
    secret.chmod(0o440)  # as it looks where the service may read it by an access list
    with pytest.raises(ValueError, match="others can read it"):
        read_secret(secret)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_secret(secret).secret is not None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path.parent))
    with pytest.raises(ValueError, match="others can read it"):
        read_secret(secret)


def test_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.key", 0o600)
    with pytest.raises(ValueError, match="no plain file"):
        read_public(tmp_path / "pipe.key")
