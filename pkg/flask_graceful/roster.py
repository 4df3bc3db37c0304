"""The connections of a server: who is there, and whether there is room for more.

Owns the sets of open connections and of those that the application has taken over, the limit of
their number, who waits for room, and the word to other workers of how many there are.
"""

from __future__ import annotations

import threading
import typing as t

if t.TYPE_CHECKING:
    from .acceptor import Acceptor
    from .connection import Connection
    from .shares import Shares


class Roster:
    """From any thread.

    :param limit: most connections, those taken over included; 0: any number (row H12).
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: set[Connection] = set()
        self._taken: set[Connection] = set()
        # Those that wait until there is room for another connection.
        self._crowded: set[Acceptor] = set()
        # Where other workers see how many there are; None: nobody else serves the same listeners.
        self.shares: Shares | None = None
        self._told = 0

    def __len__(self) -> int:
        """How many are open, and not taken over."""
        return len(self._open)

    def open(self) -> list[Connection]:
        with self._lock:
            return list(self._open)

    def taken(self) -> list[Connection]:
        """Those that the application has taken over and not left yet."""
        with self._lock:
            return list(self._taken)

    def add(self, connection: Connection) -> None:
        with self._lock:
            self._open.add(connection)
            self._tell_locked()

    def take_over(self, connection: Connection) -> None:
        """The application has it from now on; `remove` tells when it has left it."""
        with self._lock:
            self._open.discard(connection)
            self._taken.add(connection)

    def remove(self, connection: Connection) -> None:
        """It is gone: another may come."""
        with self._lock:
            self._open.discard(connection)
            self._taken.discard(connection)
            self._tell_locked()
            crowded, self._crowded = self._crowded, set()
        for acceptor in crowded:
            acceptor.start()

    def clear(self) -> None:
        """Those that are open are nobody's business any more."""
        with self._lock:
            self._open.clear()
            self._tell_locked()

    def has_room(self, acceptor: Acceptor) -> bool:
        """May one more connection be accepted? If not, the acceptor is started when it may."""
        if not self._limit:
            return True
        with self._lock:
            if len(self._open) + len(self._taken) < self._limit:
                return True
            self._crowded.add(acceptor)
            return False

    def _tell_locked(self) -> None:
        if self.shares is not None:
            total = len(self._open) + len(self._taken)
            self.shares.change(total - self._told)
            self._told = total
