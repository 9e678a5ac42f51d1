"""The configuration: what is taken, from where, and how what is wrong is explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tilecast.blending import BLEND_MODES
from tilecast.errors import ConfigError
from tilecast.options import parse_size
from tilecast.service.config import endpoint_is_local, load, options, to_toml


def refused(*overrides: str, config_file: Path | None = None, **environ: str) -> str:
    """The message with which this configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load(config_file, overrides, environ)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "tilecast.toml"
    path.write_text(text)
    return path


class TestLayers:
    def test_defaults_alone_are_valid_and_say_so(self) -> None:
        config = load(environ={})
        assert config.ingest.ack == "tcp://127.0.0.1:5570"
        assert config.ingest.pull == "tcp://127.0.0.1:5571"
        assert config.ingest.sub == ()
        assert config.notify == "tcp://127.0.0.1:5572"
        assert config.query == "tcp://127.0.0.1:5573"
        assert config.journal.durability == "fsync"
        assert config.journal.fsync_interval_ms == 5
        assert config.blend.tile_size == 256
        assert not config.join.allow_moving
        assert set(config.provenance.values()) == {"default"}
        assert list(config.provenance) == [info.name for info in options()]

    def test_file_then_variable_then_set(self, tmp_path: Path) -> None:
        file = written(
            tmp_path,
            """
            notify = "ipc:///run/a"
            [ingest]
            idle_end_s = 1
            reorder_tolerance_ms = 1.5
            gap_report_ms = 1
            """,
        )
        environ = {"TILECAST_INGEST_REORDER_TOLERANCE_MS": "2", "TILECAST_INGEST_GAP_REPORT_MS": "2", "PATH": "/bin"}
        config = load(file, ["ingest.gap_report_ms=3", "ingest.gap_report_ms=4"], environ)
        assert (config.ingest.idle_end_s, config.ingest.reorder_tolerance_ms, config.ingest.gap_report_ms) == (1, 2, 4)
        assert config.notify == "ipc:///run/a"
        assert config.provenance["ingest.idle_end_s"] == str(file)
        assert config.provenance["notify"] == str(file)
        assert config.provenance["ingest.reorder_tolerance_ms"] == "TILECAST_INGEST_REORDER_TOLERANCE_MS"
        assert config.provenance["ingest.gap_report_ms"] == "--set"
        assert config.provenance["query"] == "default"

    def test_the_variable_that_names_the_file_is_not_an_option(self) -> None:
        load(environ={"TILECAST_CONFIG": "somewhere"})

    def test_text_is_read_as_the_type_of_its_option(self) -> None:
        config = load(
            None,
            [
                "allow_plaintext=ingest.sub",
                "ingest.sub=tcp://camera:5556, ipc:///run/stage",
                "ingest.blend_status=0,1,3",
                "join.allow_moving=yes",
                "blend.tile_size=64",
                "ingest.hold_bytes=1.5KiB",
                "curve.secret_key=",
                "store.path=~/scans",
                "instrument=1984",
            ],
            {},
        )
        assert config.ingest.sub == ("tcp://camera:5556", "ipc:///run/stage")
        assert config.ingest.blend_status == (0, 1, 3)
        assert config.join.allow_moving is True
        assert config.blend.tile_size == 64
        assert config.ingest.hold_bytes == 1536
        assert config.curve.secret_key is None
        assert config.store.path == Path.home() / "scans"
        assert config.instrument == "1984"
        assert load(None, ['ingest.sub=["ipc://a,b"]'], {}).ingest.sub == ("ipc://a,b",)
        assert load(None, ["ingest.sub="], {}).ingest.sub == ()

    def test_relative_paths_of_a_file_start_from_its_folder(self, tmp_path: Path) -> None:
        file = written(tmp_path, '[store]\npath = "runs"\n[calibration]\npath = "/srv/calibrations"\n')
        config = load(file, environ={})
        assert config.store.path == tmp_path / "runs"
        assert config.calibration.path == Path("/srv/calibrations")

    def test_nothing_can_be_changed_afterwards(self) -> None:
        config = load(environ={})
        with pytest.raises(ValueError, match="frozen"):
            config.notify = "ipc://elsewhere"
        with pytest.raises(ValueError, match="frozen"):
            config.ingest.ack = "ipc://elsewhere"


