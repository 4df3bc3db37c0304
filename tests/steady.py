"""Clients that keep their connections, who had which connection, and the program that tells it.

For tests that end processes: a connection may break only if the process that was killed had it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import signal
import socket
import threading
import typing as t
from collections import Counter
from pathlib import Path

from conftest import DEADLINE, Client, Live, replace
from load import Load

# It notes each connection's states in the file `states`, which outlives a killed process; a
# request for /slow ends when the file that it names is there; one for /slow/fail fails then.
PROGRAM = """
import os, signal, sys, time
from flask_graceful import GracefulServer, ServerClosed

def app(environ, start_response):
    if environ["PATH_INFO"].startswith("/slow"):
        print(f"{os.getpid()} slow begins: {environ['QUERY_STRING']}", flush=True)
        while not os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.01)
    if environ["PATH_INFO"] == "/slow/fail":
        raise ValueError("as asked for")
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

server = GracefulServer(":0", app, **eval(os.environ.get("OPTIONS", "{}")))
states = os.open("states", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(connection, state):
    os.write(states, f"\\n{os.getpid()} {connection.peer_name()} {state} .".encode())

server.conn_state = note

@server.before_begin
def log_pid(addr):
    print("Serving HTTP on", addr, flush=True)
    print("Actual pid is", os.getpid(), flush=True)

#MORE
try:
    server.listen_and_serve()
except ServerClosed as err:
    print(f"Server err: {err}\\n", end="", flush=True)
"""


class Program:
    """PROGRAM in a directory of its own, which a test may change between two generations."""

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.directory = directory
        self._live = live

    def write(self, more: str = "") -> None:
        replace(self.directory / "program.py", PROGRAM.replace("#MORE", more))

    def start(self, more: str = "", **options: t.Any) -> Live:
        self.write(more)
        return self._live("program.py", cwd=self.directory, env={"OPTIONS": repr(options)})

    def let_go(self, name: str) -> None:
        """Make the file that a request or a boot waits for."""
        (self.directory / name).touch()

    def ledger(self) -> Ledger:
        return Ledger(self.directory / "states")


def generation(one: Live, number: int) -> int:
    """The pid of the process that was the first to be ready, the second, ... once it is there.
    What a process that failed has printed may be quoted, and does not count."""
    return int(one.wait_for(r"^Actual pid is (\d+)", number)[1])


def is_gone(pid: int) -> bool:
    """Has the process ended? A zombie has."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def pending(pid: int) -> set[int]:
    """The signals that a process has got and not seen."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("ShdPnd:")[2].split()[0], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def restart(one: Live, number: int) -> int:
    """The generation with this number takes over, and the one before it ends."""
    os.kill(generation(one, number - 1), signal.SIGHUP)
    pid = generation(one, number)
    one.wait_for(r"Serve\(\) returning", number - 1)
    return pid


@contextlib.contextmanager
def slow_request(one: Live, pid: int, until: str, path: str = "/slow") -> t.Iterator[Client]:
    """A request that this process serves until the file is there; who awaits its response."""
    with Client(("127.0.0.1", one.port)) as client:
        client.send(f"GET {path}?{until} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        one.wait_for(rf"^{pid} slow begins: {until}$")
        yield client


class Ledger:
    """What the processes have noted about connections until this moment.

    `lines` has process, the client's address and state, in their order.
    """

    def __init__(self, path: Path) -> None:
        # A process that is killed may leave the beginning of a note, even of one write.
        words = [line[:-2].split() for line in path.read_text().splitlines() if line.endswith(" .")]
        self.lines = [(int(pid), name, state) for pid, name, state in words]

    def had(self, pid: int) -> set[str]:
        """The connections that a process has had."""
        return {name for one, name, _ in self.lines if one == pid}

    def sent_away(self, pid: int) -> set[str]:
        """The connections that a process has handed over and not got back."""
        last = {name: state for one, name, state in self.lines if one == pid}
        return {name for name, state in last.items() if state == "handed_over"}

    def check_only_victim_lost(self, broken: set[str], victim: int, old: int) -> str:
        """The criterion for a successor that was killed. A connection may have broken only if the
        victim had it: if it has noted it; or was about to, being killed between its word that it
        has arrived (one for at most 253 connections) and the note. Of those that it accepted, this
        can be one. And what the victim has had, the old process never served again."""
        had = self.had(victim)
        away = self.sent_away(old)
        not_noted = broken - had
        arrived = not_noted & away
        assert len(arrived) <= 253, f"{len(arrived)} connections were lost on their way"
        accepted = not_noted - away
        assert len(accepted) <= 1, f"broken, and never had by the victim: {accepted}"
        assert not accepted & self.had(old), f"broken in the hands of the old one: {accepted}"
        seen: set[str] = set()
        for pid, name, state in self.lines:
            if pid == victim:
                seen.add(name)
            elif pid == old and name in seen:
                raise AssertionError(f"{name}: {state} in {old}, after {victim} had it")
        return f"the victim had {len(had)}, {len(broken)} broke, {len(not_noted)} of them not noted"


class Named(Client):
    """A client whose address, in `name`, no other one has or had: the loopback network is large
    enough for that, while the ports of one address soon come round again."""

    def __init__(self, port: int) -> None:
        number = next(_numbers)
        source = f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        self.sock = socket.socket()
        self.sock.settimeout(DEADLINE)
        try:
            self.sock.bind((source, 0))
            self.name = f"{source}:{self.sock.getsockname()[1]}"
            self.sock.connect(("127.0.0.1", port))
        except BaseException:
            self.sock.close()
            raise
        self.buffer = bytearray()


# From 127.1.0.0 on.
_numbers = itertools.count(1 << 16)


class Fresh(Load):
    """Who connects for each request. `broken` has the connections that ended without an answer."""

    def __init__(self, port: int, clients: int) -> None:
        self.broken: set[str] = set()
        broken = self.broken

        class Recording(Named):
            def __exit__(self, kind: object = None, *_: object) -> None:
                if kind is not None:
                    broken.add(self.name)
                super().__exit__()

        super().__init__(port, clients, connect=lambda address: Recording(address[1]))

    def check(self) -> None:
        """What failed had a connection; nobody was refused."""
        assert len(self.failed) == len(self.broken), self.failed


class Break(t.NamedTuple):
    """A connection that the server has ended: while a request was outstanding, or not."""

    name: str
    is_failure: bool
    error: str


class Steady:
    """`clients` threads that each keep one connection, and ask on it again and again.

    A client looks whether its connection has ended before it asks, as pools do. One that has
    lost its connection makes a new one; the request is not repeated.

    :param pause: seconds that a client thinks between two requests.
    """

    def __init__(self, port: int, clients: int, pause: float = 0.002) -> None:
        self.answers: Counter[int] = Counter()
        self.breaks: list[Break] = []
        self.refused: list[str] = []
        self._port = port
        self._pause = pause
        self._progress = threading.Condition()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        # Who gave each client its last answer, and how many it has.
        self._last: dict[threading.Thread, int] = {}
        self._answered: Counter[threading.Thread] = Counter()

    def __enter__(self) -> Steady:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"

    @property
    def broken(self) -> set[str]:
        return {one.name for one in self.breaks}

    def wait_each(self, count: int = 1, seconds: float = 60) -> None:
        """Wait until each client has so many more answers: it knows then what has become of its
        connection before."""
        with self._progress:
            start = Counter(self._answered)

            def are_through() -> bool:
                return all(self._answered[one] >= start[one] + count for one in self._threads)

            assert self._progress.wait_for(are_through, seconds), self.breaks[-5:]

    def wait_more(self, count: int, pid: int | None = None, seconds: float = 30) -> None:
        """Wait until so many more requests have been answered, by this process if one is named."""
        with self._progress:

            def answered() -> int:
                return self.answers.total() if pid is None else self.answers[pid]

            start = answered()
            came = self._progress.wait_for(lambda: answered() >= start + count, seconds)
            assert came, f"{answered() - start} of {count} more answers, {self.breaks[-5:]}"

    def wait_all(self, pid: int, seconds: float = 30) -> None:
        """Wait until all clients are served by this process."""
        with self._progress:

            def are_there() -> bool:
                return {self._last.get(thread) for thread in self._threads} == {pid}

            assert self._progress.wait_for(are_there, seconds), (self._last, self.breaks[-5:])

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                client = Named(self._port)
            except OSError as error:
                with self._progress:
                    self.refused.append(f"{type(error).__name__}: {error}")
                self._stop.wait(0.01)
                continue
            with client:
                self._ask_until_it_breaks(client)

    def _ask_until_it_breaks(self, client: Named) -> None:
        while not self._stop.is_set():
            is_asked = not is_readable(client.sock)
            try:
                if not is_asked:
                    # It can only be the end.
                    raise ConnectionError(f"{client.sock.recv(1)!r} while idle")
                code, headers, body = client.get()
                assert code == 200
            except OSError as error:
                self._note(Break(client.name, is_asked, f"{type(error).__name__}: {error}"))
                return
            if "connection" in headers:
                self._note(Break(client.name, False, f"Connection: {headers['connection']}"))
            with self._progress:
                self.answers[int(body)] += 1
                self._last[threading.current_thread()] = int(body)
                self._answered[threading.current_thread()] += 1
                self._progress.notify_all()
            if "connection" in headers:
                return
            self._stop.wait(self._pause)

    def _note(self, end: Break) -> None:
        with self._progress:
            self.breaks.append(end)
            self._progress.notify_all()


class Crowd:
    """Many connections that each have done one request, and are idle."""

    def __init__(self, port: int, count: int) -> None:
        self.clients: list[Named] = []
        self.broken: set[str] = set()
        while len(self.clients) < count:
            # No more at a time than any accept queue holds.
            few = range(min(64, count - len(self.clients)))
            batch = [Named(port) for _ in few]
            self.clients += batch
            assert len(self._ask(batch)) == len(batch)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.sock.close()

    def ask(self) -> Counter[int]:
        """Ask each of them; who answered. Those that have ended are left out from now on."""
        left: dict[Named, int] = {}
        for i in range(0, len(self.clients), 64):
            left.update(self._ask(self.clients[i : i + 64]))
        for client in self.clients:
            if client not in left:
                self.broken.add(client.name)
                client.sock.close()
        self.clients = list(left)
        return Counter(left.values())

    def _ask(self, batch: list[Named]) -> dict[Named, int]:
        """Who answered, of those that are there."""
        answers: dict[Named, int] = {}
        for client in batch:
            # One that has ended says so when it is to answer.
            with contextlib.suppress(OSError):
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for client in batch:
            with contextlib.suppress(OSError):
                code, headers, body = client.response()
                assert (code, headers.get("connection")) == (200, None)
                answers[client] = int(body)
        return answers


def is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
