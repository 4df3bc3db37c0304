"""Connections on their way from an old process to its successor.

Owns what a connection is while it has no server (`Parcel`), and the order in which parcels travel:
`Sender` is the old process's side, `unpack` and `receipt` are the successor's. Knows no server.

Strategy: parcels go in records of up to 253, and at most WINDOW records are under way. The
successor answers each with a receipt before it touches what was in it. Until then the old process
keeps the socket and can go on with the connection itself; from then on only the successor has it.

Rules: a parcel is either here or there, never served by both. What the successor could not take,
or had not confirmed when it died, comes back from the sender.
"""

from __future__ import annotations

import math
import os
import socket
import typing as t
from collections import deque

from .channel import MAX_DESCRIPTORS, Channel, Record
from .states import ConnState

# Records under way: one is received while the next one is made.
WINDOW = 2
# Bytes of half-received heads in one record.
MAX_RECORD_DATA = 1 << 20


class Parcel(t.NamedTuple):
    """A connection that waits for its next request, or has received a part of it.

    Times are `time.monotonic()` seconds, which the processes of one system share.
    """

    sock: socket.socket
    # The listener that it came from, by the address that the old process asked for.
    origin: str
    peer: t.Any
    # What was received and not used yet.
    data: bytes
    state: ConnState
    accepted: float
    # When the next request began to arrive; 0: not yet.
    began: float
    deadline: float


class Sender:
    """Parcels on their way out. One thread's."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: deque[Parcel] = deque()
        self._under_way: dict[int, list[Parcel]] = {}
        self._number = 0
        self._delivered = 0

    @property
    def is_empty(self) -> bool:
        """Is nothing waiting or under way?"""
        return not self._waiting and not self._under_way

    def put(self, parcel: Parcel) -> None:
        """Queue a parcel; `push` sends it."""
        self._waiting.append(parcel)

    def push(self) -> None:
        """Send what may go now. What does not arrive is `take_back`'s."""
        try:
            self._channel.flush()
            while self._waiting and len(self._under_way) < WINDOW:
                self._send(self._next())
        except OSError:
            # It is gone, which is noticed where its channel is read.
            pass

    def _next(self) -> list[Parcel]:
        parcels: list[Parcel] = []
        size = 0
        while self._waiting and len(parcels) < MAX_DESCRIPTORS and size < MAX_RECORD_DATA:
            parcels.append(self._waiting.popleft())
            size += len(parcels[-1].data)
        return parcels

    def _send(self, parcels: list[Parcel]) -> None:
        self._number += 1
        self._under_way[self._number] = parcels
        self._channel.send(
            {"parcels": [_packed(parcel) for parcel in parcels], "number": self._number},
            [parcel.sock.fileno() for parcel in parcels],
        )

    def on_receipt(self, data: dict[str, t.Any]) -> list[Parcel]:
        """The other process has what it says; the parcels that it could not take."""
        parcels = self._under_way.pop(data["receipt"], [])
        count = data["count"]
        for parcel in parcels[:count]:
            parcel.sock.close()
        self._delivered += len(parcels[:count])
        return parcels[count:]

    def take_delivered(self) -> int:
        """How many parcels have arrived since the last call."""
        delivered, self._delivered = self._delivered, 0
        return delivered

    def take_back(self) -> list[Parcel]:
        """The other process is gone: the parcels that did not arrive, in their order."""
        parcels = [parcel for sent in self._under_way.values() for parcel in sent]
        self._under_way.clear()
        return parcels + self.take_back_waiting()

    def take_back_waiting(self) -> list[Parcel]:
        """The parcels that were not sent yet."""
        parcels: list[Parcel] = []
        while self._waiting:
            parcels.append(self._waiting.popleft())
        return parcels


def receipt(record: Record) -> dict[str, t.Any]:
    """What answers a record of parcels, before any of them is touched."""
    return {"receipt": record.data["number"], "count": len(record.fds)}


def refusal(record: Record) -> dict[str, t.Any]:
    """What answers a record of parcels from which none is taken."""
    for fd in record.fds:
        os.close(fd)
    return {"receipt": record.data["number"], "count": 0}


def unpack(record: Record) -> list[Parcel]:
    """The parcels in a record, as far as their sockets have arrived."""
    return [
        _unpacked(fd, fields)
        for fd, fields in zip(record.fds, record.data["parcels"], strict=False)
    ]


def _packed(parcel: Parcel) -> list[t.Any]:
    deadline = None if parcel.deadline == math.inf else parcel.deadline
    # A client of a Unix socket has no name that anybody would miss.
    peer = parcel.peer if isinstance(parcel.peer, tuple) else ""
    data = parcel.data.decode("latin-1")
    times = [parcel.accepted, parcel.began, deadline]
    return [parcel.origin, peer, data, int(parcel.state), *times]


def _unpacked(fd: int, fields: list[t.Any]) -> Parcel:
    origin, peer, data, state, accepted, began, deadline = fields
    sock = socket.socket(fileno=fd)
    sock.setblocking(False)
    return Parcel(
        sock,
        origin,
        tuple(peer) if isinstance(peer, list) else peer,
        data.encode("latin-1"),
        ConnState(state),
        accepted,
        began,
        math.inf if deadline is None else deadline,
    )
