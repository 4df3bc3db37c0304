"""Records and descriptors between two processes, over one Unix socket.

Owns the wire between an old process and its successor: `Channel` carries JSON records, each with
the descriptors that belong to it (SCM_RIGHTS, unix(7)). Knows no server.

Strategy: the old process makes a socket pair, spawns the successor with one end, and names that
end in one environment variable. Either side learns of the other's death as the end of the channel.
What the socket does not take waits in the channel, and nobody waits for it.

Rules: received descriptors are close-on-exec from the first instant. A receiver whose table of
descriptors is full gets a record with fewer of them, and must look. The variable is taken out of
the environment when the package is imported, so that no other child process sees it; it names the
parent too, so that a process which inherited it by accident does not believe it.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import re
import socket
import struct
import typing as t
from collections import deque

from .poller import wait_ready

VARIABLE = "FLASK_GRACEFUL_PARENT"
# Linux takes no more in one message (SCM_MAX_FD).
MAX_DESCRIPTORS = 253

# Can this system hand descriptors to another process?
CAN_PASS = hasattr(socket, "SCM_RIGHTS") and hasattr(socket, "CMSG_SPACE")

_HEADER = struct.Struct("!IH")
# The stdlib's recv_fds ignores this flag.
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class ChannelError(Exception):
    """The other process sent what is no record."""


class Record(t.NamedTuple):
    """One message: plain data, and the descriptors that now belong to the receiver. These are the
    first ones of those that were sent: all, unless the receiver's table is full."""

    data: dict[str, t.Any]
    fds: list[int]


class Channel:
    """One end of the wire. Used by one thread at a time.

    :param unread: what another program in this process had received, see `unread`.
    """

    def __init__(self, sock: socket.socket, unread: str = "") -> None:
        self._sock = sock
        # What came and is no whole record yet, and the descriptors of its records.
        self._buffer = bytearray(unread, "latin-1")
        self._fds: deque[list[int]] = deque()
        # What the socket did not take yet. Descriptors travel with a record's first byte.
        self._outbox: deque[tuple[memoryview, tuple[int, ...], bool]] = deque()
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def has_output(self) -> bool:
        """Is something left to be flushed?"""
        return bool(self._outbox)

    def send(self, data: dict[str, t.Any], fds: t.Sequence[int] = (), given: bool = False) -> None:
        """Send a record as far as that goes without waiting; `flush` sends the rest.

        :param given: the channel closes the descriptors when they are out; else they must stay
            open until then.
        :raises OSError: the other process is gone.
        """
        if len(fds) > MAX_DESCRIPTORS:
            raise ValueError(f"at most {MAX_DESCRIPTORS} descriptors fit in one record")
        body = json.dumps(data).encode()
        message = memoryview(_HEADER.pack(len(body), len(fds)) + body)
        self._outbox.append((message, tuple(fds), given))
        self.flush()

    def push(self) -> None:
        """Send what the socket takes now. That nobody is there any more is noticed where the
        channel is read."""
        with contextlib.suppress(OSError):
            self.flush()

    def flush(self) -> None:
        """The same.

        :raises OSError: the other process is gone.
        """
        while self._outbox:
            data, fds, given = self._outbox[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._sock.sendmsg([data], rights)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    self._drop_outbox()
                    raise
                # The system bears no more descriptors under way; the receiver takes some out.
                return
            if given:
                _close(fds)
            if sent == len(data):
                self._outbox.popleft()
            else:
                self._outbox[0] = (data[sent:], (), False)

    def receive(self, deadline: float) -> Record | None:
        """The next record; None when the other process is gone.

        :param deadline: `time.monotonic()` seconds.
        :raises TimeoutError: nothing came in time.
        :raises ChannelError: what came is no record.
        """
        while True:
            record = self.next()
            if record is not None:
                return record
            if not wait_ready(self._sock, False, deadline):
                raise TimeoutError("the other process sent nothing")
            if self.fill() is False:
                return None

    def fill(self) -> bool | None:
        """Take in some of what has arrived; False at the channel's end, None when it is nothing."""
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, rights, flags, _ = self._sock.recvmsg(65536, space, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except OSError:
            return False
        fds = array.array("i")
        for level, kind, payload in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        for fd in fds:
            os.set_inheritable(fd, False)
        if fds or flags & socket.MSG_CTRUNC:
            # The kernel never joins the descriptors of two records.
            self._fds.append(list(fds))
        self._buffer += data
        return bool(data)

    def next(self) -> Record | None:
        """The next record that has arrived as a whole.

        :raises ChannelError: what came is no record.
        """
        if len(self._buffer) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._buffer)
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        try:
            data = json.loads(body)
            fds = self._fds.popleft() if count else []
        except (ValueError, IndexError) as error:
            raise ChannelError(f"the other process sent what is no record: {error}") from error
        return Record(data, fds)

    def read(self, heed: t.Callable[[Record], object]) -> bool:
        """Have each record heeded that has arrived; False at the channel's end.

        :raises ChannelError: what came is no record.
        """
        is_open = True
        while is_open and (has_more := self.fill()) is not None:
            is_open = has_more
            while (record := self.next()) is not None:
                heed(record)
        return is_open

    def unread(self) -> str:
        """What came and was not taken, for the program that takes this one's place. Of a channel
        over which no descriptors come."""
        return self._buffer.decode("latin-1")

    def close(self) -> None:
        self._sock.close()
        for fds in self._fds:
            _close(fds)
        self._fds.clear()
        self._drop_outbox()

    def _drop_outbox(self) -> None:
        for _, fds, is_given in self._outbox:
            if is_given:
                _close(fds)
        self._outbox.clear()


def _close(fds: t.Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def claim_channel(environ: t.MutableMapping[str, str]) -> tuple[Channel, int] | None:
    """The channel to the parent that spawned this process as its successor, and its pid; once.

    Takes the variable out of `environ`. None for a process that nobody spawned so.
    """
    value = environ.pop(VARIABLE, "")
    match = re.fullmatch("([0-9]{1,9}):([0-9]{1,9})", value)
    if match is None:
        return None
    parent, fd = match.groups()
    try:
        sock = socket.socket(fileno=int(fd))
    except OSError:
        return None
    if not _is_from(sock, int(parent)):
        sock.detach()
        return None
    sock.set_inheritable(False)
    return Channel(sock), int(parent)


def _is_from(sock: socket.socket, parent: int) -> bool:
    """Was this socket made by that process? It may have died since.

    A process may find the variable in its environment by accident, as the grandchild of one that
    did not clean it; the number then means another file.
    """
    if sock.family != getattr(socket, "AF_UNIX", None):
        return False
    if not hasattr(socket, "SO_PEERCRED"):
        return parent == os.getppid()
    credentials = struct.Struct("3i")
    peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    return bool(credentials.unpack(peer)[0] == parent)
