"""The pictures of the status page in docs/: `make pictures`. A service with clients that come and
go, restarted twice within the minute that the page shows."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
import threading
import time
import typing as t
from pathlib import Path

from browser import Browser
from conftest import Client, Live
from program import HEAD
from statuspages import site

# Seconds until each restart, and from the last one to the pictures.
PAUSES = (24.0, 20.0)
SHOT_AFTER = 2.2
BOOT = "time.sleep(0.8)"
WIDE, NARROW = (1180, 800), (360, 760)


class Crowd:
    """Clients that keep their connections, now more, now less; and some requests that last."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stack = contextlib.ExitStack()
        self._kept: list[Client] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._come_and_go)
        self._thread.start()

    def hold(self, count: int) -> None:
        """Requests that take long."""
        for _ in range(count):
            client = self._stack.enter_context(Client(("127.0.0.1", self._port)))
            client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._stack.close()
        for client in self._kept:
            client.sock.close()

    def _come_and_go(self) -> None:
        choice = random.Random(4)
        for step in itertools.count():
            wanted = min(36, 6 + step) + choice.randint(-4, 4)
            while len(self._kept) < wanted:
                self._kept.append(Client(("127.0.0.1", self._port)))
            while len(self._kept) > wanted:
                self._kept.pop(0).sock.close()
            for client in self._kept:
                client.get()
            if self._is_over.wait(0.7):
                return


def main(target: Path) -> None:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["RUNTIME_DIRECTORY"] = str(directory)
        take(stack, directory, {}, {"status-page": WIDE, "status-page-phone": NARROW}, target)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["RUNTIME_DIRECTORY"] = str(directory)
        take(stack, directory, {"workers": 3}, {"status-page-dark": WIDE}, target)


def take(
    stack: contextlib.ExitStack,
    directory: Path,
    options: dict[str, t.Any],
    pictures: dict[str, tuple[int, int]],
    target: Path,
) -> None:
    (directory / "program.py").write_text(HEAD + site(BOOT, addr=":8000", **options))
    one = Live([sys.executable, "program.py"], directory, {})
    stack.callback(one.end)
    started = r"^(\d+) Generation \d serves" if options else r"^(\d+) Serving HTTP"
    pid = int(one.wait_for(started)[1])
    browser = Browser(directory / "browser")
    stack.callback(browser.close)
    dark = any("dark" in name for name in pictures)
    browser.prefer(prefers_color_scheme="dark" if dark else "light")
    browser.resize(*WIDE)
    browser.open("http://127.0.0.1:8000/graceful/")
    crowd = Crowd(8000)
    stack.callback(crowd.close)
    for number, pause in enumerate(PAUSES):
        time.sleep(pause)
        crowd.hold(3)
        time.sleep(1)
        os.kill(pid, signal.SIGHUP)
        found = one.wait_for(started, number + 2)
        pid = int(found[1])
        time.sleep(SHOT_AFTER)
        if number == 0:
            time.sleep(2)
            (directory / "go").touch()
            one.wait_for(r"Serve\(\) returning")
            (directory / "go").unlink()
    for name, (width, height) in pictures.items():
        browser.resize(width, height, 1.5 if width < 500 else 1)
        time.sleep(0.3)
        browser.shoot(target / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
