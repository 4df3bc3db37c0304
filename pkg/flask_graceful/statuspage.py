"""The status page: a restart as it happens, for a person with a browser.

Owns the blueprint at `/graceful/`: who may see it, its files, and what goes to those who watch.

Strategy: one thread of the process asks the service over its control socket, a few times a second,
and only while somebody watches; all viewers get what it has heard, as server-sent events. A stream
ends at once when its process gives way or stops. The browser comes back by itself, reaches the next
process, and the page goes on. Where no thread can be spared for a stream, the page asks instead.

Rules: nothing here holds up a restart, a stop or somebody else's request. Who may not see the page
gets 404, as if there were none. Nothing on it comes from another address.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import threading
import time
import typing as t
import weakref
from importlib import resources

from flask import Blueprint, Response, abort, current_app, redirect, request, url_for

from .ask import AskError, Caller, find_by_setting
from .relief import Watcher
from .restart import GracefulServer

log = logging.getLogger("flask_graceful")

# How often the service is asked; for how long on, when the last viewer has gone; how long an answer
# may take; how long silence may last before viewers are told of it; in seconds.
PACE = 0.25
LINGER_TIME = 2.0
PATIENCE = 3.0
SILENT_TIME = 1.5
# When a browser comes back whose stream has ended, in milliseconds.
RETRY = 150
# The most streams of a process; each occupies a thread, and of those no more than this part.
MOST_VIEWERS = 8
PART_OF_THREADS = 4
# How long a stream lasts, in seconds, and how much of the time that the server allows a request.
STREAM_TIME = 900.0
PART_OF_LIMIT = 0.75

NAME = "graceful_status"
COOKIE = "flask_graceful_status"
_TYPES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def create_blueprint(token: str = "", *, is_open: bool = False) -> Blueprint:
    """The status page, to be registered with an application: `/graceful/`.

    It is seen in debug mode, and by who comes with the token: `/graceful/?token=...`, once; a
    cookie remembers it until the browser is closed.

    :param token: what opens the page outside of debug mode; empty: nothing does.
    :param is_open: show it to everybody, as in debug mode.
    :raises TypeError: the token is no string.
    """
    if not isinstance(token, str):
        raise TypeError(f"token: expected a string, got {type(token).__name__}")
    page = _Page(Lock(token, is_open), Watch())
    blueprint = Blueprint(NAME, __name__, url_prefix="/graceful")
    blueprint.record(lambda state: page.find_place(state.url_prefix or ""))
    # Of the application, since no blueprint is asked about what the router refuses.
    blueprint.before_app_request(page.guard)
    blueprint.after_request(page.finish)
    rules: dict[str, t.Callable[[], t.Any]] = {
        # A redirect of the router would tell everybody that there is a page.
        "": page.to_slash,
        "/": lambda: page.file("page.html"),
        "/page.css": lambda: page.file("page.css"),
        "/page.js": lambda: page.file("page.js"),
        "/events": page.events,
        "/state": page.state,
    }
    for rule, view in rules.items():
        name = rule.strip("/").replace(".", "_") or ("page" if rule else "bare")
        blueprint.add_url_rule(rule, name, view, methods=["GET"])
    return blueprint


class Lock:
    """Who may see the page."""

    def __init__(self, token: str, is_open: bool) -> None:
        self._token = token.encode()
        self._is_open = is_open
        # What the cookie holds opens nothing else, should the token be used elsewhere.
        self.stamp = hmac.new(self._token, COOKIE.encode(), hashlib.sha256).hexdigest()

    def is_given_token(self) -> bool:
        """Does the request bring the token itself?"""
        given = request.args.get("token", "").encode(errors="replace")
        return bool(self._token) and hmac.compare_digest(given, self._token)

    def lets_in(self) -> bool:
        if self._is_open or current_app.debug:
            return True
        given = request.cookies.get(COOKIE, "").encode(errors="replace")
        is_known = bool(self._token) and hmac.compare_digest(given, self.stamp.encode())
        return is_known or self.is_given_token()


class _Page:
    """The views."""

    def __init__(self, lock: Lock, watch: Watch) -> None:
        self._lock = lock
        self._watch = watch
        self._place = ""
        folder = resources.files(__package__) / "page"
        self._files = {name: (folder / name).read_bytes() for name in _TYPES}

    def find_place(self, prefix: str) -> None:
        """:param prefix: of the page's URLs, in the application."""
        self._place = f"{prefix}/"

    def guard(self) -> None:
        """Have the page be none for who may not see it, whatever way they come."""
        if self._is_meant() and not self._lock.lets_in():
            abort(404)

    def _is_meant(self) -> bool:
        if request.routing_exception is None:
            return request.blueprint == NAME
        # A wrong method, or slashes too many.
        return (re.sub("/+", "/", request.path) + "/").startswith(self._place)

    def finish(self, response: Response) -> Response:
        if not self._lock.lets_in():
            return response
        response.headers.update(_HEADERS)
        if self._lock.is_given_token():
            # No redirect to an address without the token: a browser would not send such a cookie
            # with it to who has followed a link. The page takes the token out of its address.
            response.set_cookie(
                COOKIE,
                self._lock.stamp,
                # Without what the application may add to its URLs.
                path=url_for(".page").partition("?")[0],
                secure=_is_secure(),
                httponly=True,
                samesite="Strict",
            )
        return response

    def to_slash(self) -> t.Any:
        return redirect(url_for(".page", token=request.args.get("token")))

    def file(self, name: str) -> Response:
        return Response(self._files[name], content_type=f"{_TYPES[name]}; charset=utf-8")

    def state(self) -> Response:
        """The state now, for who can't have a stream."""
        server = _server()
        text = _trouble("this application is not served by GracefulServer")
        if server is not None:
            text = self._watch.latest(server)
        return Response(text, content_type="application/json")

    def events(self) -> Response:
        """The state, again and again; 204 when there is no thread for that."""
        server = _server()
        if server is None:
            return Response(status=204)
        # The answer alone holds it: the application may put another one in this one's place, and
        # it is never closed then.
        viewer = self._watch.enter(server)
        if viewer is None:
            return Response(status=204)
        response = Response(_stream(self._watch, server), content_type="text/event-stream")
        # nginx would keep the events for itself.
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(lambda: self._watch.leave(server, viewer))
        return response


