"""The options of the splitter: a module by itself, because every command imports it."""

from __future__ import annotations

from typing import Literal

from tilecast.options import Numbers, OptionalPath, PluginOptions, Texts, option


class SplitterOptions(PluginOptions):
    """Splits frames of dual-view cameras, whose chip holds two channels side by side, into two views."""

    streams: Texts = option((), "Streams of the cameras whose frames are split. Empty: none.")
    transform: OptionalPath = option(
        None,
        "A file made by `tilecast calibrate split`: how the second half lies on the first, which it is registered to. "
        "Empty: as it is.",
    )
    halves: Literal["left-right", "top-bottom"] = option(
        "left-right", "How the halves lie on the chip; the left or top one comes first. A `transform` says so itself."
    )
    mirror: Literal["none", "rows", "columns"] = option(
        "none",
        "The second half is seen mirrored: its rows, or its columns, run backwards. A `transform` says so itself.",
    )
    first_channel: int = option(0, "Channel, from 0, that the first half becomes.", ge=0, le=1000)
    second_channel: int = option(1, "Channel that the second half becomes.", ge=0, le=1000)
    interpolation: Literal["bilinear", "cubic"] = option(
        "bilinear", "How the second half is resampled; cubic keeps more detail, and may ring at edges."
    )
    mixing: Numbers = option(
        (),
        "How the dyes mix in the halves, four numbers a,b,c,d: first half = a × first dye + b × second, second half = "
        "c × first dye + d × second. Empty: they are not un-mixed.",
    )
