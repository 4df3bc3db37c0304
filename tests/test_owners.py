"""A listening socket that another process may go on with: nobody shuts it, or removes its file,
who is not the last."""

from __future__ import annotations

import os
import signal
import typing as t
from pathlib import Path

import pytest
from conftest import Live, wait_until
from program import Program, ask, connect, is_refused, one_server, pid_from, serving_pids


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


# The way out of a successor that nobody else is told of.
SHUTS_DOWN = """
def stop():
    wait_for_file("shut down")
    server.{how}

threading.Thread(target=stop, daemon=True).start()
"""


@pytest.mark.parametrize("how", ["shutdown(1)", "close()"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_successor_that_ends_by_itself_leaves_the_old_process_serving(
    program: Program, how: str, kind: str
) -> None:
    socket_file = program.directory / "socket"
    addr = "127.0.0.1:0" if kind == "tcp" else f"unix:{socket_file}"
    one = program.start(one_server(addr=addr))
    (old,) = serving_pids(one, 1)
    address: t.Any = str(socket_file)
    if kind == "tcp":
        address = int(one.wait_for(r"Serving HTTP on 127\.0\.0\.1:(\d+)")[1])
    with connect(address) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        program.write(one_server(SHUTS_DOWN.format(how=how), addr=addr))
        os.kill(old, signal.SIGHUP)
        _, new = serving_pids(one, 2)
        one.wait_for(f"^{old} Waiting for connections")
        wait_until(lambda: ask(address) == new, "the successor serves")
        program.let_go("shut down")
        one.wait_for(f"^{old} Successor {new} .*; this process serves again")
        assert [ask(address) for _ in range(3)] == [old] * 3
        program.let_go()
        assert client.response()[2] == b"%d" % old
        assert pid_from(client) == old


def test_a_successor_that_fails_to_boot_leaves_the_socket_file(program: Program) -> None:
    socket_file = program.directory / "socket"
    addr = f"unix:{socket_file}"
    one = program.start(one_server(addr=addr))
    (old,) = serving_pids(one, 1)
    program.write(one_server("server.base_context = lambda listener: None", addr=addr))
    os.kill(old, signal.SIGHUP)
    one.wait_for("Restart failed: .*; this process goes on serving")
    assert ask(str(socket_file)) == old


def test_a_successor_killed_by_a_signal_without_a_name(program: Program) -> None:
    one = program.start(one_server())
    (old,) = serving_pids(one, 1)
    program.write(one_server(f"os.kill(os.getpid(), {signal.SIGRTMIN + 1})"))
    os.kill(old, signal.SIGHUP)
    one.wait_for(r"was killed by signal \d+; this process goes on serving")
    assert ask(one.port) == old


def test_a_stop_during_a_boot_is_no_question_for_the_successor(program: Program) -> None:
    """Its `before_shutdown` would refuse, but nobody could reach it any more."""
    one = program.start(one_server())
    (old,) = serving_pids(one, 1)
    port = one.port
    refuses = (
        "server.before_shutdown(lambda: False)\n"
        "@server.before_begin\n"
        "def wait(addr):\n"
        "    say('begins')\n"
        "    wait_for_file('go')\n"
    )
    program.write(one_server(refuses))
    with connect(port) as client:
        client.send(b"GET /held1 HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held1$")
        os.kill(old, signal.SIGHUP)
        one.wait_for("^begins$")
        os.kill(old, signal.SIGTERM)
        one.wait_for(f"^{old} Waiting for connections")
        program.let_go()
        one.wait_for(r"^Server err: ")
        program.let_go("go1")
        assert client.response()[2] == b"%d" % old
    assert one.process.wait(60) == 0
    wait_until(lambda: is_refused(port), "nobody serves")
