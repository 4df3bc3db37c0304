"""`GracefulServer`: a server that signals restart and stop, the port of fvbock/endless.

Owns the public face of it: addresses, hooks, the ways to serve. What happens in its life is in
`life`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import typing as t

from .life import POST_SIGNAL, PRE_SIGNAL, SIGNALS, Life
from .listeners import Listener, parse_address, parse_addresses
from .server import HTTPS_PORT, Server, ServerClosed

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from .acceptor import Acceptor
    from .tls import Credentials

log = logging.getLogger("flask_graceful")


BeforeBegin = t.Callable[[str], object]


class GracefulServer(Server):
    """A `Server` that restarts on SIGHUP and stops on SIGTERM or SIGINT without losing a request.

    Parameters are those of :class:`Server`, and `addr` may be a sequence of addresses: all of them
    are bound before one is served, and a successor inherits each by its text.
    """

    def __init__(self, addr: str | t.Sequence[str], app: WSGIApplication, **options: t.Any) -> None:
        self.addresses = parse_addresses(addr)
        super().__init__(self.addresses[0].text, app, **options)
        self._before_begin: list[BeforeBegin] = []
        self._signal_hooks: dict[tuple[int, int], list[t.Callable[[], object]]] = {}
        self._life: Life | None = None
        # What its addresses are served with; None: plain HTTP.
        self._serves_with: Credentials | None = None

    @property
    def before_begin(self) -> t.Callable[[BeforeBegin], BeforeBegin]:
        """A decorator: call the function with each listening address before serving begins (E8).

        Without such a function, the process id and each address are logged, as in endless.
        In a successor this is before the old process is told to stop: an exception here leaves
        the old one serving. Assigning a function, as the article does, replaces all others.
        """
        return self._add_before_begin

    @before_begin.setter
    def before_begin(self, func: BeforeBegin) -> None:
        self._before_begin = [func]

    def _add_before_begin(self, func: BeforeBegin) -> BeforeBegin:
        self._before_begin.append(func)
        return func

    def register_signal_hook(self, when: int, signum: int, func: t.Callable[[], object]) -> None:
        """Call `func` at each signal, before (PRE_SIGNAL) or after (POST_SIGNAL) the server's act.

        :raises ValueError: `when` is neither, or the signal is not handled (row E5).
        """
        if when not in (PRE_SIGNAL, POST_SIGNAL):
            raise ValueError(f"hook phase {when!r}: expected PRE_SIGNAL or POST_SIGNAL")
        if signum not in SIGNALS:
            known = ", ".join(f"signal.{name}" for name in SIGNALS.values())
            raise ValueError(f"signal {signum!r} is not supported; expected one of {known}")
        self._signal_hooks.setdefault((when, int(signum)), []).append(func)

    def listen_and_serve(self) -> t.NoReturn:
        """Bind or inherit the addresses, and serve until a signal ends it. In the main thread.

        :raises ServerClosed: the normal end; its text is that of Go's accept error.
        :raises ListenError: an address can't be bound; none of them is held then.
        :raises RuntimeError: called outside the main thread, where signals can't be handled.
        """
        self._check_can_live()
        self._live()

    def listen_and_serve_tls(self, certfile: str = "", keyfile: str = "") -> t.NoReturn:
        """The same over TLS: signals, hooks and restarts included; an empty address is `:443`.

        A successor reads the files anew; one that can't use them leaves the old process serving.

        :raises CertificateFileError: a file can't be used; nothing was bound.
        """
        self._check_can_live()
        self._serves_with = self._load(certfile, keyfile)
        self.addresses = [parse_address(one.text, HTTPS_PORT) for one in self.addresses]
        self._live()

    def _check_can_live(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "GracefulServer handles signals and must be run in the main thread; "
                "to serve in another one, use Server"
            )
        if self.is_stopping:
            raise ServerClosed

    def _live(self) -> t.NoReturn:
        _log_to_stderr_by_default()
        self._life = Life(self)
        self._life.run()

    def serve(self, listener: Listener | socket.socket) -> t.NoReturn:
        """Not for this class: a successor could not find a socket that others have made.

        :raises TypeError: always; it names the remedy.
        """
        raise TypeError(
            "a GracefulServer binds its addresses itself, so that a successor finds them: use "
            "listen_and_serve(); to serve a socket of your own, use Server"
        )

    def run_signal_hooks(self, when: int, signum: int) -> None:
        """Call the hooks of a signal. A hook that fails stops neither the others nor the act."""
        for func in self._signal_hooks.get((when, signum), ()):
            try:
                func()
            except Exception:
                log.exception("%d %s hook failed", os.getpid(), SIGNALS[signum])

    def begin(self, listeners: t.Sequence[Listener]) -> list[Acceptor]:
        """Run the hooks for all addresses, then accept connections."""
        scheme = "HTTP" if self._serves_with is None else "HTTPS"
        for listener in listeners:
            for func in self._before_begin:
                func(listener.address)
            if not self._before_begin:
                where = "unix:" if listener.network == "unix" else ""
                where += listener.address
                log.info("%d Serving %s on %s", os.getpid(), scheme, where)
        return [self._start(listener, credentials=self._serves_with) for listener in listeners]

    def lame_duck(self, kept: t.Collection[str]) -> None:
        """Begin to shut down: idle connections stay, and may send one more request.

        :param kept: the addresses that a successor goes on with.
        """
        self._begin_shutdown(drain_queues=True, kept=kept)
        self._run_shutdown_hooks()

    def _settle(self) -> None:
        super()._settle()
        if self._life is not None:
            self._life.post(self._life.look)


def _log_to_stderr_by_default() -> None:
    """Go's log package prints unasked; what signals do must be seen when nobody set up logging."""
    if not log.hasHandlers():
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
