"""HTTP as sources need it: connections that stay open, shared by threads, and errors that say what was asked.

By urllib3. Nothing here knows what is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import urllib3

from ..errors import DisconnectedError, QueryError

_AGAIN: Final = (429, 503)
_CODES: Final = {400: "malformed", 403: "not-allowed", 404: "unknown-run", 409: "conflict", 413: "too-large"}


class Answer(NamedTuple):
    """What came."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http:
    """Asks servers; safe between threads.

    Parameters
    ----------
    headers : mapping, optional
        Sent with every question.
    timeout_s : float
        How long a server may be silent.
    connections : int
        Most that stay open to one server.
    """

    def __init__(self, headers: Mapping[str, str] | None = None, timeout_s: float = 10.0, connections: int = 8) -> None:
        self._timeout_s = timeout_s
        self._pool = urllib3.PoolManager(
            num_pools=8,
            maxsize=connections,
            headers={"Accept-Encoding": "identity", **(headers or {})},
            retries=urllib3.Retry(total=2, redirect=5, status_forcelist=_AGAIN, raise_on_status=False),
        )

    def get(self, url: str, *, timeout_s: float | None = None, again: bool = True) -> Answer:
        """The answer to a question, whatever its status.

        Parameters
        ----------
        url : str
        timeout_s : float, optional
            In place of the client's.
        again : bool
            Whether to ask again if that fails.

        Raises
        ------
        DisconnectedError
            Nobody answered.
        """
        try:
            answer = self._pool.request(
                "GET",
                url,
                timeout=timeout_s or self._timeout_s,
                retries=None if again else urllib3.Retry(0, redirect=5),
            )
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(url, error) from error
        return Answer(answer.status, answer.headers, answer.data)

    def json(self, url: str) -> Any:
        """What a document says.

        Raises
        ------
        DisconnectedError
            Nobody answered.
        QueryError
            It was refused, or is no JSON.
        """
        answer = self.get(url)
        if answer.status != 200:
            raise refused(url, answer)
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise QueryError(
                "failed", f"{url} answers with something that is not JSON: is this its address?"
            ) from error

    def lines(self, url: str) -> Lines:
        """An answer that goes on, line by line. Raises as `json`."""
        try:
            answer = self._pool.request(
                "GET", url, timeout=self._timeout_s, retries=urllib3.Retry(0, redirect=5), preload_content=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise unreachable(url, error) from error
        if answer.status != 200:
            said = Answer(answer.status, answer.headers, answer.data)
            answer.release_conn()
            raise refused(url, said)
        return Lines(url, answer)

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.clear()


class Lines:
    """The lines of an answer as they come."""

    def __init__(self, url: str, answer: urllib3.BaseHTTPResponse) -> None:
        self._url = url
        self._answer = answer

    def __iter__(self) -> Iterator[str]:
        """Raises DisconnectedError if the server is silent for too long, or goes away."""
        rest = b""
        try:
            for part in self._answer.stream(65_536):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield line.decode("utf-8", "replace").rstrip("\r")
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise unreachable(self._url, error) from error

    def close(self) -> None:
        """Hang up."""
        self._answer.close()


def unreachable(url: str, error: Exception) -> DisconnectedError:
    """For a server that does not answer."""
    reason = getattr(error, "reason", None) or error
    return DisconnectedError(f"no answer from {_without_query(url)}: {reason}. Is the server running?")


def refused(url: str, answer: Answer) -> QueryError:
    """For an answer that is none."""
    try:
        said = str(json.loads(answer.body)["detail"])
    except (ValueError, KeyError, TypeError):
        said = "no reason given"
    hint = "; give token=TOKEN" if answer.status == 401 else ""
    code = _CODES.get(answer.status, "failed")
    return QueryError(code, f"{_without_query(url)} answers {answer.status}: {said}{hint}")


def _without_query(url: str) -> str:
    """An address as it may be shown: what stands behind it may be a secret."""
    return url.partition("?")[0]
