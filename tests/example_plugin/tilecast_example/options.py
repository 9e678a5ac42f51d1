"""The options of the example: a module by itself, because every command of tilecast imports it."""

from __future__ import annotations

from typing import Literal

from tilecast.options import PluginOptions, Size, option


class ExampleOptions(PluginOptions):
    """An example: splits frames into a left and a right view, and sends a scan of its own."""

    split: bool = option(False, "Show the left and the right half of each frame as two channels.")
    offset: int = option(0, "Added to the pixels of the right view.", unit="grey levels", ge=0, le=1000)
    n_frames: int = option(0, "Frames that the source of this plugin sends. 0: there is no source.", ge=0)
    chunk_bytes: Size = option(1 << 20, "Only to show what a size looks like.", unit="bytes", ge=1)
    fail: Literal["never", "start", "frame", "hang", "source"] = option("never", "Fail, to see what then happens.")
