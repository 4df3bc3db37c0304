"""How many connections each worker has, for all workers to see, and whose turn it is to accept.

Owns a piece of memory that the workers of a service share: one number for each. A worker writes its
own, and looks at the others before it accepts, so that connections spread evenly: the kernel gives
most of them to whoever is the fastest to wake up.

Strategy: a worker that is ahead of another leaves the queue alone for some milliseconds. It comes
back at once when the others have caught up. If somebody still waits in the queue when the time is
over, the others are stuck or overloaded, and it takes a few; the next time it takes more.

Rules: a number is written by its worker alone, and by the supervisor when that has died. Who does
not accept has none, and nobody waits for it. No lock is shared, so a worker that stops anywhere
stops nobody else.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
import time
import typing as t

SLOTS = 256
# Its name among the files that a worker inherits.
NAME = "flask_graceful.shares"
# What stands for a worker that does not accept.
NONE = 0xFFFFFFFF
# A worker that has so many connections more than another, and a share of those that the other one
# has, is ahead of it.
LEAD = 2
LEAD_SHARE = 8

# How often a worker that leaves the queue to others looks whether they have caught up, in seconds.
TICK = 0.002
# How long it leaves the queue to them. A thread that computes keeps the interpreter for 5 ms from
# the one that accepts (sys.getswitchinterval), and that one is to have its chance.
PATIENCE = 0.008
# So much longer for each further worker that it is ahead of: of several who wait for one that is
# stuck, the one with the fewest comes first.
RANK_TIME = 0.002
MOST_RANKS = 3
# How many it takes then; by what the number grows as long as others do not empty the queue.
FIRST_QUOTA = 2
QUOTA_GROWTH = 2
MOST_QUOTA = 64

_NUMBER = struct.Struct("=I")


def create() -> int:
    """A descriptor of such memory, with no numbers in it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("flask-graceful-shares")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.pwrite(fd, _NUMBER.pack(NONE) * SLOTS, 0)
    return fd


def clear(fd: int, slot: int) -> None:
    """A worker is gone: nobody is to wait for it."""
    os.pwrite(fd, _NUMBER.pack(NONE), slot * _NUMBER.size)


class Shares:
    """One worker's view, for all its servers and their listeners. From any thread.

    :param fd: the memory; it is closed here.
    :param slot: where this worker's number stands.
    """

    def __init__(self, fd: int, slot: int) -> None:
        with os.fdopen(fd) as file:
            self._memory = mmap.mmap(file.fileno(), SLOTS * _NUMBER.size)
        # Aligned numbers of four bytes: each is read and written in one piece.
        self._numbers = memoryview(self._memory).cast("I")
        self._slot = slot
        self._lock = threading.Lock()
        self._count = 0
        self._accepting = 0

    def change(self, difference: int) -> None:
        """This worker has so many connections more."""
        with self._lock:
            self._count += difference
            self._write_locked()

    def enter(self) -> None:
        """One more of this worker's listeners accepts."""
        with self._lock:
            self._accepting += 1
            self._write_locked()

    def leave(self) -> None:
        """One of them does not accept any more."""
        with self._lock:
            self._accepting -= 1
            self._write_locked()

    def rank(self) -> int:
        """How many workers is this one ahead of? The next connection should be theirs."""
        # Slots are given out from the first one: the others have never been written.
        used = -(-len(self._memory[:].rstrip(b"\xff")) // _NUMBER.size)
        numbers = self._numbers[:used].tolist()
        # The most that a worker may have which this one is ahead of, or more.
        limit = self._count - LEAD
        if not numbers or min(numbers) > limit:
            return 0
        return sum(number + number // LEAD_SHARE <= limit for number in numbers)

    def _write_locked(self) -> None:
        self._numbers[self._slot] = self._count if self._accepting else NONE


class Turn:
    """Whose turn is it to accept from a listener? Its acceptor's, with the lock held."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self._until = 0.0
        # How many may be taken in spite of others.
        self._granted = 0
        self._quota = FIRST_QUOTA

    def is_ours(self) -> bool:
        """Is the next connection ours? Asked before each."""
        if not self.shares.rank():
            self._quota = FIRST_QUOTA
            return True
        self._granted -= 1
        return self._granted >= 0

    def is_over(self) -> None:
        """The queue is empty, or left to others: what was granted was for those who waited."""
        self._granted = 0

    def pass_on(self) -> None:
        """The others are to have their time."""
        ranks = min(self.shares.rank() - 1, MOST_RANKS)
        self._until = time.monotonic() + PATIENCE + ranks * RANK_TIME

    def has_come_back(self, is_queued: t.Callable[[], bool]) -> bool:
        """Is the queue ours again, since the others have caught up or have had their time?

        :param is_queued: does somebody wait in it?
        """
        if self.shares.rank() and time.monotonic() < self._until:
            return False
        if is_queued():
            self._granted = self._quota
            self._quota = min(self._quota * QUOTA_GROWTH, MOST_QUOTA)
        else:
            self._quota = FIRST_QUOTA
        return True
