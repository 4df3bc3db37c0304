"""Readiness and wake-ups, as events.

Owns the waiting: which sockets have something to say, and whose time is up.
`EpollPoller` is for Linux, `SelectorPoller` for every other system.

Strategy: a connection is registered once and reported at each edge, so that a request costs no
system call here. The stdlib's selectors know no edges; there a connection is reported once and
must be armed again. `arm` is therefore called by whoever lets go of a connection, and does
nothing where edges exist.

Rules: one thread at a time is inside `poll`; every other method may be called from any thread.
"""

from __future__ import annotations

import math
import os
import select
import selectors
import socket
import threading
import time
import typing as t

from .deadlines import LONGEST_WAIT, NEVER, Deadlines, Timed

READ = 1
WRITE = 2
HANGUP = 4


class Waker:
    """A socket pair whose one end can be polled and whose other end wakes the poll."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        return self._receiver.fileno()

    def sender_fileno(self) -> int:
        return self._sender.fileno()

    def wake(self) -> None:
        try:
            self._sender.send(b"\0")
        except OSError:
            # Full: a wake-up is on its way. Closed: nobody is left to wake.
            pass

    def drain(self) -> bytes:
        try:
            return self._receiver.recv(4096)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self._receiver.close()
        self._sender.close()


Event = tuple[t.Any, int]


class Poller:
    """What both pollers share: targets, the waker and deadlines."""

    def __init__(self) -> None:
        self.deadlines = Deadlines()
        self._waker = Waker()
        # When the current poll ends by itself, as a slot; a nearer deadline must wake it.
        self._sleeps_until = 0.0

    def schedule(self, target: Timed, is_exact: bool = False) -> None:
        """Have the target reported by `deadlines.expired()` once its deadline has passed: to the
        millisecond, or within a slot."""
        slot = self.deadlines.schedule(target, is_exact)
        if slot is not None and slot < self._sleeps_until:
            self.wake()

    def wake(self) -> None:
        """End the current poll, or the next one."""
        self._waker.wake()

    def poll(self, waits: bool = True) -> list[Event]:
        """Wait for events, at most until the next deadline is due; or take what is there."""
        slot = self.deadlines.next_slot()
        if not waits:
            timeout: float | None = 0.0
        elif slot == Deadlines.NO_SLOT:
            timeout = None
        else:
            timeout = max(0.0, slot / Deadlines.PER_SECOND - time.monotonic())
            timeout = min(timeout, LONGEST_WAIT)
        self._sleeps_until = slot
        events = self._wait(timeout)
        self._sleeps_until = 0.0
        return events

    def register(self, fd: int, target: object) -> None:
        """Report edges of a connection's socket (armed at once)."""
        raise NotImplementedError

    def register_level(self, fd: int, target: object) -> None:
        """Report a socket as long as it can be read, e.g. a listener."""
        raise NotImplementedError

    def arm(self, fd: int, write: bool = False) -> None:
        """The connection is nobody's again: report it; with `write` when it can be written."""
        raise NotImplementedError

    def unregister(self, fd: int) -> None:
        """Report the socket no more. Call it before the socket is closed or given away."""
        raise NotImplementedError

    def close(self) -> None:
        self._waker.close()

    def _wait(self, timeout: float | None) -> list[Event]:
        raise NotImplementedError


class EpollPoller(Poller):
    """epoll, edge-triggered (epoll(7))."""

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._targets: dict[int, object] = {}
        # Sockets whose edges for writing are reported too; asked for once, they keep coming.
        self._writers: set[int] = set()
        self._edges = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
        self._epoll.register(self._waker.fileno(), select.EPOLLIN)

    def register(self, fd: int, target: object) -> None:
        self._targets[fd] = target
        self._epoll.register(fd, self._edges)

    def register_level(self, fd: int, target: object) -> None:
        self._targets[fd] = target
        self._epoll.register(fd, select.EPOLLIN)

    def arm(self, fd: int, write: bool = False) -> None:
        if write and fd not in self._writers:
            self._writers.add(fd)
            self._epoll.modify(fd, self._edges | select.EPOLLOUT)

    def unregister(self, fd: int) -> None:
        self._writers.discard(fd)
        if self._targets.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        super().close()
        self._epoll.close()

    def _wait(self, timeout: float | None) -> list[Event]:
        events: list[Event] = []
        for fd, mask in self._epoll.poll(-1 if timeout is None else timeout, 256):
            target = self._targets.get(fd)
            if target is not None:
                events.append((target, _EPOLL_MASKS.get(mask) or _mask_of(mask)))
            elif fd == self._waker.fileno():
                self._waker.drain()
        return events


