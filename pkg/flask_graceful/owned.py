"""Who may touch a connection, and how the poller gets at it.

Owns the claim on a connection and its place in the poller.

Strategy: whoever holds the claim (a lock that nobody waits for) is the connection's owner. A
crew's thread claims it when the poller reports it, and does what its phase asks for. An event for
a connection that is claimed is noted, and its owner looks again before it goes.

Rules: only an owner closes the socket; others cut it, which the owner notices.
"""

from __future__ import annotations

import logging
import threading
import time
import typing as t

from .deadlines import NEVER, Deadlines
from .poller import HANGUP, READ
from .states import Phase

if t.TYPE_CHECKING:
    from .host import Host
    from .wire import Wire

log = logging.getLogger("flask_graceful")


class Owned:
    """A socket in a server's poller. `handle` and `on_deadline` are the poller's doors; all other
    methods are the owner's."""

    __slots__ = (
        "_claim",
        "_fd",
        "_host",
        "_look_again",
        "_phase",
        "_wire",
        "deadline",
        "slot",
    )

    def __init__(self, host: Host, wire: Wire, phase: Phase) -> None:
        self.deadline = NEVER
        self.slot = Deadlines.NO_SLOT
        self._host = host
        self._wire = wire
        self._fd = wire.sock.fileno()
        self._claim = threading.Lock()
        self._look_again = False
        self._phase = phase

    def handle(self, mask: int) -> None:
        """The poller has seen something on the socket, or somebody asks to look."""
        if mask & HANGUP:
            self._wire.hung_up = True
        while self._claim_or_note():
            if mask & READ:
                self._wire.has_more = True
            try:
                self._step()
            except Exception:
                log.exception("http: internal error in %r", self)
                self._end()
            finally:
                self._claim.release()
            if not self._look_again:
                return
            # Whoever left the note may have seen anything.
            mask = READ

    def on_deadline(self) -> None:
        """Time is up: silence, in every phase (row TM13)."""
        if not self._claim.acquire(False):
            # Its owner is at work, and schedules the deadline that holds then.
            return
        try:
            if self._phase is not Phase.OVER:
                if self.deadline > time.monotonic():
                    self._park()
                elif self._has_news():
                    self._host.crew.post(self)
                else:
                    self._end()
        finally:
            self._let_go()

    def _has_news(self) -> bool:
        """Has something come in time that nobody has looked at yet?"""
        return False

    def _step(self) -> None:
        """Do what the phase asks for."""
        raise NotImplementedError

    def _end(self) -> None:
        """Close the socket, whatever the phase; once it is over, nothing happens."""
        raise NotImplementedError

    def _claim_or_note(self) -> bool:
        """Become the owner; or leave a note, so that the owner looks again before it goes."""
        if not self._claim.acquire(False):
            self._look_again = True
            # The owner may have looked for the last time before the note was made.
            if not self._claim.acquire(False):
                return False
        self._look_again = False
        return True

    def _let_go(self) -> None:
        """Give the claim back, outside `handle`; what was noted meanwhile is not lost."""
        self._claim.release()
        if self._look_again:
            self._host.crew.post(self)

    def _enter_poller(self) -> None:
        """Begin to be polled.

        :raises OSError: the system refuses.
        """
        self._host.crew.poller.register(self._fd, self)
        self._host.crew.poller.schedule(self)

    def _leave_poller(self) -> None:
        self._phase = Phase.OVER
        poller = self._host.crew.poller
        poller.unregister(self._fd)
        poller.deadlines.forget(self)

    def _park(self) -> None:
        """Let the poller report the connection from now on."""
        poller = self._host.crew.poller
        poller.arm(self._fd, self._phase is Phase.FLUSH)
        if self.deadline * Deadlines.PER_SECOND < self.slot - 1:
            poller.schedule(self)

    def _go_on(self) -> None:
        """Park; or be handled again when the poller might not report what is there."""
        self._park()
        wire = self._wire
        if wire.has_more or wire.hung_up:
            wire.has_more = False
            self._host.crew.repeat(self)
