"""Clients that are about to come in: the kernel has answered their knock, and waits for their word.

Owns the question to Linux (sock_diag(7)), whose answer costs milliseconds however many sockets the
system has; the tables in /proc cost a multiple of that. On another system nothing is known.
"""

from __future__ import annotations

import socket
import struct

_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
# NLM_F_REQUEST | NLM_F_DUMP
_ASK_FOR_ALL = 0x301
_SYN_RECV = 1 << 3
_HEADER = struct.Struct("=IHHII")
# Family, protocol, two bytes that are not used, states; then the local port and 46 bytes of what
# else a socket could be known by.
_QUESTION = struct.Struct("=BBxxI2s46x")


def has_handshakes(port: int) -> bool:
    """Has a client knocked at this TCP port who is in as soon as its word arrives?"""
    try:
        return any(_ask(family, port) for family in (socket.AF_INET, socket.AF_INET6))
    except (AttributeError, OSError):
        return False


def _ask(family: int, port: int) -> bool:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        question = _QUESTION.pack(family, socket.IPPROTO_TCP, _SYN_RECV, port.to_bytes(2, "big"))
        size = _HEADER.size + len(question)
        kernel.sendall(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _ASK_FOR_ALL, 0, 0) + question)
        # The first message is about a socket, the end of the list, or an error.
        _, kind, _, _, _ = _HEADER.unpack_from(kernel.recv(65536))
    return bool(kind == _SOCK_DIAG_BY_FAMILY)
