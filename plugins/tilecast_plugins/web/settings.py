"""What the gateway was told on its command line, checked, in one immutable value."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

_MIB = 1 << 20


class SettingsError(ValueError):
    """The settings contradict each other; the message says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the gateway works.

    Attributes
    ----------
    store_path : Path or None
        The folder of the runs on this machine; None reads through `query` instead.
    notify, query : str or None
        The daemon's sockets: news, and questions and orders. Without them runs are shown all the same.
    host, port : str, int
        Where to listen; port 0 takes a free one.
    token : str or None
        What strangers must know. Needed where `host` is not this machine alone.
    cors : tuple of str
        Origins of other pages that may read from here; ``*`` is any.
    workers : int
        Processes that answer.
    threads : int
        Threads of each that decode and encode.
    cache_nbytes : int
        Decoded tiles kept in memory, in each process.
    max_region_pixels : int
        Largest picture of a region, pixels.
    max_profile_samples : int
        Longest profile.
    max_event_streams : int
        Pages that may follow events at once, in each process.
    """

    store_path: Path | None = None
    notify: str | None = None
    query: str | None = None
    host: str = "127.0.0.1"
    port: int = 8750
    token: str | None = None
    cors: tuple[str, ...] = ()
    workers: int = 1
    threads: int = 2
    cache_nbytes: int = 256 * _MIB
    max_region_pixels: int = 16 * _MIB
    max_profile_samples: int = 16_384
    max_event_streams: int = 200

    def __post_init__(self) -> None:
        if self.store_path is None and self.query is None:
            raise SettingsError("there is nothing to read: give the folder of the runs, or the daemon's query endpoint")
        if not is_loopback(self.host) and not self.token:
            raise SettingsError(
                f"{self.host} can be reached from other machines: give a token (--token-file), or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
