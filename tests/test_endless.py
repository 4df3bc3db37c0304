"""What fvbock/endless offers (rows E), in real processes with real signals. More of it is in
test_restart and test_addresses."""

from __future__ import annotations

import os
import re
import signal
import typing as t
from pathlib import Path

import pytest
from conftest import Live
from program import Program, ask, connect, is_refused, one_server, serving_pids, signal_and_wait


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


def two_servers(more: str = "", **options: t.Any) -> str:
    """The text of a program with two servers, `a` and `b`."""
    return (
        f"options = {options!r}\n"
        "a = GracefulServer(':0', app, **options)\n"
        "b = GracefulServer('127.0.0.1:0', app, **options)\n"
        f"{more}\n"
        "say('serve returned', serve(a, b))\n"
    )


def ports(one: Live) -> tuple[int, int]:
    """Where the two servers listen."""
    return one.port, int(one.wait_for(r"Serving HTTP on 127\.0\.0\.1:(\d+)")[1])


def test_E1_states(program: Program) -> None:
    more = (
        "def tell(what): return lambda *_: say(os.getpid(), what, server.state.name)\n"
        "say(os.getpid(), 'before', server.state)\n"
        "server.before_begin(tell('begins'))\n"
        "server.shutdown_initiated(tell('initiated'))\n"
        "for when in (PRE_SIGNAL, POST_SIGNAL):\n"
        "    server.register_signal_hook(when, signal.SIGTERM, tell('signal'))\n"
    )
    one = program.start(one_server(more, idle_grace=0) + "tell('after')()\n")
    one.wait_for("begins")
    os.kill(one.pid, signal.SIGHUP)
    new = int(one.wait_for(r"^(\d+) begins", 2)[1])
    one.wait_for(f"^{one.pid} after")
    os.kill(new, signal.SIGTERM)
    one.wait_for(f"^{new} after")
    ends = {
        one.pid: ["signal RUNNING", "initiated RELIEVED", "signal RELIEVED"],
        new: ["signal RUNNING", "initiated SHUTTING_DOWN", "signal SHUTTING_DOWN"],
    }
    for pid, lines in ends.items():
        said = re.findall(rf"^{pid} ((?:before|begins|signal|initiated|after) .*)$", one.log, re.M)
        assert said == ["before None", "begins INIT", *lines, "after TERMINATED"]


def test_E2_time_outs_and_header_limit_for_all_servers(program: Program) -> None:
    """endless has package variables for them; here it is one dict of settings."""
    one = program.start(two_servers(max_header_bytes=1, read_header_timeout=0.2))
    for port in ports(one):
        with connect(port) as client:
            assert client.get(headers=f"X: {'a' * 4000}\r\n")[0] == 200
            assert client.get(headers=f"X: {'a' * 5000}\r\n")[0] == 431
        with connect(port) as client:
            client.send(b"GET / HTTP/1.1\r\n")
            assert client.is_closed()


