"""What a process has from the one that started it as its successor, or from systemd.

Owns the channel to the old process until it serves, and what came over it: listening sockets,
files that the application handed on, and the way to the real standard output.

Rules: the environment is read, and cleaned, when the package is imported. What came is received
when it is first asked for. Whatever nobody wanted is closed when the process is ready.
"""

from __future__ import annotations

import os
import socket
import time
import typing as t

from .activation import ActivationError, claim_variables, sockets
from .channel import Channel, ChannelError, claim_channel
from .listeners import Listener, ListenError
from .output import Streams, print_at_once
from .sockfile import SocketFile

# How long a successor waits for what it inherits; that is on its way before it starts.
INHERIT_TIME = 10.0


class Inheritance:
    """Everything that was handed to this process."""

    def __init__(self, parent: tuple[Channel, int] | None) -> None:
        # The channel to the old process, and its pid.
        self.parent = parent
        self.listeners: list[Listener] = []
        # Descriptors by the names that the old process gave them.
        self.files: dict[str, int] = {}
        self.streams = Streams([], [])
        # Does the old process act on signals?
        self.signals = True
        # For a worker: what its supervisor says of it. `parent` is that one then.
        self.worker: dict[str, t.Any] | None = None
        # How many processes have served before this one, and this one.
        self.generation = 1
        # The restarts so far, as the old process has noted them.
        self.restarts: list[dict[str, t.Any]] = []
        if parent is None:
            self._take_activated()
        else:
            self._receive(parent[0])

    def _receive(self, channel: Channel) -> None:
        try:
            record = channel.receive(time.monotonic() + INHERIT_TIME)
        except (TimeoutError, ChannelError) as error:
            raise RuntimeError(f"can't inherit the listeners: {error}") from error
        if record is None:
            return
        data, fds = record.data, iter(record.fds)
        expected = len(data["listeners"]) + len(data["files"]) + 2 * len(data["streams"])
        if len(record.fds) < expected:
            raise RuntimeError("can't inherit the listeners: too many open files")
        for name, is_ours, file in data["listeners"]:
            sock = socket.socket(fileno=next(fds))
            there = SocketFile(*file) if file else None
            self.listeners.append(Listener(sock, name, name, is_ours, there))
        self.files = {name: next(fds) for name in data["files"]}
        self.streams = Streams(data["streams"], list(fds))
        self.signals = data["signals"]
        self.worker = data.get("worker")
        # An older program does not count.
        self.generation = data.get("generation", 1)
        self.restarts = data.get("restarts", [])

    def _take_activated(self) -> None:
        try:
            for name, sock in sockets(_variables):
                text = f"systemd:{name}"
                self.listeners.append(Listener(sock, text, inherited_as=text, is_ours=False))
        except ActivationError as error:
            raise ListenError(None, str(error)) from error

    def close_files(self) -> None:
        """Close the files that nobody has asked for."""
        for fd in self.files.values():
            os.close(fd)
        self.files = {}


# Taken at import, so that the application and its children never see the variables.
_parent = claim_channel(os.environ)
_variables = claim_variables(os.environ)
_has_parent = _parent is not None
if _has_parent:
    # Standard output is a pipe as long as the process boots.
    print_at_once(True)
_inheritance: Inheritance | None = None


def is_child() -> bool:
    """Was this process started by another one of the same service: as its successor, or by its
    supervisor?"""
    return _has_parent


def has_parent() -> bool:
    """Was this process started as the successor of one that serves (row U1)? Workers of a service
    that begins are none.

    :raises RuntimeError: what it inherits does not come.
    """
    if not _has_parent:
        return False
    worker = inheritance().worker
    return worker is None or worker["generation"] > 1


def inheritance() -> Inheritance:
    """What this process has inherited.

    :raises ListenError: what systemd says of its sockets can't be.
    """
    global _inheritance
    if _inheritance is None:
        _inheritance = Inheritance(_parent)
    return _inheritance


def take_inheritance() -> Inheritance:
    """The same, for the one who uses it up: after this there is nothing left."""
    global _inheritance
    taken = inheritance()
    _variables.clear()
    _inheritance = Inheritance(None)
    # That it is one does not change.
    _inheritance.worker = taken.worker
    return taken
