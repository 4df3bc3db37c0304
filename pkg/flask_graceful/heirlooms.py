"""Open files that the application hands on to its successors (tableflip's Fds).

Owns a descriptor of its own for each of them, from the moment it is added, or asked for by its
name, to the end of serving.
"""

from __future__ import annotations

import os
import threading
import typing as t

from .inheritance import inheritance

# What one message between two processes carries, less what else is in it.
MOST_FILES = 100


class Heirlooms:
    """From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fds: dict[str, int] = {}

    def add(self, name: str, file: int | t.Any) -> None:
        """Hand on a descriptor, or an object with `fileno()`, under this name from now on.

        :raises ValueError: it is not open, or there are too many.
        :raises TypeError: it is no file, or the name no text.
        """
        if not isinstance(name, str):
            raise TypeError(f"name of a file: expected a string, got {name!r}")
        fd = _duplicate(name, file)
        with self._lock:
            if len(self._fds) >= MOST_FILES and name not in self._fds:
                os.close(fd)
                raise ValueError(f"at most {MOST_FILES} files can be handed to a successor")
            self._replace(name, fd)

    def inherited(self, name: str) -> int | None:
        """A copy of the descriptor with this name, handed on by the old process or here."""
        with self._lock:
            fd = inheritance().files.pop(name, None)
            if fd is not None:
                self._replace(name, fd)
            return os.dup(self._fds[name]) if name in self._fds else None

    def fds(self) -> dict[str, int]:
        """All descriptors, by their names."""
        with self._lock:
            return dict(self._fds)

    def close(self) -> None:
        """Nobody is left to be given them."""
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def _replace(self, name: str, fd: int) -> None:
        old = self._fds.pop(name, None)
        self._fds[name] = fd
        if old is not None:
            os.close(old)


def _duplicate(name: str, file: int | t.Any) -> int:
    if isinstance(file, bool) or not (isinstance(file, int) or hasattr(file, "fileno")):
        raise TypeError(f"file {name!r}: expected a descriptor or an open file, got {file!r}")
    try:
        return os.dup(file if isinstance(file, int) else file.fileno())
    except (OSError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"file {name!r}: {file!r} can't be handed on: {reason}") from error
