"""The loop of the thread that sees to the process: signals, other processes, timers.

Owns that thread's poller, its timers, and what other threads have asked it to do.

Rules: what runs here must not wait for anybody, since a restart or a stop would wait with it.
"""

from __future__ import annotations

import time
import typing as t
from collections import deque

from .poller import NEVER, Deadlines, new_poller

if t.TYPE_CHECKING:
    from .channel import Channel

Action = t.Callable[[], object]


class Timer:
    """Calls a function when its time has come."""

    def __init__(self, func: Action) -> None:
        self.deadline = NEVER
        self.slot = Deadlines.NO_SLOT
        self.func = func


class Loop:
    """One thread's, but for `post`."""

    def __init__(self) -> None:
        self._poller = new_poller()
        self._posted: deque[Action] = deque()

    def post(self, func: Action) -> None:
        """Have the loop call `func`. From any thread."""
        self._posted.append(func)
        self._poller.wake()

    def turn(self) -> None:
        """Wait for something to happen, and see to it."""
        for action, _ in self._poller.poll():
            action()
        while self._posted:
            self._posted.popleft()()
        for timer in self._poller.deadlines.expired():
            t.cast("Timer", timer).func()

    def watch(self, fd: int, action: Action) -> None:
        """Call `action` as long as the descriptor can be read."""
        self._poller.register_level(fd, action)

    def watch_channel(self, channel: Channel, action: Action) -> None:
        """Call `action` when something comes over the channel, or goes again; it takes in all that
        is there, and calls `rearm`."""
        self._poller.register(channel.fileno(), action)
        self.rearm(channel)

    def rearm(self, channel: Channel) -> None:
        """Something may have come to wait in the channel, or have gone out."""
        self._poller.arm(channel.fileno(), write=channel.has_output)

    def unwatch(self, fd: int) -> None:
        """Before the descriptor is closed."""
        self._poller.unregister(fd)

    def set(self, timer: Timer, seconds: float) -> None:
        """Have the timer go off once; 0 seconds: never."""
        if seconds:
            timer.deadline = time.monotonic() + seconds
            self._poller.schedule(timer)

    def cancel(self, timer: Timer) -> None:
        self._poller.deadlines.forget(timer)

    def close(self) -> None:
        self._poller.close()
