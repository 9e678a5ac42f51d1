"""Real processes that are born quickly: hundreds of them are killed here, and importing a compiler takes seconds.

A `Nursery` is a process that has imported everything and has loaded the compiled kernels, but has no thread, no file
and no socket; for each daemon it forks. So a daemon is a process of its own as any other, with the code of
`tilecast run` from its first line on; it only begins half a second later in its life. `kill -9` is meant for it alone.

Where there is a C compiler the nursery's children also have `disk_shim.c` between themselves and the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilecast.process import DaemonProcess

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What the shim does for one process.

    Attributes
    ----------
    folder : str
        Below which it counts writes, syncs, renames and deletions.
    durable : str
        A folder where the last synced content of every file is kept; empty for none.
    first, last : int
        The calls that fail, counted from 1; 0 for none.
    errno : int
        How they fail; 0 ends the process instead, as SIGKILL does. A negative one: they are done, and then said to have
        failed.
    slow_bytes_s, slow_s : int
        For the first seconds, other files than journals are written no faster than this; 0 for as fast as it goes.
    """

    folder: str
    durable: str = ""
    first: int = 0
    last: int = 0
    errno: int = 0
    slow_bytes_s: int = 0
    slow_s: int = 0


class Child:
    """A process that a nursery has forked.

    Attributes
    ----------
    pid : int
    log : list of dict
        What it has said on standard error so far; what is no JSON is the `event` of a line of its own.
    """

    def __init__(self, nursery: Nursery, pid: int, said: int) -> None:
        self._nursery = nursery
        self._said = said
        self._code: int | None = None
        self._changed = threading.Condition()
        self._silent = False
        self.pid = pid
        self.log: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_logged(self, event: str, **fields: Any) -> dict[str, Any]:
        """Wait for a line of its log; fails the test if it ends, or is silent for long, before that."""

        def find() -> dict[str, Any] | None:
            for line in self.log:
                if line.get("event") == event and fields.items() <= line.items():
                    return line
            return None

        with self._changed:
            self._changed.wait_for(lambda: find() is not None or self._silent, PATIENCE_S)
            found = find()
        assert found is not None, f"it did not log {event!r} {fields}, but: {self.log[-12:]}"
        return found

    def kill(self) -> int:
        """End it at once."""
        return self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end in good order; its exit code."""
        return self._end(signal.SIGTERM)

    def wait(self) -> int:
        """Wait until it has ended, however long a disk takes for its last write; its exit code, or minus the signal."""
        if self._code is None:
            self._reader.join()  # its end closes its log
            self._code = self._nursery.wait(self.pid)
        return self._code

    def _end(self, number: signal.Signals) -> int:
        if self._code is None:
            # Nobody else can have its number: until the nursery waits for it, it is there, dead or alive.
            os.kill(self.pid, number)
        return self.wait()

    def _read(self) -> None:
        with os.fdopen(self._said) as stream:
            for text in stream:
                try:
                    line = json.loads(text)
                except ValueError:
                    line = {"event": text.strip()}
                with self._changed:
                    self.log.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._silent = True
            self._changed.notify_all()


class Nursery:
    """Forks processes that have everything imported; a context manager.

    Parameters
    ----------
    folder : Path
        Of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n = 0
        shim = compiled_shim(folder)
        self.has_shim = shim is not None
        environ = {**os.environ, "PYTHONPATH": str(TESTS)}
        if shim is not None:
            environ["LD_PRELOAD"] = str(shim)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
        )
        assert self._answer() == "ready"

    def daemon(self, store: Path, settings: Mapping[str, str], *, disk: Disk | None = None) -> Child:
        """`tilecast run` with these options; not yet ready."""
        options = {"store.path": str(store), "log.format": "json", "log.level": "info"} | dict(settings)
        arguments = ["run", *(f"--set={name}={value}" for name, value in options.items())]
        return self.call("tilecast.cli:main", arguments, disk=disk)

    def call(self, function: str, *arguments: Any, disk: Disk | None = None) -> Child:
        """A process that calls `module:function` with arguments that JSON can hold, and ends."""
        return Child(self, *self.fork(function, *arguments, disk=disk))

    def wait(self, pid: int) -> int:
        """The exit code of a child that has ended."""
        return int(self._ask({"wait": pid}))

    def close(self) -> None:
        """End it; children that are left are killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def fork(self, function: str, *arguments: Any, disk: Disk | None = None) -> tuple[int, int]:
        """The number of a process that calls `module:function`, and where its standard error can be read."""
        assert disk is None or self.has_shim
        self._n += 1
        said = self._folder / f"said-{self._n}"
        os.mkfifo(said)
        # Open at both ends before there is a child: its end, however early, is then seen as the end of what it says.
        listening = os.open(said, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(listening, True)
        asked = {"call": function, "arguments": arguments, "said": str(said)}
        pid = int(self._ask(asked | {"disk": None if disk is None else asdict(disk)}))
        said.unlink()
        return pid, listening

    def _ask(self, request: dict[str, Any]) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        assert answer, "the nursery has died; it says why on standard error"
        return answer

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ForkedDaemon(DaemonProcess):
    """A `DaemonProcess` that a nursery forks, so that it is there at once; for tests that start many.

    Parameters
    ----------
    nursery : Nursery
    store_path : Path
    settings : mapping of str to str, optional
    log_file : Path, optional
    """

    def __init__(
        self, nursery: Nursery, store_path: Path, *, settings: Mapping[str, str] | None = None, log_file: Path
    ) -> None:
        super().__init__(store_path, settings=settings, log_file=log_file)
        self._nursery = nursery

    def _spawn(self) -> Any:
        arguments = self._command[self._command.index("run") :]
        arguments.remove("--until-eof")  # its standard input is empty; it ends with the nursery
        return _Forked(self._nursery, arguments)


class _Forked:
    """As much of `subprocess.Popen` as a `DaemonProcess` asks of its process."""

    def __init__(self, nursery: Nursery, arguments: list[str]) -> None:
        self._nursery = nursery
        self.pid, said = nursery.fork("tilecast.cli:main", arguments)
        self._ended = os.pidfd_open(self.pid)
        self.returncode: int | None = None
        self.stdin = io.StringIO()
        self.stderr = os.fdopen(said)

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout_s: float) -> int:
        code = self._wait(timeout_s)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout_s)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _wait(self, timeout_s: float) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout_s)[0]:
            self.returncode = self._nursery.wait(self.pid)
            os.close(self._ended)
        return self.returncode


def compiled_shim(folder: Path) -> Path | None:
    """The shim as a library; None where it cannot be made."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "disk_shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("disk_shim.c"))]
    made = subprocess.run([*command, "-ldl"], capture_output=True, text=True, check=False)
    return library if made.returncode == 0 else None


