"""Somebody who asks a process for something over its control socket.

Owns one client, from its first byte to the last word of the answer.

Rules: nobody is waited for. What a client may send is short and soon, and one that does not take in
what it has asked for is left alone.
"""

from __future__ import annotations

import json
import typing as t

from .loop import Timer

if t.TYPE_CHECKING:
    import socket

    from .loop import Loop

# The most that a client sends, and that waits to be taken in by it, in bytes.
MOST_INPUT = 4096
MOST_OUTPUT = 4 << 20
# How long a client may be silent, and how long the last word may wait to be taken in; seconds.
SILENT_TIME = 5.0


class Clerk(t.Protocol):
    """Whom clients speak to."""

    loop: Loop

    def carry_out(self, client: Client, line: bytes) -> None:
        """Do what a client has asked for."""

    def forget(self, client: Client) -> None:
        """It has left."""


class Answer:
    """The answer to one command, to be ended once; what comes later goes nowhere. The loop's
    thread's."""

    def __init__(self, client: Client) -> None:
        self.client = client
        # What those who wait hear now and then.
        self.news: t.Callable[[], dict[str, t.Any]] = dict

    @property
    def is_over(self) -> bool:
        """Has it been given, or does nobody wait for it any more?"""
        return self.client.is_over

    def progress(self, data: dict[str, t.Any]) -> None:
        """Say how far it has come."""
        self.client.say({"progress": data})

    def result(self, data: dict[str, t.Any]) -> None:
        """It was done."""
        self.client.say({"result": data}, is_last=True)

    def error(self, reason: str, lines: t.Sequence[str] = ()) -> None:
        """It was not done.

        :param lines: what the program has said last that was to be started.
        """
        self.client.say({"error": reason, "lines": list(lines)}, is_last=True)

    def beat(self) -> None:
        if not self.is_over:
            self.progress(self.news())


class Client:
    """Somebody who asks, until the answer is out.

    :param clerk: carries commands out, and is told when the client has gone.
    :param command: what was asked, when it is known already.
    :param output: what is still to be said to it.
    """

    def __init__(
        self, clerk: Clerk, sock: socket.socket, command: str = "", output: str = ""
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.command = command
        self.answer = Answer(self)
        # Was the last word said?
        self.is_over = False
        self._clerk = clerk
        self._loop = clerk.loop
        self._input = b""
        self._output = bytearray(output.encode())
        self._timer = Timer(self.leave)
        if not command:
            self._loop.set(self._timer, SILENT_TIME)
        self._loop.watch_channel(self, self._on_event)

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def has_output(self) -> bool:
        return bool(self._output)

    def say(self, data: dict[str, t.Any], is_last: bool = False) -> None:
        if self.is_over:
            return
        self.is_over = is_last
        self._output += json.dumps(data).encode() + b"\n"
        self._flush()
        if is_last and self._output:
            self._loop.set(self._timer, SILENT_TIME)

    def record(self) -> list[t.Any]:
        """What another program needs to go on with it."""
        return [self.fileno(), self._output.decode()]

    def depart(self) -> None:
        """Another process goes on with it; here the socket only stays open."""
        self.is_over = True
        self._output.clear()
        self._loop.cancel(self._timer)
        self._loop.unwatch(self.fileno())

    def leave(self) -> None:
        """It is gone, or as good as that."""
        self.is_over = True
        if self.sock.fileno() >= 0:
            self._loop.cancel(self._timer)
            self._loop.unwatch(self.sock.fileno())
            self.sock.close()
            self._clerk.forget(self)

    def _on_event(self) -> None:
        if not self._read():
            self.leave()
            return
        self._flush()

    def _read(self) -> bool:
        """Take in what has come; False when the client is gone, or says too much."""
        while True:
            try:
                data = self.sock.recv(MOST_INPUT)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data or self.command:
                # Nothing is to follow a command but its answer.
                return False
            self._input += data
            line, end, _ = self._input.partition(b"\n")
            if end or len(self._input) > MOST_INPUT:
                self._loop.cancel(self._timer)
                self._clerk.carry_out(self, line)
                return True

    def _flush(self) -> None:
        try:
            while self._output:
                del self._output[: self.sock.send(self._output)]
        except BlockingIOError:
            if len(self._output) > MOST_OUTPUT:
                self.leave()
                return
        except OSError:
            self.leave()
            return
        if self.is_over and not self._output:
            self.leave()
        else:
            self._loop.rearm(self)
