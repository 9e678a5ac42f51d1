"""A message as its journal record tells it, without its pixels: what a run's state is rebuilt from.

A journal holds headers as they came, but payloads as they are kept: raw pixels are stored as PZF, so a header may
speak of other bytes than those beside it, and for the state of a run the pixels are not read at all. So records do
not go through `messages.parse`, which would compare the two.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tilecast_protocol.headers import unpack_header
from tilecast_protocol.journal import Record, RecordKind
from tilecast_protocol.messages import End, Event, Image, Stage, Start
from tilecast_protocol.topics import parse_topic

_CLASSES: Final[dict[RecordKind, type[Start] | type[Image] | type[Stage] | type[Event] | type[End]]] = {
    RecordKind.START: Start,
    RecordKind.IMAGE: Image,
    RecordKind.STAGE: Stage,
    RecordKind.EVENT: Event,
    RecordKind.END: End,
}


class Journalled(NamedTuple):
    """A message that lies in a run's journal.

    Attributes
    ----------
    message : Start, Image, Stage, Event or End
        Without payload.
    t_recv_ns : int
        When it was received.
    image_index : int or None
        Ordinal among the images of the journal.
    """

    message: Start | Image | Stage | Event | End
    t_recv_ns: int
    image_index: int | None = None


def read_record(record: Record) -> Journalled:
    """The message of a record; its payload is neither needed nor kept.

    Raises
    ------
    MalformedError
        The header is not that of a message of this kind: it never passed the checks of the daemon.
    """
    header = unpack_header(record.header)
    if header.get("nbytes") is not None:
        header["nbytes"] = 0
    message = _CLASSES[record.kind].from_header(parse_topic(record.topic), header)
    return Journalled(message, record.t_recv_ns, record.image_index)
