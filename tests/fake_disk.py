"""A disk that is as full as a test says (`tilecast.ingest.room.Disk`)."""

from __future__ import annotations

from tilecast.ingest.room import Room


class FakeDisk:
    """There is room on it until a test, or a write that failed, says otherwise.

    Attributes
    ----------
    now : Room
    told : list of Room
        What it was told of writes that failed for want of room.
    trouble : str
        The last write that failed for another reason.
    free_bytes : int
    """

    def __init__(self) -> None:
        self.now = Room.OK
        self.told: list[Room] = []
        self.trouble = ""
        self.free_bytes = 10**9

    def room(self) -> Room:
        return self.now

    def ran_out(self, room: Room) -> None:
        self.told.append(room)
        self.now = max(self.now, room)

    def failed(self, why: str) -> None:
        self.trouble = why

    @property
    def sentence(self) -> str:
        return f"the disk is {self.now.word}" if self.now is not Room.OK else ""
