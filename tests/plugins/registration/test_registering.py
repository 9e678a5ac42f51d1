"""`tilecast register`: a recorded run, as a person has it registered, and what is kept of that."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from plugins.registration.scans import Scan
from plugins.registration.test_pairs import scene, seen
from plugins.registration.test_tracking import small_scan
from recordings import Recording
from tilecast import cli
from tilecast.service.fsck import check_run
from tilecast.service.rebuild import rebuild_run
from tilecast.store.sqlite_reader import SqliteReader
from tilecast_plugins.registration.layouts import LayoutError, from_text
from tilecast_protocol import pzf

RUNS = ("0f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f", "1f8a2c1e-6f0b-4c53-9f5e-2a1d7c3b4e5f")
OPTIONS = ("--max-shift-px", "10")


def recorded(root: Path, scan: Scan, run: str = RUNS[0], **recording: Any) -> Path:
    """A run of a scan, with its mosaic, placed by the stage."""
    made = Recording(root, shape=scan.frames.shape[1:], tile_size=64, run_id=run, **recording)
    for n, pixels in enumerate(scan.frames):
        made.image(n, tuple(scan.nominal[n].tolist()), pixels)
    made.end()
    folder = made.close()
    rebuild_run(folder)
    return folder


def tilecast(root: Path, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli.main, [*arguments, "--set", f"store.path={root}"])
    assert done.exit_code == code, done.output + "".join(traceback.format_exception(done.exception))
    return done.output


def places(folder: Path) -> dict[tuple[int, int], tuple[int, int, str]]:
    with SqliteReader(folder) as reader:
        return {
            row.placement.id: (row.placement.row, row.placement.col, row.placement.source)
            for row in reader.placements()
        }


def tiles(folder: Path) -> dict[Any, tuple[bytes, bytes | None]]:
    with SqliteReader(folder) as reader:
        found = {(stamp.plane, stamp.key): reader.tile(stamp.plane, stamp.key) for stamp in reader.stamps()}
    return {where: (tile.pzf, tile.coverage) for where, tile in found.items() if tile is not None}


def corners(folder: Path, n: int) -> np.ndarray:
    there = places(folder)
    return np.array([there[frame, 0][:2] for frame in range(n)])


def test_a_run_is_registered_and_goes_back_and_forth(tmp_path: Path) -> None:
    scan = small_scan()
    folder = recorded(tmp_path, scan)
    by_stage, tiles_by_stage = places(folder), tiles(folder)
    assert scan.errors(corners(folder, 20)).max() > 2

    said = tilecast(tmp_path, "register", "last", *OPTIONS)
    assert "31 of 31 shifts used, 1 groups (0 frames alone)" in said
    assert "now by 0 px (0)" in said
    registered, tiles_registered = places(folder), tiles(folder)
    assert {source for _, _, source in registered.values()} == {"registered"}
    assert scan.errors(corners(folder, 20)).max() == 0
    assert tiles_registered != tiles_by_stage
    assert check_run(folder) == []

    told = json.loads(tilecast(tmp_path, "info", "last", "--json"))["registered"]
    assert told["frames placed by it"] == 20
    assert (told["shifts used"], told["components"]) == (31, 1)
    assert told["residual before_px"]["most"] > 2
    assert told["residual after_px"]["most"] == 0
    assert told["seams"]["after"] < 0.5 * told["seams"]["before"]
    assert len(told["model"][0]["matrix"]) == 2

    tilecast(tmp_path, "register", "last", "--use", "stage")
    assert (places(folder), tiles(folder)) == (by_stage, tiles_by_stage)
    assert check_run(folder) == []
    assert "already" in tilecast(tmp_path, "register", "last", "--use", "stage")
    tilecast(tmp_path, "register", "last", "--use", "registered")
    assert (places(folder), tiles(folder)) == (registered, tiles_registered)

    # What was found stays through a rebuild; where the stage had the frames is known however often it is registered.
    tilecast(tmp_path, "rebuild", "last", "--blend", "max")
    assert places(folder) == registered
    tilecast(tmp_path, "register", "last", *OPTIONS, "--method", "tree")
    assert places(folder) == registered
    tilecast(tmp_path, "register", "last", "--use", "stage")
    assert places(folder) == by_stage
    tilecast(tmp_path, "rebuild", "last", "--rejoin")
    with SqliteReader(folder) as reader:
        assert reader.registration() is None
    assert places(folder) == by_stage


def test_the_same_journal_gives_the_same_places(tmp_path: Path) -> None:
    scan = small_scan(seed=3)
    found = []
    for run in RUNS:
        folder = recorded(tmp_path, scan, run)
        tilecast(tmp_path, "register", run, *OPTIONS)
        with SqliteReader(folder) as reader:
            found.append((reader.registration(), places(folder), tiles(folder)))
    assert found[0] == found[1]


def test_a_registration_that_is_broken_off_has_changed_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = recorded(tmp_path, small_scan(2, 3))
    before = places(folder), tiles(folder)

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    # Just before the one rename by which it comes into being.
    monkeypatch.setattr("tilecast.service.rebuild.swap_in", die)
    with pytest.raises(Killed):
        CliRunner().invoke(
            cli.main, ["register", "last", *OPTIONS, "--set", f"store.path={tmp_path}"], catch_exceptions=False
        )
    monkeypatch.undo()
    assert (places(folder), tiles(folder)) == before
    with SqliteReader(folder) as reader:
        assert reader.registration() is None
    assert check_run(folder) == []
    tilecast(tmp_path, "register", "last", *OPTIONS)
    assert places(folder) != before[0]


def test_layouts_are_saved_edited_and_applied_to_another_run(tmp_path: Path) -> None:
    scan = small_scan(2, 4)
    first, second = (recorded(tmp_path, scan, run) for run in RUNS)
    for name in ("layout.csv", "layout.json"):
        file = tmp_path / name
        tilecast(tmp_path, "register", RUNS[0], *OPTIONS, "--save", str(file), "--dry-run")
        assert {source for *_, source in places(first).values()} == {"stage"}
        given = from_text(file.read_text(), file.suffix)
        assert sorted(given) == [(n, 0) for n in range(8)]
        assert scan.errors(np.array([given[n, 0] for n in range(8)])).max() == 0
    lines = (tmp_path / "layout.csv").read_text().splitlines()
    assert lines[0] == "frame,view,row,col,stage_row,stage_col"
    edited = tmp_path / "edited.csv"
    edited.write_text("\n".join([lines[0], "2,0,-50,333,,", *lines[4:], "99,0,1,1,,"]))
    said = tilecast(tmp_path, "register", RUNS[1], "--load", str(edited))
    assert "6 of 8 frames lie as in" in said
    assert "1 frames of the layout are not in the run, the first is 99" in said
    there = places(second)
    assert there[2, 0] == (-50, 333, "registered")
    assert there[0, 0][2] == "stage"
    assert check_run(second) == []
    tilecast(tmp_path, "register", RUNS[1], "--use", "stage")
    assert places(second) == places(first)


@pytest.mark.parametrize(
    ("text", "ending", "said"),
    [
        ("", ".csv", "no frames"),
        ("frame,row\n1,2\n", ".csv", "entry 1"),
        ("frame,row,col\n1,2,3\n1,4,5\n", ".csv", "comes twice"),
        ("frame,row,col\n1,2.5,3\n", ".csv", "entry 1"),
        ("[]", ".json", "a layout as JSON"),
        ('{"frames": [7]}', ".json", "entry 1"),
        ('{"frames": [{"frame": 1, "row": 1e99, "col": 0}]}', ".json", "entry 1"),
    ],
)
def test_what_is_no_layout_is_refused(text: str, ending: str, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        from_text(text, ending)


def test_frames_are_fixed_and_left_out(tmp_path: Path) -> None:
    scan = small_scan(3, 3)
    folder = recorded(tmp_path, scan)
    tilecast(tmp_path, "register", "last", *OPTIONS, "--fix", "4")
    assert corners(folder, 9)[4].tolist() == scan.nominal[4].tolist()
    assert scan.errors(corners(folder, 9)).max() == 0
    said = tilecast(tmp_path, "register", "last", *OPTIONS, "--leave-out", "1,7-8")
    assert "(3 frames alone)" in said
    with SqliteReader(folder) as reader:
        kept = reader.registration()
    assert kept is not None
    assert not {1, 7, 8} & {frame for edge in kept.edges for frame in (edge.first, edge.second)}
    assert "cannot be fixed" in tilecast(tmp_path, "register", "last", "--fix", "77", code=2)
    assert "3,17-20" in tilecast(tmp_path, "register", "last", "--leave-out", "x", code=2)


def test_other_channels_and_slices_move_with_those_that_are_compared(tmp_path: Path) -> None:
    scan = small_scan(2, 3)
    made = Recording(tmp_path, shape=(96, 120), tile_size=64, changes={"planes": {"t": 1, "c": 2, "z": 2}})
    rng = np.random.default_rng(0)
    blank = rng.poisson(300, (96, 120)).astype(np.uint16)
    frame = 0
    for n, pixels in enumerate(scan.frames):
        corner = tuple(scan.nominal[n].tolist())
        for plane, shown in (((0, 0, 0), blank), ((0, 1, 0), blank), ((0, 1, 1), pixels), ((0, 0, 1), blank)):
            made.image(frame, corner, shown, tcz=plane)
            frame += 1
    made.end()
    folder = made.close()
    rebuild_run(folder)
    assert "0 of 0 shifts" in tilecast(tmp_path, "register", "last", *OPTIONS, "--dry-run")
    tilecast(tmp_path, "register", "last", *OPTIONS, "--channel", "1")
    there = corners(folder, 24).reshape(6, 4, 2)
    assert (there == there[:, :1]).all()
    assert scan.errors(there[:, 0]).max() == 0
    assert check_run(folder) == []


def test_each_time_point_by_itself_or_the_first_for_all(tmp_path: Path) -> None:
    scans = [small_scan(2, 3, seed=seed) for seed in (0, 1)]
    made = Recording(tmp_path, shape=(96, 120), tile_size=64, changes={"planes": {"t": 2, "c": 1, "z": 1}})
    for t, scan in enumerate(scans):
        for n, pixels in enumerate(scan.frames):
            made.image(6 * t + n, tuple(scan.nominal[n].tolist()), pixels, tcz=(t, 0, 0))
    made.end()
    folder = made.close()
    rebuild_run(folder)
    tilecast(tmp_path, "register", "last", *OPTIONS)
    there = corners(folder, 12)
    assert scans[0].errors(there[:6]).max() == scans[1].errors(there[6:]).max() == 0
    tilecast(tmp_path, "register", "last", *OPTIONS, "--once")
    there = corners(folder, 12)
    assert scans[0].errors(there[:6]).max() == 0
    assert (there[6:] == there[:6]).all()


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    recorded(tmp_path, small_scan(2, 3))
    tilecast(tmp_path, "register", "last", *OPTIONS, "--plot", str(tmp_path / "found.png"), "--dry-run")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    folder = recorded(tmp_path, small_scan(1, 2))
    assert "was not registered" in tilecast(tmp_path, "register", "last", "--use", "registered", code=2)
    assert "--use and --load" in tilecast(tmp_path, "register", "last", "--use", "stage", "--load", "a.csv", code=2)
    assert ".csv or .json" in tilecast(tmp_path, "register", "last", "--save", "layout.txt", code=2)
    assert "no placed frames" in tilecast(tmp_path, "register", "last", "--channel", "7", code=2)
    stranger = tmp_path / "a.csv"
    stranger.write_text("frame,row,col\n77,0,0\n")
    assert "none of the frames" in tilecast(tmp_path, "register", "last", "--load", str(stranger), code=2)
    assert check_run(folder) == []


def test_fsck_knows_about_it(tmp_path: Path) -> None:
    scan = small_scan(2, 3)
    folder = recorded(tmp_path, scan)
    tilecast(tmp_path, "register", "last", *OPTIONS)
    import sqlite3

    with sqlite3.connect(folder / "tiles.sqlite") as connection:
        connection.execute("UPDATE positions SET row = row + 1 WHERE layout = 'registered' AND frame = 2")
        connection.execute("DELETE FROM positions WHERE layout = 'stage' AND frame = 3")
        connection.execute("UPDATE edges SET second = 71 WHERE first = 0 AND second = 1")
    connection.close()
    said = {finding.what.split(",")[0]: finding.frames for finding in check_run(folder, quick=True)}
    assert said == {
        "frames are said to be registered": (2,),
        "it is not known where the stage had frames that were registered; `tilecast rebuild --rejoin` finds it": (3,),
        "the registration has shifts of frames that are not in the mosaic; `tilecast register` finds them anew": (71,),
    }
    # A frame that contradicts its registration goes back to where the stage had it.
    tilecast(tmp_path, "fsck", "last", "--repair", code=1)
    assert places(folder)[2, 0] == (*scan.nominal[2].tolist(), "stage")


def test_a_single_frame_is_registered_too(tmp_path: Path) -> None:
    whole = scene((140, 160))
    scan = Scan(np.stack([seen(whole, 0, 0, (96, 120), 0)]), np.array([[7, 9]]), np.array([[7, 9]]))
    folder = recorded(tmp_path, scan)
    assert "1 groups (1 frames alone)" in tilecast(tmp_path, "register", "last")
    assert places(folder)[0, 0] == (7, 9, "registered")


def test_a_frame_that_cannot_be_read_is_left_alone(tmp_path: Path) -> None:
    scan = small_scan(2, 3)
    folder = recorded(tmp_path, scan)
    [segment] = (folder / "journal").glob("*.tcj")
    data = bytearray(segment.read_bytes())
    payload = bytes(pzf.encode_image(scan.frames[4]))
    data[data.index(payload) + len(payload) // 2] ^= 0xFF
    segment.write_bytes(data)
    said = tilecast(tmp_path, "register", "last", *OPTIONS)
    assert "frames [4] cannot be read: the recording is damaged" in said
    there = places(folder)
    kept = [n for n in range(6) if n != 4]
    off = np.array([np.subtract(there[n, 0][:2], scan.true[n]) for n in kept])
    assert np.ptp(off, axis=0).max() == 0


def test_float_frames_with_holes_are_registered(tmp_path: Path) -> None:
    scan = small_scan(2, 3)
    frames = scan.frames.astype(np.float32)
    frames[:, 40:44, 3:] = np.nan
    folder = recorded(tmp_path, Scan(frames, scan.nominal, scan.true), dtype="<f4")
    assert "7 of 7 shifts used" in tilecast(tmp_path, "register", "last", *OPTIONS)
    assert scan.errors(corners(folder, 6)).max() == 0
    assert check_run(folder) == []
