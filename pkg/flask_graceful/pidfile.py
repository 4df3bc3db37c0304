"""The file that tells which process serves.

Owns its path. It is written when the process is ready, in one step, and removed at the end only
while it still names this process: a successor has written its own number by then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import typing as t

log = logging.getLogger("flask_graceful")


class PidFileError(OSError):
    """The file can't be written; the message names it."""

    def __str__(self) -> str:
        return self.strerror or ""


# Taken at import: the application may go elsewhere.
_directory = os.getcwd()


class PidFile:
    """:param path: relative to the directory in which the process was started; empty: no file."""

    def __init__(self, path: str) -> None:
        self._path = os.path.join(_directory, path) if path else ""

    @property
    def path(self) -> str:
        """The whole path; empty: none."""
        return self._path

    def check(self) -> None:
        """Could this process write it?

        :raises PidFileError: the system refuses.
        """
        if self._path:
            with self._clear(), self._beside() as temporary:
                os.unlink(temporary)
                if os.path.isdir(self._path):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def write(self) -> None:
        """Put this process's id into the file.

        :raises PidFileError: the system refuses.
        """
        if self._path:
            with self._clear(), self._beside() as temporary:
                # Whoever is to signal the process may not be the one who started it.
                os.chmod(temporary, 0o644)
                os.replace(temporary, self._path)

    @contextlib.contextmanager
    def _beside(self) -> t.Iterator[str]:
        """A file in the same directory, with this process's id in it; what is left of it goes."""
        fd, temporary = tempfile.mkstemp(dir=os.path.dirname(self._path), prefix=".pid-")
        try:
            with open(fd, "w", encoding="ascii") as file:
                file.write(f"{os.getpid()}\n")
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    @contextlib.contextmanager
    def _clear(self) -> t.Iterator[None]:
        """Say what was wrong with which file."""
        try:
            yield
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise PidFileError(error.errno, f"pid file {self._path}: {reason}") from None

    def write_again(self) -> None:
        """The same when a successor has died, which may have written its own."""
        try:
            self.write()
        except PidFileError as error:
            # Requests are still to be served.
            log.error("%d %s", os.getpid(), error)

    def remove(self) -> None:
        """Remove the file, if it is this process's."""
        try:
            with open(self._path, encoding="ascii") as file:
                is_ours = file.read().strip() == str(os.getpid())
            if is_ours:
                os.unlink(self._path)
        except (OSError, ValueError):
            # Gone, or somebody else's.
            pass
