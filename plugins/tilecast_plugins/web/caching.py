"""What browsers and viewers may keep: strong ETags, `no-cache`, and 304.

`no-cache` lets a viewer keep a picture and makes it ask whether it still holds; the answer to that costs one look at
the tile's rev. A strong ETag is made of everything the bytes depend on: run, plane, level, signed row and column, rev,
epoch, and the settings in effect. The epoch also stands in every tile URL, for viewers that never ask.

>>> etag("run", 3, (0, 0, 0), (0, -1, 4), 17, "jpg") == etag("run", 3, (0, 0, 0), (0, -1, 4), 18, "jpg")
False
>>> matches('W/"x", "abc"', '"abc"'), matches("*", '"abc"'), matches('"abd"', '"abc"'), matches(None, '"abc"')
(True, True, False, False)
"""

from __future__ import annotations

import hashlib

from starlette.responses import Response

CACHE_CONTROL = "no-cache"


def etag(*parts: object) -> str:
    """A strong ETag of everything that an answer depends on; values whose `repr` tells them apart."""
    return f'"{hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()}"'


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether a request's `If-None-Match` names this ETag (RFC 9110: compared weakly, a list, or any)."""
    if if_none_match is None:
        return False
    if if_none_match == tag or if_none_match.strip() == "*":
        return True
    return any(one.strip().removeprefix("W/") == tag for one in if_none_match.split(","))


def not_modified(tag: str) -> Response:
    """304: what you have still holds."""
    return Response(status_code=304, headers={"ETag": tag, "Cache-Control": CACHE_CONTROL})
