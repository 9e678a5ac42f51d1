"""What the gateway was told on its command line, checked, in one immutable value."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from pathlib import Path

_MIB = 1 << 20


class SettingsError(ValueError):
    """The settings contradict each other; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One of several microscopes.

    Attributes
    ----------
    name : str
        What people call it; part of addresses.
    store_path : Path or None
        The folder of its runs on this machine; None reads through `query` instead.
    notify, query : str or None
        Its daemon's sockets.
    """

    name: str
    store_path: Path | None
    notify: str | None
    query: str | None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", self.name):
            raise SettingsError(
                f"an instrument's name is of letters, digits, '.', '_' and '-', at most 64; got {self.name[:80]!r}"
            )
        if self.store_path is None and self.query is None:
            raise SettingsError(
                f"there is nothing to read of {self.name}: give the folder of its runs, or its daemon's query endpoint"
            )


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
    instruments : tuple of Instrument
        Several microscopes, shown side by side, in place of `store_path`, `notify` and `query`.
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
    instruments: tuple[Instrument, ...] = ()

    def __post_init__(self) -> None:
        names = [one.name for one in self.instruments]
        if len(set(names)) != len(names):
            raise SettingsError(f"each instrument needs a name of its own; got {', '.join(names)}")
        if self.store_path is None and self.query is None and not self.instruments:
            raise SettingsError("there is nothing to read: give the folder of the runs, or the daemon's query endpoint")
        if not is_loopback(self.host) and not self.token:
            raise SettingsError(
                f"{self.host} can be reached from other machines: give a token (--token-file), or listen on 127.0.0.1"
            )

    def of(self, instrument: Instrument) -> Settings:
        """The settings of one of several instruments; the cache is shared out among them."""
        return replace(
            self,
            store_path=instrument.store_path,
            notify=instrument.notify,
            query=instrument.query,
            cache_nbytes=self.cache_nbytes // len(self.instruments),
            instruments=(),
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
