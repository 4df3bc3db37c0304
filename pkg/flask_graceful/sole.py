"""The life of a process that serves alone, as in endless: it starts its own successor.

Owns what signals mean, the restart, and the order of a stop.

Strategy: the process serves until its successor says that it is ready. Then it gives way, and
serves again should the successor die.

Rules: whatever happens to a successor before it is ready is reaped, logged, and changes nothing.
One boots at a time; a restart asked for meanwhile is carried out afterwards.
"""

from __future__ import annotations

import logging
import os
import signal
import typing as t

from .desk import Desk
from .hooks import POST_SIGNAL, PRE_SIGNAL, SIGNALS
from .life import Life, State
from .loop import Tell, Timer, to_nobody
from .pidfile import PidFile
from .predecessor import Predecessor
from .succession import Succession
from .successor import Successor

if t.TYPE_CHECKING:
    from .channel import Record
    from .inheritance import Inheritance
    from .restart import GracefulServer
    from .signals import Signals

log = logging.getLogger("flask_graceful")

_USR2 = getattr(signal, "SIGUSR2", None)


class SoleLife(Life):
    """See `Life`."""

    _predecessor: Predecessor

    def __init__(self, servers: t.Sequence[GracefulServer]) -> None:
        super().__init__(servers)
        self._departures = self._succession = Succession(self, self._loop)
        self._predecessor = Predecessor(self, self._loop)
        # Has a process that gives way been told to stop besides?
        self._was_told = False
        self._delay_timer = Timer(self._shut_down)
        self._pid_file = PidFile(self.settings.pid_file)
        self.desk = Desk(self, self._loop, servers, self._succession, self._predecessor)

    @property
    def generation(self) -> int:
        return self.desk.generation

    def _open_door(self, inherited: Inheritance) -> None:
        self.desk.open(inherited)
        self._pid_file.write()

    def _open_door_again(self) -> None:
        self._pid_file.write_again()
        self.desk.open_again()

    def _close_door(self) -> None:
        self.desk.close()
        self._pid_file.remove()

    def _announce(self, inherited: Inheritance) -> None:
        """Tell the old process if there is one, and accept."""
        if inherited.parent is not None:
            listening = self._listening()
            self._predecessor.announce(inherited.parent, listening, inherited.signals)
            self.desk.history.take_over()
        # Not before the old process knows: one that is told to stop meanwhile ends this one too,
        # which then holds no request.
        self._start_accepting()

    def forget_parent(self) -> None:
        super().forget_parent()
        self.see_to_streams()
        self.desk.forget_old_process()

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
        log.info("%d Told to restart. forking.", os.getpid())
        self._succession.restart(tell)

    def replace_because(self, reason: str) -> None:
        if self.state is State.RUNNING and self._succession.successor is None:
            log.warning("%d To be replaced: %s", os.getpid(), reason)
            self.restart()

    def restart_for(self, record: Record) -> None:
        self.desk.adopt(record)

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
        signals, generation = self._first.handles_signals, self.desk.generation + 1
        restarts = self.desk.history.record()
        return Successor(listeners, files, self._streams, signals, generation, restarts)

    def give_way(self) -> None:
        """A successor asks for it, and may have died since: accept no more, and let connections
        go to it."""
        if self.state is not State.RUNNING or not self._succession.has_relief:
            return
        successor = self._succession.successor
        assert successor is not None
        self._streams.unwatch(self._loop)
        successor.leave_streams()
        self.desk.shut()
        self._relieve(successor.listening)
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
        if self.state is State.RUNNING and is_over:
            # The successor was told to stop before this process could give way to it.
            self.stop()
        super().end_succession(is_over)

    def resume(self) -> None:
        self._was_told = self._was_told and not self.is_relieved
        super().resume()

    # The end.

    def stop_as_told(self, timeout: float | None, tell: Tell = to_nobody) -> None:
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
            if self._may_stop():
                self.stop_with_others()
        elif self.state is State.DELAYING:
            self._loop.cancel(self._delay_timer)
            self._shut_down()
        elif self.is_relieved and not self._was_told:
            self._was_told = True
        else:
            self._hammer()

    def stop_with_others(self) -> None:
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

    def _end_in_failure(self) -> None:
        self._stop_successor()
        super()._end_in_failure()
