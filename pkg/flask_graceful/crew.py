"""The threads that poll and serve.

Owns the threads, who of them polls, and how many take part. Knows no socket and no HTTP: it gets
events from a poller and gives each to `target.handle(mask)`.

Strategy: whoever polls also serves what it found, so a request changes no thread. As few threads
as keep the interpreter busy take part: with several of them, each system call hands the
interpreter lock to another, which costs more than it wins. A pacemaker looks every few
milliseconds and lets more threads in when nothing moved since it last looked (they block, or one
request computes for long), or when work waits while the threads want little CPU; it sends them
away when they want all of it.

Rules: `handle` may block only on what its own request is about. One thread at a time polls.
"""

from __future__ import annotations

import logging
import threading
import time
import typing as t
from collections import deque
from contextlib import contextmanager

from .meter import CpuMeter

if t.TYPE_CHECKING:
    from .poller import Event, Poller

log = logging.getLogger("flask_graceful")

TICK = 0.005
# The share of one CPU that the crew wants, or spends waiting for work, over a tick: below the
# first, waiting work needs more threads; above the second, fewer threads do it faster.
CPU_FREE = 0.7
CPU_BUSY = 0.9
# Threads that may wait for their clients and not count; each costs some 100 KiB.
MOST_LENT = 256
# Work that makes more work must not keep the others from being seen.
MOST_BETWEEN_POLLS = 64
# Ticks without work after which the pacemaker sleeps until there is some.
IDLE_TICKS = 50


class Target(t.Protocol):
    """Something that events are for."""

    def handle(self, mask: int) -> None:
        """Do what can be done. Called by one of the crew's threads, perhaps by several at once."""

    def on_deadline(self) -> None:
        """The target's time is up. Must not block."""


