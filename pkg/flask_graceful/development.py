"""The development mode: changed code is started, while the code that ran goes on serving.

Owns the thread that looks for changes and asks for the restart, the notice of a failure, the log of
requests, and what is said of all this in the terminal.

Strategy: each process looks after the files that it was made of itself. It asks for a restart, as
anybody could; when a successor has taken over it looks no more, since that one does. A successor
knows what it has loaded, so what was changed while it booted is not overlooked. When there is none,
the reason is shown in the pages of this process, and the next change is the next try.

Rules: changes are learnt from `watchfiles`, or by a look now and then where it is not installed or
the system does not tell. What counts is what the look finds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import threading
import time
import typing as t

import click
from werkzeug.debug import DebuggedApplication

from .doors import url_of
from .life import State
from .notice import PATH, Failure, Notice
from .restart import RestartError, serve

if t.TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from flask import Flask

    from .restart import GracefulServer
    from .sources import Sources

Events = t.Generator[set[tuple[t.Any, str]], None, None]

# Its level is not that of the server's log, which is quieter.
log = logging.getLogger("flask_graceful.development")

# How often files are looked at without any word of a change, and where there is never any; seconds.
LOOK_TIME = 2.0
FAST_LOOK_TIME = 1.0
# How often it is asked whether the process serves yet.
BOOT_LOOK_TIME = 0.02
# Changes that come so close together are one, and no longer than this; in milliseconds.
STEP = 50
LONGEST = 400
MISSING = (
    " * watchfiles is not installed: changes are looked for once a second. "
    "pip install 'flask-graceful[dev]' has them noticed at once."
)


class Development:
    """
    :param app: the application, which has been loaded.
    :param server: its server, which is not served yet.
    :param sources: what the application is made of, and looked after; None: it is not.
    :param has_debugger: does Werkzeug's debugger show exceptions?
    """

    def __init__(
        self, app: Flask, server: GracefulServer, sources: Sources | None, has_debugger: bool
    ) -> None:
        self._server = server
        self._sources = sources
        self._is_over = threading.Event()
        # When the change was detected that is being started.
        self._changed = 0.0
        self._debugged = _debugged(app, server) if has_debugger else None
        self._notice = Notice(RequestLog(self._debugged or app), self._is_trusted)
        server.app = self._notice
        server.announce = self._announce
        server.shutdown_initiated(self._on_draining)
        if sources is not None:
            sources.complete(_templates(app))
            # What applications ask that do something in the process alone that serves.
            server.worker_environment = {"WERKZEUG_RUN_MAIN": "true"}

    def serve(self) -> None:
        """Serve, and restart when something has changed, until a signal ends it.

        :raises ServerClosed, ListenError, PidFileError, ControlError, CertificateFileError: as
            `serve` does.
        """
        if log.level == logging.NOTSET:
            log.setLevel(logging.INFO)
        with self._looking_after():
            serve(self._server)

    def _announce(self, pid: int) -> None:
        """Say what is to be known by whoever has started it."""
        for place in self._server.places:
            click.echo(f" * Running on {url_of(self._server, place)}")
        click.echo(f"Press CTRL+C to quit; kill -1 {pid} restarts it without a change")
        if self._debugged is not None:
            pin = self._debugged.pin
            click.echo(
                f" * Debugger PIN: {pin}" if pin else " * Debugger PIN disabled, for everybody"
            )
        if self._sources is not None and not _is_installed():
            click.echo(MISSING)

    def _on_draining(self) -> None:
        """The process serves no more: for the new code, or for good."""
        if self._server.service_ends is None:
            took = f" in {time.monotonic() - self._changed:.1f} s" if self._changed else ""
            log.info(" * Restarted%s", took)
        elif self._server.running_requests():
            log.info(" * Waiting for requests to finish; CTRL+C cuts them")

    def _is_trusted(self, environ: WSGIEnvironment) -> bool:
        """May who sends this request see code that fails? As the debugger has it: a page of
        another name that leads here is not to read it."""
        debugged = self._debugged
        # Werkzeug before 3.0.3 trusts all hosts.
        return debugged is not None and (
            not hasattr(debugged, "check_host_trust") or debugged.check_host_trust(environ)
        )

    @contextlib.contextmanager
    def _looking_after(self) -> t.Iterator[None]:
        """Restart the server when something has changed, as long as this lasts."""
        if self._sources is None:
            yield
            return
        thread = threading.Thread(
            target=self._run, args=(self._sources,), name="graceful-development", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join(LOOK_TIME)

    def _run(self, sources: Sources) -> None:
        server = self._server
        while server.state in (None, State.INIT):
            if self._is_over.wait(BOOT_LOOK_TIME):
                return
        for _ in self._moments(sources):
            while server.state is State.RUNNING and (changed := sources.changed()):
                self._restart(changed)
            if server.state is not State.RUNNING:
                return

    def _restart(self, changed: t.Sequence[str]) -> None:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        log.info(" * Detected change in %r%s, restarting", os.path.relpath(changed[0]), more)
        self._changed = time.monotonic()
        try:
            self._server.restart(wait=True)
        except RestartError as error:
            self._changed = 0.0
            self._notice.failure = Failure(str(error), error.lines)
        except RuntimeError:
            # It is over.
            self._is_over.set()

    # When to look.

    def _moments(self, sources: Sources) -> t.Iterator[None]:
        """Return now and then, and when something has happened that could be a change."""
        yield
        try:
            import watchfiles
        except ImportError:
            while not self._is_over.wait(FAST_LOOK_TIME):
                yield
            return
        while not self._is_over.is_set():
            try:
                yield from self._events(sources, watchfiles.watch)
            except (OSError, RuntimeError) as error:
                # A directory has gone meanwhile, or the system's limit is reached.
                log.debug("watchfiles: %s", error)
                self._is_over.wait(FAST_LOOK_TIME)
                yield

    def _events(self, sources: Sources, watch: t.Callable[..., Events]) -> t.Iterator[None]:
        """The same for the directories of now; return when they are others."""
        places = set(sources.directories)
        looked = time.monotonic()
        events = watch(
            *sorted(place for place in places if os.path.isdir(place)),
            watch_filter=None,
            debounce=LONGEST,
            step=STEP,
            stop_event=self._is_over,
            rust_timeout=int(LOOK_TIME * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
        )
        with contextlib.closing(events):
            for found in events:
                is_due = time.monotonic() - looked > LOOK_TIME / 2
                if is_due or any(sources.concerns(path) for _, path in found):
                    yield
                    looked = time.monotonic()
                if sources.directories != places:
                    return


class RequestLog:
    """The application, with a line in the log for each request, as `flask run` has it."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def __call__(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> t.Iterable[bytes]:
        if environ.get("PATH_INFO") == PATH:
            # The notice asks each second.
            return self._app(environ, start_response)
        began = time.monotonic()
        has_begun = False

        def start(status: str, headers: t.Any, *rest: t.Any) -> t.Callable[[bytes], object]:
            nonlocal has_begun
            has_begun = True
            _log_request(environ, status, began)
            return start_response(status, headers, *rest)

        try:
            return self._app(environ, start)
        except Exception:
            if not has_begun:
                # What the server answers.
                _log_request(environ, "500", began)
            raise


