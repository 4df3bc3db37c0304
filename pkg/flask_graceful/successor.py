"""The process that takes over, as the old one sees it.

Owns the child process, this process's end of the channel to it, and what it prints until it is
ready.

Rules: never a fork of a threaded process, always a new program: the same command, started anew.
Command, directory and links in their paths are resolved anew each time. Its death is learnt from
the channel, which the kernel closes.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import typing as t
from contextlib import ExitStack

from .channel import VARIABLE, Channel, ChannelError
from .handover import Parcel, Sender
from .output import Boot

if t.TYPE_CHECKING:
    from .listeners import Listener
    from .output import Streams

log = logging.getLogger("flask_graceful")

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


def _script_place() -> int:
    """Where in the command a script is that was started as a program: after the words of its first
    line, which name the interpreter. 0: there is none."""
    for place, word in enumerate(sys.orig_argv[1:3], 1):
        try:
            with open(word, "rb") as file:
                line = os.fsdecode(file.readline(512))
        except (OSError, ValueError):
            continue
        if line.startswith("#!") and line[2:].strip().split(None, 1) == sys.orig_argv[:place]:
            return place
    return 0


# Taken at import: the application may go elsewhere.
_directory = _start_directory()
_script = _script_place()


def command() -> list[str]:
    """The command of this process, for another one in the directory where it was given."""
    words = sys.orig_argv or [sys.executable]
    if _script:
        # By its interpreter of now, which may be another release's.
        script = os.path.join(_directory, words[_script])
        if os.access(script, os.X_OK):
            return [script, *words[_script + 1 :]]
    program = words[0]
    if os.sep in program:
        # Not sys.executable: that has the directory in it, without its links.
        program = os.path.join(_directory, program)
    else:
        program = shutil.which(program) or program
    if not os.access(program, os.X_OK):
        program = sys.executable
    return [program, *words[1:]]


class Successor:
    """The process that is to take over: the same command, started anew.

    :param listeners: what it inherits, and goes on with as far as it still has these addresses.
    :param files: descriptors that the application hands on, by their names.
    :param streams: what this process passes on for others, and the successor will.
    :param signals: does this process act on signals?
    :param generation: its number.
    :raises OSError: it can't be started.
    """

    # Does it serve?
    is_ready = False
    # It asks this process to give way, and could not do it by a signal.
    asks = False
    # How many processes have taken over after it.
    succeeded = 0
    # It stops by itself, and nobody is to take its place.
    is_leaving = False

    def __init__(
        self,
        listeners: t.Sequence[Listener],
        files: t.Mapping[str, int],
        streams: Streams,
        signals: bool,
        generation: int,
    ) -> None:
        # The addresses that it goes on with, and whether their connections are plain.
        self.listening: dict[str, bool] = {}
        # What it could not take.
        self.refused: list[Parcel] = []
        with ExitStack() as undo:
            self._boot = Boot()
            undo.callback(self._boot.close)
            ours, theirs = socket.socketpair()
            self.channel = Channel(ours)
            undo.callback(self.channel.close)
            self.sender = Sender(self.channel)
            with theirs:
                # Sent before anybody is there to receive it: whatever happens to this process
                # from now on, the listening sockets outlive it.
                self._bequeath(listeners, files, streams, signals, generation)
                self._process = self._spawn(theirs.fileno())
            undo.pop_all()
        self._boot.started()
        self.pid = self._process.pid

    def _spawn(self, fd: int) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "PWD": _directory, VARIABLE: f"{os.getpid()}:{fd}"}
        stdout, stderr = self._boot.writer_for(1), self._boot.writer_for(2)
        return subprocess.Popen(
            command(), cwd=_directory, env=environ, pass_fds=[fd], stdout=stdout, stderr=stderr
        )

    def _bequeath(
        self,
        listeners: t.Sequence[Listener],
        files: t.Mapping[str, int],
        streams: Streams,
        signals: bool,
        generation: int,
    ) -> None:
        older = streams.fds()
        pipes = [fd for tap in self._boot.taps for fd in (tap.targets[0], tap.reader)]
        targets: list[list[int]] = [list(tap.targets) for tap in self._boot.taps]
        self.channel.send(
            {
                "listeners": [[one.requested, one.is_ours, one.file] for one in listeners],
                "files": list(files),
                "streams": targets + [[]] * (len(older) // 2),
                "signals": signals,
                "generation": generation,
            },
            [*(listener.fileno() for listener in listeners), *files.values(), *pipes, *older],
        )

    def pipes(self) -> list[int]:
        """What can be read when the successor has printed something."""
        return [tap.reader for tap in self._boot.taps]

    def copy_output(self) -> None:
        """Pass on some of what it has printed."""
        self._boot.copy()

    def close_output(self) -> list[str]:
        """Its boot is over, in one way or the other: the last lines that it has printed."""
        self._boot.copy_rest()
        lines = self._boot.last_lines()
        self._boot.close()
        return lines

    @property
    def is_seen(self) -> bool:
        """Does what it has printed stand on a terminal, above what is logged?"""
        return self._boot.is_seen

    def listen(self) -> bool:
        """Take in what it says; False when it is gone."""
        is_open = True
        try:
            while is_open and (has_more := self.channel.fill()) is not None:
                is_open = has_more
                while (record := self.channel.next()) is not None:
                    self._note(record.data)
            self.push()
        except ChannelError as error:
            log.error("%d Successor %d: %s", os.getpid(), self.pid, error)
            self.kill()
            return False
        return is_open

    def _note(self, data: dict[str, t.Any]) -> None:
        if "ready" in data:
            self.is_ready = True
            self.listening = data["ready"]
        elif "receipt" in data:
            self.refused += self.sender.on_receipt(data)
        self.asks = self.asks or "give_way" in data
        self.succeeded = data.get("succeeded", self.succeeded)
        self.is_leaving = self.is_leaving or "leaving" in data

    def push(self) -> None:
        """Send what can be sent."""
        try:
            self.channel.flush()
            self.sender.push()
        except OSError:
            # It is gone, which is noticed where its channel is read.
            pass

    def restart(self, waiting: t.Sequence[str] = (), fds: t.Sequence[int] = ()) -> None:
        """Have it do what this process was asked to do.

        :param waiting: with the descriptors, those who wait for it.
        """
        try:
            self.channel.send({"restart": True, "waiting": list(waiting)}, fds)
        except OSError:
            # As above.
            pass

    def stop(self, by_signal: bool) -> None:
        """Have it stop as soon as it serves, whatever its hooks say.

        :param by_signal: or end its boot, if it does not serve yet.
        """
        try:
            self.channel.send({"stop": True})
        except OSError:
            # As above.
            pass
        if by_signal:
            self._process.terminate()

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
            return f"was killed by {_name_of(-status)}"
        return f"exited with status {status}"


def _name_of(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        # A real-time signal has none.
        return f"signal {signum}"
