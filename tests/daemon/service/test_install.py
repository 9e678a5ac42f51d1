"""What would be installed, and where. That it works is shown on a real systemd: tests/systemd."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from tilecast.errors import ConfigError
from tilecast.service.config import load, to_toml
from tilecast.service.install import (
    MARK,
    Installation,
    Place,
    Wishes,
    drop_in,
    limits,
    service_config,
    service_toml,
    unreadable,
)


class Systemctl:
    """Knows what was enabled and started, as systemctl would."""

    def __init__(self, version: int = 252) -> None:
        self.version = version
        self.called: list[str] = []
        self.enabled: set[str] = set()
        self.active: set[str] = set()

    def __call__(self, *arguments: str) -> tuple[int, str]:
        match arguments:
            case ["--version"]:
                return 0, f"systemd {self.version} ({self.version}.1)"
            case ["is-enabled", _, unit]:
                return int(unit not in self.enabled), ""
            case ["is-active", _, unit]:
                return int(unit not in self.active), ""
            case ["list-units", *_]:
                return 0, "".join(f"{unit} loaded active running a service\n" for unit in sorted(self.active))
            case ["enable", unit]:
                self.enabled.add(unit)
            case ["start" | "restart", unit]:
                self.active.add(unit)
            case ["disable", "--now", unit]:
                self.enabled.discard(unit)
                self.active.discard(unit)
        self.called.append(" ".join(arguments))
        return 0, ""


@pytest.fixture
def systemctl() -> Systemctl:
    return Systemctl()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.user(tmp_path)


def install(place: Place, systemctl: Systemctl, wishes: Wishes = Wishes()) -> list[str]:  # noqa: B008
    steps = Installation(place, systemctl).steps(wishes)
    for step in steps:
        step.do()
    return [step.what for step in steps]


def test_what_is_shown_is_not_done(place: Place, systemctl: Systemctl, tmp_path: Path) -> None:
    assert Installation(place, systemctl).steps(Wishes())
    assert list(tmp_path.iterdir()) == []
    assert systemctl.called == []


def test_for_a_user_the_unit_runs_this_environment(place: Place, systemctl: Systemctl) -> None:
    install(place, systemctl)
    unit = (place.units / "tilecast.service").read_text()
    assert unit.startswith(MARK)
    assert f"\nExecStart={sysconfig.get_path('scripts')}/tilecast run --config %E/tilecast/tilecast.toml\n" in unit
    assert systemctl.called == ["daemon-reload", "enable tilecast.service", "start tilecast.service"]
    assert (place.config / "tilecast.toml").read_text() == to_toml()


def test_a_second_time_there_is_nothing_to_do(place: Place, systemctl: Systemctl) -> None:
    install(place, systemctl)
    assert install(place, systemctl) == []


def test_an_older_unit_is_replaced_and_its_service_restarted(place: Place, systemctl: Systemctl) -> None:
    install(place, systemctl)
    config = place.config / "tilecast.toml"
    config.write_text('instrument = "mine"\n')
    unit = place.units / "tilecast.service"
    text = unit.read_text()
    unit.write_text(text + "# older\n")
    systemctl.called.clear()
    install(place, systemctl)
    assert unit.read_text() == text
    assert systemctl.called == ["daemon-reload", "restart tilecast.service"]
    assert config.read_text() == 'instrument = "mine"\n'


def test_newer_units_are_those_of_all_services_that_run(place: Place, systemctl: Systemctl) -> None:
    install(place, systemctl)
    systemctl.active |= {"tilecast-web.service", "tilecast@scope-2.service", "tilecast-kernels.service"}
    (place.units / "tilecast.service").write_text(f"{MARK}\n")
    systemctl.called.clear()
    install(place, systemctl)
    restarted = ["tilecast-web.service", "tilecast.service", "tilecast@scope-2.service"]
    assert systemctl.called == ["daemon-reload", *(f"restart {unit}" for unit in restarted)]
    (place.config / "tilecast.toml").write_text('[blend]\nbudget_bytes = "8GiB"\n')
    systemctl.called.clear()
    install(place, systemctl)
    assert systemctl.called == ["daemon-reload", "restart tilecast.service"]


def test_larger_budgets_get_larger_limits(place: Place, systemctl: Systemctl) -> None:
    install(place, systemctl)
    config = place.config / "tilecast.toml"
    config.write_text('[blend]\nbudget_bytes = "8GiB"\n')
    install(place, systemctl)
    override = place.units / "tilecast.service.d/10-tilecast.conf"
    high, most = limits(load(config, environ={}))
    assert f"MemoryHigh={high}\nMemoryMax={most}\n" in override.read_text()
    assert high > 8 << 30
    config.write_text("")
    assert f"remove {override}" in install(place, systemctl)
    assert not override.exists()


def test_a_wrong_configuration_is_told_before_anything_is_done(place: Place, systemctl: Systemctl) -> None:
    install(place, systemctl)
    (place.config / "tilecast.toml").write_text("[blend]\ntile_sise = 1\n")
    with pytest.raises(ConfigError, match=r"blend\.tile_size"):
        Installation(place, systemctl).steps(Wishes())


def test_what_was_installed_is_removed_and_nothing_else(place: Place, systemctl: Systemctl) -> None:
    install(place, systemctl)
    own = place.units / "tilecast.service.d/override.conf"
    own.parent.mkdir()
    own.write_text("[Service]\nNice=1\n")
    for step in Installation(place, systemctl).removal():
        step.do()
    assert [path for path in place.units.rglob("*") if path.is_file()] == [own]
    assert (place.config / "tilecast.toml").exists()
    assert (systemctl.enabled, systemctl.active) == (set(), set())
    assert Installation(place, systemctl).removal() == []


def test_without_systemd_there_is_nothing_to_install(place: Place) -> None:
    with pytest.raises(ConfigError, match="no systemd"):
        Installation(place, lambda *_: (127, "there is no systemctl")).systemd_version()


def test_without_a_service_manager_of_ones_own_it_says_so(place: Place, systemctl: Systemctl) -> None:
    def nobody_listens(*arguments: str) -> tuple[int, str]:
        return systemctl(*arguments) if arguments == ("--version",) else (1, "Failed to connect to bus: No medium")

    with pytest.raises(ConfigError, match=r"Failed to connect to bus.*of yours: log in"):
        Installation(place, nobody_listens).steps(Wishes())


def test_an_environment_that_services_cannot_see_is_refused(tmp_path: Path) -> None:
    assert unreadable([tmp_path]) == [f"{tmp_path.resolve()} is hidden from services"]
    assert unreadable([Path("/usr/bin/env")]) == []
    place, hidden = Place.machine(tmp_path), unreadable([Path(sys.prefix), Path(sys.base_prefix)])
    if hidden:
        with pytest.raises(ConfigError, match="/opt/tilecast/bin/tilecast install"):
            Installation(place, Systemctl()).steps(Wishes())


def test_a_unit_is_opened_to_other_machines_only_if_the_configuration_is() -> None:
    assert drop_in(service_config(), 252) == ""
    remote = load(overrides=["query=tcp://0.0.0.0:5573", "allow_plaintext=query"], environ={})
    assert "IPAddressAllow=any" in drop_in(remote, 252)
    assert "IPAddressAllow" not in drop_in(remote, 252, is_user=True)


def test_a_unit_may_write_where_the_runs_are() -> None:
    assert "ReadWritePaths=/data/runs\n" in drop_in(load(overrides=["store.path=/data/runs"], environ={}), 252)


def test_newer_systemd_waits_longer_each_time() -> None:
    assert "RestartMaxDelaySec=1min" in drop_in(load(environ={}), 254)


def test_an_instance_has_a_name_ports_and_a_folder_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "scope-2.toml"
    file.write_text(service_toml("scope-2", 5590))
    config = load(file, environ={})
    assert config.instrument == "scope-2"
    assert config.store.path == Path("/var/lib/tilecast/scope-2/runs")
    assert [config.ingest.ack, config.query] == ["tcp://127.0.0.1:5590", "tcp://127.0.0.1:5593"]
