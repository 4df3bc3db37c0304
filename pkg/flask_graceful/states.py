"""What a connection does: as the server's user sees it, and as the poller does.

Owns the names of both, and which state may follow another.
"""

from __future__ import annotations

import enum


class ConnState(enum.IntEnum):
    """What a connection does; the values of Go's ConnState (row K1), and one more: the connection
    lives on in another process. There it begins as new or idle, whatever it was here."""

    NEW = 0
    ACTIVE = 1
    IDLE = 2
    HIJACKED = 3
    CLOSED = 4
    HANDED_OVER = 5

    def __str__(self) -> str:
        return self.name.lower()


# What may follow each state, by its number.
TRANSITIONS: tuple[tuple[ConnState, ...], ...] = (
    (ConnState.ACTIVE, ConnState.CLOSED, ConnState.HANDED_OVER),
    (ConnState.IDLE, ConnState.HIJACKED, ConnState.CLOSED),
    (ConnState.ACTIVE, ConnState.CLOSED, ConnState.HANDED_OVER),
    (),
    (),
    (),
)


class Phase(enum.Enum):
    """What the connection waits for when it has no owner."""

    HANDSHAKE = enum.auto()
    HEAD = enum.auto()
    FLUSH = enum.auto()
    DRAIN = enum.auto()
    LINGER = enum.auto()
    OVER = enum.auto()
