"""Which plugins are installed, and what becomes of one whose options are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from tilecast import guests as guests_module
from tilecast.errors import ConfigError
from tilecast.guests import RESERVED, guests
from tilecast.hookspecs import ENTRY_POINT_GROUP
from tilecast.service.config import PluginsOptions, load, our_options, to_markdown, to_toml

Install = Callable[..., None]

OPTIONS = """
from tilecast.options import Folders, PluginOptions, Size, option
class Options(PluginOptions):
    "A guest."
    folders: Folders = option((), "Some folders.")
    room_bytes: Size = option(1 << 20, "A size.", unit="bytes", ge=1)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Announce plugins, each with the text of its module of options; `install(name="text")`."""
    monkeypatch.syspath_prepend(tmp_path)

    def announce(**texts: str) -> None:
        entries = []
        for name, text in texts.items():
            module = f"guest_options_{abs(hash((str(tmp_path), name)))}"
            (tmp_path / f"{module}.py").write_text(text)
            entries += [
                EntryPoint(name.replace("__", "-"), "nothing", "tilecast.plugins"),
                EntryPoint(name.replace("__", "-"), f"{module}:Options", "tilecast.options"),
            ]
        monkeypatch.setattr(guests_module, "entry_points", lambda group: EntryPoints(entries).select(group=group))
        guests.cache_clear()

    yield announce
    guests.cache_clear()


def refused(*overrides: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, overrides, environ or {})
    return str(caught.value)


def test_names_that_are_options_of_all_plugins_are_reserved() -> None:
    assert PluginsOptions.model_fields.keys() == RESERVED
    assert guests_module.PLUGINS_GROUP == ENTRY_POINT_GROUP


def test_options_come_from_everywhere_and_the_later_wins(install: Install, tmp_path: Path) -> None:
    install(my__guest=OPTIONS)
    file = tmp_path / "tilecast.toml"
    file.write_text('[plugins]\ntimeout_s = 2\n[plugins.my_guest]\nfolders = ["new", "/old"]\nroom_bytes = "2MiB"\n')
    config = load(file, ["plugins.my_guest.room_bytes=4MiB"], {"TILECAST_PLUGINS_MY_GUEST_ENABLED": "no"})
    assert config.of_plugin("my-guest").model_dump() == {
        "enabled": False,
        "folders": (tmp_path / "new", Path("/old")),
        "room_bytes": 4 << 20,
    }
    assert config.value("plugins.my_guest.room_bytes") == 4 << 20
    assert config.provenance["plugins.my_guest.folders"] == str(file)
    assert config.provenance["plugins.my_guest.enabled"] == "TILECAST_PLUGINS_MY_GUEST_ENABLED"
    assert config.plugins.timeout_s == 2
    assert "[plugins.my_guest]\n# Whether" in to_toml(config)
    assert 'room_bytes = "4MiB"' in to_toml(config)
    assert "my_guest" not in to_markdown()
    assert our_options()


def test_what_is_wrong_is_refused_with_what_was_meant(install: Install) -> None:
    install(my__guest=OPTIONS)
    assert "did you mean plugins.my_guest.folders?" in refused("plugins.my_guest.folder=/x")
    assert "plugins.my_guest.room_bytes (--set): expected size, at least 1; got 0" in refused(
        "plugins.my_guest.room_bytes=0"
    )
    assert "no plugin my_gust is installed: did you mean plugins.my_guest?" in refused("plugins.my_gust.folders=/x")
    assert "did you mean TILECAST_PLUGINS_MY_GUEST_FOLDERS?" in refused(
        environ={"TILECAST_PLUGINS_MY_GUEST_FOLDER": "/x"}
    )


@pytest.mark.parametrize("text", ["raise SystemExit(3)", "Options = 3"], ids=["raises", "no class"])
def test_one_whose_options_cannot_be_read_is_left_out_and_the_others_go_on(install: Install, text: str) -> None:
    install(broken=text, good=OPTIONS)
    broken, good = guests()
    assert "cannot be read" in broken.trouble
    assert good.trouble == ""
    config = load(
        None,
        ["plugins.broken.anything=1", "plugins.broken.enabled=false", "plugins.good.folders=/x"],
        {"TILECAST_PLUGINS_BROKEN_OTHER": "2"},
    )
    assert not config.of_plugin("broken").enabled


def test_a_name_that_is_no_table(install: Install) -> None:
    install(trace=OPTIONS, Upper=OPTIONS)
    assert all("its name is that of a table" in guest.trouble for guest in guests())
    assert load(None, ["plugins.trace=true"], {}).plugins.trace is True
