"""The life of a serving process: signals, successor, end.

Owns what the `GracefulServer`s of a process do from the first signal handler to the last response.

Strategy: one loop, in one thread, and all state of a restart or a stop is its own. Signals, the
successor's messages, timers and the word that a server has drained reach it as events; nothing
happens in a signal handler. The old process serves until the successor says that it is ready. Then
it accepts no more, hands its connections over and finishes its requests; but it keeps the listening
sockets, and serves again should the successor die.

Rules: whatever happens to a successor before it is ready is reaped, logged, and changes nothing.
One boots at a time; a restart asked for meanwhile is carried out afterwards. A listening socket is
never closed while it has no other owner and connections in its queue.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import typing as t
from contextlib import ExitStack

from .hooks import POST_SIGNAL, PRE_SIGNAL, SIGNALS
from .inheritance import take_inheritance
from .listeners import acquire, give_up
from .loop import Loop, Tell, Timer, to_nobody
from .output import Streams
from .pidfile import PidFile
from .poller import Signals
from .predecessor import Predecessor
from .succession import Succession
from .successor import Successor

if t.TYPE_CHECKING:
    from .acceptor import Acceptor
    from .handover import Parcel
    from .restart import GracefulServer

log = logging.getLogger("flask_graceful")

_USR2 = getattr(signal, "SIGUSR2", None)

# How often a process that finishes its requests says which ones, in seconds.
REPORT_TIME = 5.0


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

    def __init__(self, servers: t.Sequence[GracefulServer]) -> None:
        self._servers = servers
        self._first = servers[0]
        self.settings = self._first.settings
        self.state = State.INIT
        self._loop = Loop()
        self.post = self._loop.post
        self.ask = self._loop.ask
        self._succession = Succession(self, self._loop)
        self.hand_over = self._succession.hand_over
        self._acceptors: list[Acceptor] = []
        # The old process, as long as it lives; this process is its successor.
        self._predecessor = Predecessor(self, self._loop)
        # Has a process that gives way been told to stop besides?
        self._was_told = False
        self._hammer_time = self.settings.hammer_time
        self._pid_file = PidFile(self.settings.pid_file)
        self._streams = Streams([], [])
        self._delay_timer = Timer(self._shut_down)
        self._grace_timer = Timer(self._retire)
        self._hammer_timer = Timer(self._hammer)
        self._report_timer = Timer(self._report)

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
                    signals = stack.enter_context(Signals(SIGNALS))
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
            self._stop_successor()
            self._shut_down()
        elif self.is_relieved or self.state is State.SHUTTING_DOWN:
            is_done = self.is_relieved and not self._is_busy()
            for server in self._servers:
                if is_done:
                    server.end_relief()
                # The last listener may have gone before the last connection came back, and went.
                server._settle()

    def is_moving(self) -> bool:
        """Are connections on their way to the successor? From any thread."""
        return self._succession.is_busy

    def _is_busy(self) -> bool:
        """Is there something that a relieved process still has to do?"""
        return (
            any(not server.is_empty() for server in self._servers)
            or self.is_moving()
            # Its connections travel through this process.
            or (self._predecessor.is_there and not self._succession.is_past)
        )

    def _failure(self) -> Exception | None:
        """The error by which accepting ended, if it was none of ours."""
        return next((one.error for one in self._acceptors if one.has_failed()), None)

    def _clean_up(self) -> None:
        self.state = State.TERMINATED
        self._predecessor.close()
        self._succession.let_go()
        self._pid_file.remove()
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
        listeners = acquire(addresses, inherited.listeners)
        try:
            by_name = {listener.requested: listener for listener in listeners}
            own = [[by_name[one.text] for one in server.addresses] for server in self._servers]
            for server, some in zip(self._servers, own, strict=True):
                server.run_before_begin(some)
            for server, some in zip(self._servers, own, strict=True):
                self._acceptors += server.take_on_all(some)
            self._pid_file.write()
            for server in self._servers:
                server.log_start(inherited.parent[1] if inherited.parent else 0)
        except BaseException:
            give_up(listeners)
            raise
        self.state = State.RUNNING
        inherited.close_files()
        self._streams = inherited.streams
        self._streams.restore()
        self._streams.watch(self._loop)
        if inherited.parent is not None:
            going_on = [one for one in self._acceptors if one.listener.inherited_as]
            listening = {one.listener.inherited_as: one.is_plain for one in going_on}
            self._predecessor.announce(inherited.parent, listening, inherited.signals)
        if not self._predecessor.is_there:
            self.forget_parent()
        # Not before the old process knows: one that is told to stop meanwhile ends this one too,
        # which then holds no request.
        for acceptor in self._acceptors:
            acceptor.start()

    def forget_parent(self) -> None:
        """No old process is beside this one any more."""
        for server in self._servers:
            server.parent_gone.set()

    def takes_connections(self) -> bool:
        """Can another process's connections go on here, or through here?"""
        if any(server.has_drained for server in self._servers):
            return False
        if self.is_relieved:
            return not self._succession.is_past
        return self.state in (State.RUNNING, State.DELAYING)

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

    # Signals.

    def _on_signals(self, signals: Signals) -> None:
        for signum in signals.read():
            self._run_signal_hooks(PRE_SIGNAL, signum)
            try:
                self._act(signum)
            except Exception:
                # Whatever is wrong with a restart or a stop, requests are still to be served.
                log.exception("%d %s failed", os.getpid(), SIGNALS[signum])
            self._run_signal_hooks(POST_SIGNAL, signum)

    def _run_signal_hooks(self, when: int, signum: int) -> None:
        for server in self._servers:
            server.run_signal_hooks(when, signum)

    def _act(self, signum: int) -> None:
        is_restart = signum == self._first.restart_signal
        forking = " forking." if is_restart else ""
        log.info("%d Received %s.%s", os.getpid(), SIGNALS[signum], forking)
        if is_restart:
            self._succession.restart(to_nobody)
        elif signum == _USR2:
            if self.is_relieved or self.state is State.SHUTTING_DOWN:
                self._hammer()
        elif signum == signal.SIGTERM and self._succession.claims_signal():
            self.give_way()
        elif signum in (signal.SIGINT, signal.SIGTERM):
            self.stop()

    # Restart.

    def restart(self, tell: Tell = to_nobody) -> None:
        """As a signal would.

        :param tell: takes the reason when there will be no successor, "" when it has taken over.
        """
        log.info("%d Told to restart. forking.", os.getpid())
        self._succession.restart(tell)

    def replace_because(self, reason: str) -> None:
        """Only another process can mend it: have this one replaced, if that is not under way."""
        if self.state is State.RUNNING and self._succession.successor is None:
            log.warning("%d To be replaced: %s", os.getpid(), reason)
            self.restart()

    def why_no_restart(self) -> str:
        """Why a hook objects; empty when none does."""
        reasons = (server.why_no_restart() for server in self._servers)
        return next(filter(None, reasons), "")

    def make_successor(self) -> Successor:
        """Start a successor.

        :raises OSError: it can't be started.
        """
        # One of several servers may be over.
        listeners = [one.listener for one in self._acceptors if one.listener.fileno() >= 0]
        files: dict[str, int] = {}
        for server in self._servers:
            files |= server.heirlooms.fds()
        return Successor(listeners, files, self._streams, self._first.handles_signals)

    def give_way(self) -> None:
        """A successor asks for it, and may have died since: accept no more, and let connections
        go to it."""
        if self.state is not State.RUNNING or not self._succession.has_relief:
            return
        self.state = State.RELIEVED
        # First: should this process die, the old one must know that somebody serves.
        self._predecessor.tell_succeeded(1)
        successor = self._succession.successor
        assert successor is not None
        for server in self._servers:
            server.relieve(successor.listening)
        self._succession.see_off()
        self._streams.unwatch(self._loop)
        self._announce_end()
        self._succession.answer("")
        self.look()

    def grow_older(self, generations: int) -> None:
        """So many processes have taken over since the successor did."""
        self._predecessor.tell_succeeded(generations + 1)
        if generations >= self.settings.old_generations:
            log.warning(
                "%d %d newer processes still finish requests; this one is the oldest.",
                os.getpid(), generations,
            )  # fmt: skip
            self._hammer()

    def end_succession(self, is_over: bool) -> None:
        """Connections end here from now on.

        :param is_over: so does the service; else another process goes on with it.
        """
        if self.state is State.RUNNING and is_over:
            # The successor was told to stop before this process could give way to it.
            self.stop()
        if not self.is_relieved:
            return
        if is_over:
            self._predecessor.tell_leaving()
        for server in self._servers:
            server.stop_moving(is_over)
        self._begin_grace()

    def resume(self) -> None:
        """The successor has died: serve again, or on."""
        if self.is_relieved:
            self._was_told = False
            for timer in (self._grace_timer, self._hammer_timer, self._report_timer):
                self._loop.cancel(timer)
            self.state = State.RUNNING
            # Should this process die too, it is the old one's turn.
            self._predecessor.tell_succeeded(0)
            self._streams.watch(self._loop)
            for server in self._servers:
                server.resume()
        if self.state is State.RUNNING:
            self._pid_file.write_again()

    # The end.

    def stop_as_told(self, timeout: float | None, tell: Tell = to_nobody) -> None:
        """:param timeout: seconds, instead of the setting; 0: any time.
        :param tell: takes the reason when a hook has refused.
        """
        if timeout is not None:
            self._hammer_time = timeout
        log.info("%d Told to stop.", os.getpid())
        self.stop()
        if self.state is State.RUNNING:
            tell("refused by before_shutdown hook")

    def stop(self) -> None:
        """As a signal would: stop serving. A further call skips what is waited for; where a
        successor serves, the first one changes nothing, since this process is about to end."""
        if self.state is State.RUNNING:
            if all(server.may_stop() for server in self._servers):
                self.stop_with_others()
        elif self.state is State.DELAYING:
            self._loop.cancel(self._delay_timer)
            self._shut_down()
        elif self.is_relieved and not self._was_told:
            self._was_told = True
        else:
            self._hammer()

    def stop_with_others(self) -> None:
        """The service is to end, in every process of it, and nobody is asked any more."""
        if self.state is not State.RUNNING:
            return
        self._stop_successor()
        if self._succession.has_relief:
            # That one serves already, and says when it stops.
            self.give_way()
            return
        delay = self.settings.shutdown_delay
        if delay:
            self.state = State.DELAYING
            log.info("%d Serving on for %g seconds.", os.getpid(), delay)
            self._loop.set(self._delay_timer, delay)
        else:
            self._shut_down()

    def _stop_successor(self) -> None:
        successor = self._succession.successor
        if successor is not None and not successor.is_leaving:
            log.info("%d Stopping successor %d too.", os.getpid(), successor.pid)
            successor.stop(self._first.handles_signals and not successor.is_ready)

    def _shut_down(self) -> None:
        """Nobody takes over: accept no more, and finish what has begun."""
        self.state = State.SHUTTING_DOWN
        self._predecessor.tell_leaving()
        for server in self._servers:
            server.lame_duck()
        self._announce_end()

    def _announce_end(self) -> None:
        for acceptor in self._acceptors:
            log.info("%d %s Listener closed.", os.getpid(), acceptor.listener.address)
        log.info("%d Waiting for connections to finish...", os.getpid())
        self._loop.set(self._hammer_timer, self._hammer_time)
        self._loop.set(self._report_timer, REPORT_TIME)
        self._begin_grace()

    def _begin_grace(self) -> None:
        if self.settings.idle_grace:
            self._loop.set(self._grace_timer, self.settings.idle_grace)
        else:
            self._retire()

    def _retire(self) -> None:
        for server in self._servers:
            server._retire_connections()

    def _report(self) -> None:
        """Say what is waited for."""
        for server in self._servers:
            server.report("Waiting for")
        # What the system would not take before, it may take now.
        self._succession.see_off()
        self._loop.set(self._report_timer, REPORT_TIME)

    def _hammer(self) -> None:
        log.warning("%d [STOP - Hammer Time] Forcefully shutting down parent", os.getpid())
        for server in self._servers:
            server.report("Cut")
            server.close()
