"""Micro-Manager, through pymmcore-plus: every frame of an acquisition goes to the daemon, with all that is known of it.

    from pymmcore_plus import CMMCorePlus
    from tilecast_plugins.micromanager import attach

    core = CMMCorePlus.instance()
    core.loadSystemConfiguration("scope.cfg")
    attach(core, "tcp://127.0.0.1:5570", instrument="scope-2")
    core.run_mda(sequence)  # as ever

How to use it, and what can go wrong: README.md beside this file. `attachment` listens to the core, `plans` and `optics`
say what its events and its configuration mean, `sender` carries frames to the daemon without ever keeping the
microscope waiting.
"""

from __future__ import annotations

from .attachment import Attachment as Attachment
from .attachment import attach as attach
