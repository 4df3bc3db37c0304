"""Where control sockets are, for those who make them and those who look for them.

Owns the order of the directories, what makes one trustworthy, and the names in it.

Rules: a directory with control sockets belongs to the one who uses it, and nobody else can write
there; one that is not so is refused, never mended. A file whose process is gone is removed by
whoever finds it.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import tempfile
import typing as t

from .sockfile import SocketFile

AUTO = "auto"
NAME = "flask-graceful"
# What the system's address of a Unix socket holds (unix(7)), without the byte that ends it.
MOST_BYTES = 107

# Taken at import: the application may go elsewhere.
_directory = os.getcwd()


class PlaceError(OSError):
    """A directory can't be used; the message names it."""

    def __str__(self) -> str:
        return self.strerror or ""


class Directory(t.NamedTuple):
    """:param is_given: somebody has made it for this process alone, as systemd does; others may
    look into it then."""

    path: str
    is_given: bool = False

    def prepare(self) -> None:
        """Make it if it is not there, and see that what is in it can only be this user's.

        :raises OSError: it can't be made; PlaceError: it is not to be trusted.
        """
        if not self.is_given:
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                pass
        _check(self.path, {os.geteuid()}, 0o022 if self.is_given else 0o077)


def absolute(path: str) -> str:
    """A path of a setting: relative to the directory in which the process was started."""
    return os.path.join(_directory, path)


def own_path() -> str:
    """Where this process's socket is to be when nobody says so.

    :raises PlaceError: no directory can be used.
    """
    reason = ""
    for one in directories(os.environ, os.geteuid()):
        try:
            one.prepare()
        except PlaceError as error:
            reason = str(error)
        except OSError as error:
            reason = f"{one.path}: {(error.strerror or str(error)).lower()}"
        else:
            return os.path.join(one.path, f"{os.getpid()}.sock")
    raise PlaceError(None, reason)


def directories(environ: t.Mapping[str, str], uid: int) -> list[Directory]:
    """Where a process of this user with this environment may have its socket, best first."""
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    session = environ.get("XDG_RUNTIME_DIR", "")
    found = [Directory(runtime, is_given=True)] if runtime else []
    # One that is another user's has come through sudo or su.
    if session and _owner(session) == uid:
        found.append(Directory(os.path.join(session, NAME)))
    if uid == 0:
        found.append(Directory(f"/run/{NAME}"))
    temporary = environ.get("TMPDIR") or _temporary()
    return [*found, Directory(os.path.join(temporary, f"{NAME}-{uid}"))]


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        # It tries to make a file there, and no descriptor is left.
        return "/tmp"


def sockets_in(path: str) -> list[tuple[int, str]]:
    """The pids and paths of control sockets in a directory; none in one that is not to be trusted.

    :raises PermissionError: this user may not look into it; OSError: no descriptor is left.
    """
    uid = os.geteuid()
    try:
        # Root may look at what others have.
        _check(path, None if uid == 0 else {uid, 0}, 0o022)
        names = os.listdir(path)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE):
            raise
        return []
    matches = (re.fullmatch(r"([0-9]{1,9})\.sock", name) for name in names)
    return sorted((int(one[1]), os.path.join(path, one[0])) for one in matches if one)


def remove_dead_beside(path: str) -> None:
    """Remove the files of processes that are gone from the directory of this file."""
    for _, other in sockets_in(os.path.dirname(path)):
        if other != path:
            remove_if_dead(other)


def remove_if_dead(path: str) -> bool:
    """Does nobody listen there? Then the file is removed."""
    file = SocketFile.at(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A queue that is full is somebody's.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            if file is not None:
                file.remove()
            return True
        except OSError:
            pass
    return False


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with, where it may be seen."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = os.fsdecode(file.read()).split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _check(path: str, owners: t.Container[int] | None, rights: int) -> None:
    """:param owners: whose it may be; None: anybody's.
    :param rights: what nobody but the owner may have.
    :raises PlaceError: it is not to be trusted; OSError: it can't be looked at.
    """
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise PlaceError(None, f"{path} is a symbolic link; expected a directory")
    if not stat.S_ISDIR(status.st_mode):
        raise PlaceError(None, f"{path} is no directory")
    if owners is not None and status.st_uid not in owners:
        what = f"{path} belongs to uid {status.st_uid}"
        raise PlaceError(None, f"{what}; expected one of uid {os.geteuid()}")
    if status.st_mode & rights:
        mode = stat.S_IMODE(status.st_mode)
        raise PlaceError(None, f"{path} has mode {mode:04o}; expected 0700")


def _owner(path: str) -> int | None:
    try:
        return os.stat(path).st_uid
    except OSError:
        return None
