"""What load balancers and orchestrators ask: `/livez` and `/readyz`.

Owns the answers, and the pages beside an application that give them.

Strategy: the pages stand before the application, as WSGI middleware: nobody needs to log in for
them, no hook of the application runs, and nothing is logged. A request for another path costs one
look into a dictionary.

Rules: a process that gives way to its successor is ready, since the service is: sending clients
elsewhere is for one that ends. Under another server the answer is that of a process of which
nothing more is known than that it answers.
"""

from __future__ import annotations

import json
import os
import typing as t

from .life import State
from .restart import GracefulServer

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from .server import Server

# For clients and proxies alike: the next answer may be another one.
_NO_STORE = ("Cache-Control", "no-store")


class Answer(t.NamedTuple):
    """What a page says.

    :param status: as in an HTTP status line.
    """

    status: str
    content_type: str
    body: bytes


# Makes the answer of a page; the server is the one that the request came to, None: another's.
Page = t.Callable[["Server | None"], Answer]


class Pages:
    """A WSGI application with pages before it.

    :param pages: by their paths.
    """

    def __init__(self, app: WSGIApplication, pages: t.Mapping[str, Page]) -> None:
        self._app = app
        self._pages = pages

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> t.Iterable[bytes]:
        page = self._pages.get(environ.get("PATH_INFO", ""))
        if page is None:
            return self._app(environ, start_response)
        method = environ["REQUEST_METHOD"]
        headers = [_NO_STORE]
        if method in ("GET", "HEAD"):
            answer = page(environ.get("flask_graceful.server"))
        else:
            answer = Answer("405 Method Not Allowed", "text/plain", b"GET or HEAD\n")
            headers.append(("Allow", "GET, HEAD"))
        headers.append(("Content-Type", answer.content_type))
        headers.append(("Content-Length", str(len(answer.body))))
        start_response(answer.status, headers)
        return [b"" if method == "HEAD" else answer.body]


def livez(server: Server | None) -> Answer:
    """The process answers."""
    return _answer("200 OK", "alive", server)


def readyz(server: Server | None, ready_during_delay: bool = False) -> Answer:
    """Are requests welcome?

    :param ready_during_delay: also while a process that was told to stop serves on for
        `shutdown_delay`.
    """
    welcome = {State.RUNNING, State.RELIEVED}
    if ready_during_delay:
        welcome.add(State.DELAYING)
    # A process that gives way serves on, but not for a service that ends.
    if {state_of(server), getattr(server, "service_ends", None) or State.RUNNING} <= welcome:
        return _answer("200 OK", "ready", server)
    return _answer("503 Service Unavailable", "not ready", server)


def state_of(server: Server | None) -> State:
    """Where a process is in its life. One whose server restarts nobody runs until it stops."""
    if isinstance(server, GracefulServer):
        return server.state or State.INIT
    is_stopping = server is not None and server.is_stopping
    return State.SHUTTING_DOWN if is_stopping else State.RUNNING


def requests_of(server: Server) -> int:
    """How many requests run, but for the one that asks, and those who watch the status page."""
    watching = len(getattr(server, "watchers", ()))
    return max(0, len(server.running_requests()) - watching - 1)


def _answer(status: str, word: str, server: Server | None) -> Answer:
    about = {
        "status": word,
        "state": state_of(server).name.lower(),
        "pid": os.getpid(),
        "generation": getattr(server, "generation", None),
        "requests": None if server is None else requests_of(server),
    }
    return Answer(status, "application/json", json.dumps(about).encode() + b"\n")
