"""The life of a serving process: from its beginning, through relief, to its end.

Owns what the `GracefulServer`s of a process do from the first signal handler to the last response,
whoever starts and relieves it: `sole` for a process of its own, `worker` for one of several.

Strategy: one loop, in one thread, and all state of a restart or a stop is its own. Signals, other
processes, timers and the word that a server has drained reach it as events; nothing happens in a
signal handler. A process that is relieved accepts no more, hands its connections over and finishes
its requests; but it keeps the listening sockets, and can serve again.

Rules: a listening socket is never closed while it has no other owner and connections in its queue.
"""

from __future__ import annotations

import enum
import logging
import os
import typing as t
from contextlib import ExitStack

from .deadlines import NEVER
from .hooks import SIGNALS
from .inheritance import take_inheritance
from .listeners import acquire, give_up
from .loop import Loop, Tell, Timer, to_nobody
from .output import Streams
from .signals import Signals

if t.TYPE_CHECKING:
    from .acceptor import Acceptor
    from .channel import Record
    from .departures import Departures
    from .handover import Parcel
    from .inheritance import Inheritance
    from .listeners import Address, Listener
    from .predecessor import Predecessor, Predecessors
    from .restart import GracefulServer

log = logging.getLogger("flask_graceful")

# How often a process that finishes its requests says which ones, in seconds.
REPORT_TIME = 5.0
# How long somebody who only watches has to take the end of that, in seconds.
WATCHERS_TIME = 1.0
# How long connections still have to go to another process when the hammer falls, in seconds. Who is
# served in that time was about to be.
DEPARTURE_TIME = 0.5


class State(enum.Enum):
    """Where the process is in its life (row E1)."""

    INIT = enum.auto()
    RUNNING = enum.auto()
    # Told to stop, and serving on for `shutdown_delay`.
    DELAYING = enum.auto()
    # A successor serves; this process finishes its requests.
    RELIEVED = enum.auto()
    SHUTTING_DOWN = enum.auto()
    TERMINATED = enum.auto()


