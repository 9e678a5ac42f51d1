"""The daemon's port for monitoring: `/metrics`, `/healthz` and `/readyz`, over HTTP, on this machine.

It has threads of its own, few of them, with patience for slow readers and none for many: whatever is done to this port,
frames go on. Questions are answered one at a time, because an answer costs processor time that acquisition may need.

| path | answer |
|---|---|
| `/metrics` | numbers for Prometheus |
| `/healthz` | 200 while the daemon lives, else 503: then it should be started again |
| `/readyz` | 200 if a run can be begun now, else 503 and why not, a sentence a line |
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from tilecast.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication

log = structlog.get_logger()

_MAX_CONNECTIONS = 8
_PATIENCE_S = 10.0
_PLAIN = ("Content-Type", "text/plain; charset=utf-8")


class MetricsServer:
    """Serves until closed. Bound as soon as it is made, so that it tells of a start that takes long.

    Parameters
    ----------
    listen : str
        `host:port`; port 0 takes a free one.
    collector : Collector
    why_not_alive, why_no_start : callable
        Sentences that say what is wrong; none if nothing is.

    Attributes
    ----------
    url : str
        Where it is, such as `http://127.0.0.1:5574`.

    Raises
    ------
    ConfigError
        If the port cannot be bound.
    """

    def __init__(
        self,
        listen: str,
        collector: Collector,
        *,
        why_not_alive: Callable[[], Iterable[str]],
        why_no_start: Callable[[], Iterable[str]],
    ) -> None:
        host, _, port = listen.rpartition(":")
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        app = _Application(make_wsgi_app(registry), {"/healthz": why_not_alive, "/readyz": why_no_start})
        server_class = _Server6 if host.startswith("[") else _Server
        try:
            self._server = make_server(host.strip("[]"), int(port), app, server_class, _Handler)
        except OSError as error:
            raise ConfigError(
                f"metrics.listen = {listen} cannot be bound: {error.strerror}; is another tilecast running? "
                "Choose another port with --set metrics.listen=…"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="tilecast-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Application:
    """What to answer at which path (WSGI)."""

    def __init__(self, metrics: WSGIApplication, checks: Mapping[str, Callable[[], Iterable[str]]]) -> None:
        self._metrics = metrics
        self._checks = checks
        self._one_at_a_time = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        try:
            if path == "/metrics":
                with self._one_at_a_time:
                    return self._metrics(environ, start_response)
            if path in self._checks:
                wrong = list(self._checks[path]())
                start_response("503 Service Unavailable" if wrong else "200 OK", [_PLAIN])
                return ["".join(f"{line}\n" for line in wrong or ["ok"]).encode()]
        except Exception as error:  # the edge of a thread: whoever asked is told, and the log
            log.error("the monitoring port could not answer", path=path, error=repr(error), exc_info=error)
            start_response("500 Internal Server Error", [_PLAIN])
            return [f"{error}\n".encode()]
        start_response("404 Not Found", [_PLAIN])
        return [b"there are /metrics, /healthz and /readyz\n"]


class _Server(ThreadingWSGIServer):
    """A thread for each connection, up to a number; the next are turned away."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(*args, **keywords)

    def server_bind(self) -> None:
        """Bind, and ask no name server who we are."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if one is free."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, in a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, *_: Any) -> None:
        """Whoever asked has gone away, or asked nonsense: that is no error of the daemon."""
        log.debug("a connection to the monitoring port broke", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S

    def log_message(self, *_: Any) -> None:
        """Nothing: a scrape is not news."""
