"""One request and its response.

Owns what lies between a complete head and the last byte of the answer: the application's call,
the request's body, the response's tail.

Strategy: `run` calls the application in the thread that read the head. It waits for the client
only while the application wants the body, or has more to send; the last bytes of a response are
left in `tail`, for the poller to see them off.
"""

from __future__ import annotations

import enum
import logging
import time
import typing as t
from functools import partial

from .body import body_decoder
from .errors import ProtocolError
from .poller import NEVER
from .wire import Disconnected, Wire
from .wsgi import Response, input_stream

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from .body import BodyDecoder
    from .http11 import Request

log = logging.getLogger("flask_graceful")

# An unread body up to this size is read away, so that the connection can go on (rows B8, B9).
MAX_DRAIN = 256 * 1024

_NOTHING = memoryview(b"")
_CONTINUE = memoryview(b"HTTP/1.1 100 Continue\r\n\r\n")


class Drained(enum.Enum):
    """How far the reading away of a body has come."""

    DONE = enum.auto()
    WAITING = enum.auto()
    TOO_MUCH = enum.auto()


class Exchange:
    """A request being answered. Its connection's owner alone calls it.

    :param keeps_alive: asked when the response's head is made: may the connection go on?
    :param read_deadline: until when the body must be there.
    :param write_deadline: until when the response must be out.
    """

    __slots__ = (
        "_budget",
        "_decoder",
        "_keeps_alive",
        "_must_continue",
        "_read_deadline",
        "_response",
        "_wire",
        "request",
        "tail",
        "write_deadline",
    )

    def __init__(
        self,
        wire: Wire,
        request: Request,
        keeps_alive: t.Callable[[], bool],
        read_deadline: float,
        write_deadline: float,
    ) -> None:
        self.request = request
        self.tail = _NOTHING
        self.write_deadline = write_deadline
        self._wire = wire
        self._keeps_alive = keeps_alive
        self._read_deadline = read_deadline
        self._decoder = body_decoder(request)
        self._must_continue = request.expect_continue
        self._response = Response(request, self._send, self._is_last)
        self._budget = MAX_DRAIN

    def run(self, app: WSGIApplication, environ: WSGIEnvironment, peer: str) -> None:
        """Call the application and send its answer. Nothing comes out of here but the answer."""
        receive = partial(self._receive, self._decoder) if self._decoder else None
        environ["wsgi.input"] = input_stream(receive)
        try:
            self._response.run(app, environ)
        except BaseException as error:
            # Whatever it is, SystemExit too: it must not end the thread.
            self._fail(error, peer)

    @property
    def keep_alive(self) -> bool:
        """Did the response promise another request, and can the promise be kept?"""
        return self._response.keep_alive and (self.is_body_over or self._can_drain())

    @property
    def is_body_over(self) -> bool:
        return self._decoder is None or self._decoder.done

    def flush(self) -> bool:
        """Send what is left of the response; is it all out?

        :raises Disconnected: the client is gone.
        """
        self.tail = self._wire.send(self.tail) if self.tail else _NOTHING
        return not self.tail

    def drain(self) -> Drained:
        """Read away a body that the application did not want, without waiting for it.

        :raises Disconnected: the client is gone.
        """
        decoder = self._decoder
        assert decoder is not None
        inbox = self._wire.inbox.data
        while True:
            try:
                self._budget -= len(decoder.decode(inbox))
            except ProtocolError:
                return Drained.TOO_MUCH
            if decoder.done:
                return Drained.DONE
            if self._budget < 0:
                return Drained.TOO_MUCH
            data = self._wire.receive()
            if data is None:
                return Drained.WAITING
            if not data:
                self._wire.fail("the client closed the connection within its request")
            inbox += data

    def _can_drain(self) -> bool:
        assert self._decoder is not None
        remaining = self._decoder.remaining()
        return not self._must_continue and (remaining is None or remaining <= MAX_DRAIN)

    def _is_last(self) -> bool:
        """Must this response be the connection's last?"""
        if not self.is_body_over and not self._can_drain():
            return True
        # What was received before a shutdown is still served (promise 3).
        return not self._keeps_alive() and not self._wire.inbox.data

    def _receive(self, decoder: BodyDecoder) -> bytes:
        """The next bytes of the request's body; b"" at its end. Called by the application."""
        if self._decoder is None:
            raise ValueError("the request is over: its body can't be read any more")
        if self._must_continue:
            self._must_continue = False
            self._wire.send_by(_CONTINUE, self.write_deadline)
        inbox = self._wire.inbox.data
        while not decoder.done:
            try:
                content = decoder.decode(inbox)
            except ProtocolError as error:
                self._wire.fail(f"the request's body is malformed: {error}", error)
            if content:
                return content
            if not decoder.done:
                inbox += self._wire.receive_by(self._read_deadline)
        return b""

    def _send(self, data: bytes, is_last: bool) -> None:
        if self.write_deadline < NEVER and time.monotonic() > self.write_deadline:
            # The application took too long: its answer is lost (row TM11).
            self._wire.fail("the response took longer than write_timeout")
        if is_last:
            self.tail = self._wire.send(memoryview(data))
        else:
            self._wire.send_by(memoryview(data), self.write_deadline)

    def _fail(self, error: BaseException, peer: str) -> None:
        """The application raised: 500 while nothing was sent, else the connection's end."""
        wire = self._wire
        if not wire.is_broken and not isinstance(error, Disconnected):
            log.error("http: panic serving %s: %s", peer, error, exc_info=error)
        if self._response.head_sent or wire.is_broken:
            wire.is_broken = True
            return
        try:
            self._response.fail()
        except Disconnected:
            # The wire is broken; whoever looks at it next ends the connection.
            pass

    def over(self) -> None:
        """The request is over: its input reads nothing more, whoever still holds it."""
        self._decoder = None
