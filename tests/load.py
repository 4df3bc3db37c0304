"""Clients under load: no retries, and everything that goes wrong is counted."""

from __future__ import annotations

import itertools
import random
import select
import ssl
import threading
import time
import typing as t
from collections import Counter

from conftest import DEADLINE, Client

Connect = t.Callable[[t.Any], Client]
_Any = t.TypeVar("_Any", bound="_Clients")


class _Clients:
    """Threads that ask until told to stop.

    `answers` counts what was answered; `failed` says how each request that was not answered
    with status 200 ended; `latencies` has the seconds of each answer, in the order of their ends.
    """

    def __init__(self, address: t.Any, clients: int, connect: Connect) -> None:
        self.answers: Counter[bytes] = Counter()
        self.failed: list[str] = []
        self.latencies: list[float] = []
        # A number is a port.
        self._address = ("127.0.0.1", address) if isinstance(address, int) else address
        self._connect = connect
        self._lock = threading.Lock()
        self._progress = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def __enter__(self: _Any) -> _Any:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def count(self) -> int:
        """How many requests have ended."""
        return self.answers.total() + len(self.failed)

    def wait_count(self, count: int, seconds: float = 60) -> None:
        """Wait until that many requests have ended."""
        with self._progress:
            assert self._progress.wait_for(lambda: self.count >= count, seconds), self.count

    def stop(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until the clients have ended by themselves."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, number: int) -> None:
        raise NotImplementedError

    def _note(self, answer: bytes, failure: str, seconds: float) -> None:
        with self._progress:
            if failure:
                self.failed.append(failure)
            else:
                self.answers[answer] += 1
                self.latencies.append(seconds)
            self._progress.notify_all()


class Load(_Clients):
    """`clients` that each ask on a fresh connection, until told to stop or done.

    :param total: so many requests and no more.
    :param until_gone: a client whose connection does not come about has nothing to ask any more:
        it ends, and is counted in `turned_away`. A failure else.
    :param pause: seconds that a client waits between two requests.
    """

    def __init__(
        self,
        address: t.Any,
        clients: int,
        path: str = "/",
        total: int | None = None,
        connect: Connect = Client,
        until_gone: bool = False,
        pause: float = 0.0,
    ) -> None:
        super().__init__(address, clients, connect)
        self.turned_away = 0
        self._pause = pause
        self._path = path
        self._left = total
        self._until_gone = until_gone

    def _take(self) -> bool:
        with self._lock:
            if self._stop.is_set() or self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            return True

    def _run(self, number: int) -> None:
        while self._take():
            began = time.monotonic()
            try:
                client = self._connect(self._address)
            except OSError as error:
                if self._until_gone:
                    with self._lock:
                        self.turned_away += 1
                    return
                self._note(b"", f"connect: {_text(error)}", 0)
                continue
            answer = b""
            try:
                with client:
                    code, _, answer = client.get(self._path, "Connection: close\r\n")
                failure = "" if code == 200 else f"status {code}"
            except OSError as error:
                failure = _text(error)
            self._note(answer, failure, time.monotonic() - began)
            if self._pause:
                self._stop.wait(self._pause)


class KeptLoad(_Clients):
    """Clients that each ask again and again on one connection, until told to stop.

    Each request has a token of its own, which the answer must repeat after the server's pid.
    A client that lost its connection makes another one, and goes on: `connects` tells.

    :param pauses: one client for each: the most seconds that it thinks between two requests.
    :param methods: what the clients ask, in turn.
    """

    def __init__(
        self,
        address: t.Any,
        pauses: t.Sequence[float],
        methods: t.Sequence[str] = ("GET", "POST"),
        connect: Connect = Client,
    ) -> None:
        super().__init__(address, len(pauses), connect)
        self.connects = 0
        # Connections that the server has ended: with a word in the last answer, or between two.
        self.said_close = 0
        self.closed_idle = 0
        # Who gave each client its last answer.
        self.servers: dict[int, int] = {}
        self._pauses = pauses
        self._methods = methods

    def wait_served_by(self, pids: t.Iterable[int], seconds: float = 60) -> Counter[int]:
        """Wait until all clients have their last answer from these; how many each has."""
        with self._progress:

            def are_there() -> bool:
                everybody = len(self.servers) == len(self._pauses)
                return everybody and set(self.servers.values()) <= set(pids)

            assert self._progress.wait_for(are_there, seconds), (self.servers, self.failed[-5:])
            return Counter(self.servers.values())

    def _run(self, number: int) -> None:
        pause = self._pauses[number]
        methods = itertools.cycle(self._methods)
        client: Client | None = None
        try:
            for turn in itertools.count():
                if self._stop.is_set():
                    return
                began = time.monotonic()
                answer, failure = b"", ""
                try:
                    client = self._still_open(client) or self._new()
                    answer, goes_on = self._ask(client, next(methods), f"{number}-{turn}")
                except OSError as error:
                    goes_on, failure = False, _text(error)
                self._note(answer, failure, time.monotonic() - began)
                if client is not None and not goes_on:
                    client.sock.close()
                    client = None
                if pause:
                    self._stop.wait(random.uniform(0, pause))
        finally:
            if client is not None:
                client.sock.close()

    def _new(self) -> Client:
        with self._lock:
            self.connects += 1
        return self._connect(self._address)

    def _still_open(self, client: Client | None) -> Client | None:
        """The client, unless the server has closed its connection in the pause, as it may."""
        if client is None or not select.select([client.sock], [], [], 0)[0]:
            return client
        client.sock.settimeout(0)
        try:
            if client.sock.recv(1):
                raise ConnectionError("a byte that nobody has asked for")
        except (BlockingIOError, ssl.SSLWantReadError):
            client.sock.settimeout(DEADLINE)
            return client
        with self._lock:
            self.closed_idle += 1
        client.sock.close()
        return None

    def _ask(self, client: Client, method: str, token: str) -> tuple[bytes, bool]:
        """Who has answered; and may the connection go on?"""
        if method == "GET":
            code, headers, body = client.get(f"/?{token}")
        else:
            head = f"{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: {len(token)}\r\n\r\n"
            code, headers, body = client.send(f"{head}{token}".encode()).response()
        pid, _, repeated = body.partition(b" ")
        if code != 200 or repeated != token.encode():
            raise ConnectionError(f"status {code}, {body!r} instead of {token!r}")
        goes_on = headers.get("connection", "").lower() != "close"
        with self._lock:
            self.servers[int(token.partition("-")[0])] = int(pid)
            self.said_close += not goes_on
        return pid, goes_on


def _text(error: OSError) -> str:
    return f"{type(error).__name__}: {error}"
