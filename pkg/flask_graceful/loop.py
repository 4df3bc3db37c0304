"""The loop of the thread that sees to the process: signals, other processes, timers.

Owns that thread's poller, its timers, and what other threads have asked it to do.

Rules: what runs here must not wait for anybody, since a restart or a stop would wait with it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import typing as t
from collections import deque
from queue import SimpleQueue

from .deadlines import NEVER, Deadlines
from .poller import new_poller

log = logging.getLogger("flask_graceful")

Action = t.Callable[[], object]
# Takes the answer to what was asked: how it has failed, which may be a `Reason` that knows more, or
# "" when it has not.
Tell = t.Callable[[str], object]


class Reason(str):
    """How something has failed, in one line; and what the program has said last that was to be
    started."""

    lines: t.Sequence[str] = ()

    @classmethod
    def of(cls, text: str, lines: t.Sequence[str]) -> Reason:
        reason = cls(text)
        reason.lines = lines
        return reason


class Duplex(t.Protocol):
    """What is read and written in turn: a `Channel` or the like."""

    def fileno(self) -> int: ...

    @property
    def has_output(self) -> bool:
        """Is something left to be written?"""


def to_nobody(answer: str) -> None:
    """Nobody has asked."""


def to_all(tells: t.Sequence[Tell]) -> Tell:
    """Tell several the same."""

    def tell(answer: str) -> None:
        for one in tells:
            one(answer)

    return tell


class Timer:
    """Calls a function when its time has come."""

    def __init__(self, func: Action) -> None:
        self.deadline = NEVER
        self.slot = Deadlines.NO_SLOT
        self.func = func


class Loop:
    """The thread's that makes it, but for `post` and `ask`."""

    def __init__(self) -> None:
        self._poller = new_poller()
        self._posted: deque[Action] = deque()
        self._thread = threading.get_ident()
        # Where those who ask wait for their answers; None once the loop has ended.
        self._asking: set[SimpleQueue[str | None]] | None = set()
        self._lock = threading.Lock()

    def post(self, func: Action) -> None:
        """Have the loop call `func`. From any thread."""
        self._posted.append(func)
        self._poller.wake()

    def ask(self, func: t.Callable[[Tell], object]) -> str | None:
        """Have the loop call `func`, and wait until an answer is told; None when the loop ends
        before. From any other thread.

        :raises RuntimeError: called in the loop's own thread, where waiting would never end.
        """
        answer: SimpleQueue[str | None] = SimpleQueue()
        with self._lock:
            if self._asking is None:
                return None
            if self._thread == threading.get_ident():
                raise RuntimeError("a hook can't wait for what happens when it has returned")
            self._asking.add(answer)
        self.post(lambda: func(answer.put))
        try:
            return answer.get()
        finally:
            with self._lock:
                if self._asking is not None:
                    self._asking.discard(answer)

    def turn(self) -> None:
        """Wait for something to happen, and see to it."""
        for action, _ in self._poller.poll():
            _call(action)
        while self._posted:
            _call(self._posted.popleft())
        for timer in self._poller.deadlines.expired():
            _call(t.cast("Timer", timer).func)

    def watch(self, fd: int, action: Action) -> None:
        """Call `action` as long as the descriptor can be read."""
        self._poller.register_level(fd, action)

    def watch_channel(self, channel: Duplex, action: Action) -> None:
        """Call `action` when something comes over the channel, or goes again; it takes in all that
        is there, and calls `rearm`."""
        self._poller.register(channel.fileno(), action)
        self.rearm(channel)

    def rearm(self, channel: Duplex) -> None:
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

    def resume(self, timer: Timer) -> None:
        """Have a timer go off that was set in the program before this one."""
        self._poller.schedule(timer)

    def cancel(self, timer: Timer) -> None:
        self._poller.deadlines.forget(timer)
        timer.deadline = NEVER

    def close(self) -> None:
        with self._lock:
            asking, self._asking = self._asking or set(), None
        for answer in asking:
            answer.put(None)
        self._poller.close()


def _call(action: Action) -> None:
    try:
        action()
    except Exception:
        # Whatever is wrong with one thing, requests are still to be served.
        log.exception("%d internal error", os.getpid())
