"""Finding the folder of a run that may have no readable mosaic: a recording, or one that is to be repaired."""

from __future__ import annotations

from pathlib import Path

from tilecast.errors import StoreError


def find_folder(store_path: Path, text: str) -> Path:
    """The folder of the run that a person means, whether or not its tiles can be read.

    Parameters
    ----------
    store_path : Path
        The folder that holds the runs.
    text : str
        The run's folder, its id or how that begins, its name, or `last`.

    Raises
    ------
    StoreError
        If there is none, or more than one.
    """
    from tilecast.commands.common import find_run
    from tilecast.service.runs import JOURNAL_NAME

    folder = Path(text).expanduser()
    if (folder / JOURNAL_NAME).is_dir():
        return folder
    found = sorted(path.parent for path in store_path.glob(f"{text.lower()}*/{JOURNAL_NAME}")) if text else []
    if len(found) == 1 and text != "last":
        return found[0]
    if len(found) > 1 and text != "last":
        raise StoreError(f"{text!r} may be any of {len(found)} runs in {store_path}: give more of the id")
    return find_run(store_path, text).folder