class Crew:
    """Up to `most` threads round one poller."""

    def __init__(self, poller: Poller, most: int) -> None:
        self.poller = poller
        self._most = most
        self._ready: deque[Event] = deque()
        self._polling = threading.Lock()
        # Guards the three numbers and the standby list.
        self._lock = threading.Lock()
        self._alive = 0
        self._running = 0
        self._wanted = 1
        self._lent = 0
        self._standby: list[_Standby] = []
        self._progress = 0
        # Who finished something last.
        self._last: _Standby | None = None
        self._meter = CpuMeter()
        # Seconds spent in polls that have ended.
        self._polled = 0.0
        self._is_stopped = False
        self._pacemaker_sleeps = False
        self._pacemaker = threading.Event()

    def start(self) -> None:
        """Start the first thread, and the pacemaker when there may be more. Once."""
        with self._lock:
            if self._alive or self._is_stopped:
                return
            self._add_thread()
        if self._most > 1:
            threading.Thread(target=self._pace, name="graceful-pacemaker", daemon=True).start()

    def stop(self) -> None:
        """Send all threads home; each goes when it has finished what it does. Never blocks."""
        with self._lock:
            self._is_stopped = True
            if not self._alive:
                self.poller.close()
            standby, self._standby = self._standby, []
        for one in standby:
            one.call()
        self._pacemaker.set()
        self.poller.wake()

    def post(self, target: Target) -> None:
        """Have the target handled as if the poller had reported it. From any thread."""
        self._ready.append((target, 0))
        self.poller.wake()

    def repeat(self, target: Target) -> None:
        """The same from within `handle`: that thread looks here before it polls again."""
        self._ready.append((target, 0))

    @contextmanager
    def lend(self) -> t.Iterator[None]:
        """The calling thread waits for its own client: another may take its place meanwhile.

        Bounded, since clients can make threads wait for as long as time-outs allow.
        """
        with self._lock:
            # One thread means that the application bears no second one.
            is_lent = 1 < self._most and self._lent < MOST_LENT
            if is_lent:
                self._lent += 1
                self._running -= 1
        if is_lent and self._running < self._wanted and self._has_work():
            self._call(1)
        try:
            yield
        finally:
            if is_lent:
                with self._lock:
                    self._lent -= 1
                    self._running += 1

    def _has_work(self) -> bool:
        """Is there something to handle, or nobody who would see it come?"""
        return bool(self._ready) or not self._polling.locked()

    def _work(self) -> None:
        """A thread's life: handle what is ready, poll when nothing is, rest when others do."""
        ready = self._ready
        standby = _Standby()
        self._meter.watch()
        handled = 0
        while not self._is_stopped:
            if handled >= MOST_BETWEEN_POLLS and self._polling.acquire(False):
                handled = 0
                self._poll(waits=False)
            try:
                target, mask = ready.popleft()
            except IndexError:
                handled = 0
                if self._polling.acquire(False):
                    self._poll(waits=True)
                elif not self._rest(standby, is_surplus=False):
                    return
                continue
            handled += 1
            try:
                target.handle(mask)
            except Exception:
                log.exception("http: internal error in %r", target)
            self._progress += 1
            others_work, self._last = self._last is not standby, standby
            # The last one that moves stays: the others may be blocked for long.
            if others_work and self._running > self._wanted:
                if not self._rest(standby, is_surplus=True):
                    return
        with self._lock:
            self._leave_locked()

    def _leave_locked(self) -> None:
        """The calling thread ends. Counted at once, so that not all leave for the same reason."""
        self._meter.unwatch()
        self._running -= 1
        self._alive -= 1
        if not self._alive:
            self.poller.close()

    def _poll(self, waits: bool) -> None:
        """Get work, with the polling lock held; it is released before any work is done."""
        began = time.monotonic()
        events: list[Event] = []
        try:
            if not self._is_stopped:
                events = self.poller.poll(waits and not self._ready)
            self._polled += time.monotonic() - began
        finally:
            self._polling.release()
        self._expire()
        self._ready.extend(events)
        if self._pacemaker_sleeps:
            self._pacemaker_sleeps = False
            self._pacemaker.set()
        if events and self._wanted > self._running:
            # This thread takes one event; the others are for others, and one is to poll.
            self._call(min(len(events), self._wanted - self._running))

    def _expire(self) -> None:
        for target in self.poller.deadlines.expired():
            try:
                t.cast("Target", target).on_deadline()
            except Exception:
                log.exception("http: internal error in %r", target)

    def _rest(self, standby: _Standby, is_surplus: bool) -> bool:
        """Wait to be called; False when the thread is to end instead.

        A surplus thread stays when others have left before it.
        """
        with self._lock:
            if self._is_stopped or self._alive > self._limit():
                self._leave_locked()
                return False
            if is_surplus and self._running <= self._wanted:
                return True
            self._running -= 1
            self._standby.append(standby)
        # What came before this thread was on the list would wait for nobody.
        if self._running < self._wanted and self._has_work():
            self._call(1)
        standby.wait()
        return True

    def _limit(self) -> int:
        """The most threads there may be now."""
        return self._most + self._lent

    def _call(self, count: int) -> None:
        """Let `count` more threads take part."""
        called: list[_Standby] = []
        with self._lock:
            for _ in range(count):
                if self._is_stopped or self._running >= self._limit():
                    break
                if self._standby:
                    called.append(self._standby.pop())
                    self._running += 1
                elif self._alive >= self._limit() or not self._add_thread():
                    break
        for one in called:
            one.call()

    def _add_thread(self) -> bool:
        """Start a thread, with the lock held; False when the system has none to give."""
        name = f"graceful-{self._alive + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError as error:
            log.warning("http: %s; going on with %d threads", error, self._alive)
            return False
        self._alive += 1
        self._running += 1
        return True

    def _pace(self) -> None:
        still = 0
        seen = -1
        wall, polled = time.monotonic(), self._polled
        while not self._is_stopped:
            time.sleep(TICK)
            now, now_polled = time.monotonic(), self._polled
            waited = (now_polled - polled) / (now - wall)
            wall, polled = now, now_polled
            still, seen = (still + 1 if self._progress == seen else 0), self._progress
            is_polled = self._polling.locked()
            if is_polled and still > IDLE_TICKS:
                self._sleep_until_work()
                wall, polled = time.monotonic(), self._polled
                self._meter.read()
            else:
                self._adjust(self._meter.read(), waited, still, is_polled)

    def _sleep_until_work(self) -> None:
        self._pacemaker.clear()
        self._pacemaker_sleeps = True
        # A thread lets go of the polling lock before it looks whether the pacemaker sleeps.
        if self._polling.locked() and not self._is_stopped:
            self._pacemaker.wait()
        self._pacemaker_sleeps = False

    def _adjust(self, demand: float, waited: float, still: int, is_polled: bool) -> None:
        """Set how many threads take part, from one tick's observations.

        :param demand: CPUs that the threads wanted.
        :param waited: the share of the time in which there was nothing to do.
        :param still: ticks since a request was last finished.
        :param is_polled: somebody waits for events, so none can be overlooked.
        """
        is_stuck = not is_polled and still > 0
        if is_stuck:
            self._expire()
        if is_stuck and (demand < CPU_BUSY or still >= self._running):
            # All threads are inside requests. When these compute, the next one comes later
            # the more there are, since each takes the interpreter from the others.
            waiting = min(len(self._ready), self._running)
            self._wanted = min(self._limit(), self._running + max(1, waiting))
        elif self._ready and demand + waited < CPU_FREE:
            self._wanted = min(self._limit(), self._wanted * 2)
        elif demand > CPU_BUSY and self._wanted > 1:
            self._wanted -= max(1, self._wanted // 4)
        missing = self._wanted - self._running
        if missing > 0 and self._has_work():
            self._call(min(missing, len(self._ready) + 1))


class _Standby:
    """Where one thread waits to be called."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self) -> None:
        self._lock.acquire()

    def call(self) -> None:
        self._lock.release()
