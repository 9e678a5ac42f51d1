"""ASHLAR, a stitcher, and Bio-Formats, with which it and BigStitcher read files, on what `--frames` writes.

They live in an environment of their own (ASHLAR needs Java, and much that nobody else here does):

    uv venv /opt/ashlar && uv pip install -p /opt/ashlar ashlar
    ASHLAR=/opt/ashlar uv run --group exports pytest -n0 -m "slow or not slow" tests/plugins/export/test_stitchers.py
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from plugins.export.test_frames import table_of
from plugins.splitter.test_splitter import tilecast
from tilecast.testing.fixtures import StartDaemon
from tilecast_protocol.publisher import Publisher

VARIABLE = "ASHLAR"
PX_UM = 0.65
SHAPE = (120, 160)
STEP = (96, 128)  # rows and columns from one frame to the next: 20 % of overlap
GRID = (3, 4)

pytestmark = [
    pytest.mark.slow,  # Java takes its time
    pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"no ASHLAR: set {VARIABLE} (see this file)"),
]

READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
from ashlar.reg import BioformatsReader
found = []
for path in sys.argv[1:]:
    reader = BioformatsReader(path)
    about = reader.metadata
    y_px, x_px = (float(value) for value in about.tile_position(0))
    found.append([about.pixel_size, x_px, y_px, str(about.pixel_dtype), reader.read(0, 0).tolist()])
print(json.dumps(found))
"""


def run(*arguments: object) -> str:
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=600, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def specimen() -> np.ndarray[Any, np.dtype[np.uint16]]:
    rng = np.random.default_rng(3)
    rows, cols = (STEP[axis] * (GRID[axis] - 1) + SHAPE[axis] for axis in (0, 1))
    fine = rng.uniform(0, 1, (rows // 4 + 1, cols // 4 + 1)).repeat(4, 0).repeat(4, 1)[:rows, :cols]
    return np.asarray(1000 + 20000 * fine**4 + rng.normal(0, 30, (rows, cols))).astype("<u2")


def send(publisher: Publisher, whole: np.ndarray[Any, np.dtype[np.uint16]]) -> str:
    identity = publisher.start("slide", shape=SHAPE, dtype="<u2", px_um=(PX_UM, PX_UM))
    for number in range(GRID[0] * GRID[1]):
        row, col = (index * step for index, step in zip(divmod(number, GRID[1]), STEP, strict=True))
        frame = np.ascontiguousarray(whole[row : row + SHAPE[0], col : col + SHAPE[1]])
        publisher.image(frame, pos_um=((col + SHAPE[1] / 2) * PX_UM, (row + SHAPE[0] / 2) * PX_UM))
    publisher.end()
    publisher.flush()
    return identity


def test_ashlar_stitches_them_and_bio_formats_reads_sizes_and_positions(
    tilecast_daemon: StartDaemon, tmp_path: Path
) -> None:
    programs = Path(os.environ[VARIABLE]) / "bin"
    whole = specimen()
    daemon = tilecast_daemon()
    with daemon.publisher() as publisher:
        identity = send(publisher, whole)
    daemon.finish()
    folder = tmp_path / "frames"
    tilecast("export", identity, folder, "--frames", "--set", f"store.path={daemon.root}")
    rows = table_of(folder)
    assert len(rows) == GRID[0] * GRID[1]

    (tmp_path / "read.py").write_text(READ)
    some = [rows[0], rows[5], rows[-1]]
    for row, (size_um, x_px, y_px, dtype, pixels) in zip(
        some,
        json.loads(run(programs / "python", tmp_path / "read.py", *(folder / row["file"] for row in some))),
        strict=True,
    ):
        assert (size_um, dtype) == (PX_UM, "uint16")
        # Of centres, in pixels; ASHLAR takes it that stages count y upwards.
        assert (x_px * PX_UM, -y_px * PX_UM) == pytest.approx((float(row["x_um"]), float(row["y_um"])))
        np.testing.assert_array_equal(pixels, tifffile.imread(folder / row["file"]))

    # As the README says.
    layout = f"overlap=0.2|width={GRID[1]}|height={GRID[0]}|layout=raster|direction=horizontal|pixel_size={PX_UM}"
    made = tmp_path / "stitched.ome.tif"
    run(programs / "ashlar", f"fileseries|{folder}|pattern=frame_{{series}}.ome.tif|{layout}", "-q", "-o", made)
    stitched = tifffile.imread(made)
    assert stitched.shape == pytest.approx(whole.shape, abs=3)
    height, width = (size - 20 for size in whole.shape)
    right = whole[10 : 10 + height, 10 : 10 + width].ravel()
    # It sets its origin where the first frame comes to lie: perhaps a pixel or two aside.
    alike = {
        (down, across): np.corrcoef(stitched[down : down + height, across : across + width].ravel(), right)[0, 1]
        for down in range(7, 14)
        for across in range(7, 14)
        if down + height <= stitched.shape[0] and across + width <= stitched.shape[1]
    }
    assert max(alike.values()) > 0.99, alike
