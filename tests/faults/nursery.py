"""Real processes that are born quickly: hundreds of them are killed here, and importing a compiler takes seconds.

A `Nursery` is a process that has imported everything and has loaded the compiled kernels, but has no thread, no file
and no socket; for each daemon it forks. So a daemon is a process of its own as any other, with the code of
`tilecast run` from its first line on; it only begins half a second later in its life. `kill -9` is meant for it alone.
The same goes for all other commands. They have the working folder and the environment of whoever asks for them. That
`python -m tilecast` starts, and how quickly, is tested elsewhere.

Where there is a C compiler the nursery's children also have `disk_shim.c` between themselves and the disk.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilecast import cli
from tilecast.process import DaemonProcess

TESTS = Path(__file__).resolve().parents[1]
PATIENCE_S = 60.0
COMMAND = "faults.nursery:command"


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
        For so many seconds from the first tiles on, other files than journals are written no faster than this; 0 for as
        fast as it goes.
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
    """Forks processes that have everything imported.

    Parameters
    ----------
    folder : Path
        Of its own.

    Attributes
    ----------
    folder : Path
    has_shim : bool
        Whether its children can have a disk that fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        return self.call(COMMAND, arguments, disk=disk)

    def call(self, function: str, *arguments: Any, disk: Disk | None = None) -> Child:
        """A process that calls `module:function` with arguments that JSON can hold, and ends."""
        return Child(self, *self.fork(function, *arguments, disk=disk))

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None, timeout_s: float = 2 * PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """`tilecast ...` to its end: its exit code, and what it said on standard output and standard error."""
        return self._run(COMMAND, [list(arguments)], environ, timeout_s)

    def script(self, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -c ...` to its end, with modules that are imported already."""
        return self._run("faults.nursery:script", [source, list(arguments)], None, 2 * PATIENCE_S)

    def start(self, *arguments: str, log_file: Path | None = None) -> Forked:
        """`tilecast ...`, whose standard output can be read; what else it says goes to a file, or where ours goes."""
        path, out = self._listen()
        pid = self._born(COMMAND, [list(arguments)], str(path), log_file and str(log_file))
        path.unlink()
        return Forked(self, pid, stdout=out)

    def learn(self, module: str) -> None:
        """Import what further children would have to import, each for itself."""
        self._ask({"learn": module})

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

    def fork(
        self, function: str, *arguments: Any, disk: Disk | None = None, environ: Mapping[str, str] | None = None
    ) -> tuple[int, int]:
        """The number of a process that calls `module:function`, and where its standard error can be read."""
        assert disk is None or self.has_shim
        path, listening = self._listen()
        pid = self._born(function, list(arguments), os.devnull, str(path), disk=disk, environ=environ)
        path.unlink()
        return pid, listening

    def _run(
        self, function: str, arguments: list[Any], environ: Mapping[str, str] | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        out, err = (self._new_path() for _ in range(2))
        process = Forked(self, self._born(function, arguments, str(out), str(err), environ=environ))
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        return subprocess.CompletedProcess([function, *arguments], code, out.read_text(), err.read_text())

    def _new_path(self) -> Path:
        self._n += 1
        return self.folder / f"said-{self._n}"

    def _listen(self) -> tuple[Path, int]:
        """Where a child can be heard, to be opened for writing, and the end where it is heard."""
        path = self._new_path()
        os.mkfifo(path)
        # Open at both ends before there is a child: its end, however early, is then seen as the end of what it says.
        listening = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(listening, True)
        return path, listening

    def _born(
        self,
        function: str,
        arguments: list[Any],
        out: str,
        err: str | None = None,
        *,
        disk: Disk | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> int:
        """The number of a new process; without `err` it has the nursery's standard error."""
        surroundings = {"folder": str(Path.cwd()), "environ": dict(os.environ if environ is None else environ)}
        asked = {"call": function, "arguments": arguments, "out": out, "err": err, **surroundings}
        return int(self._ask(asked | {"disk": None if disk is None else asdict(disk)}))

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


@functools.cache
def shared() -> Nursery:
    """The nursery of this process; `tests/conftest.py` ends it after the last test."""
    return Nursery(Path(tempfile.mkdtemp(prefix="tilecast-")))


def end_shared() -> None:
    """End the nursery of this process, if there is one."""
    if shared.cache_info().currsize:
        shared().close()
        shutil.rmtree(shared().folder, ignore_errors=True)
        shared.cache_clear()


class ForkedDaemon(DaemonProcess):
    """A `DaemonProcess` that the nursery of this process forks, so that it is there at once."""

    def _spawn(self) -> Any:
        return forked_daemon(self._command, self._environ)


def forked_daemon(command: list[str], environ: Mapping[str, str]) -> Forked:
    """What a `DaemonProcess` would start with this command."""
    arguments = command[command.index("run") :]
    arguments.remove("--until-eof")  # its standard input is empty; it ends with the nursery
    nursery = shared()
    pid, said = nursery.fork(COMMAND, arguments, environ=environ)
    return Forked(nursery, pid, stderr=said)


class Forked:
    """As much of `subprocess.Popen` as is asked of a process that a nursery has forked."""

    def __init__(self, nursery: Nursery, pid: int, *, stdout: int | None = None, stderr: int | None = None) -> None:
        self._nursery = nursery
        self.pid = pid
        self._ended = os.pidfd_open(pid)
        self.returncode: int | None = None
        self.stdin = io.StringIO()
        self.stdout, self.stderr = (io.StringIO() if said is None else os.fdopen(said) for said in (stdout, stderr))

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float = PATIENCE_S) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

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
def _as_child(out: int, err: int) -> Iterator[None]:
    """The process has nothing of its parent's, and never comes back."""
    code = 70
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        for said, number in ((out, 1), (err, 2)):
            os.dup2(said, number)
            if said != number:
                os.close(said)
        os.setpgid(0, 0)
        yield
        code = 0
    except SystemExit as end:
        code = 0 if end.code is None else end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001  (it must not go on as its parent)
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def _live(request: dict[str, Any], out: int, err: int) -> None:
    with _as_child(out, err):
        os.chdir(request["folder"])
        _take_environ(request["environ"])
        module, _, name = request["call"].partition(":")
        function = getattr(importlib.import_module(module), name)
        if request["disk"] is not None:
            _arm(Disk(**request["disk"]))
        function(*request["arguments"])


def _take_environ(environ: dict[str, str]) -> None:
    """Have this environment, and look for modules where it says, too; what stands before the disk stays."""
    paths = [path for path in environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = paths
    own = {"PYTHONPATH": os.pathsep.join([*paths, os.environ["PYTHONPATH"]])}
    own |= {name: os.environ[name] for name in ("LD_PRELOAD",) if name in os.environ}
    os.environ.clear()
    os.environ.update(environ | own)


def _arm(disk: Disk) -> None:
    """Have the shim do what it should from here on."""
    shim = ctypes.CDLL(None)
    shim.shim_arm.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_long, ctypes.c_int)
    shim.shim_arm(disk.folder.encode(), disk.durable.encode(), disk.first, disk.last, disk.errno)
    shim.shim_slow.argtypes = (ctypes.c_long, ctypes.c_long)
    shim.shim_slow(disk.slow_bytes_s, disk.slow_s)


def command(arguments: list[str]) -> None:
    """In a child: `tilecast ...`."""
    cli.main(arguments, prog_name="tilecast")


def script(source: str, arguments: list[str]) -> None:
    """In a child: `python -c ...`."""
    sys.argv = ["-c", *arguments]
    exec(compile(source, "<script>", "exec"), {"__name__": "__main__"})


def n_calls() -> int:
    """In a child: how often it has written, synced, renamed or deleted since it began."""
    return int(ctypes.CDLL(None).shim_calls())


def _serve() -> None:
    # What children need sooner or later. Whoever makes a store imports sqlite_utils, and that pandas where it is there.
    import sqlite_utils.migrations  # noqa: F401

    import faults.chores  # noqa: F401
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
        answer: Any
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            children.discard(request["wait"])
            answer = os.waitstatus_to_exitcode(status)
        elif "learn" in request:
            answer = importlib.import_module(request["learn"]).__name__
        else:
            out = os.open(request["out"], os.O_WRONLY | os.O_CREAT, 0o600)
            err = 2 if request["err"] is None else os.open(request["err"], os.O_WRONLY | os.O_CREAT, 0o600)
            answer = os.fork()
            if answer == 0:
                _live(request, out, err)
            for said in {out, err} - {2}:
                os.close(said)
            children.add(answer)
        print(answer, file=answers, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
