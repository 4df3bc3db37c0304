"""Workers that accept from one queue: connections spread evenly, and nobody waits in the queue."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
import typing as t
from collections import Counter
from pathlib import Path
from statistics import median

import pytest
from conftest import Client, Live, suspend, wait_until
from flask_graceful import shares
from load import Load
from program import Program, connect, is_gone, pid_from, serving_pids

PROGRAM = """
import os, signal, socket, sys, threading, time
from flask_graceful import Server
from flask_graceful.shares import Shares

def app(environ, start_response):
    path, name = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/sleep":
        while not os.path.exists(name):
            time.sleep(0.01)
    if path == "/compute":
        while not os.path.exists(name):
            # Whoever wants the interpreter waits until this thread is made to let go of it.
            end = time.monotonic() + 0.05
            while time.monotonic() < end:
                pass
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

memory, slot, options, *listeners = map(eval, sys.argv[1:])
are_apart = options.pop("are_apart", False)
shares = Shares(memory, slot)
servers = [Server("", app, **options) for _ in listeners]
threads = []
for i, fd in enumerate(listeners):
    server = servers[i if are_apart else 0]
    server.shares = shares
    threads.append(threading.Thread(target=server.serve, args=(socket.socket(fileno=fd),)))
    threads[-1].start()
for thread in threads:
    # Since Python 3.12 a program whose main thread has ended starts no others.
    thread.join()