def _server() -> GracefulServer | None:
    """The server that this request has come through."""
    server = request.environ.get("flask_graceful.server")
    return server if isinstance(server, GracefulServer) else None


def _is_secure() -> bool:
    """Has the client come over TLS? A proxy's word is taken for it where the application knows of
    none: whoever lies keeps a cookie from themselves."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"


def _stream(watch: Watch, server: GracefulServer) -> t.Iterator[str]:
    until = time.monotonic() + stream_time(server)
    yield f"retry: {RETRY}\n\n"
    number = watch.begin(server)
    while (news := watch.wait(server, number, until)) is not None:
        number, text = news
        yield f"data: {text}\n\n"


def stream_time(server: GracefulServer) -> float:
    """How long a stream may last: the server's limits of a request are not for it."""
    settings = server.settings
    limits = [one for one in (settings.write_timeout, settings.request_timeout_hard) if one]
    return min([STREAM_TIME, *(PART_OF_LIMIT * one for one in limits)])


class Watch:
    """What the service says of itself, for all viewers. From any thread."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        # The last state, if it is no older than that, and how many there were.
        self._text = ""
        self._number = 0
        self._viewers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self._is_asking = False
        self._wanted_until = 0.0

    # The viewers.

    def enter(self, server: GracefulServer) -> Watcher | None:
        """One viewer more, in this thread; None when there is no room."""
        most = min(MOST_VIEWERS, server.settings.threads // PART_OF_THREADS)
        viewer = Watcher(threading.get_ident())
        with self._news:
            if len(self._viewers) >= most:
                return None
            self._viewers.add(viewer)
        server.watchers.add(viewer)
        return viewer

    def leave(self, server: GracefulServer, viewer: Watcher) -> None:
        with self._news:
            self._viewers.discard(viewer)
        server.watchers.discard(viewer)

    def begin(self, server: GracefulServer) -> int:
        """The number after which to `wait` for the state as it is now."""
        with self._news:
            return self._number - self._want_locked(server)

    def wait(self, server: GracefulServer, number: int, until: float) -> tuple[int, str] | None:
        """The first state after that number, and its own; None when the process is to end, or the
        time is over."""
        with self._news:
            while not server.shutdown_event.is_set():
                # The one who asks may have ended just now, because nobody watched.
                self._want_locked(server)
                left = until - time.monotonic()
                if left <= 0:
                    break
                if self._number > number and self._text:
                    return self._number, self._text
                self._news.wait(min(left, LINGER_TIME / 2))
            return None

    def latest(self, server: GracefulServer) -> str:
        """The state as it is now."""
        until = time.monotonic() + 2 * PATIENCE
        news = self.wait(server, self.begin(server), until)
        if news is not None:
            return news[1]
        is_ending = server.shutdown_event.is_set()
        return _trouble("this process is to end" if is_ending else "nobody answers")

    # Who asks.

    def _want_locked(self, server: GracefulServer) -> bool:
        """Have somebody ask; was that so before?"""
        self._wanted_until = time.monotonic() + LINGER_TIME
        if self._is_asking or server.shutdown_event.is_set():
            return self._is_asking
        try:
            threading.Thread(
                target=self._ask_on, args=(server,), name="graceful-status", daemon=True
            ).start()
        except RuntimeError:
            # No thread is left; whoever waits tries again.
            return False
        self._is_asking = True
        return False

    def _ask_on(self, server: GracefulServer) -> None:
        source = Source(server)
        try:
            while not server.shutdown_event.is_set():
                text = source.ask()
                with self._news:
                    if time.monotonic() > self._wanted_until:
                        return
                    if text:
                        self._number += 1
                        self._text = text
                        self._news.notify_all()
                server.shutdown_event.wait(PACE)
        except Exception:
            log.exception("%d The status page can't ask the service", os.getpid())
            # Its viewers begin another thread, and not at once.
            server.shutdown_event.wait(SILENT_TIME)
        finally:
            with self._news:
                self._is_asking = False
                # It is old when the next viewer comes.
                self._text = ""
                self._news.notify_all()


class Source:
    """The service behind a server, asked over its control socket. One thread's."""

    def __init__(self, server: GracefulServer) -> None:
        self._server = server
        self._path = ""
        self._answered = 0.0

    def ask(self) -> str:
        """The state as JSON; empty when there is none at the moment, which may pass."""
        try:
            if not self._path:
                is_worker = self._server.shares is not None
                pid = os.getppid() if is_worker else os.getpid()
                self._path = find_by_setting(self._server.settings.control_socket, pid)
            with Caller(self._path, PATIENCE) as caller:
                status = caller.ask("status")
        except AskError as error:
            self._path = ""
            is_news = time.monotonic() - self._answered > SILENT_TIME
            return _trouble(str(error)) if is_news else ""
        self._answered = time.monotonic()
        return _said(status=status)


def _said(**state: t.Any) -> str:
    # The pid is that of the process which says so.
    return json.dumps({"now": time.time(), "by": os.getpid(), **state})


def _trouble(reason: str) -> str:
    return _said(error=reason)
