"""What `app.run()` becomes: from its arguments to an application that is served.

Owns which of them mean something here and what is said of the others, where the application
listens, and what is printed when it does.
"""

from __future__ import annotations

import threading
import typing as t
from functools import partial

import click
from flask import cli, has_request_context

from .appstate import default_address
from .doors import url_of
from .inheritance import is_child
from .listeners import parse_address
from .restart import serve
from .server import ServerClosed
from .settings import MOST_PORT

if t.TYPE_CHECKING:
    from flask import Flask

    from .restart import GracefulServer

_BY_COMMAND = "debug=True restarts when code changes, and `flask graceful run --debug` takes "
_NOTICES = "debug=True notices changes at once, where watchfiles is installed"
# What app.run() takes besides, and what is said here instead.
_WERKZEUGS = {
    "threaded": "requests always run in threads; threads=N is the most of them",
    "processes": "workers=N serves with several processes",
    "use_reloader": _BY_COMMAND + "--no-reload",
    "use_debugger": "debug=True shows exceptions, and `flask graceful run --debug` takes "
    "--no-debugger",
    "use_evalex": "debug=True shows exceptions with a console, for who knows the PIN",
    "extra_files": _BY_COMMAND + "--extra-files",
    "exclude_patterns": _BY_COMMAND + "--exclude-patterns",
    "reloader_interval": _NOTICES,
    "reloader_type": _NOTICES,
}


def check_place() -> None:
    """:raises RuntimeError: nothing can be served from here."""
    if has_request_context():
        raise RuntimeError(
            "graceful.run() was called while a request is served: call it once, at the end of the "
            "program"
        )
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(
            "graceful.run() handles signals and must be called in the main thread; in another one, "
            "use Server(addr, app).listen_and_serve()"
        )


def for_server(
    app: Flask, host: str | None, port: int | None, options: dict[str, t.Any]
) -> dict[str, t.Any]:
    """The options of `run`, with what `app.run` calls otherwise among them.

    :raises TypeError, ValueError: one means nothing here, or is wrong.
    """
    options = dict(options)
    for name, remedy in _WERKZEUGS.items():
        if name in options:
            raise TypeError(f"{name} is an option of Werkzeug's server; {remedy}")
    if host is not None or port is not None:
        if "bind" in options:
            raise TypeError("run(): give either bind, or host and port")
        options["bind"] = _address(app, host, port)
    if app.debug:
        # The debugger's frames are in one process.
        options["workers"] = count = options.get("workers") or 1
        if isinstance(count, int) and count > 1:
            raise ValueError(
                f"workers={count}: the debugger and the restart on changes need a single worker; "
                "leave out workers, or debug"
            )
    return options


def _address(app: Flask, host: str | None, port: int | None) -> str:
    """Where `run` is to listen.

    :raises TypeError, ValueError: it names which of the two is wrong.
    """
    if host is not None and not isinstance(host, str):
        raise TypeError(f"host: expected a text such as '127.0.0.1', got {host!r}")
    if port is not None:
        try:
            # As app.run does it: the environment has digits.
            port = int(port)
        except (TypeError, ValueError) as error:
            raise type(error)(f"port: expected a whole number, got {port!r}") from None
        if not 0 <= port <= MOST_PORT:
            raise ValueError(f"port: expected 0 to {MOST_PORT}, got {port}")
    address = default_address(app, host, port)
    try:
        return parse_address(address).text
    except ValueError as error:
        raise ValueError(f"host: {error}") from None


def serve_app(app: Flask, server: GracefulServer) -> None:
    """Serve an application until a signal ends it, in the development mode if it is in debug mode.

    :raises ListenError, PidFileError, ControlError, CertificateFileError: as `serve` does.
    """
    try:
        if not app.debug:
            server.announce = partial(_announce, app, server)
            serve(server)
            return
        from .development import Development
        from .sources import Sources

        sources = Sources()
        sources.begin()
        if not is_child():
            cli.show_server_banner(app.debug, app.name)
        Development(app, server, sources, has_debugger=True).serve()
    except ServerClosed:
        # Told to stop before it began.
        pass


def _announce(app: Flask, server: GracefulServer, pid: int) -> None:
    """Say where the application is, on standard output as app.run does."""
    for place in server.places:
        click.echo(
            f" * Serving Flask app {app.name!r} on {url_of(server, place)} "
            f"(kill -1 {pid} restarts it, kill {pid} stops it)"
        )