if hasattr(select, "epoll"):
    _HANGUPS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
    _EPOLL_MASKS = {select.EPOLLIN: READ, select.EPOLLOUT: WRITE}

    def _mask_of(mask: int) -> int:
        return (
            (READ if mask & select.EPOLLIN else 0)
            | (WRITE if mask & select.EPOLLOUT else 0)
            | (HANGUP if mask & _HANGUPS else 0)
        )


class SelectorPoller(Poller):
    """The stdlib's best selector (kqueue on macOS), each connection reported once until armed.

    Changes are queued and made by the polling thread: a selector may not be changed under it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._waker.fileno(), selectors.EVENT_READ, (None, True))
        self._lock = threading.Lock()
        self._targets: dict[int, object] = {}
        # What is to be watched from the next poll on; 0 is nothing.
        self._changes: dict[int, int] = {}
        self._levels: set[int] = set()
        self._is_waiting = False

    def register(self, fd: int, target: object) -> None:
        self._targets[fd] = target
        self.arm(fd)

    def register_level(self, fd: int, target: object) -> None:
        self._levels.add(fd)
        self.register(fd, target)

    def arm(self, fd: int, write: bool = False) -> None:
        # Who waits to write does not read meanwhile: what lies there would be reported for ever.
        self._change(fd, selectors.EVENT_WRITE if write else selectors.EVENT_READ)

    def unregister(self, fd: int) -> None:
        """Takes effect before it returns, since the caller closes the socket next."""
        with self._lock:
            self._targets.pop(fd, None)
            self._levels.discard(fd)
            self._changes.pop(fd, None)
            self._drop(fd)

    def close(self) -> None:
        super().close()
        self._selector.close()

    def _change(self, fd: int, interest: int) -> None:
        with self._lock:
            self._changes[fd] = interest
            must_wake = self._is_waiting
        if must_wake:
            self.wake()

    def _drop(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            # Reported and not armed since: it is not in the selector.
            pass

    def _apply_changes(self) -> None:
        for fd, interest in self._changes.items():
            self._drop(fd)
            self._selector.register(fd, interest, (self._targets[fd], fd in self._levels))
        self._changes.clear()
        self._is_waiting = True

    def _wait(self, timeout: float | None) -> list[Event]:
        with self._lock:
            self._apply_changes()
        ready = self._selector.select(timeout)
        events: list[Event] = []
        with self._lock:
            self._is_waiting = False
            for key, mask in ready:
                target, is_level = key.data
                if key.fd == self._waker.fileno():
                    self._waker.drain()
                elif self._targets.get(key.fd) is target:
                    if not is_level:
                        self._drop(key.fd)
                    events.append((target, mask))
        return events


def new_poller() -> Poller:
    """The best poller of this system; the portable one when FLASK_GRACEFUL_POLLER asks for it."""
    is_portable = os.environ.get("FLASK_GRACEFUL_POLLER") == "portable"
    return SelectorPoller() if is_portable or not hasattr(select, "epoll") else EpollPoller()


def wait_ready(sock: socket.socket, write: bool, deadline: float) -> bool:
    """Wait until one non-blocking socket can be read or written; False when the time is up.

    For the thread that owns a request, which may block on its own client.
    """
    timeout = None
    if deadline != NEVER:
        timeout = min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT)
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(sock.fileno(), select.POLLOUT if write else select.POLLIN)
        return bool(poll.poll(None if timeout is None else math.ceil(timeout * 1000)))
    sockets = [sock]
    readable, writable, _ = select.select(
        [] if write else sockets, sockets if write else [], [], timeout
    )
    return bool(readable or writable)
