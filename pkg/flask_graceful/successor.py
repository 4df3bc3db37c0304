"""The process that takes over: started by the old one, seen from both sides.

Owns the child process and its end of the channel (`Successor`), and what a process that is itself
a successor receives (`inherit_listeners`).

Rules: never a fork of a threaded process, always a new program: the same command, started anew.
Its death is learnt from the channel, which the kernel closes.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import typing as t

from .handover import VARIABLE, Channel, HandoverError
from .listeners import Listener

log = logging.getLogger("flask_graceful")

# How long a successor waits for its listeners; they are on their way before it starts.
INHERIT_TIME = 10.0
# How long a process may take from the end of its channel to its own.
END_TIME = 1.0


def _start_directory() -> str:
    """Where the command was given, as the user wrote it: a symbolic link in it may have moved on
    to a new release when the command is repeated."""
    here = os.getcwd()
    logical = os.environ.get("PWD", here)
    try:
        return logical if os.path.samefile(logical, here) else here
    except OSError:
        return here


# Taken at import: the application may go elsewhere.
_directory = _start_directory()


class Successor:
    """The process that is to take over: the same command, started anew."""

    def __init__(self, listeners: t.Sequence[Listener]) -> None:
        self.is_ready = False
        # The addresses that it goes on with, once it is ready.
        self.listening: list[str] = []
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        try:
            # Sent before anybody is there to receive it: whatever happens to this process from
            # now on, the listening sockets outlive it.
            self.channel.send(
                {"listeners": [listener.requested for listener in listeners]},
                [listener.fileno() for listener in listeners],
            )
            fd = theirs.fileno()
            environ = {**os.environ, "PWD": _directory, VARIABLE: f"{os.getpid()}:{fd}"}
            command = [sys.executable, *sys.orig_argv[1:]]
            self._process = subprocess.Popen(command, cwd=_directory, env=environ, pass_fds=[fd])
        except BaseException:
            self.channel.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid

    def listen(self) -> bool:
        """Take in what it says; False when it is gone."""
        try:
            is_open = self.channel.fill()
            while (record := self.channel.next()) is not None:
                if record.data.get("ready"):
                    self.is_ready = True
                    self.listening = record.data["listeners"]
        except HandoverError as error:
            log.error("%d Successor %d: %s", os.getpid(), self.pid, error)
            self.kill()
            return False
        return is_open

    def signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def kill(self) -> None:
        self._process.kill()

    def let_go(self) -> None:
        """This process ends: a successor that is ready lives on, another ends with it."""
        if not self.is_ready:
            self.kill()
            self.reap()
            return
        self.channel.close()
        # Nobody is left to wait for it; without a status Popen would warn of that.
        self._process.returncode = 0

    def reap(self) -> str:
        """The successor has closed its channel: how it ended."""
        self.channel.close()
        try:
            status = self._process.wait(END_TIME)
        except subprocess.TimeoutExpired:
            if self.is_ready:
                # It ends in its own time; the next one to be started reaps it.
                return "has ended its service"
            # It gave up, but for a thread that lives on; nobody is to wait for that one.
            self.kill()
            status = self._process.wait()
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"exited with status {status}"


def inherit_listeners(channel: Channel) -> dict[str, Listener]:
    """The listeners that the old process sends, by the address that was asked for."""
    try:
        record = channel.receive(time.monotonic() + INHERIT_TIME)
    except (TimeoutError, HandoverError) as error:
        raise RuntimeError(f"can't inherit the listeners: {error}") from error
    if record is None:
        return {}
    names = record.data["listeners"]
    return {
        name: Listener(socket.socket(fileno=fd), name, is_inherited=True)
        for name, fd in zip(names, record.fds, strict=True)
    }
