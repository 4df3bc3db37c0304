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

from .handover import VARIABLE, Channel, HandoverError
from .listeners import Listener

log = logging.getLogger("flask_graceful")

# How long a successor waits for its listeners; they are on their way before it starts.
INHERIT_TIME = 10.0


class Successor:
    """The process that is to take over: the same command, started anew."""

    def __init__(self, listener: Listener) -> None:
        self.is_ready = False
        ours, theirs = socket.socketpair()
        try:
            fd = theirs.fileno()
            environ = {**os.environ, VARIABLE: f"{os.getpid()}:{fd}"}
            command = [sys.executable, *sys.orig_argv[1:]]
            self._process = subprocess.Popen(command, env=environ, pass_fds=[fd])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self.channel = Channel(ours)
        try:
            self.channel.send({"listeners": [listener.requested]}, [listener.fileno()])
        except OSError:
            # It died at once; the end of the channel says so.
            pass

    def listen(self) -> bool:
        """Take in what it says; False when it is gone."""
        try:
            is_open = self.channel.fill()
            while (record := self.channel.next()) is not None:
                self.is_ready = self.is_ready or bool(record.data.get("ready"))
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
        """Wait for a successor that is gone; how it ended."""
        self.channel.close()
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
        name: Listener(socket.socket(fileno=fd), name)
        for name, fd in zip(names, record.fds, strict=True)
    }