def _log_request(environ: WSGIEnvironment, status: str, began: float) -> None:
    log.info(
        '%s "%s %s" %s %.0f ms',
        environ.get("REMOTE_ADDR") or "-",
        environ["REQUEST_METHOD"],
        _without_token(environ),
        status[:3],
        (time.monotonic() - began) * 1000,
    )


def _without_token(environ: WSGIEnvironment) -> str:
    """A request's target as it may be logged: what opens the status page is nobody's business."""
    target = environ.get("RAW_URI") or environ.get("PATH_INFO", "")
    return re.sub("(?<=[?&]token=)[^&]+", "...", ascii(target)[1:-1])


def _debugged(app: Flask, server: GracefulServer) -> DebuggedApplication:
    """With Werkzeug's debugger, as `flask run` has it: reached where the server is, and from this
    machine."""
    # It would say its PIN in each process.
    debugged = DebuggedApplication(app, evalex=True, pin_logging=False)
    debugged.pin_logging = True
    # Before 3.0.3, Werkzeug let everybody in who knew the PIN.
    hosts = [address.host for address in server.addresses if address.host]
    getattr(debugged, "trusted_hosts", []).extend(hosts)
    return debugged


def _templates(app: Flask) -> list[str]:
    """The directories of templates that are not read anew when they change."""
    reads_anew = app.config["TEMPLATES_AUTO_RELOAD"]
    if reads_anew or (reads_anew is None and app.debug):
        return []
    loaders = [one.jinja_loader for one in (app, *app.blueprints.values())]
    return [path for loader in loaders for path in getattr(loader, "searchpath", ())]


def _is_installed() -> bool:
    """Can the system tell of changes?"""
    return importlib.util.find_spec("watchfiles") is not None
