"""The hook: a source of messages for each watched folder."""

from __future__ import annotations

from collections.abc import Sequence

from tilecast.hookspecs import MessageSource, hookimpl
from tilecast_plugins.watch_folder.options import WatchFolderOptions


@hookimpl
def tilecast_message_sources(options: WatchFolderOptions) -> Sequence[MessageSource]:
    """One source for each folder; none by default, and then nothing is imported for them either."""
    if not options.folders:
        return []
    from tilecast_plugins.watch_folder.source import FolderSource

    return [FolderSource(folder, options) for folder in options.folders]
