"""A client's socket and the bytes received from it that nobody has used yet.

Owns sending and receiving: at once, or until a deadline. Knows no HTTP beyond the buffer that
heads are found in.

Rules: the socket is non-blocking for life. Who waits here is the thread that owns the request, and
waits for its own client. After a `Disconnected` the wire is broken and carries nothing more.
"""

from __future__ import annotations

import socket
import typing as t

from .http11 import HeadBuffer
from .poller import wait_ready

RECEIVE_SIZE = 65536


class Disconnected(ConnectionError):
    """The client is gone, silent for too long, or sent what is no body."""


class Wire:
    """Both directions of one connection. Its owner's alone, but for `cut`."""

    __slots__ = ("has_more", "hung_up", "inbox", "is_broken", "sock")

    def __init__(self, sock: socket.socket, max_header_bytes: int) -> None:
        self.sock = sock
        self.inbox = HeadBuffer(max_header_bytes)
        # More may be in the socket, or its end, though no further edge will say so.
        self.has_more = False
        self.hung_up = False
        self.is_broken = False

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

    def receive_by(self, deadline: float) -> bytes:
        """Bytes from the socket, as soon as there are some.

        :raises Disconnected: the client has closed, or sent nothing until the deadline.
        """
        while True:
            data = self.receive()
            if data:
                return data
            if data is not None:
                self.fail("the client closed the connection within its request")
            if not wait_ready(self.sock, False, deadline):
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

    def send_by(self, data: memoryview, deadline: float) -> None:
        """Send everything.

        :raises Disconnected: the client is gone, or did not take it until the deadline.
        """
        while data := self.send(data):
            if not wait_ready(self.sock, True, deadline):
                self.fail("the response took longer than write_timeout")

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
