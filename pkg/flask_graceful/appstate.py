"""What the extension keeps of one Flask application: `app.extensions["graceful"]`.

Owns the way from an application to a server of it: its configuration, and the server's hooks that
call the application's.

Strategy: one application is served, and others of the same extension may be mounted in it, which no
server knows. So the server of the first calls the hooks for these too, and is theirs.

Rules: hooks and signals run inside the application's context. What runs before the act it belongs
to may forbid it, by an exception; what runs afterwards fails alone, with a line in the log. The
state knows its options and its server, never the application: that is named with each call. The
extension knows its applications and the server as long as others keep them.
"""

from __future__ import annotations

import logging
import os
import typing as t
import weakref
from functools import partial

from blinker import Namespace
from flask import Flask
from werkzeug.serving import generate_adhoc_ssl_context

from . import metrics
from .configuration import Configuration, configuration
from .hooks import FAILURES
from .inheritance import inheritance
from .restart import GracefulServer
from .settings import function_name

if t.TYPE_CHECKING:
    import ssl

    from blinker import NamedSignal

    Certificate = ssl.SSLContext | tuple[str, ...] | str | None

log = logging.getLogger("flask_graceful")

NAME = "graceful"

_signals = Namespace()
# Serving begins, at the address `addr`; after the hooks `before_begin`.
serving_started = _signals.signal("graceful-serving-started")
# A successor is about to be started, and no hook `before_restart` has refused it.
restart_started = _signals.signal("graceful-restart-started")
# This process takes no new connections any more, and finishes what it has.
draining_started = _signals.signal("graceful-draining-started")
# This process has served its last request.
shutdown_finished = _signals.signal("graceful-shutdown-finished")

Hook = t.Callable[[], object]
AddressHook = t.Callable[[str], object]


class Points:
    """The hooks of an extension, at points of a process's life, and the applications that they are
    for."""

    def __init__(self) -> None:
        self.before_begin: list[AddressHook] = []
        self.before_restart: list[Hook] = []
        self.on_draining: list[Hook] = []
        self.on_shutdown: list[Hook] = []
        # Once a server has been told of them, another one would never be called.
        self.is_closed = False
        self._apps: list[weakref.ref[Flask]] = []
        self._server: weakref.ref[GracefulServer] | None = None

    @property
    def apps(self) -> list[Flask]:
        """In the order in which they were initialised."""
        return [app for one in tuple(self._apps) if (app := one()) is not None]

    def add_app(self, app: Flask) -> None:
        self._apps.append(weakref.ref(app, self._apps.remove))

    @property
    def server(self) -> GracefulServer | None:
        """The last that has been told of the hooks."""
        return None if self._server is None else self._server()

    @server.setter
    def server(self, server: GracefulServer) -> None:
        self._server = weakref.ref(server)


class AppState:
    """See above.

    :param given: options, as `Graceful` has them.
    """

    has_metrics = False
    # Of the application itself, where it is served and not only mounted in one that is.
    _own_server: GracefulServer | None = None

    def __init__(self, points: Points, given: t.Mapping[str, t.Any]) -> None:
        self._points = points
        self._given = dict(given)

    def configuration(self, app: Flask, more: t.Mapping[str, t.Any]) -> Configuration:
        """What counts for this application; `more` comes first."""
        return configuration(app.config, self._given, more)

    @property
    def server(self) -> GracefulServer | None:
        """The server of this process; None: another one."""
        return self._own_server or self._points.server

    def attach(self, server: GracefulServer, app: Flask) -> None:
        """Have a server that is not served yet call the hooks, for the application and for those
        that are mounted in it."""
        points = self._points
        points.is_closed = True
        self._own_server = points.server = server
        if points.before_begin or serving_started.receivers:
            server.before_begin(lambda addr: self._before_begin(app, addr))
        if points.before_restart or restart_started.receivers:
            server.before_restart(lambda: self._before_restart(app))
        server.shutdown_initiated(lambda: self._on_draining(server, app))
        server.after_shutdown(lambda: self._on_shutdown(app))
        if any(state_of(one).has_metrics for one in self._with_mounted(app)):
            metrics.forget_the_dead()
            server.after_shutdown(lambda: metrics.forget(os.getpid()))
            if server.settings.workers and inheritance().worker is None:
                # Its pid is to be the supervisor's, which lives on and measures nothing.
                metrics.forget(os.getpid())

    def _with_mounted(self, app: Flask) -> list[Flask]:
        """The application, and those that no server has, so that they are mounted in it."""
        apps = self._points.apps
        return [one for one in apps if one is app or state_of(one)._own_server is None]

    def _before_begin(self, app: Flask, addr: str) -> None:
        for one in self._with_mounted(app):
            with one.app_context():
                for func in self._points.before_begin:
                    func(addr)
                for receiver in _receivers(serving_started, one):
                    receiver(addr=addr)

    def _before_restart(self, app: Flask) -> None:
        apps = self._with_mounted(app)
        for one in apps:
            with one.app_context():
                for func in self._points.before_restart:
                    func()
        for one in apps:
            _tell(one, restart_started, (), "before_restart")

    def _on_draining(self, server: GracefulServer, app: Flask) -> None:
        funcs = self._points.on_draining
        if funcs or draining_started.receivers:
            for one in self._with_mounted(app):
                # They may take their time: signals are heeded meanwhile, and the process waits.
                server.spawn(_tell, one, draining_started, funcs, "on_draining")

    def _on_shutdown(self, app: Flask) -> None:
        for one in self._with_mounted(app):
            _tell(one, shutdown_finished, self._points.on_shutdown, "on_shutdown")


