"""One client connection.

Owns a connection's states and deadlines, from accept to close, or to the process that goes on
with it.

Strategy: the thread that the poller reports a connection to owns it (see `owned`), reads, and once
a head is complete serves the request in the same call. What needs the client's patience and not
the application (the end of a response, an unread body, the wait before a close) is a phase with a
deadline: the poller reports it and no thread waits.

Rules: a connection leaves for another process only between two requests, with the bytes that were
received for the next one.
"""

from __future__ import annotations

import logging
import threading
import time
import typing as t

from .deadlines import NEVER, after
from .errors import ProtocolError
from .exchange import Drained
from .handover import Parcel
from .hijack import Hijacker
from .http11 import HeadParser
from .listeners import peer_name, plain_host
from .owned import Owned
from .states import TRANSITIONS, Phase
from .states import ConnState as ConnState
from .wire import Disconnected
from .wsgi import refusal, request_environ

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .exchange import Exchange
    from .host import Host
    from .http11 import Request
    from .running import RunningRequest
    from .wire import Wire

log = logging.getLogger("flask_graceful")

# How long an unread body may take to come.
DRAIN_TIME = 5.0
# How long a closed connection still takes what the client sends, so that the client can read the
# answer before it sees a reset (RFC 9112, section 9.6).
LINGER_TIME = 2.0
# How long a connection that has not sent a whole request holds a shutdown (row S3).
NEW_GRACE = 5.0


