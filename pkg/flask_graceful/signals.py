"""Signals as events.

Owns the handlers of a process while it is served, and what has come.
"""

from __future__ import annotations

import os
import signal
import typing as t

from .poller import Waker


class Signals:
    """Signals as events: a readable file descriptor instead of code that interrupts code.

    A context manager, for the main thread only. What came is `read()`; nothing is lost while
    other work is done. Handlers and wake-up descriptor of before are put back at the end.
    """

    def __init__(self, numbers: t.Iterable[int]) -> None:
        self._numbers = tuple(numbers)
        self._waker = Waker()

    def __enter__(self) -> Signals:
        fd = self._waker.sender_fileno()
        self._old_fd = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, _noted) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._old_fd)
        self._waker.close()

    def fileno(self) -> int:
        return self._waker.fileno()

    def read(self) -> list[int]:
        """The signals that came since the last call, in their order."""
        return [number for number in self._waker.drain() if number in self._numbers]

    def ignore(self) -> None:
        """The process is about to end: none of them is to end it otherwise."""
        self._old = dict.fromkeys(self._old, signal.SIG_IGN)

    def send_again(self) -> None:
        """Have those that nobody has read come once more. While they are blocked, they wait for
        the program that takes this one's place."""
        for number in self.read():
            os.kill(os.getpid(), number)


def _noted(signum: int, frame: object) -> None:
    """The wake-up descriptor has the signal's number; there is nothing to do in its frame."""
