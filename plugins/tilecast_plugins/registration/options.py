"""The options of the registration plugin: a module by itself, because every command imports it."""

from __future__ import annotations

from typing import Literal

from tilecast.options import PluginOptions, Texts, option

_Method = Literal["lsq", "tree"]


class RegistrationOptions(PluginOptions):
    """Finds where frames really lie, from what they show where they overlap, and places them there."""

    at_end: bool = option(
        False,
        "Register each run when it has ended, by a process of its own at low priority; `tilecast register RUN "
        "--use stage` goes back.",
    )
    streams: Texts = option((), "Only runs of these streams are registered at their end. Empty: of all.")
    method: _Method = option("lsq", "All shifts together (lsq), or those of the best spanning tree (tree).")
    max_shift_pixels: int = option(
        40, "How far a frame may be from where the stage, as corrected so far, has it.", unit="px", ge=1, le=1000
    )
    min_quality: float = option(
        8.0,
        "Least quality of a shift between two frames that counts: by how many standard deviations of chance it stands "
        "out. Frames that have nothing in common reach 5.",
        ge=0,
    )
    normalize: bool = option(False, "Dim structures count as much as bright ones.")
