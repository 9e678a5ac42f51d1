"""Puts tilecast in place as a service of systemd: what has to be done is worked out first, shown, and then done.

The units lie in `systemd/` of a checkout, or in `share/tilecast/systemd` of an installation, and are copied with the
paths of the Python environment that this runs in. What is copied says so in its first line, and belongs to us: it is
overwritten by the next installation and removed by `uninstall`. The configuration belongs to whoever runs the machine:
it is written once, and never touched again. Changes to units belong into drop-ins (`systemctl edit`), which stay.

Nothing is started that would lose a run: a daemon that is restarted ends what it has read, and takes up its runs again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tilecast.errors import ConfigError
from tilecast.options import GIB, MIB
from tilecast.service.budgets import memory_needs
from tilecast.service.config import SOCKETS, Config, endpoint_is_local, load, to_toml

MARK: Final = "# Written by `tilecast install`"
_EXAMPLE: Final = "/opt/tilecast/bin/"
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
_RESTART_STEPS_SINCE: Final = 254
_ROUND_TO: Final = 512 * MIB
_STATE: Final = Path("/var/lib/tilecast")
_FREE_PORTS: Final = ("ingest.ack", "ingest.pull", "notify", "query")


@dataclass(frozen=True)
class Place:
    """Where the parts go.

    Attributes
    ----------
    is_user : bool
        For one user, with a service manager of their own; else for the whole machine.
    units, config : Path
        Folders of the units and of the configuration.
    sysusers, tmpfiles : Path or None
        Files; for the whole machine only.
    """

    is_user: bool
    units: Path
    config: Path
    sysusers: Path | None = None
    tmpfiles: Path | None = None

    @classmethod
    def machine(cls, root: Path = Path("/")) -> Place:
        """The whole machine, below `root`."""
        etc = root / "etc"
        return cls(
            False,
            etc / "systemd/system",
            etc / "tilecast",
            etc / "sysusers.d/tilecast.conf",
            etc / "tmpfiles.d/tilecast.conf",
        )

    @classmethod
    def user(cls, home: Path | None = None) -> Place:
        """One user."""
        given = os.environ.get("XDG_CONFIG_HOME") if home is None else None
        config = Path(given) if given else (home or Path.home()) / ".config"
        return cls(True, config / "systemd/user", config / "tilecast")


@dataclass(frozen=True)
class Step:
    """Something to do.

    Attributes
    ----------
    what : str
        In words, for people.
    do : callable
        Does it.
    """

    what: str
    do: Callable[[], None]


@dataclass(frozen=True)
class Wishes:
    """What is to be installed.

    Attributes
    ----------
    instance : str or None
        One of several microscopes; None: the only one.
    port : int
        The first of four ports, for an instance.
    web : bool
        Whether the pages for browsers are to be started, too.
    restart : bool
        Restart services that run, even if nothing of theirs has changed.
    """

    instance: str | None = None
    port: int = 5580
    web: bool = False
    restart: bool = False


def units_folder() -> Path:
    """Where the units lie that came with this tilecast.

    Raises
    ------
    ConfigError
        If they are not there.
    """
    checkout = Path(__file__).resolve().parents[3] / "systemd"
    installed = Path(sysconfig.get_path("data")) / "share/tilecast/systemd"
    for folder in (checkout, installed):
        if (folder / "tilecast.service").is_file():
            return folder
    raise ConfigError(f"the units are neither in {checkout} nor in {installed}; install tilecast again, with pip or uv")


def limits(config: Config) -> tuple[int, int]:
    """`MemoryHigh` and `MemoryMax` in bytes for these budgets."""
    high = -(-sum(memory_needs(config).values()) // _ROUND_TO) * _ROUND_TO
    return high, high + GIB


def service_config(instance: str | None = None, port: int = 5580) -> Config:
    """What the configuration of a service for the whole machine begins with."""
    folder = _STATE / (instance or "")
    values = [f"store.path={folder}/runs", f"calibration.path={folder}/calibrations"]
    if instance:
        values += [f"instrument={instance}"]
        values += [f"{name}=tcp://127.0.0.1:{port + n}" for n, name in enumerate(_FREE_PORTS)]
    return load(overrides=values, environ={})


def service_toml(instance: str | None = None, port: int = 5580) -> str:
    """Its file, every option explained."""
    return to_toml(service_config(instance, port))


def drop_in(config: Config, systemd_version: int, *, is_user: bool = False) -> str:
    """What of a unit depends on the configuration, and on systemd's age; empty if the unit is right as it is."""
    unit, lines = [], []
    if limits(config) != limits(load(environ={})):
        high, most = limits(config)
        lines += ["# In step with the budgets of the configuration.", f"MemoryHigh={high}", f"MemoryMax={most}"]
    remote = [name for name in SOCKETS if not all(map(endpoint_is_local, config.endpoints(name)))]
    if not is_user and not config.store.path.is_relative_to(_STATE):
        lines += ["# Where the runs are.", f"ReadWritePaths={config.store.path}"]
    if remote and not is_user:
        lines += [f"# Other machines reach {', '.join(remote)}.", "IPAddressDeny=", "IPAddressAllow=any"]
    if systemd_version >= _RESTART_STEPS_SINCE:
        unit = ["[Unit]", "StartLimitBurst=10"]
        lines += ["# From 2 s to a minute between restarts.", "RestartSteps=5", "RestartMaxDelaySec=1min"]
    return "\n".join([*unit, "[Service]", *lines, ""]) if lines else ""