"""
THREADS = 4
# The busier one of two workers has at most so many times the connections of the other.
EVEN = 1.5
# A worker that the system does not let run for longer than it is waited for gets less than its
# share, and rightly so. On a machine that does other things as well it happens.
TRIES = 3
# Far more than a worker leaves a queue to others, and far less than would pass unnoticed.
SOON = 1.0


class Workers:
    """Processes that serve the same listening sockets, and what they tell each other."""

    def __init__(self, directory: Path, live: t.Callable[..., Live], listeners: int = 1) -> None:
        (directory / "worker.py").write_text(PROGRAM)
        self.directory = directory
        self._live = live
        self.memory = shares.create()
        self.processes: list[Live] = []
        self.listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(listeners)]
        for one in self.listeners:
            one.listen(4096)
        self.address = self.listeners[0].getsockname()
        self.clients: list[Client] = []
        # The seconds that those waited in the queue who came one by one.
        self.waits: list[float] = []

    def start(self, count: int = 2, env: dict[str, str] | None = None, **options: t.Any) -> None:
        """Start so many workers more, and wait until they accept."""
        options = {"threads": THREADS, **options}
        fds = [one.fileno() for one in self.listeners]
        for slot in range(len(self.processes), len(self.processes) + count):
            words = [str(self.memory), str(slot), repr(options), *map(str, fds)]
            one = self._live(
                "worker.py", *words, cwd=self.directory, env=env, fds=[self.memory, *fds]
            )
            self.processes.append(one)
        wait_until(lambda: shares.NONE not in self.numbers(), "all workers accept")

    def numbers(self) -> list[int]:
        """How many connections each worker says that it has."""
        count = len(self.processes)
        return list(struct.unpack(f"={count}I", os.pread(self.memory, 4 * count, 0)))

    def total(self) -> int:
        return sum(number for number in self.numbers() if number != shares.NONE)

    def open(self, count: int, pause: float | None = None) -> list[Client]:
        """Open connections: as fast as possible, or each once the one before is accepted, and so
        many seconds later."""
        before = self.total()
        mine: list[Client] = []
        for i in range(count):
            mine.append(Client(self.address))
            self.clients.append(mine[-1])
            if pause is not None:
                began = time.monotonic()
                wait_until(lambda: self.total() > before + i, "accepted", SOON)  # noqa: B023
                self.waits.append(time.monotonic() - began)
                time.sleep(pause)
        wait_until(lambda: self.total() == before + count, f"{count} are accepted")
        return mine

    def occupy(self, index: int, path: str, count: int) -> list[Client]:
        """Have a worker be inside so many requests until `let_go`."""
        pid = self.processes[index].pid
        mine: list[Client] = []
        others: list[Client] = []
        while len(mine) < count:
            client = Client(self.address)
            (mine if pid_from(client) == pid else others).append(client)
        for client in others:
            client.sock.close()
        for client in mine:
            client.send(f"GET {path}?go HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        self.clients += mine
        wait_until(lambda: self.total() == len(self.clients), "the others are gone")
        return mine

    def hang_up(self, clients: list[Client]) -> None:
        for client in clients:
            client.sock.close()
            self.clients.remove(client)
        wait_until(lambda: self.total() == len(self.clients), "the others are gone")

    def let_go(self) -> None:
        (self.directory / "go").touch()

    def close(self) -> None:
        for client in self.clients:
            client.sock.close()
        for sock in self.listeners:
            sock.close()
        os.close(self.memory)


@pytest.fixture
def workers(tmp_path: Path, live: t.Callable[..., Live]) -> t.Iterator[t.Callable[..., Workers]]:
    started: list[Workers] = []

    def make(listeners: int = 1) -> Workers:
        started.append(Workers(tmp_path, live, listeners))
        return started[-1]

    yield make
    for one in started:
        one.close()


def who_has(clients: t.Iterable[Client]) -> Counter[int]:
    """How many of the connections each process has."""
    return Counter(pid_from(client) for client in clients)


def is_even(counts: t.Collection[int]) -> bool:
    return max(counts) <= EVEN * min(counts)


def check_spread(them: Workers, count: int, pause: float | None = None) -> None:
    """Do the workers take so many connections evenly?"""
    for _ in range(TRIES):
        mine = them.open(count, pause)
        found = who_has(mine)
        counts = [found[one.pid] for one in them.processes]
        # What they say is the truth.
        assert counts == them.numbers()
        if is_even(counts):
            return
        them.hang_up(mine)
    pytest.fail(f"not even: {counts}")


@pytest.mark.parametrize("poller", ["best", "portable"])
@pytest.mark.parametrize("pause", [None, 0.0, 0.01], ids=["at once", "one by one", "slowly"])
@pytest.mark.parametrize("count", [32, 100, 1000])
def test_connections_spread_evenly(
    workers: t.Callable[..., Workers], count: int, pause: float | None, poller: str
) -> None:
    if count == 1000 and pause:
        pytest.skip("it would take ten seconds to say what a hundred say")
    them = workers()
    them.start(env={"FLASK_GRACEFUL_POLLER": poller})
    check_spread(them, count, pause)


def test_many_workers_share_evenly(workers: t.Callable[..., Workers]) -> None:
    them = workers()
    them.start(5)
    check_spread(them, 200)


def test_worker_that_comes_later_catches_up(workers: t.Callable[..., Workers]) -> None:
    them = workers()
    them.start(1)
    them.open(50)
    them.start(1)
    them.open(50, 0.0)
    assert is_even(them.numbers()), them.numbers()


def test_worker_that_has_lost_its_connections_gets_the_next_ones(
    workers: t.Callable[..., Workers],
) -> None:
    them = workers()
    them.start()
    first = them.processes[0].pid
    left = 0
    for client in them.open(60):
        if pid_from(client) == first:
            client.sock.close()
        else:
            left += 1
    wait_until(lambda: them.numbers() == [0, left], "the first one has none")
    them.open(30, 0.0)
    assert is_even(them.numbers()), them.numbers()


@pytest.mark.alone
@pytest.mark.parametrize("pause", [0.0, 0.01], ids=["one by one", "slowly"])
def test_worker_that_computes_gets_its_share(
    workers: t.Callable[..., Workers], pause: float
) -> None:
    them = workers()
    them.start()
    them.occupy(0, "/compute", 1)
    for _ in range(TRIES):
        mine = them.open(60, pause)
        counts = them.numbers()
        if is_even(counts):
            break
        them.hang_up(mine)
    else:
        pytest.fail(f"not even: {counts}")
    them.let_go()


@pytest.mark.parametrize("path", ["/compute", "/sleep"])
@pytest.mark.parametrize("pause", [None, 0.0, 0.01], ids=["at once", "one by one", "slowly"])
def test_nobody_waits_for_a_worker_whose_threads_are_all_busy(
    workers: t.Callable[..., Workers], path: str, pause: float | None
) -> None:
    them = workers()
    them.start()
    busy = them.occupy(0, path, THREADS)
    # Each one is accepted soon, or the wait for it fails.
    mine = them.open(100, pause)
    if pause is not None:
        assert median(them.waits) < 3 * shares.PATIENCE
    them.let_go()
    for client in busy:
        assert client.response()[0] == 200
    # Whoever has them, all are answered.
    assert who_has(mine).total() == 100


def test_worker_that_was_stopped_holds_up_nobody(workers: t.Callable[..., Workers]) -> None:
    them = workers()
    them.start()
    first, second = (one.pid for one in them.processes)
    suspend(first)
    try:
        assert who_has(them.open(100, 0.0)) == {second: 100}
    finally:
        os.kill(first, signal.SIGCONT)
    # Nothing is held against it.
    them.open(50, 0.0)
    assert them.numbers()[0] > 40


def test_worker_that_was_killed_holds_up_nobody(workers: t.Callable[..., Workers]) -> None:
    them = workers()
    them.start()
    one = them.processes[0]
    one.process.kill()
    one.process.wait()
    # Its number is what it was.
    assert them.numbers() == [0, 0]
    assert who_has(them.open(100, 0.0)) == {them.processes[1].pid: 100}
    shares.clear(them.memory, 0)
    assert them.numbers() == [shares.NONE, 100]
    them.open(100)


def test_of_several_who_wait_for_a_stuck_one_the_one_with_the_fewest_goes_first(
    workers: t.Callable[..., Workers],
) -> None:
    them = workers()
    them.start(3)
    suspend(them.processes[2].pid)
    try:
        them.open(60, 0.02)
        *others, stuck = them.numbers()
        assert stuck == 0
        # As close together as without it.
        assert max(others) - min(others) <= 8, others
    finally:
        os.kill(them.processes[2].pid, signal.SIGCONT)


@pytest.mark.parametrize("poller", ["best", "portable"])
def test_nobody_waits_for_ever_whatever_the_workers_do(
    workers: t.Callable[..., Workers], poller: str
) -> None:
    """Connections come and go while the workers are stopped at any moment: if an event were taken
    by one that then leaves the queue alone, a client would wait in it."""
    them = workers()
    them.start(3, env={"FLASK_GRACEFUL_POLLER": poller})
    # Some are ahead of others, so that they step aside again and again.
    kept = them.open(40)
    for client in kept:
        if pid_from(client) == them.processes[0].pid:
            client.sock.close()
    with Load(them.address, 8) as load:
        for turn in range(30):
            load.wait_count(load.count + 20)
            pid = them.processes[turn % 3].pid
            suspend(pid)
            # All clients may be with the one that is stopped.
            until = time.monotonic() + 0.3
            enough = load.count + 8
            while load.count < enough and time.monotonic() < until:
                time.sleep(0.01)
            os.kill(pid, signal.SIGCONT)
    assert load.failed == []
    # Nobody is left in the queue, and the workers are awake.
    them.clients = [client for client in kept if client.sock.fileno() >= 0]
    wait_until(lambda: them.total() == len(them.clients), "all others are gone")
    them.open(10, 0.0)


def test_worker_that_steps_aside_is_at_rest(workers: t.Callable[..., Workers]) -> None:
    """The one with more connections does not look again and again when nobody comes."""
    them = workers()
    them.start()
    first = them.processes[0].pid
    for client in them.open(60):
        if pid_from(client) == first:
            client.sock.close()
    wait_until(lambda: them.numbers()[0] == 0, "the first one has none")
    them.open(1, 0.0)
    stat = Path(f"/proc/{them.processes[1].pid}/status")

    def switches() -> str:
        return next(line for line in stat.read_text().splitlines() if line.startswith("volunt"))

    def is_still() -> bool:
        before = switches()
        time.sleep(0.2)
        return switches() == before

    wait_until(is_still, "the other one sleeps")


def test_worker_without_room_is_not_waited_for(workers: t.Callable[..., Workers]) -> None:
    them = workers()
    them.start(1, listen_limit=10)
    them.start(1)
    full, other = (one.pid for one in them.processes)
    mine = [Client(them.address) for _ in range(60)]
    them.clients += mine
    assert who_has(mine) == {full: 10, other: 50}
    # It does not accept, and the others know.
    assert them.numbers() == [shares.NONE, 50]
    them.open(50, 0.0)
    assert median(them.waits) < shares.PATIENCE
    # Now it has room, and less than all others.
    next(client for client in mine if pid_from(client) == full).sock.close()
    wait_until(lambda: them.numbers() == [9, 100], "there is room for one")
    with Client(them.address) as client:
        assert pid_from(client) == full


@pytest.mark.parametrize("are_apart", [False, True], ids=["one server", "two servers"])
def test_listeners_of_a_worker_have_one_number(
    workers: t.Callable[..., Workers], are_apart: bool
) -> None:
    them = workers(listeners=2)
    them.start(are_apart=are_apart)
    mine = them.open(20, 0.0)
    them.address = them.listeners[1].getsockname()
    mine += them.open(20, 0.0)
    found = who_has(mine)
    assert [found[one.pid] for one in them.processes] == them.numbers()
    assert is_even(them.numbers()), them.numbers()


@pytest.mark.parametrize(
    ("mine", "others", "rank"),
    [
        (0, [], 0),
        (1000, [], 0),
        (1000, [shares.NONE, shares.NONE], 0),
        (1, [0], 0),
        (2, [0], 1),
        (2, [0, shares.NONE, 0, 1], 2),
        (16, [14], 0),
        (17, [14], 1),
        (114, [100], 1),
        (113, [100, 200], 0),
        (255, [255, 255], 0),
        (74000, [10, 65535, 66000], 2),
    ],
)
@pytest.mark.parametrize("has_memfd", [True, False])
def test_who_is_ahead_of_whom(
    mine: int, others: list[int], rank: int, has_memfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    fd = shares.create()
    assert not os.get_inheritable(fd)
    one = shares.Shares(os.dup(fd), len(others))
    for slot, number in enumerate(others):
        shares.Shares(os.dup(fd), slot).change(5)
        os.pwrite(fd, struct.pack("=I", number), 4 * slot)
    one.change(mine)
    # Who does not accept may be ahead as well, and nobody waits for it.
    assert one.rank() == rank
    one.enter()
    assert one.rank() == rank
    assert struct.unpack("=I", os.pread(fd, 4, 4 * len(others))) == (mine,)
    one.leave()
    assert struct.unpack("=I", os.pread(fd, 4, 4 * len(others))) == (shares.NONE,)
    os.close(fd)


# A process that has another slot than its predecessor.
GRACEFUL = """
from flask_graceful.shares import Shares

