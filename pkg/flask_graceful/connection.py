"""One client connection.

Owns a client's socket: its states, its buffers and its deadlines, from accept to close.

Strategy: whoever holds the claim (a lock that nobody waits for) is the connection's owner. A
crew's thread claims it when the poller reports it, reads, and once a head is complete serves the
request in the same call. An event for a connection that is claimed is noted, and its owner looks
again before it goes. What needs the client's patience and not the application (the end of a
response, an unread body, the wait before a close) is a phase with a deadline: the poller reports
it and no thread waits.

Rules: the socket is non-blocking for life. Only an owner closes it; others shut it down, which
the owner notices. A thread waits for its client only while the application asks it to: to read
the body, or to send a block that is not the last.
"""

from __future__ import annotations

import enum
import logging
import socket
import threading
import time
import typing as t
from functools import partial

from .http11 import HeadBuffer, HeadParser, ProtocolError, body_decoder
from .poller import HANGUP, NEVER, Deadlines, wait_ready
from .wsgi import Response, input_stream, request_environ

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from .crew import Crew
    from .http11 import BodyDecoder, Request
    from .settings import Settings

log = logging.getLogger("flask_graceful")

RECEIVE_SIZE = 65536
# An unread body up to this size is read away, so that the connection can go on (rows B8, B9).
MAX_DRAIN = 256 * 1024
DRAIN_TIME = 5.0
# How long a closed connection still takes what the client sends, so that the client can read the
# answer before it sees a reset (RFC 9112, section 9.6).
LINGER_TIME = 2.0
# How long a connection that has not sent a whole request holds a shutdown (row S3).
NEW_GRACE = 5.0


class ConnState(enum.IntEnum):
    """What a connection does; the values of Go's ConnState (row K1)."""

    NEW = 0
    ACTIVE = 1
    IDLE = 2
    HIJACKED = 3
    CLOSED = 4

    def __str__(self) -> str:
        return self.name.lower()


TRANSITIONS = {
    ConnState.NEW: {ConnState.ACTIVE, ConnState.CLOSED},
    ConnState.ACTIVE: {ConnState.IDLE, ConnState.HIJACKED, ConnState.CLOSED},
    ConnState.IDLE: {ConnState.ACTIVE, ConnState.CLOSED},
    ConnState.HIJACKED: set[ConnState](),
    ConnState.CLOSED: set[ConnState](),
}


class _Phase(enum.Enum):
    """What the connection waits for when it has no owner."""

    HEAD = enum.auto()
    FLUSH = enum.auto()
    DRAIN = enum.auto()
    LINGER = enum.auto()
    OVER = enum.auto()


class Disconnected(ConnectionError):
    """The client is gone, silent for too long, or sent what is no body."""


class Host(t.Protocol):
    """What a connection needs of the server that it belongs to."""

    app: WSGIApplication
    settings: Settings
    crew: Crew
    # False: each response is its connection's last.
    keeps_alive: bool

    def on_state(self, connection: Connection, state: ConnState) -> None:
        """The connection is in a new state."""


