"""Clients under load: fresh connections, no retries, everything that goes wrong is counted."""

from __future__ import annotations

import threading
import typing as t
from collections import Counter

from conftest import Client


class Load:
    """`clients` threads that each ask on a fresh connection, until told to stop or done.

    `answers` counts what was answered; `failed` says how each request that was not answered
    with status 200 ended.
    """

    def __init__(
        self,
        port: int,
        clients: int,
        path: str = "/",
        total: int | None = None,
        connect: t.Callable[[t.Any], Client] = Client,
    ) -> None:
        self.answers: Counter[bytes] = Counter()
        self.failed: list[str] = []
        self._address = ("127.0.0.1", port)
        self._connect = connect
        self._path = path
        self._left = total
        self._lock = threading.Lock()
        self._progress = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def count(self) -> int:
        return self.answers.total() + len(self.failed)

    def wait_count(self, count: int, seconds: float = 60) -> None:
        """Wait until that many requests have ended."""
        with self._progress:
            assert self._progress.wait_for(lambda: self.count >= count, seconds), self.count

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _take(self) -> bool:
        with self._lock:
            if self._stop.is_set() or self._left == 0:
                return False
            if self._left is not None:
                self._left -= 1
            return True

    def _run(self) -> None:
        while self._take():
            outcome: t.Any
            try:
                with self._connect(self._address) as client:
                    code, _, outcome = client.get(self._path, "Connection: close\r\n")
                failure = "" if code == 200 else f"status {code}"
            except OSError as error:
                failure = f"{type(error).__name__}: {error}"
            with self._progress:
                if failure:
                    self.failed.append(failure)
                else:
                    self.answers[outcome] += 1
                self._progress.notify_all()