@contextlib.contextmanager
def _as_child(said: int) -> Iterator[None]:
    """The process has nothing of its parent's, and never comes back."""
    code = 70
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(said, 2)
        os.close(said)
        os.setpgid(0, 0)
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001  (it must not go on as its parent)
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _live(request: dict[str, Any], said: int) -> None:
    with _as_child(said):
        module, _, name = request["call"].partition(":")
        function = getattr(importlib.import_module(module), name)
        if request["disk"] is not None:
            _arm(Disk(**request["disk"]))
        function(*request["arguments"])


def _arm(disk: Disk) -> None:
    """Have the shim do what it should from here on."""
    shim = ctypes.CDLL(None)
    shim.shim_arm.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int)
    shim.shim_arm(disk.folder.encode(), disk.durable.encode(), disk.first, disk.last, disk.errno)
    shim.shim_slow.argtypes = (ctypes.c_long, ctypes.c_long)
    shim.shim_slow(disk.slow_bytes_s, disk.slow_s)


def n_calls() -> int:
    """In a child: how often it has written, synced, renamed or deleted since it began."""
    return int(ctypes.CDLL(None).shim_calls())


def _serve() -> None:
    import faults.chores  # noqa: F401  (what children may be asked to do)
    import tilecast.commands.run
    import tilecast.service.app  # noqa: F401
    from tilecast.service.warmup import warm_up

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print is no answer
    warm_up()
    children: set[int] = set()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            children.discard(request["wait"])
            answer = os.waitstatus_to_exitcode(status)
        else:
            said = os.open(request["said"], os.O_WRONLY)
            answer = os.fork()
            if answer == 0:
                _live(request, said)
            os.close(said)
            children.add(answer)
        print(answer, file=answers, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
