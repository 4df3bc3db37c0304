"""Who is at the other end of a Unix socket.

Owns the question to the kernel; systems other than Linux give no answer.
"""

from __future__ import annotations

import socket
import struct
import typing as t

_CREDENTIALS = struct.Struct("3i")


class Peer(t.NamedTuple):
    """The process that connected the socket, or listened to it, as it was then."""

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> Peer | None:
    """None where the system does not tell."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return Peer(pid, uid)