def test_E3_hooks_before_and_after_each_signal(program: Program) -> None:
    more = (
        "def tell(*words): return lambda: say(os.getpid(), *words)\n"
        "for name in ('SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGINT', 'SIGTERM', 'SIGTSTP'):\n"
        "    for word in ('one', 'two'):\n"
        "        server.register_signal_hook(\n"
        "            PRE_SIGNAL, getattr(signal, name), tell('before', name, word))\n"
        "        server.register_signal_hook(\n"
        "            POST_SIGNAL, getattr(signal, name), tell('after', name, word))\n"
    )
    one = program.start(one_server(more, idle_grace=0))
    (old,) = serving_pids(one, 1)
    for name in ("SIGUSR1", "SIGUSR2", "SIGTSTP"):
        os.kill(old, getattr(signal, name))
        one.wait_for(f"^{old} after {name} two$")
    signal_and_wait(one, old, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    signal_and_wait(one, new, signal.SIGINT)
    # The successor has sent the SIGTERM.
    received = {old: ["SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGHUP", "SIGTERM"], new: ["SIGINT"]}
    for pid, names in received.items():
        said = re.findall(rf"^{pid} ((?:before|Received|after) .*)$", one.log, re.M)
        expected: list[str] = []
        for name in names:
            expected += [f"before {name} one", f"before {name} two"]
            expected += [f"Received {name}." + " forking." * (name == "SIGHUP")]
            expected += [f"after {name} one", f"after {name} two"]
        assert said == expected


def test_E10_a_connection_taken_over_is_waited_for(program: Program) -> None:
    more = (
        "def take_over(environ, start_response):\n"
        "    sock = environ['werkzeug.socket']\n"
        "    sock.send(b'taken')\n"
        "    while data := sock.recv(100):\n"
        "        sock.send(data)\n"
        "    return []\n"
        "server.app = take_over\n"
    )
    one = program.start(one_server(more))
    with connect(one.port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client._exactly(5) == b"taken"
        os.kill(one.pid, signal.SIGTERM)
        one.wait_for("Waiting for connections")
        for data in (b"still", b"there"):
            client.send(data)
            assert client._exactly(5) == data
        assert one.process.poll() is None
    assert one.process.wait(60) == 0
    assert "Hammer" not in one.log


def test_E12_negative_hammer_time_cuts_nothing_by_itself(program: Program) -> None:
    one = program.start(one_server(hammer_time=-1, idle_grace=0))
    with connect(one.port) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        os.kill(one.pid, signal.SIGTERM)
        one.wait_for("Waiting for connections")
        assert not client.is_closed(0.3)
        os.kill(one.pid, signal.SIGUSR2)
        assert client.is_closed()
        assert one.process.wait(60) == 0
    one.wait_for(r"\[STOP - Hammer Time\] Forcefully shutting down parent")


def test_E16_signals_during_a_hook_are_not_lost(program: Program) -> None:
    more = (
        "def block(): say('blocked'); wait_for_file('go')\n"
        "server.register_signal_hook(PRE_SIGNAL, signal.SIGUSR1, block)\n"
    )
    one = program.start(one_server(more, idle_grace=0))
    (pid,) = serving_pids(one, 1)
    os.kill(pid, signal.SIGUSR1)
    one.wait_for("^blocked$")
    for signum in (signal.SIGUSR2, signal.SIGTSTP, signal.SIGTERM):
        os.kill(pid, signum)
    # The process serves all the while.
    assert ask(one.port) == pid
    program.let_go()
    assert one.process.wait(60) == 0
    received = re.findall(r"Received (\w+)\.", one.log)
    # Their order is the system's: several that wait come as it likes.
    assert received[0] == "SIGUSR1"
    assert sorted(received[1:]) == ["SIGTERM", "SIGTSTP", "SIGUSR2"]


def test_E18_several_servers_in_one_process(program: Program) -> None:
    """Each has its hooks; one successor goes on with all of them."""
    more = (
        "for one, name in ((a, 'a'), (b, 'b')):\n"
        "    for signum in (signal.SIGHUP, signal.SIGTERM):\n"
        "        one.register_signal_hook(\n"
        "            POST_SIGNAL, signum,\n"
        "            lambda signum=signum, name=name: say(os.getpid(), name, signum.name))\n"
    )
    one = program.start(two_servers(more, idle_grace=0))
    both = ports(one)
    (old,) = serving_pids(one, 1)
    assert [ask(port) for port in both] == [old, old]
    signal_and_wait(one, old, signal.SIGHUP)
    assert one.process.wait(60) == 0
    new = serving_pids(one, 2)[1]
    assert [ask(port) for port in both] == [new, new]
    signal_and_wait(one, new, signal.SIGTERM)
    one.wait_for("^serve returned None$", 2)
    assert [is_refused(port) for port in both] == [True, True]
    for pid, names in ((old, ["SIGHUP", "SIGTERM"]), (new, ["SIGTERM"])):
        assert re.findall(rf"^{pid} Received (\w+)\.", one.log, re.M) == names
        said = re.findall(rf"^{pid} ([ab] \w+)$", one.log, re.M)
        assert said == [f"{server} {name}" for name in names for server in "ab"]
    assert len(re.findall(r"^\d+ Serving HTTP on \[::\]", one.log, re.M)) == 2
