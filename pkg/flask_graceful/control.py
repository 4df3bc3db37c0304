"""The control socket: other programs ask a process for a reload, its state or its end.

Owns the listening socket and its file, the clients, and what is said with them: one line of JSON
with a command, then lines of `{"progress": ...}`, and at last one of `{"result": ...}` or
`{"error": ..., "lines": [...]}`.

Strategy: all of it happens in the process's loop. What a command means is the business of a
`Service`, which may take its time: it gets an `Answer`, and whoever waits hears a word now and
then, by which a slow answer is told from a process that hangs. A process that is about to replace
its own program leaves a record of the socket, and of those who wait for a reload, for the next one.

Rules: nobody is waited for. Nobody but the user of the process, and root, is listened to: the file
says so from its first moment on, and the kernel tells who has come.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import stat
import sys
import typing as t

from . import places
from .asker import MOST_INPUT, Answer, Client
from .loop import Timer
from .peers import peer_of
from .sockfile import SocketFile

if t.TYPE_CHECKING:
    from .loop import Loop

log = logging.getLogger("flask_graceful")

COMMANDS = ("reload", "requests", "status", "stop")
MOST_CLIENTS = 32
# How often those who wait hear something, and when accepting is tried again that has failed.
BEAT_TIME = 0.5
RETRY_TIME = 1.0

CAN_CONTROL = hasattr(socket, "AF_UNIX")


class ControlError(OSError):
    """There can be no control socket; the message says where and why."""

    def __str__(self) -> str:
        return self.strerror or ""


class Service(t.Protocol):
    """What the commands do. Each returns at once, and ends the answer when it has one."""

    def reload(self, answer: Answer) -> object:
        """Result: the pids and the generation, `{"generation": n, "old": [], "new": []}`."""

    def status(self, answer: Answer) -> object:
        """Result: see docs/command.md."""

    def requests(self, stacks: bool, answer: Answer) -> object:
        """Result: `{"requests": [...]}`."""

    def stop(self, timeout: float | None, answer: Answer) -> object:
        """Result: `{}`, right before the process ends.

        :param timeout: seconds that requests in flight get, instead of the setting; 0: any time.
        """


class Control:
    """The socket and those who have come.

    :param loop: where all of it happens.
    :param service: what the commands do.
    :param record: what the `record` of the program before this one says.
    """

    def __init__(
        self, loop: Loop, service: Service, record: dict[str, t.Any] | None = None
    ) -> None:
        self.loop = loop
        self._service = service
        self._sock: socket.socket | None = None
        self._file: SocketFile | None = None
        self._clients: list[Client] = []
        # Those that another process goes on with.
        self._departed: list[Client] = []
        self._beat_timer = Timer(self._beat)
        self._retry_timer = Timer(self._watch)
        if record is not None:
            for fd, output in record["waiting"]:
                self.adopt(fd, output)
            if record["socket"] is not None:
                self._sock = _restored(record["socket"])
                self._file = SocketFile(*record["file"]) if record["file"] else None
                self._watch()

    # The socket.

    def open(self, setting: str, takes_over: bool = False) -> None:
        """Have the socket where the setting `control_socket` says; a further call moves it, or
        makes it again if another process has taken its place.

        :param takes_over: who listens there now is to be replaced.
        :raises ControlError: it can't be there; what nobody has asked for is only logged.
        """
        is_auto = setting == places.AUTO
        if not setting or (is_auto and not CAN_CONTROL):
            self.shut()
            return
        path = ""
        try:
            path = places.own_path() if is_auto else places.absolute(setting)
            if self._file is not None and self._file == SocketFile.at(path):
                return
            sock = _listen(path, takes_over and not is_auto)
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno:
                # The system's words, in the middle of a sentence.
                reason = reason[:1].lower() + reason[1:]
            reason = reason.removeprefix(f"{path}: ")
            text = f"control socket {path}: {reason}" if path else f"control socket: {reason}"
            if not is_auto:
                raise ControlError(error.errno, text) from None
            log.warning("%d %s", os.getpid(), text)
            return
        self.shut()
        self._sock, self._file = sock, SocketFile.at(path)
        self._watch()
        if is_auto:
            with contextlib.suppress(OSError):
                places.remove_dead_beside(path)

    def reopen(self, setting: str, takes_over: bool = False) -> None:
        """The same for a process that serves: if the socket can't be there, it goes on without."""
        try:
            self.open(setting, takes_over)
        except ControlError as error:
            log.error("%d %s", os.getpid(), error)

    def shut(self) -> None:
        """Let nobody in any more: remove the file, and take those who have come already."""
        if self._sock is None:
            return
        if self._file is not None:
            self._file.remove()
        self._accept()
        self.loop.cancel(self._retry_timer)
        self.loop.unwatch(self._sock.fileno())
        self._sock.close()
        self._sock = self._file = None

    def close(self, told: t.Iterable[Answer]) -> None:
        """The process ends, and all answers with it.

        :param told: those who have waited for that.
        """
        self.shut()
        for answer in told:
            answer.result({})
        for answer in self.waiting():
            answer.error("the server has stopped")
        for client in list(self._clients):
            client.leave()
        for client in self._departed:
            client.sock.close()
        self._departed = []
        self.loop.cancel(self._beat_timer)

    def _watch(self) -> None:
        if self._sock is not None:
            self.loop.watch(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._sock is not None
        # No more at a time, for the sake of all else that waits.
        for _ in range(MOST_CLIENTS):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    # It would be told at once again.
                    self.loop.unwatch(self._sock.fileno())
                    self.loop.set(self._retry_timer, RETRY_TIME)
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        try:
            peer = peer_of(sock)
            client = Client(self, sock)
        except OSError:
            sock.close()
            return
        self._clients.append(client)
        if peer is not None and peer.uid not in (0, os.geteuid()):
            client.answer.error(f"uid {peer.uid} may not ask; expected uid {os.geteuid()} or root")
        elif len(self._clients) > MOST_CLIENTS:
            client.answer.error(f"{MOST_CLIENTS} others are asking already; try again")

    # The clients.

    def carry_out(self, client: Client, line: bytes) -> None:
        """Do what a client has asked for."""
        if client.is_over:
            return
        client.command = "?"
        try:
            act, client.command = self._read(line)
        except (TypeError, ValueError) as error:
            client.answer.error(str(error))
            return
        try:
            act(client.answer)
        except Exception:
            log.exception("%d control: %s failed", os.getpid(), client.command)
            client.answer.error("internal error; the log of the server has its traceback")
        if not client.is_over:
            self.loop.set(self._beat_timer, BEAT_TIME)

    def _read(self, line: bytes) -> tuple[t.Callable[[Answer], object], str]:
        """What to do, and its name.

        :raises ValueError: it can't be read; TypeError: an argument is of a wrong type.
        """
        if len(line) > MOST_INPUT:
            raise ValueError(f"a command has at most {MOST_INPUT} bytes")
        try:
            data = json.loads(line)
            command = data["command"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError('expected a line such as {"command": "status"}') from None
        if command == "reload":
            return self._service.reload, command
        if command == "status":
            return self._service.status, command
        if command == "requests":
            stacks = data.get("stacks", False)
            if not isinstance(stacks, bool):
                raise TypeError(f"stacks: expected true or false, got {json.dumps(stacks)}")
            return lambda answer: self._service.requests(stacks, answer), command
        if command == "stop":
            timeout = _checked_time(data.get("timeout"))
            return lambda answer: self._service.stop(timeout, answer), command
        raise ValueError(
            f"unknown command {json.dumps(command)[:100]}; expected one of {', '.join(COMMANDS)}"
        )

    def forget(self, client: Client) -> None:
        """It has left."""
        if client in self._clients:
            self._clients.remove(client)

    def _beat(self) -> None:
        waiting = [one for one in self._clients if one.command and not one.is_over]
        for client in waiting:
            client.answer.beat()
        if waiting:
            self.loop.set(self._beat_timer, BEAT_TIME)

    # Over the end of a program, or a process.

    def waiting(self) -> list[Answer]:
        """The answers of those who wait for a reload."""
        return [one.answer for one in self._clients if one.command == "reload" and not one.is_over]

    def record(self) -> dict[str, t.Any]:
        """All that the next program needs to go on; only those who wait for a reload go with it."""
        sock, file = self._sock, self._file
        return {
            "socket": None if sock is None else sock.fileno(),
            "file": None if file is None else list(file),
            "waiting": [one.client.record() for one in self.waiting()],
        }

    def fds(self) -> list[int]:
        """The descriptors in the record."""
        sock = [] if self._sock is None else [self._sock.fileno()]
        return [*sock, *(one.client.fileno() for one in self.waiting())]

    def part_with(self, answers: t.Iterable[Answer]) -> tuple[list[str], list[int]]:
        """Leave some who wait for a reload to another process: for each of them what is still to be
        said, and the descriptor, which stays open here until the end."""
        clients = [one.client for one in answers if not one.is_over]
        records = [client.record() for client in clients]
        for client in clients:
            client.depart()
            self._clients.remove(client)
        self._departed += clients
        return [output for _, output in records], [fd for fd, _ in records]

    def adopt(self, fd: int, output: str) -> Answer:
        """Go on with somebody who waits for a reload."""
        client = Client(self, _restored(fd), "reload", output)
        self._clients.append(client)
        self.loop.set(self._beat_timer, BEAT_TIME)
        return client.answer


def _restored(fd: int) -> socket.socket:
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock


def _listen(path: str, takes_over: bool) -> socket.socket:
    """A socket that listens there, and is the user's own from its first moment on.

    :raises OSError: it can't be there.
    """
    existing = _lstat(path)
    if existing is not None:
        if not stat.S_ISSOCK(existing.st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        if not takes_over and not places.remove_if_dead(path):
            raise OSError(errno.EADDRINUSE, "in use by another server")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Nobody finds it under this name.
    temporary = os.path.join(os.path.dirname(path), f".{os.getpid()}-{sock.fileno()}")
    try:
        if max(len(os.fsencode(name)) for name in (path, temporary)) > places.MOST_BYTES:
            what = f"a path with more than {places.MOST_BYTES} bytes can't be a socket's"
            raise OSError(errno.ENAMETOOLONG, what)
        with contextlib.suppress(FileNotFoundError):
            # One whose process has ended right here.
            os.unlink(temporary)
        with contextlib.suppress(OSError):
            # Linux makes the file with these rights (unix(7)); the umask is all threads'.
            os.fchmod(sock.fileno(), 0o600)
        sock.bind(temporary)
        # Elsewhere it has them before anybody can connect.
        os.chmod(temporary, 0o600)
        sock.listen(MOST_CLIENTS)
        sock.setblocking(False)
        os.rename(temporary, path)
    except BaseException:
        sock.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return sock


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _checked_time(value: t.Any) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"timeout: expected 0 or more seconds, got {json.dumps(value)[:100]}")
    return float(value)
