"""The stream of Dectris as a source inside the daemon, where its options name an endpoint."""

from __future__ import annotations

from tilecast.hookspecs import MessageSource, hookimpl

from .options import DectrisOptions


@hookimpl
def tilecast_message_sources(options: DectrisOptions) -> list[MessageSource]:
    """One source, or none."""
    if not options.endpoint:
        return []
    from .source import dectris_source

    return [dectris_source(options)]
