"""A client's socket in the hands of the application, for WebSockets and other protocols.

Owns `environ["werkzeug.socket"]`, and the connection behind it once the application has used it.

Strategy: what lies in environ is a stand-in that a connection makes once. Its first use takes the
connection over (Go's Hijacker, row Y5); a request that does not use it pays for an assignment.
The socket stays non-blocking, and the stand-in waits for its user.

Rules: from the first use on the server neither watches, times out nor ends the connection (rows
S18, TM17). When the application returns, the socket is closed. A descriptor is closed only when
no thread waits for it any more: another connection may have the same number a moment later.
"""

from __future__ import annotations

import socket
import threading
import time
import typing as t
from contextlib import ExitStack

from .deadlines import NEVER
from .poller import wait_ready
from .wire import Disconnected

if t.TYPE_CHECKING:
    from .wire import Wire

Data = bytes | bytearray | memoryview


class Hijacker:
    """`environ["werkzeug.socket"]`: the client's socket, as far as a blocking one is needed.

    Any method but `settimeout` and `gettimeout` takes the connection over. Afterwards the server
    sends nothing of its own, and drops what the application answers. Several threads may use it,
    e.g. one to receive and others to send.

    Methods are those of `socket.socket`, with one more promise: `send` sends everything. They
    raise ConnectionError when the client is gone, the socket is closed, or the request was over
    before the connection was taken over.

    :param hand_over: makes the connection the application's; OSError: it is too late.
    """

    __slots__ = ("_hand_over", "_is_open", "_lock", "_taken", "_timeout")

    def __init__(self, hand_over: t.Callable[[], Wire]) -> None:
        self._hand_over = hand_over
        self._lock = threading.Lock()
        self._is_open = False
        self._taken: _Taken | None = None
        self._timeout: float | None = None

    def begin(self) -> None:
        """A request is about to be served. For the connection's owner, as is `end`."""
        self._is_open = True

    def end(self) -> bool:
        """The application has returned; did it take the connection over? Then that is closed."""
        with self._lock:
            self._is_open = False
            taken = self._taken
        if taken is None:
            return False
        taken.close()
        taken.loan.close()
        return True

    def recv(self, bufsize: int) -> bytes:
        """At most `bufsize` bytes, those first that came behind the request's head."""
        return self._take().receive(bufsize, self._deadline())

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view))
        view[: len(data)] = data
        return len(data)

    def send(self, data: Data) -> int:
        self._take().send(memoryview(data).cast("B"), self._deadline())
        return len(data)

    def sendall(self, data: Data) -> None:
        self.send(data)

    def fileno(self) -> int:
        """For waiting, not for reading: it does not tell of bytes that came behind the request's
        head, nor of those that TLS has decrypted and not given out; -1 once closed."""
        return self._take().fileno()

    def getpeername(self) -> t.Any:
        return self._take().sock.getpeername()

    def getsockname(self) -> t.Any:
        return self._take().sock.getsockname()

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        self._take().sock.setsockopt(level, name, value)

    def settimeout(self, value: float | None) -> None:
        """Seconds that receiving or sending may take before TimeoutError; None, as at first: any.

        :raises ValueError: not a positive number.
        """
        if value is not None and not value > 0:
            raise ValueError(f"timeout {value!r}: expected a positive number of seconds, or None")
        self._timeout = value

    def gettimeout(self) -> float | None:
        return self._timeout

    def shutdown(self, how: int) -> None:
        """SHUT_WR: no more will be sent. Anything else ends both directions."""
        self._take().shutdown(how)

    def close(self) -> None:
        """Close the connection; who waits in another thread is told. Any number of times."""
        if self._is_open or self._taken:
            self._take().close()

    def _take(self) -> _Taken:
        with self._lock:
            if self._taken is None:
                if not self._is_open:
                    raise Disconnected("the request is over: its socket can't be taken over")
                self._taken = _Taken(self._hand_over())
            return self._taken

    def _deadline(self) -> float:
        return NEVER if self._timeout is None else time.monotonic() + self._timeout


class _Taken:
    """A wire that the application has taken over. From any thread."""

    def __init__(self, wire: Wire) -> None:
        self.sock = wire.sock
        self._wire = wire
        # What is taken over may live for hours: its thread holds no place for a request.
        self.loan = ExitStack()
        self.loan.enter_context(wire.waiting())
        # Guards the wire for one call that does not wait: OpenSSL bears one at a time.
        self._lock = threading.Lock()
        # Held for a whole block, so that blocks of two threads do not mix.
        self._sending = threading.Lock()
        # Threads between `_enter` and `_leave`; the last one closes what is to be closed.
        self._users = 0
        self._is_closed = False

    def receive(self, size: int, deadline: float) -> bytes:
        self._enter()
        try:
            while True:
                with self._lock:
                    data = self._receive_now(size)
                    for_write = self._wire.waits_to_write(False)
                if data is not None:
                    return data
                self._wait(for_write, deadline)
        finally:
            self._leave()

    def send(self, data: memoryview, deadline: float) -> None:
        self._enter()
        try:
            with self._sending:
                while True:
                    with self._lock:
                        data = self._wire.send(data)
                        for_write = self._wire.waits_to_write(True)
                    if not data:
                        return
                    self._wait(for_write, deadline)
        finally:
            self._leave()

    def fileno(self) -> int:
        return -1 if self._is_closed else self.sock.fileno()

    def shutdown(self, how: int) -> None:
        self._enter()
        try:
            with self._lock:
                if how == socket.SHUT_WR:
                    self._wire.finish()
                else:
                    self._wire.cut()
        finally:
            self._leave()

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._wire.finish()
            if self._users:
                # They wake up, and the last one closes.
                self._wire.cut()
            else:
                self._close_locked()

    def _receive_now(self, size: int) -> bytes | None:
        early = self._wire.inbox.data
        if not early:
            return self._wire.receive_up_to(size)
        data = bytes(early[:size])
        del early[: len(data)]
        return data

    def _wait(self, for_write: bool, deadline: float) -> None:
        if not wait_ready(self.sock, for_write, deadline):
            raise TimeoutError("timed out")

    def _enter(self) -> None:
        with self._lock:
            if self._is_closed:
                raise Disconnected("the socket is closed")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._is_closed and not self._users:
                self._close_locked()

    def _close_locked(self) -> None:
        # Closed with bytes unread, it would be reset, and the client might lose what was sent to
        # it (RFC 9112, section 9.6).
        self._wire.discard()
        self._wire.close()
