"""Asking a server for something over its control socket, and finding that socket.

Owns the client's side: which servers there are, the connection to one, its answer, and the word
that its process has ended.

Rules: whatever is wrong is an `AskError` of one line. A server that says nothing for a while is not
waited for any longer; one that works says so. Its process's end is learnt from the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import stat
import time
import typing as t

from .peers import Peer, peer_of
from .places import AUTO, absolute, directories, environment_of, remove_if_dead, sockets_in

# How long a server may say nothing, and how often an end is looked for that is not told; seconds.
SILENT_TIME = 10.0
LOOK_TIME = 0.05
MOST_BYTES = 16 << 20

Show = t.Callable[[dict[str, t.Any]], object]


class AskError(Exception):
    """There is no answer; the message says why, in one line."""


class Refused(AskError):
    """The server says no.

    :param lines: what the program has said last that was to be started.
    """

    def __init__(self, reason: str, lines: t.Sequence[str]) -> None:
        super().__init__(reason)
        self.lines = lines


class Ended(AskError):
    """The server has closed the connection."""


class Found(t.NamedTuple):
    """A server that listens."""

    pid: int
    path: str


def find(pid: int | None) -> list[Found]:
    """The servers that this user can ask.

    :param pid: only this one; it may be another user's then.
    :raises AskError: there is none.
    """
    denied = ""
    found: dict[int, Found] = {}
    places = _places(pid)
    for place in places:
        try:
            for other, path in sockets_in(place):
                if pid in (None, other) and other not in found and not remove_if_dead(path):
                    found[other] = Found(other, path)
        except PermissionError:
            denied = denied or place
        except OSError as error:
            # No descriptor is left, for one.
            raise AskError(f"can't look for servers in {place}: {error.strerror}") from None
    if found:
        return list(found.values())
    if denied:
        raise AskError(f"no permission to look into {denied}")
    if pid is None:
        where = ", ".join(places)
        raise AskError(
            f"no server is running; looked for its socket in {where}; --pid finds another user's"
        )
    if not is_alive(pid):
        raise AskError(f"no process has the pid {pid}")
    raise AskError(f"process {pid} has no control socket in {', '.join(places)}; try --socket PATH")


def find_by_setting(setting: str, pid: int) -> str:
    """The path at which a service is to be asked.

    :param setting: its `control_socket`.
    :param pid: the process that has it.
    :raises AskError: there is none.
    """
    if not setting:
        raise AskError("control_socket is off, and nobody can be asked; auto is its default")
    return find(pid)[0].path if setting == AUTO else absolute(setting)


def _places(pid: int | None) -> list[str]:
    uid = os.geteuid()
    found = directories(os.environ, uid)
    if found[0].is_given:
        # A command that systemd runs for a service means that one.
        del found[1:]
    else:
        # The server may have had other variables.
        found += directories({"XDG_RUNTIME_DIR": f"/run/user/{uid}", "TMPDIR": "/tmp"}, uid)
    if pid is not None:
        with contextlib.suppress(OSError):
            uid = os.stat(f"/proc/{pid}").st_uid
        found = [*directories(environment_of(pid), uid), *found]
    return list(dict.fromkeys(one.path for one in found))


class Caller:
    """A connection to a server.

    :raises AskError: nobody is there, or it can't be asked.
    """

    def __init__(self, path: str, patience: float = SILENT_TIME) -> None:
        self._path = path
        self._patience = patience
        self._input = b""
        try:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise AskError(f"no socket to ask with: {error.strerror}") from None
        try:
            self._connect()
            self.peer: Peer | None = peer_of(self._sock)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    @property
    def _server(self) -> str:
        pid = self.peer.pid if self.peer is not None else 0
        return f"server {pid}" if pid else f"the server at {self._path}"

    def _connect(self) -> None:
        until = time.monotonic() + self._patience
        self._sock.settimeout(self._patience)
        while True:
            try:
                if not stat.S_ISSOCK(os.stat(self._path).st_mode):
                    raise AskError(f"{self._path} is no socket")
                self._sock.connect(self._path)
                return
            except BlockingIOError:
                # Its queue is full (unix(7)).
                if time.monotonic() > until:
                    raise AskError(f"the server at {self._path} does not answer") from None
                time.sleep(LOOK_TIME)
            except FileNotFoundError:
                raise AskError(f"there is no socket {self._path}") from None
            except ConnectionRefusedError:
                raise AskError(f"nobody listens at {self._path}: its server has ended") from None
            except PermissionError:
                raise AskError(f"no permission for {self._path}{_owner(self._path)}") from None
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise AskError(f"{self._path}: {reason}") from None

    def ask(self, command: str, show: Show | None = None, **arguments: t.Any) -> dict[str, t.Any]:
        """What the server answers.

        :param show: takes how far it has come, now and then.
        :raises Refused: it says no; Ended: it has gone; AskError: it says nothing, or nonsense.
        """
        request = {"command": command, **arguments}
        with contextlib.suppress(OSError):
            # Why it does not listen stands in its answer.
            self._sock.sendall(json.dumps(request).encode() + b"\n")
        while True:
            said = self._next()
            if "result" in said:
                return t.cast("dict[str, t.Any]", said["result"])
            if "error" in said:
                raise Refused(said["error"], said.get("lines", []))
            if show is not None:
                show(said["progress"])

    def _next(self) -> dict[str, t.Any]:
        """The next line."""
        until = time.monotonic() + self._patience
        while b"\n" not in self._input:
            self._sock.settimeout(max(LOOK_TIME, until - time.monotonic()))
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                raise AskError(
                    f"{self._server} has said nothing for {self._patience:g} seconds"
                ) from None
            except OSError:
                data = b""
            if not data and not self._input:
                raise Ended(f"{self._server} has gone without an answer")
            self._input += data
            if not data or len(self._input) > MOST_BYTES or time.monotonic() > until:
                raise self._nonsense()
        line, _, self._input = self._input.partition(b"\n")
        try:
            said = json.loads(line)
        except ValueError:
            raise self._nonsense() from None
        if not isinstance(said, dict) or not said.keys() & {"result", "error", "progress"}:
            raise self._nonsense()
        return said

    def _nonsense(self) -> AskError:
        return AskError(f"who listens at {self._path} is no flask_graceful server")


class ProcessEnd:
    """The end of a process that is no child of this one.

    :param pid: 0: it is not known, and has ended by all that can be told.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd = -1
        if pid and hasattr(os, "pidfd_open"):
            # Gone already, or a system that can't.
            with contextlib.suppress(OSError):
                self._fd = os.pidfd_open(pid)

    def wait(self) -> None:
        """Return when it has ended."""
        if self._fd >= 0:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.poll()
            os.close(self._fd)
            return
        while self._pid and is_alive(self._pid):
            time.sleep(LOOK_TIME)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _owner(path: str) -> str:
    try:
        uid = os.stat(path).st_uid
    except OSError:
        return ""
    return f"; it belongs to uid {uid}" if uid != os.geteuid() else ""
