"""What a successor prints while it boots: passed on, and its last lines kept.

Owns the pipes between a booting successor's standard output and error and those of its parent
(`Tap`), and the successor's way back to the real ones (`Streams`).

Strategy: until it is ready, a successor prints into a pipe. The parent copies what comes to where
it prints itself, and remembers the end of it for the message that the boot has failed. It copies
whole blocks, what is printed without a pause, so that the tracebacks of two workers don't mix. When
the successor is ready it puts the real files in the place of the pipe. Programs that it started
meanwhile still have the pipe, so it goes on copying for them, and its successors after it, as long
as there are any: nobody is to be killed for printing into a pipe that nobody reads.

Rules: one process reads from a pipe at a time, or lines would change places. The successor begins
when its parent has said something that it says after it has taken the rest.
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

# What is remembered of each stream, and shown.
MAX_LINES = 40
MAX_BYTES = 8192
# The largest pipe that Linux makes unasked holds as much as so many reads.
READ_SIZE = 65536
MAX_READS = 16
# Pipes of earlier boots that are handed on.
MOST_PIPES = 32


class Tap:
    """The parent's side of one pipe.

    :param targets: the descriptors whose place the pipe takes; the same file under both numbers,
        or one alone.
    """

    def __init__(self, targets: t.Sequence[int]) -> None:
        self.targets = targets
        self._tail: deque[bytes] = deque()
        self._size = 0
        # What is not passed on yet.
        self.held = bytearray()
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def take(self) -> bool:
        """Take some of what has come, and remember the end of it; was there something?"""
        data = read(self.reader)
        if not data:
            return False
        self.held += data
        self._tail.append(data)
        self._size += len(data)
        while self._size - len(self._tail[0]) > MAX_BYTES:
            self._size -= len(self._tail.popleft())
        return True

    def pass_on(self) -> None:
        data, self.held = self.held, bytearray()
        write(self.targets[0], data)

    def last_lines(self) -> list[str]:
        text = b"".join(self._tail)[-MAX_BYTES:].decode("utf-8", "replace")
        return text.splitlines()[-MAX_LINES:]

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        self.close_writer()
        os.close(self.reader)


class Boot:
    """The output of one successor, as its parent sees it.

    Standard output and error that are not open are left alone.

    :param streams: which of the two are to be seen to.
    """

    def __init__(self, streams: t.Sequence[int] = (1, 2)) -> None:
        # Does a person see at once what is passed on, above what is logged?
        self.is_seen = os.isatty(2)
        self.taps: list[Tap] = []
        groups: dict[tuple[int, int, int], list[int]] = {}
        for fd in streams:
            try:
                status = os.fstat(fd)
            except OSError:
                continue
            device = status.st_rdev if stat.S_ISCHR(status.st_mode) else 0
            groups.setdefault((status.st_dev, status.st_ino, device), []).append(fd)
        try:
            for fds in groups.values():
                self.taps.append(Tap(fds))
        except OSError:
            self.close()
            raise

    def writer_for(self, fd: int) -> int | None:
        """What the successor is to have under this number; None: as its parent."""
        return next((tap.writer for tap in self.taps if fd in tap.targets), None)

    def started(self) -> None:
        """The successor has its ends of the pipes."""
        for tap in self.taps:
            tap.close_writer()

    @property
    def held(self) -> int:
        """How many bytes are not passed on yet."""
        return sum(len(tap.held) for tap in self.taps)

    def take(self) -> None:
        """Take some of what the successor has printed; one that never stops printing is not to
        keep its parent from everything else."""
        for tap in self.taps:
            tap.take()

    def take_rest(self) -> None:
        """Take what it has printed until now."""
        for tap in self.taps:
            for _ in range(MAX_READS):
                if not tap.take():
                    break

    def pass_on(self) -> None:
        """Print what was taken."""
        for tap in self.taps:
            tap.pass_on()

    def last_lines(self) -> list[str]:
        """The last lines that the successor has printed: those of standard error come last, since
        they tell why it ended."""
        return [line for tap in self.taps for line in tap.last_lines()]

    def close(self) -> None:
        for tap in self.taps:
            tap.close()
        self.taps = []


class Streams:
    """The way back to the files that this process is to print to; and there for what others still
    print into the pipes, of this boot and of earlier ones.

    :param targets: for each pipe, the descriptors whose place it takes here; none, where it took it
        in an older process.
    :param fds: for each pipe the real file and the pipe's reading end.
    """

    def __init__(self, targets: t.Sequence[t.Sequence[int]], fds: t.Sequence[int]) -> None:
        self._targets = targets
        self._is_watched = False
        # By the reading ends.
        self._real = dict(zip(fds[1::2], fds[::2], strict=True))

    def record(self) -> list[t.Any]:
        """What this process's next program needs to go on with them."""
        fds = self.fds()
        return [self._targets or [[]] * (len(fds) // 2), fds]

    def restore(self) -> None:
        """Print to the real files from now on."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for targets, real in zip(self._targets, self._real.values(), strict=True):
            for target in targets:
                os.dup2(real, target)
        if self._targets:
            print_at_once(os.isatty(1))
        self._targets = []

    def watch(self, loop: Loop) -> None:
        """Pass on what others print, as long as there is somebody."""
        if self._is_watched:
            return
        self._is_watched = True
        for reader in list(self._real):
            loop.watch(reader, partial(self._copy, loop, reader))
            # As a rule it is at its end, and its descriptors are wanted for connections.
            self._copy(loop, reader)

    def unwatch(self, loop: Loop) -> None:
        """Leave that to another process."""
        self._is_watched = False
        for reader in self._real:
            loop.unwatch(reader)

    def _copy(self, loop: Loop, reader: int) -> None:
        data = read(reader)
        if data:
            write(self._real[reader], data)
        elif data is not None:
            loop.unwatch(reader)
            os.close(reader)
            os.close(self._real.pop(reader))

    def fds(self) -> list[int]:
        """What a successor needs to go on with it: the pipes of the last MOST_PIPES at most."""
        pairs = [(real, reader) for reader, real in self._real.items()]
        return [fd for pair in pairs[:MOST_PIPES] for fd in pair]


def print_at_once(is_on: bool) -> None:
    """Should each line of standard output leave at once, as on a terminal? Into a file or a pipe,
    lines wait for company; those of a process that is killed are lost then."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=is_on)


def read(reader: int) -> bytes | None:
    """What a pipe holds; None when that is nothing now, b"" at its end."""
    try:
        return os.read(reader, READ_SIZE)
    except BlockingIOError:
        return None


def write(target: int, data: bytes | bytearray) -> None:
    """Print it."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(target, rest) :]
    except OSError:
        # Nobody reads there; what is remembered is all that is left of it.
        pass
