"""The options of the plugin that watches folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import field_validator, model_validator

from tilecast.options import Folders, Numbers, PluginOptions, Texts, option
from tilecast_plugins.watch_folder.names import compile_pattern


class WatchFolderOptions(PluginOptions):
    """Takes images from folders in which other programs write them, and sends each folder as a run."""

    folders: Folders = option((), "The folders that are watched. None: nothing is.")
    subfolders: bool = option(False, "Watch the folders in each of them instead: every one is a run of its own.")
    stream: str = option("folder", "The stream that the runs belong to.")
    pattern: str = option(
        "", "What file names tell, as img_{row:d}_{col:d}.tif or as a regular expression with named groups."
    )
    positions: Literal["auto", "table", "ome", "name", "pyme"] = option(
        "auto", "Where positions are from. auto: names if the pattern tells them, else a table, else OME-XML or PYME."
    )
    tables: Texts = option(
        ("positions.csv", "positions.json", "positions.jsonl"),
        "Names of tables of positions; the first one that lies beside the images is used.",
    )
    columns: Texts = option((), "The two columns with x and y, as x_um,y_um or left:px,top:px. None: x_px,y_px.")
    anchor: Literal["auto", "corner", "centre"] = option(
        "auto", "What positions are of. auto: the corner for pixels; has to be told for µm in tables and names."
    )
    px_um: Numbers = option((), "Size of a pixel, or x and y. None: what OME-XML says, else 1.", unit="µm")
    flip_y: bool = option(False, "Positions count y upwards, while the rows of a frame go down.")
    step_um: Numbers = option(
        (), "From one column to the next, and from one row to the next, for {row} and {col}.", unit="µm"
    )
    overlap_percent: float = option(
        0.0, "Where step_um is not told: how much neighbouring frames overlap.", unit="%", ge=0, le=99
    )
    existing: bool = option(True, "Take files, too, that lie there when a folder is watched for the first time.")
    order: Literal["name", "time"] = option("name", "In which order files are taken that are there together.")
    settle_ms: float = option(500.0, "A file that has not grown for so long may be whole.", unit="ms", gt=0)
    give_up_s: float = option(
        30.0,
        "A file that cannot be read is set aside after this long; one without a position, after so long without news.",
        unit="s",
        gt=0,
    )
    observer: Literal["auto", "native", "polling"] = option(
        "auto", "How changes are noticed. auto: by polling on network shares, natively elsewhere."
    )
    poll_s: float = option(1.0, "How often a folder is looked through in any case.", unit="s", gt=0, le=60)
    end_after_s: float = option(
        60.0, "A run ends when no file has come for so long. 0: only its end marker ends it.", unit="s", ge=0
    )
    end_marker: str = option("", "A file of this name, beside the images, ends their run. Empty: none does.")
    taken: Literal["leave", "move", "delete"] = option(
        "leave", "What is done with files that are safe in a run; move: into a folder `taken` beside them."
    )
    rejected: Literal["leave", "move"] = option(
        "leave", "What is done with files that cannot be used; move: into a folder `.rejected` beside them."
    )

    @field_validator("stream")
    @classmethod
    def _is_a_stream(cls, stream: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", stream) or stream == "daemon":
            raise ValueError("expected a name of letters, digits and _ . -, at most 64 of them, and not `daemon`")
        return stream

    @field_validator("pattern")
    @classmethod
    def _pattern_is_known(cls, pattern: str) -> str:
        if pattern:
            compile_pattern(pattern)
        return pattern

    @field_validator("px_um", "step_um")
    @classmethod
    def _one_or_two_sizes(cls, sizes: tuple[float, ...]) -> tuple[float, ...]:
        if len(sizes) > 2 or not all(size > 0 for size in sizes):
            raise ValueError(f"expected one size above 0, or two for x and y, got {list(sizes)}")
        return sizes * 2 if len(sizes) == 1 else sizes

    @field_validator("columns")
    @classmethod
    def _two_columns(cls, columns: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(columns)) not in (0, 2):
            raise ValueError(f"expected two names, as x_um,y_um, got {list(columns)}")
        return columns

    @field_validator("tables", "end_marker")
    @classmethod
    def _no_paths(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in (names,) if isinstance(names, str) else names:
            if Path(name).name != name:
                raise ValueError(f"expected names of files beside the images, got {name!r}")
        return names

    @field_validator("folders")
    @classmethod
    def _apart(cls, folders: tuple[Path, ...]) -> tuple[Path, ...]:
        resolved = [folder.resolve() for folder in folders]
        for number, folder in enumerate(resolved):
            for other, before in zip(folders, resolved[:number], strict=False):
                if folder == before:
                    raise ValueError(f"{folders[number]} and {other} are the same folder; every file is taken once")
                if folder.is_relative_to(before) or before.is_relative_to(folder):
                    raise ValueError(
                        f"{folders[number]} and {other} overlap: one lies within the other; watch the outer one with "
                        "subfolders=true, or only the inner one"
                    )
        return folders

    @model_validator(mode="after")
    def _positions_can_be_found(self) -> Self:
        told = compile_pattern(self.pattern).position if self.pattern else None
        if self.positions == "name" and told is None:
            raise ValueError(
                'plugins.watch_folder.positions = "name" needs a pattern with row and col, x_um and y_um, or x_px and '
                f"y_px; got pattern = {self.pattern!r}"
            )
        from_name = self.positions == "name" or (self.positions == "auto" and told is not None)
        if from_name and told == ("x_um", "y_um") and self.anchor == "auto":
            raise ValueError(
                "plugins.watch_folder.pattern tells x_um and y_um: of the upper left corner of each frame or of its "
                'centre? Set plugins.watch_folder.anchor to "corner" or "centre"'
            )
        return self
