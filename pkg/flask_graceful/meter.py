"""How much CPU a group of threads wants.

Owns the difference between a thread that waits for something and one that waits for its turn on a
CPU: on a busy machine both stand still, but only the first leaves room for another thread.

Strategy: Linux counts for each thread the time it ran and the time it was ready to run
(proc(5), schedstat). Where that is not to be had, the CPU time of the process has to do.
"""

from __future__ import annotations

import os
import threading
import time

_SCHEDSTAT = "/proc/thread-self/schedstat"


class CpuMeter:
    """Measures the threads that watch themselves with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[int, int] = {}
        self._wall = time.monotonic()
        self._seconds = 0.0

    def watch(self) -> None:
        """Count the calling thread from now on."""
        try:
            fd = os.open(_SCHEDSTAT, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            return
        with self._lock:
            self._files[threading.get_ident()] = fd
            self._seconds += _demand_of(fd)

    def unwatch(self) -> None:
        """The calling thread ends."""
        with self._lock:
            fd = self._files.pop(threading.get_ident(), None)
            if fd is not None:
                self._seconds -= _demand_of(fd)
                os.close(fd)

    def read(self) -> float:
        """CPUs wanted, on average since the last call: 1 is one thread that never waits."""
        with self._lock:
            if self._files:
                seconds = sum(map(_demand_of, self._files.values()))
            else:
                seconds = time.process_time()
            spent, self._seconds = seconds - self._seconds, seconds
        wall = time.monotonic()
        passed, self._wall = wall - self._wall, wall
        return spent / passed if passed > 0 else 0.0


def _demand_of(fd: int) -> float:
    """Seconds that a thread has run or was ready to."""
    ran, waited, _ = os.pread(fd, 64, 0).split()
    return (int(ran) + int(waited)) / 1e9
