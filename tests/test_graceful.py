"""What tylerb/graceful offers (rows H): `run`, a limit of connections, vetoes, stops by API, and
servers that leave signals alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import typing as t
from collections import Counter
from pathlib import Path

import pytest
from conftest import Live, wait_until
from flask_graceful import ConnState, GracefulServer, ServerClosed, State
from program import (
    Hosted,
    Program,
    ask,
    connect,
    is_refused,
    one_server,
    pid_from,
    serving_pids,
    signal_and_wait,
)
from test_hijack import SWITCH, Echo, switch
from test_server import GET, Gate, Start, hello


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


@pytest.fixture
def hosted(running: Start) -> t.Callable[..., Hosted]:
    return lambda app, **options: t.cast("Hosted", running(app, kind=Hosted, **options))


Host = t.Callable[..., Hosted]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_H1_H2_run(program: Program, signum: int) -> None:
    one = program.start("say('run returned', run(':0', 0.3, app))")
    with connect(one.port) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        began = time.monotonic()
        os.kill(one.pid, signum)
        assert client.is_closed()
        assert 0.25 < time.monotonic() - began
    one.wait_for("^run returned None$")
    assert one.process.wait(60) == 0


def test_H3_a_stop_can_be_refused_and_then_accepted(program: Program) -> None:
    more = (
        "@server.before_shutdown\n"
        "def ask_first():\n"
        "    say('asked', server.state.name)\n"
        "    return os.path.exists('go')\n"
        "server.register_on_shutdown(lambda: say('not waited for'))\n"
        "@server.shutdown_initiated\n"
        "def initiated():\n"
        "    sock = socket.socket()\n"
        "    sock.settimeout(0.2)\n"
        "    try:\n"
        "        sock.connect(('127.0.0.1', PORT))\n"
        "        say('connected')\n"
        "    except OSError:\n"
        "        say('initiated')\n"
        "@server.before_begin\n"
        "def begin(addr):\n"
        "    global PORT\n"
        "    PORT = int(addr.rpartition(':')[2])\n"
        "    say('Serving HTTP on', addr)\n"
    )
    one = program.start(one_server(more, idle_grace=0))
    with connect(one.port) as client:
        assert pid_from(client) == one.pid
        for count, signum in enumerate((signal.SIGTERM, signal.SIGINT), 1):
            os.kill(one.pid, signum)
            one.wait_for("Shutdown refused by before_shutdown hook", count)
            # As if nothing had been asked.
            assert pid_from(client) == one.pid
            assert ask(one.port) == one.pid
        program.let_go()
        os.kill(one.pid, signal.SIGTERM)
        assert one.process.wait(60) == 0
    assert one.log.count("asked RUNNING") == 3
    one.wait_for("^not waited for$")
    # Nobody is let in any more when it is called.
    assert one.log.index("asked RUNNING") < one.log.index("initiated\n")
    assert "connected" not in one.log


def test_H3_other_hooks_stop_nothing(program: Program) -> None:
    """What a hook returns but False, or raises, refuses nothing."""
    more = (
        "server.before_shutdown(lambda: None)\n"
        "server.before_shutdown(lambda: 1 / 0)\n"
        "server.shutdown_initiated(lambda: sys.exit(3))\n"
        "server.after_shutdown(lambda: sys.exit(3))\n"
    )
    one = program.start(one_server(more, idle_grace=0))
    one.wait_for("Serving")
    os.kill(one.pid, signal.SIGTERM)
    assert one.process.wait(60) == 0
    one.wait_for(f"^{one.pid} before_shutdown hook <lambda> failed$")
    one.wait_for(f"^{one.pid} shutdown_initiated hook <lambda> failed$")
    one.wait_for(f"^{one.pid} after_shutdown hook ")


def test_H3_work_that_a_hook_begins_is_waited_for_where_nothing_else_is(hosted: Host) -> None:
    server = hosted(hello).server
    ended: list[str] = []

    def work() -> None:
        time.sleep(0.05)
        ended.append("work")

    @server.shutdown_initiated
    def begin() -> None:
        # The last listener goes meanwhile.
        wait_until(lambda: not server._acceptors, "no listener")
        server.spawn(work)

    server.after_shutdown(lambda: ended.append("life"))
    server.stop(wait=True)
    assert ended == ["work", "life"]


def test_H3_a_successor_asks_nobody(program: Program) -> None:
    more = "server.before_shutdown(lambda: False)\n"
    one = program.start(one_server(more, idle_grace=0))
    (old,) = serving_pids(one, 1)
    signal_and_wait(one, old, signal.SIGHUP)
    new = serving_pids(one, 2)[1]
    assert ask(one.port) == new
    assert "refused" not in one.log
    # It would refuse to stop.
    os.kill(new, signal.SIGKILL)


def test_H4_H5_stop_returns_at_once_and_its_time_counts(hosted: Host) -> None:
    gate = Gate()
    one = hosted(gate, hammer_time=60)
    with one.connect().send(GET) as client:
        gate.wait()
        began = time.monotonic()
        assert one.server.stop(timeout=1) is True
        assert not client.is_closed(0.01)
        assert one.server.state in (State.RUNNING, State.SHUTTING_DOWN)
        assert client.is_closed()
        assert 0.95 < time.monotonic() - began < 10
        assert isinstance(one.join(), ServerClosed)
        gate.leave.set()
    # Long over.
    assert one.server.stop() is False
    assert one.server.stop(wait=True) is False


def test_H5_no_time_at_all_is_any_time(hosted: Host) -> None:
    gate = Gate()
    one = hosted(gate, hammer_time=0.2)
    with one.connect().send(GET) as client:
        gate.wait()
        one.server.stop(timeout=0)
        assert not client.is_closed(0.5)
        gate.leave.set()
        assert client.response()[2] == b"late"
    one.join()


def test_H5_a_second_stop_cuts(hosted: Host) -> None:
    gate = Gate()
    one = hosted(gate)
    with one.connect().send(GET) as client:
        gate.wait()
        assert one.server.stop() is True
        assert not client.is_closed(0.1)
        assert one.server.stop() is False
        assert client.is_closed()
        one.join()
        gate.leave.set()


def test_H5_a_stop_before_serve_is_remembered() -> None:
    for wait in (False, True):
        server = GracefulServer("127.0.0.1:0", hello)
        assert server.stop(wait=wait) is True
        assert server.stop(wait=wait) is False
        with pytest.raises(ServerClosed):
            server.listen_and_serve()


def test_H5_a_stop_while_it_begins_is_remembered(running: Start) -> None:
    server = GracefulServer("127.0.0.1:0", hello, handle_signals=False)
    said: list[bool] = []
    server.before_begin(lambda addr: said.append(server.stop()))
    with pytest.raises(ServerClosed, match="accept tcp 127"):
        server.listen_and_serve()
    assert said == [True]


def test_H7_H12_connections_taken_over_count_until_they_end(running: Start) -> None:
    one = running(Echo(), listen_limit=2)
    with switch(one.connect()) as first, switch(one.connect()):
        assert one.server.connections() == []
        with one.connect().send(GET) as third:
            assert not third.is_closed(0.2)
            first.sock.shutdown(socket.SHUT_WR)
            assert third._exactly(len(SWITCH)) == SWITCH


def test_H8_a_full_server_stops_in_its_time(hosted: Host) -> None:
    gate = Gate()
    one = hosted(gate, listen_limit=1)
    with one.connect().send(GET) as first, one.connect().send(GET) as second:
        gate.wait()
        began = time.monotonic()
        one.server.stop(0.3)
        # The one that waited in the queue is let in at the stop, and cut with the other one.
        gate.wait()
        assert first.is_closed()
        assert second.is_closed()
        assert time.monotonic() - began < 10
        one.join()
        gate.leave.set()


def test_H9_a_stop_ends_with_a_stream_that_began_before_it(hosted: Host) -> None:
    begun, leave = threading.Event(), threading.Event()

    def app(environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        start_response("200 OK", [])
        yield b"one"
        begun.set()
        assert leave.wait(20)
        yield b"two"

    one = hosted(app, hammer_time=60)
    with one.connect().send(GET) as stream, one.connect() as half:
        half.send(b"GET / HTTP/1.1\r\n")
        assert begun.wait(20)
        began = time.monotonic()
        one.server.stop()
        leave.set()
        code, headers, body = stream.response()
        # Its head was out before the stop.
        assert (code, headers.get("connection"), body) == (200, None, b"onetwo")
        assert stream.is_closed()
        half.sock.close()
        one.join()
        assert time.monotonic() - began < 10


def test_H12_one_more_than_the_limit_waits_for_its_turn(running: Start) -> None:
    one = running(hello, listen_limit=2)
    with one.connect() as first, one.connect() as second:
        for client in (first, second):
            assert client.get()[2] == b"hello"
        with one.connect().send(GET) as third:
            assert not third.is_closed(0.2)
            assert len(one.server.connections()) == 2
            # Nor does it disturb the others.
            assert first.get()[2] == b"hello"
            second.sock.close()
            assert third.response()[2] == b"hello"
        # Any number of times.
        for _ in range(20):
            with one.connect() as again:
                assert again.get()[2] == b"hello"


def test_H12_those_who_wait_are_served_at_a_shutdown(running: Start) -> None:
    gate = Gate()
    one = running(gate, listen_limit=1)
    with one.connect().send(GET) as first:
        gate.wait()
        waiting = [one.connect().send(GET) for _ in range(5)]
        stop = threading.Thread(target=one.server.shutdown)
        stop.start()
        one.join()
        gate.leave.set()
        for client in (first, *waiting):
            code, headers, body = client.response()
            assert (code, headers["connection"], body) == (200, "close", b"late")
            client.sock.close()
        stop.join(20)
        assert not stop.is_alive()


def test_H12_many_come_through_a_small_limit(running: Start) -> None:
    one = running(hello, listen_limit=3)
    most: list[int] = []
    failed: list[str] = []

    def visit() -> None:
        for _ in range(50):
            with one.connect() as client:
                if client.get(headers="Connection: close\r\n")[0] != 200:
                    failed.append("no answer")
            most.append(len(one.server.connections()))

    visitors = [threading.Thread(target=visit) for _ in range(12)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(60)
    assert (len(most), failed) == (600, [])
    assert max(most) <= 3


def test_H12_those_who_wait_are_served_by_the_successor(program: Program) -> None:
    one = program.start(one_server(listen_limit=1))
    (old,) = serving_pids(one, 1)
    with connect(one.port) as first:
        first.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        with connect(one.port).send(GET) as second:
            assert not second.is_closed(0.1)
            os.kill(old, signal.SIGHUP)
            assert int(second.response()[2]) == serving_pids(one, 2)[1]
        program.let_go()
        assert int(first.response()[2]) == old


KEEP_ALIVE = {0: None, 0.2: 1, 15: 15, 180: 180, 1e8: 32767, 1e9: None}


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="needs TCP_KEEPIDLE")
@pytest.mark.parametrize("seconds", KEEP_ALIVE)
def test_H11_H12_tcp_keep_alive(running: Start, seconds: float) -> None:
    one = running(hello, tcp_keep_alive=seconds)
    expected = KEEP_ALIVE[seconds]
    with one.connect():
        (connection,) = wait_until(one.server.connections, "accepted")
        sock = connection._wire.sock
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is bool(expected)
        if expected:
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
                assert sock.getsockopt(socket.IPPROTO_TCP, option) == expected


@pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="needs TCP_KEEPIDLE")
def test_H12_a_successor_has_its_own_tcp_keep_alive(program: Program) -> None:
    more = (
        "def options(entries, connection):\n"
        "    sock = connection._wire.sock\n"
        "    on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)\n"
        "    say('probes', on and sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE))\n"
        "    return {}\n"
        "server.conn_context = options\n"
    )
    one = program.start(one_server(more, idle_grace=0, tcp_keep_alive=180))
    ask(one.port)
    one.wait_for("^probes 180$")
    for count, (seconds, said) in enumerate(((0, 0), (60, 60)), 1):
        program.write(one_server(more, idle_grace=0, tcp_keep_alive=seconds))
        signal_and_wait(one, serving_pids(one, count)[-1], signal.SIGHUP)
        ask(one.port)
        one.wait_for(f"^probes {said}$")


def test_H13_every_connection_is_told_of(hosted: Host) -> None:
    counts: Counter[ConnState] = Counter()
    lock = threading.Lock()

    def count(connection: object, state: ConnState) -> None:
        with lock:
            counts[state] += 1

    one = hosted(hello, conn_state=count)
    for _ in range(5):
        with one.connect() as client:
            assert client.get(headers="Connection: close\r\n")[0] == 200
    one.server.stop(wait=True)
    assert counts == {ConnState.NEW: 5, ConnState.ACTIVE: 5, ConnState.CLOSED: 5}


NO_SIGNALS = """
def told(signum, frame): say(os.getpid(), 'was sent', signal.Signals(signum).name)
for signum in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
    signal.signal(signum, told)