class TestRefusals:
    def test_unknown_options_name_the_nearest_known_one_and_their_place(self, tmp_path: Path) -> None:
        file = written(tmp_path, '[ingest]\nidle_end = 3\n[blendd]\nmode = "max"\ntile_size = 3\n')
        message = refused("ingest.akc=ipc://a", config_file=file, TILECAST_STOR_PATH="/tmp")
        assert f"{file}: there is no option ingest.idle_end: did you mean ingest.idle_end_s?" in message
        assert f"{file}: there is no option blendd.mode: did you mean blend.mode?" in message
        assert "did you mean blend.tile_size?" in message
        assert "--set: there is no option ingest.akc: did you mean ingest.ack?" in message
        assert "TILECAST_STOR_PATH: did you mean TILECAST_STORE_PATH?" in message

    def test_an_option_in_the_wrong_table_is_found(self, tmp_path: Path) -> None:
        assert "did you mean blend.tile_size?" in refused(config_file=written(tmp_path, "tile_size = 128\n"))

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("ingest.idle_end_s=soon", "expected number in s, more than 0; got 'soon'"),
            ("ingest.idle_end_s=nan", "ingest.idle_end_s (--set)"),
            ("journal.fsync_interval_ms=-1", "expected number in ms, at least 0 and at most 10000; got -1"),
            ("viewers.threads=2.5", "viewers.threads (--set): expected whole number"),
            ("join.allow_moving=perhaps", "expected true or false; got 'perhaps'"),
            ("blend.mode=median", "expected feather | mean | max | min | newest | nearest; got 'median'"),
            ("blend.tile_size=63", "multiple of 8"),
            ("ingest.hold_bytes=64 parsecs", "text such as '256MiB'"),
            ("ingest.blend_status=0,4", "ingest.blend_status (--set)"),
            ("ingest.blend_status=[0", "expected a list of numbers"),
            ("notify=5572", "an endpoint looks like 'tcp://127.0.0.1:5570'"),
            ("notify=tcp://127.0.0.1:70000", "an endpoint looks like"),
            ("notify=ipc://", "an endpoint looks like"),
            ("ingest.sub=tcp://*:5556", "to connect, an endpoint needs a host and a port"),
            ("instrument=my scope", "a name has 1 to 64"),
            ("instrument=daemon", "is not 'daemon'"),
            ("allow_plaintext=ingest", "allow_plaintext (--set)"),
            ("store.path=", "store.path (--set): expected path"),
            ("ingest.ack", "expected option=value"),
        ],
    )
    def test_what_is_wrong_is_said(self, override: str, expected: str) -> None:
        assert expected in refused(override)

    def test_a_file_is_taken_by_its_word(self, tmp_path: Path) -> None:
        file = written(
            tmp_path,
            '[ingest]\nidle_end_s = "5"\nack = 5570\nsub = "ipc://a"\n[join]\nallow_moving = 1\n'
            "[blend]\nbudget_bytes = true\n",
        )
        message = refused(config_file=file)
        for name in ("ingest.idle_end_s", "ingest.ack", "ingest.sub", "join.allow_moving", "blend.budget_bytes"):
            assert f"{name} ({file})" in message

    def test_every_problem_is_told_at_once(self) -> None:
        assert len(refused("ingest.idle_end_s=soon", "blend.mode=median", "nothing=1").splitlines()) == 3

    def test_tables_and_options_are_not_confused(self, tmp_path: Path) -> None:
        message = refused(config_file=written(tmp_path, 'store = "/tmp"\n[query]\nthreads = 3\n'))
        assert "store is a table: write [store]" in message
        assert "query is an option, not a table" in message

    def test_a_missing_or_broken_file(self, tmp_path: Path) -> None:
        assert "there is no configuration file" in refused(config_file=tmp_path / "none.toml")
        assert "is not a TOML file" in refused(config_file=written(tmp_path, "ingest = = 3"))
        assert "cannot be read" in refused(config_file=tmp_path)

    def test_two_sockets_cannot_share_an_endpoint(self) -> None:
        assert "ingest.ack and query are both ipc://a" in refused("ingest.ack=ipc://a", "query=ipc://a")
        load(None, ["ingest.ack=tcp://127.0.0.1:*", "query=tcp://127.0.0.1:*"], {})