wait_for_file("boot")
slot = int(has_parent())
server = GracefulServer("127.0.0.1:0", app, hammer_time=0)
server.shares = Shares(os.open("memory", os.O_RDWR), slot)
try:
    server.listen_and_serve()
except ServerClosed:
    pass
"""


class TestGivingWay:
    """The number is right when connections move between processes."""

    @pytest.fixture
    def program(self, tmp_path: Path, live: t.Callable[..., Live]) -> Program:
        (tmp_path / "memory").write_bytes(b"\xff" * 4 * shares.SLOTS)
        program = Program(tmp_path, live)
        program.let_go("boot")
        return program

    @pytest.fixture
    def numbers(self, tmp_path: Path) -> t.Callable[[], tuple[int, int]]:
        def read() -> tuple[int, int]:
            data = (tmp_path / "memory").read_bytes()
            return t.cast("tuple[int, int]", struct.unpack_from("=2I", data))

        return read

    def test_who_gives_way_leaves_and_who_adopts_has_them(
        self, program: Program, numbers: t.Callable[[], tuple[int, int]]
    ) -> None:
        one = program.start(GRACEFUL)
        old = serving_pids(one, 1)[0]
        with contextlib.ExitStack() as stack:
            port = int(one.wait_for(r"Serving HTTP on 127.0.0.1:(\d+)")[1])
            mine = [stack.enter_context(connect(port)) for _ in range(7)]
            assert who_has(mine) == {old: 7}
            assert numbers() == (7, shares.NONE)
            # One stays where it is until it has its answer.
            busy = stack.enter_context(connect(port))
            busy.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
            one.wait_for("^held")
            os.kill(old, signal.SIGHUP)
            new = serving_pids(one, 2)[1]
            wait_until(lambda: numbers() == (shares.NONE, 7), "seven have moved")
            program.let_go()
            assert busy.response()[0] == 200
            wait_until(lambda: numbers() == (shares.NONE, 8), "and the last one")
            assert who_has([*mine, busy]) == {new: 8}
        wait_until(lambda: numbers() == (shares.NONE, 0), "all are closed")

    def test_who_serves_again_has_its_number_again(
        self, program: Program, numbers: t.Callable[[], tuple[int, int]]
    ) -> None:
        one = program.start(GRACEFUL)
        old = serving_pids(one, 1)[0]
        port = int(one.wait_for(r"Serving HTTP on 127.0.0.1:(\d+)")[1])
        with connect(port) as busy:
            busy.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
            one.wait_for("^held")
            os.kill(old, signal.SIGHUP)
            new = serving_pids(one, 2)[1]
            wait_until(lambda: numbers() == (shares.NONE, 0), "the old one has left")
            os.kill(new, signal.SIGKILL)
            wait_until(lambda: is_gone(new), "the new one is gone")
            wait_until(lambda: numbers()[0] == 1, "the old one accepts again")
            program.let_go()
            assert busy.response()[0] == 200
            with connect(port) as client:
                assert pid_from(client) == old
                assert numbers()[0] == 2
