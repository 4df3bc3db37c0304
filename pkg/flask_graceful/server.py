"""`Server`: Go's http.Server for a WSGI application.

Owns the listeners being served, the connections, and the way to the end: `shutdown` and `close`.
How connections come in is in `acceptor`, what they do in `connection`, which threads do it in
`crew`.

Rules: names, order and results are Go's (rows L, S, C of the specification); what Go returns as an
error is raised here. A server that was shut down or closed serves never again.
"""

from __future__ import annotations

import logging
import socket
import threading
import typing as t
from contextlib import AbstractContextManager
from functools import partial

from .acceptor import Acceptor
from .connection import Connection, ConnState
from .crew import Crew
from .errors import ServerClosed as ServerClosed
from .exchange import Exchange
from .listeners import Listener, listen, parse_address
from .poller import new_poller
from .roster import Roster
from .settings import Settings, checked_hook, checked_timeout
from .timed import TimedExchange
from .timekeeper import Timekeeper
from .tls import Credentials, check_context
from .work import Work

if t.TYPE_CHECKING:
    import ssl

    from _typeshed.wsgi import WSGIApplication

    from .handover import Parcel
    from .running import RunningRequest
    from .shares import Shares

log = logging.getLogger("flask_graceful")

HTTPS_PORT = 443

Entries = t.Mapping[str, t.Any]


class ShutdownTimeout(TimeoutError):
    """`shutdown` returned before the last request had finished. Nothing was cut."""


