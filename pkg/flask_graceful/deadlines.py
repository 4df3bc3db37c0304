"""Whose time is up, and when somebody is to look.

Owns what a deadline is, and those that are waited for.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
import typing as t

NEVER = math.inf
# The longest wait in one piece, in seconds: the system counts milliseconds, and not very far.
LONGEST_WAIT = 86400.0


def after(start: float, timeout: float) -> float:
    """The deadline of a time-out that began then; 0 is off."""
    return start + timeout if timeout else NEVER


class Timed(t.Protocol):
    """Something with a deadline: `time.monotonic()` seconds, NEVER for none."""

    deadline: float
    # The slot that will look at it next; kept by Deadlines.
    slot: float


class Deadlines:
    """Whose time is up. Deadlines move with each request, so moving one must cost nothing.

    Strategy: a target waits in a slot of 50 ms. A deadline that moves back is seen only when the
    old slot is due; one that moves forward is put into an earlier slot. Nothing fires early. A
    deadline that is to be met exactly has a slot of its own, between two others.
    """

    PER_SECOND = 20
    NO_SLOT: float = 1 << 62

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[float, set[Timed]] = {}
        self._due: list[float] = []

    def schedule(self, target: Timed, is_exact: bool = False) -> float | None:
        """Look at the target when its deadline is due; the slot, if one had to be opened."""
        # Read once: its owner may move it meanwhile.
        deadline = target.deadline
        if deadline * self.PER_SECOND >= self.NO_SLOT:
            return None
        slot = deadline * self.PER_SECOND if is_exact else int(deadline * self.PER_SECOND) + 1
        with self._lock:
            if slot >= target.slot:
                return None
            self._leave(target)
            target.slot = slot
            members = self._slots.get(slot)
            if members is not None:
                members.add(target)
                return None
            self._slots[slot] = {target}
            heapq.heappush(self._due, slot)
            return slot

    def forget(self, target: Timed) -> None:
        """The target is gone: keep no reference to it."""
        with self._lock:
            self._leave(target)
            target.slot = self.NO_SLOT

    def expired(self) -> list[Timed]:
        """The targets whose deadline has passed; each is reported once."""
        now = time.monotonic()
        over: list[Timed] = []
        later: list[Timed] = []
        with self._lock:
            while self._due and self._due[0] <= now * self.PER_SECOND:
                for target in self._slots.pop(heapq.heappop(self._due)):
                    target.slot = self.NO_SLOT
                    (over if target.deadline <= now else later).append(target)
        for target in later:
            self.schedule(target)
        return over

    def next_slot(self) -> float:
        """The slot that is due next, NO_SLOT when none is."""
        with self._lock:
            return self._due[0] if self._due else self.NO_SLOT

    def _leave(self, target: Timed) -> None:
        members = self._slots.get(target.slot)
        if members is not None:
            members.discard(target)
