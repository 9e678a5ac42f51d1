"""What the tests of plugins share."""

from plugin_daemons import tilecast_daemon

__all__ = ["tilecast_daemon"]