class Connection:
    """The server's side of one connection. `handle` and `on_deadline` are the poller's doors;
    `abort` and `retire` may be called from any thread; all other methods are the owner's."""

    __slots__ = (
        "_base",
        "_began",
        "_broken",
        "_claim",
        "_decoder",
        "_fd",
        "_has_more",
        "_host",
        "_hung_up",
        "_inbox",
        "_look_again",
        "_must_continue",
        "_phase",
        "_response",
        "_tail",
        "_write_deadline",
        "accepted",
        "deadline",
        "peer",
        "request",
        "slot",
        "sock",
        "state",
    )

    def __init__(self, host: Host, sock: socket.socket, peer: t.Any, base: WSGIEnvironment) -> None:
        self.sock = sock
        self.peer = peer
        self.state = ConnState.NEW
        # The request being served, for those who ask what holds the server up.
        self.request: Request | None = None
        self.deadline = NEVER
        self.slot = Deadlines.NO_SLOT
        self.accepted = self._began = time.monotonic()
        self._host = host
        self._base = base
        self._fd = sock.fileno()
        self._claim = threading.Lock()
        self._look_again = False
        # More may be in the socket, or its end, though no further edge will say so.
        self._has_more = False
        self._hung_up = False
        self._phase = _Phase.HEAD
        self._inbox = HeadBuffer(host.settings.max_header_bytes)
        self._tail = memoryview(b"")
        self._decoder: BodyDecoder | None = None
        self._response: Response | None = None
        self._must_continue = False
        self._broken = False
        self._write_deadline = NEVER

    def __repr__(self) -> str:
        return f"<Connection {self.peer_name()} {self.state}>"

    def peer_name(self) -> str:
        return f"{self.peer[0]}:{self.peer[1]}" if isinstance(self.peer, tuple) else "@"

    def request_age(self) -> float:
        """Seconds since the request being served began to arrive."""
        return time.monotonic() - self._began

    def start(self) -> None:
        """Begin to be polled."""
        settings = self._host.settings
        self.deadline = _after(self.accepted, settings.read_header_timeout or settings.read_timeout)
        if self.deadline < NEVER:
            self._host.crew.poller.schedule(self)
        self._host.crew.poller.register(self._fd, self)

    def handle(self, mask: int) -> None:
        """The poller has seen something on the socket, or somebody asks to look."""
        if mask & HANGUP:
            self._hung_up = True
        while True:
            if not self._claim.acquire(False):
                self._look_again = True
                # The owner may have looked for the last time before the note was made.
                if not self._claim.acquire(False):
                    return
            self._look_again = False
            try:
                self._step()
            except Exception:
                log.exception("http: internal error in %r", self)
                self._end()
            finally:
                self._claim.release()
            if not self._look_again:
                return

    def on_deadline(self) -> None:
        """Time is up: silence, in every phase (row TM13)."""
        if not self._claim.acquire(False):
            # Its owner is at work, and schedules the deadline that holds then.
            return
        try:
            if self._phase is not _Phase.OVER:
                if self.deadline <= time.monotonic():
                    self._end()
                else:
                    self._park()
        finally:
            self._claim.release()

    def abort(self) -> None:
        """Cut the connection, whatever it does. The application is not interrupted."""
        if self._claim.acquire(False):
            try:
                self._end()
            finally:
                self._claim.release()
        else:
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Closed by its owner or left by the client: cut already.
                pass

    def retire(self, new_grace: float = NEW_GRACE) -> None:
        """The server shuts down: close if idle; bytes that were received are not idle."""
        if not self._claim.acquire(False):
            return
        try:
            if self._phase is not _Phase.HEAD:
                return
            if self.state is ConnState.IDLE and not self._inbox.data:
                if self._has_input():
                    self._host.crew.post(self)
                else:
                    self._end()
                return
            since = self.accepted if self.state is ConnState.NEW else time.monotonic()
            self.deadline = min(self.deadline, since + new_grace)
            self._park()
        finally:
            self._claim.release()

    def _has_input(self) -> bool:
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    # What an owner does when it has claimed the connection.

    def _step(self) -> None:
        phase = self._phase
        if phase is _Phase.HEAD:
            self._read_head()
        elif phase is _Phase.FLUSH:
            self._flush()
        elif phase is _Phase.DRAIN:
            self._drain()
        elif phase is _Phase.LINGER:
            self._linger()

    def _park(self) -> None:
        """Let the poller report the connection from now on."""
        poller = self._host.crew.poller
        poller.arm(self._fd, self._phase is _Phase.FLUSH)
        if self.deadline * Deadlines.PER_SECOND < self.slot - 1:
            poller.schedule(self)

    def _receive_some(self) -> bytes | None:
        """Bytes from the socket; b"" at its end, None when there are none now."""
        try:
            data = self.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            self._has_more = False
            return None
        except OSError:
            return b""
        if len(data) == RECEIVE_SIZE:
            self._has_more = True
        return data

    def _read_head(self) -> None:
        data = self._receive_some()
        if data == b"" and not self._inbox.data:
            self._end()
            return
        try:
            head = self._inbox.take(data or b"")
            if head is not None:
                self._serve(_parser.value.parse(head))
            elif data == b"":
                self._end()
            else:
                self._await_rest_of_head()
        except ProtocolError as error:
            self._refuse(error)

    def _await_rest_of_head(self) -> None:
        if self._inbox.data and self.state is ConnState.IDLE and self._began == 0.0:
            # The first bytes of another request end the idle time (rows TM2, TM7).
            settings = self._host.settings
            self._began = time.monotonic()
            limit = settings.read_header_timeout or settings.read_timeout
            self.deadline = _after(self._began, limit)
        self._go_on()

    def _go_on(self) -> None:
        """Wait for the poller; or be handled again when it might not report what is there."""
        self._park()
        if self._has_more or self._hung_up:
            self._has_more = False
            self._host.crew.repeat(self)

    def _serve(self, request: Request) -> None:
        host = self._host
        now = time.monotonic()
        self._began = self._began or now
        self.deadline = NEVER
        self._write_deadline = _after(now, host.settings.write_timeout)
        self.request = request
        self._decoder = body_decoder(request)
        self._must_continue = request.expect_continue
        self._set_state(ConnState.ACTIVE)
        environ = request_environ(self._base, request)
        if isinstance(self.peer, tuple):
            environ["REMOTE_ADDR"] = _plain_host(self.peer[0])
            environ["REMOTE_PORT"] = str(self.peer[1])
        receive = partial(self._receive_body, self._decoder) if self._decoder else None
        environ["wsgi.input"] = input_stream(receive)
        response = self._response = Response(request, self._send, self._is_last)
        try:
            response.run(host.app, environ)
        except BaseException as error:
            self._fail(response, error)
        self._flush()

    def _fail(self, response: Response, error: BaseException) -> None:
        """The application raised: 500 while nothing was sent, else the connection's end."""
        if not self._broken and not isinstance(error, Disconnected):
            log.error("http: panic serving %s: %s", self.peer_name(), error, exc_info=error)
        if response.head_sent or self._broken:
            self._broken = True
            return
        try:
            response.fail()
        except Disconnected:
            self._broken = True

    def _is_last(self) -> bool:
        """Must the response being started be the last of this connection?"""
        if self._decoder is not None and not self._decoder.done:
            remaining = self._decoder.remaining()
            if self._must_continue or (remaining is not None and remaining > MAX_DRAIN):
                return True
        # What was received before the shutdown is still served (promise 3).
        return not self._host.keeps_alive and not self._inbox.data

    def _receive_body(self, decoder: BodyDecoder) -> bytes:
        """The next bytes of the request's body; b"" at its end. Called by the application."""
        if decoder is not self._decoder:
            raise ValueError("the request is over: its body can't be read any more")
        if self._must_continue:
            self._must_continue = False
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n", False)
        deadline = _after(self._began, self._host.settings.read_timeout)
        inbox = self._inbox.data
        while not decoder.done:
            try:
                content = decoder.decode(inbox)
            except ProtocolError as error:
                self._broken = True
                raise Disconnected(f"the request's body is malformed: {error}") from error
            if content:
                return content
            if not decoder.done:
                inbox += self._wait_for_bytes(deadline)
        return b""

    def _wait_for_bytes(self, deadline: float) -> bytes:
        while True:
            data = self._receive_some()
            if data:
                return data
            if data == b"":
                self._broken = True
                raise Disconnected("the client closed the connection within its request")
            if not wait_ready(self.sock, False, deadline):
                self._broken = True
                raise Disconnected("the request's body took longer than read_timeout")

    def _send(self, data: bytes, is_last: bool) -> None:
        """Send; wait for the client unless these are the response's last bytes."""
        self._must_continue = False
        rest = memoryview(data)
        while True:
            try:
                rest = rest[self.sock.send(rest) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._broken = True
                raise Disconnected("the client closed the connection") from error
            if not rest or is_last:
                self._tail = rest
                return
            if not wait_ready(self.sock, True, self._write_deadline):
                self._broken = True
                raise Disconnected("the response took longer than write_timeout")

    def _flush(self) -> None:
        """Send what is left of a response, then go on to what follows it."""
        while self._tail and not self._broken:
            try:
                self._tail = self._tail[self.sock.send(self._tail) :]
            except BlockingIOError:
                self._phase = _Phase.FLUSH
                self.deadline = self._write_deadline
                self._park()
                return
            except OSError:
                self._broken = True
        self._tail = memoryview(b"")
        if self._broken:
            self._end()
        else:
            self._after_response()

    def _after_response(self) -> None:
        response, decoder = self._response, self._decoder
        assert response is not None
        body_is_over = decoder is None or decoder.done
        if not response.keep_alive or not (body_is_over or self._can_drain()):
            if body_is_over and not self._inbox.data:
                self._end()
            else:
                self._start_linger()
        elif body_is_over:
            self._become_idle()
        else:
            self._phase = _Phase.DRAIN
            self.deadline = time.monotonic() + DRAIN_TIME
            self._drain()

    def _can_drain(self) -> bool:
        assert self._decoder is not None
        remaining = self._decoder.remaining()
        return not self._must_continue and (remaining is None or remaining <= MAX_DRAIN)

    def _drain(self) -> None:
        """Read away a body that the application did not want."""
        decoder = self._decoder
        assert decoder is not None
        budget = MAX_DRAIN
        data: bytes | None = b"-"
        while not decoder.done:
            try:
                budget -= len(decoder.decode(self._inbox.data))
            except ProtocolError:
                self._start_linger()
                return
            if decoder.done:
                break
            if budget < 0:
                self._start_linger()
                return
            data = self._receive_some()
            if data is None:
                self._park()
                return
            if not data:
                self._end()
                return
            self._inbox.data += data
        self._become_idle()

    def _become_idle(self) -> None:
        host = self._host
        self.request = self._response = self._decoder = None
        if not host.keeps_alive and not self._inbox.data:
            # The response began before the shutdown did, so its head did not say close.
            self._end()
            return
        self._phase = _Phase.HEAD
        self._set_state(ConnState.IDLE)
        self._began = 0.0
        settings = host.settings
        self.deadline = _after(time.monotonic(), settings.idle_timeout or settings.read_timeout)
        if self._inbox.data:
            # Another request came with this one; other connections come before it.
            self._has_more = True
        self._go_on()

    def _refuse(self, error: ProtocolError) -> None:
        """Answer a request that can't be one, and read no further."""
        self._set_state(ConnState.ACTIVE)
        body = f"{error.status}: {error}\n".encode("latin-1", "replace")
        head = (
            f"HTTP/1.1 {error.status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        try:
            self.sock.send(head.encode("latin-1") + body)
        except OSError:
            # The client does not listen; the connection ends in any case.
            pass
        self._start_linger()

    def _start_linger(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._end()
            return
        self._phase = _Phase.LINGER
        self.request = self._response = self._decoder = None
        self._inbox.data.clear()
        self.deadline = time.monotonic() + LINGER_TIME
        self._linger()

    def _linger(self) -> None:
        """Discard what comes, a bounded part at a time, until the client closes too."""
        for _ in range(16):
            data = self._receive_some()
            if data is None:
                self._park()
                return
            if not data:
                self._end()
                return
        self._has_more = True
        self._go_on()

    def _end(self) -> None:
        if self._phase is _Phase.OVER:
            return
        self._phase = _Phase.OVER
        self.request = self._response = self._decoder = None
        self._tail = memoryview(b"")
        poller = self._host.crew.poller
        poller.unregister(self._fd)
        poller.deadlines.forget(self)
        self.sock.close()
        self._set_state(ConnState.CLOSED)

    def _set_state(self, state: ConnState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"connection can't go from {self.state} to {state}")
        self.state = state
        self._host.on_state(self, state)


class _Parser(threading.local):
    """One head parser for each thread."""

    def __init__(self) -> None:
        self.value = HeadParser()


_parser = _Parser()


def _after(start: float, timeout: float) -> float:
    return start + timeout if timeout else NEVER


def _plain_host(host: str) -> str:
    """An IPv4 client of a dual-stack socket, as IPv4."""
    return host[7:] if host.startswith("::ffff:") else host
