"""Gives back to a damaged journal what it still holds twice: heads of segments, and indices. Nothing else is touched.

A record that is damaged stays as it is, for whoever wants to try; it can come back from another copy of the folder
only. So does everything else while the last segment has such a record: its index may be all that tells that the
record was durable once.
"""

from __future__ import annotations

import os
from pathlib import Path

from tilecast_protocol.errors import JournalError
from tilecast_protocol.journal import Journal
from tilecast_protocol.journal_format import Segment, pread


def repair_journal(folder: Path) -> list[str]:
    """Make anew what can be made anew; the caller sees to it that nobody else writes the run.

    Returns
    -------
    list of str
        What was done, in words; empty if there was nothing to do.

    Raises
    ------
    JournalError
        There is no journal, or the disk refuses.
    """
    with Journal.open(folder, readonly=True) as journal:
        damage = journal.verify()
        layout = journal.layout()
    spoilt = {item.segment for item in damage if not item.derived}
    wrong = {item.segment for item in damage if item.derived} - spoilt
    done = []
    try:
        for segment, head in layout:
            if segment.number in wrong:
                done += _mend(segment, head)
    except OSError as cause:
        error = JournalError(f"cannot repair the journal in {folder}: {cause.strerror or cause}")
        error.errno = cause.errno
        raise error from cause
    if wrong and not spoilt:
        Journal.open(folder).close()  # makes the indices
    return done


def _mend(segment: Segment, head: bytes) -> list[str]:
    """Write the head of a segment if it is another one, and drop its index if that was not all."""
    fd = os.open(segment.path, os.O_RDWR)
    try:
        if pread(fd, len(head), 0) != head:
            os.pwrite(fd, head, 0)
            os.fsync(fd)
            return [f"the head of {segment.path.name} was written again"]
    finally:
        os.close(fd)
    index = segment.path.with_suffix(".tci")
    index.unlink(missing_ok=True)
    return [f"the index {index.name} was made anew"]
