"""One listener being served: connections from the kernel's queue to the server.

Owns accepting, the pause after an accept error, and the part of environ that a listener's
connections share.

Strategy: a crew's thread takes what the queue holds, up to a limit, and goes on to other work. A
connection begins its life here and nothing is read from it here, so no client can hold the queue.

Rules: errors that pass cause a pause, as in Go (row Y1); others end the serving and leave open
connections alone (row L9). A queue that nobody goes on with is emptied before it is closed, with
the door shut first, so that whoever was let in is served. While another process serves the same
socket, accepting rests and the socket stays, since that process may die. Of several processes that
accept from one queue, whoever has more connections than others steps aside for a moment (`shares`).
"""

from __future__ import annotations

import errno
import logging
import threading
import time
import typing as t

from .connection import Connection
from .deadlines import NEVER, Deadlines
from .errors import ServerClosed
from .listeners import join_host_port, peer_name, plain_host
from .poller import wait_ready
from .secure import SecureConnection
from .shares import TICK, Turn
from .tls import failure_text
from .wire import TLSWire, Wire
from .wsgi import base_environ

if t.TYPE_CHECKING:
    import socket

    from _typeshed.wsgi import WSGIEnvironment

    from .handover import Parcel
    from .listeners import Listener
    from .server import Server
    from .tls import Credentials

log = logging.getLogger("flask_graceful")

# How long a queue must stay empty, in seconds, until it is believed to be.
QUIET_TIME = 0.01
# How long clients are waited for whose handshake had begun when the door was shut. It ends within a
# round trip, and then they believe that they are in.
HANDSHAKE_TIME = 0.5
# How long a stop tries to make room for who waits when the system has none, in seconds.
ROOM_TIME = 0.1
# The most that Linux lets a queue hold unless told otherwise (SOMAXCONN).
MAX_QUEUE = 4096
# Connections taken from one listener before others get their turn.
ACCEPT_BATCH = 64
# Accept errors that pass, and the pause after them in seconds (row Y1).
_PASSING_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT}
MIN_PAUSE = 0.005
MAX_PAUSE = 1.0
# Local addresses whose environ is kept; no usual machine has more.
MAX_LOCAL = 64


class ContextError(TypeError):
    """A context function returned no entries (row Y3)."""


