"""A service with workers under systemd: what the supervisor tells it, and the sockets it passes.

The tests are the service manager: a NOTIFY_SOCKET of their own, and sockets made as systemd makes
them. docs/deploy.md has the unit files.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live
from program import ask, is_gone
from test_grace import ACTIVATE, WEB

APP = """
import os, sys, time

def app(environ, start_response):
    # In one piece: others print too.
    print("asked\\n", end="", flush=True)
    while environ["PATH_INFO"] == "/held" and not os.path.exists("go"):
        time.sleep(0.01)
    names = "\\n".join(name for name in os.environ if name.startswith(("NOTIFY", "WATCHDOG")))
    start_response("200 OK", [("Content-Length", str(len(names)))])
    return [names.encode()]
"""


class Manager:
    """The side of the service manager: a datagram socket, and what came."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.settimeout(20)

    def next(self, leave_out: str = "WATCHDOG=1") -> dict[str, str]:
        """The assignments of the next message that is not this one."""
        while True:
            text = self.sock.recv(8192).decode()
            if text != leave_out:
                return dict(line.split("=", 1) for line in text.splitlines())


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> t.Iterator[Manager]:
    name = str(tmp_path / "notify")
    one = Manager(f"\0{name}" if request.param == "abstract" else name)
    with one.sock:
        yield one


@pytest.fixture
def service(
    manager: Manager, tmp_path: Path, live: t.Callable[..., Live]
) -> t.Iterator[t.Callable[..., Live]]:
    def start(*flags: str, **env: str) -> Live:
        (tmp_path / "web.py").write_text(APP)
        name = manager.sock.getsockname()
        address = "@" + name[1:].decode() if isinstance(name, bytes) else name
        env["NOTIFY_SOCKET"] = address
        command = ("-m", "flask_graceful", "--bind", "127.0.0.1:0", *flags, "web")
        return live(*command, cwd=tmp_path, env=env)

    yield start


def workers_in(message: dict[str, str]) -> list[int]:
    match = re.fullmatch(r"Generation \d+ serves with workers? ([\d ]+)", message["STATUS"])
    assert match, message
    return [int(word) for word in match[1].split()]


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_what_is_told_of_start_reload_failed_reload_and_stop(
    manager: Manager, service: t.Callable[..., Live], tmp_path: Path
) -> None:
    one = service("--workers", "2", "--idle-grace=0")
    started = manager.next()
    assert started.pop("READY") == "1"
    first = workers_in(started)
    assert len(first) == 2

    before = now()
    os.kill(one.pid, signal.SIGHUP)
    reloading = manager.next()
    assert reloading.pop("RELOADING") == "1"
    # For Type=notify-reload this tells that it is the answer to the signal of just now.
    assert before <= int(reloading.pop("MONOTONIC_USEC")) <= now()
    assert not reloading
    ready = manager.next()
    assert ready["READY"] == "1"
    second = workers_in(ready)
    assert not set(first) & set(second)

    (tmp_path / "web.py").write_text("this is no Python")
    os.kill(one.pid, signal.SIGHUP)
    assert manager.next()["RELOADING"] == "1"
    failed = manager.next()
    assert failed["READY"] == "1"
    assert re.fullmatch(r"Reload failed: worker \d+ exited with status \d+", failed["STATUS"])
    assert not any(is_gone(pid) for pid in second)

    port = int(one.wait_for(r"Serving HTTP on .*:(\d+)$")[1])
    with Client(("127.0.0.1", port)) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        one.wait_for("^asked$")
        os.kill(one.pid, signal.SIGTERM)
        assert manager.next()["STOPPING"] == "1"
        # Until the last request has ended there is more time, again and again.
        for _ in range(2):
            more = manager.next()
            assert int(more["EXTEND_TIMEOUT_USEC"]) >= 10_000_000
            assert re.fullmatch(r"Waiting for \d workers? to finish", more["STATUS"])
        (tmp_path / "go").touch()
        assert client.response()[0] == 200
    assert one.process.wait(60) == 0


def test_only_the_supervisor_speaks_to_systemd(
    manager: Manager, service: t.Callable[..., Live]
) -> None:
    one = service("--workers", "1", WATCHDOG_USEC="200000")
    assert manager.next()["READY"] == "1"
    port = int(one.wait_for(r"Serving HTTP on .*:(\d+)$")[1])
    with Client(("127.0.0.1", port)) as client:
        assert client.get("/")[2] == b""


def test_signs_of_life_come_twice_as_often_as_asked_for(
    manager: Manager, service: t.Callable[..., Live]
) -> None:
    """Also from the program that a reload has put in its place."""
    one = service("--workers", "1", WATCHDOG_USEC="2000000")
    for _ in range(2):
        assert manager.next(leave_out="")["WATCHDOG"] == "1"
        last = time.monotonic()
        for _ in range(2):
            while "WATCHDOG" not in manager.next(leave_out=""):
                pass
            assert time.monotonic() - last < 1.95
            last = time.monotonic()
        os.kill(one.pid, signal.SIGHUP)
        while "READY" not in manager.next():
            pass


def test_sockets_from_systemd_are_served_by_workers(
    tmp_path: Path, live: t.Callable[..., Live]
) -> None:
    """Through a reload, and they are systemd's at the end: nothing is removed."""
    (tmp_path / "activate.py").write_text(ACTIVATE)
    (tmp_path / "web.py").write_text(WEB)
    flags = ("--bind=systemd:local", "--bind=systemd:web", "--workers=2", "--idle-grace=0")
    command = ("-m", "flask_graceful", *flags, "web")
    one = live("activate.py", "3", "web:local:spare", *command, cwd=tmp_path)
    web = int(one.wait_for(r"^ports (\d+) (\d+)$")[1])
    addresses = (str(tmp_path / "activated"), web)
    for generation in (1, 2):
        found = one.wait_for(rf"^{one.pid} Generation {generation} serves with workers (.*)\.$")
        workers = {int(word) for word in found[1].split()}
        assert {ask(address) for address in addresses} <= workers
        with Client(("127.0.0.1", web)) as client:
            assert b"LISTEN_" not in client.get("/environ")[2]
        os.kill(one.pid, signal.SIGHUP)
    one.wait_for(r"Generation 3 serves")
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    assert (tmp_path / "activated").is_socket()