class Connection(Owned):
    """The server's side of one connection. `abort` and `retire` may be called from any thread.

    :param origin: the listener that it came over, by the address asked for; "" when it can't go to
        another process.
    """

    __slots__ = (
        "_base",
        "_began",
        "_exchange",
        "_hijacker",
        "_is_aborted",
        "_stays_until",
        "accepted",
        "origin",
        "peer",
        "state",
    )

    def __init__(
        self, host: Host, wire: Wire, peer: t.Any, base: WSGIEnvironment, origin: str = ""
    ) -> None:
        super().__init__(host, wire, Phase.HEAD)
        self.peer = peer
        self.origin = origin
        self.state = ConnState.NEW
        self.accepted = self._began = time.monotonic()
        self._base = base
        if isinstance(peer, tuple):
            self.add_entries({"REMOTE_ADDR": plain_host(peer[0]), "REMOTE_PORT": str(peer[1])})
        # The request being served, until its response is out.
        self._exchange: Exchange | None = None
        self._hijacker: Hijacker | None = Hijacker(self._hand_over)
        # Until when it is kept though it is idle and what is idle is to go.
        self._stays_until = 0.0
        self._is_aborted = False

    def __repr__(self) -> str:
        return f"<Connection {self.peer_name()} {self.state}>"

    def peer_name(self) -> str:
        return peer_name(self.peer)

    def add_entries(self, entries: t.Mapping[str, t.Any]) -> None:
        """Put entries into the environ of this connection's requests."""
        if entries:
            self._base = {**self._base, **entries}

    def discard(self) -> None:
        """Close a connection that was never started."""
        self._wire.close()

    def running(self) -> RunningRequest | None:
        """The request being served. From any thread."""
        exchange = self._exchange
        return exchange.running(self.peer_name()) if exchange else None

    def restore(self, parcel: Parcel, stays: bool) -> None:
        """Go on where another process has stopped. Before `start`.

        :param stays: it comes back from one that can't take it, and is not to leave again.
        """
        self.state = parcel.state
        self.accepted = parcel.accepted
        self._began = parcel.began
        self.deadline = parcel.deadline
        self._wire.inbox.data += parcel.data
        if stays:
            self.origin = ""
            self._allow_another()

    def start(self) -> None:
        """Begin to be polled.

        :raises OSError: the system refuses; the connection is closed.
        """
        if not self._claim_or_note():
            return
        try:
            if self._phase is not Phase.OVER:
                if self.state is ConnState.NEW:
                    self.deadline = self._first_deadline()
                self._enter_poller()
        except OSError:
            self._end()
            raise
        finally:
            self._let_go()

    def abort(self) -> None:
        """Cut the connection, whatever it does. The application is not interrupted."""
        if self.state >= ConnState.HIJACKED:
            return
        # First, so that an owner who looks again finds the end.
        self._is_aborted = True
        self._wire.cut()
        if self._claim_or_note():
            try:
                self._end()
            finally:
                self._let_go()

    def retire(self) -> None:
        """Close if idle, or new for longer than NEW_GRACE; or leave for another process, where
        there is one. Bytes received are not idle."""
        if not self._claim_or_note():
            return
        try:
            if self._phase is Phase.HANDSHAKE:
                self._rest_of_idle_life()
            elif self._phase is Phase.HEAD:
                is_old = self.accepted + NEW_GRACE < time.monotonic()
                if self.origin in self._host.moving:
                    self._depart()
                elif self._wire.has_input():
                    self._host.crew.post(self)
                elif self.state is ConnState.NEW and is_old:
                    self._end()
                else:
                    self._rest_of_idle_life()
        finally:
            self._let_go()

    def _has_news(self) -> bool:
        """Bytes received are not idle, though nobody had the time to read them."""
        return self._phase is Phase.HEAD and not self._wire.inbox.data and self._wire.has_input()

    def _first_deadline(self) -> float:
        """Until when a head that began to come must be there (row TM1)."""
        settings = self._host.settings
        return after(self._began, settings.read_header_timeout or settings.read_timeout)

    # What an owner does when it has claimed the connection.

    def _step(self) -> None:
        phase = self._phase
        if phase is Phase.HEAD:
            self._read_head()
        elif phase is Phase.FLUSH:
            self._flush()
        elif phase is Phase.DRAIN:
            self._drain()
        elif phase is Phase.LINGER:
            self._linger()

    def _read_head(self) -> None:
        inbox = self._wire.inbox
        data: bytes | None = b"-"
        try:
            # Who sends requests faster than they are answered gets no more of them read.
            head = inbox.take(b"") if inbox.data else None
            if head is None and (data := self._wire.receive()):
                head = inbox.take(data)
            request = None if head is None else _parser.value.parse(head)
        except ProtocolError as error:
            self._refuse(error)
            return
        if request is not None:
            self._serve(request)
        elif data == b"" and inbox.data:
            # The client may still listen (row TM15).
            self._refuse(ProtocolError("the connection was closed within the head"))
        elif data == b"":
            self._end()
        elif self.origin in self._host.moving:
            self._depart()
        elif self._host.closes_idle:
            self._rest_of_idle_life()
        else:
            self._await_rest_of_head()

    def _rest_of_idle_life(self) -> None:
        """No whole request is there, and what is idle is to go (rows S2, S3, KA1)."""
        now = time.monotonic()
        if self._is_idle() and self._stays_until <= now:
            self._end()
            return
        if self._host.is_stopping:
            since = self.accepted if self.state is ConnState.NEW else self._began
            self.deadline = min(self.deadline, (since or now) + NEW_GRACE)
        self._await_rest_of_head()

    def _is_idle(self) -> bool:
        return self.state is ConnState.IDLE and not self._wire.inbox.data

    def _allow_another(self) -> None:
        """The last response did not say that it is the last: another request may be on its way,
        as in the first moments of a stop."""
        if self._host.grace and self._is_idle():
            self._stays_until = time.monotonic() + self._host.grace
            self.deadline = min(self.deadline, self._stays_until)

    def _await_rest_of_head(self) -> None:
        if self._wire.inbox.data and not self._began:
            # The first bytes of another request end the idle time (rows TM2, TM7).
            self._began = time.monotonic()
            self.deadline = self._first_deadline()
        self._go_on()

    def _serve(self, request: Request) -> None:
        host = self._host
        settings = host.settings
        now = time.monotonic()
        self._began = self._began or now
        self.deadline = NEVER
        exchange = self._exchange = host.new_exchange(
            self._wire,
            request,
            self._keeps_alive,
            now,
            after(self._began, settings.read_timeout),
            after(now, settings.write_timeout),
        )
        self._set_state(ConnState.ACTIVE)
        environ = request_environ(self._base, request)
        environ["werkzeug.socket"] = hijacker = t.cast("Hijacker", self._hijacker)
        hijacker.begin()
        exchange.run(host.app, environ, self.peer_name)
        if hijacker.end():
            self._forget_exchange()
            host.on_hijack_over(self)
        else:
            self._flush()

    def _hand_over(self) -> Wire:
        """The application takes the connection over (row Y5): to the server it is gone (S18).

        :raises Disconnected: it is too late.
        """
        assert self._exchange is not None
        self._exchange.give_up()
        self._leave_poller()
        self._set_state(ConnState.HIJACKED)
        return self._wire

    def _depart(self) -> None:
        """Leave for the process that takes over, with what was received and not used."""
        wire = self._wire
        self._leave_poller()
        data = bytes(wire.inbox.data)
        times = (self.accepted, self._began, self.deadline)
        self._host.hand_over(Parcel(wire.sock, self.origin, self.peer, data, self.state, *times))
        self._set_state(ConnState.HANDED_OVER)

    def _leave_poller(self) -> None:
        # The two hold each other; without a cycle both go at once.
        self._hijacker = None
        super()._leave_poller()

    def _keeps_alive(self, is_body_over: bool) -> bool:
        """May this connection go on? In a stop only for requests that are here (promise 3), or
        in another process."""
        host = self._host
        return (
            host.keeps_alive
            or self.origin in host.moving
            or (host.is_stopping and is_body_over and self._wire.inbox.has_head())
        )

    def _flush(self) -> None:
        """Send what is left of a response, then go on to what follows it."""
        exchange = self._exchange
        assert exchange is not None
        is_out = exchange.flush()
        if self._wire.is_broken:
            self._end()
        elif is_out:
            self._after_response(exchange)
        else:
            self._phase = Phase.FLUSH
            self.deadline = exchange.write_deadline
            self._park()
            if exchange.may_send:
                self._host.crew.repeat(self)

    def _after_response(self, exchange: Exchange) -> None:
        if exchange.keep_alive:
            if exchange.is_body_over:
                self._become_idle()
            else:
                self._phase = Phase.DRAIN
                self.deadline = time.monotonic() + DRAIN_TIME
                self._drain()
        elif exchange.is_body_over and not self._wire.has_input():
            self._end()
        else:
            self._start_linger()

    def _drain(self) -> None:
        assert self._exchange is not None
        try:
            how = self._exchange.drain()
        except Disconnected:
            self._end()
            return
        if how is Drained.DONE:
            self._become_idle()
        elif how is Drained.WAITING:
            self._park()
        else:
            self._start_linger()

    def _become_idle(self) -> None:
        host = self._host
        self._forget_exchange()
        self._phase = Phase.HEAD
        self._set_state(ConnState.IDLE)
        self._began = 0.0
        settings = host.settings
        limit = settings.idle_timeout or settings.read_timeout
        self.deadline = time.monotonic() + limit if limit else NEVER
        if self.origin in host.moving:
            self._depart()
            return
        if host.is_stopping:
            # The response began before the shutdown did, so its head could not say close.
            self._allow_another()
        if self._wire.inbox.data or host.closes_idle:
            # Another request came with this one, and other connections come before it.
            self._wire.has_more = True
        self._go_on()

    def _refuse(self, error: ProtocolError) -> None:
        """Answer a request that can't be one, and read no further."""
        self._set_state(ConnState.ACTIVE)
        try:
            self._wire.send(memoryview(refusal(error)))
        except Disconnected:
            # The client does not listen; the connection ends in any case.
            pass
        self._start_linger()

    def _start_linger(self) -> None:
        self._forget_exchange()
        if not self._wire.finish():
            self._end()
            return
        self._phase = Phase.LINGER
        self._wire.inbox.data.clear()
        self.deadline = time.monotonic() + LINGER_TIME
        self._linger()

    def _linger(self) -> None:
        """Discard what comes, a bounded part at a time, until the client closes too."""
        # What came before a cut is still there, and nobody may be left to take the rest of it.
        has_more = self._wire.discard() and not self._is_aborted
        if has_more is None:
            self._park()
        elif has_more:
            self._wire.has_more = True
            self._go_on()
        else:
            self._end()

    def _end(self) -> None:
        if self._phase is Phase.OVER:
            return
        self._forget_exchange()
        self._leave_poller()
        self._wire.close()
        self._set_state(ConnState.CLOSED)

    def _forget_exchange(self) -> None:
        if self._exchange is not None:
            self._exchange.over()
            self._exchange = None

    def _set_state(self, state: ConnState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"connection can't go from {self.state} to {state}")
        self.state = state
        host = self._host
        if host.conn_state is not None or state >= ConnState.HIJACKED:
            host.on_state(self, state)


class _Parser(threading.local):
    """One head parser for each thread."""

    def __init__(self) -> None:
        self.value = HeadParser()


_parser = _Parser()
