"""A part of a file on its way to a client.

Owns a descriptor of the file, and how far the part has come. Knows no wire: `splice` moves bytes
from the file to a socket within the kernel (sendfile(2)); where that can't be, as under TLS,
`block` reads them.

Rules: the descriptor is a duplicate. The application's own file is closed in the application's
thread as soon as its call is over, and none of its code runs later, in a thread that polls. Only
what is certain to read from its descriptor unchanged is taken: a `GzipFile` has a descriptor too,
and quite other bytes in it.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import typing as t

# What leaves together with the response's head; a file up to this size needs one system call.
FIRST_SIZE = 16384
BLOCK_SIZE = 65536

# Files and sockets that the system can't join; reading the file may still do.
_NO_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


class FileRange:
    """Bytes of a file still to be sent. Its connection's owner alone calls it; made by
    `open_range`.

    `left` counts them and may be lowered before the first is sent. `is_cut` says that the file has
    become shorter and `left` dropped to 0 for want of bytes.
    """

    __slots__ = ("_block", "_fd", "_offset", "can_splice", "is_cut", "left")

    def __init__(self, fd: int, offset: int, left: int) -> None:
        self.left = left
        self.is_cut = False
        self.can_splice = hasattr(os, "sendfile")
        self._fd = fd
        # The next byte that is not in the block, and bytes read from the file but not yet sent.
        self._offset = offset
        self._block = memoryview(b"")

    def block(self, size: int = BLOCK_SIZE) -> memoryview:
        """The next bytes to send; empty when there are none. The same ones until `advance`.

        :raises OSError: the file can't be read.
        """
        if not self._block and self.left:
            data = os.pread(self._fd, min(size, self.left), self._offset)
            self._offset += len(data)
            self._block = memoryview(data)
            if not data:
                self._cut()
        return self._block[: self.left]

    def advance(self, count: int) -> None:
        """So many bytes of the block have been sent."""
        self._block = self._block[count:]
        self.left -= count

    def splice(self, sock_fd: int, most: int) -> int:
        """Send up to `most` bytes to a socket, without reading them; the number sent.

        Only while `can_splice` and with no block begun. 0: nothing is left, or it has to be read.

        :raises BlockingIOError: the socket takes none now.
        :raises OSError: the client is gone, or the file can't be read.
        """
        try:
            sent = os.sendfile(sock_fd, self._fd, self._offset, min(most, self.left))
        except OSError as error:
            if error.errno not in _NO_SPLICE:
                raise
            self.can_splice = False
            return 0
        self._offset += sent
        self.left -= sent
        if not sent:
            self._cut()
        return sent

    def close(self) -> None:
        """Close the descriptor. Once."""
        os.close(self._fd)

    def _cut(self) -> None:
        self.left = 0
        self.is_cut = True


def open_range(filelike: t.Any) -> FileRange | None:
    """The part of a regular file from its current position to its end; None when there is no such
    part, or nothing in it: then it has to be read.

    :raises OSError: the file can't be read.
    """
    raw = filelike.raw if type(filelike) in (io.BufferedReader, io.BufferedRandom) else filelike
    if type(raw) is not io.FileIO or raw.closed or not raw.readable():
        return None
    if type(filelike) is io.BufferedRandom:
        # What was written to it may still be in its buffer.
        filelike.flush()
    status = os.fstat(raw.fileno())
    # The size of files in /proc is 0, whatever can be read from them.
    if not stat.S_ISREG(status.st_mode) or status.st_size <= (offset := filelike.tell()):
        return None
    try:
        fd = os.dup(raw.fileno())
    except OSError:
        # No descriptor to be had; reading needs none.
        return None
    part = FileRange(fd, offset, status.st_size - offset)
    is_true = False
    try:
        # What is to leave with the head. It tells when a size is not true, as in /sys.
        is_true = len(part.block(FIRST_SIZE)) == min(FIRST_SIZE, part.left)
    finally:
        if not is_true:
            part.close()
    return part if is_true and part.left else None
