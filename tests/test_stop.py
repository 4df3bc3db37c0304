"""The end of a service: `shutdown_delay`, the queue, the hammer, who is told, and what the log says
meanwhile."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import typing as t
from pathlib import Path

import pytest
from conftest import Live, wait_until
from flask_graceful import ShutdownTimeout, State
from program import Hosted, Program, ask, connect, is_refused, one_server, pid_from, serving_pids
from test_server import GET, Gate, Start, hello

Host = t.Callable[..., Hosted]


@pytest.fixture
def program(tmp_path: Path, live: t.Callable[..., Live]) -> Program:
    return Program(tmp_path, live)


@pytest.fixture
def hosted(running: Start) -> Host:
    return lambda app, **options: t.cast("Hosted", running(app, kind=Hosted, **options))


READINESS = """
def with_readiness(environ, start_response):
    if environ['PATH_INFO'] != '/ready':
        return app(environ, start_response)
    this = environ['flask_graceful.server']
    is_ready = this.state is State.RUNNING
    start_response('200 OK' if is_ready else '503 Service Unavailable', [])
    return [f"{this.state.name} {environ['flask_graceful.shutdown'].is_set()}".encode()]

server.app = with_readiness
"""


def test_shutdown_delay_serves_on_while_readiness_says_no(program: Program) -> None:
    one = program.start(one_server(READINESS, shutdown_delay=3, idle_grace=0))
    (pid,) = serving_pids(one, 1)
    with connect(one.port) as client:
        assert client.get("/ready")[::2] == (200, b"RUNNING False")
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        one.wait_for(f"^{pid} Serving on for 3 seconds.$")
        code, headers, body = client.get("/ready")
        assert (code, body) == (503, b"DELAYING False")
        # Neither open connections nor new ones notice anything.
        assert "connection" not in headers
        for _ in range(3):
            assert pid_from(client) == ask(one.port) == pid
        # Nor is there a successor any more.
        os.kill(pid, signal.SIGHUP)
        one.wait_for(f"^{pid} Not restarted: the server is shutting down.$")
        assert client.is_closed()
    assert one.process.wait(60) == 0
    assert time.monotonic() - began >= 2.95
    assert is_refused(one.port)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_delay_and_a_third_one_cuts(
    program: Program, signum: signal.Signals
) -> None:
    one = program.start(one_server(shutdown_delay=60, idle_grace=0))
    (pid,) = serving_pids(one, 1)
    with connect(one.port) as client:
        client.send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held$")
        os.kill(pid, signal.SIGTERM)
        one.wait_for("Serving on for 60 seconds")
        assert ask(one.port) == pid
        os.kill(pid, signum)
        one.wait_for("Waiting for connections")
        assert is_refused(one.port)
        assert not client.is_closed(0.1)
        os.kill(pid, signum)
        assert client.is_closed()
    assert one.process.wait(60) == 0
    one.wait_for(rf"^{pid} Cut: GET /held of 127\.0\.0\.1:\d+ after \d+\.\d seconds$")


def test_hammer_time_counts_from_the_end_of_the_delay(hosted: Host) -> None:
    gate = Gate()
    one = hosted(gate, shutdown_delay=0.3, hammer_time=0.3)
    with one.connect().send(GET) as client:
        gate.wait()
        began = time.monotonic()
        one.server.stop()
        assert client.is_closed()
        assert time.monotonic() - began > 0.55
        one.join()
        gate.leave.set()


def test_what_holds_a_stop_up_is_logged_every_five_seconds(program: Program) -> None:
    """Each request with its method, path and age, the oldest first; and what is tracked."""
    more = "server.spawn(wait_for_file, 'go-work')\n"
    one = program.start(one_server(more, idle_grace=0))
    (pid,) = serving_pids(one, 1)
    with connect(one.port) as first, connect(one.port) as second:
        first.send(b"GET /held-1?a=b HTTP/1.1\r\nHost: a\r\n\r\n")
        one.wait_for("^held-1$")
        body = b"POST /held-2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na"
        second.send(body)
        one.wait_for("^held-2$")
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        one.wait_for("tracked work")
        assert time.monotonic() - began > 4.9
        lines = re.findall(rf"^{pid} Waiting for: (.*)$", one.log, re.M)
        client = r"127\.0\.0\.1:\d+"
        assert len(lines) == 3
        assert re.fullmatch(rf"GET /held-1 of {client} after [5-9]\.\d seconds", lines[0])
        assert re.fullmatch(rf"POST /held-2 of {client} after [5-9]\.\d seconds", lines[1])
        assert lines[2] == "1 piece of tracked work"
        for name in ("go-1", "go-2"):
            program.let_go(name)
        for one_client in (first, second):
            assert int(one_client.response()[2]) == pid
        assert one.process.poll() is None
        program.let_go("go-work")
    assert one.process.wait(60) == 0


def test_the_hammer_names_ten_requests_and_counts_the_rest(
    hosted: Host, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    one = hosted(gate)
    clients = [one.connect().send(GET.replace(b"/", b"/%d" % i, 1)) for i in range(13)]
    for _ in clients:
        gate.wait()
    one.server.stop(timeout=0.1, wait=True)
    cut = re.findall(r"\d+ Cut: (.*)", caplog.text)
    assert len(cut) == 11
    assert all(re.fullmatch(r"GET /\d+ of .* after \d\.\d seconds", line) for line in cut[:10])
    assert cut[10] == "3 more requests"
    for client in clients:
        assert client.is_closed()
        client.sock.close()
    one.join()
    gate.leave.set()


def test_paths_in_the_log_are_one_line(hosted: Host, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    one = hosted(gate)
    with one.connect().send(GET.replace(b"/", b"/a%0Ab%E4", 1)):
        gate.wait()
        one.server.stop(timeout=0.1, wait=True)
        (line,) = [
            record.getMessage() for record in caplog.records if "Cut" in record.msg % record.args
        ]
        assert "\n" not in line
    one.join()
    gate.leave.set()


class Told:
    """An app whose streams end when their process is told to stop."""

    def __init__(self) -> None:
        self.events: list[threading.Event] = []
        self.begun = threading.Semaphore(0)

    def __call__(self, environ: t.Any, start_response: t.Any) -> t.Iterator[bytes]:
        event = environ["flask_graceful.shutdown"]
        self.events.append(event)
        start_response("200 OK", [])
        yield b"begun "
        self.begun.release()
        assert event.wait(20)
        yield b"told"


@pytest.mark.parametrize("way", ["shutdown", "stop"])
def test_the_application_knows_that_it_is_to_end(hosted: Host, running: Start, way: str) -> None:
    app = Told()
    one = hosted(app) if way == "stop" else running(app)
    with one.connect().send(GET) as client:
        assert app.begun.acquire(timeout=20)
        assert not app.events[0].is_set()
        if way == "stop":
            t.cast("Hosted", one).server.stop(wait=True)
        else:
            one.server.shutdown(timeout=20)
        assert client.response()[2] == b"begun told"
    one.join()


def test_close_tells_too(running: Start) -> None:
    app = Told()
    one = running(app)
    with one.connect().send(GET):
        assert app.begun.acquire(timeout=20)
        one.server.close()
        assert app.events[0].is_set()


def test_S17_register_on_shutdown(hosted: Host) -> None:
    """In threads of their own, when no more is accepted; not waited for."""
    gate = Gate()
    one = hosted(hello)
    names: list[str] = []
    leave = threading.Event()

    def slow() -> None:
        names.append(threading.current_thread().name)
        leave.wait(20)

    one.server.register_on_shutdown(slow)
    one.server.register_on_shutdown(slow)
    one.server.stop(wait=True)
    one.join()
    wait_until(lambda: len(names) == 2, "both started")
    assert names == ["graceful-on-shutdown"] * 2
    leave.set()
    gate.leave.set()


def test_shutdown_and_close_of_a_graceful_server_end_it(hosted: Host) -> None:
    """As those of `Server`, from any thread: the methods are Go's."""
    gate = Gate()
    one = hosted(gate)
    with one.connect().send(GET) as client:
        gate.wait()
        with pytest.raises(ShutdownTimeout):
            one.server.shutdown(timeout=0.05)
        assert one.error is None
        gate.leave.set()
        assert client.response()[2] == b"late"
        one.server.shutdown(timeout=20)
    one.join()
    assert one.server.state is State.TERMINATED
    gate = Gate()
    two = hosted(gate)
    with two.connect().send(GET) as client:
        gate.wait()
        two.server.close()
        assert client.is_closed()
        two.join()
        gate.leave.set()


def test_a_stop_serves_everybody_who_was_let_in(program: Program) -> None:
    """Connections in the accept queue, and bytes in the sockets of idle ones: the only thread is
    busy when they come."""
    one = program.start(one_server(threads=1, idle_grace=0))
    (pid,) = serving_pids(one, 1)
    idle = [connect(one.port) for _ in range(5)]
    for client in idle:
        assert pid_from(client) == pid
    busy = connect(one.port).send(GET.replace(b"/ ", b"/held "))
    one.wait_for("^held$")
    queued = [connect(one.port) for _ in range(50)]
    for client in (*idle, *queued):
        client.send(GET)
    os.kill(pid, signal.SIGTERM)
    one.wait_for("Waiting for connections")
    assert is_refused(one.port)
    program.let_go()
    for client in (busy, *idle, *queued):
        assert int(client.response()[2]) == pid
        assert client.is_closed()
        client.sock.close()
    assert one.process.wait(60) == 0
