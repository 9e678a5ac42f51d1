"""Small answers that describe an image to a viewer: JSON, XML, text, with an ETag of what they say."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import Header
from starlette.responses import Response

from tilecast_plugins.web import caching

#: A parameter of an endpoint.
IfNoneMatch = Annotated[str | None, Header()]


def document(body: bytes, content_type: str, if_none_match: str | None = None) -> Response:
    """A description as an answer, or 304."""
    tag = caching.etag(content_type, body)
    if caching.matches(if_none_match, tag):
        return caching.not_modified(tag)
    headers = {"Content-Type": content_type, "ETag": tag, "Cache-Control": caching.CACHE_CONTROL}
    return Response(body, headers=headers)


def json_document(value: Any, if_none_match: str | None = None) -> Response:
    """The same of anything that JSON can say; NaN it cannot."""
    return document(json.dumps(value, allow_nan=False).encode(), "application/json", if_none_match)