class TestOpenDoors:
    @pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:5570", "tcp://127.9.9.9:1", "tcp://localhost:1",
                                          "tcp://[::1]:5570", "ipc:///run/a", "tcp://lo:*"])  # fmt: skip
    def test_local(self, endpoint: str) -> None:
        assert endpoint_is_local(endpoint)
        load(None, [f"ingest.ack={endpoint}"], {})

    @pytest.mark.parametrize("endpoint", ["tcp://*:5570", "tcp://0.0.0.0:5570", "tcp://192.168.1.2:5570",
                                          "tcp://eth0:5570", "tcp://[::]:5570", "tcp://127.0.0.1.evil.org:5570",
                                          "tcp://localhost.evil.org:5570"])  # fmt: skip
    @pytest.mark.parametrize("socket", ["ingest.ack", "ingest.pull", "notify", "query"])
    def test_what_others_can_reach_needs_keys_or_permission_for_that_socket(self, socket: str, endpoint: str) -> None:
        assert not endpoint_is_local(endpoint)
        message = refused(f"{socket}={endpoint}")
        assert f"{socket} = {endpoint} can be reached from other machines" in message
        assert f'allow_plaintext = ["{socket}"]' in message
        other = "query" if socket != "query" else "notify"
        assert "can be reached" in refused(f"{socket}={endpoint}", f"allow_plaintext={other}")
        allowed = load(None, [f"{socket}={endpoint}", f"allow_plaintext={socket}"], {})
        assert not allowed.needs_curve(socket)
        assert "set curve.clients" in refused(f"{socket}={endpoint}", "curve.secret_key=daemon.key_secret")
        keyed = load(None, [f"{socket}={endpoint}", "curve.secret_key=k", "curve.clients=keys"], {})
        assert keyed.needs_curve(socket)
        assert not keyed.needs_curve(other)

    def test_listening_to_other_machines_needs_the_key_of_who_speaks(self) -> None:
        assert "curve.publishers" in refused("ingest.sub=ipc://a,tcp://camera:1", "curve.secret_key=k")
        load(None, ["ingest.sub=tcp://camera:1", "curve.secret_key=k", "curve.publishers=camera.key"], {})

    def test_a_socket_can_be_switched_off(self) -> None:
        config = load(None, ["ingest.pull="], {})
        assert config.endpoints("ingest.pull") == ()
        assert not config.needs_curve("ingest.pull")
        assert config.endpoints("ingest.ack") == ("tcp://127.0.0.1:5570",)


class TestTable:
    def test_every_option_is_complete(self) -> None:
        for info in options():
            assert info.help.endswith((".", ")")), info.name
            assert info.type, info.name
            for ending, unit in (("_ms", "ms"), ("_s", "s"), ("_bytes", "bytes"), ("_pixels", "px")):
                if info.name.endswith(ending):
                    assert info.unit == unit, info.name
        assert len({info.variable for info in options()}) == len(options())

    def test_every_blend_mode_can_be_chosen(self) -> None:
        kind = next(info.type for info in options() if info.name == "blend.mode")
        assert kind.split(" | ") == list(BLEND_MODES)

    def test_sizes_are_written_with_their_unit(self) -> None:
        assert next(info.default for info in options() if info.name == "blend.budget_bytes") == '"320MiB"'
        assert [parse_size(text) for text in ("7", "2kB", "2 KiB", "1.5MiB", "1G")] == [
            7, 2000, 2048, 1572864, 10**9,
        ]  # fmt: skip

    def test_the_example_file_is_the_defaults(self, tmp_path: Path) -> None:
        text = to_toml()
        assert load(written(tmp_path, text), environ={}).model_dump() == load(environ={}).model_dump()
        uncommented = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
        assert sum(uncommented.count(f"\n{info.name.rpartition('.')[2]} = ") > 0 for info in options()) == len(
            options()
        )
        everything = load(written(tmp_path, uncommented), environ={})
        assert set(everything.provenance.values()) == {str(tmp_path / "tilecast.toml")}
        assert everything.ingest == load(environ={}).ingest

    def test_a_file_written_from_a_configuration_is_that_configuration(self, tmp_path: Path) -> None:
        wild = load(
            None,
            [
                'ingest.sub=["ipc://a\\"b", "ipc://ü"]',
                "ingest.hold_bytes=1000001",
                "ingest.idle_end_s=0.125",
                "join.allow_moving=on",
                "calibration.path=/srv/ü/x y",
                "ingest.pull=",
            ],
            {},
        )
        assert load(written(tmp_path, to_toml(wild)), environ={}).model_dump() == wild.model_dump()

    def test_values_are_found_by_their_dotted_names(self) -> None:
        config = load(environ={})
        assert config.value("ingest.ack") == config.ingest.ack
        with pytest.raises(KeyError):
            config.value("ingest.nothing")
        with pytest.raises(KeyError):
            config.value("model_config")
