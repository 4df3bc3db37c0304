"""A service with workers: a program that a test writes, starts and changes, its supervisor, and the
workers of each generation."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import struct
import typing as t
from collections import Counter
from pathlib import Path

from conftest import Client, Live, replace, wait_until
from flask_graceful import shares
from load import KeptLoad, Load

# Every process that loads it says so. It answers with its pid and what it was told; a request for
# /slow ends when the file that it names is there.
PROGRAM = """
import os, signal, sys, threading, time
from flask_graceful import (
    POST_SIGNAL, PRE_SIGNAL, GracefulServer, RestartError, ServerClosed, has_parent, serve,
)

def say(*words):
    # In one piece: several processes may print at the same time.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def app(environ, start_response):
    said = environ["wsgi.input"].read() or environ["QUERY_STRING"].encode()
    path = environ["PATH_INFO"]
    if path == "/slow":
        say(os.getpid(), "slow begins:", said.decode())
        while not os.path.exists(said):
            time.sleep(0.01)
    elif path != "/":
        said = pages[path](said.decode()).encode()
    body = b"%d %s" % (os.getpid(), said)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

pages = {}
say(os.getpid(), "loads", "#RELEASE")
server = GracefulServer(#ADDR, app, **#OPTIONS)

@server.before_begin
def log_where(addr):
    say("Serving HTTP on [::]:" + addr.rpartition(":")[2])

#MORE
"""
END = """
try:
    server.listen_and_serve()
except ServerClosed as err:
    say(os.getpid(), "Server err:", err)
"""
GENERATION = r"^(\d+) Generation (\d+) serves with workers? ([\d ]+)\.$"


class Service:
    """The program in a file, and its processes once it is started."""

    one: Live

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.directory = directory
        self._live = live

    def write(
        self,
        more: str = "",
        end: str = END,
        addr: t.Any = ":0",
        release: str = "one",
        **options: t.Any,
    ) -> None:
        text = PROGRAM.replace("#ADDR", repr(addr)).replace("#RELEASE", release)
        text = text.replace("#OPTIONS", repr({"workers": 2, **options})).replace("#MORE", more)
        replace(self.directory / "program.py", text + end)

    def begin(self, more: str = "", *, env: dict[str, str] | None = None, **options: t.Any) -> Live:
        """Start it, and wait for nothing."""
        self.write(more, **options)
        self.one = self._live("program.py", cwd=self.directory, env=env)
        return self.one

    def start(self, more: str = "", **options: t.Any) -> Service:
        """Start it, and wait until all workers of its first generation accept."""
        self.begin(more, **options)
        wait_accepting(self.pid, len(self.workers(1)))
        return self

    @property
    def pid(self) -> int:
        return self.one.pid

    @property
    def port(self) -> int:
        return self.one.port

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def workers(self, count: int | None = None) -> list[int]:
        """Those that serve once so many generations have come to serve, as far as the supervisor
        has said; without a number those of the newest one."""
        if count is not None:
            match = self.one.wait_for(GENERATION, count)
        else:
            match = list(re.finditer(GENERATION, self.one.log, re.MULTILINE))[-1]
        assert int(match[1]) == self.pid, f"a supervisor with the pid {match[1]}"
        return [int(pid) for pid in match[3].split()]

    def generations(self) -> int:
        """How many have come to serve."""
        return len(re.findall(GENERATION, self.one.log, re.MULTILINE))

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def reload(self) -> list[int]:
        """The next generation serves, and no other one any more: its workers."""
        old = self.workers()
        count = self.generations()
        self.signal(signal.SIGHUP)
        new = self.workers(count + 1)
        assert not set(old) & set(new)
        for pid in old:
            self.wait_gone(pid)
        wait_accepting(self.pid, len(new))
        return new

    def wait_gone(self, pid: int) -> None:
        """The worker has ended, and the supervisor has seen to it."""
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), f"the end of worker {pid}")

    def ask(self, path: str = "/") -> int:
        """The worker that answers."""
        with Client(self.address) as client:
            return pid_from(client, path)

    @contextlib.contextmanager
    def slow(self, until: str) -> t.Iterator[tuple[Client, int]]:
        """A request that lasts until the file is there; who awaits its answer, and who serves."""
        with Client(self.address) as client:
            client.send(f"GET /slow?{until} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            yield client, int(self.one.wait_for(rf"^(\d+) slow begins: {until}$")[1])

    def let_go(self, name: str) -> None:
        """What waits for this file goes on."""
        (self.directory / name).touch()

    def processes(self) -> set[int]:
        """All that run: the supervisor, its workers, and whatever they started."""
        return {pid for pid, _, state in session(self.pid) if state != "Z"}

    def check_over(self, status: int = 0, is_quiet: bool = True) -> None:
        """It ends with this status; no process of it and no listener is left.

        :param is_quiet: nothing went wrong inside.
        """
        assert self.one.process.wait(60) == status, self.one.log
        wait_until(lambda: not self.processes(), "the end of all processes")
        if re.search(r"Serving HTTP on \[::\]:\d", self.one.log):
            assert is_refused(self.port)
        if is_quiet:
            check_quiet(self.one)


def wait_accepting(supervisor: int, count: int) -> None:
    """Wait until so many of its workers accept.

    The supervisor says that they serve when it has told them to. As long as one has not heard it,
    the others take all connections, as they should.
    """

    def numbers() -> list[int]:
        for path in Path(f"/proc/{supervisor}/fd").iterdir():
            # One may be closed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if "flask-graceful-shares" in os.readlink(path):
                    return [number for (number,) in struct.iter_unpack("=I", path.read_bytes())]
        return []

    wait_until(
        lambda: sum(number != shares.NONE for number in numbers()) >= count,
        f"{count} workers accept",
    )


@contextlib.contextmanager
def crowd(service: Service, workers: t.Collection[int]) -> t.Iterator[dict[Client, int]]:
    """Clients with idle connections, a few at least at each of these workers, and who has them."""
    with contextlib.ExitStack() as stack:
        clients: dict[Client, int] = {}
        wait_accepting(service.pid, len(workers))
        while min(Counter(clients.values())[pid] for pid in workers) < 5:
            assert len(clients) < 500
            client = stack.enter_context(Client(service.address))
            clients[client] = pid_from(client)
        yield clients


def check_quiet(one: Live) -> None:
    """Nothing went wrong inside."""
    for words in ("internal error", "Traceback", "failed\n", "Exception ignored"):
        assert words not in one.log, one.log


def pid_from(client: Client, path: str = "/") -> int:
    code, _, body = client.get(path)
    assert code == 200
    return int(body.split()[0])


def said_by(client: Client, path: str) -> str:
    """What the page says, after the pid."""
    return client.get(path)[2].decode().partition(" ")[2]


def is_refused(port: int) -> bool:
    try:
        Client(("127.0.0.1", port)).sock.close()
    except ConnectionRefusedError:
        return True
    return False


def session(leader: int) -> t.Iterator[tuple[int, int, str]]:
    """The processes of a session: pid, parent and state of each."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent, _, number = path.read_text().rpartition(")")[2].split()[:4]
            if int(number) == leader:
                yield int(path.parent.name), int(parent), state


def check_nothing_lost(kept: KeptLoad, *fresh: Load) -> None:
    """The budget is 0."""
    assert kept.failed == []
    assert (kept.connects, kept.said_close, kept.closed_idle) == (len(kept._pauses), 0, 0)
    for load in fresh:
        assert load.failed == []
