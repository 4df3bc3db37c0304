"""The file of a Unix socket.

Owns its removal: of one that a server has left behind, and of our own at the end.

Rules: only a socket is removed, and at the end only the one that was made here. Whatever has come
to its place since is somebody else's.
"""

from __future__ import annotations

import os
import socket
import stat
import typing as t


class SocketFile(t.NamedTuple):
    """A file, and what tells it from another one of the same name. The file system uses the number
    for no other file as long as the socket is open."""

    path: str
    device: int
    inode: int

    @classmethod
    def at(cls, path: str) -> SocketFile | None:
        """The file that is there now."""
        # The application may go elsewhere.
        path = os.path.abspath(path)
        try:
            status = os.lstat(path)
        except OSError:
            return None
        return cls(path, status.st_dev, status.st_ino)

    def remove(self) -> None:
        """Remove the file, before its socket is closed."""
        if self.at(self.path) == self:
            try:
                os.unlink(self.path)
            except OSError:
                # Gone, or the directory is not ours: the socket is closed all the same.
                pass


def remove_stale(path: str) -> None:
    """Remove the file of a server that is gone, so that the path can be bound."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
