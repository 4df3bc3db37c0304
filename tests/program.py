"""Programs that a test writes, starts, and changes for the generations that follow."""

from __future__ import annotations

import os
import threading
import typing as t
from pathlib import Path

from conftest import Client, Live, Running, replace, wait_until
from flask_graceful import GracefulServer, ServerClosed, State

HEAD = """
import os, signal, socket, sys, threading, time
from flask_graceful import (
    POST_SIGNAL, PRE_SIGNAL, GracefulServer, ListenError, RestartError, Server, ServerClosed,
    State, has_parent, run, serve,
)

def say(*words):
    # In one piece: two processes may print at the same time.
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

def wait_for_file(name):
    while not os.path.exists(name):
        time.sleep(0.01)

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/held"):
        # Until the test creates a file of this name.
        say(path[1:])
        wait_for_file(path.replace("/held", "go"))
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""

END = """
try:
    server.listen_and_serve()
except ServerClosed as err:
    say("Server err:", err)
"""


def one_server(more: str = "", addr: t.Any = ":0", **options: t.Any) -> str:
    """The text of a program with one server; `more` stands before it is served."""
    return f"server = GracefulServer({addr!r}, app, **{options!r})\n{more}\n{END}"


class Program:
    """A program in a file, and its processes."""

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.directory = directory
        self._live = live

    def write(self, text: str) -> None:
        replace(self.directory / "program.py", HEAD + text)

    def start(self, text: str, *words: str, **env: str) -> Live:
        self.write(text)
        return self._live("program.py", *words, cwd=self.directory, env=env)

    def let_go(self, name: str = "go") -> None:
        """What waits for this file goes on."""
        (self.directory / name).touch()


def ask(address: t.Any, path: str = "/") -> int:
    """The pid of the process that answers; a port alone is one of 127.0.0.1."""
    with connect(address) as client:
        return pid_from(client, path)


def connect(address: t.Any) -> Client:
    return Client(("127.0.0.1", address) if isinstance(address, int) else address)


def pid_from(client: Client, path: str = "/") -> int:
    code, _, body = client.get(path)
    assert code == 200
    return int(body)


def is_refused(port: int) -> bool:
    try:
        connect(port).sock.close()
    except ConnectionRefusedError:
        return True
    return False


def is_gone(pid: int) -> bool:
    """Has the process ended? A zombie has."""
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def serving_pids(one: Live, count: int) -> list[int]:
    """The pids of the first `count` processes that log that they serve, by their first address."""
    one.wait_for(r"^(\d+) Serving HTTPS? on ", count)
    seen: list[int] = []
    for line in one.log.splitlines():
        word, _, rest = line.partition(" ")
        if rest.startswith("Serving HTTP") and int(word) not in seen:
            seen.append(int(word))
    return seen


def signal_and_wait(one: Live, pid: int, signum: int) -> None:
    """Send a signal to a process, and wait until that has ended."""
    os.kill(pid, signum)
    one.wait_for(rf"^{pid} Serve\(\) returning")


class Hosted(Running):
    """A `GracefulServer` without signals, in a thread of this process."""

    server: GracefulServer

    def __init__(self, app: t.Any, **options: t.Any) -> None:
        options = {"addr": "127.0.0.1:0", "idle_grace": 0, **options}
        self.server = GracefulServer(app=app, handle_signals=False, **options)
        addresses: list[str] = []
        self.server.before_begin(addresses.append)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._live)
        self._thread.start()
        wait_until(lambda: self.server.state is not State.INIT and addresses, "serving")
        host, _, port = addresses[0].rpartition(":")
        self.address = (host, int(port))

    def _live(self) -> None:
        try:
            self.server.listen_and_serve()
        except (ServerClosed, OSError) as error:
            self.error = error