class Server:
    """A WSGI server with the life cycle of Go's http.Server.

    :param addr: `host:port`, `:port` (IPv4 and IPv6), `[v6]:port` or `unix:/path`; empty is `:80`.
    :param app: the WSGI application.
    :param conn_state: called with a connection and its new `ConnState` at each change (rows K).
    :param ssl_context: what TLS is served with when no files are named; used as it is (row X4).
    :param base_context: called once with each listener that is served, as it was given; the
        entries that it returns are in the environ of all requests that come over it (row Y3).
    :param conn_context: called with the entries so far and each new connection, before it is
        served; the entries that it returns are added for this connection. Accepting waits for it.
    :param options: any setting of :class:`Settings`, by its name.
    :raises ValueError: an address or setting can't be used; TypeError: it is unknown or of a
        wrong type.
    """

    keeps_alive = True
    closes_idle = False
    is_stopping = False
    # Go knows none.
    grace = 0.0
    # See Host; a `GracefulServer` that has a successor fills it.
    moving: t.Container[str] = frozenset()
    # Listeners, by the address asked for, that another process goes on serving: their queues and
    # files are left to it.
    _left_to_others: t.Container[str] = frozenset()

    def __init__(
        self,
        addr: str,
        app: WSGIApplication,
        *,
        conn_state: t.Callable[[Connection, ConnState], object] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        base_context: t.Callable[[t.Any], Entries] | None = None,
        conn_context: t.Callable[[dict[str, t.Any], Connection], Entries] | None = None,
        **options: t.Any,
    ) -> None:
        self.settings = Settings.from_options(options)
        self.app = app
        self.address = parse_address(addr)
        self.conn_state = conn_state
        self.ssl_context = None if ssl_context is None else check_context(ssl_context)
        self.base_context = base_context
        self.conn_context = conn_context
        self.crew: Crew = None  # type: ignore[assignment]  # made when serving begins
        self._timekeeper = self._make_timekeeper()
        self._lock = threading.Lock()
        self._acceptors: set[Acceptor] = set()
        # What TLS listeners are served with, each once.
        self._credentials: list[Credentials] = []
        self._roster = Roster(self.settings.listen_limit)
        self._work = Work(self._changed)
        self._on_shutdown: list[t.Callable[[], object]] = []
        # Set when shutdown begins: `environ["flask_graceful.shutdown"]`; and when it is over.
        self.shutdown_event = threading.Event()
        self._drained = threading.Event()

    @property
    def shares(self) -> Shares | None:
        """Where the workers that serve the same listeners see how many connections each has. Set
        before serving; None: there are none."""
        return self._roster.shares

    @shares.setter
    def shares(self, shares: Shares | None) -> None:
        self._roster.shares = shares

    @property
    def app(self) -> WSGIApplication:
        """The application. Assigning another one swaps it between two requests, as Go's plugins
        do: those that have begun end with the old one.

        :raises TypeError: what is assigned is none.
        """
        return self._app

    @app.setter
    def app(self, app: WSGIApplication) -> None:
        if not callable(app):
            raise TypeError(f"app: expected a WSGI application, got {app!r}")
        self._app = app

    def listen_and_serve(self) -> t.NoReturn:
        """Bind the address and serve until `shutdown` or `close`.

        :raises ServerClosed: the normal end.
        :raises ListenError: the address can't be bound.
        """
        if self.is_stopping:
            raise ServerClosed
        self.serve(listen(self.address, self.settings.tcp_keep_alive))

    def listen_and_serve_tls(self, certfile: str = "", keyfile: str = "") -> t.NoReturn:
        """The same over TLS; an empty address is `:443` (row L6).

        :param certfile: the certificate in PEM, with the intermediate ones behind it; empty
            when the server was given an `ssl_context`.
        :param keyfile: its private key in PEM, not encrypted; empty: it is in `certfile` too.
        :raises CertificateFileError: a file can't be used; nothing was bound.
        """
        if self.is_stopping:
            raise ServerClosed
        credentials = self._load(certfile, keyfile)
        address = parse_address(self.address.text, HTTPS_PORT)
        listener = listen(address, self.settings.tcp_keep_alive)
        self._start(listener, credentials=credentials).wait()

    def serve(self, listener: Listener | socket.socket) -> t.NoReturn:
        """Serve a listening socket until `shutdown` or `close`, which this does not wait for.

        Several listeners may be served at once, each in a thread of its own. The listener is
        closed in every case (row L1).

        :raises ServerClosed: the normal end.
        :raises OSError: accepting failed for good; connections are served on (row L9).
        """
        self._start(_as_listener(listener), listener).wait()

    def serve_tls(
        self, listener: Listener | socket.socket, certfile: str = "", keyfile: str = ""
    ) -> t.NoReturn:
        """The same over TLS, with the files of `listen_and_serve_tls`.

        :raises CertificateFileError: a file can't be used; the listener is closed (row L7).
        """
        try:
            if self.is_stopping:
                raise ServerClosed
            credentials = self._load(certfile, keyfile)
        except BaseException:
            _as_listener(listener).close()
            raise
        self._start(_as_listener(listener), listener, credentials).wait()

    def reload_certificate(self) -> None:
        """Read certificates and keys again; handshakes from now on use them. From any thread.

        Connections that are open keep what they have. All files are read before one is used.

        :raises CertificateFileError: a file can't be used; the old ones stay in force.
        :raises RuntimeError: no TLS is served with files.
        """
        with self._lock:
            with_files = [one for one in self._credentials if one.has_files]
        if not with_files:
            raise RuntimeError(
                "no certificate file is in use; a context of your own can be changed "
                "with its load_cert_chain()"
            )
        contexts = [one.load() for one in with_files]
        for one, context in zip(with_files, contexts, strict=True):
            one.context = context

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop without cutting a request: Go's Shutdown (rows S).

        Closes the listeners once their queues are empty, starts the functions of
        `register_on_shutdown`, closes idle connections, and waits for the others, and for what is
        counted by `track` and `spawn`.

        :param timeout: seconds to wait; None waits for ever.
        :raises ShutdownTimeout: requests are still running. They go on; `close` cuts them.
        """
        seconds = checked_timeout(timeout)
        self._begin_shutdown(drain_queues=True)
        self._run_shutdown_hooks()
        self._retire_connections()
        if not self._drained.wait(seconds):
            raise ShutdownTimeout(f"{self.what_is_left()} after {seconds:g} seconds")

    def close(self) -> None:
        """Cut everything at once: listeners and connections (rows C). Handlers run on alone."""
        self._begin_shutdown(drain_queues=False)
        for connection in self.connections():
            connection.abort()
        self._roster.clear()
        # What is counted runs on alone, as handlers do.
        self._finish()

    def track(self) -> AbstractContextManager[None]:
        """Count the block of a `with` as work that a shutdown waits for (row M4)."""
        return self._work.track()

    def spawn(
        self, func: t.Callable[..., object], *args: t.Any, **kwargs: t.Any
    ) -> threading.Thread:
        """Run a function in a thread of its own, as work that a shutdown waits for (row M4)."""
        return self._work.spawn(func, *args, **kwargs)

    @property
    def tracked(self) -> int:
        """How much work is counted by `track` and `spawn` now."""
        return self._work.count

    def what_is_left(self) -> str:
        """What a shutdown still waits for, in words."""
        text = f"{len(self._roster)} connections still active"
        return f"{text}, {self.tracked} tracked" if self.tracked else text

    def register_on_shutdown(self, func: t.Callable[[], object]) -> None:
        """Have `func` started, in a thread of its own, by each `shutdown` (row S17).

        :raises TypeError: it can't be called.
        """
        self._on_shutdown.append(checked_hook(func, "register_on_shutdown"))

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
        return self._roster.open()

    def running_requests(self) -> list[RunningRequest]:
        """The requests of this moment that have no complete response yet, the oldest first; those
        whose connection the application has taken over too. From any thread."""
        busy = [*self._roster.open(), *self._roster.taken()]
        running = [found for one in busy if (found := one.running()) is not None]
        return sorted(running, key=lambda request: -request.age)

    def on_overdue(self, request: RunningRequest) -> None:
        """A request has run for longer than `request_timeout_hard`, which is in the log. A process
        that can be replaced is. Called by the timekeeper's thread."""

    def on_state(self, connection: Connection, state: ConnState) -> None:
        """Called by connections at each change of their state."""
        if state is ConnState.HIJACKED:
            self._roster.take_over(connection)
        elif state > ConnState.HIJACKED:
            self._roster.remove(connection)
        if self.conn_state is not None:
            try:
                self.conn_state(connection, state)
            except Exception:
                log.exception("http: conn_state failed for %r", connection)
        if state >= ConnState.HIJACKED and self.is_stopping:
            self._changed()

    def on_hijack_over(self, connection: Connection) -> None:
        """Called by a connection that the application has left."""
        self._roster.remove(connection)
        if self.is_stopping:
            self._changed()

    def hand_over(self, parcel: Parcel) -> None:
        """Called by connections that move; without a successor none does."""
        raise AssertionError(f"{parcel!r} has nowhere to go")

    def has_room(self, acceptor: Acceptor) -> bool:
        """May one more connection be accepted (row H12)? If not, the acceptor is started later."""
        return self._roster.has_room(acceptor)

    def _make_timekeeper(self) -> Timekeeper | None:
        """Who looks at requests that take too long; None, and at no cost, without a limit."""
        soft, hard = self.settings.request_timeout, self.settings.request_timeout_hard
        self.new_exchange: t.Callable[..., Exchange] = Exchange
        if not soft and not hard:
            return None
        keeper = Timekeeper(soft, hard, self.on_overdue)
        self.new_exchange = partial(TimedExchange, keeper)
        return keeper

    def _load(self, certfile: str, keyfile: str) -> Credentials:
        credentials = Credentials(certfile, keyfile, self.ssl_context)
        with self._lock:
            self._credentials.append(credentials)
        return credentials

    def _start(
        self,
        listener: Listener,
        given: object = None,
        credentials: Credentials | None = None,
    ) -> Acceptor:
        """Begin to serve a listener, which is closed when that can't be."""
        acceptor = self._take_on(listener, given, credentials)
        acceptor.start()
        return acceptor

    def _take_on(
        self, listener: Listener, given: object = None, credentials: Credentials | None = None
    ) -> Acceptor:
        """Have everything ready to serve a listener.

        :param given: the listener as the user gave it; None: the same.
        :param credentials: what TLS is served with; None: plain HTTP.
        """
        try:
            acceptor = Acceptor(self, listener, given or listener, credentials)
            with self._lock:
                if self.is_stopping:
                    raise ServerClosed
                if self.crew is None:
                    self.crew = Crew(new_poller(), self.settings.threads)
                self._acceptors.add(acceptor)
        except BaseException:
            # Another process may go on with it.
            listener.close(unlink=not listener.inherited_as)
            raise
        self.crew.start()
        if self._timekeeper is not None:
            self._timekeeper.start()
        return acceptor

    def _begin_shutdown(self, drain_queues: bool) -> None:
        """Accept no more.

        :param drain_queues: first take the connections that the kernel let in already.
        """
        with self._lock:
            self.is_stopping = True
            self.keeps_alive = False
            acceptors = list(self._acceptors)
        for acceptor in acceptors:
            is_left = acceptor.listener.requested in self._left_to_others
            acceptor.stop(drain_queues and not is_left, unlink=not is_left)
        self.shutdown_event.set()
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
        self._roster.add(connection)
        self.on_state(connection, connection.state)
        try:
            connection.start()
        except OSError as error:
            log.error("http: %r can't be polled: %s", connection, error)

    def _forget_acceptor(self, acceptor: Acceptor) -> None:
        with self._lock:
            self._acceptors.discard(acceptor)
        self._changed()

    def _changed(self) -> None:
        """A listener, a connection or something else that a shutdown waits for is gone."""
        self._settle()

    def _settle(self) -> None:
        """When nothing is left of a server that was shut down, it is finished."""
        with self._lock:
            is_over = self.is_stopping and not self._acceptors
        # No acceptor is left that would add another one.
        if is_over and not self._drained.is_set() and self.is_empty():
            self._finish()

    def is_empty(self) -> bool:
        """Is there nothing that a shutdown would wait for, but listeners?"""
        return not len(self._roster) and not self._work.count

    def _finish(self) -> None:
        """Send the threads home."""
        if self.crew is not None:
            self.crew.stop()
        if self._timekeeper is not None:
            self._timekeeper.stop()
        self._drained.set()


def _as_listener(listener: Listener | socket.socket) -> Listener:
    if isinstance(listener, Listener):
        return listener
    # Others may have it too: only its closing is asked for.
    return Listener(listener, "", is_ours=False)
