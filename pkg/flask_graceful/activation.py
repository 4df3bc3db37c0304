"""Listening sockets that a service manager opened: systemd's socket activation (sd_listen_fds(3)).

Owns LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES: they are taken out of the environment once, so that
no child process believes that the sockets are meant for it.

Rules: the variables count only for the process that LISTEN_PID names. The sockets stay the service
manager's: their files and their queues are not ours to remove.
"""

from __future__ import annotations

import os
import socket
import typing as t

# Where the descriptors begin (SD_LISTEN_FDS_START).
FIRST = 3
NAMES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class ActivationError(ValueError):
    """The variables say what can't be."""


def claim_variables(environ: t.MutableMapping[str, str]) -> dict[str, str]:
    """Take the variables out of `environ`, if they are for this process; what they were."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    return {name: environ.pop(name) for name in NAMES if name in environ}


def sockets(variables: t.Mapping[str, str]) -> list[tuple[str, socket.socket]]:
    """The sockets that the variables tell of, each with its name.

    :raises ActivationError: LISTEN_FDS is no number, or a descriptor is no listening socket.
    """
    text = variables.get("LISTEN_FDS") or "0"
    if not (text.isascii() and text.isdigit()):
        raise ActivationError(f"found invalid count value: LISTEN_FDS={text}")
    names = variables.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * (int(text) - len(names))
    return [(names[i], _socket_of(FIRST + i)) for i in range(int(text))]


def _socket_of(fd: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise ActivationError(f"error inheriting socket fd {fd}: {error.strerror}") from error
    if sock.type != socket.SOCK_STREAM or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        # It may be anybody's.
        sock.detach()
        raise ActivationError(f"error inheriting socket fd {fd}: it is no listening stream socket")
    sock.set_inheritable(False)
    return sock
