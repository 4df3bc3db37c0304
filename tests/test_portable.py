"""Systems that are no Linux: the package where what is Linux's and Unix's own is missing.

It is taken away in a fresh interpreter before the package is imported. The stdlib's own stand-in
for socket pairs is used then, as on Windows.
"""

from __future__ import annotations

import signal
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, wait_until

WITHOUT = """
import sys
assert "socket" not in sys.modules, "too late to take anything away"
import _socket, os, select

for module, names in {
    _socket: ["AF_UNIX", "socketpair", "SCM_RIGHTS", "CMSG_SPACE", "CMSG_LEN", "MSG_CMSG_CLOEXEC",
              "SO_PEERCRED"],
    select: ["epoll", "poll"],
    os: ["sendfile", "set_blocking"],
}.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    # Importing it raises ImportError.
    sys.modules[name] = None
"""

WITHOUT_SIGNALS = """
import signal
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGCHLD", "SIGPIPE"):
    delattr(signal, name)
"""

SERVE = """
import sys
from flask_graceful import (
    GracefulServer, ListenError, PRE_SIGNAL, RestartError, Server, has_parent, run, serve
)
from flask_graceful.listeners import listen, parse_address
from flask_graceful.poller import SelectorPoller, new_poller

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/restart":
        try:
            environ["flask_graceful.server"].restart(wait=True)
        except RestartError as error:
            body = str(error).encode()
    elif environ["PATH_INFO"] == "/stop":
        environ["flask_graceful.server"].stop()
    return [body, b" portable"]

poller = new_poller()
assert type(poller) is SelectorPoller
poller.close()
try:
    listen(parse_address("unix:/nowhere/socket"))
except ListenError as error:
    print("error", error, flush=True)
"""

SERVER = """
server = Server("127.0.0.1:0", app, listen_limit=1)
listener = listen(server.address)
print("port", listener.port, flush=True)
server.serve(listener)
"""

GRACEFUL = """
server = GracefulServer(
    "127.0.0.1:0", app, listen_limit=1, pid_file="run.pid", shutdown_delay=0.1
)
assert not has_parent() and server.wait_for_parent()
server.add_file("a", 0)

@server.before_begin
def begin(address):
    print("port", address.rpartition(":")[2], flush=True)

try:
    server.register_signal_hook(PRE_SIGNAL, 1, lambda: None)
except ValueError as error:
    print("error", error, flush=True)
server.listen_and_serve()
"""

Start = t.Callable[..., Live]


@pytest.fixture
def program(tmp_path: Path, live: Start) -> Start:
    def start(*parts: str) -> Live:
        (tmp_path / "program.py").write_text("\n".join(parts))
        return live("program.py", cwd=tmp_path)

    return start


def post(one: Live) -> bytes:
    port = int(one.wait_for(r"^port (\d+)")[1])
    with Client(("127.0.0.1", port)) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde")
        assert client.response()[2] == b"abcde portable"
        # On the same connection.
        return client.get()[2]


def test_a_server_serves(program: Start) -> None:
    one = program(WITHOUT, WITHOUT_SIGNALS, SERVE, SERVER)
    assert post(one) == b" portable"
    one.wait_for("error .*unix sockets are not supported on this system")
    # One connection at a time, again and again.
    for _ in range(3):
        assert post(one) == b" portable"


def test_a_graceful_server_serves_and_stops(program: Start, tmp_path: Path) -> None:
    one = program(WITHOUT, WITHOUT_SIGNALS, SERVE, GRACEFUL)
    assert post(one) == b" portable"
    one.wait_for(
        r"error signal 1 is not supported; expected one of signal\.SIGINT, signal\.SIGTERM"
    )
    assert (tmp_path / "run.pid").read_text() == f"{one.pid}\n"
    one.process.send_signal(signal.SIGTERM)
    one.wait_for("ServerClosed: accept tcp .*: use of closed network connection")
    wait_until(lambda: one.process.poll() is not None, "the process ended")
    assert not (tmp_path / "run.pid").exists()


def test_a_restart_is_refused_in_one_line_and_serving_goes_on(program: Start) -> None:
    one = program(WITHOUT, SERVE, GRACEFUL)
    assert post(one) == b" portable"
    before = one.log
    one.process.send_signal(signal.SIGHUP)
    one.wait_for(r"^\d+ Not restarted: .*; a restart needs Unix\.$")
    assert post(one) == b" portable"
    assert len(one.log.removeprefix(before).splitlines()) == 2, one.log


SEVERAL = """
import threading
a = GracefulServer("127.0.0.1:0", app, handle_signals=False)
b = GracefulServer("localhost:0", app, handle_signals=False)
a.before_begin(lambda address: print("port", address.rpartition(":")[2], flush=True))
thread = threading.Thread(target=serve, args=(a, b))
thread.start()
thread.join()
print("over", flush=True)
"""


def test_several_servers_without_signals_stop_and_refuse_to_restart(program: Start) -> None:
    one = program(WITHOUT, WITHOUT_SIGNALS, SERVE, SEVERAL)
    port = int(one.wait_for(r"^port (\d+)")[1])
    with Client(("127.0.0.1", port)) as client:
        assert client.get("/restart")[2] == (
            b"listening sockets can't be handed to another process on this system; a restart "
            b"needs Unix portable"
        )
        assert client.get("/stop")[0] == 200
    one.wait_for("^over$")
    assert one.process.wait(60) == 0
