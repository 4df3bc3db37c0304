"""What a successor prints while it boots: passed on, and its last lines kept.

Owns the pipes between a booting successor's standard output and error and those of its parent
(`Tap`), and the successor's way back to the real ones (`Streams`).

Strategy: until it is ready, a successor prints into a pipe. The parent copies what comes to where
it prints itself, and remembers the end of it for the message that the boot has failed. When the
successor is ready it puts the real files in the place of the pipe. Programs that it started
meanwhile still have the pipe, so it goes on copying for them, as long as there are any.
"""

from __future__ import annotations

import os
import stat
import sys
import typing as t
from collections import deque
from functools import partial

if t.TYPE_CHECKING:
    from .loop import Loop

# What is remembered, and shown.
MAX_LINES = 20
MAX_BYTES = 8192


class Tap:
    """The parent's side of one pipe.

    :param targets: the descriptors whose place the pipe takes; the same file under both numbers,
        or one alone.
    """

    def __init__(self, targets: t.Sequence[int]) -> None:
        self.targets = targets
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def copy(self) -> bytes | None:
        """Pass on what has come; None when there is nothing now, b"" at the end."""
        return copy(self.reader, self.targets[0])

    def close_writer(self) -> None:
        os.close(self.writer)

    def close(self) -> None:
        os.close(self.reader)


class Boot:
    """The output of one successor, as its parent sees it.

    Standard output and error that are not open are left alone.
    """

    def __init__(self) -> None:
        self._tail: deque[bytes] = deque()
        self._size = 0
        # Does a person see at once what is passed on, above what is logged?
        self.is_seen = os.isatty(2)
        self.taps: list[Tap] = []
        groups: dict[tuple[int, int, int], list[int]] = {}
        for fd in (1, 2):
            try:
                status = os.fstat(fd)
            except OSError:
                continue
            device = status.st_rdev if stat.S_ISCHR(status.st_mode) else 0
            groups.setdefault((status.st_dev, status.st_ino, device), []).append(fd)
        for fds in groups.values():
            self.taps.append(Tap(fds))

    def writer_for(self, fd: int) -> int | None:
        """What the successor is to have under this number; None: as its parent."""
        return next((tap.writer for tap in self.taps if fd in tap.targets), None)

    def started(self) -> None:
        """The successor has its ends of the pipes."""
        for tap in self.taps:
            tap.close_writer()

    def copy(self) -> None:
        """Pass on what the successor has printed, and remember the end of it."""
        for tap in self.taps:
            while data := tap.copy():
                self._tail.append(data)
                self._size += len(data)
                while self._size - len(self._tail[0]) > MAX_BYTES:
                    self._size -= len(self._tail.popleft())

    def last_lines(self) -> list[str]:
        """The last lines that the successor has printed."""
        text = b"".join(self._tail)[-MAX_BYTES:].decode("utf-8", "replace")
        return text.splitlines()[-MAX_LINES:]

    def close(self) -> None:
        for tap in self.taps:
            tap.close()
        self.taps = []


class Streams:
    """The successor's way back to the files that it is to print to.

    :param targets: the descriptors that are pipes now, for each pipe.
    :param fds: for each pipe the real file and the pipe's reading end.
    """

    def __init__(self, targets: t.Sequence[t.Sequence[int]], fds: t.Sequence[int]) -> None:
        self._targets = targets
        self._real = list(fds[::2])
        self._readers = list(fds[1::2])

    def restore(self, loop: Loop) -> None:
        """Print to the real files from now on; the loop passes on what other programs still print
        into the pipes."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for targets, real in zip(self._targets, self._real, strict=True):
            for target in targets:
                os.dup2(real, target)
        if self._targets:
            print_at_once(os.isatty(1))

        for reader, real in zip(self._readers, self._real, strict=True):
            loop.watch(reader, partial(_pass_on, loop, reader, real))


def _pass_on(loop: Loop, reader: int, real: int) -> None:
    """Copy what has come, until nobody is left who prints into the pipe."""
    if copy(reader, real) == b"":
        loop.unwatch(reader)
        os.close(reader)
        os.close(real)


def print_at_once(is_on: bool) -> None:
    """Should each line of standard output leave at once, as on a terminal? Into a file or a pipe,
    lines wait for company; those of a process that is killed are lost then."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=is_on)


def copy(reader: int, target: int) -> bytes | None:
    """Copy what a pipe holds; None when that is nothing now, b"" at its end."""
    try:
        data = os.read(reader, 65536)
    except BlockingIOError:
        return None
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(target, rest) :]
    except OSError:
        # Nobody reads there; what is remembered is all that is left of it.
        pass
    return data
