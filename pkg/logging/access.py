"""gin's access log: one line a request on standard output, redirects left out.

A WSGI middleware, so that it also sees what the application fails to answer. The line is written
when the application returns, before the answer leaves: who has the answer finds the line.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from pkg.logging.safe import mask, mask_query, printable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_NOT_LOGGED = ("301", "307")
_RESET = "\033[0m"
_WHITE = "\033[90;47m"
_STATUS_COLOURS = {"2": "\033[97;42m", "3": _WHITE, "4": "\033[97;43m"}
_RED = "\033[97;41m"
_METHOD_COLOURS = {
    "GET": "\033[97;44m",
    "POST": "\033[97;46m",
    "PUT": "\033[97;43m",
    "DELETE": _RED,
    "PATCH": "\033[97;42m",
    "HEAD": "\033[97;45m",
    "OPTIONS": _WHITE,
}


class AccessLog:
    def __init__(self, app: WSGIApplication) -> None:
        self._app = app
        self._coloured = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter_ns()
        status = "500"

        def start(status_line: str, *args: Any) -> Any:
            nonlocal status
            status = status_line[:3]
            return start_response(status_line, *args)

        try:
            return self._app(environ, start)
        finally:
            if status not in _NOT_LOGGED:
                self._write(environ, status, time.perf_counter_ns() - began)

    def _write(self, environ: WSGIEnvironment, status: str, elapsed: int) -> None:
        line = format_line(environ, status, elapsed, time.localtime(), self._coloured)
        with self._lock:
            _print(sys.stdout, line)


def format_line(
    environ: WSGIEnvironment,
    status: str,
    elapsed: int,
    now: time.struct_time,
    coloured: bool = False,
) -> str:
    stamp = time.strftime("%Y/%m/%d - %H:%M:%S", now)
    status = f" {status} "
    method = f" {printable(environ['REQUEST_METHOD']):<7}"
    if coloured:
        status = f"{_STATUS_COLOURS.get(status[1], _RED)}{status}{_RESET}"
        colour = _METHOD_COLOURS.get(environ["REQUEST_METHOD"], "")
        method = f"{colour}{method}{_RESET}"
    return (
        f"[GIN] {stamp} |{status}| {go_duration(elapsed):>13} | {_client(environ):>15} "
        f"|{method} {_target(environ)}\n"
    )


def _target(environ: WSGIEnvironment) -> str:
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    query = environ.get("QUERY_STRING", "")
    # A path has an equals sign when a client encoded its question mark, secrets and all.
    path = mask(printable(path)) if "=" in path else printable(path)
    return f"{path}?{printable(mask_query(query))}" if query else path


def _client(environ: WSGIEnvironment) -> str:
    forwarded = environ.get("HTTP_X_FORWARDED_FOR", "").partition(",")[0].strip()
    client: str = forwarded or environ.get("HTTP_X_REAL_IP", "").strip()
    return printable(client or environ.get("REMOTE_ADDR", ""))


def go_duration(nanoseconds: int) -> str:
    """A span of time as Go prints it: 531ns, 115.18µs, 2.079534ms, 1.2s, 1m0.5s."""
    if nanoseconds < 1_000:
        return f"{nanoseconds}ns"
    if nanoseconds < 1_000_000:
        return f"{_decimal(nanoseconds, 3)}µs"
    if nanoseconds < 1_000_000_000:
        return f"{_decimal(nanoseconds, 6)}ms"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{_decimal(rest, 9)}s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def _decimal(value: int, places: int) -> str:
    whole, fraction = divmod(value, 10**places)
    return f"{whole}.{fraction:0{places}}".rstrip("0").rstrip(".")


def _print(stream: TextIO, line: str) -> None:
    """Writes and flushes; a log that cannot be written must not fail the request."""
    try:
        try:
            stream.write(line)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except (OSError, ValueError):
        pass