def state_of(app: Flask) -> AppState:
    """What the extension keeps of an application.

    :raises RuntimeError: nothing, since the application does not have the extension.
    """
    state = app.extensions.get(NAME)
    if not isinstance(state, AppState):
        raise RuntimeError(
            f"the app {app.name!r} does not have the extension: create it with Graceful(app), or "
            "call graceful.init_app(app)"
        )
    return state


def make_server(
    app: Flask, more: t.Mapping[str, t.Any], certificate: Certificate = None
) -> GracefulServer:
    """A server of an application, as its configuration says.

    :param more: options that come before those of `Graceful` and `app.config`.
    :param certificate: what is served with, as `app.run` takes it: an `ssl.SSLContext`, the files
        of a certificate and its key, or `"adhoc"`; None: as the options say.
    :raises TypeError: an option is unknown or of a wrong type; ValueError: it is out of range.
    """
    context = None
    if isinstance(certificate, tuple):
        certfile, keyfile = (*certificate, "")[:2]
        more = {**more, "certfile": certfile, "keyfile": keyfile}
    elif certificate == "adhoc":
        # Needs `cryptography`.
        context = generate_adhoc_ssl_context()
    elif isinstance(certificate, str):
        raise TypeError(
            "ssl_context: expected an ssl.SSLContext, (certfile, keyfile) or 'adhoc', got "
            f"{certificate!r}"
        )
    else:
        context = certificate
    found = app.extensions.get(NAME)
    # An application without the extension has its configuration all the same.
    state = found if isinstance(found, AppState) else None
    own, settings = state.configuration(app, more) if state else configuration(app.config, more)
    server = GracefulServer(
        own.bind or default_address(app),
        app,
        certfile=own.certfile,
        keyfile=own.keyfile,
        ssl_context=context,
        **settings,
    )
    if state is not None:
        state.attach(server, app)
    return server


def default_address(app: Flask, host: str | None = None, port: int | None = None) -> str:
    """Where `app.run(host, port)` would serve."""
    name = app.config.get("SERVER_NAME") or ""
    name_host, _, name_port = name.partition(":")
    host = host or name_host or "127.0.0.1"
    if host.startswith("unix:"):
        return f"unix:/{host.removeprefix('unix:').lstrip('/')}"
    if port is None:
        port = int(name_port or 5000)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _receivers(signal: NamedSignal, app: Flask) -> t.Iterator[t.Callable[..., object]]:
    """What listens to a signal of the application: as `signal.send` would call it, but each for
    itself."""

    def receive(receiver: t.Callable[..., t.Any], **more: t.Any) -> object:
        return app.ensure_sync(receiver)(app, **more)

    if not signal.is_muted:
        for receiver in signal.receivers_for(app):
            yield partial(receive, receiver)


def _tell(app: Flask, signal: NamedSignal, funcs: t.Iterable[Hook], what: str) -> None:
    """Call the functions and the receivers of the signal, whatever fails."""
    with app.app_context():
        for func in funcs:
            _call(func, f"{what} hook {function_name(func)} failed")
        for receiver in _receivers(signal, app):
            _call(receiver, f"a receiver of {signal.name!r} failed")


def _call(func: Hook, failure: str) -> None:
    try:
        func()
    except FAILURES:
        log.exception("%d %s", os.getpid(), failure)
