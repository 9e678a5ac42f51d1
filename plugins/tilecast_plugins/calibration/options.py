"""The options of the calibration plugin: a module by itself, because every command imports it."""

from __future__ import annotations

from tilecast.options import OptionalPath, PluginOptions, option


class CalibrationPluginOptions(PluginOptions):
    """Finds calibration images by name, corrects cameras as `cameras.toml` says, and estimates flat fields."""

    estimate_into: OptionalPath = option(
        None,
        "Folder for a flat field that is estimated from each run, by a process of its own at low priority; `tilecast "
        "rebuild RUN --flat FILE` applies it. Empty: none is estimated.",
    )
    estimate_every_s: float = option(
        600.0,
        "How often a flat field is estimated anew while the run goes on, from its frames so far. 0: only when it has "
        "ended.",
        unit="s",
        ge=0,
    )
