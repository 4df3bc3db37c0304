"""`GracefulServer`: a server that signals restart and stop, the port of fvbock/endless.

Owns the public face of it: addresses, the ways to serve, restart and stop. What happens in
its process's life is in `life`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import typing as t
import weakref

from .heirlooms import Heirlooms
from .hooks import HookPoints, check_restart_signal
from .inheritance import has_parent, inheritance
from .listeners import Listener, parse_address, parse_addresses
from .loop import Reason
from .promotion import become_supervisor, check_workers
from .relief import ReliefServer
from .server import HTTPS_PORT, ServerClosed
from .settings import checked_timeout
from .sole import SoleLife
from .worker import WorkerLife

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .acceptor import Acceptor
    from .handover import Parcel
    from .life import Life, State
    from .running import RunningRequest
    from .tls import Credentials

log = logging.getLogger("flask_graceful")


class RestartError(RuntimeError):
    """There is no successor; the message says why, and `lines` what it has printed last."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.lines = list(reason.lines) if isinstance(reason, Reason) else []


class GracefulServer(ReliefServer, HookPoints):
    """A `Server` that restarts on SIGHUP, stops on SIGTERM or SIGINT, and loses no request.

    Parameters are those of :class:`Server`, and `addr` may be a sequence of addresses: all of them
    are bound before one is served, and a successor inherits each.

    :param certfile: with `keyfile`, what TLS is served with; see `listen_and_serve_tls`.
    :param handle_signals: False leaves all signals alone (row H1, NoSignalHandling): `restart` and
        `stop` do what they would, and any thread may serve.
    :param restart_signal: instead of SIGHUP; `signal.SIGUSR2` as in grace (row G4).
    """

    _life: Life | None = None
    _is_told_to_stop = False
    # What its addresses are served with; None: plain HTTP.
    _serves_with: Credentials | None = None
    _listeners: t.Sequence[Listener] = ()
    # Is the start logged although there is a hook that could do it?
    always_logs_start = False
    # Says where the service is, in place of the log. Called with the pid that is to be signalled,
    # once for each.
    announce: t.Callable[[int], object] | None = None
    # Variables that workers find in their environment besides.
    worker_environment: t.Mapping[str, str] = {}

    def __init__(
        self,
        addr: str | t.Sequence[str],
        app: WSGIApplication,
        *,
        certfile: str = "",
        keyfile: str = "",
        handle_signals: bool = True,
        restart_signal: int | None = None,
        **options: t.Any,
    ) -> None:
        self.addresses = parse_addresses(addr)
        HookPoints.__init__(self)
        super().__init__(self.addresses[0].text, app, **options)
        self.grace = self.settings.idle_grace
        if not isinstance(handle_signals, bool):
            raise TypeError(f"handle_signals: expected True or False, got {handle_signals!r}")
        self.handles_signals = handle_signals
        if restart_signal is not None:
            check_restart_signal(restart_signal)
        self.restart_signal = restart_signal or getattr(signal, "SIGHUP", None)
        # Set when this process has no old one beside it (any more).
        self.parent_gone = threading.Event()
        if not has_parent():
            self.parent_gone.set()
        self.heirlooms = Heirlooms()
        self.watchers = weakref.WeakSet()
        self._files = (certfile, keyfile)
        self._ended = threading.Event()

    # Serving.

    def listen_and_serve(self) -> t.NoReturn:
        """Bind or inherit the addresses, and serve until a signal ends it.

        :raises ServerClosed: the normal end; its text is that of Go's accept error.
        :raises ListenError: an address can't be bound; none of them is held then.
        :raises PidFileError: the file can't be written.
        :raises ControlError: the control socket can't be where `control_socket` says.
        :raises RuntimeError: called outside the main thread, where signals can't be handled.
        :raises ValueError: it was given a certificate, which this way of serving does not use.
        """
        if any(self._files):
            raise ValueError(
                "a certfile or keyfile is given: use listen_and_serve_tls() or serve(server)"
            )
        self._check_can_live()
        self._live()

    def listen_and_serve_tls(self, certfile: str = "", keyfile: str = "") -> t.NoReturn:
        """The same over TLS: signals, hooks and restarts included; an empty address is `:443`.

        A successor reads the files anew; one that can't use them leaves the old process serving.

        :raises CertificateFileError: a file can't be used; nothing was bound.
        """
        self._check_can_live()
        self._use_tls(certfile, keyfile)
        self._live()

    def serve(self, listener: Listener | socket.socket) -> t.NoReturn:
        """Not for this class: a successor could not find a socket that others have made.

        :raises TypeError: always; it names the remedy.
        """
        raise TypeError(
            "a GracefulServer binds its addresses itself, so that a successor finds them: use "
            "listen_and_serve(); to serve a socket of your own, use Server"
        )

    def _use_tls(self, certfile: str = "", keyfile: str = "") -> None:
        if not certfile and not keyfile:
            certfile, keyfile = self._files
        self._serves_with = self._load(certfile, keyfile)
        self.addresses = [parse_address(one.text, HTTPS_PORT) for one in self.addresses]

    def _check_can_live(self) -> None:
        if self.handles_signals and threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "GracefulServer handles signals and must be run in the main thread; to serve in "
                "another one, use Server, or GracefulServer(..., handle_signals=False)"
            )
        if self.is_stopping:
            raise ServerClosed

    def _live(self) -> t.NoReturn:
        live([self])
        listener = self._listeners[0]
        address = f"{listener.network} {listener.address}"
        raise ServerClosed(f"accept {address}: use of closed network connection")

    # Restart and stop, from any thread.

    def restart(self, *, wait: bool = False) -> None:
        """Start a successor, as the restart signal does, and return at once; how that ends is
        logged.

        :param wait: return when the successor has taken over (row U9, Upgrade): whoever asks from
            now on is answered by it. Not from a hook.
        :raises RestartError: with `wait`: there will be none, or not now; this process goes on.
        :raises RuntimeError: nothing is served.
        """
        life = self._life
        if life is None or self._ended.is_set():
            raise RuntimeError("nothing is served: a restart needs listen_and_serve()")
        if not wait:
            life.post(life.restart)
            return
        reason = life.ask(life.restart)
        if reason != "":
            raise RestartError(reason or "the server has stopped")

    def stop(self, timeout: float | None = None, *, wait: bool = False) -> bool:
        """Stop as SIGTERM does, and return at once (rows H5, M2); was this the first call?

        Before serving it is remembered: `listen_and_serve` then raises `ServerClosed`. A further
        call cuts what the first one waits for, as a second signal does.

        :param timeout: seconds that requests in flight get, instead of `hammer_time`; 0: any time.
        :param wait: return when serving has ended (row M7, BlockingClose), or when a
            `before_shutdown` hook has refused. Not from a hook.
        """
        seconds = _checked_stop_time(timeout)
        with self._lock:
            is_first, self._is_told_to_stop = not self._is_told_to_stop, True
            life = self._life
            if life is None:
                self.is_stopping = True
        if life is None:
            return is_first
        if not wait:
            life.post(lambda: life.stop_as_told(seconds))
        elif life.ask(lambda tell: life.stop_as_told(seconds, tell)) is None:
            self._ended.wait()
        return is_first

    @property
    def state(self) -> State | None:
        """Where its process is in its life (row E1); None before it serves."""
        return None if self._life is None else self._life.state

    @property
    def service_ends(self) -> State | None:
        """How far a stop of all processes of the service has come; None: nobody has told this one
        of any."""
        return None if self._life is None else self._life.service_ends

    @property
    def generation(self) -> int:
        """How many processes have served before this one in a row of restarts, and this one; with
        workers, the number of the code that this one runs. 0 before it serves."""
        return 0 if self._life is None else self._life.generation

    @property
    def scheme(self) -> str:
        """What it is asked by: HTTP, or HTTPS."""
        return "HTTP" if self._serves_with is None else "HTTPS"

    @property
    def places(self) -> list[str]:
        """The addresses that it really has, as they are written."""
        return [one.place for one in self._listeners]

    # Generations.

    def wait_for_parent(self, timeout: float | None = None) -> bool:
        """Wait until the old process has gone (row U12); False when the time, in seconds, was up.

        True at once where there is none. Not in a `before_begin` hook: the old process serves
        until those are over.
        """
        return self.parent_gone.wait(checked_timeout(timeout))

    def add_file(self, name: str, file: int | t.Any) -> None:
        """Have successors inherit an open file (row U7); it may be closed here afterwards.

        :param file: a descriptor, or an object with `fileno()`.
        :raises ValueError: it is not open, or there are too many; TypeError: it is no file.
        """
        self.heirlooms.add(name, file)

    def inherited_file(self, name: str) -> int | None:
        """A descriptor, for the caller to close, of the file that the old process gave this name
        (row U1, Fds.File); None when it gave none. Successors inherit it too.

        To be asked for before serving begins: what nobody wanted is closed then.
        """
        return self.heirlooms.inherited(name)

    # What its process's life has it do, in the loop's thread.

    def enter(self, life: Life) -> None:
        """:raises ServerClosed: it was told to stop before.
        :raises RuntimeError: it is served already.
        """
        with self._lock:
            if self.is_stopping:
                raise ServerClosed
            if self._life is not None and not self._ended.is_set():
                raise RuntimeError("this server is served already")
            self._life = life
            self._ended.clear()

    def leave(self, life: Life, has_served: bool) -> None:
        """That life is over. A server that could not begin may try again."""
        if self._life is not life:
            return
        if has_served or self._acceptors:
            self.close()
            self._hooks.run_after_shutdown()
            self.heirlooms.close()
        self._ended.set()

    def run_before_begin(self, listeners: t.Sequence[Listener]) -> None:
        """Run the hooks for all addresses."""
        self._listeners = listeners
        for listener in listeners:
            for func in self._hooks.before_begin:
                func(listener.address)

    def log_start(self, old: int) -> None:
        """Without a hook that could do it, log what endless and grace do.

        :param old: the pid of the process that served before; 0: none.
        """
        if self.announce is not None:
            worker = inheritance().worker
            if worker is None:
                self.announce(os.getpid())
            elif (worker["generation"], worker["slot"]) == (1, 0):
                # The supervisor's pid is the same for all of them, and for ever.
                self.announce(os.getppid())
            return
        if self._hooks.before_begin and not self.always_logs_start:
            return
        pid = os.getpid()
        for listener, place in zip(self._listeners, self.places, strict=True):
            if listener.inherited_as.startswith("systemd:") and not old:
                log.info("%d Listening on init activated %s", pid, place)
            log.info("%d Serving %s on %s", pid, self.scheme, place)
        if old:
            where = ", ".join(self.places)
            log.info(
                "%d Graceful handoff of %s with new pid %d and old pid %d", pid, where, pid, old
            )

    def take_on_all(self, listeners: t.Sequence[Listener]) -> list[Acceptor]:
        """Have everything ready to accept connections."""
        return [self._take_on(one, credentials=self._serves_with) for one in listeners]

    def run_signal_hooks(self, when: int, signum: int) -> None:
        self._hooks.run_signal_hooks(when, signum)

    def why_no_restart(self) -> str:
        return self._hooks.run_before_restart()

    @property
    def may_refuse_restart(self) -> bool:
        """Is there a hook that could?"""
        return bool(self._hooks.before_restart)

    @property
    def may_refuse_stop(self) -> bool:
        """Is there a hook that could?"""
        return bool(self._hooks.before_shutdown)

    def may_stop(self) -> bool:
        return self._hooks.run_before_shutdown()

    def hand_over(self, parcel: Parcel) -> None:
        assert self._life is not None
        self._life.hand_over(parcel)

    def has_old_process(self) -> bool:
        return not self.parent_gone.is_set()

    def on_overdue(self, request: RunningRequest) -> None:
        life = self._life
        if life is not None:
            life.post(lambda: life.replace_because(f"{request}: over request_timeout_hard"))

    def is_moving(self) -> bool:
        return self._life is not None and self._life.is_moving()

    def _run_shutdown_hooks(self) -> None:
        super()._run_shutdown_hooks()
        self._hooks.run_shutdown_initiated()

    def _changed(self) -> None:
        super()._changed()
        self._tell_life()

    def _finish(self) -> None:
        super()._finish()
        self._tell_life()

    def _tell_life(self) -> None:
        if self._life is not None:
            self._life.post(self._life.look)


