"""The files in `systemd/`, looked at from outside; that they work is shown by test_boot.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tilecast.service.config import load
from tilecast.service.install import drop_in, limits, service_toml

UNITS = Path(__file__).resolve().parents[2] / "systemd"
SYSTEM = sorted(UNITS.glob("*.service"))
ALL = [*SYSTEM, *sorted((UNITS / "user").glob("*.service"))]
#: Where the two kinds of daemons may differ.
OF_AN_INSTANCE = ("Description", "RequiresMountsFor", "ExecStart", "StateDirectory", "RuntimeDirectory", "Environment")

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


def settings(path: Path) -> list[tuple[str, str]]:
    """All settings of a unit, in order."""
    return [
        (name, value)
        for line in path.read_text().splitlines()
        for name, equals, value in (line.partition("="),)
        if equals and not line.startswith("#")
    ]


def in_place(path: Path, folder: Path) -> Path:
    """A unit as it would be installed here, an instance of it if it is a template."""
    for unit in path.parent.glob("*.service"):
        text = unit.read_text().replace("/opt/tilecast/bin/tilecast", f"{sysconfig.get_path('scripts')}/tilecast")
        (folder / unit.name).write_text(text.replace("/opt/tilecast/bin/python", sys.executable))
    return folder / path.name.replace("@.", "@scope-2.")


@needs_systemd
@pytest.mark.parametrize("path", ALL, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_systemd_has_nothing_to_say_of_a_unit(path: Path, tmp_path: Path) -> None:
    user = ["--user"] if path.parent.name == "user" else []
    command = ["systemd-analyze", *user, "verify", str(in_place(path, tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


@needs_systemd
@pytest.mark.parametrize("path", SYSTEM, ids=lambda path: path.name)
def test_units_are_hardened(path: Path, tmp_path: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(in_place(path, tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    assert float(found[1]) <= (2.0 if "web" in path.name else 1.5), done.stdout


def test_an_instance_is_hardened_and_limited_as_the_only_daemon_is() -> None:
    one, many = settings(UNITS / "tilecast.service"), settings(UNITS / "tilecast@.service")
    assert [name for name, _ in one] == [name for name, _ in many]
    differing = {name for (name, value), (_, other) in zip(one, many, strict=True) if value != other}
    assert differing <= set(OF_AN_INSTANCE)


@pytest.mark.parametrize("path", [path for path in ALL if "web" not in path.name and "kernels" not in path.name])
def test_memory_limits_are_in_step_with_the_budgets(path: Path) -> None:
    high, most = limits(load(environ={}))
    assert dict(settings(path))["MemoryHigh"] == f"{high >> 20}M"
    assert dict(settings(path))["MemoryMax"] == f"{most >> 20}M"


@pytest.mark.parametrize("path", [path for path in ALL if "kernels" not in path.name], ids=lambda path: path.name)
def test_what_fails_is_tried_again_for_minutes_and_not_for_ever(path: Path) -> None:
    """Whatever the age of systemd: what does not know `RestartSteps` waits equally long each time."""
    unit = dict(settings(path))
    delay_s, window_s = float(unit["RestartSec"].removesuffix("s")), 60 * int(unit["StartLimitIntervalSec"][:-3])
    assert not any(name.startswith("RestartSteps") for name in unit), "an old systemd would complain"
    assert 120 <= int(unit["StartLimitBurst"]) * delay_s < window_s / 2, "it is reached, also by one that takes a while"
    if "web" in path.name:
        return
    newer = dict(line.split("=") for line in drop_in(load(environ={}), 254).splitlines() if "=" in line)
    n, longest_s, burst = int(newer["RestartSteps"]), 60.0, int(newer["StartLimitBurst"])
    assert newer["RestartMaxDelaySec"] == "1min"
    growth = (longest_s / delay_s) ** (1 / n)  # steps of equal ratio, as systemd has it
    delays_s = [min(longest_s, delay_s * growth**number) for number in range(burst)]
    assert 120 <= sum(delays_s) < window_s / 2


def test_the_example_explains_every_option() -> None:
    assert (UNITS / "tilecast.toml").read_text() == service_toml(), (
        "write it anew: uv run python -c 'from tilecast.service.install import service_toml; "
        'print(service_toml(), end="")\' > systemd/tilecast.toml'
    )
