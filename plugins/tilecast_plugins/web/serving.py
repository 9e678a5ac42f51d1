"""The server's process, or processes: sockets, workers, and an end in good order.

One process is enough for a page or two; with `workers`, several take connections from one listening socket, each with
its own cache and its own ear for the daemon's news.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

import numpy as np
import uvicorn

from tilecast.reading import reduce_tiles
from tilecast_plugins.web import encoding, rendering
from tilecast_plugins.web.app import create_app
from tilecast_plugins.web.gateway import Gateway
from tilecast_plugins.web.onewrite import OneWriteProtocol
from tilecast_plugins.web.settings import Settings
from tilecast_protocol import pzf

_BACKLOG: Final = 2048  # viewers open dozens of connections at once
_SWITCH_INTERVAL_S: Final = 0.0005  # the loop shall not wait 5 ms for a thread that computes
_GRACE_S: Final = 2  # how long open streams of events may hold up the end


def listen(settings: Settings) -> socket.socket:
    """A listening socket; OSError says why not."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    listener.set_inheritable(True)
    return listener


def address(listener: socket.socket) -> str:
    """The URL at which a listening socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    """Answer until SIGINT or SIGTERM.

    Parameters
    ----------
    on_ready : callable
        Called once when the first process answers.
    """
    if settings.workers == 1:
        _work(settings, listener, on_ready)
        return
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    workers = [
        context.Process(target=_worker, args=(settings, listener, ready), name=f"tilecast-web-{number}")
        for number in range(settings.workers)
    ]
    for worker in workers:
        worker.start()

    def stop(_number: int, _frame: FrameType | None) -> None:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    while not ready.wait(0.1) and any(worker.is_alive() for worker in workers):
        pass
    if ready.is_set():
        on_ready()
    for worker in workers:
        worker.join()


def _worker(settings: Settings, listener: socket.socket, ready: Any) -> None:
    """One of several processes."""
    _work(settings, listener, ready.set)


def _work(settings: Settings, listener: socket.socket, on_ready: Callable[[], None]) -> None:
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    warm_up()
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # it would hold tokens
        backlog=_BACKLOG,
        http=OneWriteProtocol,
        ws="none",
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        lifespan="on",
    )
    server = _Server(config, app.state.gateways, on_ready)
    # The server ends in good order, and then raises the signal again that told it to.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says when it answers, and ends streams of events before it waits for the last answers."""

    def __init__(self, config: uvicorn.Config, gateways: Sequence[Gateway], on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._gateways = gateways
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for gateway in self._gateways:
            gateway.news.end()
        await super().shutdown(sockets)


def warm_up() -> None:
    """Load or compile what the first answers would otherwise wait for."""
    for dtype in ("|u1", "<u2", "<f4"):
        pixels = np.arange(64, dtype=np.dtype(dtype)).reshape(8, 8)
        decoded = pzf.decode_image(pzf.encode_image(pixels), shape=(8, 8), dtype=dtype)
        for mask in (None, np.eye(8, dtype=np.bool_)):
            reduce_tiles([(decoded, mask)] * 4, decoded.dtype, 8)
        picture = rendering.render([decoded], [None], rendering.Look())
        for fmt in encoding.PICTURES:
            encoding.encode(picture, fmt)
