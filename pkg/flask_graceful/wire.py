"""A client's socket and the bytes received from it that nobody has used yet.

Owns sending and receiving: at once, or until a deadline. Knows no HTTP beyond the buffer that
heads are found in.

Rules: the socket is non-blocking for life. Who waits here is the thread that owns the request, and
waits for its own client. After a `Disconnected` the wire is broken and carries nothing more.
`TLSWire` keeps the same promises over TLS, so nobody else needs to know which one it is.
"""

from __future__ import annotations

import socket
import ssl
import time
import typing as t
from contextlib import AbstractContextManager, nullcontext

from .http11 import HeadBuffer
from .poller import wait_ready
from .tls import (
    NOT_TLS,
    PLAIN_HTTP,
    PLAIN_HTTP_ANSWER,
    HandshakeError,
    PlainHTTPError,
    failure_text,
    may_be_tls,
    wrap,
)

if t.TYPE_CHECKING:
    from .ranges import FileRange

RECEIVE_SIZE = 65536
# The most that one TLS record holds (RFC 8446, section 5.1).
RECORD_SIZE = 16384
# How often is looked for bytes that nobody wants, before others get their turn.
MAX_DISCARDS = 16
# TLS takes a block as a whole or not at all; blocks of this size keep the progress visible.
SEAL_SIZE = 131072
# How much of a file goes to one client before others get their turn.
SEND_FILE_SIZE = 1 << 20


class Disconnected(ConnectionError):
    """The client is gone, silent for too long, or sent what is no body."""


