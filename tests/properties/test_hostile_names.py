"""Names from messages never become paths unchecked: whatever they are, nothing outside the folders is touched."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_harness import RUN, Camera
from recordings import SHAPE, config
from tilecast.errors import CalibrationError, StoreError
from tilecast.ingest.verdicts import RunRecord
from tilecast.plugins import Plugins
from tilecast.service.keeper import Keeper
from tilecast.store.folders import run_folder
from tilecast_plugins.calibration import finding as finder
from tilecast_protocol.errors import MalformedError, QueryError
from tilecast_protocol.key_files import make_pair
from tilecast_protocol.queries import make_query, parse_query
from tilecast_protocol.topics import parse_topic

_PIECES = st.sampled_from(
    ["..", "/", "\\", "\0", "\n", "~", "secret", "secret.npy", RUN, RUN.upper(), ".", "%2e", "．．", "ä", "‮", "C:",
     "part:", "x" * 300, "*", "$HOME", "|", " "]
)  # fmt: skip
HOSTILE = st.lists(_PIECES, max_size=6).map("".join) | st.text(max_size=40)


@pytest.fixture(scope="module")
def house() -> Path:
    """A folder with what a name shall not reach, beside those that names are looked up in."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("runs", "calibrations", "secret"):
            (root / name).mkdir()
        np.save(root / "secret.npy", np.ones(SHAPE))
        np.save(root / "secret" / "secret.npy", np.ones(SHAPE))
        yield root


def untouched(house: Path) -> bool:
    found = {str(path.relative_to(house)) for path in house.rglob("*")}
    return found == {"runs", "calibrations", "secret", "secret.npy", "secret/secret.npy"}


def is_run(name: str) -> bool:
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False


@pytest.fixture(scope="module")
def keeper(house: Path) -> Keeper:
    return Keeper(config(house / "runs"), Plugins([("calibration", finder)]))


@given(HOSTILE)
def test_runs(house: Path, keeper: Keeper, name: str) -> None:
    if is_run(name):
        assert run_folder(house / "runs", name).parent == house / "runs"
        return
    for use in (keeper.lookup, lambda run: keeper.delete(run, "why"), lambda run: keeper.write_closed(run, note="x")):
        with pytest.raises(StoreError):
            use(name)
    with pytest.raises(StoreError):
        run_folder(house / "runs", name)
    assert untouched(house)


@given(HOSTILE)
def test_runs_in_queries(name: str) -> None:
    try:
        run = parse_query(make_query("delete", 1, run=name))["run"]
    except (QueryError, MalformedError):
        return
    assert is_run(run)


@given(HOSTILE, HOSTILE)
def test_instruments_and_streams(instrument: str, stream: str) -> None:
    try:
        topic = parse_topic(f"tc1/{instrument}/{stream}/image".encode())
    except MalformedError:
        return
    for name in (topic.instrument, topic.stream):
        assert not set(name) & set("/\\\0\n~ ")
        assert name not in (".", "..")


@given(HOSTILE)
def test_calibrations(house: Path, name: str) -> None:
    with pytest.raises(CalibrationError):
        finder.tilecast_find_calibration(name=name, role="flat", shape=SHAPE, folder=house / "calibrations")
    assert untouched(house)


@given(HOSTILE)
def test_calibrations_that_a_start_names(house: Path, keeper: Keeper, name: str) -> None:
    try:
        start = Camera().start(shape=SHAPE, dtype="<u2", flat=name)
    except MalformedError:
        return
    with pytest.raises(CalibrationError):
        keeper.create(RunRecord(start=start), may_lack_calibration=False)
    assert untouched(house)


@given(HOSTILE)
def test_keys(house: Path, name: str) -> None:
    folder = house / "calibrations"
    try:
        paths = make_pair(folder, name)
    except ValueError:
        assert untouched(house)
        return
    for path in paths:
        assert path.parent == folder
        path.unlink()
    assert untouched(house)
