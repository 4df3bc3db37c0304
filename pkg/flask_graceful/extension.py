"""`Graceful`: the server as a Flask extension.

Owns the public face of it: what a user writes in an application, and what is wrong with it.

Strategy: the extension is a set of hooks, options and pages that applications share; it keeps no
application. Where a request is, is read from its environ, so that an application behaves sensibly
under any other server: it never shuts down there.

Rules: what is used in the wrong place raises a RuntimeError that names the right one.
"""

from __future__ import annotations

import os
import sys
import threading
import typing as t
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import click
from flask import Flask, cli, current_app, has_app_context, has_request_context, request
from flask.helpers import get_debug_flag, get_load_dotenv

from . import health, metrics
from .apprun import check_place, for_server, serve_app
from .appstate import NAME, AddressHook, AppState, Hook, Points, make_server, state_of
from .configuration import check_options
from .doors import START_ERRORS, show_log
from .loader import is_loading
from .server import Server
from .settings import NO_FUNCTION, checked_function, checked_hook
from .statuspage import create_blueprint

if t.TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

T = t.TypeVar("T")
AHook = t.TypeVar("AHook", bound=Hook)
AnAddressHook = t.TypeVar("AnAddressHook", bound=AddressHook)

# What `run` is given that gets no application.
_NO_APP: t.Any = None


