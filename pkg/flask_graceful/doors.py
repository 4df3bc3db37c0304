"""What the ways to serve an application have in common: `Graceful.run` and the two commands.

Owns which errors are one line to the user, how others look, what of the server's log is seen, and
how an address is written that a browser opens.
"""

from __future__ import annotations

import logging
import traceback
import typing as t

from .control import ControlError
from .listeners import ListenError
from .pidfile import PidFileError
from .tls import CertificateFileError

if t.TYPE_CHECKING:
    from .restart import GracefulServer

# What keeps a server from beginning, and is nobody's bug. Their message is one line.
START_ERRORS = (ListenError, PidFileError, ControlError, CertificateFileError)

# Of modules that are on the way from a command to the user's code.
_WAY = {
    "_frozen_importlib",
    "_frozen_importlib_external",
    "click",
    "flask",
    "flask_graceful",
    "importlib",
    "runpy",
}


def is_misconfigured(error: Exception) -> bool:
    """Does the extension find the application's configuration wrong? Its message says all: the line
    that has created the extension is not what is to be mended."""
    names = [frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return f"{__package__}.configuration" in names


def print_failure(error: Exception) -> None:
    """The traceback of code that could not be loaded, from the user's first line on."""
    trace = error.__traceback__
    while trace is not None:
        name = str(trace.tb_frame.f_globals.get("__name__", ""))
        if name != "__main__" and name.partition(".")[0] not in _WAY:
            break
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def url_of(server: GracefulServer, place: str) -> str:
    """One of the server's places, as a browser opens it."""
    return place if place.startswith("unix:") else f"{server.scheme.lower()}://{place}"


def show_log(develops: bool = False) -> None:
    """Have the log of the server seen, whatever the application that was loaded makes of its own;
    a level that it has chosen for this one counts.

    :param develops: in the development mode, which tells of each restart in its own words. What is
        wrong is seen there, too.
    """
    log = logging.getLogger("flask_graceful")
    if log.level == logging.NOTSET:
        log.setLevel(logging.WARNING if develops else logging.INFO)
    # The stdlib's dictConfig switches off the loggers that it finds, unless told otherwise; the
    # reasons of failed requests and restarts would be lost.
    log.disabled = False
