"""A server that gives way to another process, and can come back.

Owns the way from serving to having nothing left when a successor serves the same listeners, and
the way back when that one dies.

Strategy: relief is no shutdown. Nobody is accepted, but the listeners stay; connections say that
they go on, and go to the successor. What can't go (TLS, connections that the application has taken
over, those of an address that the successor has not) is treated as in a stop.
"""

from __future__ import annotations

import logging
import os
import typing as t

from .server import Server

if t.TYPE_CHECKING:
    import weakref

    from .connection import Connection

log = logging.getLogger("flask_graceful")

# How many requests a report names.
MOST_REPORTED = 10


class Watcher:
    """A request that only watches; it counts for as long as somebody holds this.

    :param thread: what `threading.get_ident` gives in the thread that runs it.
    """

    def __init__(self, thread: int) -> None:
        self.thread = thread


class ReliefServer(Server):
    """A `Server` as the life of a process sees it. The methods are the loop's thread's."""

    # Were keep-alives on before the relief?
    _kept_alive = True
    # Does the whole service stop, and every process of it know?
    _is_last = False
    # The requests in flight that only watch the service, and end when it wants to go. From any
    # thread.
    watchers: weakref.WeakSet[Watcher]

    def lame_duck(self) -> None:
        """Begin to shut down: idle connections stay, and may send one more request."""
        self._is_last = True
        # It is not over before the hooks, which may have work begun that is waited for.
        with self.track():
            self._begin_shutdown(drain_queues=True)
            self._run_shutdown_hooks()

    def _begin_shutdown(self, drain_queues: bool) -> None:
        if not self._is_last and self.has_old_process():
            # That one is not told of it, and goes on with the listeners.
            self._left_to_others = frozenset(one.listener.requested for one in self._acceptors)
        super()._begin_shutdown(drain_queues)

    def relieve(self, listening: t.Mapping[str, bool]) -> None:
        """Accept no more, and let connections go to a successor.

        :param listening: the listeners that it goes on with, and whether they are plain.
        """
        with self._lock:
            acceptors = list(self._acceptors)
            self._left_to_others = frozenset(listening)
            plain = {one.listener.requested for one in acceptors if one.is_plain}
            self._kept_alive = self.keeps_alive
            if self.keeps_alive:
                # First: no response may say that its connection ends.
                self.moving = frozenset(name for name in plain if listening.get(name))
            self.is_stopping = True
            self.keeps_alive = False
        with self.track():
            for acceptor in acceptors:
                if acceptor.listener.requested in listening:
                    acceptor.rest()
                else:
                    # Its address is given up.
                    acceptor.stop(drain_queue=True)
            self.shutdown_event.set()
            self._run_shutdown_hooks()
        for connection in self.connections():
            if connection.origin in self.moving:
                connection.retire()

    def stop_moving(self, is_over: bool) -> None:
        """No successor takes connections any more.

        :param is_over: nobody accepts any more; else another process does.
        """
        self.moving = frozenset()
        # What comes back has its time to ask once more.
        self.closes_idle = False
        for acceptor in list(self._acceptors):
            acceptor.stop(drain_queue=is_over, unlink=False)

    def end_relief(self) -> None:
        """Nothing is left to be done: leave the listeners to the successor."""
        for acceptor in list(self._acceptors):
            acceptor.stop(drain_queue=False, unlink=False)

    def resume(self) -> None:
        """Serve as before the relief."""
        self.shutdown_event.clear()
        with self._lock:
            self.closes_idle = not self._kept_alive
            self.keeps_alive = self._kept_alive
            acceptors = list(self._acceptors)
            # One that was shut down besides has nothing to come back with.
            self.is_stopping = not acceptors
            self.moving = self._left_to_others = frozenset()
        self._settle()
        for acceptor in acceptors:
            acceptor.start()

    def taken_over(self) -> list[Connection]:
        """The connections that the application has taken over."""
        return self._roster.taken()

    def cut_watchers(self) -> None:
        """The process is to end: who only watches, and does not even take the end of it, is not
        waited for."""
        threads = {one.thread for one in self.watchers}
        for connection in self.connections() if threads else []:
            request = connection.running()
            if request is not None and request.thread in threads:
                connection.abort()

    @property
    def has_drained(self) -> bool:
        """Is it shut down, with nothing left?"""
        return self._drained.is_set()

    def report(self, what: str) -> None:
        """Log what is waited for, or cut."""
        pid = os.getpid()
        running = self.running_requests()
        for request in running[:MOST_REPORTED]:
            log.warning("%d %s: %s", pid, what, request)
        if len(running) > MOST_REPORTED:
            log.warning("%d %s: %d more requests", pid, what, len(running) - MOST_REPORTED)
        if count := self.tracked:
            pieces = "piece" if count == 1 else "pieces"
            log.warning("%d %s: %d %s of tracked work", pid, what, count, pieces)

    def has_old_process(self) -> bool:
        """Is there a process that would go on when this one ends? From any thread."""
        raise NotImplementedError

    def is_moving(self) -> bool:
        """Are connections on their way to another process? From any thread."""
        raise NotImplementedError

    def is_empty(self) -> bool:
        # As endless, and unlike Go, it waits for connections that were taken over (row E10).
        return super().is_empty() and not self._roster.taken() and not self.is_moving()