class Acceptor:
    """One listener being served. `handle` and `on_deadline` are called by the crew.

    :param given: the listener as the user gave it, for `base_context`.
    :param credentials: what TLS is served with; None: plain HTTP.
    :raises ContextError: `base_context` returned no entries.
    """

    def __init__(
        self,
        server: Server,
        listener: Listener,
        given: object,
        credentials: Credentials | None = None,
    ) -> None:
        self.listener = listener
        listener.probe_clients(server.settings.tcp_keep_alive)
        self.deadline = NEVER
        self.slot = Deadlines.NO_SLOT
        self._server = server
        self._credentials = credentials
        self._base = self._make_base(given)
        self._bases: dict[str, WSGIEnvironment] = {}
        self._pause = 0.0
        self._rests = True
        # Left to other workers for a moment, and not in the poller?
        self._is_aside = False
        self._turn = None if server.shares is None else Turn(server.shares)
        # Whoever ends a connection may start it again, also in the middle of accepting.
        self._lock = threading.RLock()
        self._is_over = False
        self.error: Exception = ServerClosed()
        self._ended = threading.Event()

    def __repr__(self) -> str:
        return f"<accepting on {self.listener!r}>"

    def has_failed(self) -> bool:
        """Did accepting end by an error, and not by a shutdown?"""
        return self._is_over and not isinstance(self.error, ServerClosed)

    @property
    def is_plain(self) -> bool:
        """Are connections served without TLS?"""
        return self._credentials is None

    def start(self) -> None:
        """Accept, or accept again after a `rest`."""
        with self._lock:
            if not self._is_over and self._rests and not self._server.is_stopping:
                self._rests = False
                self.listener.reopen()
                if self._turn is not None:
                    self._turn.shares.enter()
                self._watch()

    def rest(self) -> None:
        """Leave the queue to another process until `start`, or for good."""
        with self._lock:
            if not self._is_over:
                self._rest_locked()

    def adopt(self, parcel: Parcel, stays: bool) -> None:
        """Go on with a connection that another process has begun, or that comes back from one.

        :param stays: it is not to go to another one.
        """
        if self.listener.requested in self._server.moving and not stays:
            # Nobody looks at it here: what it has to ask is for the newest process.
            self._server.hand_over(parcel._replace(origin=self.listener.requested))
            return
        try:
            connection = self._connection(parcel.sock, parcel.peer)
        except ContextError as error:
            log.error("http: %s", error)
            return
        if connection is not None:
            connection.restore(parcel, stays)
            self._server._add_connection(connection)
            if parcel.data or self._server.is_stopping:
                # No edge tells of bytes that were received elsewhere, or that it is to go.
                self._server.crew.post(connection)

    def wait(self) -> t.NoReturn:
        """Wait for the end of serving; raises its reason."""
        try:
            self._ended.wait()
        finally:
            self.stop(drain_queue=False)
        raise self.error

    def stop(self, drain_queue: bool, unlink: bool = True) -> None:
        """Accept no more, for good.

        :param drain_queue: first shut the door, and take those whom the kernel let in already.
        :param unlink: remove a Unix socket's file.
        """
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            self._rest_locked()
            try:
                if drain_queue:
                    self._empty_queue()
            except (OSError, ContextError) as error:
                log.warning("http: Accept error: %s; while emptying the queue", error)
            try:
                self.listener.close(unlink)
            except OSError as error:
                # Whoever waits for the end is told of it all the same (row L10).
                log.warning("http: closing %r: %s", self.listener, error)
        self._ended.set()
        self._server._forget_acceptor(self)

    def handle(self, mask: int) -> None:
        if not self._lock.acquire(False):
            return
        failed: Exception | None = None
        try:
            if not self._is_over and not self._rests and not self._is_aside:
                self._accept(ACCEPT_BATCH)
                self._pause = 0.0
        except OSError as error:
            if error.errno in _PASSING_ERRORS:
                self._back_off(error)
            else:
                failed = error
        except ContextError as error:
            failed = error
        finally:
            self._lock.release()
        if failed is not None:
            self.error = failed
            self.stop(drain_queue=False)

    def on_deadline(self) -> None:
        """The pause after an accept error is over, or a tick of those that are left to others."""
        self.deadline = NEVER
        with self._lock:
            if self._is_aside:
                self._come_back()
            else:
                self.start()

    def _watch(self) -> None:
        """Be told as long as somebody is in the queue, whoever was told of it before."""
        self._server.crew.poller.register_level(self.listener.fileno(), self)

    def _rest_locked(self) -> None:
        poller = self._server.crew.poller
        if not self._rests:
            self._rests = True
            if self._turn is not None:
                self._turn.shares.leave()
            if not self._is_aside:
                poller.unregister(self.listener.fileno())
            self._is_aside = False
        poller.deadlines.forget(self)

    def _may_take(self) -> bool:
        """Is there room for one more, and no other worker that should have it?"""
        if not self._server.has_room(self):
            self._rest_locked()
            return False
        if self._turn is not None and not self._turn.is_ours():
            self._is_aside = True
            self._server.crew.poller.unregister(self.listener.fileno())
            self._turn.pass_on()
            self._look_in_a_tick()
            return False
        return True

    def _look_in_a_tick(self) -> None:
        self.deadline = time.monotonic() + TICK
        self._server.crew.poller.schedule(self, is_exact=True)

    def _come_back(self) -> None:
        """Accept again when it is our turn. Whatever fails, the queue is looked at later."""
        assert self._turn is not None
        try:
            if self._turn.has_come_back(lambda: wait_ready(self.listener.sock, False, 0)):
                self._watch()
                self._is_aside = False
        finally:
            if self._is_aside:
                self._look_in_a_tick()

    def _empty_queue(self) -> None:
        """Let nobody in any more, and take all who are in or have a foot in the door."""
        may_grow = self.listener.shut()
        until = time.monotonic() + HANDSHAKE_TIME
        # Of a queue that others fill as well, what was in it is enough.
        most = NEVER if self.listener.is_shut else MAX_QUEUE
        while True:
            self._take_all(most)
            now = time.monotonic()
            if not may_grow:
                return
            if not wait_ready(self.listener.sock, False, now + QUIET_TIME):
                # Asked before the last look: who is not awaited now has come, or never will.
                may_grow = now < until and self.listener.is_awaited()

    def _take_all(self, most: float) -> None:
        """Take all that are in the queue, beyond every limit.

        :raises OSError: the system can't.
        """
        until = time.monotonic() + ROOM_TIME
        while True:
            try:
                self._accept(most, heeds_room=False)
                return
            except OSError as error:
                if error.errno not in _PASSING_ERRORS or time.monotonic() > until:
                    raise
            # Those who have nothing to ask make room for those who wait.
            for connection in self._server.connections():
                connection.retire()
            time.sleep(QUIET_TIME)

    def _accept(self, most: float, heeds_room: bool = True) -> None:
        """Take up to `most` connections, and no more than the server has room for."""
        count = 0
        while count < most:
            if heeds_room and not self._may_take():
                return
            try:
                sock, peer = self.listener.accept()
            except BlockingIOError:
                if self._turn is not None:
                    self._turn.is_over()
                return
            except (ConnectionAbortedError, InterruptedError):
                continue
            count += 1
            connection = self._connection(sock, peer)
            if connection is not None:
                self._server._add_connection(connection)

    def _connection(self, sock: socket.socket, peer: t.Any) -> Connection | None:
        """A new connection; None when it ended before it began."""
        server = self._server
        most = server.settings.max_header_bytes
        base = self._base_for(sock)
        connection: Connection
        if self._credentials is None:
            wire = Wire(sock, most, server.crew.lend)
            connection = Connection(server, wire, peer, base, self.listener.requested)
        else:
            try:
                secure = TLSWire(sock, most, self._credentials.context, server.crew.lend)
            except OSError as error:
                name, reason = peer_name(peer), failure_text(error)
                log.warning("http: TLS handshake error from %s: %s", name, reason)
                return None
            connection = SecureConnection(server, secure, peer, base)
        if server.conn_context is not None and not self._add_context(connection, base.copy()):
            return None
        return connection

    def _add_context(self, connection: Connection, entries: WSGIEnvironment) -> bool:
        """Ask `conn_context` for the connection's entries; False ends it (row Y3).

        :raises ContextError: it returned no entries.
        """
        assert self._server.conn_context is not None
        try:
            added = self._server.conn_context(entries, connection)
            if added is None:
                raise ContextError("ConnContext returned nil")
            connection.add_entries(added)
        except ContextError:
            connection.discard()
            raise
        except Exception:
            log.exception("http: conn_context failed for %r", connection)
            connection.discard()
            return False
        return True

    def _make_base(self, given: object) -> WSGIEnvironment:
        """environ of this listener's requests (rows Y3, Y4)."""
        server, listener = self._server, self.listener
        scheme = "http" if self._credentials is None else "https"
        port = str(listener.port)
        base = base_environ(listener.host, port, scheme, server.settings.threads)
        if self._credentials is not None:
            # As Apache has it, for programs older than PEP 3333.
            base["HTTPS"] = "on"
        base["flask_graceful.server"] = server
        base["flask_graceful.local_addr"] = listener.address
        base["flask_graceful.shutdown"] = server.shutdown_event
        if server.base_context is not None:
            entries = server.base_context(given)
            if entries is None:
                raise ContextError("BaseContext returned a nil context")
            base.update(entries)
        return base

    def _base_for(self, sock: socket.socket) -> WSGIEnvironment:
        """The same, with the address that the client has connected to."""
        listener = self.listener
        if listener.host not in ("::", "0.0.0.0"):
            return self._base
        try:
            host = plain_host(sock.getsockname()[0])
        except OSError:
            return self._base
        base = self._bases.get(host)
        if base is None:
            address = join_host_port(host, listener.port)
            base = {**self._base, "flask_graceful.local_addr": address}
            if len(self._bases) < MAX_LOCAL:
                self._bases[host] = base
        return base

    def _back_off(self, error: OSError) -> None:
        """Pause as Go does, without polling: a full descriptor table must not spin."""
        self._pause = min(max(self._pause * 2, MIN_PAUSE), MAX_PAUSE)
        pause = "1s" if self._pause == MAX_PAUSE else f"{self._pause * 1000:g}ms"
        log.warning("http: Accept error: %s; retrying in %s", error, pause)
        self._rest_locked()
        self.deadline = time.monotonic() + self._pause
        self._server.crew.poller.schedule(self)