def with_orders(environ, start_response):
    order = environ['PATH_INFO']
    this = environ['flask_graceful.server']
    if order == '/restart':
        this.restart()
    elif order == '/stop':
        this.stop()
    return app(environ, start_response)

#MORE

server = GracefulServer(
    ':0', with_orders, handle_signals=False, idle_grace=0, restart_signal=signal.SIGHUP)

def serving():
    try:
        server.listen_and_serve()
    except ServerClosed as err:
        say(os.getpid(), 'over:', err)

thread = threading.Thread(target=serving)
thread.start()
while thread.is_alive():
    # Another thread may get a signal, and this one would not notice.
    thread.join(0.05)
say(os.getpid(), 'ends')
"""


def test_H1_a_server_that_leaves_signals_alone(program: Program) -> None:
    """Nor does a successor send one; what was asked for during its boot reaches it all the same."""
    one = program.start(NO_SIGNALS)
    (old,) = serving_pids(one, 1)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(old, signum)
        one.wait_for(f"^{old} was sent {signum.name}$")
    assert ask(one.port) == old
    program.write(NO_SIGNALS.replace("#MORE", "wait_for_file('go')"))
    assert ask(one.port, "/restart") == old
    one.wait_for(f"^{old} Told to restart. forking.$")
    assert ask(one.port, "/restart") == old
    one.wait_for("another one follows it")
    program.let_go()
    _, second, third = serving_pids(one, 3)
    for pid in (old, second):
        one.wait_for(f"^{pid} over: accept tcp .*: use of closed network connection$")
        one.wait_for(f"^{pid} ends$")
    assert ask(one.port) == third
    assert one.log.count("was sent") == 3
    assert ask(one.port, "/stop") == third
    one.wait_for(f"^{third} ends$")
    assert is_refused(one.port)


def test_H1_a_stop_during_a_boot_ends_the_successor_too(program: Program) -> None:
    """Also where it does not listen to signals."""
    one = program.start(NO_SIGNALS)
    (old,) = serving_pids(one, 1)
    port = one.port
    program.write(NO_SIGNALS.replace("#MORE", "wait_for_file('go-new')"))
    with connect(port) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        ask(port, "/restart")
        one.wait_for("forking")
        ask(port, "/stop")
        one.wait_for(f"^{old} Waiting for connections")
        program.let_go("go-new")
        new = serving_pids(one, 2)[1]
        one.wait_for(f"^{new} ends$")
        program.let_go()
        assert int(client.response()[2]) == old
    one.wait_for(f"^{old} ends$")
    assert is_refused(port)


def test_a_certificate_is_not_forgotten() -> None:
    server = GracefulServer(":0", hello, certfile="cert.pem", keyfile="key.pem")
    with pytest.raises(ValueError, match=r"use listen_and_serve_tls\(\) or serve\(server\)"):
        server.listen_and_serve()


def test_a_pid_file_that_can_t_be_written_is_told_before_the_hand_off(program: Program) -> None:
    directory = program.directory / "run"
    directory.mkdir()
    text = one_server(pid_file=str(directory / "pid"))
    one = program.start(text)
    (old,) = serving_pids(one, 1)
    (directory / "pid").unlink()
    directory.rmdir()
    os.kill(old, signal.SIGHUP)
    one.wait_for("pid file .*: no such file or directory")
    one.wait_for("Restart failed: .*; this process goes on serving")
    assert "Graceful handoff" not in one.log
    assert ask(one.port) == old
