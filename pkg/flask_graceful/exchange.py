"""One request and its response.

Owns what lies between a complete head and the last byte of the answer: the application's call,
the request's body, the response's tail.

Strategy: `run` calls the application in the thread that read the head. It waits for the client
only while the application wants the body, or has more to send; the last bytes of a response are
left in `tail`, for the poller to see them off, and what is sent from a file in `_file`.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
import typing as t
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from .body import body_decoder
from .deadlines import NEVER
from .errors import ProtocolError
from .ranges import open_range
from .running import RunningRequest, printable
from .wire import Disconnected, Wire
from .wsgi import Response, answer_asterisk, client_error, input_stream, refusal

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from .body import BodyDecoder
    from .http11 import Request
    from .ranges import FileRange

log = logging.getLogger("flask_graceful")

# An unread body up to this size is read away, so that the connection can go on (rows B8, B9).
MAX_DRAIN = 256 * 1024
# So much may come for it; of a body in tiny chunks most bytes are framing.
MAX_DRAIN_RECEIVED = 8 * MAX_DRAIN

_NOTHING = memoryview(b"")
_ALONE = nullcontext()
CONTINUE = memoryview(b"HTTP/1.1 100 Continue\r\n\r\n")


class Drained(enum.Enum):
    """How far the reading away of a body has come."""

    DONE = enum.auto()
    WAITING = enum.auto()
    TOO_MUCH = enum.auto()


class Exchange:
    """A request being answered. Its connection's owner alone calls it.

    :param keeps_alive: asked when the response's head is made: may the connection go on? It is told
        whether the request's body has been read, so that what follows is another request.
    :param began: when the application's time begins.
    :param read_deadline: until when the body must be there.
    :param write_deadline: until when the response must be out.
    """

    __slots__ = (
        "_began",
        "_budget",
        "_decoder",
        "_failure",
        "_file",
        "_keeps_alive",
        "_must_continue",
        "_read_deadline",
        "_received",
        "_response",
        "_thread",
        "_wire",
        "is_taken",
        "may_send",
        "request",
        "tail",
        "write_deadline",
    )

    def __init__(
        self,
        wire: Wire,
        request: Request,
        keeps_alive: t.Callable[[bool], bool],
        began: float,
        read_deadline: float,
        write_deadline: float,
    ) -> None:
        self.request = request
        self.tail = _NOTHING
        # The application has taken the connection over: nothing is sent here any more.
        self.is_taken = False
        self.write_deadline = write_deadline
        # Has `flush` stopped for the others' sake, with a socket that may take more?
        self.may_send = False
        self._wire = wire
        # Who is inside the application; 0: nobody.
        self._thread = 0
        self._began = began
        self._keeps_alive = keeps_alive
        self._read_deadline = read_deadline
        self._decoder = body_decoder(request)
        self._must_continue = request.expect_continue
        self._response = Response(request, self._send, self._is_last, self._open_file)
        # What is sent after `tail`.
        self._file: FileRange | None = None
        self._budget, self._received = MAX_DRAIN, 0
        # Why the body can't be read to its end; from then on nothing of it is read.
        self._failure: OSError | None = None

    def run(
        self, app: WSGIApplication, environ: WSGIEnvironment, peer: t.Callable[[], str]
    ) -> None:
        """Call the application and send its answer. Nothing comes out of here but the answer."""
        if self.request.path == "*":
            app = answer_asterisk
        receive = partial(self._receive, self._decoder) if self._decoder else None
        environ["wsgi.input"] = input_stream(receive)
        self._thread = threading.get_ident()
        try:
            self._response.run(app, environ)
        except BaseException as error:
            # Whatever it is, SystemExit too: it must not end the thread.
            self._fail(error, peer())
        self._thread = 0

    def running(self, peer: str) -> RunningRequest:
        """What is known of it now. From any thread."""
        request = self.request
        age = time.monotonic() - self._began
        return RunningRequest(request.method, printable(request.path), peer, age, self._thread)

    def give_up(self) -> None:
        """Leave the connection to the application, which takes it over (row Y5).

        :raises Disconnected: it is too late, the answer is out.
        """
        if self._response.is_complete:
            raise Disconnected("the response is complete: the socket can't be taken over")
        self.is_taken = True
        self._failure = Disconnected("the application has taken the connection over")

    @property
    def keep_alive(self) -> bool:
        """Did the response promise another request, and can the promise be kept?"""
        return self._response.keep_alive and self._can_go_on()

    @property
    def is_body_over(self) -> bool:
        return self._decoder is None or self._decoder.done

    def flush(self) -> bool:
        """Send what is left of the response; is it all out? Of a file, a bounded part at a time.

        A wire that is broken, or breaks, takes nothing.
        """
        try:
            return not self._wire.is_broken and self._flush_tail() and self._flush_file()
        except Disconnected:
            return False

    def _flush_tail(self) -> bool:
        while self.tail:
            rest = self._wire.send(self.tail)
            if len(rest) == len(self.tail):
                # Only a socket that took nothing will be reported when it takes more.
                return False
            self.tail = rest
        self.tail = _NOTHING
        return True

    def _flush_file(self) -> bool:
        part = self._file
        if part is None:
            return True
        self.may_send = self._wire.send_file(part)
        if part.left:
            return False
        if part.is_cut:
            # The file has become shorter: only the connection's end says so, as in row R8.
            self._response.keep_alive = False
        self._close_file()
        return True

    def _open_file(self, filelike: t.Any) -> FileRange | None:
        """Called by the response: what is sent when `tail` is out."""
        self._file = open_range(filelike)
        return self._file

    def _close_file(self) -> None:
        part, self._file = self._file, None
        if part is not None:
            part.close()

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
            if self._budget < 0 or self._received > MAX_DRAIN_RECEIVED:
                return Drained.TOO_MUCH
            if decoder.done:
                return Drained.DONE
            data = self._wire.receive()
            if data is None:
                return Drained.WAITING
            if not data:
                self._wire.fail("the client closed the connection within its request")
            self._received += len(data)
            inbox += data

    def _can_go_on(self) -> bool:
        """Can another request follow this one's body?"""
        if self._decoder is None or self._decoder.done:
            return True
        if self._failure is not None:
            return False
        remaining = self._decoder.remaining()
        return not self.request.expect_continue and (remaining is None or remaining <= MAX_DRAIN)

    def _is_last(self) -> bool:
        """Must this response be the connection's last?"""
        if not self._can_go_on():
            return True
        return not self._keeps_alive(self.is_body_over)

    def _receive(self, decoder: BodyDecoder) -> bytes:
        """The next bytes of the request's body; b"" at its end. Called by the application.

        :raises OSError: the body can't be had (rows B7, TM6). The application may still answer.
        """
        if self._decoder is None:
            raise ValueError("the request is over: its body can't be read any more")
        if self._failure is not None:
            raise self._failure
        if self._must_continue:
            self._must_continue = False
            if not self._response.head_sent:
                self._send_continue()
        inbox = self._wire.inbox.data
        while not decoder.done:
            try:
                content = decoder.decode(inbox)
            except ProtocolError as error:
                message = f"the request's body is malformed: {error}"
                self._failure = client_error(message, Disconnected)
                raise self._failure from error
            if content:
                return content
            if not decoder.done:
                inbox += self._receive_more()
        return b""

    def _touching(self) -> AbstractContextManager[None]:
        """Entered by the application's thread while it reads from the socket."""
        return _ALONE

    def _send_continue(self) -> None:
        self._wire.send_by(CONTINUE, self.write_deadline)

    def _receive_more(self) -> bytes:
        try:
            return self._wire.receive_by(self._read_deadline, self._touching)
        except Disconnected as error:
            # Who sends nothing more may still read an answer; sending finds out.
            self._wire.is_broken = False
            self._failure = client_error(str(error), Disconnected)
            raise self._failure from error

    def _send(self, data: bytes, is_last: bool) -> None:
        if self.is_taken:
            # An application must answer something; nobody is to see it (row F6).
            return
        if self.write_deadline < NEVER and time.monotonic() > self.write_deadline:
            # The application took too long: its answer is lost (row TM11).
            self._wire.fail("the response took longer than write_timeout")
        if is_last:
            if self._file is not None:
                # The head and the first block leave in one piece.
                block = self._file.block()
                data += block
                self._file.advance(len(block))
            self.tail = self._wire.send(memoryview(data))
        else:
            self._wire.send_by(memoryview(data), self.write_deadline)

    def _fail(self, error: BaseException, peer: str) -> None:
        """The application raised: 500 while nothing was sent, else the connection's end."""
        wire = self._wire
        if self.is_taken:
            # Who took the connection over may end by an error that says that its client left.
            if not isinstance(error, ConnectionError):
                self._log(error, peer)
            return
        if error is self._failure and not self._response.head_sent:
            self._refuse_body(error)
            return
        if not wire.is_broken and not isinstance(error, Disconnected):
            self._log(error, peer)
        if self._response.is_complete:
            # The client gets all that it was promised, but nothing more from this connection.
            self._response.keep_alive = False
            return
        self._close_file()
        if self._response.head_sent or wire.is_broken:
            wire.is_broken = True
            return
        try:
            self._response.fail()
        except Disconnected:
            # The wire is broken; whoever looks at it next ends the connection.
            pass

    def _log(self, error: BaseException, peer: str) -> None:
        log.error("http: panic serving %s: %s", peer, error, exc_info=error)

    def _refuse_body(self, error: BaseException) -> None:
        """The application left it to the server to answer a body that can't be read.

        What is malformed gets 400; who went silent gets silence (row TM13).
        """
        cause = error.__cause__
        if not isinstance(cause, ProtocolError):
            self._wire.is_broken = True
            return
        try:
            self.tail = self._wire.send(memoryview(refusal(cause)))
        except Disconnected:
            # As above.
            pass

    def over(self) -> None:
        """The request is over: its input reads nothing more, whoever still holds it."""
        self._decoder = self._failure = None
        self._close_file()
        # The two hold each other; without a cycle both go at once.
        del self._response
