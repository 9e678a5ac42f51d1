"""One process at a time writes a run: the lock that says so, and names who holds it.

An advisory `flock` on the file ``lock`` in the run's folder. The kernel drops it when its holder dies, however it
dies, so there is no stale lock to clear; the text inside is for people and for error messages only. The file itself
is never deleted: a second process might be waiting on the very inode that would vanish.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder, RunLock(folder) as lock:
...     lock.held
True
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from tilecast.errors import RunLockedError, StoreError

LOCK_NAME = "lock"
_KERNELS_LOCKS = Path("/proc/locks")  # where there is none, nobody is seen to hold anything


def holder(folder: str | os.PathLike[str]) -> str:
    """Who writes the run in a folder, in words, as far as can be told without trying to; empty if nobody.

    For people: only taking the lock tells for sure.
    """
    path = Path(folder) / LOCK_NAME
    try:
        inode = path.stat().st_ino
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        # The text may have been left by one that was killed, or been copied with the folder; the kernel knows.
        is_held = any(_is_lock_on(line, inode) for line in _KERNELS_LOCKS.read_text(encoding="ascii").splitlines())
    except OSError:
        return ""
    return (text or "another process") if is_held else ""


def _is_lock_on(line: str, inode: int) -> bool:
    """Whether a line of the kernel's list, such as `1: FLOCK  ADVISORY  WRITE 71 fe:01:3342 0 EOF`, is of a file."""
    fields = line.split()
    return len(fields) > 5 and fields[1:4] == ["FLOCK", "ADVISORY", "WRITE"] and fields[5].endswith(f":{inode}")


class RunLock:
    """The right to write one run's folder, from construction to `release`.

    Two locks on one folder exclude each other within one process, too. Safe to release from another thread than the
    one that took it.

    Parameters
    ----------
    folder : path
        The run's folder, which must exist.

    Raises
    ------
    RunLockedError
        If someone else holds it; the message names the process.
    StoreError
        If the lock file cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        path = self.folder / LOCK_NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        except OSError as error:
            raise StoreError(
                f"cannot take the lock {path}: {error.strerror}; writing a run needs an existing folder and the "
                "right to write in it"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                raise StoreError(f"cannot lock {path}: {error.strerror}; does its file system know locks?") from error
            raise RunLockedError(
                f"the run in {self.folder} is being written by {holder}; let it finish or stop it, or, if it is the "
                "daemon, ask the daemon to do this"
            ) from error
        self._fd: int | None = fd
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # The text only serves error messages: a full disk must not keep a run from being opened.
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)

    @property
    def held(self) -> bool:
        """Whether it has not been released yet."""
        return self._fd is not None

    def release(self) -> None:
        """Give the right back; a second call does nothing."""
        fd, self._fd = self._fd, None
        if fd is not None:
            try:
                with contextlib.suppress(OSError):  # as above; and it must not hide what went wrong before
                    os.ftruncate(fd, 0)
            finally:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
