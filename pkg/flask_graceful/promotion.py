"""How the process that was started becomes the supervisor of several.

Owns the check whether it can, and what the supervisor is told about it.

Rules: the application has been loaded here once, and is loaded by each worker again. Nothing of it
is left in the supervisor: the process keeps its pid and its listeners, and changes its program.
What can't be bound is said here, once, before anything has begun.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
import typing as t

from . import reexec
from .activation import NAMES
from .channel import CAN_PASS, VARIABLE
from .command import OWN
from .inheritance import take_inheritance
from .listeners import bind_missing
from .notify import Notifier
from .pidfile import PidFile

if t.TYPE_CHECKING:
    from .listeners import Listener
    from .restart import GracefulServer

log = logging.getLogger("flask_graceful")


def check_workers(servers: t.Sequence[GracefulServer]) -> None:
    """Can these be served by workers?

    :raises RuntimeError: the system can't do it.
    :raises ValueError: they want what only one process can give.
    """
    if not CAN_PASS or not hasattr(os, "execve"):
        raise RuntimeError("workers: they share listening sockets, which needs Unix; use workers=0")
    for server in servers:
        if not server.handles_signals:
            raise ValueError(
                "workers: their supervisor handles signals; handle_signals=False can't be"
            )
        if server.restart_signal != getattr(signal, "SIGHUP", None):
            raise ValueError(
                "workers: their supervisor restarts on SIGHUP; leave restart_signal out"
            )
        if server.heirlooms.fds():
            raise ValueError("workers: add_file() hands files to one successor only; use workers=0")


def become_supervisor(servers: t.Sequence[GracefulServer]) -> t.NoReturn:
    """Serve with workers.

    :raises RuntimeError: this process can't be run as a supervisor; the message says why.
    :raises ListenError: an address can't be bound.
    :raises PidFileError: the file can't be written.
    """
    trial = reexec.Trial(OWN)
    status = trial.wait()
    lines = trial.close(status)
    if status:
        reason = lines[-1] if lines else f"exit status {status}"
        raise RuntimeError(f"workers: {reexec.MODULE} can't be run here: {reason}")
    environ = {**reexec.first_environment(), **servers[0].worker_environment}
    for name in (*NAMES, VARIABLE):
        environ.pop(name, None)
    inherited = take_inheritance()
    settings = {
        **dataclasses.asdict(servers[0].settings),
        "log_level": log.getEffectiveLevel(),
    }
    PidFile(settings["pid_file"]).check()
    # Those that an older process has are kept, for it may need them back.
    listeners = [*inherited.listeners, *_bind(servers, inherited.listeners)]
    state = {
        "team": {
            "command": list(OWN),
            "generation": 0,
            "count": servers[0].settings.workers,
            "settings": settings,
            "listeners": [
                [one.fileno(), one.inherited_as, one.is_ours, one.file] for one in listeners
            ],
            "memory": None,
            "workers": [],
        },
        "notify": Notifier.claim(environ).variables,
        "origin": [0, 0, []],
        "office": None,
        "streams": inherited.streams.record(),
    }
    kept = [*(one.fileno() for one in listeners), *inherited.streams.fds()]
    if inherited.parent is not None:
        channel, pid = inherited.parent
        state["origin"] = [channel.fileno(), pid, [one.inherited_as for one in inherited.listeners]]
        kept.append(channel.fileno())
    inherited.close_files()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    logging.shutdown()
    reexec.execute(OWN, state, kept, environ)


def _bind(servers: t.Sequence[GracefulServer], known: list[Listener]) -> list[Listener]:
    """The listeners that nobody has yet.

    :raises ListenError: one can't be bound.
    """
    addresses = {
        address: server.settings.tcp_keep_alive
        for server in servers
        for address in server.addresses
    }
    return bind_missing(addresses, known)[1]
