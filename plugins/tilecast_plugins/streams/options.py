"""The options of the streams: quick to import, because every command of tilecast does it."""

from __future__ import annotations

from typing import Literal

from tilecast.options import Endpoint, Numbers, PluginOptions, Size, option


class StreamOptions(PluginOptions):
    """What all streams of other programs have in common."""

    endpoint: Endpoint = option("", "Where the other program sends, or where it is listened for. Empty: no source.")
    stream: str = option("detector", "What its frames come as: the name of this camera.")
    name: str = option("scan", "What runs are called; the other program's own number or name of them is added.")
    px_um: Numbers = option((), "Size of a pixel at the specimen, x and y, or one number for both.", unit="µm")
    affine: Numbers = option((), "Four numbers a,b,c,d: the way from pixels to the stage. Empty: rows along y.")
    x: str = option("", "Where the stage's x position is found. Empty: frames are joined to a stage stream by time.")
    y: str = option("", "The same for y.")
    z: str = option("", "The same for z; it may stay empty.")
    unit_um: float = option(1.0, "How much one unit of these positions is; 1000 for mm.", unit="µm", gt=0)
    stage_stream: str = option("", "Whose positions frames are joined to. Empty: the instrument's only stage.")
    max_frame_bytes: Size = option(256 << 20, "Larger frames are refused.", unit="bytes", ge=1)


class AreaDetectorOptions(StreamOptions):
    """Takes frames from areaDetector's NDPluginZMQ."""

    socket: Literal["sub", "pull"] = option(
        "sub", "What the plugin was configured as: PUB is heard by sub, PUSH by pull."
    )
    bind: bool = option(False, "Whether the plugin connects to this endpoint, as its PUSH does.")
    shape_order: Literal["columns-first", "rows-first"] = option(
        "columns-first", "How other programs mean `shape`; areaDetector writes columns first."
    )
    exposure: str = option("", "The attribute with the exposure time in seconds; it may stay empty.")
    t_index: str = option("", "The attribute with the number of the time point. Empty: 0.")
    c_index: str = option("", "The attribute with the number of the channel. Empty: 0.")
    z_index: str = option("", "The attribute with the number of the depth. Empty: 0.")
    run: str = option("", "The attribute that tells runs apart: another value begins another run.")
    idle_end_s: float = option(30.0, "A run ends when no frame has come for so long.", unit="s", gt=0)


class DectrisOptions(StreamOptions):
    """Takes series from a Dectris detector's stream 2. It needs the extra dectris."""

    magnification: float = option(1.0, "Where px_um is empty: the detector's pixels are divided by it.", gt=0)
