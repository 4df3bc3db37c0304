"""`wsgi.file_wrapper`: how an application says that its answer is a file (PEP 3333).

Owns the wrapper's type. As an iterable it gives the file in blocks, so middleware can use it like
any other; when it comes back from the application as it is, `ranges` sends the file without
reading it.
"""

from __future__ import annotations

import typing as t


class FilePart(t.Protocol):
    """A part of a file that is to be sent: `left` bytes, which may be lowered."""

    left: int


class FileWrapper:
    """A file as an iterable of blocks, from its current position to its end.

    `seekable`, `seek` and `tell` are the file's own: Werkzeug answers a range request by them
    instead of reading away what comes before the range.

    :param filelike: an object with `read(size)`; its other methods are used where it has them.
    :param block_size: bytes to ask of `read` at a time.
    """

    def __init__(self, filelike: t.Any, block_size: int = 65536) -> None:
        self.filelike = filelike
        self.block_size = block_size

    def __iter__(self) -> FileWrapper:
        return self

    def __next__(self) -> bytes:
        block: bytes = self.filelike.read(self.block_size)
        if not block:
            raise StopIteration
        return block

    def until(self, limit: int | None) -> t.Iterator[bytes]:
        """The file's blocks, no more than `limit` bytes together; None: all of them."""
        for block in self:
            yield block[:limit]
            if limit is not None:
                limit -= len(block)
                if limit <= 0:
                    return

    def close(self) -> None:
        """Close the file, if it can be closed."""
        close = getattr(self.filelike, "close", None)
        if close is not None:
            close()

    def seekable(self) -> bool:
        """Can the file be read from another position?"""
        seekable = getattr(self.filelike, "seekable", None)
        return seekable is not None and bool(seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to another position, in bytes; the new one."""
        return int(self.filelike.seek(offset, whence))

    def tell(self) -> int:
        """The current position, in bytes."""
        return int(self.filelike.tell())
