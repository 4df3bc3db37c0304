"""The connections that leave this process.

Owns those that are between here and another process: they left their server, and have not arrived
or come back yet. Where they go is known by whoever inherits from this.
"""

from __future__ import annotations

import threading
import typing as t
from collections import deque

if t.TYPE_CHECKING:
    from .handover import Parcel
    from .life import Life
    from .loop import Loop


class Departures:
    """The loop's thread's, but for `hand_over` and `is_busy`."""

    # Is nobody left who could go on with connections?
    is_past = False

    def __init__(self, life: Life, loop: Loop) -> None:
        self._life = life
        self._loop = loop
        # Until the loop sees to them.
        self._departing: deque[Parcel] = deque()
        self._lock = threading.Lock()
        # How many have left and not yet arrived, or come back; and how many have arrived.
        self._under_way = 0
        self.arrived = 0

    @property
    def is_busy(self) -> bool:
        """Are connections on their way? From any thread."""
        return self._under_way > 0

    def hand_over(self, parcel: Parcel) -> None:
        """Take a connection to another process. From any thread."""
        self._count(1)
        self._departing.append(parcel)
        self._loop.post(self.see_off)

    def see_off(self) -> None:
        """Send what waits here."""
        raise NotImplementedError

    def let_go(self) -> None:
        """This process ends."""
        raise NotImplementedError

    def _take_back(self, parcels: list[Parcel]) -> None:
        """Go on with connections that could not leave."""
        for parcel in parcels:
            self._life.adopt(parcel, stays=self._life.is_relieved)
        self._count(-len(parcels))

    def _note_arrivals(self, count: int) -> None:
        self.arrived += count
        self._count(-count)

    def _count(self, change: int) -> None:
        with self._lock:
            self._under_way += change
