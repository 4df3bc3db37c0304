"""The thread that looks at requests whose time is up.

Owns that thread, the limits, and who is looked at when.

Strategy: the crew's threads may all be inside the application, which is when somebody has to look;
so it is a thread of its own, one for all requests, and only where there is a limit. It sleeps until
the first deadline is due, and is woken only by one that comes before.

Rules: all clients whose time is up are answered before anything is logged, since a log may be what
the application is stuck in.
"""

from __future__ import annotations

import logging
import threading
import time
import typing as t

from .deadlines import LONGEST_WAIT, NEVER, Deadlines, Timed

if t.TYPE_CHECKING:
    from .running import RunningRequest

log = logging.getLogger("flask_graceful")


class Target(Timed, t.Protocol):
    """Something that has a limited time."""

    def on_deadline(self) -> t.Callable[[], object] | None:
        """Its time is up: see to the client, and return what tells others. Must not block."""


class Timekeeper:
    """From any thread. A limit of 0 is none.

    :param soft: seconds after which a request is answered 503.
    :param hard: seconds after which its process is better replaced.
    :param on_overdue: called with each request that is over the hard limit, once.
    """

    def __init__(
        self, soft: float, hard: float, on_overdue: t.Callable[[RunningRequest], object]
    ) -> None:
        self.soft = soft or NEVER
        self.hard = hard or NEVER
        self.on_overdue = on_overdue
        self._deadlines = Deadlines()
        self._news = threading.Event()
        self._sleeps_until = Deadlines.NO_SLOT
        self._lock = threading.Lock()
        self._is_started = self._is_stopped = False

    def start(self) -> None:
        """Start the thread, once.

        :raises RuntimeError: the system has none to give.
        """
        with self._lock:
            if not self._is_started and not self._is_stopped:
                threading.Thread(target=self._run, name="graceful-timekeeper", daemon=True).start()
                self._is_started = True

    def stop(self) -> None:
        """Look at nobody any more. Never blocks."""
        with self._lock:
            self._is_stopped = True
        self._news.set()

    def watch(self, target: Target) -> None:
        """Look at the target when its deadline is due."""
        slot = self._deadlines.schedule(target)
        if slot is not None and slot < self._sleeps_until:
            self._news.set()

    def forget(self, target: Target) -> None:
        """The target is done."""
        self._deadlines.forget(target)

    def _run(self) -> None:
        while not self._is_stopped:
            self._look()
            self._news.clear()
            # Whoever comes between the next two lines wakes this thread for nothing.
            self._sleeps_until = Deadlines.NO_SLOT
            self._sleeps_until = slot = self._deadlines.next_slot()
            if not self._is_stopped:
                self._news.wait(self._seconds_until(slot))

    def _seconds_until(self, slot: float) -> float | None:
        if slot == Deadlines.NO_SLOT:
            return None
        return min(max(0.0, slot / Deadlines.PER_SECOND - time.monotonic()), LONGEST_WAIT)

    def _look(self) -> None:
        tell: list[t.Callable[[], object]] = []
        for target in self._deadlines.expired():
            try:
                report = t.cast("Target", target).on_deadline()
            except Exception:
                log.exception("http: internal error in %r", target)
            else:
                tell += [report] if report is not None else []
        for report in tell:
            try:
                report()
            except Exception:
                log.exception("http: internal error in %r", report)
