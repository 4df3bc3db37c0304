"""A process that this one starts, and talks with.

Owns the child process, this process's end of the channel to it, and what it prints until it is
ready.

Rules: never a fork of a threaded process, always a new program. Its death is learnt from the
channel, which the kernel closes. What it prints without a pause is passed on in one piece.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
import typing as t
from contextlib import ExitStack

from .channel import VARIABLE, Channel, ChannelError
from .loop import Loop, Timer
from .output import Boot

if t.TYPE_CHECKING:
    from .command import Command

log = logging.getLogger("flask_graceful")

# How long a process may take from the end of its channel to its own.
END_TIME = 1.0
# The pause after which a block of its output is at its end, how long a block may grow, in seconds,
# and how large, in bytes.
BLOCK_PAUSE = 0.1
BLOCK_TIME = 1.0
BLOCK_SIZE = 1 << 16


class Child:
    """:param command: what is started.
    :param data: the first record that it gets, with `fds`; the way to its streams is added.
    :param older: streams that it is to see to besides: for each pipe, where to and where from.
    :raises OSError: it can't be started.
    """

    # What it is called in the log.
    what = "Process"
    # Has it said that its boot is over?
    is_ready = False

    def __init__(
        self,
        command: Command,
        data: dict[str, t.Any],
        fds: t.Sequence[int],
        older: t.Sequence[int] = (),
    ) -> None:
        with ExitStack() as undo:
            self._boot = Boot()
            undo.callback(self._boot.close)
            ours, theirs = socket.socketpair()
            self.channel = Channel(ours)
            undo.callback(self.channel.close)
            with theirs:
                # Sent before anybody is there to receive it: whatever happens to this process
                # from now on, the listening sockets outlive it.
                pipes = [fd for tap in self._boot.taps for fd in (tap.targets[0], tap.reader)]
                targets: list[list[int]] = [list(tap.targets) for tap in self._boot.taps]
                streams = targets + [[]] * (len(older) // 2)
                self.channel.send({**data, "streams": streams}, [*fds, *pipes, *older])
                self._process = self._spawn(command, theirs.fileno())
            undo.pop_all()
        self._boot.started()
        self.pid = self._process.pid
        self._loop: Loop | None = None
        self._block_began = 0.0
        self._block_timer = Timer(self._boot.pass_on)

    def _spawn(self, command: Command, fd: int) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "PWD": command.directory, VARIABLE: f"{os.getpid()}:{fd}"}
        return subprocess.Popen(
            command.resolved(),
            cwd=command.directory,
            env=environ,
            pass_fds=[fd],
            stdout=self._boot.writer_for(1),
            stderr=self._boot.writer_for(2),
        )

    def watch_output(self, loop: Loop) -> None:
        """Pass on what it prints, until its boot is over."""
        self._loop = loop
        for tap in self._boot.taps:
            loop.watch(tap.reader, self._on_output)

    def _on_output(self) -> None:
        assert self._loop is not None
        now = time.monotonic()
        if not self._boot.held:
            self._block_began = now
        self._boot.take()
        if self._boot.held >= BLOCK_SIZE or now - self._block_began >= BLOCK_TIME:
            self._boot.pass_on()
        self._loop.set(self._block_timer, BLOCK_PAUSE)

    @property
    def is_booting(self) -> bool:
        """Is what it prints still passed on?"""
        return bool(self._boot.taps)

    def close_output(self, is_shown: bool = True) -> list[str]:
        """Its boot is over, in one way or the other: the last lines that it has printed.

        :param is_shown: False: nobody wants to see the block that it was about to print.
        """
        if self._loop is not None:
            self._loop.cancel(self._block_timer)
            for tap in self._boot.taps:
                self._loop.unwatch(tap.reader)
        self._boot.take_rest()
        if is_shown:
            self._boot.pass_on()
        lines = self._boot.last_lines()
        self._boot.close()
        return lines

    def forget_boot(self) -> None:
        """It was over before this program knew of the child."""
        self._boot = Boot(streams=())

    @property
    def is_seen(self) -> bool:
        """Does a person see at once what it prints?"""
        return self._boot.is_seen

    def listen(self) -> bool:
        """Take in what it says; False when it is gone."""
        try:
            is_open = self.channel.read(lambda record: self.note(record.data))
            self.push()
        except ChannelError as error:
            log.error("%d %s %d: %s", os.getpid(), self.what, self.pid, error)
            self.kill()
            return False
        return is_open

    def note(self, data: dict[str, t.Any]) -> None:
        """Heed one record."""
        raise NotImplementedError

    def push(self) -> None:
        """Send what can be sent."""
        self.channel.push()

    def say(self, data: dict[str, t.Any], fds: t.Sequence[int] = (), given: bool = False) -> None:
        """Send a record; see `Channel.send`."""
        try:
            self.channel.send(data, fds, given)
        except OSError:
            # It is gone, which is noticed where its channel is read.
            pass

    def kill(self) -> None:
        self._process.kill()

    def terminate(self) -> None:
        self._process.terminate()

    def abandon(self) -> None:
        """This process ends before the child, or learns of its end in another way."""
        # Nobody is left to wait for it; without a status Popen would warn of that.
        self._process.returncode = 0

    def reap(self) -> str:
        """The child has closed its channel: how it ended."""
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
        return how_it_ended(status)


def how_it_ended(status: int) -> str:
    """In words; a negative status is a signal's number, as `subprocess` has it."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        # A real-time signal has none.
        name = f"signal {-status}"
    return f"was killed by {name}"


def quoted(lines: t.Sequence[str]) -> str:
    """The last lines that a child has printed, below a message in the log."""
    return "".join(["\nIts last lines:"] * bool(lines) + [f"\n| {line}" for line in lines])
