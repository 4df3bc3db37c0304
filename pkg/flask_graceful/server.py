"""`Server`: Go's http.Server for a WSGI application.

Owns the listeners being served, the connections, and the way to the end: `shutdown` and `close`.
What a connection does is in `connection`, which threads do it in `crew`.

Rules: names, order and results are Go's (rows L, S, C of the specification); what Go returns as an
error is raised here. A server that was shut down or closed serves never again.
"""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
import typing as t

from .connection import Connection, ConnState
from .crew import Crew
from .listeners import Listener, listen, parse_address
from .poller import NEVER, Deadlines, new_poller
from .settings import Settings
from .wsgi import base_environ

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger("flask_graceful")

# Connections taken from one listener before others get their turn.
ACCEPT_BATCH = 64
# Accept errors that pass, and the pause after them in seconds (row Y1).
_PASSING_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT}
MIN_PAUSE = 0.005
MAX_PAUSE = 1.0


class ServerClosed(Exception):
    """The server was shut down or closed: what `serve` ends with (Go's ErrServerClosed)."""

    def __init__(self, message: str = "http: Server closed") -> None:
        super().__init__(message)


class ShutdownTimeout(TimeoutError):
    """`shutdown` returned before the last request had finished. Nothing was cut."""


class Server:
    """A WSGI server with the life cycle of Go's http.Server.

    :param addr: `host:port`, `:port` (IPv4 and IPv6), `[v6]:port` or `unix:/path`; empty is `:80`.
    :param app: the WSGI application. May be replaced at any time, for the requests that follow.
    :param conn_state: called with a connection and its new `ConnState` at each change (rows K).
    :param options: any setting of :class:`Settings`, by its name.
    :raises ValueError: an address or setting can't be used; TypeError: it is unknown or of a
        wrong type.
    """

    # What the listeners speak, in environ and in the log.
    scheme = "http"

    def __init__(
        self,
        addr: str,
        app: WSGIApplication,
        *,
        conn_state: t.Callable[[Connection, ConnState], object] | None = None,
        **options: t.Any,
    ) -> None:
        self.settings = Settings.from_options(options)
        if not callable(app):
            raise TypeError(f"app: expected a WSGI application, got {app!r}")
        self.app = app
        self.address = parse_address(addr)
        self.conn_state = conn_state
        self.keeps_alive = True
        self.closes_idle = False
        self.is_stopping = False
        self.crew: Crew = None  # type: ignore[assignment]  # made when serving begins
        self._lock = threading.Lock()
        self._acceptors: set[Acceptor] = set()
        self._connections: set[Connection] = set()
        self._on_shutdown: list[t.Callable[[], object]] = []
        # Set while a shutdown has nothing left to wait for.
        self._drained = threading.Event()

    def listen_and_serve(self) -> t.NoReturn:
        """Bind the address and serve until `shutdown` or `close`.

        :raises ServerClosed: the normal end.
        :raises ListenError: the address can't be bound.
        """
        if self.is_stopping:
            raise ServerClosed
        self.serve(listen(self.address))

    def serve(self, listener: Listener | socket.socket) -> t.NoReturn:
        """Serve a listening socket until `shutdown` or `close`, which this does not wait for.

        Several listeners may be served at once, each in a thread of its own. The listener is
        closed in every case (row L1).

        :raises ServerClosed: the normal end.
        :raises OSError: accepting failed for good; connections are served on (row L9).
        """
        if isinstance(listener, socket.socket):
            listener = Listener(listener, "")
        self._start(listener).wait()

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop without cutting a request: Go's Shutdown (rows S).

        Closes the listeners once their queues are empty, starts the functions of
        `register_on_shutdown`, closes idle connections, and waits for the others.

        :param timeout: seconds to wait; None waits for ever.
        :raises ShutdownTimeout: requests are still running. They go on; `close` cuts them.
        """
        self._begin_shutdown(drain_queues=True)
        self._run_shutdown_hooks()
        self._retire_connections()
        if not self._drained.wait(timeout):
            raise ShutdownTimeout(
                f"{len(self._connections)} connections still active after {timeout:g} seconds"
            )

    def close(self) -> None:
        """Cut everything at once: listeners and connections (rows C). Handlers run on alone."""
        self._begin_shutdown(drain_queues=False)
        for connection in self.connections():
            connection.abort()
        with self._lock:
            self._connections.clear()
        self._settle()

    def register_on_shutdown(self, func: t.Callable[[], object]) -> None:
        """Have `func` started, in a thread of its own, by each `shutdown` (row S17)."""
        self._on_shutdown.append(func)

    def set_keep_alives_enabled(self, enabled: bool) -> None:
        """Switch keep-alive on or off; off closes what is idle (rows KA)."""
        if self.is_stopping:
            return
        self.keeps_alive = enabled
        self.closes_idle = not enabled
        if not enabled:
            for connection in self.connections():
                connection.retire()

    def connections(self) -> list[Connection]:
        """The connections of this moment."""
        with self._lock:
            return list(self._connections)

    def on_state(self, connection: Connection, state: ConnState) -> None:
        """Called by connections at each change of their state."""
        if state >= ConnState.HIJACKED:
            with self._lock:
                self._connections.discard(connection)
        if self.conn_state is not None:
            try:
                self.conn_state(connection, state)
            except Exception:
                log.exception("http: conn_state failed for %r", connection)
        if state >= ConnState.HIJACKED and self.is_stopping:
            self._settle()

    def _start(self, listener: Listener) -> Acceptor:
        """Begin to serve a listener."""
        acceptor = Acceptor(self, listener)
        with self._lock:
            if self.is_stopping:
                listener.close()
                raise ServerClosed
            if self.crew is None:
                self.crew = Crew(new_poller(), self.settings.threads)
            self._acceptors.add(acceptor)
        self.crew.start()
        acceptor.start()
        return acceptor

    def _begin_shutdown(self, drain_queues: bool, kept: t.Collection[str] = ()) -> None:
        """Accept no more.

        :param drain_queues: first take the connections that the kernel let in already.
        :param kept: listeners, by the address asked for, that another process goes on serving:
            their queues and files are left to it.
        """
        with self._lock:
            self.is_stopping = True
            self.keeps_alive = False
            acceptors = list(self._acceptors)
        for acceptor in acceptors:
            is_kept = acceptor.listener.requested in kept
            acceptor.stop(drain_queues and not is_kept, unlink=not is_kept)
        self._settle()

    def _run_shutdown_hooks(self) -> None:
        for func in list(self._on_shutdown):
            threading.Thread(target=func, name="graceful-on-shutdown", daemon=True).start()

    def _retire_connections(self) -> None:
        """Close what is idle, now and from now on."""
        self.closes_idle = True
        for connection in self.connections():
            connection.retire()

    def _add_connection(self, connection: Connection) -> None:
        with self._lock:
            self._connections.add(connection)
        self.on_state(connection, ConnState.NEW)
        try:
            connection.start()
        except OSError as error:
            log.error("http: %r can't be polled: %s", connection, error)

    def _forget_acceptor(self, acceptor: Acceptor) -> None:
        with self._lock:
            self._acceptors.discard(acceptor)
        self._settle()

    def _settle(self) -> None:
        """When nothing is left of a server that was shut down, send its threads home."""
        with self._lock:
            if not self.is_stopping or self._acceptors or self._connections:
                return
        if self.crew is not None:
            self.crew.stop()
        self._drained.set()


class Acceptor:
    """One listener being served. `handle` and `on_deadline` are called by the crew."""

    def __init__(self, server: Server, listener: Listener) -> None:
        self.listener = listener
        self.deadline = NEVER
        self.slot = Deadlines.NO_SLOT
        self._server = server
        self._base = base_environ(
            listener.host, str(listener.port), server.scheme, server.settings.threads
        )
        self._pause = 0.0
        self._lock = threading.Lock()
        self._is_over = False
        self.error: Exception = ServerClosed()
        self._ended = threading.Event()

    def __repr__(self) -> str:
        return f"<accepting on {self.listener!r}>"

    def has_failed(self) -> bool:
        """Did accepting end by an error, and not by a shutdown?"""
        return self._is_over and not isinstance(self.error, ServerClosed)

    def start(self) -> None:
        with self._lock:
            if not self._is_over:
                self._server.crew.poller.register_level(self.listener.fileno(), self)

    def wait(self) -> t.NoReturn:
        """Wait for the end of serving; raises its reason."""
        try:
            self._ended.wait()
        finally:
            self.stop(drain_queue=False)
        raise self.error

    def stop(self, drain_queue: bool, unlink: bool = True) -> None:
        """Accept no more. With `drain_queue`, first take those whom the kernel let in already."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            poller = self._server.crew.poller
            poller.unregister(self.listener.fileno())
            poller.deadlines.forget(self)
            try:
                if drain_queue:
                    self._accept(NEVER)
            except OSError as error:
                log.warning("http: Accept error: %s; while emptying the queue", error)
            finally:
                self.listener.close(unlink)
        self._ended.set()
        self._server._forget_acceptor(self)

    def handle(self, mask: int) -> None:
        if not self._lock.acquire(False):
            return
        failed: OSError | None = None
        try:
            if not self._is_over:
                self._accept(ACCEPT_BATCH)
                self._pause = 0.0
        except OSError as error:
            if error.errno in _PASSING_ERRORS:
                self._rest(error)
            else:
                failed = error
        finally:
            self._lock.release()
        if failed is not None:
            self.error = failed
            self.stop(drain_queue=False)

    def on_deadline(self) -> None:
        """The pause after an accept error is over."""
        self.deadline = NEVER
        self.start()

    def _accept(self, most: float) -> None:
        count = 0
        while count < most:
            try:
                sock, peer = self.listener.accept()
            except BlockingIOError:
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            count += 1
            self._server._add_connection(Connection(self._server, sock, peer, self._base))

    def _rest(self, error: OSError) -> None:
        """Pause as Go does, without polling: a full descriptor table must not spin."""
        self._pause = min(max(self._pause * 2, MIN_PAUSE), MAX_PAUSE)
        log.warning("http: Accept error: %s; retrying in %gms", error, self._pause * 1000)
        poller = self._server.crew.poller
        poller.unregister(self.listener.fileno())
        self.deadline = time.monotonic() + self._pause
        poller.schedule(self)
