"""What the documents show of `Mosaic` is executed: cells are found while a real scan runs, where they really are."""

from __future__ import annotations

import csv
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from integration.conftest import Station
from integration.talking import PATIENCE_S, PX_UM, SHAPE, centre_um

README = Path(__file__).resolve().parents[2] / "protocol" / "README.md"
STEP = (18, 24)
ROWS, COLS = 5, 6


def example() -> str:
    """The code that finds cells."""
    chapter = README.read_text().partition("## 9. Read a mosaic")[2]
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", chapter, re.DOTALL) if "cells.csv" in block]
    return str(code)


def specimen() -> tuple[NDArray[np.uint16], dict[tuple[int, int], int]]:
    """Background with cells on it, and where they are."""
    rng = np.random.default_rng(11)
    shape = ((ROWS - 1) * STEP[0] + SHAPE[0], (COLS - 1) * STEP[1] + SHAPE[1])
    sample = rng.integers(0, 1500, shape).astype(np.uint16)
    cells = {}
    # Also across the edges of frames and tiles, in an overlap, and at the rim.
    for number, (row, col) in enumerate(
        [(3, 4), (31, 31), (32, 80), (20, 27), (60, 64), (71, 100), (95, 149), (50, 12)]
    ):
        sample[max(0, row - 1) : row + 2, max(0, col - 1) : col + 2] = 2500 + 10 * number
        sample[row, col] = cells[row, col] = 3000 + 100 * number
    return sample, cells


def written() -> dict[tuple[float, float], int]:
    """The table, as far as it has come."""
    path = Path("cells.csv")
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(float(row["x_um"]), float(row["y_um"])): int(row["value"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("source", ["query", "folder"])
def test_bright_cells_are_found_while_the_scan_runs(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    sample, cells = specimen()
    origin = (-40, -70)  # to both sides of stage (0, 0)
    expected = {
        ((origin[1] + col + 0.5) * PX_UM[0], (origin[0] + row + 0.5) * PX_UM[1]): value
        for (row, col), value in cells.items()
    }
    seen_early: list[dict[tuple[float, float], int]] = []
    publisher = station.publisher(f"cells-{source}")
    run = publisher.start("cells", shape=SHAPE, dtype="<u2", px_um=PX_UM, pos_src="frame")
    station.watch.notice(run, "started")

    def scan() -> None:
        places = [(row, col) for row in range(ROWS) for col in range(COLS)]
        for number, (row, col) in enumerate(places):
            if number == len(places) // 2:  # the other half waits until cells of this one are in the table
                deadline_s = time.monotonic() + PATIENCE_S
                while len(written().items() & expected.items()) < 3 and time.monotonic() < deadline_s:
                    time.sleep(0.02)  # looks again: a file tells nobody that it was written
                seen_early.append(written())
            top, left = row * STEP[0], col * STEP[1]
            pixels = np.ascontiguousarray(sample[top : top + SHAPE[0], left : left + SHAPE[1]])
            publisher.image(pixels, pos_um=centre_um(origin[0] + top, origin[1] + left))
        publisher.end()
        publisher.flush()

    code = example()
    address = station.daemon.endpoints["query"] if source == "query" else str(station.folder(run))
    code = re.sub(r'^address = ".*?"', f'address = "{address}"', code, flags=re.MULTILINE)
    assert address in code
    scanning = threading.Thread(target=scan)
    scanning.start()
    try:
        namespace: dict[str, Any] = {}
        exec(compile(code, str(README), "exec"), namespace)
    finally:
        scanning.join()
        publisher.close()
    found = written()
    assert found.keys() == expected.keys()
    assert found == expected
    assert len(seen_early[0].items() & expected.items()) >= 3
