"""Tables in JSON say the same as tables in CSV."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilecast.input_tables import choose_columns, number_in, plane_in, read_table
from tilecast.inputs import InputError

ROW_A = '{"file": "a.tif", "x_px": 0, "y_px": 1.5, "c": 0}'
ROW_B = '{"file": "b.tif", "x_px": 10, "y_px": 2, "c": 1}'


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.csv", "file;x_px;y_px;c\na.tif;0;1.5;0\nb.tif;10;2;1\n"),
        ("p.json", f"[{ROW_A}, {ROW_B}]"),
        ("p.json", '{"a.tif": {"x_px": 0, "y_px": 1.5, "c": 0}, "b.tif": {"x_px": 10, "y_px": 2, "c": 1}}'),
        ("p.jsonl", f"{ROW_A}\n\n{ROW_B}\n"),
    ],
)
def test_all_ways_to_write_one(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    table = read_table(tmp_path / name)
    (x, y), unit = choose_columns(table, None, told_apart=False)
    assert [(row["file"], number_in(table, i, x), number_in(table, i, y)) for i, row in enumerate(table.rows)] == [
        ("a.tif", 0.0, 1.5),
        ("b.tif", 10.0, 2.0),
    ]
    assert (unit, plane_in(table, 1)) == ("px", (0, 1, 0))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not JSON"),
        ("3", "expected a list of objects"),
        ("[]", "no positions"),
        ('[{"file": "a", "x_px": 1}, {"file": "b"}]', "entry 1: expected the keys file, x_px"),
        ('{"a.tif": [0, 0]}', "entry 0: expected texts and numbers by name"),
        ('[{"file": "a", "x_px": null, "y_px": 0}]', "entry 0: expected texts and numbers"),
    ],
)
def test_what_is_none(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(InputError, match=why):
        read_table(tmp_path / "p.json")
