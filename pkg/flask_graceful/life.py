"""The life of a serving process: signals, successor, end.

Owns what a `GracefulServer` does from its first signal handler to its last response.

Strategy: one loop, in the main thread, and all state of a restart or a stop is its own. Signals,
the successor's messages, timers and the word that a server has drained reach it as events; nothing
happens in a signal handler. A successor is the same command started anew, with the listening
sockets sent to it. The old process serves until the successor says that it is ready.

Rules: whatever happens to a successor before it is ready is reaped, logged, and changes nothing.
One boots at a time; a restart asked for meanwhile is carried out afterwards. A listening socket is
never closed while it has no other owner and connections in its queue.
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import time
import typing as t
from collections import deque

from .handover import CAN_PASS, Channel, claim_channel
from .listeners import Listener, acquire, give_up
from .poller import NEVER, Deadlines, Signals, new_poller
from .server import ServerClosed
from .successor import Successor, inherit_listeners

if t.TYPE_CHECKING:
    from .acceptor import Acceptor
    from .restart import GracefulServer

log = logging.getLogger("flask_graceful")

PRE_SIGNAL = 0
POST_SIGNAL = 1

# What endless listens to, as far as the system knows it. Signals that are not here keep their
# meaning.
SIGNALS = {
    int(getattr(signal, name)): name
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGTERM", "SIGTSTP")
    if hasattr(signal, name)
}
_HUP = getattr(signal, "SIGHUP", None)
_USR2 = getattr(signal, "SIGUSR2", None)

# Taken at import, so that the application and its children never see the variable.
_parent_channel = claim_channel(os.environ)


class State(enum.Enum):
    """Where the process is in its life (row E1)."""

    INIT = enum.auto()
    RUNNING = enum.auto()
    SHUTTING_DOWN = enum.auto()


class Timer:
    """Calls a function when its time has come."""

    def __init__(self, func: t.Callable[[], object]) -> None:
        self.deadline = NEVER
        self.slot = Deadlines.NO_SLOT
        self.func = func


class Life:
    """From the first signal handler to the last response. Everything but `post` is the main
    thread's."""

    def __init__(self, server: GracefulServer) -> None:
        self._server = server
        self._settings = server.settings
        self._poller = new_poller()
        self._posted: deque[t.Callable[[], object]] = deque()
        self._state = State.INIT
        self._acceptors: list[Acceptor] = []
        # The old process, as long as it lives; this process is its successor.
        self._parent: Channel | None = None
        self._successor: Successor | None = None
        # The successor is ready and has the listeners: this process only finishes its requests.
        self._is_succeeded = False
        self._wants_restart = False
        self._stop_signals = 0
        self._boot_timer = Timer(self._on_boot_timeout)
        self._grace_timer = Timer(server._retire_connections)
        self._hammer_timer = Timer(self._hammer)

    def post(self, func: t.Callable[[], object]) -> None:
        """Have the loop call `func`. From any thread."""
        self._posted.append(func)
        self._poller.wake()

    def look(self) -> None:
        """Something about the server has changed: when it can't accept any more, it ends, but not
        before its requests do."""
        if self._state is State.RUNNING and self._failure() is not None:
            self._stop()

    def run(self) -> t.NoReturn:
        try:
            with Signals(SIGNALS) as signals:
                self._poller.register_level(signals.fileno(), lambda: self._on_signals(signals))
                self._begin()
                while not self._is_finished():
                    self._turn()
                log.info("%d Serve() returning...", os.getpid())
        finally:
            if self._successor is not None:
                self._successor.let_go()
            if self._parent is not None:
                self._parent.close()
            if self._acceptors:
                self._server.close()
            self._poller.close()
        failure = self._failure()
        if failure is not None:
            raise failure
        listener = self._acceptors[0].listener
        address = f"{listener.network} {listener.address}"
        raise ServerClosed(f"accept {address}: use of closed network connection")

    def _turn(self) -> None:
        """Wait for something to happen, and see to it."""
        for action, _ in self._poller.poll():
            action()
        while self._posted:
            self._posted.popleft()()
        for timer in self._poller.deadlines.expired():
            t.cast("Timer", timer).func()

    def _is_finished(self) -> bool:
        return self._server._drained.is_set()

    def _failure(self) -> Exception | None:
        """The error by which accepting ended, if it was none of ours."""
        return next((one.error for one in self._acceptors if one.has_failed()), None)

    def _listeners(self) -> list[Listener]:
        return [acceptor.listener for acceptor in self._acceptors]

    # The beginning.

    def _begin(self) -> None:
        """Get the listeners, run the hooks, accept, and tell the old process if there is one."""
        global _parent_channel
        channel, _parent_channel = _parent_channel, None
        inherited = inherit_listeners(channel) if channel else {}
        listeners = acquire(self._server.addresses, inherited)
        try:
            self._acceptors = self._server.begin(listeners)
        except BaseException:
            give_up(listeners)
            raise
        self._state = State.RUNNING
        if channel is not None:
            self._relieve_parent(channel)

    def _relieve_parent(self, channel: Channel) -> None:
        """This process serves: tell the old one, as endless does, with a SIGTERM."""
        parent = os.getppid()
        try:
            channel.send({"ready": True, "listeners": [one.requested for one in self._listeners()]})
        except OSError:
            # The old process died meanwhile, and getppid() is somebody else.
            channel.close()
            return
        self._parent = channel
        self._poller.register_level(channel.fileno(), self._on_parent)
        if parent == os.getppid() and parent != 1:
            os.kill(parent, signal.SIGTERM)

    def _on_parent(self) -> None:
        """The old process has finished, or died."""
        channel = self._parent
        if channel is not None and not channel.fill():
            self._poller.unregister(channel.fileno())
            channel.close()
            self._parent = None

    # Signals.

    def _on_signals(self, signals: Signals) -> None:
        for signum in signals.read():
            self._server.run_signal_hooks(PRE_SIGNAL, signum)
            try:
                self._act(signum)
            except Exception:
                # Whatever is wrong with a restart or a stop, requests are still to be served.
                log.exception("%d %s failed", os.getpid(), SIGNALS[signum])
            self._server.run_signal_hooks(POST_SIGNAL, signum)

    def _act(self, signum: int) -> None:
        forking = " forking." if signum == _HUP else ""
        log.info("%d Received %s.%s", os.getpid(), SIGNALS[signum], forking)
        if signum == _HUP:
            self._restart()
        elif signum == _USR2:
            if self._state is State.SHUTTING_DOWN:
                self._hammer()
        elif signum in (signal.SIGINT, signal.SIGTERM):
            self._stop_signals += 1
            self._stop()

    # Restart.

    def _restart(self) -> None:
        successor = self._successor
        if self._is_succeeded and successor is not None:
            # This process is on its way out; who serves now is the one to restart.
            successor.signal(signal.SIGHUP)
        elif self._server.is_stopping:
            log.info("%d Not restarted: the server is shutting down.", os.getpid())
        elif os.getpid() == 1:
            # When it ends, the system ends every other process, the successor too.
            log.error("1 Not restarted: as pid 1 this process can't hand over to another one.")
        elif not CAN_PASS:
            log.error(
                "%d Not restarted: listening sockets can't be handed to another process on this "
                "system; a restart needs Unix.", os.getpid(),
            )  # fmt: skip
        elif successor is not None:
            log.info("%d A restart is under way; another one follows it.", os.getpid())
            self._wants_restart = True
        else:
            self._spawn()

    def _spawn(self) -> None:
        self._wants_restart = False
        try:
            self._successor = Successor(self._listeners())
        except OSError as error:
            log.error("%d Restart failed: can't start the successor: %s", os.getpid(), error)
            return
        self._poller.register_level(self._successor.channel.fileno(), self._on_successor)
        self._set(self._boot_timer, self._settings.boot_timeout)

    def _on_successor(self) -> None:
        """The successor has said something, or is gone."""
        successor = self._successor
        if successor is None:
            return
        is_alive = successor.listen()
        if successor.is_ready and not self._is_succeeded:
            self._is_succeeded = True
            self._poller.deadlines.forget(self._boot_timer)
            if self._wants_restart:
                successor.signal(signal.SIGHUP)
        if not is_alive:
            self._forget_successor(successor)

    def _forget_successor(self, successor: Successor) -> None:
        self._poller.unregister(successor.channel.fileno())
        self._poller.deadlines.forget(self._boot_timer)
        self._successor = None
        reason = successor.reap()
        if self._is_succeeded and self._state is State.SHUTTING_DOWN:
            # It took over and has been replaced or stopped since.
            log.info("%d Successor %d %s.", os.getpid(), successor.pid, reason)
            return
        self._is_succeeded = False
        log.error(
            "%d Restart failed: successor %d %s; this process goes on serving.",
            os.getpid(), successor.pid, reason,
        )  # fmt: skip
        if self._wants_restart:
            self._spawn()

    def _on_boot_timeout(self) -> None:
        successor = self._successor
        if successor is not None and not successor.is_ready:
            log.error(
                "%d Successor %d was not ready after %g seconds; killing it.",
                os.getpid(), successor.pid, self._settings.boot_timeout,
            )  # fmt: skip
            successor.kill()

    # The end.

    def _stop(self) -> None:
        # The successor's word may still lie in the channel: it sends the signal right after it.
        self._on_successor()
        if self._state is State.SHUTTING_DOWN:
            # The successor sends one SIGTERM; what goes beyond is somebody in a hurry.
            if self._stop_signals > (2 if self._is_succeeded else 1):
                self._hammer()
            return
        self._state = State.SHUTTING_DOWN
        if self._successor is not None and not self._is_succeeded:
            log.info("%d Stopping successor %d too.", os.getpid(), self._successor.pid)
            self._successor.signal(signal.SIGTERM)
        self._server.lame_duck(self._successor.listening if self._successor else ())
        for listener in self._listeners():
            log.info("%d %s Listener closed.", os.getpid(), listener.address)
        log.info("%d Waiting for connections to finish...", os.getpid())
        self._set(self._hammer_timer, self._settings.hammer_time)
        if self._settings.idle_grace:
            self._set(self._grace_timer, self._settings.idle_grace)
        else:
            self._server._retire_connections()

    def _hammer(self) -> None:
        log.warning("%d [STOP - Hammer Time] Forcefully shutting down parent", os.getpid())
        for connection in self._server.connections():
            running = connection.running()
            if running is not None:
                request, age = running
                log.warning(
                    "%d Cut: %s %s of %s after %.1f seconds",
                    os.getpid(), request.method, ascii(request.path)[1:-1], connection.peer_name(),
                    age,
                )  # fmt: skip
        self._server.close()

    def _set(self, timer: Timer, seconds: float) -> None:
        if seconds:
            timer.deadline = time.monotonic() + seconds
            self._poller.schedule(timer)
