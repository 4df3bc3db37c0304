"""Records and descriptors between two processes, over one Unix socket.

Owns the wire between an old process and its successor: `Channel` carries small JSON records, each
with the descriptors that belong to it (SCM_RIGHTS, unix(7)). Knows no server.

Strategy: the old process makes a socket pair, spawns the successor with one end, and names that
end in one environment variable. Either side learns of the other's death as the end of the channel.

Rules: received descriptors are close-on-exec from the first instant. The variable is taken out of
the environment when the package is imported, so that no other child process sees it; it names the
parent too, so that a process which inherited it by accident does not believe it.
"""

from __future__ import annotations

import array
import json
import os
import re
import socket
import struct
import typing as t
from collections import deque

from .poller import NEVER, wait_ready

VARIABLE = "FLASK_GRACEFUL_PARENT"
# Linux takes no more in one message (SCM_MAX_FD).
MAX_DESCRIPTORS = 253

# Can this system hand descriptors to another process?
CAN_PASS = hasattr(socket, "SCM_RIGHTS") and hasattr(socket, "CMSG_SPACE")

_HEADER = struct.Struct("!IH")
# The stdlib's recv_fds ignores this flag.
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class HandoverError(Exception):
    """The other process sent what is no record."""


class Record(t.NamedTuple):
    """One message: plain data, and descriptors that now belong to the receiver."""

    data: dict[str, t.Any]
    fds: list[int]


class Channel:
    """One end of the wire. Used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._fds: deque[int] = deque()
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, data: dict[str, t.Any], fds: t.Sequence[int] = ()) -> None:
        """Send a record; it is small and the socket's buffer holds it.

        :raises OSError: the other process is gone.
        """
        if len(fds) > MAX_DESCRIPTORS:
            raise ValueError(f"at most {MAX_DESCRIPTORS} descriptors fit in one record")
        body = json.dumps(data).encode()
        rest = memoryview(_HEADER.pack(len(body), len(fds)) + body)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while rest:
            try:
                rest = rest[self._sock.sendmsg([rest], rights) :]
                rights = []
            except BlockingIOError:
                wait_ready(self._sock, True, NEVER)

    def receive(self, deadline: float) -> Record | None:
        """The next record; None when the other process is gone.

        :param deadline: `time.monotonic()` seconds.
        :raises TimeoutError: nothing came in time.
        :raises HandoverError: what came is no record.
        """
        while True:
            record = self.next()
            if record is not None:
                return record
            if not wait_ready(self._sock, False, deadline):
                raise TimeoutError("the other process sent nothing")
            if not self.fill():
                return None

    def fill(self) -> bool:
        """Take in what has arrived, without waiting; False at the end of the channel."""
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            data, rights, _, _ = self._sock.recvmsg(65536, space, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return True
        except OSError:
            return False
        for level, kind, payload in rights:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                for fd in fds:
                    os.set_inheritable(fd, False)
                    self._fds.append(fd)
        self._buffer += data
        return bool(data)

    def next(self) -> Record | None:
        """The next record that has arrived as a whole."""
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
            fds = [self._fds.popleft() for _ in range(count)]
        except (ValueError, IndexError) as error:
            raise HandoverError(f"the other process sent what is no record: {error}") from error
        return Record(data, fds)

    def close(self) -> None:
        self._sock.close()
        while self._fds:
            os.close(self._fds.popleft())


def claim_channel(environ: t.MutableMapping[str, str]) -> Channel | None:
    """The channel to the parent that spawned this process as its successor, once.

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
    return Channel(sock)


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
