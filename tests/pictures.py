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

# Seconds until each restart, from it to the picture, and from its end to the one that shows nothing
# of the old process any more.
PAUSES = (24.0, 20.0)
SHOT_AFTER = 2.2
GONE_AFTER = 9.0
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
        shown = Shown(stack, {})
        shown.restart(PAUSES[0])
        shown.end_old()
        time.sleep(PAUSES[1])
        shown.shoot(target / "status-page-before.png", WIDE)
        shown.restart(0)
        shown.shoot(target / "status-page.png", WIDE)
        shown.shoot(target / "status-page-phone.png", NARROW)
        shown.end_old()
        time.sleep(GONE_AFTER)
        shown.shoot(target / "status-page-after.png", WIDE)
    with contextlib.ExitStack() as stack:
        shown = Shown(stack, {"workers": 3}, prefers_color_scheme="dark")
        # Nothing ends: of three generations, two drain.
        shown.restart(PAUSES[0])
        shown.restart(PAUSES[1])
        shown.shoot(target / "status-page-dark.png", WIDE)


class Shown:
    """A service, its clients, and the browser that looks at it.

    :param options: of the server.
    :param features: what the user of the browser has chosen.
    """

    def __init__(
        self, stack: contextlib.ExitStack, options: dict[str, t.Any], **features: str
    ) -> None:
        self._directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["RUNTIME_DIRECTORY"] = str(self._directory)
        (self._directory / "program.py").write_text(HEAD + site(BOOT, addr=":8000", **options))
        self._one = Live([sys.executable, "program.py"], self._directory, {})
        stack.callback(self._one.end)
        self._started = r"^(\d+) Generation \d serves" if options else r"^(\d+) Serving HTTP"
        self._generation = 1
        self._one.wait_for(self._started)
        self._browser = Browser(self._directory / "browser")
        stack.callback(self._browser.close)
        self._browser.prefer(**{"prefers_color_scheme": "light", **features})
        self._browser.resize(*WIDE)
        self._browser.open("http://127.0.0.1:8000/graceful/")
        self._crowd = Crowd(8000)
        stack.callback(self._crowd.close)

    def restart(self, pause: float) -> None:
        """Until the new code serves, and the old process has only requests that last."""
        time.sleep(pause)
        self._crowd.hold(3)
        time.sleep(1)
        os.kill(int(self._one.wait_for(self._started, self._generation)[1]), signal.SIGHUP)
        self._generation += 1
        self._one.wait_for(self._started, self._generation)
        time.sleep(SHOT_AFTER)

    def end_old(self) -> None:
        """The requests that last are over, and so is their process."""
        time.sleep(2)
        (self._directory / "go").touch()
        self._one.wait_for(r"Serve\(\) returning", self._generation - 1)
        (self._directory / "go").unlink()

    def shoot(self, path: Path, size: tuple[int, int]) -> None:
        width, height = size
        self._browser.resize(width, height, 1.5 if width < 500 else 1)
        time.sleep(0.3)
        self._browser.shoot(path)
        self._browser.resize(*WIDE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