class Graceful:
    """The extension.

    :param app: initialised at once; else by `init_app`, as many as there are.
    :param options: any setting of the server, and `bind`, `livez` and so on: the keys of
        `app.config` in lower case and without `GRACEFUL_`, which they come before.
    :raises TypeError: an option is unknown or of a wrong type; ValueError: it is out of range.
    :raises RuntimeError: as `init_app` does.
    """

    def __init__(self, app: Flask | None = None, **options: t.Any) -> None:
        check_options(options)
        self._points = Points()
        self._options = options
        # Where nothing ever shuts down.
        self._never = threading.Event()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Have an application use the extension. Its configuration is read now, and again when it
        is served.

        :raises RuntimeError: it does so already, or metrics need what is not installed.
        :raises TypeError: a key or option is unknown or of a wrong type; ValueError: it is out of
            range.
        """
        if not isinstance(app, Flask):
            raise TypeError(f"expected a Flask application, got {app!r}")
        if NAME in app.extensions:
            raise RuntimeError(
                f"the app {app.name!r} has the extension already: use either Graceful(app) or "
                "init_app(app), and once"
            )
        state = AppState(self._points, self._options)
        options = state.configuration(app, {}).options
        pages: dict[str, health.Page] = {}
        if options.livez:
            pages[options.livez] = health.livez
        if options.readyz:
            pages[options.readyz] = partial(
                health.readyz, ready_during_delay=options.readyz_during_delay
            )
        wsgi: WSGIApplication = app.wsgi_app
        if options.metrics:
            wsgi = metrics.Measured(wsgi)
            pages[options.metrics] = metrics.page
            state.has_metrics = True
        # First what may fail: the app is left as it was then.
        if options.status_page:
            app.register_blueprint(create_blueprint(options.status_token))
        if pages:
            app.wsgi_app = health.Pages(wsgi, pages)  # type: ignore[method-assign]
        app.extensions[NAME] = state
        self._points.add_app(app)

    # Serving.

    def run(
        self,
        app: Flask = _NO_APP,
        host: str | None = None,
        port: int | None = None,
        debug: bool | None = None,
        load_dotenv: bool = True,
        **options: t.Any,
    ) -> None:
        """Serve an application until a signal ends it: what `app.run()` becomes.

        `kill -1` starts the program anew, and no client notices. As `app.run`, it does nothing
        in a program that a `flask` command has imported, or `python -m flask_graceful`.

        :param host: where to listen; by default `GRACEFUL_BIND`, then that of `SERVER_NAME`, then
            `127.0.0.1`. `unix:///path` is a Unix socket.
        :param port: 5000 by default, or that of `SERVER_NAME`; 0: any free one.
        :param debug: sets `app.debug`. Then changed code is started while the old code serves,
            and Werkzeug's debugger shows exceptions, in a single worker; as `flask graceful run
            --debug` does.
        :param load_dotenv: read `.env` and `.flaskenv`, where python-dotenv is installed.
        :param options: those of `Graceful`, and `ssl_context`: an `ssl.SSLContext`, a
            certificate's file and its key's, or `"adhoc"`.
        :raises SystemExit: the address can't be used, or one of the files; as `app.run` does, with
            one line that says why, and status 1.
        :raises RuntimeError: called in a request or a thread, or for an app without the extension.
        :raises TypeError: an option is unknown or of a wrong type; ValueError: it is out of range,
            or there are to be several workers and `debug`.
        """
        if not isinstance(app, Flask):
            got = "" if app is _NO_APP else f", got {app!r}"
            raise TypeError(
                f"run(): expected a Flask application{got}; the extension keeps none: "
                "graceful.run(app)"
            )
        state_of(app)
        check_place()
        if is_loading() or os.environ.get("FLASK_RUN_FROM_CLI") == "true":
            click.secho(
                " * Ignoring a call to 'graceful.run()' that would block the command that imports "
                "it.\n   Only call it in an 'if __name__ == \"__main__\"' guard.",
                fg="red",
            )
            return
        if get_load_dotenv(load_dotenv):
            cli.load_dotenv()
            if "FLASK_DEBUG" in os.environ:
                app.debug = get_debug_flag()
        if debug is not None:
            app.debug = bool(debug)
        certificate = options.pop("ssl_context", None)
        options = for_server(app, host, port, options)
        show_log(app.debug)
        try:
            serve_app(app, make_server(app, options, certificate))
        except START_ERRORS as error:
            sys.exit(f"{app.name}: {error}")

    # Hooks.

    def before_begin(self, func: AnAddressHook = NO_FUNCTION) -> AnAddressHook:
        """A decorator: call the function with each address before serving begins there.

        An exception keeps this process from serving; an old one then goes on.

        :raises RuntimeError: an application is served already.
        :raises TypeError: it is no function.
        """
        self._check_hook(func, "before_begin", "the address")
        self._points.before_begin.append(func)
        return func

    def before_restart(self, func: AHook = NO_FUNCTION) -> AHook:
        """A decorator: call the function before a successor is started. An exception refuses the
        restart: it is logged, and this process goes on serving.

        :raises RuntimeError: an application is served already.
        :raises TypeError: it is no function.
        """
        self._check_hook(func, "before_restart")
        self._points.before_restart.append(func)
        return func

    def on_draining(self, func: AHook = NO_FUNCTION) -> AHook:
        """A decorator: call the function when this process takes no new connections any more,
        because it stops or because its successor has taken over. What it still has to do is
        waited for. This is the time to close WebSockets.

        :raises RuntimeError: an application is served already.
        :raises TypeError: it is no function.
        """
        self._check_hook(func, "on_draining")
        self._points.on_draining.append(func)
        return func

    def on_shutdown(self, func: AHook = NO_FUNCTION) -> AHook:
        """A decorator: call the function when this process has served its last request, whether
        the service stops or a successor goes on. This is the time to close pools.

        :raises RuntimeError: an application is served already.
        :raises TypeError: it is no function.
        """
        self._check_hook(func, "on_shutdown")
        self._points.on_shutdown.append(func)
        return func

    def _check_hook(self, func: t.Callable[..., object], what: str, *arguments: str) -> None:
        if self._points.is_closed:
            raise RuntimeError(
                f"{what}: an app is served already, and would never call it; register it before "
                "run()"
            )
        checked_hook(func, what, *arguments)

    # In a request.

    @property
    def shutting_down(self) -> bool:
        """Has this process begun to end, because it stops or because its successor has taken
        over? Never so under another server.

        :raises RuntimeError: nobody knows which app is meant, or it does not have the extension.
        """
        return self.shutdown_event.is_set()

    @property
    def shutdown_event(self) -> threading.Event:
        """Set while `shutting_down`: to be waited for, not to be set. It may be kept after the
        request, by a stream that goes on.

        :raises RuntimeError: nobody knows which app is meant, or it does not have the extension.
        """
        server = self._server()
        return self._never if server is None else server.shutdown_event

    def track(self) -> AbstractContextManager[None]:
        """Count the block of a `with` as work that a stop and a restart wait for; under another
        server it is just a block.

        :raises RuntimeError: nobody knows which app is meant, or it does not have the extension.
        """
        server = self._server()
        return nullcontext() if server is None else server.track()

    def spawn(
        self, func: t.Callable[..., object], *args: t.Any, **kwargs: t.Any
    ) -> threading.Thread:
        """Run a function in a thread of its own and inside the app's context, as work that a stop
        and a restart wait for; under another server it is just a thread.

        :raises RuntimeError: nobody knows which app is meant, or it does not have the extension.
        :raises TypeError: it is no function.
        """
        checked_function(func, "spawn")
        server = self._server()
        context = current_app.app_context()

        def run() -> None:
            with context:
                func(*args, **kwargs)

        if server is not None:
            return server.spawn(run)
        thread = threading.Thread(target=run, name="graceful-work", daemon=True)
        thread.start()
        return thread

    def until_shutdown(
        self, iterable: t.Iterable[T], *, farewell: T | None = None
    ) -> t.Iterator[T]:
        """The items of a stream, as long as this process is not `shutting_down`.

        It looks between two items: an iterable that waits for its next one for long keeps the
        process waiting too.

        :param farewell: a last item for a client that is sent away; None: there is none.
        :raises RuntimeError: nobody knows which app is meant, or it does not have the extension.
        """
        return _until(self.shutdown_event, iterable, farewell)

    def _server(self) -> Server | None:
        """The server of this process; None: another one."""
        if has_request_context():
            state_of(current_app)
            return t.cast("Server | None", request.environ.get("flask_graceful.server"))
        if not has_app_context():
            raise RuntimeError(
                "nobody knows which app is meant: use this in a request, or in a block "
                "`with app.app_context():`; what a thread or a stream needs can be got before"
            )
        return state_of(current_app).server


def _until(
    event: threading.Event, iterable: t.Iterable[T], farewell: T | None
) -> t.Generator[T, None, None]:
    items = iter(iterable)
    try:
        while not event.is_set():
            try:
                yield next(items)
            except StopIteration:
                return
        if farewell is not None:
            yield farewell
    finally:
        close = getattr(iterable, "close", None)
        if close is not None:
            close()