def unreadable(paths: list[Path]) -> list[str]:
    """Why a service for the whole machine could not run what lies here."""
    found = []
    for path in paths:
        real = path.resolve()
        if any(real.is_relative_to(hidden) for hidden in _HIDDEN):
            found.append(f"{real} is hidden from services")
        else:
            closed = [one for one in (real, *real.parents) if not _is_open(one)]
            found += [f"{closed[-1]} is closed to other users"] if closed else []
    return list(dict.fromkeys(found))


def _is_open(path: Path) -> bool:
    needed = 0o005 if path.is_dir() else 0o004
    return path.stat().st_mode & needed == needed


class Installation:
    """What is to be done here.

    Parameters
    ----------
    place : Place
    systemctl : callable
        Runs systemctl with arguments; gives its exit code and what it said.
    """

    def __init__(self, place: Place, systemctl: Callable[..., tuple[int, str]] | None = None) -> None:
        self._place = place
        self._systemctl = systemctl or self._run_systemctl

    def systemd_version(self) -> int:
        """ConfigError if there is none."""
        code, said = self._systemctl("--version")
        words = said.split()
        if code or len(words) < 2 or not words[1].isdecimal():
            raise ConfigError("systemctl --version says nothing: there is no systemd here to install a service for")
        return int(words[1])

    def steps(self, wishes: Wishes) -> list[Step]:
        """What has to be done that is not done yet.

        Raises
        ------
        ConfigError
            If it cannot be done: what is installed cannot be read by a service, or the configuration that is there is
            wrong.
        """
        place = self._place
        scripts, python = Path(sysconfig.get_path("scripts")), Path(sys.executable)
        if not (scripts / "tilecast").exists():
            raise ConfigError(f"there is no {scripts}/tilecast: install tilecast into an environment, with pip or uv")
        if any(letter.isspace() for letter in f"{scripts}{python}"):
            raise ConfigError(f"systemd cannot start what lies below a name with spaces: {scripts}")
        if not place.is_user:
            if wrong := unreadable([Path(sys.prefix), Path(sys.base_prefix), Path(__file__)]):
                raise ConfigError(
                    f"{'; '.join(wrong)}. A service for the whole machine needs an environment that everybody can "
                    "read: python3 -m venv /opt/tilecast && /opt/tilecast/bin/pip install tilecast, and then "
                    "/opt/tilecast/bin/tilecast install. Or install it for yourself: tilecast install --user"
                )
        elif wishes.instance or wishes.web:
            raise ConfigError("--instance and --web are for the whole machine, not for --user")
        return list(self._steps(wishes, f"{scripts}/tilecast", str(python)))

    def _steps(self, wishes: Wishes, tilecast: str, python: str) -> Iterator[Step]:
        place, source = self._place, units_folder()
        name = wishes.instance or "tilecast"
        service = f"tilecast@{name}.service" if wishes.instance else "tilecast.service"
        config_file = place.config / f"{name}.toml"
        if config_file.exists():
            config = load(config_file, environ={})
        else:
            config = load(environ={}) if place.is_user else service_config(wishes.instance, wishes.port)
        if not place.is_user and not (runs := config.store.path).is_relative_to(_STATE) and not runs.is_dir():
            raise ConfigError(
                f"store.path = {runs} in {config_file}: there is no such folder. Make it, and give it to the service: "
                f"install -d -o tilecast -g tilecast -m 750 {runs}"
            )
        if place.sysusers and place.tmpfiles:
            yield from self._system_file(place.sysusers, source / "sysusers.conf", "systemd-sysusers")
            yield from self._system_file(place.tmpfiles, source / "tmpfiles.conf", "systemd-tmpfiles", "--create")
        if not config_file.exists():
            example = to_toml(config)
            group = None if place.is_user else "tilecast"
            mode = 0o600 if place.is_user else 0o640
            yield Step(f"write {config_file}", lambda: _write(config_file, example, mode, group))
        changed: set[Path] = set()
        for unit, text in self._units(source, service, config, tilecast, python):
            path = place.units / unit
            if not path.exists() or path.read_text() != text:
                changed.add(path)
                yield _writing(path, text)
        override = place.units / f"{service}.d/10-tilecast.conf"
        if override.exists() and not self._drop_in(config):
            changed.add(override)
            yield Step(f"remove {override}", override.unlink)
        if changed:
            yield self._command("daemon-reload")
        active = self._active()
        enabled = [service, *(["tilecast-web.service"] if wishes.web else [])]
        # A drop-in is this service's; the units are those of all.
        all_are_old = wishes.restart or bool(changed - {override})
        old = active if all_are_old else {service} & active if changed else set()
        if not place.is_user and (old or not active.issuperset(enabled)):
            yield self._command("restart", "tilecast-kernels.service", why=" (compiles kernels; up to a minute)")
        for one in enabled:
            if not self._is("is-enabled", one):
                yield self._command("enable", one)
            if one not in active:
                yield self._command("start", one)
        for one in sorted(old):
            yield self._command("restart", one, why=" (it ends what it has read, and takes up its runs again)")

    def removal(self) -> list[Step]:
        """What has to be done to take everything away again, but for runs, configurations and users."""
        place = self._place
        ours = [path for path in sorted(place.units.rglob("*tilecast*")) if not path.is_symlink() and _is_ours(path)]
        units = [path.name for path in ours if path.suffix == ".service" and path.parent == place.units]
        instances = [
            one.name
            for one in sorted((place.units / "multi-user.target.wants").glob("tilecast@*.service"))
            if "tilecast@.service" in units
        ]
        steps = [
            self._command("disable", "--now", one)
            for one in (*(name for name in units if "@" not in name and "kernels" not in name), *instances)
            if self._is("is-enabled", one) or self._is("is-active", one)
        ]
        ours += [path for path in (place.sysusers, place.tmpfiles) if path is not None and _is_ours(path)]
        steps += [Step(f"remove {path}", path.unlink) for path in ours]
        return [*steps, self._command("daemon-reload")] if ours else steps

    def _drop_in(self, config: Config) -> str:
        return drop_in(config, self.systemd_version(), is_user=self._place.is_user)

    def _units(
        self, source: Path, service: str, config: Config, tilecast: str, python: str
    ) -> Iterator[tuple[str, str]]:
        """Names and contents of the units and drop-ins."""
        folder = source / "user" if self._place.is_user else source
        for path in sorted(folder.glob("*.service")):
            text = path.read_text()
            text = text.replace(f"{_EXAMPLE}python", python.replace("%", "%%"))
            yield path.name, _mark() + text.replace(f"{_EXAMPLE}tilecast", tilecast.replace("%", "%%"))
        if text := self._drop_in(config):
            yield f"{service}.d/10-tilecast.conf", _mark() + text

    def _system_file(self, path: Path, source: Path, *command: str) -> Iterator[Step]:
        text = _mark() + source.read_text()
        if not path.exists() or path.read_text() != text:
            yield _writing(path, text)
            yield Step(f"{' '.join(command)} {path}", lambda: _run(*command, str(path)))

    def _active(self) -> set[str]:
        """Our services that run."""
        _, said = self._systemctl("list-units", "--state=active", "--plain", "--no-legend", "tilecast*.service")
        return {line.split()[0] for line in said.splitlines() if line.strip()} - {"tilecast-kernels.service"}

    def _is(self, question: str, unit: str) -> bool:
        return self._systemctl(question, "--quiet", unit)[0] == 0

    def _command(self, *arguments: str, why: str = "") -> Step:
        def do() -> None:
            code, said = self._systemctl(*arguments)
            if code:
                raise ConfigError(f"systemctl {' '.join(arguments)} failed: {said.strip()}")

        user = "--user " if self._place.is_user else ""
        return Step(f"systemctl {user}{' '.join(arguments)}{why}", do)

    def _run_systemctl(self, *arguments: str) -> tuple[int, str]:
        user = ["--user"] if self._place.is_user else []
        try:
            done = subprocess.run(
                ["systemctl", *user, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
            )
        except FileNotFoundError:
            return 127, "there is no systemctl"
        return done.returncode, done.stdout + done.stderr


def _mark() -> str:
    return f"{MARK} (tilecast {version('tilecast')}), which overwrites it.\n"


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_text().startswith(MARK)


def _writing(path: Path, text: str) -> Step:
    return Step(f"{'replace' if path.exists() else 'write'} {path}", lambda: _write(path, text, 0o644))


def _write(path: Path, text: str, mode: int, group: str | None = None) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.chmod(mode)
    if group is not None:
        shutil.chown(beside, group=group)
    beside.replace(path)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ConfigError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()}")
