"""The stream of areaDetector as a source inside the daemon, where its options name an endpoint."""

from __future__ import annotations

from tilecast.hookspecs import MessageSource, hookimpl

from .options import AreaDetectorOptions


@hookimpl
def tilecast_message_sources(options: AreaDetectorOptions) -> list[MessageSource]:
    """One source, or none."""
    if not options.endpoint:
        return []
    from .source import areadetector_source

    return [areadetector_source(options)]
