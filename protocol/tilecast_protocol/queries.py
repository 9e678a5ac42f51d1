"""Queries and their answers: what each command takes, and how requests and replies are written.

A request is one msgpack map; a reply is a header and payload. What each command takes stands once, in `COMMANDS`; the
same table serves the server, which checks what came, and the client, which is told of a mistake before it is sent.
Not known here: sockets, runs, who may ask what, how a question is answered.

Examples
--------
>>> request = make_query("changes", 7, run="01234567-89AB-4CDE-8F01-23456789ABCD", epoch=0, since=12)
>>> query = parse_query(request)
>>> query["cmd"], query["id"], query["run"], query["since"], query["limit"]
('changes', 7, '01234567-89ab-4cde-8f01-23456789abcd', 12, 4000)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from . import checks
from .errors import MalformedError, QueryError
from .headers import MAX_DAEMON_DEPTH, MAX_DAEMON_HEADER_BYTES, pack_header, salvage, unpack_header
from .message_base import DAEMON_LIMITS, DEFAULT_LIMITS, Buffer, Limits, Part, as_part
from .vocabulary import BLEND_MODES, CODECS, MAX_NOTIFIED_TILES, VERSION

QueryId: TypeAlias = int | str | None
"""What a client calls its question, given back with the answer."""

PAGE_TILES: Final = 4000
"""Tiles in a page of `snapshot` or `changes`, frames in one of `placements`, unless the request says otherwise."""

MAX_PAGE: Final = 100_000
"""Most items in a page."""

ERROR_CODES: Final = (
    "malformed",
    "unknown-command",
    "unknown-run",
    "not-allowed",
    "too-large",
    "busy",
    "conflict",
    "failed",
)
"""The `error.code` of version 1; a reader treats one that it does not know as `failed`."""


class Argument(NamedTuple):
    """One argument of a command: its name, its check, and what it is when it is left out."""

    name: str
    check: checks.Check
    required: bool = True
    default: Any = None


class Command(NamedTuple):
    """What a command takes, and whether only operators may give it."""

    arguments: tuple[Argument, ...] = ()
    operator: bool = False


def _bounds(value: Any, what: str) -> tuple[int, int, int, int]:
    row0, col0, row1, col1 = checks.list_of(checks.signed_index, 4, 4)(value, what)
    if not (row0 < row1 and col0 < col1):
        raise checks.refuse(what, "[row0, col0, row1, col1] with row0 < row1 and col0 < col1", value)
    return row0, col0, row1, col1


def _fill(value: Any, what: str) -> float:
    """A number for uncovered pixels; NaN is a good one for float pixels, infinity is not."""
    if isinstance(value, float) and math.isnan(value):
        return value
    return checks.number(value, what)


def _seen(value: Any, what: str) -> tuple[int, int]:
    updated_ns, nbytes = checks.list_of(checks.unsigned, 2, 2)(value, what)
    return updated_ns, nbytes


def _page(default: int) -> Argument:
    return Argument("limit", checks.whole(1, MAX_PAGE), False, default)


_RUN: Final = Argument("run", checks.uuid)
_TCZ: Final = Argument("tcz", checks.plane_index)
_LEVEL: Final = Argument("level", checks.level)
_AFTER: Final = Argument("after", checks.list_of(checks.signed_index, 6, 6), False)

COMMANDS: Final[Mapping[str, Command]] = {
    "hello": Command(),
    "runs": Command(),
    "run": Command((_RUN,)),
    "snapshot": Command(
        (_RUN, _TCZ._replace(required=False), _LEVEL._replace(required=False), _AFTER, _page(PAGE_TILES))
    ),
    "tile": Command(
        (
            _RUN,
            _TCZ,
            _LEVEL,
            Argument("row", checks.signed_index),
            Argument("col", checks.signed_index),
            Argument("if_newer", checks.unsigned, False),
        )
    ),
    "region": Command(
        (
            _RUN,
            _TCZ,
            _LEVEL,
            Argument("bounds", _bounds),
            Argument("codec", checks.one_of(*CODECS), False, "raw"),
            Argument("fill", _fill, False),
        )
    ),
    "changes": Command(
        (_RUN, Argument("epoch", checks.unsigned), Argument("since", checks.unsigned), _page(MAX_NOTIFIED_TILES))
    ),
    "placements": Command(
        (
            _RUN,
            Argument("since", checks.unsigned, False, 0),
            Argument("after", checks.list_of(checks.unsigned, 3, 3), False),
            _page(PAGE_TILES),
        )
    ),
    "report": Command((_RUN,)),
    "stats": Command(),
    "health": Command(),
    "end": Command((_RUN,), operator=True),
    "rebuild": Command(
        (
            _RUN,
            Argument("blend", checks.one_of(*BLEND_MODES), False),
            Argument("rejoin", checks.boolean, False, False),
            Argument("dark", checks.text(1, 200), False),
            Argument("flat", checks.text(1, 200), False),
            Argument("steps", checks.boolean, False, False),
            Argument("layout", checks.one_of("stage", "registered"), False),
            Argument("registration", checks.boolean, False, False),
        ),
        operator=True,
    ),
    "repair": Command((_RUN,), operator=True),
    "rename": Command((_RUN, Argument("name", checks.text(0, 500))), operator=True),
    "note": Command((_RUN, Argument("text", checks.prose)), operator=True),
    "delete": Command(
        (_RUN, Argument("if_seen", _seen, False), Argument("why", checks.text(0, 5000), False)), operator=True
    ),
    "seal": Command((_RUN, Argument("force", checks.boolean, False, False)), operator=True),
    "reload": Command(operator=True),
}
"""Every command of version 1: what it takes, and who may give it."""


def _query_id(value: Any) -> QueryId:
    """What may be the id of a query: a whole number of 64 bits, or text that is not long."""
    if type(value) is int or (isinstance(value, str) and len(value) <= 200):
        return value
    if value is None:
        return None
    raise checks.refuse("id", "a whole number, text of at most 200 characters, or left out", value)


def make_query(cmd: str, id: QueryId = None, **arguments: Any) -> bytes:  # noqa: A002  (its name on the wire)
    """A request, checked as the server will check it.

    Arguments that are None are left out.

    Raises
    ------
    QueryError
        An unknown command; an argument that is missing or is not what it must be.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    checked = _check_arguments(cmd, given)
    try:
        return pack_header({"v": VERSION, "id": _query_id(id), "cmd": cmd} | {name: checked[name] for name in given})
    except MalformedError as error:
        raise QueryError("malformed", str(error)) from error


