"""A request whose application has a limited time.

Owns the limit, and who answers when it is over: the application or the server, and never both.

Strategy: until the first byte of the response is sent, whoever touches the socket holds a gate, a
lock that is never held while somebody waits. The application's thread passes it with its first
byte; the timekeeper, when the time is up before that, closes it, sends the 503 and says that no
more will be sent. What the application sends after that is dropped, and what it reads is refused.
The connection stays its thread's, which closes it when the application has returned.

Rules: what counts is the application's time. While its thread waits for the client, for the body
or for room to send, the clock stands still: that is a matter of read_timeout and write_timeout, and
no client is to be able to have a process replaced. A connection that the application has taken over
is no request any more.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import typing as t
from contextlib import contextmanager
from functools import partial

from .deadlines import NEVER, Deadlines
from .errors import ProtocolError
from .exchange import CONTINUE, Exchange
from .wire import Disconnected
from .wsgi import refusal

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

    from .http11 import Request
    from .running import RunningRequest
    from .timekeeper import Timekeeper
    from .wire import Wire

log = logging.getLogger("flask_graceful")

UNAVAILABLE = ProtocolError("the application took too long to answer", "503 Service Unavailable")
TOO_LATE = "the request took longer than request_timeout"
# How often is looked at a request whose clock stands still, and at a client that is being seen off.
LOOK_AGAIN = 0.25
SEE_OFF = 0.05
# How long a client that was answered 503 may go on sending, before it is cut.
LINGER_TIME = 2.0


class TimedExchange(Exchange):
    """An exchange under a timekeeper, which calls `on_deadline`; the rest is the owner's."""

    __slots__ = (
        "_gate",
        "_hard",
        "_has_begun",
        "_is_overdue",
        "_is_running",
        "_keeper",
        "_leaves_at",
        "_peer",
        "_soft",
        "_waited_before",
        "deadline",
        "slot",
    )

    def __init__(
        self,
        keeper: Timekeeper,
        wire: Wire,
        request: Request,
        keeps_alive: t.Callable[[bool], bool],
        began: float,
        read_deadline: float,
        write_deadline: float,
    ) -> None:
        super().__init__(wire, request, keeps_alive, began, read_deadline, write_deadline)
        self._keeper = keeper
        # What is not over yet, in seconds of the application's time.
        self._soft, self._hard = keeper.soft, keeper.hard
        self.deadline = began + min(self._soft, self._hard)
        self.slot = Deadlines.NO_SLOT
        self._gate = threading.Lock()
        self._is_running = False
        # One of the two at most: the answer is the application's, or it is the 503.
        self._has_begun = self._is_overdue = False
        # Until when a client that gets the 503 is listened to; NEVER: it has not all of it yet; 0:
        # it is gone, or its answer is the application's.
        self._leaves_at = 0.0
        self._waited_before = wire.waited

    def run(
        self, app: WSGIApplication, environ: WSGIEnvironment, peer: t.Callable[[], str]
    ) -> None:
        self._peer = peer
        self._is_running = True
        self._keeper.watch(self)
        try:
            super().run(app, environ, peer)
        finally:
            with self._gate:
                self._is_running = False
            self._keeper.forget(self)

    @property
    def keep_alive(self) -> bool:
        return not self._is_overdue and super().keep_alive

    def give_up(self) -> None:
        if not self._begin():
            raise Disconnected(TOO_LATE)
        super().give_up()
        self._keeper.forget(self)

    # What the application's thread does with the socket.

    def _begin(self) -> bool:
        """Is what is sent now the answer? Not when it comes too late."""
        if not self._has_begun:
            with self._gate:
                self._has_begun = not self._is_overdue
        return self._has_begun

    @contextmanager
    def _touching(self) -> t.Iterator[None]:
        with self._gate:
            if self._is_overdue:
                raise Disconnected(TOO_LATE)
            yield

    def _send_continue(self) -> None:
        with self._gate:
            if self._is_overdue:
                # Whoever reads on is told.
                return
            rest = self._wire.send(CONTINUE)
            # Nothing else can stand in the middle of it.
            self._has_begun = self._has_begun or bool(rest)
        self._wire.send_by(rest, self.write_deadline)

    def _send(self, data: bytes, is_last: bool) -> None:
        if not self._begin():
            raise Disconnected(TOO_LATE)
        super()._send(data, is_last)

    def _fail(self, error: BaseException, peer: str) -> None:
        if self._begin():
            super()._fail(error, peer)
            return
        self._close_file()
        if not isinstance(error, Disconnected):
            self._log(error, peer)

    # What the timekeeper does.

    def on_deadline(self) -> t.Callable[[], object] | None:
        """See to the client if the time is up, and to when is looked again; what is to be told."""
        tell: list[t.Callable[[], object]] = []
        with self._gate:
            if not self._is_running or self.is_taken:
                return None
            now = time.monotonic()
            used = self._time_used(now)
            if used >= self._soft:
                self._soft = NEVER
                outcome = self._end_in_time(now)
                tell.append(self._report("request_timeout", outcome))
            elif self._leaves_at:
                self._see_off(now)
            if used >= self._hard:
                self._hard = NEVER
                tell.append(self._report("request_timeout_hard", "its process should be replaced"))
                tell.append(partial(self._keeper.on_overdue, self._described()))
            self.deadline = self._next_look(now, used)
            self._keeper.watch(self)
        return (lambda: [one() for one in tell]) if tell else None

    def _time_used(self, now: float) -> float:
        """Seconds that the application has had."""
        wire = self._wire
        # In this order: a wait that ends meanwhile is rather counted twice than not at all.
        since = wire.waits_since
        waited = wire.waited - self._waited_before
        return now - self._began - waited - (now - since if since else 0.0)

    def _next_look(self, now: float, used: float) -> float:
        left = min(self._soft, self._hard) - used
        if self._wire.waits_since:
            left = max(left, LOOK_AGAIN)
        return now + (min(left, SEE_OFF) if self._leaves_at else left)

    def _end_in_time(self, now: float) -> str:
        """Answer in the application's place if nothing was sent; in words, what was done."""
        if self._has_begun:
            return "a part of its response was sent, the rest may follow"
        self._is_overdue = True
        answer = refusal(UNAVAILABLE)
        if self.request.method == "HEAD":
            answer = answer[: answer.index(b"\r\n\r\n") + 4]
        self.tail = memoryview(answer)
        self._leaves_at = NEVER
        self._see_off(now)
        return "the client is gone" if self._wire.is_broken else "503 was sent"

    def _see_off(self, now: float) -> None:
        """Send what is left of the 503, and take what the client still sends, so that it can read
        the answer before it sees a reset (RFC 9112, section 9.6). Then it is left alone."""
        wire = self._wire
        try:
            if self._leaves_at == NEVER and self._flush_tail():
                self._leaves_at = now + LINGER_TIME if wire.finish() else 0.0
            if 0 < self._leaves_at < NEVER and wire.discard() is False:
                self._leaves_at = 0.0
        except Disconnected:
            self._leaves_at = 0.0
        if 0 < self._leaves_at < now:
            wire.cut()
            self._leaves_at = 0.0

    def _described(self) -> RunningRequest:
        return self.running(self._peer())

    def _report(self, limit: str, outcome: str) -> t.Callable[[], object]:
        """The line and the stack of this moment, for the log."""
        request = self._described()
        words = "%d %s is over: %s; %s. Stack (most recent call last):\n%s"
        stack = "\n".join(request.stack())
        return partial(log.warning, words, os.getpid(), limit, request, outcome, stack)
