"""The options of the calibration plugin: a module by itself, because every command imports it."""

from __future__ import annotations

from tilecast.options import OptionalPath, PluginOptions, option


class CalibrationPluginOptions(PluginOptions):
    """Finds calibration images by name, corrects cameras as `cameras.toml` says, and estimates flat fields."""

    estimate_into: OptionalPath = option(
        None,
        "Folder for a flat field that is estimated from each run when it has ended, by a process of its own at low "
        "priority; `tilecast rebuild RUN --flat FILE` applies it. Empty: none is estimated.",
    )
