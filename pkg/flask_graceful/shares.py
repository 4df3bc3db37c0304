"""How many connections each worker has, for all workers to see.

Owns a piece of memory that the workers of a supervisor share: one number for each. A worker writes
its own, and looks at the others when it accepts, so that connections spread evenly: the kernel
would give most of them to the one that is fastest to wake up.

Rules: a number is written by its worker alone, and by the supervisor when that has died. Who does
not accept has none.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

SLOTS = 256
# What stands for a worker that does not accept.
NONE = 0xFFFFFFFF
# A worker may have this many connections more than the one with the fewest, and a share of those.
SLACK = 2
SLACK_SHARE = 8

_NUMBER = struct.Struct("=I")


def create() -> int:
    """A descriptor of such memory, with no numbers in it."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("flask-graceful-shares")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, SLOTS * _NUMBER.size)
    os.pwrite(fd, b"\xff" * (SLOTS * _NUMBER.size), 0)
    return fd


def clear(fd: int, slot: int) -> None:
    """A worker is gone."""
    os.pwrite(fd, _NUMBER.pack(NONE), slot * _NUMBER.size)


class Shares:
    """One worker's view.

    :param fd: the memory; it is closed here.
    :param slot: where this worker's number stands.
    """

    def __init__(self, fd: int, slot: int) -> None:
        with os.fdopen(fd) as file:
            self._memory = mmap.mmap(file.fileno(), SLOTS * _NUMBER.size)
        self._numbers = memoryview(self._memory).cast("I")
        self._slot = slot

    def write(self, count: int) -> None:
        """This worker accepts, and has so many connections."""
        self._numbers[self._slot] = count

    def leave(self) -> None:
        """This worker does not accept any more."""
        self._numbers[self._slot] = NONE

    def is_ahead(self, count: int) -> bool:
        """Has another worker so many fewer that the next connection should be its?"""
        fewest = min(self._numbers)
        return fewest != NONE and count >= fewest + SLACK + fewest // SLACK_SHARE
