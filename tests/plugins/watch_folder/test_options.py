"""What a person gets wrong in `[plugins.watch_folder]` is said before the daemon starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilecast.errors import ConfigError
from tilecast.service.config import load


def refusal(folder: Path, *lines: str) -> str:
    file = folder / "tilecast.toml"
    file.write_text("[plugins.watch_folder]\n" + "\n".join(lines) + "\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('pattern = "img_{rwo:d}_{col:d}.tif"', "did you mean row"),
        ('positions = "name"', "needs a pattern with row and col"),
        ('pattern = "x{x_um:f}_y{y_um:f}.tif"', "of the upper left corner of each frame or of its centre"),
        ("px_um = [0.0]", "expected one size above 0"),
        ("px_um = [1.0, 2.0, 3.0]", "expected one size above 0, or two"),
        ('columns = ["x_um"]', "expected two names"),
        ('stream = "a/b"', "expected a name of letters"),
        ('tables = ["../positions.csv"]', "names of files beside the images"),
        ('end_marker = "done/"', "names of files beside the images"),
        ("settle_ms = 0", "more than 0"),
        ('taken = "burn"', "leave"),
    ],
)
def test_wrong_values(tmp_path: Path, line: str, why: str) -> None:
    text = refusal(tmp_path, line)
    assert why in text
    assert "plugins.watch_folder" in text


def test_folders_that_overlap(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    a, inner, link = tmp_path / "a", tmp_path / "a" / "b", tmp_path / "link"
    assert "overlap: one lies within the other" in refusal(tmp_path, f'folders = ["{a}", "{inner}"]')
    assert "are the same folder" in refusal(tmp_path, f'folders = ["{a}", "{link}"]')


def test_the_default_is_nothing(tmp_path: Path) -> None:
    from tilecast_plugins.watch_folder.options import WatchFolderOptions
    from tilecast_plugins.watch_folder.plugin import tilecast_message_sources

    assert tilecast_message_sources(options=WatchFolderOptions()) == []
    (source,) = tilecast_message_sources(options=WatchFolderOptions(folders=(tmp_path,)))
    assert source.name == f"folder {tmp_path}"
