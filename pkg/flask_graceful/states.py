"""The states of a connection, as the server's user sees them.

Owns their names and which of them may follow another.
"""

from __future__ import annotations

import enum


class ConnState(enum.IntEnum):
    """What a connection does; the values of Go's ConnState (row K1)."""

    NEW = 0
    ACTIVE = 1
    IDLE = 2
    HIJACKED = 3
    CLOSED = 4

    def __str__(self) -> str:
        return self.name.lower()


TRANSITIONS = {
    ConnState.NEW: {ConnState.ACTIVE, ConnState.CLOSED},
    ConnState.ACTIVE: {ConnState.IDLE, ConnState.HIJACKED, ConnState.CLOSED},
    ConnState.IDLE: {ConnState.ACTIVE, ConnState.CLOSED},
    ConnState.HIJACKED: set[ConnState](),
    ConnState.CLOSED: set[ConnState](),
}