def _check_arguments(cmd: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` with every argument of the command checked and defaults filled in; others are kept as they are."""
    command = COMMANDS.get(cmd) if isinstance(cmd, str) else None
    if command is None:
        raise QueryError("unknown-command", f"no command {checks.show(cmd)}; known: {', '.join(COMMANDS)}")
    result = dict(given)
    for argument in command.arguments:
        value = given.get(argument.name)
        if value is not None:
            try:
                result[argument.name] = argument.check(value, f"{cmd}: {argument.name}")
            except MalformedError as error:
                raise QueryError("malformed", str(error)) from error
        elif argument.required:
            raise QueryError("malformed", f"{cmd}: the argument {argument.name} is missing")
        else:
            result[argument.name] = argument.default
    return result


def parse_query(part: Part, limits: Limits = DEFAULT_LIMITS) -> dict[str, Any]:
    """A request that came: its `id`, its `cmd`, and every argument of that command, checked, defaults filled in.

    Arguments that the command does not know are kept and mean nothing.

    Raises
    ------
    QueryError
        `malformed` or `unknown-command`; `query_id` still finds the id to answer with.
    """
    try:
        request = unpack_header(
            memoryview(as_part(part, "request")),
            max_bytes=limits.max_header_bytes,
            max_depth=limits.max_depth,
            what="request",
        )
        version = request.get("v")
        if type(version) is not int or version != VERSION:
            raise checks.refuse("v", f"{VERSION}, the version of the protocol spoken here", version)
        request["id"] = _query_id(request.get("id"))
    except MalformedError as error:
        raise QueryError("malformed", str(error)) from error
    if "cmd" not in request:
        raise QueryError("malformed", f"the key cmd is missing; known commands: {', '.join(COMMANDS)}")
    return _check_arguments(request["cmd"], request)


def query_id(part: Part) -> QueryId:
    """The id of a request that was refused, as far as it can still be read."""
    try:
        return _query_id(salvage(memoryview(as_part(part, "request")), frozenset({"id"})).get("id"))
    except MalformedError:
        return None


def make_reply(id: QueryId, payload: Sequence[Buffer] = (), /, **values: Any) -> list[Buffer]:  # noqa: A002  (as above)
    """An answer: header and payload, ready to send.

    Raises
    ------
    MalformedError
        A value that msgpack cannot carry, or a header above the limit: answer in pages.
    """
    header = {"v": VERSION, "id": id, "ok": True} | values
    return [pack_header(header, max_bytes=MAX_DAEMON_HEADER_BYTES, max_depth=MAX_DAEMON_DEPTH), *payload]


def make_error(id: QueryId, error: QueryError) -> list[Buffer]:  # noqa: A002  (as above)
    """The answer to a query that was refused."""
    header = {"v": VERSION, "id": id, "ok": False, "error": {"code": error.code, "message": error.message}}
    return [pack_header(header, max_bytes=MAX_DAEMON_HEADER_BYTES, max_depth=MAX_DAEMON_DEPTH)]


class Reply(NamedTuple):
    """An answer: its header and its payload."""

    header: dict[str, Any]
    payload: tuple[bytes | memoryview, ...]

    @property
    def id(self) -> QueryId:
        """The id of the question."""
        found: QueryId = self.header.get("id")
        return found

    def raise_for_error(self) -> None:
        """Raise QueryError if the server refused."""
        error = self.header.get("error")
        if isinstance(error, dict):
            raise QueryError(str(error.get("code", "failed")), str(error.get("message", "the server gave no reason")))
        if self.header.get("ok") is not True:
            raise QueryError("failed", "the server neither answered nor said why")


def parse_reply(parts: Sequence[Part], limits: Limits = DAEMON_LIMITS) -> Reply:
    """An answer that came; `Reply.raise_for_error` turns a refusal into QueryError.

    Raises
    ------
    MalformedError
        Not a header followed by payload, or another version.
    """
    if not parts:
        raise MalformedError("an answer has a header; nothing came")
    header = unpack_header(
        memoryview(as_part(parts[0], "answer")),
        max_bytes=limits.max_header_bytes,
        max_depth=limits.max_depth,
        what="answer",
    )
    version = header.get("v")
    if type(version) is not int or version != VERSION:
        raise checks.refuse("v", f"{VERSION}, the version of the protocol spoken here", version)
    return Reply(header, tuple([as_part(part, "payload") for part in parts[1:]]))
