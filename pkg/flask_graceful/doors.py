"""What the ways to serve an application have in common: `Graceful.run` and the two commands.

Owns which errors are one line to the user, and that what the server says is seen.
"""

from __future__ import annotations

import logging

from .control import ControlError
from .listeners import ListenError
from .pidfile import PidFileError
from .tls import CertificateFileError

# What keeps a server from beginning, and is nobody's bug. Their message is one line.
START_ERRORS = (ListenError, PidFileError, ControlError, CertificateFileError)


def show_log() -> None:
    """Have the log of the server seen, whatever the application that was loaded makes of its own;
    a level that it has chosen for this one counts."""
    log = logging.getLogger("flask_graceful")
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    # The stdlib's dictConfig switches off the loggers that it finds, unless told otherwise; the
    # reasons of failed requests and restarts would be lost.
    log.disabled = False