def live(servers: t.Sequence[GracefulServer]) -> None:
    """Serve together until the end."""
    _log_to_stderr_by_default()
    if inheritance().worker is not None:
        if inheritance().parent is None:
            raise RuntimeError("a worker serves once, and this one has; put the servers in serve()")
        check_workers(servers)
        WorkerLife(servers).run()
    elif servers[0].settings.workers:
        check_workers(servers)
        become_supervisor(servers)
    else:
        SoleLife(servers).run()


def serve(*servers: GracefulServer) -> None:
    """Serve several servers in one process, and return when all have stopped (row G2).

    They begin, restart and stop together. Those with a certificate or an `ssl_context` are served
    with TLS. What concerns the whole process (signals, `pid_file`, `hammer_time` and the other
    times of a stop or a restart) is as the first one has it.

    :raises ListenError: an address can't be bound; none is served then.
    :raises ServerClosed: one was told to stop before.
    :raises ValueError: two servers have the same address, or there is none.
    :raises TypeError: one is no `GracefulServer`.
    """
    if not servers:
        raise ValueError("serve() needs at least one server")
    for server in servers:
        if not isinstance(server, GracefulServer):
            raise TypeError(f"serve(): expected GracefulServers, got {server!r}")
    parse_addresses([one.text for server in servers for one in server.addresses])
    for server in servers:
        server._check_can_live()
        if server.ssl_context is not None or any(server._files):
            server._use_tls()
    live(servers)


def run(addr: str | t.Sequence[str], timeout: float, app: WSGIApplication) -> None:
    """Serve an application until SIGINT or SIGTERM; tylerb/graceful's Run (row H1).

    :param timeout: seconds that requests in flight get at a stop; 0: any time.
    :raises ListenError: an address can't be bound.
    """
    serve(GracefulServer(addr, app, hammer_time=_checked_stop_time(timeout)))


def _checked_stop_time(timeout: float | None) -> float | None:
    """Seconds until requests are cut; 0: never, so a negative number is a mistake."""
    seconds = checked_timeout(timeout)
    if seconds is not None and seconds < 0:
        raise ValueError(f"timeout: expected 0 or more seconds, got {timeout!r}")
    return 0.0 if seconds is None and timeout is not None else seconds


def _log_to_stderr_by_default() -> None:
    """Go's log package prints unasked; what signals do must be seen when nobody set up logging."""
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)