class Life:
    """From the first signal handler to the last response. The loop's thread's, but for `post`,
    `ask` and `hand_over`.

    :param servers: served together; what concerns the process is as the first one has it.
    """

    # What is listened to.
    signals: t.Mapping[int, str] = SIGNALS
    # How far a stop of the whole service has come, if this process has been told of one.
    service_ends: State | None = None
    # The way of connections to other processes, and the processes whose connections come here.
    _departures: Departures
    _predecessor: Predecessor | Predecessors

    def __init__(self, servers: t.Sequence[GracefulServer]) -> None:
        self._servers = servers
        self._first = servers[0]
        self.settings = self._first.settings
        self.state = State.INIT
        self._loop = Loop()
        self.post = self._loop.post
        self.ask = self._loop.ask
        self._acceptors: list[Acceptor] = []
        # Connections that have come from older processes.
        self._received = 0
        self._hammer_time = self.settings.hammer_time
        self._streams = Streams([], [])
        self._grace_timer = Timer(self._retire)
        self._hammer_timer = Timer(self._hammer)
        self._cut_timer = Timer(self._cut)
        self._report_timer = Timer(self._report)
        self._watchers_timer = Timer(self._cut_watchers)

    @property
    def generation(self) -> int:
        """Of this process, counted by restarts; a worker's by its supervisor. From any thread."""
        raise NotImplementedError

    @property
    def is_relieved(self) -> bool:
        """Does a successor serve, while this process finishes its requests?"""
        return self.state is State.RELIEVED

    @property
    def is_stopping(self) -> bool:
        """Is the service to end?"""
        return self.state in (State.DELAYING, State.SHUTTING_DOWN, State.TERMINATED)

    def run(self) -> None:
        """Serve until a signal, `stop` or a successor ends it.

        :raises OSError: accepting failed for good, or nothing was served.
        :raises ServerClosed: a server was told to stop before.
        """
        try:
            for server in self._servers:
                server.enter(self)
            with ExitStack() as stack:
                if self._first.handles_signals:
                    signals = stack.enter_context(Signals(self.signals))
                    self._loop.watch(signals.fileno(), lambda: self._on_signals(signals))
                self._begin()
                while not all(server.has_drained for server in self._servers):
                    self._loop.turn()
                log.info("%d Serve() returning...", os.getpid())
        finally:
            self._clean_up()
        failure = self._failure()
        if failure is not None:
            raise failure

    def look(self) -> None:
        """Something has changed: when it is the last thing that was waited for, it is the end."""
        if self.state is State.RUNNING and self._failure() is not None:
            # Nobody is served any more, but not before the requests are finished.
            self._end_in_failure()
        elif self.is_relieved or self.state is State.SHUTTING_DOWN:
            is_done = self.is_relieved and not self._is_busy()
            for server in self._servers:
                if is_done:
                    server.end_relief()
                # The last listener may have gone before the last connection came back, and went.
                server._settle()

    def hand_over(self, parcel: Parcel) -> None:
        """Take a connection to another process. From any thread."""
        self._departures.hand_over(parcel)

    def is_moving(self) -> bool:
        """Are connections on their way to another process? From any thread."""
        return self._departures.is_busy

    def _is_busy(self) -> bool:
        """Is there something that a relieved process still has to do?"""
        return (
            any(not server.is_empty() for server in self._servers)
            or self.is_moving()
            # Its connections travel through this process.
            or (self._predecessor.is_there and not self._departures.is_past)
        )

    def _failure(self) -> Exception | None:
        """The error by which accepting ended, if it was none of ours."""
        return next((one.error for one in self._acceptors if one.has_failed()), None)

    def _clean_up(self) -> None:
        self.state = State.TERMINATED
        self._close_door()
        self._predecessor.close()
        self._departures.let_go()
        self._loop.close()
        for server in self._servers:
            server.leave(self, bool(self._acceptors))

    # The beginning.

    def _begin(self) -> None:
        """Get the listeners, run the hooks, accept, and tell the old process if there is one."""
        inherited = take_inheritance()
        addresses = {
            address: server.settings.tcp_keep_alive
            for server in self._servers
            for address in server.addresses
        }
        listeners = self._acquire(addresses, inherited)
        try:
            by_text = dict(zip((one.text for one in addresses), listeners, strict=True))
            own = [[by_text[one.text] for one in server.addresses] for server in self._servers]
            for server, some in zip(self._servers, own, strict=True):
                server.run_before_begin(some)
            for server, some in zip(self._servers, own, strict=True):
                self._acceptors += server.take_on_all(some)
            self._open_door(inherited)
            old = inherited.parent[1] if inherited.parent and inherited.worker is None else 0
            for server in self._servers:
                server.log_start(old)
        except BaseException:
            give_up(listeners)
            raise
        self.state = State.RUNNING
        inherited.close_files()
        self._streams = inherited.streams
        self._streams.restore()
        self._announce(inherited)

    def _acquire(self, addresses: dict[Address, float], inherited: Inheritance) -> list[Listener]:
        """The listeners of these addresses, in their order.

        :raises ListenError: there is none for one of them.
        """
        return acquire(addresses, inherited.listeners)

    def _open_door(self, inherited: Inheritance) -> None:
        """Let others find this process.

        :raises PidFileError: the file can't be written.
        :raises ControlError: the control socket can't be where the setting says.
        """

    def _open_door_again(self) -> None:
        """Another process that was to be found has died."""

    def _close_door(self) -> None:
        """The process ends."""

    def _announce(self, inherited: Inheritance) -> None:
        """Everything is ready: say so, and accept when that is right."""
        raise NotImplementedError

    def _listening(self) -> dict[str, bool]:
        """The inherited listeners that it goes on with, and whether they are plain."""
        going_on = [one for one in self._acceptors if one.listener.inherited_as]
        return {one.listener.inherited_as: one.is_plain for one in going_on}

    def _start_accepting(self) -> None:
        if not self._predecessor.is_there:
            self.forget_parent()
        for acceptor in self._acceptors:
            acceptor.start()

    def forget_parent(self) -> None:
        """No old process is beside this one any more."""
        for server in self._servers:
            server.parent_gone.set()

    def see_to_streams(self) -> None:
        """Pass on what is printed into the pipes of this boot and of earlier ones: the process
        before this one does not any more."""
        if not self.is_relieved:
            self._streams.watch(self._loop)

    def takes_connections(self) -> bool:
        """Can another process's connections go on here, or through here?"""
        if any(server.has_drained for server in self._servers):
            return False
        if self.is_relieved:
            return not self._departures.is_past
        return self.state in (State.RUNNING, State.DELAYING)

    @property
    def moved(self) -> dict[str, int]:
        """The connections that have come from other processes, and have gone to them."""
        return {"in": self._received, "out": self._departures.arrived}

    def receive(self, parcels: t.Sequence[Parcel]) -> None:
        """Go on with connections of an older process."""
        self._received += len(parcels)
        for parcel in parcels:
            self.adopt(parcel)

    def adopt(self, parcel: Parcel, stays: bool = False) -> None:
        """Go on with a connection that comes from another process.

        :param stays: or comes back from one, and is not to leave again.
        """
        for one in self._acceptors:
            if parcel.origin in (one.listener.inherited_as, one.listener.requested):
                one.adopt(parcel, stays)
                return
        log.error("%d No listener is left for a connection of %s", os.getpid(), parcel.origin)
        parcel.sock.close()

    # What others ask for.

    def _on_signals(self, signals: Signals) -> None:
        raise NotImplementedError

    def restart(self, tell: Tell = to_nobody) -> None:
        """As a signal would.

        :param tell: takes the reason when nobody takes over, "" when somebody has.
        """
        raise NotImplementedError

    def replace_because(self, reason: str) -> None:
        """Only another process can mend it: have this one replaced, if that is not under way."""
        raise NotImplementedError

    def stop_as_told(self, timeout: float | None, tell: Tell = to_nobody) -> None:
        """:param timeout: seconds, instead of the setting; 0: any time.
        :param tell: takes the reason when a hook has refused.
        """
        raise NotImplementedError

    def stop_with_others(self) -> None:
        """The service is to end, in every process of it, and nobody is asked any more."""
        raise NotImplementedError

    def restart_for(self, record: Record) -> None:
        """Do what an older process was asked for.

        :param record: tells who waits for it.
        """
        raise NotImplementedError

    def _run_signal_hooks(self, when: int, signum: int) -> None:
        for server in self._servers:
            server.run_signal_hooks(when, signum)

    def limit(self, timeout: float) -> None:
        """Seconds that requests get from now on, in a stop that has begun; 0: any time."""
        self._hammer_time = timeout
        if self.state is State.SHUTTING_DOWN:
            self._loop.cancel(self._hammer_timer)
            self._loop.set(self._hammer_timer, timeout)

    def _may_stop(self) -> bool:
        """Does no hook object?"""
        return all(server.may_stop() for server in self._servers)

    # Relief.

    def _relieve(self, listening: t.Mapping[str, bool]) -> None:
        """Accept no more, and let connections go to another process.

        :param listening: the listeners that it goes on with, and whether they are plain.
        """
        self.state = State.RELIEVED
        # First: should this process die, the old one must know that somebody serves.
        self._predecessor.tell_succeeded(1)
        for server in self._servers:
            server.relieve(listening)
        self._departures.see_off()
        self._announce_end()

    def end_succession(self, is_over: bool) -> None:
        """Connections end here from now on.

        :param is_over: so does the service; else another process goes on with it.
        """
        if not self.is_relieved:
            return
        if is_over:
            self.service_ends = State.SHUTTING_DOWN
            self._predecessor.tell_leaving()
        for server in self._servers:
            server.stop_moving(is_over)
        self._begin_grace()

    def resume(self) -> None:
        """The successor has died: serve again, or on."""
        if self.is_relieved:
            for timer in (
                self._grace_timer, self._hammer_timer, self._cut_timer, self._report_timer,
                self._watchers_timer,
            ):  # fmt: skip
                self._loop.cancel(timer)
            self.state = State.RUNNING
            # Should this process die too, it is the old one's turn.
            self._predecessor.tell_succeeded(0)
            self.see_to_streams()
            for server in self._servers:
                server.resume()
        if self.state is State.RUNNING:
            self._open_door_again()

    # The end.

    def _end_in_failure(self) -> None:
        """Accepting has failed for good."""
        self._shut_down()

    def _shut_down(self) -> None:
        """Nobody takes over: accept no more, and finish what has begun."""
        self.state = State.SHUTTING_DOWN
        self._predecessor.tell_leaving()
        for server in self._servers:
            server.lame_duck()
        self._announce_end()

    def _log_end(self) -> None:
        for acceptor in self._acceptors:
            log.info("%d %s Listener closed.", os.getpid(), acceptor.listener.address)

    def _announce_end(self) -> None:
        self._log_end()
        log.info("%d Waiting for connections to finish...", os.getpid())
        self._loop.set(self._hammer_timer, self._hammer_time)
        self._loop.set(self._report_timer, REPORT_TIME)
        self._loop.set(self._watchers_timer, WATCHERS_TIME)
        self._begin_grace()

    def _begin_grace(self) -> None:
        if self.settings.idle_grace:
            self._loop.set(self._grace_timer, self.settings.idle_grace)
        else:
            self._retire()

    def _retire(self) -> None:
        for server in self._servers:
            server._retire_connections()

    def _cut_watchers(self) -> None:
        for server in self._servers:
            server.cut_watchers()

    def _report(self) -> None:
        """Say what is waited for."""
        for server in self._servers:
            server.report("Waiting for")
        # What the system would not take before, it may take now.
        self._departures.see_off()
        self._loop.set(self._report_timer, REPORT_TIME)

    def _hammer(self) -> None:
        """Those requests that still run have had their time."""
        log.warning("%d [STOP - Hammer Time] Forcefully shutting down parent", os.getpid())
        if not self.is_relieved or self._departures.is_past:
            self._cut()
        elif self._cut_timer.deadline == NEVER:
            # What waits for its next request is to be closed by nobody: it goes on elsewhere.
            self._loop.set(self._cut_timer, DEPARTURE_TIME)

    def _cut(self) -> None:
        for server in self._servers:
            server.report("Cut")
            server.close()
