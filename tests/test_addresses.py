"""Several addresses of one `GracefulServer`: real processes. Names carry rows of the
specification."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import typing as t
from pathlib import Path

import pytest
from conftest import Client, Live, wait_until
from flask_graceful import GracefulServer, ListenError

PROGRAM = """
import os, sys
from flask_graceful import GracefulServer, ListenError, ServerClosed

def app(environ, start_response):
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

server = GracefulServer(ADDRESSES, app, idle_grace=0)
#MORE
try:
    server.listen_and_serve()
except ServerClosed as err:
    print("Server err:", err, flush=True)
except ListenError as err:
    sys.exit(str(err))
"""


class Program:
    """PROGRAM in a file that the test may change, and its process."""

    def __init__(self, directory: Path, live: t.Callable[..., Live]) -> None:
        self.directory = directory
        self._live = live

    def write(self, *addresses: str, more: str = "") -> None:
        text = PROGRAM.replace("ADDRESSES", repr(addresses)).replace("#MORE", more)
        (self.directory / "program.py").write_text(text)

    def start(self, *addresses: str, more: str = "") -> Live:
        self.write(*addresses, more=more)
        return self._live("program.py", cwd=self.directory)


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


def ask(address: t.Any) -> int:
    with Client(address) as client:
        return int(client.get()[2])


def test_E8_E18_every_address_is_served_handed_on_and_closed(program: Program) -> None:
    path = str(program.directory / "s")
    one = program.start(":0", "127.0.0.1:0", f"unix:{path}")
    first = one.port
    second = int(one.wait_for(rf"^{one.pid} Serving HTTP on 127\.0\.0\.1:(\d+)$")[1])
    one.wait_for(rf"^{one.pid} Serving HTTP on unix:{path}$")
    addresses = [("127.0.0.1", first), ("127.0.0.1", second), path]
    assert [ask(address) for address in addresses] == [one.pid] * 3
    os.kill(one.pid, signal.SIGHUP)
    assert one.process.wait(60) == 0
    new = int(one.wait_for(r"^(\d+) Serving HTTP on unix:", 2)[1])
    assert [ask(address) for address in addresses] == [new] * 3
    os.kill(new, signal.SIGTERM)
    one.wait_for("Server err: accept tcp ", 2)
    for pid in (one.pid, new):
        for name in (rf"\[::\]:{first}", f"127.0.0.1:{second}", path):
            one.wait_for(f"^{pid} {name} Listener closed.$")
    assert not os.path.exists(path)


def test_L7_one_address_that_is_taken_binds_none(program: Program) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        path = program.directory / "s"
        one = program.start(f"unix:{path}", taken)
        assert one.process.wait(60) == 1
        one.wait_for(f"listen tcp {taken}: bind: address already in use")
        assert "Serving" not in one.log
        assert not path.exists()


def test_E13_a_successor_that_cannot_bind_leaves_all_that_it_inherited(program: Program) -> None:
    path = program.directory / "s"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        one = program.start(f"unix:{path}")
        one.wait_for("Serving HTTP")
        extra = program.directory / "extra"
        program.write(f"unix:{path}", f"unix:{extra}", f"127.0.0.1:{other.getsockname()[1]}")
        os.kill(one.pid, signal.SIGHUP)
        one.wait_for("Restart failed: .*this process goes on serving")
        assert ask(str(path)) == one.pid
        assert not extra.exists()
        program.write(f"unix:{path}", more="@server.before_begin\ndef fail(addr): 1 / 0")
        os.kill(one.pid, signal.SIGHUP)
        one.wait_for("Restart failed: .*this process goes on serving", 2)
        assert ask(str(path)) == one.pid


def test_E14_an_address_that_the_new_code_drops_is_emptied_and_closed(program: Program) -> None:
    kept, dropped, added = (str(program.directory / name) for name in ("kept", "dropped", "added"))
    one = program.start(f"unix:{kept}", f"unix:{dropped}")
    one.wait_for("Serving HTTP", 2)
    # The old process is stopped while the new one begins, so that clients queue up.
    stop = (
        "import signal\n"
        "@server.before_begin\n"
        "def stop(addr): os.kill(os.getppid(), signal.SIGSTOP); open('at', 'a').write(addr)\n"
    )
    program.write(f"unix:{added}", f"unix:{kept}", more=stop)
    os.kill(one.pid, signal.SIGHUP)
    at = program.directory / "at"
    # It prints nothing: that would go through the one that is stopped.
    wait_until(lambda: at.exists() and kept in at.read_text(), "the end of the boot")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(dropped)) for _ in range(400)]
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        new = ask(kept)
        os.kill(one.pid, signal.SIGCONT)
        assert {int(client.response()[2]) for client in clients} == {one.pid}
    assert one.process.wait(60) == 0
    assert ask(kept) == ask(added) == new != one.pid
    assert not os.path.exists(dropped)


def hello(environ: t.Any, start_response: t.Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


@pytest.mark.parametrize(
    ("addresses", "error", "text"),
    [
        ([], ValueError, "no address: expected at least one"),
        ([":0", "unix:s", ":0"], ValueError, "address ':0' is given 2 times"),
        ([":0", "8000"], ValueError, "address '8000': expected host:port"),
        ([8000], TypeError, "address: expected a string such as ':8000', got 8000"),
    ],
)
def test_wrong_addresses_are_refused(addresses: t.Any, error: t.Any, text: str) -> None:
    with pytest.raises(error, match=text):
        GracefulServer(addresses, hello)


def test_a_single_address_stays_what_it_was() -> None:
    server = GracefulServer("unix:nowhere/s", hello)
    assert server.addresses == [server.address]
    with pytest.raises(ListenError, match="listen unix nowhere/s: bind: no such file"):
        server.listen_and_serve()
