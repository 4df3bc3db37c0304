"""What the server's tests share: live processes with a log that can be waited for, raw clients,
and servers in this process. Nothing here sleeps for readiness: everything waits for an event, with
a deadline."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

import pytest
from flask_graceful import Server, ServerClosed

# They assert what tests share, and a failure is to tell the values.
pytest.register_assert_rewrite("flaskapp", "load", "program", "service", "statuspages", "steady")

ROOT = Path(__file__).parent.parent
DEADLINE = 45.0
# How much later than it should something may come, in seconds: the machine does other things too.
SLACK = 4.0


def wait_until(condition: t.Callable[[], t.Any], what: str, seconds: float = DEADLINE) -> t.Any:
    """Ask until the answer is true; for what the system tells only when asked."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.005)


def replace(path: Path, text: str) -> None:
    """Write a file as editors do: it is the old one or the new one, and nothing between. A process
    may start at any moment."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def suspend(pid: int) -> None:
    """Have a process hang. It does nothing any more when this returns."""
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        wait_until(
            lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "a process that hangs"
        )


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process lead to. It may open and close some meanwhile."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(path))
    return found


class Live:
    """A server program in a process of its own, its successors included, and its log."""

    def __init__(
        self, command: list[str], cwd: Path, env: dict[str, str], fds: t.Sequence[int] = ()
    ) -> None:
        self._lines: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=fds,
            # Successors are not our children; the group is what ends them.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str, count: int = 1, seconds: float = DEADLINE) -> re.Match[str]:
        """Wait until the log has the pattern `count` times; the last match."""
        expression = re.compile(pattern, re.MULTILINE)
        with self._news:

            def found() -> list[re.Match[str]]:
                return list(expression.finditer("".join(self._lines)))

            self._news.wait_for(lambda: len(found()) >= count or self._is_over, seconds)
            matches = found()
        if len(matches) < count:
            raise AssertionError(f"no {count} x {pattern!r} in the log:\n{self.log}")
        return matches[count - 1]

    def wait_pids(self, count: int) -> list[int]:
        """The pids of the first `count` generations, once they serve."""
        self.wait_for(r"Actual pid is (\d+)", count)
        return [int(pid) for pid in re.findall(r"Actual pid is (\d+)", self.log)]

    @property
    def port(self) -> int:
        return int(self.wait_for(r"[Ss]erving HTTP on \[::\]:(\d+)")[1])

    def end(self) -> None:
        """End every process of the group, by force where it must be."""
        for signum in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            self._reader.join(5)
            # One of them may be over before the other.
            if self.process.poll() is not None and not self._reader.is_alive():
                break
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    _is_over = False

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line)
                self._news.notify_all()
        with self._news:
            self._is_over = True
            self._news.notify_all()


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> t.Iterator[None]:
    """Where all servers of the tests have their control sockets, and no others."""
    with tempfile.TemporaryDirectory(prefix="graceful-") as directory:
        os.environ["RUNTIME_DIRECTORY"] = directory
        yield


@pytest.fixture
def live() -> t.Iterator[t.Callable[..., Live]]:
    """Start programs; all of them are ended with the test."""
    started: list[Live] = []

    def start(
        *arguments: str,
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        fds: t.Sequence[int] = (),
    ) -> Live:
        started.append(Live([sys.executable, *arguments], cwd, env or {}, fds))
        return started[-1]

    yield start
    for one in started:
        one.end()


class Client:
    """A raw client: bytes out, bytes in."""

    def __init__(self, address: t.Any, connect_timeout: float = DEADLINE) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(connect_timeout)
        try:
            self.sock.connect(address)
        except BaseException:
            self.sock.close()
            raise
        self.sock.settimeout(DEADLINE)
        self.buffer = bytearray()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def get(
        self, path: str = "/", headers: str = "", host: str = "a"
    ) -> tuple[int, dict[str, str], bytes]:
        self.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())
        return self.response()

    def response(self, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """One response: status code, header fields in lower case, body."""
        head = self._until(b"\r\n\r\n").decode("latin-1")
        status, *lines = head.split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        code = int(status.split()[1])
        if head_only or code in (100, 204, 304):
            body = b""
        elif "content-length" in headers:
            body = self._exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = self._chunks()
        else:
            body = self.rest()
        return code, headers, body

    def rest(self) -> bytes:
        """Everything until the server closes."""
        while self._more():
            pass
        return self._take(len(self.buffer))

    def is_closed(self, seconds: float = DEADLINE) -> bool:
        """Does the server close within that time, without a byte?"""
        self.sock.settimeout(seconds)
        try:
            data = self.sock.recv(1)
        except TimeoutError:
            return False
        finally:
            self.sock.settimeout(DEADLINE)
        assert data == b"", f"unexpected byte {data!r}"
        return True

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def _until(self, end: bytes) -> bytes:
        while end not in self.buffer:
            if not self._more():
                raise ConnectionError(f"closed after {bytes(self.buffer)!r}")
        part = self._take(self.buffer.index(end))
        del self.buffer[: len(end)]
        return part

    def _exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            if not self._more():
                raise ConnectionError(f"closed after {len(self.buffer)} of {count} bytes")
        return self._take(count)

    def _take(self, count: int) -> bytes:
        part = bytes(self.buffer[:count])
        del self.buffer[:count]
        return part

    def _chunks(self) -> bytes:
        content = b""
        while size := int(self._until(b"\r\n"), 16):
            content += self._exactly(size)
            assert self._exactly(2) == b"\r\n"
        assert self._exactly(2) == b"\r\n"
        return content


def ready(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [])
    return []


class Running:
    """A `Server` in this process, on a free port, and how its serve() ended."""

    def __init__(self, app: t.Any, **options: t.Any) -> None:
        self.server = Server("127.0.0.1:0", ready, **options)
        self.server.conn_state = None
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        sock.listen(128)
        self.address = sock.getsockname()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, args=(sock,))
        self._thread.start()
        with self.connect() as client:
            # Served: a shutdown from here on is not one before serve().
            client.get("/ready", "Connection: close\r\n")
            wait_until(lambda: not self.server.connections(), "the first connection closed")
        self.server.app = app
        self.server.conn_state = options.get("conn_state")

    def connect(self) -> Client:
        return Client(self.address)

    def join(self, seconds: float = DEADLINE) -> BaseException | None:
        """Wait until serve() has returned; what it raised."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "serve() did not return"
        return self.error

    def _serve(self, sock: socket.socket) -> None:
        try:
            self.server.serve(sock)
        except (ServerClosed, OSError) as error:
            self.error = error


@pytest.fixture
def running() -> t.Iterator[t.Callable[..., Running]]:
    """Start servers in this process. Afterwards nothing of theirs may be left."""
    before = set(threading.enumerate())
    fds = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    started: list[Running] = []

    def start(app: t.Any, kind: type[Running] = Running, **options: t.Any) -> Running:
        started.append(kind(app, **options))
        return started[-1]

    yield start
    for one in started:
        one.server.close()
        one.join()
    wait_until(lambda: set(threading.enumerate()) <= before, "threads left over")
    if fds:
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= len(fds), "descriptors left over")