class Wire:
    """Both directions of one connection. Its owner's alone, but for `cut`.

    :param waiting: entered while a thread waits for the client.
    """

    __slots__ = (
        "has_more",
        "hung_up",
        "inbox",
        "is_broken",
        "sock",
        "waited",
        "waiting",
        "waits_since",
    )

    def __init__(
        self,
        sock: socket.socket,
        max_header_bytes: int,
        waiting: t.Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.sock = sock
        self.waiting = waiting
        self.inbox = HeadBuffer(max_header_bytes)
        # More may be in the socket, or its end, though no further edge will say so.
        self.has_more = False
        self.hung_up = False
        self.is_broken = False
        # Seconds that threads have waited for the client, and since when one does; 0: none does.
        self.waited = self.waits_since = 0.0

    def receive(self) -> bytes | None:
        """Bytes from the socket; b"" at its end, None when there are none now."""
        try:
            data = self.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            self.has_more = False
            return None
        except OSError:
            return b""
        self.has_more = len(data) == RECEIVE_SIZE
        return data

    def receive_up_to(self, size: int) -> bytes | None:
        """The same, but nothing beyond `size` bytes is taken from the socket.

        :raises Disconnected: the client is gone.
        """
        try:
            return self.sock.recv(size)
        except BlockingIOError:
            return None
        except OSError as error:
            self.fail("the client closed the connection", error)

    def receive_by(
        self,
        deadline: float,
        touching: t.Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> bytes:
        """Bytes from the socket, as soon as there are some.

        :param touching: entered while the socket is read from, and not while it is waited for.
        :raises Disconnected: the client has closed, or sent nothing until the deadline.
        """
        while True:
            with touching():
                data = self.receive()
            if data:
                return data
            if data is not None:
                self.fail("the client closed the connection within its request")
            if not self._wait(False, deadline):
                self.fail("the request's body took longer than read_timeout")

    def send(self, data: memoryview) -> memoryview:
        """Send what the socket takes now; the rest.

        :raises Disconnected: the client is gone.
        """
        try:
            return data[self.sock.send(data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            self.fail("the client closed the connection", error)

    def send_file(self, part: FileRange) -> bool:
        """Send what the socket takes now of a file, up to SEND_FILE_SIZE; may it take more?

        :raises Disconnected: the client is gone, or the file can't be read.
        """
        most = SEND_FILE_SIZE
        try:
            while part.can_splice and part.left and most > 0:
                most -= part.splice(self.sock.fileno(), most)
        except BlockingIOError:
            return False
        except OSError as error:
            self.fail("the client closed the connection, or its file can't be read", error)
        return part.can_splice or self._send_blocks(part)

    def _send_blocks(self, part: FileRange) -> bool:
        """The same by reading, for who can't splice."""
        most = part.left - SEND_FILE_SIZE
        while part.left > max(0, most):
            try:
                block = part.block()
            except OSError as error:
                self.fail("the file can't be read", error)
            rest = self.send(block)
            if block and len(rest) == len(block):
                return False
            part.advance(len(block) - len(rest))
        return True

    def send_by(self, data: memoryview, deadline: float) -> None:
        """Send everything.

        :raises Disconnected: the client is gone, or did not take it until the deadline.
        """
        while data := self.send(data):
            if not self._wait(True, deadline):
                self.fail("the response took longer than write_timeout")

    def waits_to_write(self, is_sending: bool) -> bool:
        """After a call that could not finish: must the socket be writable before the next one?"""
        return is_sending

    def _wait(self, is_sending: bool, deadline: float) -> bool:
        self.waits_since = began = time.monotonic()
        try:
            with self.waiting():
                return wait_ready(self.sock, self.waits_to_write(is_sending), deadline)
        finally:
            # In this order: see who reads it.
            self.waited += time.monotonic() - began
            self.waits_since = 0.0

    def fail(self, reason: str, cause: BaseException | None = None) -> t.NoReturn:
        """Break the wire."""
        self.is_broken = True
        raise Disconnected(reason) from cause

    def has_input(self) -> bool:
        """Is there something to read that has not been read?"""
        try:
            return bool(self.inbox.data or self.sock.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def discard(self) -> bool | None:
        """Throw away a bounded part of what has come; is there more? None: not now."""
        for _ in range(MAX_DISCARDS):
            data = self.receive()
            if not data:
                return None if data is None else False
        return True

    def finish(self) -> bool:
        """Say that no more will be sent; False when nobody is there to hear it."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def cut(self) -> None:
        """End both directions. From any thread: the owner notices, and closes the socket."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Closed by its owner or left by the client: cut already.
            pass

    def close(self) -> None:
        """Close the socket. The owner's last act."""
        self.sock.close()


class TLSWire(Wire):
    """The same over TLS, with a handshake before anything else.

    Strategy: the socket is raw until the handshake begins, so that a client without TLS can be
    recognised and answered, and raw again once the last word is said, when all that comes is
    thrown away.

    Rules: OpenSSL reads one record at a time, and the poller knows nothing of records. So
    `receive` reads until the socket has no more, and `send` writes until it takes no more. A block
    that was not taken must be offered again unchanged, which is what `send` returns. Never
    `SSLSocket.shutdown`: it forgets the encryption before it shuts down, and what its owner sends
    meanwhile would go out in the clear.

    :raises OSError: the client has gone already; the socket is closed.
    """

    __slots__ = ("_is_raw", "wants_write")

    sock: ssl.SSLSocket

    def __init__(
        self,
        sock: socket.socket,
        max_header_bytes: int,
        context: ssl.SSLContext,
        waiting: t.Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        super().__init__(wrap(sock, context), max_header_bytes, waiting)
        self._is_raw = True
        # What TLS waits for before it goes on is that the socket can be written.
        self.wants_write = False

    def shake_hands(self) -> bool:
        """Take the handshake as far as it goes without waiting; is it done?

        :raises PlainHTTPError: the client sent an HTTP request, not TLS.
        :raises HandshakeError: it failed.
        """
        if self._is_raw and not self._is_opened_by_tls():
            return False
        try:
            self.sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            self._note_want(error)
            return False
        except (OSError, ValueError) as error:
            raise HandshakeError(failure_text(error)) from error
        self.wants_write = False
        return True

    def refuse_plain_http(self) -> None:
        """Answer a client without TLS in its own language (row X2)."""
        try:
            socket.socket.send(self.sock, PLAIN_HTTP_ANSWER)
        except OSError:
            # It does not listen; the connection ends in any case.
            pass

    def receive(self) -> bytes | None:
        if self._is_raw:
            return self._receive_raw()
        parts: list[bytes] = []
        size = 0
        self.has_more = False
        while size < RECEIVE_SIZE:
            try:
                data = self.sock.recv(RECORD_SIZE)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                self._note_want(error)
                return b"".join(parts) if parts else None
            except OSError:
                data = b""
            if not data:
                # The end is reported by itself, and seen again by whoever looks again.
                self.has_more = bool(parts)
                return b"".join(parts)
            parts.append(data)
            size += len(data)
        self.has_more = True
        return b"".join(parts)

    def receive_up_to(self, size: int) -> bytes | None:
        if self.sock.version() is None:
            # Both sides have said goodbye, and what still came would not be encrypted.
            return b""
        try:
            return self.sock.recv(size)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            self._note_want(error)
            return None
        except OSError as error:
            self.fail("the client closed the connection", error)

    def send(self, data: memoryview) -> memoryview:
        try:
            while data:
                data = data[self.sock.send(data[:SEAL_SIZE]) :]
            self.wants_write = False
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            self._note_want(error)
        except OSError as error:
            self.fail("the client closed the connection", error)
        return data

    def send_file(self, part: FileRange) -> bool:
        # What the kernel sends by itself is not encrypted.
        return self._send_blocks(part)

    def has_input(self) -> bool:
        try:
            return bool(self.inbox.data or self.sock.pending() or self._peek())
        except OSError:
            return False

    def finish(self) -> bool:
        self._say_goodbye()
        try:
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        except OSError:
            return False
        return True

    def cut(self) -> None:
        try:
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            # Closed by its owner or left by the client: cut already.
            pass

    def close(self) -> None:
        self._say_goodbye()
        self.sock.close()

    def _is_opened_by_tls(self) -> bool:
        """Look at the client's first byte; False while there is none."""
        opening = self.inbox.data
        try:
            if not opening:
                first = self._peek()
                if not first:
                    raise HandshakeError("EOF")
                if may_be_tls(first):
                    self._is_raw = False
                    return True
            data = socket.socket.recv(self.sock, 5 - len(opening))
        except BlockingIOError:
            return False
        except OSError as error:
            raise HandshakeError(failure_text(error)) from error
        opening += data
        if bytes(opening) in PLAIN_HTTP:
            raise PlainHTTPError("the client speaks HTTP without TLS")
        if len(opening) == 5:
            raise HandshakeError(NOT_TLS)
        if not data:
            raise HandshakeError("unexpected EOF")
        return self._is_opened_by_tls()

    def _peek(self) -> bytes:
        return socket.socket.recv(self.sock, 1, socket.MSG_PEEK)

    def _receive_raw(self) -> bytes | None:
        try:
            data = socket.socket.recv(self.sock, RECEIVE_SIZE)
        except BlockingIOError:
            self.has_more = False
            return None
        except OSError:
            return b""
        self.has_more = len(data) == RECEIVE_SIZE
        return data

    def waits_to_write(self, is_sending: bool) -> bool:
        return self.wants_write

    def _note_want(self, error: ssl.SSLError) -> None:
        self.wants_write = isinstance(error, ssl.SSLWantWriteError)

    def _say_goodbye(self) -> None:
        """close_notify (RFC 8446, section 6.1), without waiting for the client's; once."""
        if self._is_raw or self.is_broken:
            return
        self._is_raw = True
        try:
            self.sock.unwrap()
        except (OSError, ValueError):
            # The client has not said its own yet, or is gone.
            pass
